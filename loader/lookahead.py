"""Tell the kernel which rows come next, while rows are not in memory."""

import mmap
import threading
from typing import Final

import numpy as np
import numpy.typing as npt

from loader.dataset import Dataset
from loader.sampler import Indices

try:
    import resource
except ImportError:  # Windows
    _WHOSE = None
else:
    # Of this thread where the system tells it, so that other work of the process does not count.
    _WHOSE = getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)

_WILL_NEED: Final[int] = getattr(mmap, "MADV_WILLNEED", -1)  # -1: not on this platform

_N_BATCHES: Final = 8
_MAX_BYTES: Final = 256 * 2**20
_PATIENCE: Final = 64  # batches without a read from the disk, after which rows count as in memory
_NOTE_EVERY: Final = 8  # batches, while rows are in memory: asking the system takes a microsecond


class LookAhead:
    """Asks for the rows of coming batches, from the first read from the disk to the last.

    For rows in memory the asking would cost a third of a batch. So it asks for the first batch
    alone, goes on when that or handing out a batch made the kernel read, and stops when neither has
    for some batches.

    Parameters
    ----------
    dataset : Dataset
    batch_size : int
    """

    def __init__(self, dataset: Dataset, batch_size: int) -> None:
        self._buffer = dataset.buffer
        start = _address(np.frombuffer(self._buffer, np.uint8))
        self._n_lines = dataset.images.shape[1]
        self._extents = [
            (_address(array) - start, array.shape[2] * array.itemsize)
            for array in (dataset.images, dataset.masks)
        ]
        n_line_bytes = sum(n_bytes for _, n_bytes in self._extents)
        n_batch_bytes = max(1, batch_size * self._n_lines * n_line_bytes)
        self._n_batches = max(1, min(_N_BATCHES, _MAX_BYTES // n_batch_bytes))
        self._is_possible = _WILL_NEED >= 0 and _WHOSE is not None and len(dataset) > 0
        self._n_left = 1 if self._is_possible else 0
        self._n_unnoted = 0
        self._read = _read_by_this_thread()

    @property
    def n_batches(self) -> int:
        """How many batches to have asked for: none while rows are in memory."""
        return self._n_batches if self._n_left > 1 else self._n_left

    def note(self) -> None:
        """Learn how much the kernel has read; after each batch, by the thread that gathered it."""
        self._n_unnoted += 1
        if not self._n_left and self._n_unnoted < _NOTE_EVERY:
            return
        self._n_unnoted = 0
        before, self._read = self._read, _read_by_this_thread()
        if self._n_left:
            self._n_left -= 1
        if before[0] == self._read[0] and before != self._read and self._is_possible:
            self._n_left = _PATIENCE

    def ask(self, rows: Indices, tops: Indices | None = None, n_lines: int = 0) -> None:
        """Make the kernel start to read some rows, or so many lines of each from `tops` on."""
        self._ask(self._extents, rows, tops, n_lines)

    def ask_images(self, rows: Indices, tops: Indices | None = None, n_lines: int = 0) -> None:
        """Make the kernel start to read the images of some rows, or such lines of them."""
        self._ask(self._extents[:1], rows, tops, n_lines)

    def ask_masks(self, rows: Indices, tops: Indices | None = None, n_lines: int = 0) -> None:
        """Make the kernel start to read the masks of some rows, or such lines of them."""
        self._ask(self._extents[1:], rows, tops, n_lines)

    def _ask(
        self,
        extents: list[tuple[int, int]],
        rows: Indices,
        tops: Indices | None,
        n_lines: int,
    ) -> None:
        if tops is None:
            tops, n_lines = np.zeros_like(rows), self._n_lines
        first = np.maximum(tops, 0)
        lines = rows * self._n_lines + first
        counts = np.minimum(tops + n_lines, self._n_lines) - first
        if self._read[0] != threading.get_ident():
            self._read = _read_by_this_thread()
        try:
            for start, n_bytes in extents:
                begins, lengths = start + lines * n_bytes, counts * n_bytes
                before = begins % mmap.PAGESIZE
                for begin, length in zip(
                    (begins - before).tolist(), (lengths + before).tolist(), strict=True
                ):
                    self._buffer.madvise(_WILL_NEED, begin, length)
        except OSError:  # a file system that does not take advice
            self._is_possible, self._n_left = False, 0


def _read_by_this_thread() -> tuple[int, int]:
    """Return the thread, and how often it has made the kernel read from a disk."""
    if _WHOSE is None:
        return 0, 0
    usage = resource.getrusage(_WHOSE)
    return threading.get_ident(), usage.ru_majflt + usage.ru_inblock


def _address(array: npt.NDArray[np.generic]) -> int:
    return int(array.__array_interface__["data"][0])
