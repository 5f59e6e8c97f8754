"""Writing rows at their place in the file: any process may, without HDF5 and without locks."""

import contextlib
import errno
import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import FileIO

import numpy as np
import numpy.typing as npt
import xxhash

from etl.findings import SampleKey
from loader import format as file_format


class ReadBackError(OSError):
    """The disk returns other bytes than were written."""

    def __init__(self, what: str) -> None:
        super().__init__(errno.EIO, what)
        self.what = what


@dataclass(frozen=True, slots=True)
class Plan:
    """The places of the big datasets of one file, so that any process can write rows into it."""

    path: str
    n_rows: int
    rows: int
    columns: int
    image_dtype: str
    n_vertices: int
    offsets: Mapping[str, int]  # of images, masks, contours/x and contours/y
    digests: Mapping[str, str] = field(default_factory=dict)  # of those that are complete
    mask_dtype: str = file_format.MASK_DTYPE

    @property
    def row_bytes(self) -> Mapping[str, int]:
        """Bytes of one row of each big dataset (one vertex, for the contours)."""
        return _row_bytes(self.rows * self.columns, self.image_dtype, self.mask_dtype)


@functools.cache  # every row asks for it
def _row_bytes(n_pixels: int, image_dtype: str, mask_dtype: str) -> dict[str, int]:
    return {
        file_format.IMAGES: n_pixels * np.dtype(image_dtype).itemsize,
        file_format.MASKS: n_pixels * np.dtype(mask_dtype).itemsize,
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
    write_at(file.fileno(), np.ascontiguousarray(data).data.cast("B"), offset)


def begin_writeback(file: FileIO, plan: Plan, name: str, first: int, n_rows: int) -> None:
    """Let the disk begin on rows that are complete, so that the sync at the end waits for few.

    No page leaves the page cache: "not needed" drops clean pages only, and these are dirty.
    """
    size = plan.row_bytes[name]
    forget(file.fileno(), plan.offsets[name] + first * size, n_rows * size)


def forget(descriptor: int, offset: int, length: int) -> None:
    """Drop what the page cache has of a stretch and the disk has too; begin to write the rest."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):  # a system that takes no advice
            os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)


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


def visible(text: str) -> str:
    """Return text as the file has it: undecodable bytes of file names as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def strings(values: Sequence[str]) -> npt.NDArray[np.bytes_]:
    """Return text as fixed-length UTF-8; undecodable bytes of file names stay visible."""
    encoded = [value.encode("utf-8", "backslashreplace") for value in values]
    return np.array(encoded, dtype=np.bytes_) if encoded else np.empty(0, "S1")


def write_at(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at an offset of a file.

    Raises
    ------
    OSError
        Not all of it could be written.
    """
    view = memoryview(data)
    while view:
        written = _write_some(descriptor, view, offset)
        if not written:
            raise OSError(errno.EIO, "the file takes no more")
        view, offset = view[written:], offset + written


def read_at(descriptor: int, length: int, offset: int) -> bytes:
    """Return `length` bytes from an offset of a file on.

    Raises
    ------
    OSError
        They cannot be read, or the file has become shorter.
    """
    blocks: list[bytes] = []
    while length:
        block = _read_some(descriptor, length, offset)
        if not block:
            raise OSError(errno.EIO, "the file has become shorter")
        blocks.append(block)
        length, offset = length - len(block), offset + len(block)
    return blocks[0] if len(blocks) == 1 else b"".join(blocks)


def read_into(descriptor: int, view: memoryview, offset: int) -> None:
    """Fill a buffer from an offset of a file on; one that is used again costs no new pages.

    Raises
    ------
    OSError
        It cannot be filled.
    """
    if not hasattr(os, "preadv"):
        view[:] = read_at(descriptor, len(view), offset)
        return
    while view:
        n_read = os.preadv(descriptor, [view], offset)
        if not n_read:
            raise OSError(errno.EIO, "the file has become shorter")
        view, offset = view[n_read:], offset + n_read


def _write_some(descriptor: int, view: memoryview, offset: int) -> int:
    if hasattr(os, "pwrite"):
        return os.pwrite(descriptor, view, offset)
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.write(descriptor, view)


def _read_some(descriptor: int, length: int, offset: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(descriptor, length, offset)
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.read(descriptor, length)
