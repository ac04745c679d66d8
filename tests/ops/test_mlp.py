"""The op `mlp` on every backend."""

import pytest
import torch
from closeness import PIECEWISE_LINEAR, assert_as_good_as_torch
from general_cases import on_device
from mlp_cases import SEED, MLPContract, options
from op_contract import to

import fastmlp
from fastmlp import functional, reference
from fastmlp.dropout import layer_dropout_masks

_CASES = {
    "no_rows": {"shape": (0,)},
    "one_row": {"shape": (1,)},
    "no_dimensions_before": {"shape": ()},
    "three_dimensions_before": {"shape": (2, 3, 5)},
    "no_hidden_layer": {"widths": (4, 3)},
    "one_number_in_and_out": {"widths": (1, 10, 10, 10, 1)},
    "one_unit_everywhere": {"widths": (1, 1, 1)},
    "five_layers": {"widths": (3, 4, 5, 6, 7, 2)},
    **{f"width_{n}": {"widths": (n, n, 2)} for n in (2, 8, 15, 16, 17, 33)},
    "widest": {"widths": (128, 128, 128), "shape": (5,)},
    "many_in_one_out": {"widths": (64, 20, 1)},
    "one_in_many_out": {"widths": (1, 20, 64)},
    **{f"{n}_rows": {"shape": (n,)} for n in (15, 16, 17, 63, 64, 65)},
    **{f"{n}_rows_narrow": {"shape": (n,), "large": True} for n in (255, 256, 257, 1025, 5000)},
    "several_pieces": {"shape": (140_003,), "widths": (3, 6, 2), "large": True},
    "several_pieces_wide": {"shape": (3001,), "widths": (64, 64, 64, 16), "large": True},
    "no_biases": {"biases": False},
}


class TestMLPWithDropout(MLPContract):
    options = options("relu", dropout=0.3)
    CASES = {  # noqa: RUF012
        "no_rows": {"shape": (0,)},
        "three_dimensions_before": {"shape": (2, 3, 5)},
        "no_hidden_layer": {"widths": (4, 3)},
        **{f"width_{n}": {"widths": (3, n, n, 2)} for n in (1, 7, 8, 9, 16, 33)},
        "several_blocks_and_pieces": {"shape": (3001,), "widths": (64, 64, 16), "large": True},
    }

    @pytest.mark.parametrize("activation", reference.ACTIVATIONS)
    def test_every_activation(self, activation, kernel_backend, draw):
        self.options = on_device(options(activation, "tanh", 0.2), kernel_backend.device)
        inputs = self.make(draw, shape=(33,), widths=(3, 9, 6, 2))
        inputs = self.away_from_kinks(to(inputs, torch.float32))
        self.judge(inputs, draw, kernel_backend)

    @pytest.mark.parametrize("dropout", [1.0, 1e-6], ids=["all", "almost_none"])
    def test_extreme_probabilities(self, dropout, kernel_backend, draw):
        self.options = on_device(options("relu", dropout=dropout), kernel_backend.device)
        self.judge(self.inputs(draw), draw, kernel_backend)


class TestMLP(MLPContract):
    options = options("relu")
    CASES = _CASES

    @pytest.mark.parametrize("activation", reference.ACTIVATIONS)
    def test_every_activation(self, activation, kernel_backend, draw):
        self.options = options(activation, activation)
        for dtype in (torch.float32, torch.float64):
            inputs = self.make(draw, shape=(33,), widths=(3, 9, 6, 2))
            self.judge(self.away_from_kinks(to(inputs, dtype)), draw, kernel_backend)

    @pytest.mark.parametrize("size", [1e6, 1e15, 1e30], ids="x_{:.0e}".format)
    @pytest.mark.parametrize("activation", reference.ACTIVATIONS)
    def test_large_inputs(self, activation, size, kernel_backend, draw):
        self.options = options(activation)
        inputs = to(self.make(draw, widths=(3, 9, 2)), torch.float32)
        inputs["x"] = inputs["x"] * size
        self.judge(inputs, draw, kernel_backend, order_matters=True)

    def test_dead_net_has_zero_gradients(self, kernel_backend, draw):
        inputs = to(self.make(draw), torch.float32)
        inputs["bias0"] = torch.full_like(inputs["bias0"], -100.0)
        ours = self.judge(inputs, draw, kernel_backend)
        for name in ("x", "weight0", "bias0", "weight1"):
            assert torch.equal(ours[name], torch.zeros_like(ours[name])), name

    def test_kinks_belong_to_the_inactive_side(self, kernel_backend):
        x = torch.tensor([[0.0], [-0.0], [2.0], [-1.0]], device=kernel_backend.device)
        weight = torch.tensor([[1.0], [-1.0], [2.0]], device=kernel_backend.device)
        bias = torch.tensor([0.0, 2.0, -4.0], device=kernel_backend.device)
        for name, below in (("relu", 0.0), ("leaky_relu", 0.01)):
            x.requires_grad_()
            last = torch.eye(3, device=kernel_backend.device)
            y = functional.mlp(x, [weight, last], [bias, None], name)
            for unit in range(3):
                (dx,) = torch.autograd.grad(y[:, unit].sum(), x, retain_graph=True)
                active = (x.detach() * weight[unit] + bias[unit]) > 0
                slope = torch.where(active, 1.0, torch.tensor(below, device=x.device))
                assert torch.equal(dx, slope * weight[unit])

    def test_gradient_checks_of_smooth_activations(self, kernel_backend, draw):
        for name in ("sigmoid", "tanh", "silu", "gelu", "sin"):
            self.options = options(name, name)
            self.test_gradcheck(kernel_backend, draw)

    def test_memory_of_hidden_activations_is_never_allocated(self, kernel_backend, draw):
        if kernel_backend.interpreted:
            pytest.skip("Triton's interpreter keeps no account of memory")
        allocated, allocate = [], torch.empty

        def counting(*args, **kwargs):
            tensor = allocate(*args, **kwargs)
            allocated.append(tensor.numel())
            return tensor

        inputs = self.inputs(draw, shape=(10_000,), widths=(1, 40, 40, 1))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "empty", counting)
            self.ours(inputs, self.dy_for(inputs, draw), list(inputs))
        # x, dy, dx and the sums of a piece, on the device those of all pieces; one hidden layer
        # alone is 400 000
        most = 40_000 if kernel_backend.name == "numba" else 399_999
        assert max(allocated, default=0) <= most

    def test_a_wrong_formula_is_caught(self, draw):
        inputs = self.inputs(draw)
        exact = self.plain(to(inputs, torch.float64))["y"]
        torchs = self.plain(inputs)["y"]
        terms = self.terms(exact, *to(inputs, torch.float64).values(), *self.options.values())
        wrong = torchs * (1 + 1e-4)
        with pytest.raises(AssertionError):
            assert_as_good_as_torch(wrong, torchs, exact, terms=terms["y"])


@pytest.mark.parametrize("n_hidden", [1, 7, 8, 9, 20])
def test_masks_are_those_of_the_definition_bit_for_bit(n_hidden, kernel_backend):
    # three identity layers, each unit passed on alone: every output and every gradient is a
    # product of factors
    n, device, p = 70, kernel_backend.device, 0.5
    eye = torch.eye(n_hidden, device=device)
    first, second, third = layer_dropout_masks(SEED, n, [n_hidden] * 3, p)
    assert not any(torch.equal(a, b) for a, b in ((first, second), (second, third)))
    x = torch.ones(n, n_hidden, device=device, requires_grad=True)
    weights = [eye.clone().requires_grad_() for _ in range(4)]
    y = functional.mlp(x, weights, None, "identity", dropout=p, seed=SEED.to(device))
    wanted = first * second * third
    dx, *gradients = torch.autograd.grad(y, [x, *weights], torch.ones_like(y))
    assert torch.equal(y.cpu(), wanted)
    assert torch.equal(dx.cpu(), wanted)
    for gradient, below, above in zip(
        gradients,
        (torch.ones(n, n_hidden), first, first * second, wanted),
        (wanted, second * third, third, torch.ones(n, n_hidden)),
        strict=True,
    ):
        assert torch.equal(gradient.cpu(), above.T @ below)


def test_dropout_draws_from_the_generator(kernel_backend, draw):
    module = fastmlp.MLP(5, [14, 9], 2, dropout=0.4).to(kernel_backend.device)
    x = draw(9, 5).float().to(kernel_backend.device)
    torch.manual_seed(3)
    first, second = module(x), module(x)
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(module(x), first)
    generator = torch.cuda if kernel_backend.device == "cuda" else torch
    state = generator.get_rng_state()
    assert torch.equal(module.eval()(x), module(x))
    assert torch.equal(generator.get_rng_state(), state)


def test_opcheck(kernel_backend, draw):
    if kernel_backend.interpreted:
        pytest.skip("too slow in Triton's interpreter; the code around the kernels is the same")
    inputs = TestMLP().inputs(draw)
    x, *parameters = (t.to(kernel_backend.device).requires_grad_() for t in inputs.values())
    seed = SEED.to(kernel_backend.device)
    for arguments in ((None, "relu", "identity", 0.0), (seed, "tanh", "sin", 0.2)):
        torch.library.opcheck(torch.ops.fastmlp.mlp_fwd.default, (x, parameters, *arguments))


def test_piecewise_linear_activations_are_known():
    assert set(PIECEWISE_LINEAR) < set(reference.ACTIVATIONS)
