"""How many epochs have begun, where no process knows it alone: the workers of a DataLoader."""

import mmap
import os
import tempfile
import threading
import weakref
from typing import Final, NamedTuple

import numpy as np

from loader.errors import LoaderError
from loader.stream import Position

try:
    import fcntl
except ImportError:  # Windows
    _HAS_LOCKS, _LOCK, _UNLOCK = False, 0, 0

    def _lock_file(file: int, how: int) -> None:
        """Do nothing."""
else:
    _HAS_LOCKS, _LOCK, _UNLOCK = True, fcntl.LOCK_EX, fcntl.LOCK_UN
    _lock_file = fcntl.lockf  # type: ignore[assignment]

_N_JOINED: Final = 4096  # iterations that are remembered, in which a worker may still begin
_JOINED: Final = np.dtype([("token", "<i8"), ("epoch", "<i8"), ("n_missing", "<i8")])


class Counts(NamedTuple):
    """What has begun.

    Attributes
    ----------
    begun : int
        Epochs begun by anyone: the next one to begin.
    begun_here : int
        The same, when the process itself last began or loaded one.
    loaded_epoch, loaded_batch : int
        Where the epoch of this number begins, unlike all others.
    """

    begun: int = 0
    begun_here: int = 0
    loaded_epoch: int = 0
    loaded_batch: int = 0


_NONE: Final = Counts()


class Epochs:
    """How many epochs a process and the workers of its DataLoaders have begun.

    Workers have nothing else in common that lasts from one iteration to the next: it lies in memory
    that they share, of a file without a name. Each change is made under a lock, which ends with the
    process that holds it.

    Parameters
    ----------
    counts : Counts
        What has begun before.
    file : int, optional
        Descriptor of the memory of another process, which is taken over.
    """

    def __init__(self, counts: Counts = _NONE, file: int | None = None) -> None:
        n_bytes = 8 * len(counts) + _N_JOINED * _JOINED.itemsize
        self.file = _unnamed_file(n_bytes) if file is None else file
        weakref.finalize(self, os.close, self.file)
        memory = mmap.mmap(self.file, n_bytes)
        self._counts = np.frombuffer(memory, "<i8", len(counts))
        self._joined = np.frombuffer(memory, _JOINED, _N_JOINED, self._counts.nbytes)
        if file is None:
            self._counts[:] = counts

    def counts(self) -> Counts:
        """Return what has begun. It takes no lock: the handler of a signal may ask for it."""
        return Counts(*self._counts.tolist())

    def coming(self) -> Position:
        """Return where the next epoch begins."""
        return _beginning(self.counts(), self.counts().begun)

    # In each of these the lock is taken within `try`, and released by a call into C alone: whatever
    # interrupts them, no lock stays behind.

    def begin(self) -> Position:
        """Begin an epoch in the process itself, and return where."""
        with _threads:
            try:
                _lock_file(self.file, _LOCK)
                counts = self.counts()
                self._counts[:2] = counts.begun + 1
            finally:
                _lock_file(self.file, _UNLOCK)
        return _beginning(counts, counts.begun)

    def join(self, token: int, n_workers: int, epoch: int | None = None) -> Position:
        """Begin, in a worker, the epoch that the others of its iteration begin, and return where.

        Parameters
        ----------
        token : int
            What the workers of the iteration have in common, and no other iteration has.
        n_workers : int
            How many they are.
        epoch : int, optional
            The epoch that a worker has loaded; counting goes on from there.
        """
        if not _HAS_LOCKS:
            raise LoaderError(
                "Epoch not begun: this system has no locks (fcntl), by which the workers of a "
                "DataLoader agree on it. Use num_workers=0 with prefetch=2."
            )
        with _threads:
            try:
                _lock_file(self.file, _LOCK)
                counts = self.counts()
                begun = self._join(counts, token, n_workers, epoch)
            finally:
                _lock_file(self.file, _UNLOCK)
        return _beginning(counts, begun)

    def _join(self, counts: Counts, token: int, n_workers: int, epoch: int | None) -> int:
        joined = self._joined
        place = np.flatnonzero((joined["token"] == token) & (joined["n_missing"] > 0))
        if len(place):
            joined["n_missing"][place[0]] -= 1
            return int(joined["epoch"][place[0]])
        begun = counts.begun if epoch is None else epoch
        self._counts[:2] = begun + 1, counts.begun_here if epoch is None else 0
        # A free place; or that of the oldest, some of whose workers never came.
        place = np.lexsort((joined["epoch"], joined["n_missing"] > 0))
        joined[place[0]] = token, begun, n_workers - 1
        return begun

    def load(self, position: Position) -> None:
        """Have the next epoch begin at a position."""
        with _threads:
            try:
                _lock_file(self.file, _LOCK)
                self._counts[:] = position[0], position[0], *position
            finally:
                _lock_file(self.file, _UNLOCK)


def _beginning(counts: Counts, epoch: int) -> Position:
    return epoch, counts.loaded_batch if epoch == counts.loaded_epoch else 0


def _unnamed_file(n_bytes: int) -> int:
    """Return the descriptor of a new file that is gone when nobody has it open."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("loader-epochs")
    else:
        with tempfile.TemporaryFile() as temporary:
            file = os.dup(temporary.fileno())
    os.truncate(file, n_bytes)
    return file


# The lock on a file is between processes alone. Reentrant, for the handler of a signal.
_threads = threading.RLock()


def _renew_lock() -> None:
    global _threads  # noqa: PLW0603  another thread may have held it when the process was forked
    _threads = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
