"""The quick way through a DICOM data set: finds elements and steps over all else.

It knows Explicit and Implicit VR Little Endian (DICOM PS3.5 annex A.1 and A.2) and what PS3.5
chapter 7 says of data elements; whatever it does not understand with certainty it leaves to
pydicom by returning None. It never reads beyond the bytes that it has, and each step moves on.

    7.1     tags rise, so none stands twice
    7.1.2   Explicit VR: tag, VR, then a 16-bit length, or two reserved bytes and a 32-bit length
    7.1.3   Implicit VR: tag, then a 32-bit length
    7.5     sequences of defined length are stepped over whole; those of undefined length item by
            item to their delimiter, nested ones too
"""

import struct
from collections.abc import Container
from operator import itemgetter
from typing import Final, NamedTuple

from etl.errors import MAX_NESTING

META_OFFSET: Final = 132  # behind the preamble and "DICM"
PIXEL_DATA: Final = 0x7FE00010
UNDEFINED: Final = 0xFFFFFFFF  # the length of what ends with a delimiter
DELIMITER_BYTES: Final = 8
SEQUENCE_DELIMITER: Final = b"\xfe\xff\xdd\xe0\0\0\0\0"

_SHORT: Final = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split()
)  # 16-bit length
_LONG: Final = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())  # 32-bit length
_EXPLICIT: Final = struct.Struct("<HH2sH").unpack_from
_IMPLICIT: Final = struct.Struct("<HHL").unpack_from

_META: Final = range(0x00020000, 0x00030000)  # the tags of the file meta information
_ALL: Final = range(1 << 32)
_ITEM: Final = 0xFFFEE000
_ITEM_TAG: Final = b"\xfe\xff\0\xe0"
_ITEM_DELIMITER: Final = b"\xfe\xff\x0d\xe0\0\0\0\0"
_SEQUENCE_END: Final = 0xFFFEE0DD
_MAX_STEPS: Final = 1 << 20  # over items and the elements in them: about a second

_BEYOND: Final = UNDEFINED  # farther than any value reaches
_UNSURE: Final = -1  # in the place of an offset: not understood with certainty


class Element(NamedTuple):
    """One data element of the file; `value` is None where it was stepped over."""

    vr: str  # empty where the encoding is implicit
    value: bytes | None
    offset: int
    length: int  # of the value; of a sequence without the delimiter that may end it


class HeaderTemplate:
    """The places of the elements of one file, and of any file whose header has the same layout.

    The files of a series often differ in values and pixels alone. What a walk finds depends only on
    the bytes that it has looked at, so where these are the same, it need not be walked again.

    Parameters
    ----------
    head : bytes
        The first bytes of the file that was walked.
    looked_at : list of slice
        All of `head` that the walk depended on, two at least.
    found : dict
        What it found.
    syntax : str
        The transfer syntax, whose name is among what the walk depended on.
    """

    def __init__(
        self, head: bytes, looked_at: list[slice], found: dict[int, Element], syntax: str
    ) -> None:
        self.syntax = syntax
        self._looked_at = itemgetter(*looked_at)
        self._expected = self._looked_at(head)
        self._found = found
        self._valued = [
            (tag, element) for tag, element in found.items() if element.value is not None
        ]
        places = [slice(one.offset, one.offset + one.length) for _, one in self._valued]
        self._values = itemgetter(*places, slice(0))  # two at least, so that it gives a tuple

    def read(self, head: bytes) -> dict[int, Element] | None:
        """Return the elements of a file of the same size, or None where it must be walked."""
        if self._looked_at(head) != self._expected:
            return None
        found = self._found.copy()
        for (tag, element), value in zip(self._valued, self._values(head), strict=False):
            if value != element.value:
                found[tag] = Element(element.vr, value, element.offset, element.length)
        return found


def scan_meta(
    head: bytes, offset: int, looked_at: list[slice]
) -> tuple[dict[int, Element], int] | None:
    """Return the elements of the file meta information and where the data set begins.

    Parameters
    ----------
    head : bytes
        The first bytes of the file.
    offset : int
        Where group 2 begins: behind the preamble and "DICM".
    looked_at : list of slice
        Where to add what of `head` the result depends on, besides its values.

    References
    ----------
    DICOM PS3.10 7.1: always Explicit VR Little Endian; (0002,0000) gives the length of the rest.
    """
    length = 12  # of the group length element itself
    if len(head) < offset + length or head[offset : offset + 8] != b"\2\0\0\0UL\4\0":
        return None
    looked_at.append(slice(offset, offset + length))
    end = offset + length + _length_at(head, offset + 8)
    if end > len(head):
        return None
    found: dict[int, Element] = {}
    stop = _Walk(head, len(head), looked_at, implicit=False).run(offset, end, found, _ALL)
    return (found, end) if stop == end and all(tag in _META for tag in found) else None


def scan(
    head: bytes,
    offset: int,
    size: int,
    wanted: Container[int],
    looked_at: list[slice],
    *,
    implicit: bool,
    encapsulated: bool = False,
) -> dict[int, Element] | None:
    """Return the wanted elements of a data set that ends with its pixels.

    Parameters
    ----------
    head : bytes
        The first bytes of the file, up to the pixels at least.
    offset : int
        Where the data set begins.
    size : int
        Bytes of the whole file.
    wanted : container of int
        Tags to return, as 32-bit numbers.
    looked_at : list of slice
        Where to add what of `head` the result depends on, besides its values.
    implicit : bool
        Whether the encoding is Implicit VR.
    encapsulated : bool
        Whether PixelData is encapsulated: it has no length, and what is in it and behind it is not
        looked at.

    Returns
    -------
    dict or None
        Tag → element; PixelData without its value. None where pydicom must look at it: a walk that
        does not end with PixelData at the very end of the file, or anything out of the ordinary.
    """
    found: dict[int, Element] = {}
    walk = _Walk(head, size, looked_at, implicit=implicit, encapsulated=encapsulated)
    end = walk.run(offset, len(head), found, wanted)
    return found if end == size and PIXEL_DATA in found else None


def scan_head(head: bytes, wanted: Container[int]) -> dict[int, Element] | None:
    """Return the wanted elements of an Explicit VR data set of which only the beginning is here.

    None where the pixels do not begin in `head`, or where pydicom must look at it.
    """
    found: dict[int, Element] = {}
    walk = _Walk(head, _BEYOND, [], implicit=False)
    end = walk.run(0, len(head), found, wanted)
    return found if end != _UNSURE and PIXEL_DATA in found else None


def scan_whole(
    data: bytes, offset: int, wanted: Container[int], *, implicit: bool
) -> dict[int, Element] | None:
    """Return the wanted elements of a data set without pixels, which is all here.

    None where pydicom must look at it.
    """
    found: dict[int, Element] = {}
    walk = _Walk(data, len(data), [], implicit=implicit)
    end = walk.run(offset, len(data), found, wanted)
    return found if end == len(data) and PIXEL_DATA not in found else None


def scan_items(
    data: bytes, wanted: Container[int], *, implicit: bool
) -> list[dict[int, Element]] | None:
    """Return the wanted elements of each item of a sequence.

    Parameters
    ----------
    data : bytes
        The value of the sequence, without the delimiter that may end it.
    wanted : container of int
        Tags to return, as 32-bit numbers.
    implicit : bool
        Whether the encoding is Implicit VR.

    Returns
    -------
    list of dict, or None
        Tag → element; a sequence of undefined length without its value. None where pydicom must
        look at it.
    """
    walk = _Walk(data, len(data), [], implicit=implicit)
    items: list[dict[int, Element]] = []
    offset = 0
    while offset < len(data):
        if data[offset : offset + 4] != _ITEM_TAG or offset + DELIMITER_BYTES > len(data):
            return None
        length, offset = _length_at(data, offset + 4), offset + DELIMITER_BYTES
        end = after = offset + length
        if length == UNDEFINED:
            after = walk.skip_item(offset, len(data), depth=1)
            end = after - DELIMITER_BYTES
        found: dict[int, Element] = {}
        if not offset <= end <= len(data) or walk.run(offset, end, found, wanted) != end:
            return None
        items.append(found)
        offset = after
    return items


def is_vr(name: bytes) -> bool:
    """Say whether two bytes name a value representation."""
    return name in _SHORT or name in _LONG


def _length_at(head: bytes, offset: int) -> int:
    return int.from_bytes(head[offset : offset + 4], "little")


class _Walk:
    """One way through the elements of one encoding; notes which bytes it looks at."""

    def __init__(
        self,
        head: bytes,
        size: int,
        looked_at: list[slice],
        *,
        implicit: bool,
        encapsulated: bool = False,
    ) -> None:
        self._encapsulated = encapsulated
        self._head = head
        self._size = size
        self._looked_at = looked_at
        self._implicit = implicit

    def run(self, offset: int, end: int, found: dict[int, Element], wanted: Container[int]) -> int:
        """Add wanted elements from `offset` on; return where the walk ended.

        It ends at `end`, or behind PixelData, whose value may be beyond the head.
        """
        head, size, read_header = self._head, self._size, self._read_header
        previous = -1
        while offset + 8 <= end:
            tag, vr, length, offset = read_header(offset, end)
            if tag <= previous:
                return _UNSURE
            previous = tag
            value_end = offset + length
            if tag == PIXEL_DATA:
                found[tag] = Element(vr.decode(), None, offset, length)
                return self._end_of_pixels(value_end, length)
            if value_end > size:  # undefined length, too, is more than any file has
                if length != UNDEFINED or not self._has_items(vr):
                    return _UNSURE
                items, offset = offset, self._skip_items(offset, end, depth=1)
                if offset == _UNSURE:
                    return _UNSURE
                if tag in wanted:
                    found[tag] = Element(vr.decode(), None, items, offset - DELIMITER_BYTES - items)
                continue
            if tag in wanted:
                if value_end > end:
                    return _UNSURE
                found[tag] = Element(vr.decode(), head[offset:value_end], offset, length)
            offset = value_end
        return offset if offset == end else _UNSURE

    def _end_of_pixels(self, value_end: int, length: int) -> int:
        if self._encapsulated:
            return self._size if length == UNDEFINED else _UNSURE
        return value_end if value_end <= self._size else _UNSURE

    def _read_header(self, offset: int, end: int) -> tuple[int, bytes, int, int]:
        """Return tag, VR, length and where the value begins; the tag is -1 where it is unsure."""
        if self._implicit:
            self._looked_at.append(slice(offset, offset + 8))
            group, number, length = _IMPLICIT(self._head, offset)
            return group << 16 | number, b"", length, offset + 8
        group, number, vr, length = _EXPLICIT(self._head, offset)
        if vr in _SHORT:
            self._looked_at.append(slice(offset, offset + 8))
            return group << 16 | number, vr, length, offset + 8
        if vr in _LONG and length == 0 and offset + 12 <= end:  # the two reserved bytes
            self._looked_at.append(slice(offset, offset + 12))
            length = _length_at(self._head, offset + 8)
            return group << 16 | number, vr, length, offset + 12
        return _UNSURE, vr, 0, offset

    def _has_items(self, vr: bytes) -> bool:
        """Say whether an element of undefined length is a sequence; else it is left to pydicom."""
        return self._implicit or vr == b"SQ"

    def _skip_items(self, offset: int, end: int, depth: int) -> int:
        """Return where a sequence of undefined length ends (PS3.5 7.5)."""
        while depth <= MAX_NESTING and offset + 8 <= end:
            self._looked_at.append(slice(offset, offset + 8))
            group, number, length = _IMPLICIT(self._head, offset)
            tag, offset = group << 16 | number, offset + 8
            if tag == _SEQUENCE_END:
                return offset if length == 0 else _UNSURE
            if tag != _ITEM or len(self._looked_at) > _MAX_STEPS:
                return _UNSURE
            if length != UNDEFINED:
                offset += length
                continue
            offset = self.skip_item(offset, end, depth)
            if offset == _UNSURE:
                return _UNSURE
        return _UNSURE

    def skip_item(self, offset: int, end: int, depth: int) -> int:
        """Return where an item of undefined length ends."""
        previous = -1
        while offset + 8 <= end:
            if self._head[offset : offset + 8] == _ITEM_DELIMITER:
                self._looked_at.append(slice(offset, offset + 8))
                return offset + 8
            tag, vr, length, offset = self._read_header(offset, end)
            if tag <= previous:
                return _UNSURE
            previous = tag
            if length != UNDEFINED:
                offset += length
            elif self._has_items(vr):
                offset = self._skip_items(offset, end, depth + 1)
            else:
                return _UNSURE
            if offset == _UNSURE:
                return _UNSURE
        return _UNSURE
