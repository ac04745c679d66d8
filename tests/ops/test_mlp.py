"""The op `mlp` on every backend."""

import math

import pytest
import torch
from closeness import PIECEWISE_LINEAR, assert_as_good_as_torch, mlp_terms
from dense_cases import on_device
from op_contract import OpContract, evaluate, to

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


def mlp_of(module):
    """`mlp` of a module as a function of x and of weights and biases in turn."""

    def mlp(*tensors, activation, output_activation, dropout, seed, **named):
        x, *parameters = tensors or named.values()
        options = activation, output_activation, dropout, seed
        return module.mlp(x, parameters[::2], parameters[1::2], *options)

    return mlp


SEED = torch.tensor([0x1234_5678_9ABC_DEF0])


def options(activation, output_activation="identity", dropout=0.0):
    return {
        "activation": activation,
        "output_activation": output_activation,
        "dropout": dropout,
        "seed": SEED if dropout else None,
    }


def masks_of(x, weights, dropout, seed):
    """The factors of every hidden layer, in float64; ``None`` without dropout."""
    if seed is None:
        return None
    n, widths = math.prod(x.shape[:-1]), [len(weight) for weight in weights[:-1]]
    return layer_dropout_masks(seed.cpu(), n, widths, dropout, torch.float64)


class MLPContract(OpContract):
    name = "mlp"

    @staticmethod
    def terms(dy, x, *arguments):
        *parameters, activation, output_activation, dropout, seed = arguments
        layers = parameters[::2], parameters[1::2]
        masks = masks_of(x, layers[0], dropout, seed)
        terms = mlp_terms(dy, x, *layers, activation, output_activation, masks)
        named = {"y": terms["y"], "x": terms["x"]}
        for i, (weight, bias) in enumerate(zip(terms["weights"], terms["biases"], strict=True)):
            named.update({f"weight{i}": weight, f"bias{i}": bias})
        return named

    def function(self, module):
        return mlp_of(module)

    def make(self, draw, shape=(13,), widths=(3, 5, 4, 2), biases=True, n=None, small=False):
        if small:
            shape, widths = (2,), (2, 3, 2)
        if n is not None:
            shape = (n,)
        inputs = {"x": draw(*shape, widths[0])}
        for i in range(len(widths) - 1):
            inputs[f"weight{i}"] = draw(widths[i + 1], widths[i]) / widths[i] ** 0.5
            inputs[f"bias{i}"] = draw(widths[i + 1]) if biases else None
        return inputs

    def inputs(self, draw, dtype=torch.float32, **case):
        """As the contract's: no row at a place where rounding decides whether a unit is active."""
        return self.away_from_kinks(to(self.make(draw, **case), dtype))

    def away_from_kinks(self, inputs):
        weights = list(inputs.values())[1::2]
        chance = self.options["dropout"], self.options["seed"]
        return away_from_kinks(inputs, masks_of(inputs["x"], weights, *chance))

    @pytest.fixture(autouse=True)
    def _seed_on_the_device(self, request):
        for name in {"backend", "kernel_backend"} & set(request.fixturenames):
            self.options = on_device(self.options, request.getfixturevalue(name).device)

    def ours(self, inputs, dy=None, wanted=()):
        return evaluate(self.function(functional), inputs, self.at(inputs), dy, wanted)

    def plain(self, inputs, dy=None, wanted=()):
        return evaluate(self.function(reference), inputs, self.at(inputs), dy, wanted)

    def at(self, inputs):
        return on_device(self.options, inputs["x"].device)


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


def away_from_kinks(inputs, masks=None):
    """The inputs with those rows of x moved where rounding could tell a unit active or not."""
    x = inputs["x"].double()
    parameters = [None if t is None else t.double() for t in list(inputs.values())[1:]]
    eps = torch.finfo(torch.float64 if inputs["x"].dtype == torch.float64 else torch.float32).eps
    for _ in range(100):
        h, size = x, x.abs()
        unclear = torch.zeros(x.shape[:-1], dtype=torch.bool)
        for i, (weight, bias) in enumerate(zip(parameters[:-2:2], parameters[1:-2:2], strict=True)):
            z, size = h @ weight.T, size @ weight.abs().T
            if bias is not None:
                z, size = z + bias, size + bias.abs()
            unclear |= ((z.abs() <= 64 * eps * size) & (z != 0)).any(-1)
            h = z.relu()
            if masks is not None:
                mask = masks[i].reshape(h.shape)
                h, size = h * mask, size * mask
        if not unclear.any():
            return {**inputs, "x": x.to(inputs["x"].dtype)}
        x = torch.where(unclear.unsqueeze(-1), x * 1.01 + 0.001, x)
        x = x.to(inputs["x"].dtype).double()
    raise AssertionError("no place without a breakpoint nearby")


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
