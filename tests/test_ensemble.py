"""Ensembles: many models of one structure as one module."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch

import fastmlp
from fastmlp import Ensemble, reference

N = 4
STRUCTURES = {
    "sine_sum": lambda: fastmlp.SineSum(3, learn_amplitude=True, learn_phase=True),
    "elementwise": lambda: fastmlp.ElementwiseMLP(5),
    "elementwise_deep": lambda: fastmlp.ElementwiseMLP([5, 4], activation="tanh", bias=False),
    "additive": lambda: fastmlp.AdditiveMLP(3, 4, 2),
    "additive_per_feature": lambda: fastmlp.AdditiveMLP(3, 4, 2, shared=False),
    "mlp": lambda: fastmlp.MLP(3, [4, 5], 2, output_activation="sigmoid"),
    "reference": lambda: reference.MLP(3, [4], 1, dtype=torch.float64),
    "sequential": lambda: torch.nn.Sequential(
        torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)
    ),
}


@pytest.fixture(params=STRUCTURES)
def ensemble(request):
    return Ensemble(STRUCTURES[request.param](), N, seed=0)


def inputs(ensemble, *shape):
    generator = torch.Generator().manual_seed(5)
    dtype = next(ensemble.parameters()).dtype
    return torch.randn(*shape, 3, generator=generator, dtype=torch.float64).to(dtype)


def same(one, other):
    pairs = zip(one.named_parameters(), other.named_parameters(), strict=True)
    return all(a == b and torch.equal(p, q) for (a, p), (b, q) in pairs)


class TestWeights:
    def test_parameters_are_stacked_under_their_names(self, ensemble):
        model = ensemble[1]
        for (name, p), (stacked_name, s) in zip(
            model.named_parameters(), ensemble.named_parameters(), strict=True
        ):
            assert name == stacked_name
            assert torch.equal(s[1], p)
            assert s.shape == (N, *p.shape)
        assert list(ensemble.state_dict()) == list(model.state_dict())

    def test_draws_are_those_of_the_structure(self):
        for make in STRUCTURES.values():
            module = make()
            drawn = Ensemble(module, 3000, seed=1)
            plain = torch.nn.ParameterList()
            for (name, p), one in zip(drawn.named_parameters(), module.parameters(), strict=True):
                lowest, highest = _range(module, name, one)
                assert lowest <= p.min()
                assert p.max() <= highest
                spread = highest - lowest
                if spread > 0:
                    assert p.min() < lowest + 0.01 * spread
                    assert p.max() > highest - 0.01 * spread
                    assert abs(p.mean() - (lowest + highest) / 2) < 0.02 * spread
                plain.append(p)

    def test_a_seed_tells_all(self, ensemble):
        module = ensemble[0]
        torch.manual_seed(123)
        assert same(Ensemble(module, N, seed=0), ensemble)
        assert same(Ensemble(module, 2, seed=0), ensemble[:2])
        assert not same(Ensemble(module, N, seed=1), ensemble)

    def test_draws_do_not_depend_on_how_many_are_made_at_a_time(self, monkeypatch):
        whole = Ensemble(fastmlp.SineSum(3), 50, seed=3)
        monkeypatch.setattr(fastmlp.ensemble, "_DRAWN_AT_ONCE", 20)
        assert same(whole, Ensemble(fastmlp.SineSum(3), 50, seed=3))

    def test_without_a_seed_torchs_generator_draws(self):
        torch.manual_seed(7)
        one = Ensemble(fastmlp.SineSum(3), N)
        two = Ensemble(fastmlp.SineSum(3), N)
        torch.manual_seed(7)
        assert same(one, Ensemble(fastmlp.SineSum(3), N))
        assert not same(one, two)

    def test_a_draw_is_the_same_on_every_machine(self):
        # of the Mersenne Twister with seed 0, in float64: numbers that no other machine may change
        drawn = Ensemble(fastmlp.SineSum(2, dtype=torch.float64), 2, seed=0).w.detach().double()
        generator = np.random.RandomState(0)
        words = generator.randint(0, 2**32, 8, np.uint64).reshape(4, 2)
        random64 = words[:, 0] | (words[:, 1] << np.uint64(32))
        either = [
            (w & np.uint64(2**53 - 1)).astype(np.float64) * 2.0**-52
            for w in (random64, words[:, 1] | (words[:, 0] << np.uint64(32)))
        ]
        assert any(np.array_equal(drawn.flatten().numpy(), e) for e in either)


def _range(module, name, one):
    if name in ("w", "amplitude", "phase"):
        return {"w": (0, 2), "amplitude": (1, 1), "phase": (0, 0)}[name]
    owner = module.get_submodule(name.rpartition(".")[0])
    bound = owner.in_features**-0.5
    return -bound, bound


class TestParts:
    def test_a_model_shares_its_numbers_both_ways(self, ensemble):
        model, (first, *_) = ensemble[2], ensemble.parameters()
        with torch.no_grad():
            next(model.parameters()).fill_(3.0)
        assert bool((first[2] == 3).all())
        assert not bool((first[1] == 3).any())
        with torch.no_grad():
            first[2] = 4.0
        assert bool((next(model.parameters()) == 4).all())
        assert all(type(p) is torch.nn.Parameter for p in model.parameters())

    def test_gradients_stay_with_the_model(self, ensemble):
        model = ensemble[0]
        model(inputs(ensemble, 6)).sum().backward()
        assert all(p.grad is not None for p in model.parameters())
        assert all(p.grad is None for p in ensemble.parameters())

    def test_slices_are_views_and_masks_are_copies(self, ensemble):
        part, (first, *_) = ensemble[1:3], ensemble.parameters()
        mask = torch.tensor([False, True, True, False])
        copies = [ensemble[mask], ensemble[[1, 2]], ensemble[np.array([1, -2])], ensemble[-3:-1]]
        assert all(isinstance(c, Ensemble) and len(c) == 2 and same(c, part) for c in copies)
        with torch.no_grad():
            first[1] = 9.0
        assert bool((next(part.parameters())[0] == 9).all())
        assert not bool((next(copies[0].parameters())[0] == 9).any())

    def test_modules_and_back(self, ensemble):
        modules = ensemble.to_modules()
        assert [type(m) for m in modules] == [type(ensemble[0])] * N
        again = Ensemble.from_modules(modules)
        assert same(again, ensemble)
        with torch.no_grad():
            next(modules[0].parameters()).zero_()
        assert same(again, ensemble)
        assert all(same(a, b) for a, b in zip(ensemble, ensemble.to_modules(), strict=True))

    def test_mode_and_frozen_parameters_go_along(self, ensemble):
        first, *rest = ensemble.parameters()
        first.requires_grad_(False)
        ensemble.eval()
        for part in (ensemble[0], ensemble[:2], ensemble[[0, 1]], *ensemble.to_modules()):
            assert not part.training
            flags = [p.requires_grad for p in part.parameters()]
            assert flags == [False] + [True] * len(rest)

    @pytest.mark.parametrize(
        ("key", "error", "match"),
        [
            (4, IndexError, "index must be below 4"),
            (-5, IndexError, "index must be below 4"),
            (1.0, TypeError, "index must be an int"),
            ("w", TypeError, "index must be an int"),
            (slice(2, 2), ValueError, "at least one model"),
            (slice(None, None, -1), ValueError, "step must be positive"),
            ([0, 4], IndexError, "indices must be below 4, got 4"),
            (torch.tensor([True]), ValueError, "a mask must have 4 entries, got 1"),
            (torch.zeros(4, dtype=torch.bool), ValueError, "at least one model"),
            (torch.zeros(2), TypeError, "got torch.float32"),
        ],
    )
    def test_wrong_indices(self, key, error, match):
        with pytest.raises(error, match=match):
            Ensemble(fastmlp.SineSum(2), N)[key]


class TestCopies:
    def test_deepcopy_pickle_and_files(self, ensemble, tmp_path):
        again = [copy.deepcopy(ensemble), pickle.loads(pickle.dumps(ensemble))]
        other = Ensemble(ensemble[0], N, seed=9)
        other.load_state_dict(ensemble.state_dict())
        file = io.BytesIO()
        torch.save(ensemble.state_dict(), file)
        file.seek(0)
        loaded = Ensemble(ensemble[0], N, seed=9)
        loaded.load_state_dict(torch.load(file, weights_only=True))
        x = inputs(ensemble, 5)
        for one in (*again, other, loaded):
            assert same(one, ensemble)
            assert torch.equal(one(x), ensemble(x))
            assert same(one[1], ensemble[1])
        with pytest.raises(RuntimeError, match="size mismatch"):
            ensemble[:2].load_state_dict(ensemble.state_dict())

    def test_safetensors(self, ensemble, tmp_path):
        files = pytest.importorskip("safetensors.torch")
        files.save_file(ensemble.state_dict(), tmp_path / "e.safetensors")
        other = Ensemble(ensemble[0], N, seed=9)
        other.load_state_dict(files.load_file(tmp_path / "e.safetensors"))
        assert same(other, ensemble)

    def test_to_another_dtype_and_device(self, ensemble):
        wide = copy.deepcopy(ensemble).to(torch.float64)
        assert wide[0](inputs(wide, 2)).dtype is torch.float64
        assert all(p.is_meta for p in copy.deepcopy(ensemble).to("meta").parameters())
        half = ensemble.half()
        assert {p.dtype for p in half[1].parameters()} == {torch.float16}


class TestRefusals:
    def test_structures_without_a_kernel(self):
        for module in (
            torch.nn.Conv1d(1, 1, 1),
            torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.BatchNorm1d(2)),
            torch.nn.Sequential(
                *[torch.nn.Linear(2, 2), torch.nn.Tanh(), torch.nn.Linear(2, 2)],
                *[torch.nn.ReLU(), torch.nn.Linear(2, 1)],
            ),
        ):
            with pytest.raises(ValueError, match=r"module is a .* of which there is no ensemble"):
                Ensemble(module, 3)
        for module, why in (
            (reference.MLP(1, [200], 1), "200 units, more than 128"),
            (reference.ElementwiseMLP(1500), "1500 units, more than 1024"),
            (
                torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.LeakyReLU(0.3)),
                "output activation has a slope of its own",
            ),
        ):
            with pytest.raises(ValueError, match=why):
                Ensemble(module, 3)
        with pytest.raises(TypeError, match="module must be a Module, got int 3"):
            Ensemble(3, 3)

    def test_numbers(self):
        with pytest.raises(ValueError, match="n must be at least 1, got 0"):
            Ensemble(fastmlp.SineSum(2), 0)
        with pytest.raises(TypeError, match="n must be an int, got float"):
            Ensemble(fastmlp.SineSum(2), 2.0)
        with pytest.raises(ValueError, match="seed must be between 0"):
            Ensemble(fastmlp.SineSum(2), 2, seed=-1)

    def test_modules_that_differ(self):
        sines = fastmlp.SineSum(2)
        for other in (fastmlp.SineSum(3), reference.SineSum(2), fastmlp.SineSum(2).double()):
            with pytest.raises(ValueError, match=r"another in modules\[1\] than in modules\[0\]"):
                Ensemble.from_modules([sines, other])
        with pytest.raises(ValueError, match="at least one module, got an empty list"):
            Ensemble.from_modules([])
        with pytest.raises(TypeError, match="modules must be a list of modules"):
            Ensemble.from_modules(sines)
        with pytest.raises(TypeError, match=r"modules\[1\] must be a Module"):
            Ensemble.from_modules([sines, 3])

    def test_inputs(self):
        ensemble = Ensemble(fastmlp.MLP(3, [4], 1), N)
        with pytest.raises(ValueError, match=r"x must have 4 inputs, .* got \[5, 3\]"):
            ensemble(torch.zeros(5, 3), own=True)
        with pytest.raises(ValueError, match=r"x must have shape \[\*, 3\], got \[5, 2\]"):
            ensemble(torch.zeros(5, 2))
        with pytest.raises(ValueError, match=r"x must have shape \[4, \*, 3\], got \[4\]"):
            ensemble(torch.zeros(4), own=True)
        with pytest.raises(TypeError, match="own must be a bool, got int 1"):
            ensemble(torch.zeros(5, 3), own=1)
        with pytest.raises(TypeError, match="x must be a Tensor"):
            ensemble([1.0])
