"""Predictions from counted instructions and bytes."""

import pytest


@pytest.fixture
def roofline(of_bench):
    """The module bench/roofline.py."""
    return of_bench("roofline")


def test_the_larger_bound_decides(roofline):
    gpu = roofline.Gpu(bandwidth=1000, sms=10, clock=2.0, target="sm_90")
    # 10 SMs · 128 a clock · 2 GHz = 2560e9 instructions a second
    assert roofline.predict(10, 8, gpu) == (125, "bytes")
    assert roofline.predict(256, 8, gpu) == (10, "instructions")


def test_every_kernel_with_known_bytes_is_predicted_for_every_gpu(roofline):
    lines = roofline.table(roofline.newest_figures()).splitlines()
    assert len(lines) == 1 + len(roofline.BYTES)
    assert not any("-" in line for line in lines)
