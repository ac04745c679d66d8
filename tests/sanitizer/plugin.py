"""Hooks of pytest: a test fails of what the sanitizer found in its launches."""

import pytest

from . import findings, watch


class Sanitizer:
    """Watches every launch of a run. ``seed`` decides the order of programs, test by test."""

    def __init__(self, seed):
        watch.install()
        watch.Order.seed = seed

    def pytest_report_header(self):
        return f"sanitizer: kernels are watched, programs in the order of seed {watch.Order.seed}"

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item):
        watch.Order.test, watch.Order.launch = item.nodeid, 0
        return (yield from self._judged())

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        return (yield from self._judged())

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item):
        return (yield from self._judged())

    def _judged(self):
        try:
            return (yield)
        finally:
            found = findings.take()
            if found:
                pytest.fail("the sanitizer found\n" + "\n".join(found), pytrace=False)
