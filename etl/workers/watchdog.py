"""A wall-clock limit for one file, the last resort: a worker that exceeds it is killed.

The kernel's timer does it, so that no decoder and no loop in C can go on. Its task is done again
without the file; see `etl.workers.engine`. Only worker processes are ever armed.
"""

import signal
from concurrent.futures import BrokenExecutor
from typing import Final

DEFAULT_SECONDS: Final = 60.0

_seconds = 0.0  # of this process; 0: no limit


class TimedOutError(BrokenExecutor):
    """One file has taken the worker more time than a file may take, and the worker is dead."""


def arm(seconds: float) -> None:
    """Limit each file of this process, where the platform has such a timer; 0 sets no limit."""
    global _seconds  # noqa: PLW0603  a timer is the process's
    if seconds and hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        _seconds = seconds


def next_file() -> None:
    """Begin the time of the next file."""
    if _seconds:
        signal.setitimer(signal.ITIMER_REAL, _seconds)


def rest() -> None:
    """Stop the time: no file is worked on."""
    if _seconds:
        signal.setitimer(signal.ITIMER_REAL, 0)


def has_struck(exit_status: int | None) -> bool:
    """Say whether it was the timer that ended a process."""
    return hasattr(signal, "SIGALRM") and exit_status == -signal.SIGALRM
