"""Rows of a built file into one buffer, and the disk at work on those that come next."""

import contextlib
import os
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from etl.model import BitMask, Image, LabelMap
from etl.output.row_writer import read_into
from loader import Dataset

_TASK_BYTES: Final = 12 << 20  # some tens of milliseconds of work
_AHEAD_BYTES: Final = 96 << 20
_ADVICE_BYTES: Final = 512 << 10  # of a longer stretch the kernel reads only a part


def tasks(dataset: Dataset) -> list[tuple[int, int]]:
    """Return stretches of rows, all of a file's: the first row, and the one after the last."""
    n_rows = len(dataset)
    step = _n_rows(dataset, _TASK_BYTES)
    return [(first, min(first + step, n_rows)) for first in range(0, n_rows, step)]


def begin_to_read(dataset: Dataset) -> None:
    """Make the kernel start to read the rows of the first tasks."""
    _ask(dataset, 0, _n_rows(dataset, _AHEAD_BYTES))


def read_ahead(dataset: Dataset, task: tuple[int, int]) -> None:
    """Make the kernel start to read the rows of a task that comes a while after this one."""
    first, stop = (row + _n_rows(dataset, _AHEAD_BYTES) for row in task)
    _ask(dataset, first, stop)


class RowReader:
    """Reads rows, each into the same memory, which so stays in the processor's cache.

    Where the disk cannot read, it raises an error; touching the file's map would kill the process.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._descriptor = dataset.file.fileno()
        self._images, self._masks = _extents(dataset)
        self._image = np.empty(dataset.images.shape[1:], dataset.images.dtype)
        self._mask = np.empty(dataset.masks.shape[1:], dataset.masks.dtype)

    def read(self, row: int) -> tuple[Image, LabelMap | BitMask]:
        """Return the image and the mask of a row, which are there until the next one is read.

        Raises
        ------
        OSError
            They cannot be read, or the file has become shorter.
        """
        self._fill(self._image, self._images, row)
        self._fill(self._mask, self._masks, row)
        return self._image, self._mask

    def _fill(self, array: Image | LabelMap | BitMask, extent: "_Extent", row: int) -> None:
        place = extent.offset + row * extent.row_bytes
        read_into(self._descriptor, array.data.cast("B"), place)


class _Extent(NamedTuple):
    offset: int  # in the file
    row_bytes: int


def _extents(dataset: Dataset) -> tuple[_Extent, _Extent]:
    """Return where images and masks are in the file."""
    begin = _address(np.frombuffer(dataset.buffer, np.uint8))
    images, masks = (
        _Extent(_address(array) - begin, array[:1].nbytes)
        for array in (dataset.images, dataset.masks)
    )
    return images, masks


def _address(array: npt.NDArray[np.generic]) -> int:
    return int(array.__array_interface__["data"][0])


def _n_rows(dataset: Dataset, n_bytes: int) -> int:
    return max(1, n_bytes // max(1, dataset.sample_bytes))


def _ask(dataset: Dataset, first: int, stop: int) -> None:
    if not hasattr(os, "posix_fadvise"):
        return
    stop = min(stop, len(dataset))
    descriptor = dataset.file.fileno()
    with contextlib.suppress(OSError):  # a file system that takes no advice
        for offset, row_bytes in _extents(dataset):
            end = offset + stop * row_bytes
            for place in range(offset + first * row_bytes, end, _ADVICE_BYTES):
                length = min(_ADVICE_BYTES, end - place)
                os.posix_fadvise(descriptor, place, length, os.POSIX_FADV_WILLNEED)
