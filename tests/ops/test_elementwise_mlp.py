"""The op `elementwise_mlp` on every backend."""

import pytest
import torch
from closeness import elementwise_mlp_terms
from op_contract import OpContract
from subnet_cases import SubnetContract, subnet

_CASES = {
    "scalar": {"shape": ()},
    "no_rows": {"shape": (0,)},
    "no_columns": {"shape": (3, 0)},
    "one_element": {"shape": (1,)},
    "four_dimensions": {"shape": (2, 3, 1, 5)},
    **{f"{n}_elements": {"shape": (n,)} for n in (63, 64, 65, 2047, 2048, 2049)},
    "two_gpu_pieces": {"shape": (8193,)},
    "three_cpu_pieces": {"shape": (140_003,), "n_hidden": 14, "large": True},
    **{f"{n}_hidden": {"n_hidden": n} for n in (1, 2, 14, 15, 16, 17, 33, 64, 65)},
    "200_hidden": {"n_hidden": 200, "large": True},
    "1024_hidden": {"n_hidden": 1024, "shape": (65,), "large": True},
    "1024_hidden_many_elements": {"n_hidden": 1024, "shape": (5000,), "large": True},
    "no_biases": {"biases": ()},
    "no_first_bias": {"biases": ("fc2_bias",)},
    "no_second_bias": {"biases": ("fc1_bias",)},
}


class TestElementwiseMLP(SubnetContract, OpContract):
    name = "elementwise_mlp"
    terms = elementwise_mlp_terms
    CASES = _CASES

    def make(self, draw, shape=(13, 5), n_hidden=5, biases=("fc1_bias", "fc2_bias"), n=None,
             small=False):  # fmt: skip
        if small:
            shape, n_hidden = (2, 2), 3
        if n is not None:
            shape = (n,)
        return {"x": draw(*shape), **subnet(draw, n_hidden, biases)}

    def with_x(self, draw, x, **parameters):
        """Inputs with a given flat x; parameters replace the drawn ones."""
        n_hidden = len(parameters["fc1_weight"])
        inputs = {**self.make(draw, n_hidden=n_hidden), "x": x}
        for name, values in parameters.items():
            inputs[name] = None if values is None else values.reshape(inputs[name].shape)
        return inputs

    def test_memory_of_hidden_activations_is_never_allocated(self, kernel_backend, draw):
        if kernel_backend.interpreted:
            pytest.skip("Triton's interpreter keeps no account of memory")
        allocated = []
        allocate = torch.empty

        def counting(*args, **kwargs):
            tensor = allocate(*args, **kwargs)
            allocated.append(tensor.numel())
            return tensor

        inputs = self.inputs(draw, shape=(10_000,), n_hidden=64)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "empty", counting)
            self.ours(inputs, self.dy_for(inputs, draw), list(inputs))
        assert max(allocated, default=0) <= 10_000
