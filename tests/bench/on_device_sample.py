"""Tests that fail, each in its own way; `bench/on_device.py` is to name them."""

import os
import signal


def test_right():
    pass


def test_wrong():
    ours = 3
    assert ours == 4, "the planted message"


def test_raises():
    raise RuntimeError("planted trouble\nand its second line")


def test_fails_in_company():
    alone = os.environ.get("PYTEST_XDIST_WORKER") is None
    assert alone


def test_dies():
    os.kill(os.getpid(), signal.SIGABRT)
