"""One DICOM file → the attributes of a frame and the place of its pixels.

`header` finds the data elements; this module decides what they mean, strictly.
"""

import math
import os
import threading
from collections.abc import Hashable
from functools import lru_cache
from typing import BinaryIO, Final, NamedTuple

import numpy as np

from etl.dicom import inflate
from etl.dicom.codecs import CODECS, read_codestream, require_codestream
from etl.dicom.elements import (
    BITS_ALLOCATED,
    BITS_STORED,
    COLUMNS,
    DIMENSION_INDICES,
    DOUBLE_PIXELS,
    FLOAT_PIXELS,
    FRAME_TIME,
    FRAME_TIME_VECTOR,
    HIGH_BIT,
    IMAGE_ORIENTATION,
    IMAGE_POSITION,
    IN_STACK_POSITION,
    INSTANCE_NUMBER,
    KEYWORDS,
    LOSSY,
    MODALITY_LUT,
    NUMBER_OF_FRAMES,
    OVERLAYS,
    PHOTOMETRIC,
    PIXEL_PADDING,
    PIXEL_PADDING_LIMIT,
    PIXEL_REPRESENTATION,
    PIXEL_SPACING,
    RESCALE_INTERCEPT,
    RESCALE_SLOPE,
    ROWS,
    SAMPLES_PER_PIXEL,
    SERIES_INSTANCE_UID,
    SLICE_LOCATION,
    SOP_INSTANCE_UID,
    STACK_ID,
    TEMPORAL_POSITION,
    TEMPORAL_POSITION_INDEX,
    TRIGGER_DELAY,
    TRIGGER_TIME,
    Values,
)
from etl.dicom.encapsulated import Fragments, find_frames
from etl.dicom.header import BIG_ENDIAN, NATIVE, Header, read_header, read_value
from etl.dicom.identity import identity
from etl.dicom.kept_tags import KeptTag, kept_values, more_tags
from etl.dicom.meaning import MEANING_TAGS, Mappings, unapplied, unit_of
from etl.dicom.pixels import image_dtype, modality_range, stored_range
from etl.dicom.quick_scan import PIXEL_DATA, Element
from etl.errors import ImageError, beyond, changed_limits, most
from etl.model import EncapsulatedPixels, Instance, NativePixels, PixelFormat, ValueRange

_COLOUR_MODELS: Final = frozenset(
    {"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422"}
)
# What the format of the pixels follows from; equal for most images of a series.
_PIXEL_TAGS: Final = frozenset(
    {
        SAMPLES_PER_PIXEL,
        PHOTOMETRIC,
        NUMBER_OF_FRAMES,
        ROWS,
        COLUMNS,
        BITS_ALLOCATED,
        BITS_STORED,
        HIGH_BIT,
        PIXEL_REPRESENTATION,
        PIXEL_PADDING,
        PIXEL_PADDING_LIMIT,
        RESCALE_INTERCEPT,
        RESCALE_SLOPE,
        MODALITY_LUT,
        FLOAT_PIXELS,
        DOUBLE_PIXELS,
        PIXEL_DATA,
        *(tag for tags in OVERLAYS for tag in tags),
    }
)
_BYTE: Final = 8  # bits
_MAX_DIGITS: Final = 12  # of NumberOfFrames, which is VR IS
_CODESTREAM_BYTES: Final = 4096  # of an encoded frame; the headers of most are shorter

_Warnings = tuple[tuple[str, str], ...]


class _Opened(NamedTuple):
    """The header of a file, and the fragments of its frames where they are encapsulated."""

    header: Header
    frames: list[Fragments]


# The latest files of several frames, by the caller's stamp.
_opened: Final[dict[Hashable, _Opened]] = {}
_opened_lock: Final = threading.Lock()
_MAX_OPENED: Final = 4


def read_instance(
    file: BinaryIO,
    frame_number: int | None = None,
    stamp: Hashable = None,
    kept: tuple[KeptTag, ...] = (),
) -> Instance:
    """Return the attributes of one frame of a DICOM file and the place of its pixels.

    Parameters
    ----------
    file : binary file
        Seekable, positioned anywhere; best without a buffer of its own.
    frame_number : int, optional
        Counts from 1. Where it is None the file must have one frame.
    stamp : hashable, optional
        Tells this state of the file from all others. Then the header of a file of several frames is
        kept for a while, so that it is parsed once and not for each frame.
    kept : tuple of KeptTag
        Further attributes whose values the instance gets.

    Raises
    ------
    ImageError
        Anything for which the frame cannot become a grayscale image.
    """
    key = stamp, kept, changed_limits()
    known = _opened.get(key) if stamp is not None else None
    opened = known or _open(file, more_tags(kept) if kept else ())
    instance, pixels_end = _instance(file, opened, frame_number, kept)
    if known is None:
        if opened.header.deflated_at is not None:
            file.seek(opened.header.deflated_at)
            inflate.require_whole(file.read(), pixels_end)
        if stamp is not None and instance.number_of_frames > 1:
            _keep(key, opened)
    return instance


def _open(file: BinaryIO, more: tuple[int, ...]) -> _Opened:
    header = read_header(file, more)
    frames: list[Fragments] = []
    if header.syntax in CODECS and PIXEL_DATA in header.elements:
        n_frames = _require_frames(Values(header.elements, is_big_endian=False))
        size = file.seek(0, os.SEEK_END)
        frames = find_frames(file, header.elements[PIXEL_DATA].offset, size, n_frames)
    return _Opened(header, frames)


def _keep(stamp: Hashable, opened: _Opened) -> None:
    with _opened_lock:
        _opened[stamp] = opened
        while len(_opened) > _MAX_OPENED:
            del _opened[next(iter(_opened))]


def _instance(
    file: BinaryIO, opened: _Opened, frame_number: int | None, kept: tuple[KeptTag, ...]
) -> tuple[Instance, int]:
    """Return the instance, and where the pixels of all frames end."""
    (elements, syntax, groups, deflated_at, *_), frames = opened
    number = 1 if frame_number is None else frame_number
    if groups is not None and groups.has_frame(number):
        elements = {**elements, **groups.of_frame(number)}
        for tag in (RESCALE_SLOPE, RESCALE_INTERCEPT):
            if groups.is_lost(tag, elements):
                raise ImageError(
                    "image-unreadable",
                    f"frame {number} has no {KEYWORDS[tag]}, which other frames have. Export it "
                    "again.",
                )
    described = tuple([one for one in elements.items() if one[0] in _PIXEL_TAGS])
    pixels = _pixels(described, syntax, deflated_at, frame_number is None)
    n_frames = pixels.n_frames
    if not 1 <= number <= n_frames:
        found = f"frames 1 to {n_frames}" if n_frames > 1 else "one frame"
        raise ImageError("image-no-frame", f"has {found}, but frame {number} was asked for.")
    if groups is not None and len(groups.per_frame) not in {0, n_frames}:
        raise ImageError(
            "image-unreadable",
            f"has {n_frames} frames, but functional groups for {len(groups.per_frame)}. "
            "Export it again.",
        )
    values = Values(elements, is_big_endian=syntax == BIG_ENDIAN)
    instance = Instance(
        pixel_format=pixels.format,
        storage=pixels.storage or _encapsulated(file, frames[number - 1], syntax, pixels.format),
        transfer_syntax_uid=syntax,
        sop_instance_uid=values.uid(SOP_INSTANCE_UID),
        series_instance_uid=values.uid(SERIES_INSTANCE_UID),
        instance_number=values.number(INSTANCE_NUMBER),
        pixel_spacing=_spacing(values),
        image_position=values.numbers(IMAGE_POSITION, 3),
        image_orientation=values.numbers(IMAGE_ORIENTATION, 6),
        slice_location=values.number(SLICE_LOCATION),
        trigger_time=values.number(TRIGGER_TIME),
        frame_number=number,
        number_of_frames=n_frames,
        identity=identity(elements),
    )
    if groups is not None or n_frames > 1 or TEMPORAL_POSITION in elements:
        instance = _with_frame_content(instance, values)
    if kept:
        of_tags, remarks = kept_values(elements, kept, is_big_endian=syntax == BIG_ENDIAN)
        instance = instance._replace(kept=of_tags)
        values.remarks += remarks
    if warnings := _warnings(opened.header, pixels, values):
        instance = instance._replace(warnings=warnings)
    mappings = (groups.mappings_of(number) if groups is not None else ()) or opened.header.mappings
    if mappings or not MEANING_TAGS.isdisjoint(elements):
        instance = _with_meaning(instance, values, mappings)
    return instance, pixels.end


def _with_meaning(instance: Instance, values: Values, mappings: Mappings) -> Instance:
    """Return an instance with the unit of its values, and a remark on other values they map to."""
    rescale = instance.pixel_format.rescale_slope, instance.pixel_format.rescale_intercept
    instance = instance._replace(unit=unit_of(values, mappings, rescale))
    if remark := unapplied(mappings, rescale):
        warnings = (*instance.warnings, ("real-world-values", remark))
        instance = instance._replace(warnings=warnings)
    return instance


def _spacing(values: Values) -> tuple[float, ...]:
    """Return PixelSpacing; NaN where it is none, as 0 or less is."""
    spacing = values.numbers(PIXEL_SPACING, 2)
    if min(spacing) <= 0:  # not so for NaN
        values.remarks.append("PixelSpacing is not above 0 and is left out")
        return (math.nan, math.nan)
    return spacing


def _encapsulated(
    file: BinaryIO, fragments: Fragments, syntax: str, pixels: PixelFormat
) -> EncapsulatedPixels:
    """Return the place of a frame's encoded pixels, which must be the image of the header."""
    first = fragments[0]
    file.seek(first.offset)
    head = file.read(min(first.length, _CODESTREAM_BYTES))
    if read_codestream(head) is None and sum(part.length for part in fragments) > len(head):
        head = b"".join(read_value(file, Element("", None, *part)) for part in fragments)
    require_codestream(head, syntax, pixels)
    return EncapsulatedPixels(syntax, tuple((part.offset, part.length) for part in fragments))


def _with_frame_content(instance: Instance, values: Values) -> Instance:
    """Return an instance with the place of its frame among others, in space and time."""
    delay = values.double(TRIGGER_DELAY)
    if not math.isfinite(delay):
        delay = instance.trigger_time + _elapsed(values, instance.frame_number)
    temporal = values.longs(TEMPORAL_POSITION_INDEX)
    return instance._replace(
        trigger_time=delay,
        dimension_indices=values.longs(DIMENSION_INDICES),
        stack_id=values.text(STACK_ID),
        in_stack_position=float((*values.longs(IN_STACK_POSITION), math.nan)[0]),
        temporal_position=float(temporal[0]) if temporal else values.number(TEMPORAL_POSITION),
    )


def _elapsed(values: Values, frame_number: int) -> float:
    """Return the time from the first frame of a cine to another, ms (PS3.3 C.7.6.5); 0 if unknown.

    FrameTimeVector has the time from each frame to the one before, FrameTime one time for all.
    """
    n_times = values.text(FRAME_TIME_VECTOR).count("\\") + 1
    steps = values.numbers(FRAME_TIME_VECTOR, n_times)
    if frame_number <= n_times and not math.isnan(steps[0]):
        return sum(steps[:frame_number])
    step = values.number(FRAME_TIME)
    return 0.0 if math.isnan(step) else (frame_number - 1) * step


def _warnings(header: Header, pixels: "_Pixels", values: Values) -> _Warnings:
    """Return (code, message) of what is worth knowing of a file that can be used."""
    wrapper = header.remarks + pixels.wrapper_remarks
    remarks = (*pixels.remarks, *values.remarks)
    lossy = ""
    if header.syntax in CODECS and CODECS[header.syntax].has_loss:
        lossy = f"its pixels are encoded as {CODECS[header.syntax].name}."
    elif LOSSY in header.elements and values.text(LOSSY) == "01":
        lossy = "its pixels were compressed with loss (LossyImageCompression)."
    warnings = []
    if wrapper:
        warnings.append(("image-file-damaged", f"{_listed(wrapper)}. Its pixels are whole."))
    if remarks:
        warnings.append(("image-header-invalid", f"its {_listed(remarks)}. Export it again."))
    if lossy:
        warnings.append(("image-lossy", lossy))
    return tuple(warnings)


def _listed(remarks: tuple[str, ...]) -> str:
    return "; ".join(dict.fromkeys(remarks))


class _Pixels(NamedTuple):
    """The pixels of a file: meaning, storage, and remarks."""

    format: PixelFormat
    storage: NativePixels | None  # None where they are encapsulated, frame by frame
    n_frames: int
    end: int  # of native pixels, in the file or the inflated data set
    remarks: tuple[str, ...]  # about values of the header
    wrapper_remarks: tuple[str, ...]


@lru_cache
def _pixels(
    described: tuple[tuple[int, Element], ...],
    syntax: str,
    deflated_at: int | None,
    must_be_single: bool,
) -> _Pixels:
    """Return what follows of the pixels from these elements, or say why they are of no use.

    The images of a series agree in these elements; they are looked at once.
    """
    elements = dict(described)
    is_big_endian = syntax == BIG_ENDIAN
    values = Values(elements, is_big_endian=is_big_endian)
    pixel_data = _require_pixel_data(elements)
    is_inverted = _require_grayscale(values)
    n_frames = _require_frames(values)
    if must_be_single and n_frames != 1:
        raise ImageError(
            "image-multiframe",
            f"has {n_frames} frames, expected 1. Name the frame, or export single frames.",
        )
    _require_no_modality_lut(elements)
    bits_allocated, bits_stored, is_signed = _require_pixel_cell(values)
    rows, columns = values.required(ROWS), values.required(COLUMNS)
    slope = _rescale(values, RESCALE_SLOPE, default=1.0)
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
        rescale_intercept=_rescale(values, RESCALE_INTERCEPT, default=0.0),
        overlay_bits=_overlay_bits(values, bits_stored),
    )
    pixels = pixels._replace(padding=_padding(values, pixels))
    span = modality_range(pixels)
    if max(-span.lowest, span.highest) > float(np.finfo(np.float32).max):
        raise ImageError("image-unreadable", "its rescaled values are beyond float32.")
    _require_steps(slope, span)
    if pixels.n_bytes == 0:
        raise ImageError("image-no-pixels", f"has {rows} x {columns} pixels.")
    storage = None
    wrapper_remarks: tuple[str, ...] = ()
    if syntax in NATIVE:
        wrapper_remarks = _require_length(pixels, n_frames, pixel_data.length)
        storage = NativePixels(
            offset=pixel_data.offset,
            is_big_endian=is_big_endian,
            is_word_swapped=is_big_endian and bits_allocated == _BYTE and pixel_data.vr == "OW",
            deflated_at=deflated_at,
        )
    end = pixel_data.offset + n_frames * pixels.n_bytes
    return _Pixels(pixels, storage, n_frames, end, tuple(values.remarks), wrapper_remarks)


def _require_steps(slope: float, span: ValueRange) -> None:
    """Require that values which differ are told apart where they become float32."""
    largest = np.float32(max(-span.lowest, span.highest))
    if np.dtype(image_dtype(span)).kind == "f" and float(np.spacing(largest)) > abs(slope):
        raise ImageError(
            "image-unreadable",
            f"its values are up to {largest:.3g} in steps of {abs(slope):g} (RescaleSlope), which "
            "float32 does not tell apart. Export it again.",
        )


def _overlay_bits(values: Values, bits_stored: int) -> int:
    """Return the bits above BitsStored that hold overlays, as files did before 2004."""
    bits = 0
    for allocated, position in OVERLAYS:
        if (values.unsigned(allocated) or 0) > 1:  # with one bit allocated it is in OverlayData
            bit = values.unsigned(position)
            if bit is not None and bit >= bits_stored:
                bits |= 1 << bit
    return bits


def _padding(values: Values, pixels: PixelFormat) -> tuple[int, int] | None:
    """Return the range of stored values that are padding, if any (PS3.3 C.7.5.1.1.2)."""
    ends = [
        values.pixel_value(tag, is_signed=pixels.is_signed)
        for tag in (PIXEL_PADDING, PIXEL_PADDING_LIMIT)
    ]
    known = [end for end in ends if end is not None]
    if ends[0] is None:
        return None
    lowest, highest = stored_range(pixels)
    if min(known) < lowest or max(known) > highest:
        values.remarks.append("PixelPaddingValue is no value of BitsStored and is left out")
        return None
    return min(known), max(known)


def _require_pixel_data(elements: dict[int, Element]) -> Element:
    if PIXEL_DATA not in elements:
        if {FLOAT_PIXELS, DOUBLE_PIXELS} & elements.keys():
            raise ImageError("image-unsupported-encoding", "has floating point pixels.")
        raise ImageError("image-no-pixels", "has no PixelData. Export it with its image.")
    return elements[PIXEL_DATA]


def _require_grayscale(values: Values) -> bool:
    """Return whether low values are bright (MONOCHROME1)."""
    photometric = values.text(PHOTOMETRIC)
    samples = values.unsigned(SAMPLES_PER_PIXEL)
    if photometric not in {"MONOCHROME1", "MONOCHROME2"} or samples not in {1, None}:
        shown = photometric if photometric in _COLOUR_MODELS else "unknown"
        raise ImageError(
            "image-not-grayscale",
            f"PhotometricInterpretation is {shown} with SamplesPerPixel {samples or 'unknown'}, "
            "expected MONOCHROME1 or MONOCHROME2 with 1.",
        )
    return photometric == "MONOCHROME1"


def _require_frames(values: Values) -> int:
    """Return NumberOfFrames; 1 where it is missing or empty."""
    text = values.text(NUMBER_OF_FRAMES)
    if not text:
        return 1
    digits = text.removeprefix("-").removeprefix("+")
    if not (digits.isascii() and digits.isdigit()) or len(digits) > _MAX_DIGITS:
        raise ImageError("image-unreadable", "NumberOfFrames is not a number.")
    if int(text) < 1:
        raise ImageError("image-unreadable", f"NumberOfFrames is {int(text)}, expected 1.")
    if int(text) > most("frames"):
        raise ImageError("image-unreadable", beyond("frames", int(text)))
    return int(text)


def _require_no_modality_lut(elements: dict[int, Element]) -> None:
    """Check that no table stands in the place of slope and intercept (PS3.3 C.11.1)."""
    if MODALITY_LUT in elements and elements[MODALITY_LUT].length > 0:
        raise ImageError(
            "image-unsupported-encoding",
            "has a Modality LUT (ModalityLUTSequence), expected RescaleSlope and "
            "RescaleIntercept or neither. Export it with its LUT applied.",
        )


def _require_pixel_cell(values: Values) -> tuple[int, int, bool]:
    """Return BitsAllocated, BitsStored and whether pixels are signed."""
    allocated, stored, representation = (
        values.required(tag) for tag in (BITS_ALLOCATED, BITS_STORED, PIXEL_REPRESENTATION)
    )
    high = values.unsigned(HIGH_BIT)
    if allocated not in {_BYTE, 2 * _BYTE} or high not in {stored - 1, None}:
        raise ImageError(
            "image-unsupported-encoding",
            f"BitsAllocated {allocated}, BitsStored {stored}, HighBit {high}; expected 8 or 16 "
            "bits allocated and HighBit one below BitsStored. Export it again.",
        )
    if not 1 <= stored <= allocated or representation not in {0, 1}:
        raise ImageError(
            "image-unreadable",
            f"BitsStored {stored} of {allocated} with PixelRepresentation {representation} "
            "cannot be.",
        )
    return allocated, stored, representation == 1


def _require_length(pixels: PixelFormat, n_frames: int, length: int) -> tuple[str, ...]:
    """Check the length of PixelData; return a remark where it has a little more than pixels.

    One byte of padding makes an odd length even. With a row or a column less or a frame more than
    the header says, the surplus would be larger than what is accepted here.
    """
    expected = n_frames * pixels.n_bytes
    if length in {expected, expected + expected % 2}:
        return ()
    surplus = length - expected
    if 0 < surplus < min(pixels.rows, pixels.columns) * (pixels.bits_allocated // _BYTE):
        return (f"its PixelData has {surplus} bytes behind the pixels",)
    code = "image-truncated" if length < expected else "image-unreadable"
    frames = f"{n_frames} frames of " if n_frames > 1 else ""
    raise ImageError(
        code,
        f"PixelData has {length} bytes, expected {expected} for {frames}{pixels.rows} x "
        f"{pixels.columns} pixels of {pixels.bits_allocated} bits. Export it again.",
    )


def _rescale(values: Values, tag: int, default: float) -> float:
    """Return RescaleSlope or RescaleIntercept; each counts by itself, and absent means identity."""
    if not values.text(tag):
        return default
    value = values.number(tag)
    if math.isnan(value):
        raise ImageError("image-unreadable", f"{KEYWORDS[tag]} is not one number.")
    return value
