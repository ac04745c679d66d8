"""What `fit` refuses of ensembles: each error names the argument."""

import numpy as np
import pytest
import torch
from ensemble_cases import LM, N, data_for, ensemble_of, same
from fit_cases import quiet_fit, waves

import fastmlp


class TestRefusals:
    @pytest.mark.parametrize("optimizer", [fastmlp.Adam(), LM()], ids=["adam", "lm"])
    @pytest.mark.parametrize(
        ("options", "error", "match"),
        [
            ({"own": 1}, TypeError, "own must be a bool, got int 1"),
            ({"own": True}, ValueError, r"x must have at least one row of shape \[n, N, …\]"),
            ({"folds": 4}, ValueError, "folds must divide the number of models, 6"),
            ({"folds": 1}, ValueError, "folds must be at least 2, got 1"),
            ({"folds": 2.0}, TypeError, "folds must be an int"),
            ({"folds": 3, "validation": waves()}, ValueError, "validation must be None with folds"),
            ({"offsets": torch.arange(7)}, ValueError, "offsets needs own=True"),
            ({"history": "some"}, ValueError, "history must be one of all, last, got 'some'"),
            ({"history": 0}, ValueError, "history must be at least 1, got 0"),
        ],
        ids=str,
    )
    def test_options(self, optimizer, options, error, match):
        with pytest.raises(error, match=match):
            quiet_fit(ensemble_of("sines"), *waves(), epochs=2, optimizer=optimizer, **options)

    def test_leading_dimensions(self):
        x, y = data_for("sines", N)
        with pytest.raises(ValueError, match=r"x must have 6 as first dimension, .* got shape"):
            quiet_fit(ensemble_of("sines"), x[:5], y[:5], own=True, epochs=2)
        with pytest.raises(ValueError, match="y must have 6 as first dimension"):
            quiet_fit(ensemble_of("sines"), x, y[:5], own=True, epochs=2)
        with pytest.raises(ValueError, match="x and y must have as many rows, got 40 and 39"):
            quiet_fit(ensemble_of("sines"), x, y[:, 1:], own=True, epochs=2)
        with pytest.raises(ValueError, match="y must have the shape of models"):
            quiet_fit(ensemble_of("sines"), x, y[..., None], own=True, epochs=2)

    @pytest.mark.parametrize(
        ("offsets", "error", "match"),
        [
            ([0, 10, 20], ValueError, r"offsets must have shape \[7\], .* got \[3\]"),
            ([0, 1, 2, 3, 4, 5, 6], ValueError, "from 0 to the number of rows, 40, got 0 to 6"),
            ([1, 2, 3, 4, 5, 6, 40], ValueError, "from 0 to the number of rows, 40, got 1 to 40"),
            ([0, 5, 5, 6, 7, 8, 40], ValueError, "at least one row, got 5 and 5 for model 1"),
            ([0, 5, 4, 6, 7, 8, 40], ValueError, "at least one row, got 5 and 4 for model 1"),
            ([0.0, 1, 2, 3, 4, 5, 40], TypeError, "offsets must hold integers, got float64"),
        ],
        ids=str,
    )
    def test_offsets(self, offsets, error, match):
        with pytest.raises(error, match=match):
            quiet_fit(ensemble_of("sines"), *waves(), own=True, offsets=np.array(offsets), epochs=2)

    @pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
    @pytest.mark.parametrize("name", ["x", "y", "sample_weight"])
    def test_least_squares_of_what_is_not_finite(self, name, number):
        x, y = data_for("sines", N)
        data = {"x": x, "y": y, "sample_weight": torch.ones_like(x)}
        data[name][3, 7] = number
        before = ensemble_of("sines")
        with pytest.raises(ValueError, match=f"{name} must .*be (finite|negative)"):
            quiet_fit(before, **data, own=True, epochs=2, optimizer=LM())
        assert same(before, ensemble_of("sines"))

    def test_models(self):
        with pytest.raises(ValueError, match="clip_norm must hold 6 values, one per model, got 5"):
            quiet_fit(ensemble_of("sines"), *waves(), epochs=2, clip_norm=torch.ones(5))
        with pytest.raises(ValueError, match="lr must be at least 0, got -1"):
            fastmlp.Adam(lr=torch.tensor([1.0, -1.0]))
        with pytest.raises(ValueError, match="lr must be finite, got nan"):
            fastmlp.Adam(lr=np.array([1.0, np.nan]))
        with pytest.raises(TypeError, match="models must be modules or one Ensemble"):
            quiet_fit([ensemble_of("sines")], *waves(), epochs=2)
        short = ensemble_of("sines").half()
        with pytest.raises(TypeError, match=r"models\.w must be float32 or float64"):
            quiet_fit(short, *waves(), epochs=2)
