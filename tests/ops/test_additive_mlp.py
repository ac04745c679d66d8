"""The op `additive_mlp` on every backend."""

import torch
from closeness import additive_mlp_terms
from op_contract import OpContract
from subnet_cases import SubnetContract, subnet

_CASES = {
    "no_rows": {"shape": (0, 64)},
    "one_row": {"shape": (1, 64)},
    "vector": {"shape": (64,)},
    "no_batch": {"shape": (2, 0, 64)},
    "three_dimensions": {"shape": (2, 3, 5)},
    "four_dimensions": {"shape": (2, 1, 3, 4)},
    **{f"{n}_features": {"shape": (5, n)} for n in (1, 2, 3, 15, 16, 17, 63, 65, 130)},
    **{f"{n}_rows": {"shape": (n, 64)} for n in (8, 31, 33)},
    **{f"{n}_rows_of_3": {"shape": (n, 3)} for n in (255, 256, 257)},
    **{f"{n}_rows_of_64": {"shape": (n, 64), "n_hidden": 14, "large": True} for n in (100, 129)},
    "three_cpu_pieces": {"shape": (2101, 64), "n_hidden": 14, "large": True},
    "three_cpu_pieces_of_130": {"shape": (1101, 130), "n_out": 3, "large": True},
    "many_rows_of_one": {"shape": (140_003, 1), "large": True},
    **{f"{n}_hidden": {"n_hidden": n} for n in (1, 2, 14, 15, 16, 17, 33, 64, 65)},
    "200_hidden": {"n_hidden": 200, "large": True},
    "1024_hidden": {"n_hidden": 1024, "large": True},
    **{f"{n}_outputs": {"n_out": n} for n in (2, 3, 8, 9, 17)},
    "70_outputs_of_65_features": {"shape": (40, 65), "n_out": 70, "large": True},
    "one_of_everything": {"shape": (1, 1), "n_hidden": 1},
    "no_biases": {"biases": ()},
    "readout_bias_only": {"biases": ("fc3_bias",)},
    "no_first_bias": {"biases": ("fc2_bias", "fc3_bias")},
    "no_readout_bias": {"biases": ("fc1_bias", "fc2_bias")},
}


class TestAdditiveMLP(SubnetContract, OpContract):
    name = "additive_mlp"
    terms = additive_mlp_terms
    CASES = _CASES

    def make(self, draw, shape=(7, 5), n_hidden=5, n_out=1, n=None, small=False,
             biases=("fc1_bias", "fc2_bias", "fc3_bias")):  # fmt: skip
        if small:
            shape, n_hidden, n_out = (2, 2), 3, 2
        if n is not None:
            shape = (n // 5, 5)
        return {
            "x": draw(*shape),
            **subnet(draw, n_hidden, biases),
            "fc3_weight": draw(n_out, shape[-1]),
            "fc3_bias": draw(n_out) if "fc3_bias" in biases else None,
        }

    def with_x(self, draw, x, **parameters):
        """Inputs whose one row is a given flat x; parameters replace the drawn ones."""
        n_hidden = len(parameters["fc1_weight"])
        inputs = {**self.make(draw, shape=(1, len(x)), n_hidden=n_hidden), "x": x.unsqueeze(0)}
        for name, values in parameters.items():
            inputs[name] = None if values is None else values.reshape(inputs[name].shape)
        return inputs

    def test_no_special_value_reaches_another_row(self, backend, draw):
        inputs = self.inputs(draw, shape=(40, 5), n_out=2)
        inputs["x"][11, 2] = torch.nan
        inputs["x"][12, 0] = torch.inf
        ours = self.judge(inputs, draw, backend, wanted=["x"])
        spoilt = (~ours["y"].isfinite()).any(1).nonzero().flatten().tolist()
        assert spoilt in ([11], [11, 12])

    def test_order_of_rows_does_not_matter(self, kernel_backend, draw):
        inputs = self.inputs(draw, shape=(300, 5))
        inputs = {name: t.to(kernel_backend.device) for name, t in inputs.items()}
        y = self.ours(inputs)["y"]
        inputs["x"] = inputs["x"].flip(0)
        assert torch.equal(self.ours(inputs)["y"].flip(0), y)
