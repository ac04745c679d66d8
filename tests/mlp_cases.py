"""The contract of the op `mlp`: its inputs, and the sizes of their terms."""

import math

import pytest
import torch
from closeness import mlp_terms
from general_cases import on_device
from op_contract import OpContract, evaluate, to

from fastmlp import functional, reference
from fastmlp.dropout import layer_dropout_masks


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
