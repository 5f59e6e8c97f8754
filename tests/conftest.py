"""Hypothesis profiles: both are deterministic, so that a failure here is a failure everywhere."""

import gc
import os
import signal

import pytest
from hypothesis import HealthCheck, settings

# A machine that is busy is no failure: neither a slow example nor slow drawing of examples.
PATIENT = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("dev", derandomize=True, max_examples=50, **PATIENT)
settings.register_profile("ci", derandomize=True, max_examples=200, **PATIENT)
settings.load_profile("ci" if os.environ.get("CI") else "dev")

# A shell lets what it runs in the background ignore Ctrl-C; builds would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# As nohup does with hangups: these tests go on, but the builds that they start may be stopped.
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)


def pytest_addoption(parser):
    parser.addoption(
        "--thorough", action="store_true", help="Torture at every point in every way: minutes."
    )


def pytest_collection_finish():
    # Each collection of garbage would look at the objects of thousands of tests: 0.1 s and more.
    gc.freeze()


@pytest.fixture(scope="session")
def is_thorough(request):
    return request.config.getoption("--thorough")
