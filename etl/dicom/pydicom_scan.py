"""The slow and sure way through a DICOM data set: pydicom finds the elements.

It takes what `etl.dicom.quick_scan` leaves: other encodings, and all that is out of the ordinary.
"""

import io
from collections.abc import Container, Iterator, Mapping
from typing import BinaryIO, Final

from etl.dicom.elements import (
    DOUBLE_PIXELS,
    FLOAT_PIXELS,
    MODALITY_LUT,
    PER_FRAME_GROUPS,
    REAL_WORLD_MAPPING,
    SHARED_GROUPS,
)
from etl.dicom.quick_scan import (
    DELIMITER_BYTES,
    PIXEL_DATA,
    UNDEFINED,
    Element,
)
from etl.errors import MAX_VALUE_BYTES, ImageError, SourceError, beyond, most

_ELEMENT_HEADER: Final = 8  # bytes, at least
_LONG_HEADER: Final = 12  # bytes of the header of an element of Explicit VR OB or OW
# Sequences and pixels: that they are there, where, and how long, is all that is asked of them here.
VALUE_UNUSED: Final = frozenset(
    {MODALITY_LUT, REAL_WORLD_MAPPING, SHARED_GROUPS, PER_FRAME_GROUPS}
    | {FLOAT_PIXELS, DOUBLE_PIXELS, PIXEL_DATA}
)
_ITEMS: Final = (b"\xfe\xff\0\xe0", b"\xff\xfe\xe0\0")  # little and big endian
_BLOCK_BYTES: Final = 1 << 22


def elements(
    file: BinaryIO,
    size: int,
    keywords: Mapping[int, str],
    *,
    implicit: bool,
    little: bool,
    meta: bool,
    encapsulated: bool = False,
    lenient: Container[int] = (),
) -> dict[int, Element]:
    """Return the wanted elements from the file's position to the end of the meta group or file.

    Parameters
    ----------
    file : binary file
        Ends behind the end of the meta group or at the end of the file.
    size : int
        Bytes of the whole file.
    keywords : mapping
        Tag → keyword of the elements to return.
    implicit, little : bool
        The encoding: Implicit VR, little endian.
    meta : bool
        Whether to read the meta group, and not the data set.
    encapsulated : bool
        Whether PixelData is encapsulated; then what is in it and behind it is not looked at.
    lenient : container of int
        Tags whose elements are left out where they stand twice or are too long.

    Raises
    ------
    ImageError
        Elements that cannot be read, stand twice, end early, or are too many.
    """
    found: dict[int, Element] = {}
    end = file.tell()
    if not meta and not encapsulated:  # else most items are fragments of pixels
        _require_few_items(file, size)
    walk = _walk(file, implicit=implicit, little=little, meta=meta)
    # pydicom takes each 8 bytes of padding for an element, and walks megabytes of it for seconds.
    for number, (tag, element) in enumerate(walk, 1):
        _require_few_elements(number)
        if element.offset + element.length > size and element.length != UNDEFINED:
            raise truncated()
        if tag in lenient:
            found[tag] = _lenient(element, is_second=tag in found)
        elif tag in keywords:
            _require_usable(tag, element, keywords[tag], is_second=tag in found)
            found[tag] = element
        end = file.tell()
    if not meta and _is_at_encapsulated_pixels(file):
        if not encapsulated:
            raise ImageError(
                "image-unsupported-encoding",
                "PixelData is encapsulated, but the transfer syntax is an uncompressed one.",
            )
        found[PIXEL_DATA] = Element("", None, file.tell() + _LONG_HEADER, UNDEFINED)
    else:
        _require_end(file, end, size, found, meta=meta)
    return found


def _lenient(element: Element, *, is_second: bool) -> Element:
    """Return an attribute to keep; one without a usable value where it stands twice or is long."""
    if is_second:
        return Element("", b"", element.offset, 0)
    if element.length > MAX_VALUE_BYTES:  # as many bytes, for the remark on its length
        return Element("", bytes(MAX_VALUE_BYTES + 1), element.offset, element.length)
    return element


def _require_few_elements(number: int) -> None:
    if number > most("elements"):
        raise ImageError(
            "image-unreadable",
            f"{beyond('elements', None)} Or has it as much padding? Then export it again.",
        )


def require_few_items(data: bytes, code: str) -> None:
    """Require no more items of sequences than pydicom reads in some seconds.

    The tag of an item is four bytes that chance puts in pixels once in 4 GB.

    Raises
    ------
    SourceError
        With this code.
    """
    if (n_items := max(map(data.count, _ITEMS))) > most("items"):
        raise SourceError(code, beyond("items", n_items))


def _require_few_items(file: BinaryIO, size: int) -> None:
    """Require the same of the rest of a file, and leave it where it was."""
    start = file.tell()
    n_items = [0, 0]
    end = b""
    while file.tell() < size and (block := file.read(_BLOCK_BYTES)):
        joined = end + block
        n_items = [n + joined.count(item) for n, item in zip(n_items, _ITEMS, strict=True)]
        end = joined[-3:]
    if max(n_items) > most("items"):
        raise ImageError("image-unreadable", beyond("items", max(n_items)))
    file.seek(start)


def _require_end(
    file: BinaryIO, end: int, size: int, found: Mapping[int, Element], *, meta: bool
) -> None:
    """Check that the walk, whose last element ended at `end`, has come to the end of the file."""
    is_cut = end < size < end + _ELEMENT_HEADER and PIXEL_DATA not in found
    if file.tell() > size or is_cut:
        raise truncated()
    if not meta and file.tell() < size:
        raise ImageError("image-unreadable", "its data elements end early. Export it again.")


def _is_at_encapsulated_pixels(file: BinaryIO) -> bool:
    """Say whether the walk has ended before a PixelData of undefined length."""
    start = file.read(4)
    file.seek(-len(start), io.SEEK_CUR)
    return start in {b"\xe0\x7f\x10\0", b"\x7f\xe0\0\x10"}


def _require_usable(tag: int, element: Element, keyword: str, *, is_second: bool) -> None:
    """Refuse an element that stands twice, or whose value is too long to read."""
    if is_second:
        raise ImageError("image-unreadable", f"{keyword} stands in it twice. Export it again.")
    if element.length > MAX_VALUE_BYTES and tag not in VALUE_UNUSED:
        raise ImageError(
            "image-unreadable",
            f"{keyword} has {element.length} bytes, expected {MAX_VALUE_BYTES} at most. Export it "
            "again.",
        )


def _walk(
    file: BinaryIO, *, implicit: bool, little: bool, meta: bool
) -> Iterator[tuple[int, Element]]:
    """Yield (tag, element) of the outermost level as pydicom finds them."""
    from pydicom.dataelem import RawDataElement
    from pydicom.filereader import data_element_generator

    def is_end(tag: int, _vr: str | None, length: int) -> bool:
        if meta:
            return tag >> 16 != 2  # noqa: PLR2004  the file meta group
        return tag == PIXEL_DATA and length == UNDEFINED

    walk = data_element_generator(file, implicit, little, is_end, defer_size=MAX_VALUE_BYTES)
    while True:
        try:
            raw = next(walk)
        except StopIteration:
            return
        except Exception as error:  # pydicom raises whatever its parsing meets
            if not file.read(1):
                raise truncated() from error
            raise ImageError(
                "image-unreadable", "its data elements cannot be read. Export it again."
            ) from error
        if isinstance(raw, RawDataElement):
            yield int(raw.tag), Element(raw.VR or "", raw.value, raw.value_tell, raw.length)
        else:  # a sequence of undefined length, already read
            offset = int(raw.file_tell or 0)
            length = file.tell() - DELIMITER_BYTES - offset
            yield int(raw.tag), Element(raw.VR or "", None, offset, length)


def truncated() -> ImageError:
    """Return the error of a file that ends too soon."""
    return ImageError("image-truncated", "ends before its data elements do. Copy it again.")
