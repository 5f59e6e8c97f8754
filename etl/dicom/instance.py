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
import threading
from collections.abc import Hashable
from functools import lru_cache
from typing import BinaryIO, Final, Literal, NamedTuple, cast

import numpy as np

from etl.dicom import pydicom_scan
from etl.dicom.codecs import CODECS, read_codestream, require_codestream, require_decoder
from etl.dicom.encapsulated import Fragments, find_frames
from etl.dicom.frames import PER_FRAME_GROUPS, SHARED_GROUPS, FunctionalGroups, read_groups
from etl.dicom.pixels import modality_range
from etl.dicom.quick_scan import (
    META_OFFSET,
    PIXEL_DATA,
    UNDEFINED,
    Element,
    HeaderTemplate,
    scan,
    scan_meta,
)
from etl.errors import ImageError
from etl.model import EncapsulatedPixels, Instance, NativePixels, PixelFormat

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
_TRIGGER_TIME: Final = 0x00181060
_FRAME_TIME: Final = 0x00181063
_FRAME_TIME_VECTOR: Final = 0x00181065
_TEMPORAL_POSITION: Final = 0x00200100
_PIXEL_SPACING: Final = 0x00280030
_LOSSY: Final = 0x00282110
_IMAGE_GROUP: Final = 0x0028
_MODALITY_LUT: Final = 0x00283000
_FLOAT_PIXELS: Final = frozenset({0x7FE00008, 0x7FE00009})
_KEYWORDS: Final = {
    _TRANSFER_SYNTAX_UID: "TransferSyntaxUID",
    0x00080018: "SOPInstanceUID",
    _TRIGGER_TIME: "TriggerTime",
    _FRAME_TIME: "FrameTime",
    _FRAME_TIME_VECTOR: "FrameTimeVector",
    0x0020000E: "SeriesInstanceUID",
    0x00200013: "InstanceNumber",
    0x00200032: "ImagePositionPatient",
    0x00200037: "ImageOrientationPatient",
    _TEMPORAL_POSITION: "TemporalPositionIdentifier",
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
    _LOSSY: "LossyImageCompression",
    _MODALITY_LUT: "ModalityLUTSequence",
    SHARED_GROUPS: "SharedFunctionalGroupsSequence",
    PER_FRAME_GROUPS: "PerFrameFunctionalGroupsSequence",
    0x7FE00008: "FloatPixelData",
    0x7FE00009: "DoubleFloatPixelData",
    PIXEL_DATA: "PixelData",
}

_PIXEL_TAGS: Final = [
    tag
    for tag in _KEYWORDS
    if tag >> 16 >= _IMAGE_GROUP
    and tag not in {_PIXEL_SPACING, _LOSSY, SHARED_GROUPS, PER_FRAME_GROUPS}
]

# PS3.5 table 6.2-1: DS and IS, with the padding that files have (blanks, NUL).
_DECIMAL: Final = re.compile(rb"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_INTEGER: Final = re.compile(rb"[+-]?[0-9]{1,12}")
_UID: Final = re.compile(r"[0-9.]{1,64}")
_BLANKS: Final = b" \0"  # padding
_MAX_UID_BYTES: Final = 1024  # with its padding
_BYTE: Final = 8  # bits
_US_BYTES: Final = 2
_UL_BYTES: Final = 4
_FD_BYTES: Final = 8
_CODESTREAM_BYTES: Final = 4096  # of an encoded frame; the headers of most are shorter

# The templates of files that were walked, by bytes of the file and of its head; the latest few.
_templates: Final[dict[tuple[int, int], list[HeaderTemplate]]] = {}
_MAX_SIZES: Final = 64
_MAX_ALIKE: Final = 4
# Of a header; they are kept, of as many templates.
_MAX_LOOKED_AT: Final = 1024
_MAX_VALUE_BYTES: Final = 4096


class _Header(NamedTuple):
    """What a file has beside its pixels, for all its frames."""

    elements: dict[int, Element]
    syntax: str
    groups: FunctionalGroups | None
    frames: list[Fragments] | None  # where the pixels are encapsulated


# The headers of the latest files of several frames, by the caller's stamp of the file.
_headers: Final[dict[Hashable, _Header]] = {}
_headers_lock: Final = threading.Lock()
_MAX_HEADERS: Final = 4


def read_instance(
    file: BinaryIO, frame_number: int | None = None, stamp: Hashable = None
) -> Instance:
    """Return the attributes of one frame of a DICOM file and where its pixels lie.

    Parameters
    ----------
    file : binary file
        Seekable, positioned anywhere; best without a buffer of its own.
    frame_number : int, optional
        Counts from 1. Where it is None the file must have one frame.
    stamp : hashable, optional
        Tells this state of the file from all others. Then the header of a file of several frames is
        kept for a while, so that it is parsed once and not for each frame.

    Raises
    ------
    ImageError
        Anything for which the frame cannot become a grayscale image.
    """
    header = _headers.get(stamp) if stamp is not None else None
    if header is None:
        header = _read_header(file)
        if stamp is not None and (header.groups or len(header.frames or ()) > 1):
            _keep(stamp, header)
    return _instance(file, header, frame_number)


def _keep(stamp: Hashable, header: _Header) -> None:
    with _headers_lock:
        _headers[stamp] = header
        while len(_headers) > _MAX_HEADERS:
            del _headers[next(iter(_headers))]


def _read_header(file: BinaryIO) -> _Header:
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
    elements, syntax = found or (None, "")
    source = file
    if elements is None:
        elements, syntax, source = _parse(file, size)
    groups = None
    if SHARED_GROUPS in elements or PER_FRAME_GROUPS in elements:
        shared, per_frame = (
            _value(source, elements.get(tag)) for tag in (SHARED_GROUPS, PER_FRAME_GROUPS)
        )
        implicit, little = syntax == _IMPLICIT, syntax != _BIG_ENDIAN
        groups = read_groups(shared, per_frame, implicit=implicit, little=little)
    frames = None
    if syntax not in _NATIVE and PIXEL_DATA in elements:
        if elements[PIXEL_DATA].length != UNDEFINED:
            raise ImageError(
                "image-unreadable",
                f"its transfer syntax is {CODECS[syntax].name}, but its PixelData is not "
                "encapsulated. Export it again.",
            )
        n_frames = _require_frames(elements)
        frames = find_frames(file, elements[PIXEL_DATA].offset, size, n_frames)
    return _Header(elements, syntax, groups, frames)


def _value(source: BinaryIO, element: Element | None) -> bytes:
    """Return the value of an element, whether or not it was kept; empty where there is none."""
    if element is None:
        return b""
    if element.value is not None:
        return element.value
    source.seek(element.offset)
    return source.read(element.length)


def _scan(head: bytes, size: int) -> tuple[dict[int, Element], str] | None:
    """Return elements and transfer syntax of a file in a common encoding, the quick way."""
    alike = size, len(head)
    for template in reversed(_templates.get(alike, ())):  # the files of a series come together
        if (elements := template.read(head)) is not None:
            return elements, _uid(elements, _TRANSFER_SYNTAX_UID)
    looked_at: list[slice] = []
    meta = scan_meta(head, META_OFFSET, looked_at)
    if meta is None:
        return None
    syntax = _uid(meta[0], _TRANSFER_SYNTAX_UID)
    is_encapsulated = syntax in CODECS
    if syntax not in {_EXPLICIT, _IMPLICIT} and not is_encapsulated:
        return None
    if is_encapsulated:
        require_decoder(syntax)
    found = scan(
        head,
        meta[1],
        size,
        _KEYWORDS,
        looked_at,
        implicit=syntax == _IMPLICIT,
        encapsulated=is_encapsulated,
    )
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


def _parse(file: BinaryIO, size: int) -> tuple[dict[int, Element], str, BinaryIO]:
    """Return elements and transfer syntax of any file, by pydicom, and where the elements lie."""
    file = io.BufferedReader(cast("io.RawIOBase", file)) if isinstance(file, io.RawIOBase) else file
    file.seek(META_OFFSET)
    meta = pydicom_scan.elements(file, size, _KEYWORDS, implicit=False, little=True, meta=True)
    syntax = _uid(meta, _TRANSFER_SYNTAX_UID)
    if not syntax:
        if file.tell() == size:
            raise pydicom_scan.truncated()
        raise ImageError("image-unreadable", "has no valid TransferSyntaxUID. Export it again.")
    if syntax not in _NATIVE:
        require_decoder(syntax)
    if syntax == _DEFLATED:
        inflated = pydicom_scan.inflate(file.read())
        file, size = io.BytesIO(inflated), len(inflated)
    implicit, little = syntax == _IMPLICIT, syntax != _BIG_ENDIAN
    elements = pydicom_scan.elements(
        file,
        size,
        _KEYWORDS,
        implicit=implicit,
        little=little,
        meta=False,
        encapsulated=syntax not in _NATIVE,
    )
    return elements, syntax, file


def _instance(file: BinaryIO, header: _Header, frame_number: int | None) -> Instance:
    elements, syntax, groups, frames = header
    number = 1 if frame_number is None else frame_number
    if groups is not None and groups.has_frame(number):
        elements = elements | groups.of_frame(number)
    described = tuple((tag, elements[tag]) for tag in _PIXEL_TAGS if tag in elements)
    pixel_format, storage, n_frames = _pixels(described, syntax, frame_number is None)
    if not 1 <= number <= n_frames:
        found = f"frames 1 to {n_frames}" if n_frames > 1 else "one frame"
        raise ImageError("image-no-frame", f"has {found}, but frame {number} was asked for.")
    if groups is not None and len(groups.per_frame) not in {0, n_frames}:
        raise ImageError(
            "image-unreadable",
            f"has {n_frames} frames, but functional groups for {len(groups.per_frame)}. "
            "Export it again.",
        )
    instance = Instance(
        pixel_format=pixel_format,
        storage=storage or _encapsulated(file, frames or [], number, syntax, pixel_format),
        transfer_syntax_uid=syntax,
        sop_instance_uid=_uid(elements, 0x00080018),
        series_instance_uid=_uid(elements, 0x0020000E),
        instance_number=_numbers(elements, 0x00200013, 1)[0],
        pixel_spacing=_numbers(elements, _PIXEL_SPACING, 2),
        image_position=_numbers(elements, 0x00200032, 3),
        image_orientation=_numbers(elements, 0x00200037, 6),
        slice_location=_numbers(elements, 0x00201041, 1)[0],
        trigger_time=_numbers(elements, _TRIGGER_TIME, 1)[0],
        frame_number=number,
        number_of_frames=n_frames,
    )
    if groups is not None or n_frames > 1 or _TEMPORAL_POSITION in elements:
        instance = _with_frame_content(instance, elements, is_big=syntax == _BIG_ENDIAN)
    if _LOSSY in elements or storage is None:
        instance = instance._replace(warnings=_lossy(elements, syntax))
    return instance


def _encapsulated(
    file: BinaryIO, frames: list[Fragments], number: int, syntax: str, pixels: PixelFormat
) -> EncapsulatedPixels:
    """Return where the encoded pixels of a frame lie, which must be the image of the header."""
    fragments = frames[number - 1]
    first = fragments[0]
    file.seek(first.offset)
    head = file.read(min(first.length, _CODESTREAM_BYTES))
    if read_codestream(head) is None and sum(part.length for part in fragments) > len(head):
        head = b"".join(_value(file, Element("", None, *part)) for part in fragments)
    require_codestream(head, syntax, pixels)
    return EncapsulatedPixels(syntax, tuple((part.offset, part.length) for part in fragments))


def _with_frame_content(
    instance: Instance, elements: dict[int, Element], *, is_big: bool
) -> Instance:
    """Return an instance with the place of its frame among others, in space and time."""
    temporal = _longs(elements, 0x00209128, is_big)
    delay = elements.get(0x00209153)
    trigger_time = instance.trigger_time
    if delay is not None and len(delay.value or b"") == _FD_BYTES:
        trigger_time = float(np.frombuffer(delay.value or b"", ">f8" if is_big else "<f8")[0])
    else:
        trigger_time += _elapsed(elements, instance.frame_number)
    return instance._replace(
        trigger_time=trigger_time if math.isfinite(trigger_time) else math.nan,
        dimension_indices=_longs(elements, 0x00209157, is_big),
        stack_id=_text(elements, 0x00209056),
        in_stack_position=float((*_longs(elements, 0x00209057, is_big), math.nan)[0]),
        temporal_position=float(temporal[0])
        if temporal
        else _numbers(elements, _TEMPORAL_POSITION, 1)[0],
    )


def _elapsed(elements: dict[int, Element], frame_number: int) -> float:
    """Return the time from the first frame of a cine to another, ms (PS3.3 C.7.6.5); 0 if unknown.

    FrameTimeVector has the time from each frame to the one before, FrameTime one time for all.
    """
    text = _text(elements, _FRAME_TIME_VECTOR).encode()
    n_times = text.count(b"\\") + 1
    steps = _decimals.__wrapped__(text, n_times)
    if frame_number <= n_times and not math.isnan(steps[0]):
        return sum(steps[:frame_number])
    step = _numbers(elements, _FRAME_TIME, 1)[0]
    return 0.0 if math.isnan(step) else (frame_number - 1) * step


def _longs(elements: dict[int, Element], tag: int, is_big: bool) -> tuple[int, ...]:
    """Return the values of VR UL; empty where there is none."""
    value = elements[tag].value if tag in elements else None
    if not value or len(value) % _UL_BYTES:
        return ()
    return tuple(np.frombuffer(value, ">u4" if is_big else "<u4").tolist())


def _lossy(elements: dict[int, Element], syntax: str) -> tuple[tuple[str, str], ...]:
    """Return the finding on pixels that were compressed with loss, now or before."""
    if syntax in CODECS and CODECS[syntax].has_loss:
        return (("image-lossy", f"its pixels are encoded as {CODECS[syntax].name}."),)
    if _text(elements, _LOSSY) == "01":
        return (("image-lossy", "its pixels were compressed with loss (LossyImageCompression)."),)
    return ()


@lru_cache
def _pixels(
    described: tuple[tuple[int, Element], ...], syntax: str, must_be_single: bool
) -> tuple[PixelFormat, NativePixels | None, int]:
    """Return what pixels mean, how they lie and how many frames there are, or say what is wrong.

    Encapsulated pixels lie in fragments, frame by frame, and have None here.
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
    if pixels.n_bytes == 0:
        raise ImageError("image-no-pixels", f"has {rows} x {columns} pixels.")
    if syntax not in _NATIVE:
        return pixels, None, n_frames
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
    element = elements.get(tag)
    value = element.value if element else None
    if value is None or len(value) > _MAX_UID_BYTES:
        return ""
    return _uid_of(value)


@lru_cache(1024)  # but for SOPInstanceUID they are the same for a whole series
def _uid_of(value: bytes) -> str:
    text = value.strip(_BLANKS).decode("ascii", "replace")
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
