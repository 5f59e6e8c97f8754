"""Prepare values in a background thread."""

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from loader.errors import LoaderError

_Value = TypeVar("_Value")

_CHECK_SECONDS: Final = 0.1  # how often someone who waits looks whether the thread still lives


class Prefetcher(Generic[_Value]):
    """Values made by a thread before they are asked for, in order.

    The thread begins with `start`, so that who makes a prefetcher can first see to its end. It ends
    with `close`, or with the first exception of `make`, which `get` raises once what was made
    before it has been taken.

    Parameters
    ----------
    make : callable
        Returns the next value; only the thread calls it. It must not refer to the object whose
        collection closes the prefetcher.
    depth : int
        How many values may wait, the one being made included.
    """

    def __init__(self, make: Callable[[], _Value], depth: int) -> None:
        self._make = make
        self._depth = depth
        self._ready: deque[_Value] = deque()
        self._error: BaseException | None = None
        self._is_closed = False
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._pid = os.getpid()
        # A daemon, so that it never keeps a process from ending.
        self._thread = threading.Thread(target=self._run, name="loader-prefetch", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def get(self) -> _Value:
        """Return the next value, waiting for it where it is not ready.

        Raises
        ------
        BaseException
            What `make` raised.
        LoaderError
            The thread has ended without one.
        """
        with self._changed:
            while True:
                # Not asked for before: a signal's handler may close this at any moment.
                with contextlib.suppress(IndexError):
                    value = self._ready.popleft()
                    break
                if self._error is not None:
                    raise self._error
                if self._is_closed or not self._thread.is_alive():
                    raise LoaderError(
                        "Batch not prepared: the prefetch thread has ended. Ask again, or use "
                        "prefetch=0."
                    )
                self._changed.wait(_CHECK_SECONDS)
            self._changed.notify_all()
            return value

    def close(self) -> None:
        """End the thread and wait for it, at most one value's time.

        The handler of a signal does not wait where the calls that it interrupted hold the lock,
        which the other thread needs to end.
        """
        if os.getpid() != self._pid:
            return  # a forked child has neither the thread nor a lock it could trust
        with self._changed:
            self._is_closed = True
            self._ready.clear()
            self._changed.notify_all()
        is_other = self._thread.ident not in {None, threading.get_ident()}  # None: not started
        if is_other and not self._lock._is_owned():  # type: ignore[attr-defined]
            self._thread.join()

    def _run(self) -> None:
        while self._has_room():
            try:
                value = self._make()
            except BaseException as error:  # noqa: BLE001 raised again by get
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                return
            with self._changed:
                if not self._is_closed:
                    self._ready.append(value)
                    self._changed.notify_all()

    def _has_room(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or len(self._ready) < self._depth)
            return not self._is_closed
