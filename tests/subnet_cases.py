"""Parameters of a scalar ReLU subnet, and the tests of its kinks and degenerate nets."""

import pytest
import torch
from op_contract import SPECIAL


def subnet(draw, n_hidden, biases=("fc1_bias", "fc2_bias")):
    """Parameters of a subnet 1 → H → 1 by name, in float64."""
    parameters = {
        "fc1_weight": draw(n_hidden, 1),
        "fc1_bias": draw(n_hidden),
        "fc2_weight": draw(1, n_hidden),
        "fc2_bias": draw(1),
    }
    for name in ("fc1_bias", "fc2_bias"):
        if name not in biases:
            parameters[name] = None
    return parameters


class SubnetContract:
    """Tests of everything that contains a subnet; for a subclass of `OpContract`.

    ``with_x(draw, x, **parameters)`` gives the inputs of a call, x and parameters as given.
    """

    def test_kinks_belong_to_the_inactive_side(self, kernel_backend, draw):
        # breakpoints at -2, 0, 0.5 and 3, from units of both directions, and x exactly there
        w1 = torch.tensor([1.0, -1.0, 2.0, -2.0, 0.5, -0.5, 1.0, -1.0], dtype=torch.float64)
        at = torch.tensor([-2.0, -2.0, 0.0, 0.0, 0.5, 0.5, 3.0, 3.0], dtype=torch.float64)
        x = torch.tensor([-2.0, 0.0, -0.0, 0.5, 3.0, 1.0, -1.0], dtype=torch.float64)
        inputs = self.with_x(draw, x, fc1_weight=w1, fc1_bias=-w1 * at)
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
            cast = {name: t.to(dtype) for name, t in inputs.items()}
            self.judge(cast, draw, kernel_backend)

    def test_zero_input_without_bias_is_a_tie(self, kernel_backend, draw):
        x = torch.tensor([0.0, -0.0, 1.0, 0.0])
        inputs = self.with_x(draw, x, fc1_weight=draw(7), fc1_bias=None)
        inputs = {name: None if t is None else t.float() for name, t in inputs.items()}
        ours = self.judge(inputs, draw, kernel_backend)
        at_zero = ours["x"].reshape(-1)[[0, 1, 3]]
        assert torch.equal(at_zero, torch.zeros_like(at_zero))

    def test_neighbours_of_a_breakpoint_fall_on_their_own_side(self, kernel_backend, draw):
        # w x + b is exact in float64 here, so the sign of every pre-activation is known
        w1 = draw(7).float().double()
        at = draw(7).float()
        b1 = torch.zeros(7, dtype=torch.float64)
        b1[:] = -(w1 * at).float().double()
        near = [at, torch.nextafter(at, at + 1), torch.nextafter(at, at - 1)]
        x = torch.cat([near[0] * 0, *near]).double()
        inputs = self.with_x(draw, x, fc1_weight=w1, fc1_bias=b1)
        inputs = {name: t.float() for name, t in inputs.items()}
        # the value alone: PyTorch's float32 puts some of these on the other side
        self.judge(inputs, draw, kernel_backend, wanted=[])

    def test_flat_units(self, kernel_backend, draw):
        w1, b1 = draw(7), draw(7)
        w1[:5] = 0.0
        w1[3] = -0.0
        b1[:4] = torch.tensor([0.0, 1.0, -1.0, 2.0])
        self._judge_float32(
            self.with_x(draw, draw(33), fc1_weight=w1, fc1_bias=b1), draw, kernel_backend
        )

    def test_all_units_flat(self, kernel_backend, draw):
        zero = torch.zeros(7, dtype=torch.float64)
        for b1 in (draw(7), zero):
            inputs = self.with_x(draw, draw(33), fc1_weight=zero, fc1_bias=b1)
            self._judge_float32(inputs, draw, kernel_backend)

    @pytest.mark.parametrize("special", SPECIAL.values(), ids=SPECIAL)
    def test_flat_units_meet_special_values(self, special, kernel_backend, draw):
        w1 = draw(7)
        w1[:5] = 0.0
        x = draw(9)
        x[4] = special
        self._judge_float32(self.with_x(draw, x, fc1_weight=w1), draw, kernel_backend)

    def test_repeated_breakpoints(self, kernel_backend, draw):
        w1 = torch.tensor([1.0, 1.0, 2.0, -1.0, -4.0, 1.0, 1.0], dtype=torch.float64)
        b1 = -0.75 * w1
        x = torch.cat([draw(20), torch.tensor([0.75, 0.75], dtype=torch.float64)])
        self._judge_float32(self.with_x(draw, x, fc1_weight=w1, fc1_bias=b1), draw, kernel_backend)

    @pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-12, 1e-30], ids="w1_{:.0e}".format)
    def test_far_breakpoints(self, size, kernel_backend, draw):
        w1, b1 = draw(7), draw(7)
        w1[::2] *= size
        self._judge_float32(
            self.with_x(draw, draw(33), fc1_weight=w1, fc1_bias=b1), draw, kernel_backend
        )

    @pytest.mark.parametrize("size", [1e-40, 1e-44], ids="w1_{:.0e}".format)
    def test_denormal_weights(self, size, kernel_backend, draw):
        w1 = draw(7)
        w1[::3] = size
        w1[1::3] = -size
        for b1 in (draw(7), torch.zeros(7, dtype=torch.float64)):
            inputs = self.with_x(draw, draw(33), fc1_weight=w1, fc1_bias=b1)
            self._judge_float32(inputs, draw, kernel_backend)

    def test_denormal_input(self, kernel_backend, draw):
        x = torch.tensor([1e-40, -1e-40, 1e-45, -1e-45, 1e-38, 0.0], dtype=torch.float64)
        for b1 in (draw(7), torch.zeros(7, dtype=torch.float64)):
            inputs = self.with_x(draw, x, fc1_weight=draw(7), fc1_bias=b1)
            self._judge_float32(inputs, draw, kernel_backend)

    @pytest.mark.parametrize("size", [1e6, 1e15, 1e30], ids="x_{:.0e}".format)
    def test_large_inputs(self, size, kernel_backend, draw):
        x = draw(33) * size
        self._judge_float32(self.with_x(draw, x, fc1_weight=draw(7)), draw, kernel_backend)

    def test_dead_net_has_zero_gradients(self, kernel_backend, draw):
        w1 = -draw(7).abs()
        b1 = -draw(7).abs()
        inputs = self.with_x(draw, draw(33).abs(), fc1_weight=w1, fc1_bias=b1)
        ours = self._judge_float32(inputs, draw, kernel_backend)
        for name in ("fc1_weight", "fc1_bias", "fc2_weight"):
            assert torch.equal(ours[name], torch.zeros_like(ours[name]))

    def test_overflow_is_as_in_the_reference(self, kernel_backend, draw):
        inputs = self.with_x(draw, draw(33) * 1e30, fc1_weight=draw(7) * 1e30)
        self._judge_float32(inputs, draw, kernel_backend)

    def _judge_float32(self, inputs, draw, backend):
        inputs = {name: None if t is None else t.float() for name, t in inputs.items()}
        return self.judge(inputs, draw, backend)
