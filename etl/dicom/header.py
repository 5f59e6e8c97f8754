"""One DICOM file → its data elements, whatever wraps them.

`quick_scan` finds the elements of the common encodings, `pydicom_scan` those of all else. Where the
wrapper is damaged (preamble, file meta information, transfer syntax) but the data set leaves
nothing in doubt, it is read and a warning says so.
"""

import io
import os
from collections.abc import Mapping
from functools import lru_cache
from typing import BinaryIO, Final, NamedTuple, TypeAlias, cast

from etl.dicom import inflate, pydicom_scan
from etl.dicom.codecs import CODECS, require_decoder
from etl.dicom.elements import (
    KEYWORDS,
    PER_FRAME_GROUPS,
    REAL_WORLD_MAPPING,
    SHARED_GROUPS,
    TRANSFER_SYNTAX_UID,
    Values,
)
from etl.dicom.frames import FunctionalGroups, read_groups
from etl.dicom.meaning import Mappings, read_mappings
from etl.dicom.quick_scan import (
    META_OFFSET,
    PIXEL_DATA,
    UNDEFINED,
    Element,
    HeaderTemplate,
    is_vr,
    scan,
    scan_head,
    scan_meta,
)
from etl.errors import ImageError

IMPLICIT: Final = "1.2.840.10008.1.2"
EXPLICIT: Final = "1.2.840.10008.1.2.1"
DEFLATED: Final = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN: Final = "1.2.840.10008.1.2.2"
NATIVE: Final = {
    IMPLICIT: "Implicit VR Little Endian",
    EXPLICIT: "Explicit VR Little Endian",
    DEFLATED: "Deflated Explicit VR Little Endian",
    BIG_ENDIAN: "Explicit VR Big Endian",
}

_MARK: Final = b"DICM"
_META_GROUP: Final = 2
_FIRST_GROUP: Final = 8  # of a data set of an image
HEAD_BYTES: Final = 16384  # most headers are shorter
_SCAN_LIMIT: Final = (
    64 << 20
)  # bytes of a file whose header is longer, as with big private elements
_LONGEST_FIRST: Final = 1024  # bytes of the first element of a data set without VR: a UID, a number

_Alike: TypeAlias = tuple[int, int, tuple[int, ...]]  # bytes of file and head; further tags

# The templates of files that were walked; the latest few.
_templates: Final[dict["_Alike", list[HeaderTemplate]]] = {}
_MAX_SIZES: Final = 64
_MAX_ALIKE: Final = 4
# Of a header; they are kept, of as many templates.
_MAX_LOOKED_AT: Final = 1024
_MAX_VALUE_BYTES: Final = 4096


class Header(NamedTuple):
    """What a file has beside its pixels, for all its frames."""

    elements: Mapping[int, Element]
    syntax: str  # the transfer syntax that the data set has
    groups: FunctionalGroups | None = None
    deflated_at: int | None = None  # where the deflated data set begins
    remarks: tuple[str, ...] = ()  # about its wrapper
    mappings: Mappings = ()  # to real-world values, at the root


def read_header(file: BinaryIO, more: tuple[int, ...] = (), head: bytes = b"") -> Header:
    """Return the data elements of a DICOM file.

    Parameters
    ----------
    file : binary file
        Seekable, positioned anywhere.
    more : tuple of int
        Tags to read besides those of `KEYWORDS`, wherever the file or a frame has them. They are
        attributes to keep, and an image does not fail because one of them is damaged.
    head : bytes
        The first `HEAD_BYTES` of the file, where they are read already.

    Raises
    ------
    ImageError
        It is no DICOM file, or its elements cannot be followed.
    """
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        raise ImageError("image-unreadable", "is empty (0 bytes). Copy it again.")
    if head:
        file.seek(len(head))
    else:
        file.seek(0)
        head = file.read(HEAD_BYTES)
    found = None
    if head[META_OFFSET - len(_MARK) : META_OFFSET] == _MARK:
        found = _scan(head, size, more)
        if found is None and len(head) < size <= _SCAN_LIMIT:
            found = _scan(head + file.read(), size, more)
    if found is not None:
        header = Header(*found)
        source = file
    else:
        header, source = _parse(file, head, size, more)
    elements = header.elements
    implicit, little = header.syntax == IMPLICIT, header.syntax != BIG_ENDIAN
    if REAL_WORLD_MAPPING in elements:
        value = read_value(source, elements[REAL_WORLD_MAPPING])
        mappings = read_mappings(value, implicit=implicit, little=little)
        header = header._replace(mappings=mappings)
    if SHARED_GROUPS in elements or PER_FRAME_GROUPS in elements:
        shared, per_frame = (
            read_value(source, elements.get(tag)) for tag in (SHARED_GROUPS, PER_FRAME_GROUPS)
        )
        groups = read_groups(shared, per_frame, more, implicit=implicit, little=little)
        header = header._replace(groups=groups)
    return header


def read_value(source: BinaryIO, element: Element | None) -> bytes:
    """Return the value of an element, whether or not it was kept; empty where there is none."""
    if element is None:
        return b""
    if element.value is not None:
        return element.value
    source.seek(element.offset)
    return source.read(element.length)


# ------------------------------------------------------------------------------------ the quick way


def _scan(
    head: bytes, size: int, more: tuple[int, ...] = ()
) -> tuple[dict[int, Element], str] | None:
    """Return elements and transfer syntax of a file in a common encoding, the quick way."""
    alike = size, len(head), more
    for template in reversed(_templates.get(alike, ())):  # the files of a series come together
        if (elements := template.read(head)) is not None:
            return elements, template.syntax
    looked_at: list[slice] = []
    meta = scan_meta(head, META_OFFSET, looked_at)
    if meta is None:
        return None
    syntax = _syntax(meta[0])
    is_encapsulated = syntax in CODECS
    if syntax not in {EXPLICIT, IMPLICIT} and not is_encapsulated:
        return None
    if is_encapsulated:
        require_decoder(syntax)
    found = scan(
        head,
        meta[1],
        size,
        _wanted(more),
        looked_at,
        implicit=syntax == IMPLICIT,
        encapsulated=is_encapsulated,
    )
    if found is None:
        return None
    name = meta[0][TRANSFER_SYNTAX_UID]
    looked_at.append(slice(name.offset, name.offset + name.length))
    elements = {**found, TRANSFER_SYNTAX_UID: name}  # a second one, in the data set, is nothing
    n_bytes = sum(len(element.value or b"") for element in elements.values())
    if len(looked_at) <= _MAX_LOOKED_AT and n_bytes <= _MAX_VALUE_BYTES:
        _remember(alike, HeaderTemplate(head, looked_at, elements, syntax))
    return elements, syntax


@lru_cache(16)
def _wanted(more: tuple[int, ...]) -> Mapping[int, str]:
    """Return the elements to look for, with their names for messages."""
    return {**KEYWORDS, **dict.fromkeys(more, "an attribute to keep")} if more else KEYWORDS


def _syntax(elements: Mapping[int, Element]) -> str:
    return Values(elements, is_big_endian=False).uid(TRANSFER_SYNTAX_UID)


def _remember(alike: _Alike, template: HeaderTemplate) -> None:
    """Keep a template among the latest; never by changing what another thread may be looking at."""
    if alike not in _templates and len(_templates) >= _MAX_SIZES:
        _templates.clear()
    _templates[alike] = [*_templates.get(alike, [])[1 - _MAX_ALIKE :], template]


# ------------------------------------------------------------------------------------- the sure way


def _parse(
    file: BinaryIO, head: bytes, size: int, more: tuple[int, ...]
) -> tuple[Header, BinaryIO]:
    """Return the header of any file, by pydicom, and the places of its elements."""
    start, remarks = _find_start(head)
    is_raw = isinstance(file, io.RawIOBase)
    buffered = io.BufferedReader(cast("io.RawIOBase", file)) if is_raw else file
    try:
        return _parse_from(buffered, start, size, remarks, more)
    finally:
        if is_raw:
            cast("io.BufferedReader", buffered).detach()  # or the file would be closed with it


def _parse_from(
    file: BinaryIO, start: int, size: int, remarks: list[str], more: tuple[int, ...]
) -> tuple[Header, BinaryIO]:
    syntax = _read_meta(file, start, size, remarks)
    begin = file.tell()
    syntax = _check_against_data_set(file, syntax, remarks)
    file.seek(begin)
    if syntax == DEFLATED:
        return _parse_deflated(file.read(), begin, remarks, more)
    elements = _elements(file, size, syntax, more)
    pixels = elements.get(PIXEL_DATA)
    if syntax in CODECS and pixels is not None and pixels.length != UNDEFINED:
        remarks.append(f"its transfer syntax is {CODECS[syntax].name}, but its pixels are not")
        syntax = EXPLICIT
    return Header(elements, syntax, remarks=tuple(remarks)), file


def _elements(file: BinaryIO, size: int, syntax: str, more: tuple[int, ...]) -> dict[int, Element]:
    return pydicom_scan.elements(
        file,
        size,
        _wanted(more),
        implicit=syntax == IMPLICIT,
        little=syntax != BIG_ENDIAN,
        meta=False,
        encapsulated=syntax in CODECS,
        lenient=more,
    )


def _find_start(head: bytes) -> tuple[int, list[str]]:
    """Return where the file meta information begins, or else the data set, and what is missing."""
    if head[META_OFFSET - len(_MARK) : META_OFFSET] == _MARK:
        return META_OFFSET, []
    if head.startswith(_MARK):
        return len(_MARK), ["it has no preamble"]
    for start in (0, META_OFFSET - len(_MARK)):
        if _encoding_at(head[start:], {_META_GROUP, _FIRST_GROUP}):
            return start, ['it has no "DICM" mark']
    if not any(head):
        raise ImageError("image-unreadable", "begins with zero bytes only. Copy it again.")
    raise ImageError(
        "image-unreadable",
        'is not DICOM (no "DICM" mark at byte 128, no data element at the start). '
        "Remove it, or export it again.",
    )


def _read_meta(file: BinaryIO, start: int, size: int, remarks: list[str]) -> str:
    """Return the transfer syntax, and leave the file where the data set begins."""
    file.seek(start)
    first = file.read(_LONGEST_FIRST)
    file.seek(start)
    encoding = _encoding_at(first, {_META_GROUP})
    implicit = encoding == IMPLICIT
    meta: dict[int, Element] = {}
    if encoding or not _encoding_at(first, {_FIRST_GROUP}):
        meta = pydicom_scan.elements(
            file, size, KEYWORDS, implicit=implicit, little=True, meta=True
        )
    if implicit:
        remarks.append("its file meta information is in Implicit VR")
    if syntax := _syntax(meta):
        if syntax not in NATIVE:
            require_decoder(syntax)
        return syntax
    if file.tell() == size:
        raise pydicom_scan.truncated()
    begin = file.tell()
    found = _encoding_at(file.read(_LONGEST_FIRST), {_FIRST_GROUP})
    file.seek(begin)
    if not found:
        raise ImageError("image-unreadable", "has no valid TransferSyntaxUID. Export it again.")
    remarks.append(f"it has no valid TransferSyntaxUID; it is read as {NATIVE[found]}")
    return found


def _check_against_data_set(file: BinaryIO, syntax: str, remarks: list[str]) -> str:
    """Return the transfer syntax that the data set has, which the file meta may deny."""
    found = _encoding_at(file.read(_LONGEST_FIRST), {_FIRST_GROUP})
    expected = "" if syntax == DEFLATED else EXPLICIT if syntax in CODECS else syntax
    if not found or found == expected:
        return syntax
    if syntax in CODECS:
        return syntax  # what its pixels are is in doubt; the walk through the elements will tell
    remarks.append(f"its transfer syntax is {NATIVE[syntax]}, but it is {NATIVE[found]}")
    return found


def _encoding_at(data: bytes, groups: set[int]) -> str:
    """Return the encoding of a data element of one of these groups; empty where there is none.

    The first element of a group has a low number and a short value.
    """
    little, big = int.from_bytes(data[:2], "little"), int.from_bytes(data[:2], "big")
    if is_vr(data[4:6]):
        if little in groups and data[3:4] == b"\0":
            return EXPLICIT
        return BIG_ENDIAN if big in groups and data[2:3] == b"\0" else ""
    length = int.from_bytes(data[4:8], "little")
    is_implicit = little in groups and data[3:4] == b"\0" and 0 < length < _LONGEST_FIRST
    return IMPLICIT if is_implicit and len(data) >= META_OFFSET else ""


def _parse_deflated(
    data: bytes, begin: int, remarks: list[str], more: tuple[int, ...]
) -> tuple[Header, BinaryIO]:
    """Return the header of a deflated data set, inflating no more than it where that can be."""
    wanted = _wanted(more)
    head = inflate.head(data, lambda start: scan_head(start, wanted) is not None)
    elements = scan_head(head, wanted)
    if elements is None:
        head = inflate.whole(data)
        elements = _elements(io.BytesIO(head), len(head), DEFLATED, more)
    return Header(elements, DEFLATED, None, begin, tuple(remarks)), io.BytesIO(head)
