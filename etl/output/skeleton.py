"""An HDF5 file without its data: h5py makes the metadata in memory, and writes to no disk.

HDF5 passes over some failed writes and crashes after others. So it never writes to the file itself:
`regions` says which bytes belong where, and `etl.output.hdf5_file` writes and checks them.
"""

import bisect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import h5py
import numpy as np

from etl.signals import stop_deferred
from loader import format as file_format

_LIBVER: Final = ("v110", "v110")  # checksummed metadata; the default's reads back wrong in silence


class Skeleton:
    """The metadata of one HDF5 file, made step by step.

    Attributes
    ----------
    offsets : dict
        Dataset → where its bytes begin in the file; fixed as soon as it is added.
    """

    def __init__(self) -> None:
        self.offsets: dict[str, int] = {}
        self._memory = _Memory()
        self._mode = "w"

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self._memory.size

    @contextmanager
    def opened(self, align_from: int = file_format.ALIGNMENT) -> Iterator["Steps"]:
        """Yield the next steps; a dataset of `align_from` bytes or more begins on its own page."""
        with (
            stop_deferred(),  # an exception within HDF5's callbacks would be lost
            h5py.File(
                self._memory,
                self._mode,
                libver=_LIBVER,
                alignment_threshold=align_from,
                alignment_interval=file_format.ALIGNMENT,
            ) as file,
        ):
            yield Steps(file, self.offsets)
        self._mode = "r+"

    def regions(self) -> list[tuple[int, bytes]]:
        """Return (offset, bytes) of all metadata, in order and without overlap."""
        return self._memory.regions()


class Steps:
    """What can be added to a skeleton while it is open."""

    def __init__(self, file: h5py.File, offsets: dict[str, int]) -> None:
        self._file = file
        self._offsets = offsets
        self._properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        self._properties.set_layout(h5py.h5d.CONTIGUOUS)
        self._properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        self._properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        self._properties.set_obj_track_times(False)

    def add_group(self, name: str) -> None:
        """Add a group to the root group."""
        self._file.create_group(name)

    def add_dataset(self, name: str, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> None:
        """Add a contiguous dataset, and note in `offsets` where its bytes are to be written."""
        space = h5py.h5s.create_simple(shape)
        kind = h5py.h5t.py_create(dtype, logical=True)
        dataset = h5py.h5d.create(self._file.id, name.encode(), kind, space, self._properties)
        self._offsets[name] = int(dataset.get_offset() or 0)  # an empty one has no place

    def set_attribute(self, key: str, value: str | float) -> None:
        """Set an attribute of the root group."""
        if isinstance(value, str):
            encoded = value.encode()
            dtype = h5py.string_dtype("utf-8", max(len(encoded), 1))
            self._file.attrs.create(key, np.array(encoded, dtype=dtype), dtype=dtype)
        else:
            self._file.attrs[key] = value


def text_dtype(width: int) -> np.dtype[np.generic]:
    """Return the type of fixed-length UTF-8 of that number of bytes."""
    dtype: np.dtype[np.generic] = h5py.string_dtype("utf-8", max(width, 1))
    return dtype


class _Memory:
    """A file for h5py that keeps what is written, not the gaps between: they may be terabytes."""

    def __init__(self) -> None:
        self.size = 0
        self._position = 0
        self._writes: list[tuple[int, bytes]] = []  # later ones over earlier ones

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = offset + (0, self._position, self.size)[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def write(self, data: memoryview) -> int:
        self._writes.append((self._position, bytes(data)))
        self._position += len(data)
        self.size = max(self.size, self._position)
        return len(data)

    def read(self, size: int) -> bytes:
        data = bytearray(size)
        self.readinto(memoryview(data))
        return bytes(data)

    def readinto(self, view: memoryview) -> int:
        view[:] = bytes(len(view))
        for offset, data in self._writes:
            _overlay(view, self._position, data, offset)
        self._position += len(view)
        return len(view)

    def truncate(self, size: int) -> int:
        self.size = size
        return size

    def flush(self) -> None:
        pass

    def regions(self) -> list[tuple[int, bytes]]:
        """Return what was written as stretches without overlap, and without what was cut off."""
        ends = [(first, min(first + len(data), self.size)) for first, data in self._writes]
        joined: list[tuple[int, int]] = []
        for first, end in sorted(pair for pair in ends if pair[0] < pair[1]):
            if joined and first <= joined[-1][1]:
                joined[-1] = joined[-1][0], max(end, joined[-1][1])
            else:
                joined.append((first, end))
        buffers = [bytearray(end - first) for first, end in joined]
        places = [first for first, _ in joined]
        for first, data in self._writes:
            if first < self.size:
                at = bisect.bisect_right(places, first) - 1
                _overlay(memoryview(buffers[at]), places[at], data, first)
        return [(place, bytes(buffer)) for place, buffer in zip(places, buffers, strict=True)]


def _overlay(view: memoryview, place: int, data: bytes, offset: int) -> None:
    """Copy the part of `data`, which begins at `offset`, that is in the view, which at `place`."""
    first, end = max(place, offset), min(place + len(view), offset + len(data))
    if first < end:
        view[first - place : end - place] = data[first - offset : end - offset]
