"""Running a function over many tasks on any `concurrent.futures.Executor`."""

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

from etl.errors import EtlError

_CGROUP_LIMIT: Final = Path("/sys/fs/cgroup/cpu.max")
_IN_FLIGHT: Final = 4  # tasks submitted ahead, per worker

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")
_P = ParamSpec("_P")


class InProcess(Executor):
    """Runs each task when it is submitted, in the caller's own process."""

    def submit(
        self, fn: Callable[_P, _Result], /, *args: _P.args, **kwargs: _P.kwargs
    ) -> Future[_Result]:
        """Return a future that is done; an exception is raised here and now."""
        future: Future[_Result] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def available_cores() -> int:
    """Return how many cores this process may use: by affinity, and by its cgroup's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(cores or 1, _cgroup_cores(_CGROUP_LIMIT)))


def _cgroup_cores(limit: Path) -> int:
    """Return the cores that a container's CPU quota pays for (cgroup v2's "quota period")."""
    try:
        quota, period = limit.read_text().split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):  # no cgroup v2, or "max": no quota
        return sys.maxsize


@contextmanager
def local_executor(n_workers: int) -> Iterator[Executor]:
    """Yield an executor of so many processes on this machine; of none extra for one worker.

    Whatever ends the block, the tasks not begun are dropped and no process is left.
    """
    if n_workers <= 1:
        yield InProcess()
        return
    # Workers fork from a fresh server process: never from one that has threads, as ours may.
    context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    if sys.platform == "linux":
        context.set_forkserver_preload(["etl.render", "etl.examine"])
    pool = ProcessPoolExecutor(n_workers, context, initializer=_ignore_interrupt)
    try:
        with _signals_deferred():  # a worker half started would be left behind
            for _ in range(n_workers):
                pool.submit(os.getpid)
        yield pool
    except BrokenProcessPool as error:
        raise EtlError(
            "Build stopped: a worker process died (killed, or out of memory?). "
            "Try fewer --workers; with --workers 1 the work is done in one process."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def in_order(
    executor: Executor, n_workers: int, function: Callable[[_Task], _Result], tasks: Iterable[_Task]
) -> Iterator[_Result]:
    """Yield `function` of each task in the order of the tasks; only a few are under way."""
    waiting: deque[Future[_Result]] = deque()
    for task in tasks:
        waiting.append(executor.submit(function, task))
        if len(waiting) >= _IN_FLIGHT * n_workers:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@contextmanager
def _signals_deferred() -> Iterator[None]:
    """Let Ctrl-C and a request to end wait until the block is done."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread is ever interrupted
        return
    caught: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {n: signal.signal(n, lambda n, _: caught.append(n)) for n in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for found in caught:
            signal.raise_signal(found)


def _ignore_interrupt() -> None:
    """Leave Ctrl-C to the coordinator, which ends the workers in good order."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
