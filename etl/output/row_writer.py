"""Writing rows at their place in the file: any process may, without HDF5 and without locks."""

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import FileIO

import numpy as np
import numpy.typing as npt
import xxhash

from etl.findings import SampleKey
from loader import format as file_format


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
            file_format.IMAGES: n_pixels * np.dtype(self.image_dtype).itemsize,
            file_format.MASKS: n_pixels,
            "contours/x": 8,
            "contours/y": 8,
        }


def open_rows(plan: Plan) -> FileIO:
    """Open the file for `write_rows`."""
    return FileIO(plan.path, "r+")


def write_rows(
    file: FileIO, plan: Plan, name: str, first: int, data: npt.NDArray[np.generic]
) -> None:
    """Write `data` as the rows from `first` on of one big dataset; any process may, at any time."""
    offset = plan.offsets[name] + first * plan.row_bytes[name]
    view = np.ascontiguousarray(data).data.cast("B")
    while view:
        written = _write_at(file.fileno(), view, offset)
        view, offset = view[written:], offset + written


def begin_writeback(file: FileIO, plan: Plan, name: str, first: int, n_rows: int) -> None:
    """Let the disk begin on rows that are complete, so that the sync at the end waits for few.

    No page leaves the cache: "not needed" drops those alone that are clean, and these are dirty.
    """
    if hasattr(os, "posix_fadvise"):
        size = plan.row_bytes[name]
        offset = plan.offsets[name] + first * size
        with contextlib.suppress(OSError):  # a system that takes no advice
            os.posix_fadvise(file.fileno(), offset, n_rows * size, os.POSIX_FADV_DONTNEED)


def row_digest(
    key: SampleKey, image: npt.NDArray[np.generic], mask: npt.NDArray[np.generic]
) -> int:
    """Return XXH3-64 over a row's key, image and mask; see the documentation's file format."""
    digest = xxhash.xxh3_64(key.patient_id.encode() + b"\0")
    if key.series or key.frame_number != 1:  # so that the digests of version 1 stay
        digest.update(key.series.encode() + b"\0")
        digest.update(key.frame_number.to_bytes(8, "little", signed=True))
    digest.update(key.slice.to_bytes(8, "little", signed=True))
    digest.update(image.data)
    digest.update(mask.data)
    return digest.intdigest()


def strings(values: Sequence[str]) -> npt.NDArray[np.bytes_]:
    """Return text as fixed-length UTF-8; undecodable bytes of file names stay visible."""
    encoded = [value.encode("utf-8", "backslashreplace") for value in values]
    return np.array(encoded, dtype=np.bytes_) if encoded else np.empty(0, "S1")


def _write_at(descriptor: int, view: memoryview, offset: int) -> int:
    if hasattr(os, "pwrite"):
        return os.pwrite(descriptor, view, offset)
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.write(descriptor, view)
