"""How a command imports what it needs beyond --help."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from etl.signals import stop_deferred


@contextmanager
def importing() -> Iterator[None]:
    """Let requests to stop wait while the block imports, and keep the collector off the imports.

    NumPy fails in its own words where an import breaks off. Modules stay as long as the process, so
    that to look for cycles in them, then and later, is a 30th of a build for nothing.
    """
    # Where NumPy is there already, the process is another program's, and so is its collector.
    is_ours = "numpy" not in sys.modules and gc.isenabled()
    if is_ours:
        gc.disable()
    try:
        with stop_deferred():
            yield
    finally:
        if is_ours:
            gc.freeze()
            gc.enable()
