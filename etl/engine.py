"""Running work on any `concurrent.futures.Executor`, and going on when a worker dies."""

import multiprocessing
import os
import secrets
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Final, Generic, NamedTuple, ParamSpec, TypeVar

from etl.errors import EtlError
from etl.link_csv import LINK_FILE
from loader.layout import VERSION

_CGROUP_LIMIT: Final = Path("/sys/fs/cgroup/cpu.max")
_IN_FLIGHT: Final = 4  # tasks submitted ahead, per worker
_SHOWN: Final = 5
_CONNECT_SECONDS: Final = 30

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")
_P = ParamSpec("_P")


@dataclass(frozen=True)
class Work(Generic[_Task, _Result]):
    """What to do with each task, and what to do when no process survives it."""

    run: Callable[[_Task], _Result]  # travels to the workers
    divide: Callable[[_Task], list[_Task]]  # into tasks of one pair each
    give_up: Callable[[_Task], _Result]  # what stands for a pair that kills its process
    names: Callable[[_Task], list[str]]  # of the pairs of a task, for messages


class Engine:
    """Runs work in order on an executor.

    A task whose worker dies is done again alone; if that kills a worker too, its pairs are done one
    by one, and a pair that kills a third is given up. So one bad pair costs no other.

    Parameters
    ----------
    executor : Executor
        Where the work runs.
    n_workers : int
        How many tasks it does at a time.
    revive : callable, optional
        Returns an executor to go on with after a death; None stops the run there.
    """

    def __init__(
        self, executor: Executor, n_workers: int, revive: Callable[[], Executor] | None = None
    ) -> None:
        self._executor = executor
        self._n_ahead = _IN_FLIGHT * n_workers
        self._revive = revive

    def run(self, work: Work[_Task, _Result], tasks: Iterable[_Task]) -> Iterator[_Result]:
        """Yield results in the order of the tasks, of a divided one in the order of its parts.

        Raises
        ------
        EtlError
            A worker died and the executor cannot be revived.
        """
        waiting: deque[tuple[_Task, Future[_Result]]] = deque()
        for task in tasks:
            waiting.append((task, self._executor.submit(work.run, task)))
            if len(waiting) >= self._n_ahead:
                yield from self._settle(work, waiting)
        while waiting:
            yield from self._settle(work, waiting)

    def _settle(
        self, work: Work[_Task, _Result], waiting: deque[tuple[_Task, Future[_Result]]]
    ) -> Iterator[_Result]:
        """Yield the results of the first task that waits."""
        task, future = waiting.popleft()
        try:
            yield future.result()
            return
        except _deaths() as error:
            in_flight = [task, *(other for other, _ in waiting)]
            if self._revive is None:
                names = [name for found in in_flight for name in work.names(found)]
                more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
                raise EtlError(
                    f"Build stopped: a worker died on one of {', '.join(names[:_SHOWN])}{more}. "
                    "Look at these files; is memory short?"
                ) from error
            self._executor = self._revive()
        yield from self._alone(work, task)
        # What was in flight may have died with the worker: again, all of it, in the same order.
        others = [other for other, _ in waiting]
        waiting.clear()
        waiting.extend((other, self._executor.submit(work.run, other)) for other in others)

    def _alone(self, work: Work[_Task, _Result], task: _Task) -> Iterator[_Result]:
        """Yield the results of a task that a worker may have died on."""
        again = self._try(work, task)
        if again is not None:
            yield again
            return
        for part in work.divide(task):
            found = self._try(work, part)
            yield work.give_up(part) if found is None else found

    def _try(self, work: Work[_Task, _Result], task: _Task) -> _Result | None:
        """Return the result of a task with no other beside it, None where its worker dies."""
        try:
            return self._executor.submit(work.run, task).result()
        except _deaths():
            assert self._revive is not None  # noqa: S101  or we were not here
            self._executor = self._revive()
            return None


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


def start_early(n_workers: int) -> None:
    """Begin to start workers in the background, while this process imports what it needs."""
    if n_workers > 1:
        _context()


@contextmanager
def local_engine(n_workers: int) -> Iterator[Engine]:
    """Yield an engine of so many processes on this machine; of none extra for one worker.

    Whatever ends the block, the tasks not begun are dropped and no process is left.
    """
    if n_workers <= 1:
        yield Engine(InProcess(), 1)
        return
    pools: list[ProcessPoolExecutor] = []

    def start() -> ProcessPoolExecutor:
        for broken in pools:
            broken.shutdown(wait=True, cancel_futures=True)
        pool = ProcessPoolExecutor(n_workers, _context(), initializer=_ignore_interrupt)
        pools[:] = [pool]
        with _signals_deferred():  # a worker half started would be left behind
            for _ in range(n_workers):
                pool.submit(os.getpid)
        return pool

    try:
        yield Engine(start(), n_workers, revive=start)
    finally:
        for pool in pools:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def foreign_engine(executor: Executor, n_workers: int, root: Path, out: Path) -> Iterator[Engine]:
    """Yield an engine on the caller's own executor, whose workers may run on other machines.

    Parameters
    ----------
    root, out : Path
        The input folder and the new output file, which all workers must see.

    Raises
    ------
    EtlError
        They do not, or they run another version of dicom-etl.
    """
    token = secrets.token_bytes(32)
    out.write_bytes(token)
    expected = Sight(VERSION, (root / LINK_FILE).read_bytes(), token)
    probes = [executor.submit(look, root, out) for _ in range(_IN_FLIGHT * n_workers)]
    for seen in (probe.result() for probe in probes):
        _require_same_sight(seen, expected, root, out)
    # A Dask cluster starts its workers again by itself; any other executor is the caller's to mend.
    is_dask = type(executor).__module__.partition(".")[0] == "distributed"
    yield Engine(executor, n_workers, (lambda: executor) if is_dask else None)


class Sight(NamedTuple):
    """What a worker has before its eyes; None for a file that it does not see."""

    version: str
    link_file: bytes | None
    out: bytes | None


def look(root: Path, out: Path) -> Sight:
    """Return what this process sees of the input folder and of the output file."""
    contents: list[bytes | None] = []
    for path in (root / LINK_FILE, out):
        try:
            contents.append(path.read_bytes())
        except OSError:
            contents.append(None)
    return Sight(VERSION, *contents)


def _require_same_sight(seen: Sight, expected: Sight, root: Path, out: Path) -> None:
    if seen.version != expected.version:
        raise EtlError(
            f"Workers not usable: one runs dicom-etl {seen.version}, expected {expected.version}. "
            "Install the same version on all."
        )
    places = ((seen.link_file, expected.link_file, root), (seen.out, expected.out, out.parent))
    for found, wanted, folder in places:
        if found != wanted:
            raise EtlError(
                f"Workers not usable: one does not see the folder {folder} as this process does. "
                "Give folders on a file system that all share, under the same path."
            )


@contextmanager
def dask_executor(address: str) -> Iterator[tuple[Executor, int]]:
    """Yield an executor on a Dask cluster, and how many tasks it does at a time.

    Raises
    ------
    EtlError
        Dask is not installed, or no scheduler or no worker answers.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise EtlError(
            "--scheduler needs Dask, which is not installed: pip install 'dicom-etl[dask]'."
        ) from error
    try:
        client = Client(address, timeout=_CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise EtlError(
            f"Scheduler not usable: {address}: no answer within {_CONNECT_SECONDS} s. "
            "Give the address that dask scheduler prints, such as tcp://host:8786."
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=_CONNECT_SECONDS)
        except TimeoutError as error:
            raise EtlError(
                f"Scheduler not usable: {address}: it has no worker. Start some, or wait for the "
                "batch system to."
            ) from error
        n_workers = sum(client.nthreads().values())
        yield client.get_executor(pure=False), n_workers


def _deaths() -> tuple[type[Exception], ...]:
    """Return the errors that mean that a worker died."""
    distributed = sys.modules.get("distributed")
    return (BrokenExecutor, distributed.KilledWorker) if distributed else (BrokenExecutor,)


def _cgroup_cores(limit: Path) -> int:
    """Return the cores that a container's CPU quota pays for (cgroup v2's "quota period")."""
    try:
        quota, period = limit.read_text().split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):  # no cgroup v2, or "max": no quota
        return sys.maxsize


def _context() -> multiprocessing.context.BaseContext:
    """Return how worker processes start, the server that they fork from being under way.

    Never from this process itself, which may have threads.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["etl.render", "etl.examine"])
    forkserver.ensure_running()
    return context


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
