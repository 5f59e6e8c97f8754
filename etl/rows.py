"""Writing rows at their place in the file: any process may, without HDF5 and without locks."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from loader import layout

_MAX_VIEWS: Final = 512  # in one call; POSIX systems take 1024


@dataclass(frozen=True, slots=True)
class Plan:
    """Where the big datasets of one file lie, so that any process can write rows into it."""

    path: str
    n_rows: int
    rows: int
    columns: int
    image_dtype: str
    n_vertices: int
    offsets: Mapping[str, int]  # of images, masks, contours/x and contours/y

    @property
    def row_bytes(self) -> dict[str, int]:
        """Bytes of one row of each big dataset (one vertex, for the contours)."""
        n_pixels = self.rows * self.columns
        return {
            layout.IMAGES: n_pixels * np.dtype(self.image_dtype).itemsize,
            layout.MASKS: n_pixels,
            "contours/x": 8,
            "contours/y": 8,
        }


def write_rows(plan: Plan, name: str, first: int, rows: Sequence[npt.NDArray[np.generic]]) -> None:
    """Write rows of one big dataset from row `first` on; any process may, at any time."""
    offset = plan.offsets[name] + first * plan.row_bytes[name]
    views = [np.ascontiguousarray(row).data.cast("B") for row in rows if row.size]
    with open(plan.path, "r+b", buffering=0) as file:
        while views:
            written = _write_at(file.fileno(), views, offset)
            offset += written
            while views and written >= len(views[0]):
                written -= len(views.pop(0))
            if written:
                views[0] = views[0][written:]


def strings(values: Sequence[str]) -> npt.NDArray[np.bytes_]:
    """Return text as fixed-length UTF-8; undecodable bytes of file names stay visible."""
    encoded = [value.encode("utf-8", "backslashreplace") for value in values]
    return np.array(encoded, dtype=np.bytes_) if encoded else np.empty(0, "S1")


def _write_at(descriptor: int, views: list[memoryview], offset: int) -> int:
    """Write the first of the views, as many as the system takes; return the bytes written."""
    if hasattr(os, "pwritev"):
        return os.pwritev(descriptor, views[:_MAX_VIEWS], offset)
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.write(descriptor, views[0])
