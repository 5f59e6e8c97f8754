"""Hypothesis profiles: both are deterministic, so that a failure here is a failure everywhere."""

import os

from hypothesis import settings

settings.register_profile("dev", derandomize=True, deadline=None, max_examples=50)
settings.register_profile("ci", derandomize=True, deadline=None, max_examples=200)
settings.load_profile("ci" if os.environ.get("CI") else "dev")
