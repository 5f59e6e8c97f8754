"""The values of data elements, decoded strictly and in our own words.

Attributes are decoded here, not by pydicom, because its value validation warns on harmless values
and its texts quote header values, which may identify a patient.
"""

import math
import re
import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import Final, Literal

from etl.dicom.quick_scan import PIXEL_DATA, Element
from etl.errors import ImageError

TRANSFER_SYNTAX_UID: Final = 0x00020010
SOP_INSTANCE_UID: Final = 0x00080018
PATIENT_ID: Final = 0x00100020
TRIGGER_TIME: Final = 0x00181060
FRAME_TIME: Final = 0x00181063
FRAME_TIME_VECTOR: Final = 0x00181065
STUDY_INSTANCE_UID: Final = 0x0020000D
SERIES_INSTANCE_UID: Final = 0x0020000E
INSTANCE_NUMBER: Final = 0x00200013
IMAGE_POSITION: Final = 0x00200032
IMAGE_ORIENTATION: Final = 0x00200037
FRAME_OF_REFERENCE_UID: Final = 0x00200052
TEMPORAL_POSITION: Final = 0x00200100
SLICE_LOCATION: Final = 0x00201041
STACK_ID: Final = 0x00209056
IN_STACK_POSITION: Final = 0x00209057
TEMPORAL_POSITION_INDEX: Final = 0x00209128
TRIGGER_DELAY: Final = 0x00209153
DIMENSION_INDICES: Final = 0x00209157
SAMPLES_PER_PIXEL: Final = 0x00280002
PHOTOMETRIC: Final = 0x00280004
NUMBER_OF_FRAMES: Final = 0x00280008
ROWS: Final = 0x00280010
COLUMNS: Final = 0x00280011
PIXEL_SPACING: Final = 0x00280030
BITS_ALLOCATED: Final = 0x00280100
BITS_STORED: Final = 0x00280101
HIGH_BIT: Final = 0x00280102
PIXEL_REPRESENTATION: Final = 0x00280103
PIXEL_PADDING: Final = 0x00280120
PIXEL_PADDING_LIMIT: Final = 0x00280121
RESCALE_INTERCEPT: Final = 0x00281052
RESCALE_SLOPE: Final = 0x00281053
RESCALE_TYPE: Final = 0x00281054
LOSSY: Final = 0x00282110
MODALITY_LUT: Final = 0x00283000
REAL_WORLD_MAPPING: Final = 0x00409096
UNITS: Final = 0x00541001
SUV_TYPE: Final = 0x00541006
DECAY_CORRECTION: Final = 0x00541102
SHARED_GROUPS: Final = 0x52009229
PER_FRAME_GROUPS: Final = 0x52009230
FLOAT_PIXELS: Final = 0x7FE00008
DOUBLE_PIXELS: Final = 0x7FE00009

# Planes of overlays (PS3.3 C.9.2): how many bits each allocates, and which of the pixel's it uses.
OVERLAYS: Final = tuple(
    (group << 16 | 0x0100, group << 16 | 0x0102) for group in range(0x6000, 0x6020, 2)
)

# The data elements that are read; names are for messages.
KEYWORDS: Final = {
    TRANSFER_SYNTAX_UID: "TransferSyntaxUID",
    SOP_INSTANCE_UID: "SOPInstanceUID",
    PATIENT_ID: "PatientID",
    TRIGGER_TIME: "TriggerTime",
    FRAME_TIME: "FrameTime",
    FRAME_TIME_VECTOR: "FrameTimeVector",
    STUDY_INSTANCE_UID: "StudyInstanceUID",
    SERIES_INSTANCE_UID: "SeriesInstanceUID",
    INSTANCE_NUMBER: "InstanceNumber",
    IMAGE_POSITION: "ImagePositionPatient",
    IMAGE_ORIENTATION: "ImageOrientationPatient",
    FRAME_OF_REFERENCE_UID: "FrameOfReferenceUID",
    TEMPORAL_POSITION: "TemporalPositionIdentifier",
    SLICE_LOCATION: "SliceLocation",
    SAMPLES_PER_PIXEL: "SamplesPerPixel",
    PHOTOMETRIC: "PhotometricInterpretation",
    NUMBER_OF_FRAMES: "NumberOfFrames",
    ROWS: "Rows",
    COLUMNS: "Columns",
    PIXEL_SPACING: "PixelSpacing",
    BITS_ALLOCATED: "BitsAllocated",
    BITS_STORED: "BitsStored",
    HIGH_BIT: "HighBit",
    PIXEL_REPRESENTATION: "PixelRepresentation",
    PIXEL_PADDING: "PixelPaddingValue",
    PIXEL_PADDING_LIMIT: "PixelPaddingRangeLimit",
    RESCALE_INTERCEPT: "RescaleIntercept",
    RESCALE_SLOPE: "RescaleSlope",
    RESCALE_TYPE: "RescaleType",
    LOSSY: "LossyImageCompression",
    MODALITY_LUT: "ModalityLUTSequence",
    REAL_WORLD_MAPPING: "RealWorldValueMappingSequence",
    UNITS: "Units",
    SUV_TYPE: "SUVType",
    DECAY_CORRECTION: "DecayCorrection",
    SHARED_GROUPS: "SharedFunctionalGroupsSequence",
    PER_FRAME_GROUPS: "PerFrameFunctionalGroupsSequence",
    FLOAT_PIXELS: "FloatPixelData",
    DOUBLE_PIXELS: "DoubleFloatPixelData",
    PIXEL_DATA: "PixelData",
} | {
    tag: keyword
    for tags in OVERLAYS
    for tag, keyword in zip(tags, ("OverlayBitsAllocated", "OverlayBitPosition"), strict=True)
}

# PS3.5 table 6.2-1: DS and IS, with the padding that files have (blanks, NUL).
_DECIMAL: Final = re.compile(rb"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_DECIMAL_COMMA: Final = re.compile(rb"[+-]?[0-9]+(?:,[0-9]*)?(?:[eE][+-]?[0-9]+)?")
_UID: Final = re.compile(r"[0-9.]{1,64}")
_BLANKS: Final = b" \0"  # padding
_TEXT_VRS: Final = frozenset(
    {"AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI"}
    | {"UR", "UT"}
)
_BINARY_VRS: Final = frozenset({"AT", "FD", "FL", "SL", "SS", "SV", "UL", "US", "UV"})
_LONGEST: Final = 4096  # bytes of a value that is kept in memory once decoded
_US_BYTES: Final = 2
_UL_BYTES: Final = 4
_FD_BYTES: Final = 8


class Values:
    """The values of one file's data elements.

    Parameters
    ----------
    elements : mapping
        Tag → data element.
    is_big_endian : bool
        The byte order of binary values.

    Attributes
    ----------
    remarks : list of str
        About values that are there but break their format; filled as values are asked for.
    """

    def __init__(self, elements: Mapping[int, Element], *, is_big_endian: bool) -> None:
        self._elements = elements
        self._is_big_endian = is_big_endian
        self.remarks: list[str] = []

    def text(self, tag: int) -> str:
        """Return a value as ASCII text without its padding; empty where there is none."""
        element = self._elements.get(tag)
        if element is None or element.value is None:
            return ""
        if element.vr in _BINARY_VRS:
            self._say_vr(tag, element.vr)
        return element.value.strip(_BLANKS).decode("ascii", "replace")

    def uid(self, tag: int) -> str:
        """Return a UID, or an empty string where it is missing or not one."""
        element = self._elements.get(tag)
        if element is None or not element.value:
            return ""
        if element.vr in _BINARY_VRS:
            self._say_vr(tag, element.vr)
        uid, is_valid = (_uid if len(element.value) <= _LONGEST else _uid.__wrapped__)(
            element.value
        )
        if not is_valid:
            self.remarks.append(f"{KEYWORDS[tag]} is not a UID and is left out")
        return uid

    def unsigned(self, tag: int) -> int | None:
        """Return a value of VR US, or None where it is missing or empty."""
        element = self._elements.get(tag)
        if element is None or not element.value:
            return None
        if len(element.value) != _US_BYTES:
            raise ImageError("image-unreadable", f"{KEYWORDS[tag]} is not one 16-bit number.")
        if element.vr in _TEXT_VRS:
            words = f"is a binary number, but its VR is {element.vr}; it is read as number"
            self.remarks.append(f"{KEYWORDS[tag]} {words}")
        order: Literal["big", "little"] = "big" if self._is_big_endian else "little"
        return int.from_bytes(element.value, order)

    def required(self, tag: int) -> int:
        """Return a value of VR US that must be there."""
        value = self.unsigned(tag)
        if value is None:
            raise ImageError("image-unreadable", f"has no {KEYWORDS[tag]}. Export it again.")
        return value

    def pixel_value(self, tag: int, *, is_signed: bool) -> int | None:
        """Return a value of VR US or SS, whichever the pixels have; None where there is none."""
        value = self._binary(tag)
        if not value:
            return None
        if len(value) != _US_BYTES:
            self.remarks.append(f"{KEYWORDS[tag]} is not one 16-bit number and is left out")
            return None
        order: Literal["big", "little"] = "big" if self._is_big_endian else "little"
        return int.from_bytes(value, order, signed=is_signed)

    def numbers(self, tag: int, n_values: int) -> tuple[float, ...]:
        """Return the values of VR DS or IS; NaN where they are missing or not `n_values` numbers.

        A decimal comma, which no number of a DICOM file may have, is read as a decimal point.
        """
        element = self._elements.get(tag)
        value = element.value or b"" if element else b""
        if element is not None and value and element.vr in _BINARY_VRS:
            self._say_vr(tag, element.vr)
        read = decimals if len(value) <= _LONGEST else decimals.__wrapped__
        numbers, remark = read(value, n_values)
        if remark:
            self.remarks.append(f"{KEYWORDS[tag]} {remark}")
        return numbers

    def number(self, tag: int) -> float:
        """Return the one value of VR DS or IS; NaN where it is missing or not one number."""
        return self.numbers(tag, 1)[0]

    def longs(self, tag: int) -> tuple[int, ...]:
        """Return the values of VR UL; empty where there is none."""
        value = self._binary(tag)
        if len(value) % _UL_BYTES:
            return ()
        return struct.unpack(f"{self._order}{len(value) // _UL_BYTES}L", value)

    def double(self, tag: int) -> float:
        """Return the value of VR FD; NaN where there is none."""
        value = self._binary(tag)
        if len(value) != _FD_BYTES:
            return math.nan
        number: float = struct.unpack(f"{self._order}d", value)[0]
        return number

    def _say_vr(self, tag: int, vr: str) -> None:
        """Say that a text stands under a VR of binary numbers, as which pydicom would read it."""
        self.remarks.append(f"{KEYWORDS[tag]} is text, but its VR is {vr}; it is read as text")

    def _binary(self, tag: int) -> bytes:
        element = self._elements.get(tag)
        return (element.value or b"") if element else b""

    @property
    def _order(self) -> str:
        return ">" if self._is_big_endian else "<"


@lru_cache(1024)  # most are the same for a whole series
def _uid(value: bytes) -> tuple[str, bool]:
    """Return a UID, empty where it is none, and whether the value is a UID or empty."""
    text = value.strip(_BLANKS).decode("ascii", "replace")
    return (text, True) if _UID.fullmatch(text) else ("", not text)


@lru_cache(1024)
def decimals(value: bytes, n_values: int) -> tuple[tuple[float, ...], str]:
    """Return numbers, NaN where they are none, and what is wrong with the value, if anything."""
    unknown = (math.nan,) * n_values
    parts = [part.strip(_BLANKS) for part in value.split(b"\\")]
    if not any(parts):
        return unknown, ""
    expected = "one number" if n_values == 1 else f"{n_values} numbers"
    remark = ""
    if not all(map(_DECIMAL.fullmatch, parts)) and all(map(_DECIMAL_COMMA.fullmatch, parts)):
        parts = [part.replace(b",", b".") for part in parts]
        remark = "has a decimal comma, which is read as a decimal point"
    if len(parts) == n_values and all(map(_DECIMAL.fullmatch, parts)):
        numbers = tuple(map(float, parts))
        if all(map(math.isfinite, numbers)):
            return numbers, remark
    return unknown, f"is not {expected} and is left out"
