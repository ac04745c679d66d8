"""The op `mlp` on every backend."""

import pytest
import torch
from closeness import PIECEWISE_LINEAR, assert_as_good_as_torch, mlp_terms
from op_contract import OpContract, to

from fastmlp import functional, reference

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

    def mlp(*tensors, activation, output_activation, **named):
        x, *parameters = tensors or named.values()
        return module.mlp(x, parameters[::2], parameters[1::2], activation, output_activation)

    return mlp


class TestMLP(OpContract):
    name = "mlp"
    options = {"activation": "relu", "output_activation": "identity"}  # noqa: RUF012
    CASES = _CASES

    @staticmethod
    def terms(dy, x, *arguments):
        *parameters, activation, output_activation = arguments
        terms = mlp_terms(dy, x, parameters[::2], parameters[1::2], activation, output_activation)
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
        return away_from_kinks(to(self.make(draw, **case), dtype))

    @pytest.mark.parametrize("activation", reference.ACTIVATIONS)
    def test_every_activation(self, activation, kernel_backend, draw):
        self.options = {"activation": activation, "output_activation": activation}
        for dtype in (torch.float32, torch.float64):
            inputs = self.make(draw, shape=(33,), widths=(3, 9, 6, 2))
            self.judge(away_from_kinks(to(inputs, dtype)), draw, kernel_backend)

    @pytest.mark.parametrize("size", [1e6, 1e15, 1e30], ids="x_{:.0e}".format)
    @pytest.mark.parametrize("activation", reference.ACTIVATIONS)
    def test_large_inputs(self, activation, size, kernel_backend, draw):
        self.options = {"activation": activation, "output_activation": "identity"}
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
            self.options = {"activation": name, "output_activation": name}
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
        # x, dy, dx and the sums of a piece; one hidden layer alone is 400 000
        assert max(allocated, default=0) <= 40_000

    def test_a_wrong_formula_is_caught(self, draw):
        inputs = self.inputs(draw)
        exact = self.plain(to(inputs, torch.float64))["y"]
        torchs = self.plain(inputs)["y"]
        terms = self.terms(exact, *to(inputs, torch.float64).values(), *self.options.values())
        wrong = torchs * (1 + 1e-4)
        with pytest.raises(AssertionError):
            assert_as_good_as_torch(wrong, torchs, exact, terms=terms["y"])


def away_from_kinks(inputs):
    """The inputs with those rows of x moved where rounding could tell a unit active or not."""
    x = inputs["x"].double()
    parameters = [None if t is None else t.double() for t in list(inputs.values())[1:]]
    eps = torch.finfo(torch.float64 if inputs["x"].dtype == torch.float64 else torch.float32).eps
    for _ in range(100):
        h, size = x, x.abs()
        unclear = torch.zeros(x.shape[:-1], dtype=torch.bool)
        for weight, bias in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
            z, size = h @ weight.T, size @ weight.abs().T
            if bias is not None:
                z, size = z + bias, size + bias.abs()
            unclear |= ((z.abs() <= 64 * eps * size) & (z != 0)).any(-1)
            h = z.relu()
        if not unclear.any():
            return {**inputs, "x": x.to(inputs["x"].dtype)}
        x = torch.where(unclear.unsqueeze(-1), x * 1.01 + 0.001, x)
        x = x.to(inputs["x"].dtype).double()
    raise AssertionError("no place without a breakpoint nearby")


def test_piecewise_linear_activations_are_known():
    assert set(PIECEWISE_LINEAR) < set(reference.ACTIVATIONS)
