"""Worker processes on this machine, each with a pipe of its own.

`concurrent.futures.ProcessPoolExecutor` shares one pipe for results: when a worker dies, all that
was under way is lost, and one that dies while it answers can leave the others waiting for ever.
Here a dead worker is an end of file on its own pipe; only its task fails, and another worker takes
its place. There is no thread: the call that waits for a result moves the other tasks along.
"""

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection, forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from typing import Final, ParamSpec, TypeAlias, TypeVar, cast

from etl.errors import EtlError
from etl.signals import stop_deferred
from etl.workers import watchdog

# Never a fork of this process itself, which may have threads.
_START_METHOD: Final = "forkserver" if sys.platform == "linux" else "spawn"
_PRELOAD: Final = (
    f"{__package__}.preload"  # not imported here: the coordinator starts without NumPy
)
_READY: Final = "ready"  # what a worker says first
_MOST_FALSE_STARTS: Final = 3
_STOP_SECONDS: Final = 5.0  # for a worker to follow a request to end, before it is killed
_DEATH_SECONDS: Final = 60.0  # for the status of a worker that is gone, on a busy machine

_Result = TypeVar("_Result")
_P = ParamSpec("_P")
_Answer: TypeAlias = tuple[object, Exception | None]  # a result, or what the call raised
_Message: TypeAlias = _Answer | str


class WorkerDiedError(BrokenExecutor):
    """The process that worked on the task has died."""


class LocalPool(Executor):
    """So many processes; to be used by one thread, as a context manager.

    Parameters
    ----------
    n_workers : int
        At least 1; each is started when a call waits and no other worker is free.
    file_seconds : float
        Time that one file may take a worker; 0: any.
    """

    def __init__(self, n_workers: int, file_seconds: float = 0) -> None:
        self._file_seconds = file_seconds
        self._context = _context()
        self._waiting: deque[_Pending[object]] = deque()
        self._has_begun = False  # whether any worker ever did
        self._n_false_starts = 0
        self._n_workers = n_workers
        self._workers: list[_Worker] = []

    def submit(
        self, fn: Callable[_P, _Result], /, *args: _P.args, **kwargs: _P.kwargs
    ) -> Future[_Result]:
        """Give a call to the next worker that is free; return its future."""
        pending: _Pending[_Result] = _Pending(self, pickle.dumps((fn, args, kwargs)))
        self._waiting.append(cast("_Pending[object]", pending))
        self._dispatch()
        return pending

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End all workers, whatever they are doing; nothing of theirs is lost but their tasks."""
        del wait, cancel_futures
        self._waiting.clear()
        for worker in self._workers:
            worker.pipe.close()
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join(_STOP_SECONDS)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self._workers.clear()

    def settle(self) -> None:
        """Wait until a worker answers or dies, and give it the next call.

        Raises
        ------
        EtlError
            One worker after the other died before it began.
        """
        busy = [worker for worker in self._workers if worker.pending is not None]
        ready = connection.wait([worker.pipe for worker in busy])
        for worker in busy:
            if worker.pipe in ready:
                self._receive(worker)
        if not self._has_begun and self._n_false_starts >= _MOST_FALSE_STARTS:
            raise _no_worker_starts()
        self._dispatch()

    def _receive(self, worker: "_Worker") -> None:
        try:
            message = worker.pipe.recv()
        except (EOFError, OSError):  # also in the middle of an answer
            self._n_false_starts += not worker.is_ready
            worker.process.join(_DEATH_SECONDS)
            is_late = watchdog.has_struck(worker.process.exitcode)
            death = watchdog.TimedOutError if is_late else WorkerDiedError
            worker.release().set_exception(death("a worker process has died"))
            self._replace(worker)
            return
        if isinstance(message, str):
            worker.is_ready = self._has_begun = True
            return
        result, error = message
        pending = worker.release()
        if error is None:
            pending.set_result(result)
        else:
            pending.set_exception(error)

    def _dispatch(self) -> None:
        is_busy = all(worker.pending is not None for worker in self._workers)
        if self._waiting and is_busy and len(self._workers) < self._n_workers:
            with stop_deferred():  # a worker half started would be left behind
                self._workers.append(self._start())
        for worker in list(self._workers):
            if worker.pending is None and self._waiting:
                worker.pending = self._waiting.popleft()
                try:
                    worker.pipe.send_bytes(worker.pending.call)
                except (
                    OSError
                ):  # it died while it was idle: end of file tells, when it is waited for
                    continue

    def _replace(self, worker: "_Worker") -> None:
        worker.pipe.close()
        worker.process.kill()
        worker.process.join()
        with stop_deferred():
            self._workers[self._workers.index(worker)] = self._start()

    def _start(self) -> "_Worker":
        for _ in range(_MOST_FALSE_STARTS):
            ours, theirs = self._context.Pipe()
            process = self._context.Process(
                target=_work, args=(theirs, self._file_seconds), daemon=True
            )
            try:
                with _same_modules(), _interrupt_blocked():
                    process.start()
            except (OSError, EOFError):  # it was killed at that very moment
                ours.close()
            else:
                return _Worker(process, ours)
            finally:
                theirs.close()  # only the worker has it now: its death is the end of the file
        raise _no_worker_starts()


class _Pending(Future[_Result]):
    """A future whose pool works on while somebody waits for it."""

    def __init__(self, pool: LocalPool, call: bytes) -> None:
        super().__init__()
        self.call = call
        self._pool = pool

    def result(self, timeout: float | None = None) -> _Result:
        """Return the result, or raise what the call raised."""
        while not self.done():
            self._pool.settle()
        return super().result(timeout)


@dataclass(eq=False)
class _Worker:
    process: BaseProcess
    pipe: "Connection[bytes, _Message]"
    pending: "_Pending[object] | None" = None
    is_ready: bool = False

    def release(self) -> "_Pending[object]":
        """Return what it worked on, which it does no more."""
        pending, self.pending = self.pending, None
        assert pending is not None  # noqa: S101  only busy workers are waited for
        return pending


def _no_worker_starts() -> EtlError:
    return EtlError(
        "Build stopped: no worker process starts. A script that calls etl.build with workers must "
        'do so under `if __name__ == "__main__":`, and be a file, since every worker imports it. '
        "Or were they killed: is memory short? Use workers=1."
    )


def start_early(n_workers: int, preload: str = _PRELOAD) -> None:
    """Start the server that workers fork from, while this process imports what it needs.

    Parameters
    ----------
    preload : str
        Module that all workers need; without effect where the server has started already.
    """
    if n_workers > 1:
        _context(preload)


def _work(pipe: "Connection[_Message, bytes]", file_seconds: float) -> None:
    """Answer calls until the pipe ends, as it does when the coordinator is gone."""
    watchdog.arm(file_seconds)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the coordinator's to answer
    with contextlib.suppress(OSError):
        pipe.send(_READY)
    while True:
        try:
            fn, args, kwargs = pickle.loads(pipe.recv_bytes())  # noqa: S301  the coordinator's own
        except (EOFError, OSError):
            return
        try:
            answer: _Answer = fn(*args, **kwargs), None
        except Exception as error:  # noqa: BLE001  it is the caller's to judge
            answer = None, error
        watchdog.rest()
        try:
            pipe.send(answer)
        except OSError:
            return


def _context(preload: str = _PRELOAD) -> SpawnContext | ForkServerContext:
    """Return how worker processes start, the server that they fork from being under way."""
    if _START_METHOD == "spawn":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    if sys.flags.safe_path or not sys.flags.ignore_environment:  # else see _same_modules
        context.set_forkserver_preload([preload])
    with stop_deferred(), _same_modules():
        resource_tracker.ensure_running()  # first, since it unblocks Ctrl-C when it starts
        with _interrupt_blocked():
            forkserver.ensure_running()
    return context


@contextmanager
def _same_modules() -> Iterator[None]:
    """Let processes that start in the block import what this one would.

    multiprocessing starts them with `python -c`, which looks for modules in the current folder
    first: a `loader.py` there would be imported in place of ours, and executed.
    """
    folders = [path or os.getcwd() for path in sys.path]
    changes = {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(folders)}
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _interrupt_blocked() -> Iterator[None]:
    """Start processes in which Ctrl-C, which reaches all of a terminal's, stays blocked."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
