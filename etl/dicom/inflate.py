"""Deflated data sets, unpacked no further than the image needs.

A megabyte of deflated data can unpack to a gigabyte, and the format has no checksum: whether the
data are whole shows only in where they end.

References
----------
DICOM PS3.5 A.5 (deflated Explicit VR Little Endian) and RFC 1951 (raw deflate, no zlib header).
"""

import struct
import zlib
from collections.abc import Callable
from typing import Final

from etl.dicom.pydicom_scan import truncated
from etl.errors import ImageError, beyond, most

_FIRST_BYTES: Final = 1 << 16  # inflated to find the pixels; then eight times as many, and so on
_TRAILER: Final = struct.Struct("<2I")
_STEP_BYTES: Final = 1 << 20
_BEHIND_BYTES: Final = 1 << 16  # of elements or padding behind the pixels


def head(data: bytes, is_enough: Callable[[bytes], bool]) -> bytes:
    """Return the beginning of an inflated data set: all of it, unless less is enough."""
    unpacker = _unpacker()
    n_bytes, most_bytes = _FIRST_BYTES, most("inflated-header-bytes")
    inflated = _inflate(unpacker, data, n_bytes)
    while not unpacker.eof and unpacker.unconsumed_tail and not is_enough(inflated):
        if n_bytes >= most_bytes:
            raise ImageError("image-unreadable", beyond("inflated-header-bytes", None))
        more = min(8 * n_bytes, most_bytes) - n_bytes
        inflated += _inflate(unpacker, unpacker.unconsumed_tail, more)
        n_bytes += more
    return inflated


def whole(data: bytes) -> bytes:
    """Return an inflated data set, of a bounded size."""
    unpacker = _unpacker()
    inflated = _inflate(unpacker, data, most("inflated-bytes"))
    if not unpacker.eof and unpacker.unconsumed_tail:
        raise ImageError("image-unreadable", beyond("inflated-bytes", None))
    _require_end(unpacker, zlib.crc32(inflated), len(inflated))
    return inflated


def up_to(data: bytes, n_bytes: int) -> bytes:
    """Return the first `n_bytes` of an inflated data set; fewer where it ends before."""
    return _inflate(_unpacker(), data, n_bytes)


def require_whole(data: bytes, end: int) -> None:
    """Check that a deflated data set is whole, keeping nothing of it.

    Parameters
    ----------
    data : bytes
        The deflated data set, to the end of the file.
    end : int
        Where its pixels end, once inflated.

    Raises
    ------
    ImageError
        It is damaged, ends before its pixels do, or unpacks to much more than they are.
    """
    unpacker = _unpacker()
    n_bytes = checksum = 0
    rest = data
    while not unpacker.eof and rest:
        inflated = _inflate(unpacker, rest, _STEP_BYTES)
        n_bytes += len(inflated)
        checksum = zlib.crc32(inflated, checksum)
        rest = unpacker.unconsumed_tail
        if n_bytes > end + _BEHIND_BYTES:
            raise ImageError("image-unreadable", "unpacks to more than its image. Export it again.")
    _require_end(unpacker, checksum, n_bytes)
    if n_bytes < end:
        raise truncated()


def _unpacker() -> "zlib._Decompress":
    return zlib.decompressobj(-zlib.MAX_WBITS)


def _inflate(unpacker: "zlib._Decompress", data: bytes, n_bytes: int) -> bytes:
    try:
        return unpacker.decompress(data, n_bytes)
    except zlib.error as error:
        raise ImageError(
            "image-unreadable", "its deflated data set is damaged. Copy it again, or export it."
        ) from error


def _require_end(unpacker: "zlib._Decompress", checksum: int, n_bytes: int) -> None:
    """Check that the deflated stream ends where the file does.

    Some writers leave gzip's trailer behind it (RFC 1952: checksum and length), which must hold.
    """
    if not unpacker.eof:
        raise truncated()
    behind = unpacker.unused_data
    if behind.strip(b"\0") and behind != _TRAILER.pack(checksum, n_bytes & 0xFFFFFFFF):
        raise ImageError(
            "image-unreadable",
            f"has {len(behind)} bytes behind its deflated data set, which is damaged. "
            "Copy it again, or export it.",
        )
