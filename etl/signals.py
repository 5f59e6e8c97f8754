"""Requests to stop (SIGINT, SIGTERM, SIGHUP): when they may interrupt, and what they then raise.

Handlers are set by the command line only: a program that calls `etl.build` keeps its own.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

STOPPING: Final = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
_GRACE_SECONDS: Final = 1.0

_last_stop = -_GRACE_SECONDS  # when a signal was last raised as KeyboardInterrupt
_is_done: Callable[[], bool] | None = None  # see ignore_stop_once


def raise_on_stop() -> None:
    """Let each request to stop raise KeyboardInterrupt(number), unless it is ignored (nohup)."""
    for number in STOPPING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)


def ignore_stop() -> None:
    """Ignore requests to stop from now on: the process is about to end by itself."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


def ignore_stop_once(is_done: Callable[[], bool]) -> None:
    """Ignore requests to stop as soon as `is_done()`: what is left takes no time."""
    global _is_done  # noqa: PLW0603  as in stop
    _is_done = is_done


def stop(number: int, _frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt(number), but not twice at once: cleaning up goes on."""
    global _last_stop  # noqa: PLW0603  handlers of signals are functions of the process
    now = time.monotonic()
    if now - _last_stop >= _GRACE_SECONDS and not (_is_done and _is_done()):
        _last_stop = now
        raise KeyboardInterrupt(number)


def why_stopped(error: KeyboardInterrupt) -> tuple[str, int]:
    """Return what stopped the command, and the exit status that says so to a shell."""
    number = error.args[0] if error.args else signal.SIGINT
    if number == signal.SIGINT:
        return "Interrupted", 128 + number
    return f"Stopped by {signal.Signals(number).name}", 128 + number


@contextmanager
def stop_deferred() -> Iterator[None]:
    """Let requests to stop wait until the block is done, then deliver them."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread is ever interrupted
        return
    caught: list[int] = []
    # None is the handler of a library in C: Python can neither call nor restore it.
    before = {n: handler for n in STOPPING if (handler := signal.getsignal(n)) is not None}
    try:
        for number in before:
            signal.signal(number, lambda number, _: caught.append(number))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in caught:
            signal.raise_signal(number)
