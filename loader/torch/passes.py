"""Which epoch a pass over an IterableDataset is, in the main process and in workers."""

import multiprocessing
import multiprocessing.context
import os
from ctypes import c_int64
from multiprocessing.sharedctypes import RawArray
from typing import Any, Final, NamedTuple

import numpy as np

from loader.errors import LoaderError
from loader.feed import Position

_MAX_WORKERS: Final = 1024
_HEAD: Final = 3  # what a process sets: how often, and where the next pass begins
_SLOT: Final = 4  # of each worker: the setting that it counts from, and its `_Count`


class _Count(NamedTuple):
    """The passes that a worker has begun since the last setting."""

    n_begun: int = 0
    n_workers: int = 0  # that shared its last pass
    first: int = 0  # of the passes that as many workers shared without a break


class SharedEpoch:
    """An epoch that a process names, for the workers of its DataLoaders too; -1 before that."""

    def __init__(self) -> None:
        self._shared = RawArray(c_int64, [-1])

    def __getstate__(self) -> dict[str, object]:
        """Share the memory with a process that is being started; copy it otherwise."""
        is_copy = multiprocessing.context.get_spawning_popen() is None
        return {"_shared": list(self._shared) if is_copy else self._shared}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take up the memory, or the copy."""
        shared = state["_shared"]
        self._shared = RawArray(c_int64, shared) if isinstance(shared, list) else shared

    def set(self, epoch: int) -> None:
        """Name the epoch."""
        self._shared[0] = epoch

    def get(self) -> int:
        """Return the epoch."""
        return int(self._shared[0])


class Passes:
    """Counts the passes that have begun, in memory that a process and its workers share.

    In each pass every worker of the DataLoader begins once and counts for itself, so that no lock
    is needed. Worker 0 takes part in every pass: by its count the others know where passes with
    another number of workers began. A copy, and a forked process that is no worker, count on their
    own from there.
    """

    def __init__(self) -> None:
        self._shared = RawArray(c_int64, _HEAD + _SLOT * _MAX_WORKERS)
        self._owner = os.getpid()
        self._n_begun_here = 0

    def __getstate__(self) -> dict[str, object]:
        """Share the memory with a process that is being started; copy it otherwise."""
        if multiprocessing.context.get_spawning_popen() is None:
            return self.__dict__ | {"_shared": list(self._shared)}
        self._own()
        return self.__dict__.copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take up the memory, or the copy."""
        self.__dict__.update(state)
        if isinstance(self._shared, list):
            self._shared = RawArray(c_int64, self._shared)
            self._owner = os.getpid()

    def go_to(self, position: Position) -> None:
        """Have the next pass begin at a position, here or in workers, persistent ones too."""
        self._own()
        self._shared[1], self._shared[2] = position
        self._shared[0] += 1  # last: it makes all counts begin again
        self._n_begun_here = 0

    def coming(self) -> Position:
        """Return where the next pass of the main process begins."""
        self._own()
        return self._position(self._count(0).n_begun)

    def begin(self) -> Position:
        """Begin a pass in the main process, and return where."""
        self._own()
        count = self._count(0)
        for worker in range(_MAX_WORKERS):
            if worker == 0 or self._count(worker).n_workers:
                self._set(worker, self._count(worker)._replace(n_begun=count.n_begun + 1))
        self._n_begun_here = count.n_begun + 1
        return self._position(count.n_begun)

    def begin_in_worker(
        self, worker: int, n_workers: int, loaded: Position | None = None
    ) -> Position:
        """Begin a pass in a worker of a DataLoader, and return where.

        Parameters
        ----------
        worker, n_workers : int
            Its number, and how many share the pass.
        loaded : (int, int), optional
            The position that the worker itself was told to begin at; counting goes on from there.

        Raises
        ------
        LoaderError
            More workers than there is room for; or the DataLoader is of a process that was given
            the data set and has not counted for itself yet, so that others may count here too.
        """
        parent = multiprocessing.parent_process()
        if self._owner not in {os.getpid(), parent.pid if parent else None}:
            raise LoaderError(
                "Epoch not begun: the data set was made in another process, which may count its "
                "epochs as well. Make it in this process, or call set_epoch before the DataLoader."
            )
        if n_workers > _MAX_WORKERS:
            raise LoaderError(
                f"Epoch not begun: {n_workers} workers, expected at most {_MAX_WORKERS}. Use fewer."
            )
        if loaded is not None:
            n_begun = loaded[0] - self._shared[1]
            self._set(worker, _Count(n_begun + 1, n_workers, n_begun))
            return loaded
        first, own = self._count(0), self._count(worker)
        # Where the passes with this number of workers began.
        start = first.first if first.n_workers == n_workers else first.n_begun
        is_among = own.n_workers == n_workers and (worker == 0 or own.first == start)
        n_begun = own.n_begun if is_among else start
        self._set(worker, _Count(n_begun + 1, n_workers, own.first if is_among else start))
        return self._position(n_begun)

    @property
    def is_ahead(self) -> bool:
        """Whether workers have begun passes that this process has not."""
        return self._count(0).n_begun > self._n_begun_here

    def _position(self, n_begun: int) -> Position:
        return self._shared[1] + n_begun, self._shared[2] if n_begun == 0 else 0

    def _count(self, worker: int) -> _Count:
        place = _HEAD + _SLOT * worker
        setting, *count = self._shared[place : place + _SLOT]
        return _Count(*count) if setting == self._shared[0] else _Count()

    def _set(self, worker: int, count: _Count) -> None:
        place = _HEAD + _SLOT * worker
        self._shared[place : place + _SLOT] = [self._shared[0], *count]

    def _own(self) -> None:
        """Count apart from the process that this one was forked from, or started by."""
        if self._owner != os.getpid():
            self._shared = RawArray(c_int64, list(np.asarray(self._shared)))
            self._owner = os.getpid()
            self._n_begun_here = self._count(0).n_begun
