"""One DICOM file → what places it among others, whether or not its pixels can be read."""

import re
from collections.abc import Mapping
from typing import BinaryIO, Final, NamedTuple

from etl.dicom.elements import (
    COLUMNS,
    FRAME_OF_REFERENCE_UID,
    IMAGE_ORIENTATION,
    IMAGE_POSITION,
    INSTANCE_NUMBER,
    NUMBER_OF_FRAMES,
    PATIENT_ID,
    PIXEL_SPACING,
    ROWS,
    SERIES_INSTANCE_UID,
    SOP_INSTANCE_UID,
    Values,
)
from etl.dicom.header import BIG_ENDIAN, Header, read_header
from etl.dicom.quick_scan import PIXEL_DATA, Element
from etl.errors import ImageError, beyond, most
from etl.geometry import ImagePlane

# Every storage class begins so; the first one in a file is its own. Only a DICOMDIR has another
# class and names those of the files that it lists.
_STORAGE_CLASS: Final = re.compile(rb"1\.2\.840\.10008\.(?:5\.1\.4\.1\.1\.[0-9.]+|1\.3\.10)")
_DIGITS: Final = re.compile(r"[0-9]{1,12}", re.ASCII)  # of NumberOfFrames, which is VR IS
CLASS_BYTES: Final = 4096  # of a file; its class is among the first
_MARK: Final = slice(128, 132)


class ImageFacts(NamedTuple):
    """What the header of an image says of it; empty or NaN where it says nothing."""

    sop_instance_uid: str
    series_instance_uid: str
    frame_of_reference_uid: str
    patient_id: str
    instance_number: float
    rows: int
    columns: int
    planes: tuple[ImagePlane, ...]  # of each frame


def object_class(head: bytes) -> str:
    """Return the SOP class UID of a DICOM object by its first bytes; empty where it is none."""
    found = _STORAGE_CLASS.search(head, 0, CLASS_BYTES)
    return found[0].decode() if found else ""


def is_dicom(head: bytes) -> bool:
    """Say whether a file's first bytes have the mark of DICOM, or name an object of it."""
    return head[_MARK] == b"DICM" or _STORAGE_CLASS.search(head, 0, CLASS_BYTES) is not None


def image_facts(file: BinaryIO, head: bytes = b"") -> ImageFacts | None:
    """Return what the header of an image says; None where the object has no pixels.

    Parameters
    ----------
    file : binary file
        Seekable.
    head : bytes
        Its first `HEAD_BYTES`, where they are read already.

    Raises
    ------
    ImageError
        It is no DICOM file, or its elements cannot be followed.
    """
    header = read_header(file, head=head)
    if PIXEL_DATA not in header.elements:
        return None
    values = Values(header.elements, is_big_endian=header.syntax == BIG_ENDIAN)
    return ImageFacts(
        sop_instance_uid=values.uid(SOP_INSTANCE_UID),
        series_instance_uid=values.uid(SERIES_INSTANCE_UID),
        frame_of_reference_uid=values.uid(FRAME_OF_REFERENCE_UID),
        patient_id=_text(header),
        instance_number=values.number(INSTANCE_NUMBER),
        rows=values.unsigned(ROWS) or 0,
        columns=values.unsigned(COLUMNS) or 0,
        planes=_planes(header, _n_frames(values)),
    )


def count_frames(file: BinaryIO) -> int:
    """Return NumberOfFrames; 1 where there is none.

    Raises
    ------
    ImageError
        It is no DICOM file, or its elements cannot be followed.
    """
    header = read_header(file)
    return _n_frames(Values(header.elements, is_big_endian=header.syntax == BIG_ENDIAN))


def _n_frames(values: Values) -> int:
    digits = values.text(NUMBER_OF_FRAMES)
    n_frames = int(digits) if _DIGITS.fullmatch(digits) else 1
    if n_frames > most("frames"):
        raise ImageError("image-unreadable", beyond("frames", n_frames))
    return max(n_frames, 1)


def _text(header: Header) -> str:
    """Return PatientID; where it is no UTF-8, each byte as the letter of ISO 8859-1."""
    element = header.elements.get(PATIENT_ID)
    value = (element.value or b"" if element else b"").strip(b" \0")
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _planes(header: Header, n_frames: int) -> tuple[ImagePlane, ...]:
    groups = header.groups
    if groups is None:
        return (_plane(header.elements, header.syntax),) * n_frames
    if not groups.per_frame:
        return (_plane({**header.elements, **groups.shared}, header.syntax),) * n_frames
    return tuple(
        _plane({**header.elements, **groups.of_frame(number)}, header.syntax)
        for number in range(1, len(groups.per_frame) + 1)
    )


def _plane(elements: Mapping[int, Element], syntax: str) -> ImagePlane:
    values = Values(elements, is_big_endian=syntax == BIG_ENDIAN)
    orientation = values.numbers(IMAGE_ORIENTATION, 6)
    return ImagePlane(
        values.numbers(IMAGE_POSITION, 3),
        orientation[:3],
        orientation[3:],
        values.numbers(PIXEL_SPACING, 2),
    )
