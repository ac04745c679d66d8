"""Profiles of Hypothesis: `default` for every run, `thorough` for `make thorough`."""

import contextlib


def register_profiles():
    from hypothesis import HealthCheck, settings

    # the inputs come from fixtures that no case changes; compiling a kernel takes seconds
    common = {
        "deadline": None,
        "suppress_health_check": [
            HealthCheck.function_scoped_fixture,
            HealthCheck.too_slow,
            HealthCheck.filter_too_much,
        ],
        "print_blob": True,
    }
    # the same few cases in every run: a test that fails now and then helps nobody
    settings.register_profile("default", max_examples=25, derandomize=True, database=None, **common)
    settings.register_profile("thorough", max_examples=10_000, **common)
    settings.load_profile("default")


# without it the tests here are skipped; an error would end the whole run
with contextlib.suppress(ImportError):
    register_profiles()
