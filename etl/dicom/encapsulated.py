"""Encapsulated pixels: which bytes of the file are the encoded data of which frame.

References
----------
DICOM PS3.5 annex A.4: an item with the basic offset table, which may be empty, then one or more
items (fragments) for each frame, then a sequence delimiter.
"""

import struct
from typing import BinaryIO, Final, NamedTuple

from etl.errors import OFFSET_TABLE_BYTES_A_FRAME, ImageError, most

_ITEM: Final = b"\xfe\xff\x00\xe0"
_DELIMITER: Final = b"\xfe\xff\xdd\xe0"
_HEADER_BYTES: Final = 8  # of an item: tag and length
_UNDEFINED: Final = 0xFFFFFFFF
_END_OF_IMAGE: Final = b"\xff\xd9"  # JPEG's, JPEG-LS's and JPEG 2000's last marker
_TAIL_BYTES: Final = 10  # read at the end of a fragment: the marker, and padding behind it


class Fragment(NamedTuple):
    """One fragment: the place of its bytes in the file."""

    offset: int
    length: int


Fragments = tuple[Fragment, ...]


def find_frames(file: BinaryIO, offset: int, size: int, n_frames: int) -> list[Fragments]:
    """Return the fragments of each frame.

    Parameters
    ----------
    file : binary file
        Seekable.
    offset, size : int
        Where the value of PixelData begins, and the length of the file.
    n_frames : int
        NumberOfFrames.

    Raises
    ------
    ImageError
        The items cannot be followed to their end, or do not tell the frames apart.
    """
    (table_at, table_length), *fragments = _items(file, offset, size)
    if not fragments:
        raise ImageError("image-no-pixels", "its PixelData is empty. Export it again.")
    if n_frames == 1:
        return [tuple(fragments)]
    if len(fragments) == n_frames:  # whatever the tables say: a frame has one fragment at least
        return [(fragment,) for fragment in fragments]
    if table_length:
        file.seek(table_at)
        table = file.read(table_length)
        starts = struct.unpack(f"<{table_length // 4}I", table[: table_length // 4 * 4])
        first = table_at + table_length
        frames = _split_at(fragments, {first + start for start in starts})
    else:
        frames = _split_behind(fragments, [_ends_image(file, fragment) for fragment in fragments])
    if len(frames) != n_frames:
        raise ImageError(
            "image-unreadable",
            f"its {len(fragments)} fragments make {len(frames)} frames, expected {n_frames}. "
            "Export it again.",
        )
    return frames


def _items(file: BinaryIO, offset: int, size: int) -> list[Fragment]:
    """Return all items of PixelData: the basic offset table, then the fragments."""
    items: list[Fragment] = []
    most_table_bytes = OFFSET_TABLE_BYTES_A_FRAME * most("frames")
    while True:
        file.seek(offset)
        header = file.read(_HEADER_BYTES)
        if len(header) < _HEADER_BYTES:
            raise ImageError(
                "image-truncated", "ends before its encapsulated pixels do. Copy it again."
            )
        length = int.from_bytes(header[4:], "little")
        if header[:4] == _DELIMITER and items:
            return items
        is_table = not items
        if header[:4] != _ITEM or length == _UNDEFINED or (is_table and length > most_table_bytes):
            raise ImageError(
                "image-unreadable",
                "the items of its encapsulated pixels cannot be followed. Export it again.",
            )
        offset += _HEADER_BYTES + length
        if offset > size:
            raise ImageError(
                "image-truncated", "ends before its encapsulated pixels do. Copy it again."
            )
        items.append(Fragment(offset - length, length))


def _split_at(fragments: list[Fragment], starts: set[int]) -> list[Fragments]:
    """Return the fragments of each frame, where `starts` has the first item of each."""
    frames: list[list[Fragment]] = []
    for fragment in fragments:
        if fragment.offset - _HEADER_BYTES in starts or not frames:
            frames.append([])
        frames[-1].append(fragment)
    return [tuple(frame) for frame in frames]


def _split_behind(fragments: list[Fragment], is_last: list[bool]) -> list[Fragments]:
    """Return the fragments of each frame, where `is_last` marks the last fragment of each."""
    frames: list[list[Fragment]] = [[]]
    for fragment, ends in zip(fragments, is_last, strict=True):
        frames[-1].append(fragment)
        if ends:
            frames.append([])
    return [tuple(frame) for frame in frames if frame]


def _ends_image(file: BinaryIO, fragment: Fragment) -> bool:
    n_bytes = min(fragment.length, _TAIL_BYTES)
    file.seek(fragment.offset + fragment.length - n_bytes)
    return _END_OF_IMAGE in file.read(n_bytes)
