"""`fit` of an ensemble in the Triton wing, beside the Numba wing."""

import pytest
import torch
from closeness import assert_same_number
from ensemble_cases import LM, data_for, ensemble_of, same
from fit_cases import quiet_fit

import fastmlp

pytest.importorskip("numba")


class TestTriton:
    """The other wing, in Triton's interpreter under the sanitizer."""

    @pytest.fixture(autouse=True)
    def wing(self):
        pytest.importorskip("triton")
        with fastmlp.backend("triton"):
            yield

    @pytest.mark.parametrize("batch_size", [None, 3])
    def test_ragged_folds_and_weights(self, batch_size):
        counts = torch.tensor([9, 4, 6, 5])
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        x = torch.linspace(-1, 1, int(offsets[-1]), dtype=torch.float64)
        options = {
            "own": True, "offsets": offsets, "folds": 2, "batch_size": batch_size, "epochs": 3,
            "sample_weight": x.abs() + 0.5, "history": 2,
        }  # fmt: skip
        ours, numbas = ensemble_of("sines", 4).double(), ensemble_of("sines", 4).double()
        result = quiet_fit(ours, x, x.sin(), **options)
        with fastmlp.backend("numba"):
            wanted = quiet_fit(numbas, x, x.sin(), **options)
        # float64 on both sides: what differs are the orders of sums
        for a, b in ((result.train_loss, wanted.train_loss), (result.val_loss, wanted.val_loss)):
            assert_same_number(a, b)
        assert_same_number(ours.w, numbas.w)

    def test_bits_of_a_list(self):
        x, y = data_for("mlp", 2)
        ensemble = ensemble_of("mlp", 2)
        modules = ensemble.to_modules()
        quiet_fit(ensemble, x[0, :6], y[0, :6], epochs=2)
        quiet_fit(modules, x[0, :6], y[0, :6], epochs=2)
        assert all(same(a, b) for a, b in zip(ensemble, modules, strict=True))

    def test_least_squares(self):
        x, y = data_for("sines", 3)
        for own in (False, True):
            ours, numbas = ensemble_of("sines", 3).double(), ensemble_of("sines", 3).double()
            data = (x[:, :8], y[:, :8]) if own else (x[0, :8], y[0, :8])
            quiet_fit(ours, *data, own=own, epochs=2, optimizer=LM())
            with fastmlp.backend("numba"):
                quiet_fit(numbas, *data, own=own, epochs=2, optimizer=LM())
            # two steps in float64 by other orders of sums
            assert_same_number(ours.w, numbas.w)
