"""Running work on any `concurrent.futures.Executor`, and going on when a worker dies."""

import secrets
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, NamedTuple, ParamSpec, TypeVar

from etl.errors import EtlError, changed_limits, run_limited
from etl.workers import watchdog
from loader.format import VERSION

_IN_FLIGHT: Final = 4  # tasks submitted ahead, per worker
_SHOWN: Final = 5
_CONNECT_SECONDS: Final = 30
_CRASHED: Final = "three workers crashed on it. Look at the file; is memory short?"

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")
_P = ParamSpec("_P")


@dataclass(frozen=True)
class Work(Generic[_Task, _Result]):
    """What to do with each task, and what to do when no process survives it."""

    run: Callable[[_Task], _Result]  # travels to the workers
    divide: Callable[[_Task], list[_Task]]  # into tasks of one pair each
    give_up: Callable[[_Task, str], _Result]  # the result for a pair, and why it is given up
    names: Callable[[_Task], list[str]]  # of the pairs of a task, for messages


class Engine:
    """Runs work in order on an executor.

    A task whose worker dies is done again; if another worker dies of it too, its pairs are done one
    by one, and a pair that a third dies of is given up. So one bad pair costs no other. A task that
    a file takes too long is done pair by pair at once.

    Parameters
    ----------
    executor : Executor
        Where the work runs.
    n_workers : int
        How many tasks it does at a time.
    goes_on : bool
        Whether the executor works on after a death; if not, the run stops there.
    file_seconds : float
        Time that one file may take, for messages.

    Attributes
    ----------
    n_timed_out : int
        Pairs that were given up because they took longer.
    """

    def __init__(
        self, executor: Executor, n_workers: int, *, goes_on: bool, file_seconds: float = 0
    ) -> None:
        self.n_timed_out = 0
        self.file_seconds = file_seconds
        self._executor = executor
        # A task that runs at once gains nothing from a place in the queue.
        self._n_ahead = 1 if isinstance(executor, InProcess) else _IN_FLIGHT * n_workers
        self._goes_on = goes_on

    def run(self, work: Work[_Task, _Result], tasks: Iterable[_Task]) -> Iterator[_Result]:
        """Yield results in the order of the tasks, of a divided one in the order of its parts.

        Raises
        ------
        EtlError
            A worker died and the executor does not go on.
        """
        waiting: deque[tuple[_Task, Future[_Result]]] = deque()
        for task in tasks:
            waiting.append((task, self._submit(work, task, waiting)))
            if len(waiting) >= self._n_ahead:
                yield from self._settle(work, waiting)
        while waiting:
            yield from self._settle(work, waiting)

    def _settle(
        self, work: Work[_Task, _Result], waiting: deque[tuple[_Task, Future[_Result]]]
    ) -> Iterator[_Result]:
        """Yield the results of the first task that waits."""
        task, future = waiting[0]
        try:
            result = future.result()
        except _deaths() as error:
            if not self._goes_on:
                raise self._stopped(work, waiting) from error
            waiting.popleft()
            yield from self._again(work, task, error)
        else:
            waiting.popleft()
            yield result

    def _submit(
        self,
        work: Work[_Task, _Result],
        task: _Task,
        waiting: deque[tuple[_Task, Future[_Result]]],
    ) -> Future[_Result]:
        try:
            return self._call(work, task)
        except BrokenExecutor as error:  # it has noticed a death before we did
            raise self._stopped(work, waiting) from error

    def _call(self, work: Work[_Task, _Result], task: _Task) -> Future[_Result]:
        """Submit a task, whose worker is to have the limits that this process has."""
        if limits := changed_limits():
            return self._executor.submit(run_limited, limits, work.run, task)
        return self._executor.submit(work.run, task)

    def _stopped(
        self, work: Work[_Task, _Result], waiting: deque[tuple[_Task, Future[_Result]]]
    ) -> EtlError:
        names = [name for task, _ in waiting for name in work.names(task)]
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        return EtlError(
            f"Build stopped: a worker died on one of {', '.join(names[:_SHOWN])}{more}. "
            "Look at these files; is memory short?"
        )

    def _again(
        self, work: Work[_Task, _Result], task: _Task, death: Exception
    ) -> Iterator[_Result]:
        """Yield the results of a task that a worker has died of."""
        if not isinstance(death, watchdog.TimedOutError):
            found = self._try(work, task)
            if not isinstance(found, Exception):
                yield from found
                return
        for part in work.divide(task):
            found = self._try(work, part)
            if isinstance(found, Exception):
                yield work.give_up(part, self._why(found))
            else:
                yield from found

    def _try(self, work: Work[_Task, _Result], task: _Task) -> list[_Result] | Exception:
        """Return the one result of a task, or the error where its worker dies."""
        try:
            return [self._call(work, task).result()]
        except _deaths() as error:
            return error

    def _why(self, death: Exception) -> str:
        """Return why a pair is given up, and count those that took too long."""
        if not isinstance(death, watchdog.TimedOutError):
            return _CRASHED
        self.n_timed_out += 1
        return (
            f"it took a worker longer than {self.file_seconds:g} s, with what is drawn on it, and "
            "is left out. Look at the files, or give them more time with --file-timeout."
        )


class InProcess(Executor):
    """Runs each task when it is submitted, in the caller's own process."""

    def submit(
        self, fn: Callable[_P, _Result], /, *args: _P.args, **kwargs: _P.kwargs
    ) -> Future[_Result]:
        """Return a future that is done; an exception is raised here and now."""
        future: Future[_Result] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@contextmanager
def engine_for(
    executor: Executor | None,
    n_workers: int,
    n_tasks: int,
    probe: Path,
    out: Path,
    file_seconds: float,
) -> Iterator[Engine]:
    """Yield an engine on the caller's executor, or on processes of this machine where it has none.

    Parameters
    ----------
    n_tasks : int
        Of the longest stage: more processes of this machine would have nothing to do.
    probe, out : Path
        A file of the input, and the new output file, which all workers must see.
    file_seconds : float
        Time that one file may take a process of this machine.

    Raises
    ------
    EtlError
        The executor's workers do not see them, or run another version of dicom-etl.
    """
    if executor is None:
        with local_engine(min(n_workers, n_tasks), file_seconds) as engine:
            yield engine
    else:
        yield foreign_engine(executor, n_workers, probe, out)


@contextmanager
def local_engine(
    n_workers: int, file_seconds: float = watchdog.DEFAULT_SECONDS
) -> Iterator[Engine]:
    """Yield an engine of `n_workers` processes on this machine; one worker is this process.

    Whatever ends the block, the tasks not begun are dropped and no process is left. Only other
    processes can be kept from taking more than `file_seconds` for a file.
    """
    executor: Executor = InProcess()
    if n_workers > 1:
        from etl.workers.local_pool import LocalPool  # not for one: multiprocessing takes its time

        executor = LocalPool(n_workers, file_seconds)
    with executor:
        yield Engine(executor, n_workers, goes_on=True, file_seconds=file_seconds)


def in_process() -> Engine:
    """Return an engine that works in this process."""
    return Engine(InProcess(), 1, goes_on=True)


def foreign_engine(executor: Executor, n_workers: int, probe: Path, out: Path) -> Engine:
    """Return an engine on the caller's own executor, whose workers may run on other machines.

    Parameters
    ----------
    probe, out : Path
        A file of the input, and the new output file, which all workers must see.

    Raises
    ------
    EtlError
        They do not, or they run another version of dicom-etl.
    """
    token = secrets.token_bytes(32)
    out.write_bytes(token)
    expected = View(VERSION, probe.read_bytes(), token)
    probes = [executor.submit(view, probe, out) for _ in range(_IN_FLIGHT * n_workers)]
    for seen in (one.result() for one in probes):
        _require_same_view(seen, expected, probe, out)
    # A Dask cluster starts its workers again by itself; any other executor is the caller's to mend.
    is_dask = type(executor).__module__.partition(".")[0] == "distributed"
    return Engine(executor, n_workers, goes_on=is_dask)


class View(NamedTuple):
    """The version that a worker runs, and the files that it sees; None for one that it does not."""

    version: str
    probe: bytes | None
    out: bytes | None


def view(probe: Path, out: Path) -> View:
    """Return what this process sees of a file of the input and of the output file."""
    contents: list[bytes | None] = []
    for path in (probe, out):
        try:
            contents.append(path.read_bytes())
        except OSError:
            contents.append(None)
    return View(VERSION, *contents)


def _require_same_view(seen: View, expected: View, probe: Path, out: Path) -> None:
    if seen.version != expected.version:
        raise EtlError(
            f"Workers not usable: one runs dicom-etl {seen.version}, expected {expected.version}. "
            "Install the same version on all."
        )
    places = ((seen.probe, expected.probe, probe.parent), (seen.out, expected.out, out.parent))
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
