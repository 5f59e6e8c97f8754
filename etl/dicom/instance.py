"""One DICOM file → its attributes and where its pixels lie.

`quick_scan` finds the elements of the common encodings, `pydicom_scan` those of all else; this
module decides what they mean, strictly and in its own words.
Attributes are decoded here, not by pydicom, because its value validation warns on harmless values
and its texts quote header values, which may identify a patient.
"""

import io
import math
import os
import re
from functools import lru_cache
from typing import BinaryIO, Final, Literal, cast

import numpy as np

from etl.dicom import pydicom_scan
from etl.dicom.pixels import modality_range
from etl.dicom.quick_scan import META_OFFSET, PIXEL_DATA, Element, HeaderTemplate, scan, scan_meta
from etl.errors import ImageError
from etl.model import Instance, NativePixels, PixelFormat

_MARK: Final = b"DICM"
_HEAD_BYTES: Final = 16384  # most headers are shorter
_SCAN_LIMIT: Final = (
    64 << 20
)  # bytes of a file whose header is longer, as with big private elements

_IMPLICIT: Final = "1.2.840.10008.1.2"
_EXPLICIT: Final = "1.2.840.10008.1.2.1"
_DEFLATED: Final = "1.2.840.10008.1.2.1.99"
_BIG_ENDIAN: Final = "1.2.840.10008.1.2.2"
_NATIVE: Final = frozenset({_IMPLICIT, _EXPLICIT, _DEFLATED, _BIG_ENDIAN})

_COLOUR_MODELS: Final = frozenset(
    {"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422"}
)

_TRANSFER_SYNTAX_UID: Final = 0x00020010
_PIXEL_SPACING: Final = 0x00280030
_IMAGE_GROUP: Final = 0x0028
_MODALITY_LUT: Final = 0x00283000
_FLOAT_PIXELS: Final = frozenset({0x7FE00008, 0x7FE00009})
_KEYWORDS: Final = {
    _TRANSFER_SYNTAX_UID: "TransferSyntaxUID",
    0x00080018: "SOPInstanceUID",
    0x00181060: "TriggerTime",
    0x0020000E: "SeriesInstanceUID",
    0x00200013: "InstanceNumber",
    0x00200032: "ImagePositionPatient",
    0x00200037: "ImageOrientationPatient",
    0x00201041: "SliceLocation",
    0x00280002: "SamplesPerPixel",
    0x00280004: "PhotometricInterpretation",
    0x00280008: "NumberOfFrames",
    0x00280010: "Rows",
    0x00280011: "Columns",
    _PIXEL_SPACING: "PixelSpacing",
    0x00280100: "BitsAllocated",
    0x00280101: "BitsStored",
    0x00280102: "HighBit",
    0x00280103: "PixelRepresentation",
    0x00281052: "RescaleIntercept",
    0x00281053: "RescaleSlope",
    _MODALITY_LUT: "ModalityLUTSequence",
    0x7FE00008: "FloatPixelData",
    0x7FE00009: "DoubleFloatPixelData",
    PIXEL_DATA: "PixelData",
}

_PIXEL_TAGS: Final = [
    tag for tag in _KEYWORDS if tag >> 16 >= _IMAGE_GROUP and tag != _PIXEL_SPACING
]

# PS3.5 table 6.2-1: DS and IS, with the padding that files have (blanks, NUL).
_DECIMAL: Final = re.compile(rb"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_INTEGER: Final = re.compile(rb"[+-]?[0-9]{1,12}")
_UID: Final = re.compile(r"[0-9.]{1,64}")
_BLANKS: Final = b" \0"  # padding
_BYTE: Final = 8  # bits
_US_BYTES: Final = 2

# The templates of files that were walked, by bytes of the file and of its head; the latest few.
_templates: Final[dict[tuple[int, int], list[HeaderTemplate]]] = {}
_MAX_SIZES: Final = 64
_MAX_ALIKE: Final = 4
# Of a header; they are kept, of as many templates.
_MAX_LOOKED_AT: Final = 1024
_MAX_VALUE_BYTES: Final = 4096


def read_instance(file: BinaryIO, frame_number: int | None = None) -> Instance:
    """Return the attributes of one frame of a DICOM file and where its pixels lie.

    Parameters
    ----------
    file : binary file
        Seekable, positioned anywhere; best without a buffer of its own.
    frame_number : int, optional
        Counts from 1. Where it is None the file must have one frame.

    Raises
    ------
    ImageError
        Anything for which the frame cannot become a grayscale image.
    """
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        raise ImageError("image-unreadable", "is empty (0 bytes). Copy it again.")
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    if head[META_OFFSET - len(_MARK) : META_OFFSET] != _MARK:
        raise ImageError(
            "image-unreadable", 'is not DICOM (no "DICM" mark at byte 128). Copy it again.'
        )
    found = _scan(head, size)
    if found is None and len(head) < size <= _SCAN_LIMIT:
        found = _scan(head + file.read(), size)
    elements, syntax = found or _parse(file, size)
    return _instance(elements, syntax, frame_number)


def _scan(head: bytes, size: int) -> tuple[dict[int, Element], str] | None:
    """Return elements and transfer syntax of a file in a common encoding, the quick way."""
    alike = size, len(head)
    for template in _templates.get(alike, ()):
        if (elements := template.read(head)) is not None:
            return elements, _uid(elements, _TRANSFER_SYNTAX_UID)
    looked_at: list[slice] = []
    meta = scan_meta(head, META_OFFSET, looked_at)
    if meta is None:
        return None
    syntax = _uid(meta[0], _TRANSFER_SYNTAX_UID)
    if syntax not in {_EXPLICIT, _IMPLICIT}:
        return None
    found = scan(head, meta[1], size, _KEYWORDS, looked_at, implicit=syntax == _IMPLICIT)
    if found is None:
        return None
    name = meta[0][_TRANSFER_SYNTAX_UID]
    looked_at.append(slice(name.offset, name.offset + name.length))
    elements = {**found, _TRANSFER_SYNTAX_UID: name}  # a second one, in the data set, is nothing
    n_bytes = sum(len(element.value or b"") for element in elements.values())
    if len(looked_at) <= _MAX_LOOKED_AT and n_bytes <= _MAX_VALUE_BYTES:
        _remember(alike, HeaderTemplate(head, looked_at, elements))
    return elements, syntax


def _remember(alike: tuple[int, int], template: HeaderTemplate) -> None:
    """Keep a template among the latest; never by changing what another thread may be looking at."""
    if alike not in _templates and len(_templates) >= _MAX_SIZES:
        _templates.clear()
    _templates[alike] = [*_templates.get(alike, [])[1 - _MAX_ALIKE :], template]


def _parse(file: BinaryIO, size: int) -> tuple[dict[int, Element], str]:
    """Return elements and transfer syntax of any file, by pydicom."""
    file = io.BufferedReader(cast("io.RawIOBase", file)) if isinstance(file, io.RawIOBase) else file
    file.seek(META_OFFSET)
    meta = pydicom_scan.elements(file, size, _KEYWORDS, implicit=False, little=True, meta=True)
    syntax = _uid(meta, _TRANSFER_SYNTAX_UID)
    if not syntax:
        if file.tell() == size:
            raise pydicom_scan.truncated()
        raise ImageError("image-unreadable", "has no valid TransferSyntaxUID. Export it again.")
    if syntax not in _NATIVE:
        raise ImageError(
            "image-unsupported-encoding",
            f"transfer syntax {syntax}, expected uncompressed pixels. "
            "Decompress it (gdcmconv --raw, dcmdjpeg).",
        )
    if syntax == _DEFLATED:
        inflated = pydicom_scan.inflate(file.read())
        file, size = io.BytesIO(inflated), len(inflated)
    implicit, little = syntax == _IMPLICIT, syntax != _BIG_ENDIAN
    return pydicom_scan.elements(
        file, size, _KEYWORDS, implicit=implicit, little=little, meta=False
    ), syntax


def _instance(elements: dict[int, Element], syntax: str, frame_number: int | None) -> Instance:
    described = tuple((tag, elements[tag]) for tag in _PIXEL_TAGS if tag in elements)
    pixel_format, storage, n_frames = _pixels(described, syntax, frame_number is None)
    if frame_number is not None and not 1 <= frame_number <= n_frames:
        frames = f"frames 1 to {n_frames}" if n_frames > 1 else "one frame"
        raise ImageError("image-no-frame", f"has {frames}, but frame {frame_number} was asked for.")
    return Instance(
        pixel_format=pixel_format,
        storage=storage,
        transfer_syntax_uid=syntax,
        sop_instance_uid=_uid(elements, 0x00080018),
        series_instance_uid=_uid(elements, 0x0020000E),
        instance_number=_numbers(elements, 0x00200013, 1)[0],
        pixel_spacing=_numbers(elements, _PIXEL_SPACING, 2),
        image_position=_numbers(elements, 0x00200032, 3),
        image_orientation=_numbers(elements, 0x00200037, 6),
        slice_location=_numbers(elements, 0x00201041, 1)[0],
        trigger_time=_numbers(elements, 0x00181060, 1)[0],
        frame_number=frame_number or 1,
        number_of_frames=n_frames,
    )


@lru_cache
def _pixels(
    described: tuple[tuple[int, Element], ...], syntax: str, must_be_single: bool
) -> tuple[PixelFormat, NativePixels, int]:
    """Return what pixels mean, how they lie and how many frames there are, or say what is wrong.

    The images of a series agree in these elements; they are looked at once.
    """
    elements = dict(described)
    is_big_endian = syntax == _BIG_ENDIAN
    order: Literal["big", "little"] = "big" if is_big_endian else "little"
    pixel_data = _require_pixel_data(elements)
    is_inverted = _require_grayscale(elements, order)
    n_frames = _require_frames(elements)
    if must_be_single and n_frames != 1:
        raise ImageError(
            "image-multiframe", f"has {n_frames} frames, expected 1. Export single frames."
        )
    _require_no_modality_lut(elements)
    bits_allocated, bits_stored, is_signed = _require_pixel_cell(elements, order)
    rows, columns = (_required(elements, tag, order) for tag in (0x00280010, 0x00280011))
    slope = _rescale(elements, 0x00281053, default=1.0)
    if slope == 0:
        raise ImageError("image-unreadable", "RescaleSlope is 0. Export it again.")
    pixels = PixelFormat(
        rows=rows,
        columns=columns,
        bits_allocated=bits_allocated,
        bits_stored=bits_stored,
        is_signed=is_signed,
        is_inverted=is_inverted,
        rescale_slope=slope,
        rescale_intercept=_rescale(elements, 0x00281052, default=0.0),
    )
    values = modality_range(pixels)
    if max(-values.lowest, values.highest) > float(np.finfo(np.float32).max):
        raise ImageError("image-unreadable", "its rescaled values are beyond float32.")
    _require_length(pixels, n_frames, pixel_data.length)
    storage = NativePixels(
        offset=pixel_data.offset,
        is_big_endian=is_big_endian,
        is_word_swapped=is_big_endian and bits_allocated == _BYTE and pixel_data.vr == "OW",
        is_deflated=syntax == _DEFLATED,
    )
    return pixels, storage, n_frames


def _require_pixel_data(elements: dict[int, Element]) -> Element:
    if PIXEL_DATA not in elements:
        if _FLOAT_PIXELS & elements.keys():
            raise ImageError("image-unsupported-encoding", "has floating point pixels.")
        raise ImageError("image-no-pixels", "has no PixelData. Export it with its image.")
    return elements[PIXEL_DATA]


def _require_grayscale(elements: dict[int, Element], order: Literal["big", "little"]) -> bool:
    """Return whether low values are bright (MONOCHROME1)."""
    photometric = _text(elements, 0x00280004)
    samples = _unsigned(elements, 0x00280002, order)
    if photometric not in {"MONOCHROME1", "MONOCHROME2"} or samples not in {1, None}:
        shown = photometric if photometric in _COLOUR_MODELS else "unknown"
        raise ImageError(
            "image-not-grayscale",
            f"PhotometricInterpretation is {shown} with SamplesPerPixel {samples or 'unknown'}, "
            "expected MONOCHROME1 or MONOCHROME2 with 1.",
        )
    return photometric == "MONOCHROME1"


def _require_frames(elements: dict[int, Element]) -> int:
    """Return NumberOfFrames; 1 where it is missing or empty."""
    text = _text(elements, 0x00280008)
    if not text:
        return 1
    if not _INTEGER.fullmatch(text.encode()):
        raise ImageError("image-unreadable", "NumberOfFrames is not a number.")
    if int(text) < 1:
        raise ImageError("image-unreadable", f"NumberOfFrames is {int(text)}, expected 1.")
    return int(text)


def _require_no_modality_lut(elements: dict[int, Element]) -> None:
    """Check that no table stands in the place of slope and intercept (PS3.3 C.11.1)."""
    if _MODALITY_LUT in elements and elements[_MODALITY_LUT].length > 0:
        raise ImageError(
            "image-unsupported-encoding",
            "has a Modality LUT (ModalityLUTSequence), expected RescaleSlope and "
            "RescaleIntercept or neither. Export it with its LUT applied.",
        )


def _require_pixel_cell(
    elements: dict[int, Element], order: Literal["big", "little"]
) -> tuple[int, int, bool]:
    """Return BitsAllocated, BitsStored and whether pixels are signed."""
    allocated, stored, representation = (
        _required(elements, tag, order) for tag in (0x00280100, 0x00280101, 0x00280103)
    )
    high = _unsigned(elements, 0x00280102, order)
    if allocated not in {_BYTE, 2 * _BYTE} or high not in {stored - 1, None}:
        raise ImageError(
            "image-unsupported-encoding",
            f"BitsAllocated {allocated}, BitsStored {stored}, HighBit {high}; expected 8 or 16 "
            "bits allocated and HighBit one below BitsStored.",
        )
    if not 1 <= stored <= allocated or representation not in {0, 1}:
        raise ImageError(
            "image-unreadable",
            f"BitsStored {stored} of {allocated} with PixelRepresentation {representation} "
            "cannot be.",
        )
    return allocated, stored, representation == 1


def _require_length(pixels: PixelFormat, n_frames: int, length: int) -> None:
    """Check the length of PixelData; one byte of padding makes an odd length even."""
    expected = n_frames * pixels.n_bytes
    if expected == 0:
        raise ImageError("image-no-pixels", f"has {pixels.rows} x {pixels.columns} pixels.")
    if length in {expected, expected + expected % 2}:
        return
    code = "image-truncated" if length < expected else "image-unreadable"
    frames = f"{n_frames} frames of " if n_frames > 1 else ""
    raise ImageError(
        code,
        f"PixelData has {length} bytes, expected {expected} for {frames}{pixels.rows} x "
        f"{pixels.columns} pixels of {pixels.bits_allocated} bits. Export it again.",
    )


def _text(elements: dict[int, Element], tag: int) -> str:
    """Return a value as ASCII text without its padding; empty where there is none."""
    element = elements.get(tag)
    if element is None or element.value is None:
        return ""
    return element.value.strip(_BLANKS).decode("ascii", "replace")


def _uid(elements: dict[int, Element], tag: int) -> str:
    """Return a UID, or an empty string where it is missing or not one."""
    text = _text(elements, tag)
    return text if _UID.fullmatch(text) else ""


def _unsigned(
    elements: dict[int, Element], tag: int, order: Literal["big", "little"]
) -> int | None:
    """Return a value of VR US, or None where it is missing or empty."""
    element = elements.get(tag)
    if element is None or not element.value:
        return None
    if len(element.value) != _US_BYTES:
        raise ImageError("image-unreadable", f"{_KEYWORDS[tag]} is not one 16-bit number.")
    return int.from_bytes(element.value, order)


def _required(elements: dict[int, Element], tag: int, order: Literal["big", "little"]) -> int:
    value = _unsigned(elements, tag, order)
    if value is None:
        raise ImageError("image-unreadable", f"has no {_KEYWORDS[tag]}. Export it again.")
    return value


def _numbers(elements: dict[int, Element], tag: int, n_values: int) -> tuple[float, ...]:
    """Return the values of VR DS or IS; NaN where they are missing or not `n_values` numbers."""
    element = elements.get(tag)
    value = element.value or b"" if element else b""
    decimals = _decimals if len(value) <= _MAX_VALUE_BYTES else _decimals.__wrapped__
    return decimals(value, n_values)


@lru_cache(1024)  # most are the same for a whole series
def _decimals(value: bytes, n_values: int) -> tuple[float, ...]:
    parts = [part.strip(_BLANKS) for part in value.split(b"\\")]
    if len(parts) != n_values or not all(map(_DECIMAL.fullmatch, parts)):
        return (math.nan,) * n_values
    values = tuple(map(float, parts))
    return values if all(map(math.isfinite, values)) else (math.nan,) * n_values


def _rescale(elements: dict[int, Element], tag: int, default: float) -> float:
    """Return RescaleSlope or RescaleIntercept; each stands alone, and absent means identity."""
    if not _text(elements, tag):
        return default
    value = _numbers(elements, tag, 1)[0]
    if math.isnan(value):
        raise ImageError("image-unreadable", f"{_KEYWORDS[tag]} is not one number.")
    return value
