"""The bytes of PixelData → stored values → modality values."""

from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from etl.dicom import inflate
from etl.dicom.codecs import decode
from etl.dicom.pydicom_scan import truncated
from etl.model import Image, Instance, NativePixels, PixelFormat, ValueRange
from loader import format as file_format

Stored: TypeAlias = npt.NDArray[np.int16 | np.uint16]

_BYTE: Final = 8  # bits
_WORD_BYTES: Final = 2


def stored_values(data: bytes, instance: Instance) -> Stored:
    """Return the stored values of an instance's frame, as `read_frame` does."""
    return read_frame(data, instance).stored


class Frame(NamedTuple):
    """The stored values of one frame, shape (rows, columns), and what is suspicious in them."""

    stored: Stored
    warnings: tuple[tuple[str, str], ...]  # (code, message)


def read_frame(data: bytes, instance: Instance) -> Frame:
    """Return the stored values of an instance's frame: as its file has them, cut to BitsStored.

    Parameters
    ----------
    data : bytes
        The whole file.

    Returns
    -------
    Frame
        Its values have the type int8, uint8, int16 or uint16.

    Raises
    ------
    ImageError
        Encoded or deflated pixels cannot be decoded.

    References
    ----------
    DICOM PS3.5 8.1.1 (pixel cells) and annex D (bytes of 8-bit pixels in 16-bit words).
    """
    pixels, storage = instance.pixel_format, instance.storage
    if isinstance(storage, NativePixels):
        cells = _native_cells(data, pixels, storage, instance.frame_number)
    else:
        fragments = [data[offset : offset + length] for offset, length in storage.fragments]
        cells = decode(b"".join(fragments), storage.transfer_syntax_uid, pixels)
    warnings: tuple[tuple[str, str], ...] = ()
    if pixels.bits_allocated != pixels.bits_stored:
        lowest, highest = stored_range(pixels)
        if cells.min() < lowest or cells.max() > highest:
            cells, n_stray = _cut(cells, pixels)
            if n_stray:
                warnings = (("image-unused-bits", _stray_message(n_stray, pixels)),)
    return Frame(cells.reshape(pixels.rows, pixels.columns), warnings)


def _native_cells(
    data: bytes, pixels: PixelFormat, storage: NativePixels, frame_number: int
) -> Stored:
    """Return the pixel cells of one frame, all bits of them; shape (rows * columns,)."""
    n_pixels = pixels.rows * pixels.columns
    kind, n_bytes = ("i" if pixels.is_signed else "u"), pixels.bits_allocated // _BYTE
    skipped = (frame_number - 1) * pixels.n_bytes
    if storage.deflated_at is not None:
        end = storage.offset + skipped + pixels.n_bytes
        data = inflate.up_to(data[storage.deflated_at :], end)
        if len(data) < end:
            raise truncated()
    if storage.is_word_swapped:
        # A frame of an odd number of bytes ends, and the next begins, in the middle of a word.
        first, shift = divmod(skipped, _WORD_BYTES)
        n_words = -(-(shift + n_pixels) // _WORD_BYTES)
        words = np.frombuffer(data, ">u2", n_words, storage.offset + _WORD_BYTES * first)
        return words.astype("<u2").view(f"{kind}1")[shift : shift + n_pixels]
    order = ">" if storage.is_big_endian else "<"
    cells = np.frombuffer(data, f"{order}{kind}{n_bytes}", n_pixels, storage.offset + skipped)
    return cells.astype(f"{kind}{n_bytes}", copy=False)


def _cut(cells: Stored, pixels: PixelFormat) -> tuple[Stored, int]:
    """Return pixel cells cut to BitsStored, and how many have other bits set above.

    Above a signed value its sign may be repeated or not, and overlays may use some of the bits.
    """
    unused = pixels.bits_allocated - pixels.bits_stored
    # Up and down again: drops the bits above, and carries the sign where there is one.
    stored = np.right_shift(np.left_shift(cells, unused), unused)
    unsigned = np.dtype(f"u{cells.dtype.itemsize}")
    above = (1 << pixels.bits_allocated) - (1 << pixels.bits_stored) & ~pixels.overlay_bits
    found = cells.view(unsigned) & unsigned.type(above)
    is_stray = (found != 0) & (found != stored.view(unsigned) & unsigned.type(above))
    return stored, int(np.count_nonzero(is_stray))


def _stray_message(n_stray: int, pixels: PixelFormat) -> str:
    return (
        f"{n_stray} of its {pixels.rows * pixels.columns} pixels have bits set above BitsStored "
        f"({pixels.bits_stored}), which are neither sign nor overlay and are left out. Are its "
        "BitsStored and HighBit right?"
    )


def modality_values(stored: Stored, pixels: PixelFormat, dtype: npt.DTypeLike) -> Image:
    """Return stored values turned (MONOCHROME1) and rescaled, in the dtype of the file.

    It is `stored` itself, not a copy, where nothing is to be done.

    References
    ----------
    DICOM PS3.3 C.7.6.3.1.2 (photometric interpretation) and C.11.1.1.2 (modality LUT).
    """
    slope, intercept = pixels.rescale_slope, pixels.rescale_intercept
    if not pixels.is_inverted and (slope, intercept) == (1.0, 0.0):
        return stored.astype(dtype, copy=False)
    values = stored.astype(np.int64)
    if pixels.is_inverted:
        values = sum(stored_range(pixels)) - values
    if np.dtype(dtype).kind == "f":
        return (values * slope + intercept).astype(dtype)
    return (values * int(slope) + int(intercept)).astype(dtype)


def padding_range(pixels: PixelFormat) -> tuple[float, float] | None:
    """Return the lowest and highest modality value that is padding and not image, if any.

    References
    ----------
    DICOM PS3.3 C.7.5.1.1.2 (PixelPaddingValue and PixelPaddingRangeLimit: stored values, before
    they are turned and rescaled).
    """
    if pixels.padding is None:
        return None
    turned = [
        sum(stored_range(pixels)) - value if pixels.is_inverted else value
        for value in pixels.padding
    ]
    ends = [value * pixels.rescale_slope + pixels.rescale_intercept for value in turned]
    return min(ends), max(ends)


def stored_range(pixels: PixelFormat) -> tuple[int, int]:
    """Return the lowest and highest value that BitsStored and PixelRepresentation allow."""
    if pixels.is_signed:
        return -(1 << (pixels.bits_stored - 1)), (1 << (pixels.bits_stored - 1)) - 1
    return 0, (1 << pixels.bits_stored) - 1


def modality_range(pixels: PixelFormat) -> ValueRange:
    """Return the values possible after rescaling, from the header only."""
    slope, intercept = pixels.rescale_slope, pixels.rescale_intercept
    ends = [value * slope + intercept for value in stored_range(pixels)]
    return ValueRange(min(ends), max(ends), slope.is_integer() and intercept.is_integer())


def image_dtype(values: ValueRange) -> str:
    """Return the dtype that holds a range of values: of the whole file, for all its images.

    The first of int16, uint16, int32 that has the range; float32 where a slope or intercept is not
    a whole number, or where none of the integers is wide enough.
    """
    for dtype in file_format.IMAGE_DTYPES:
        if np.dtype(dtype).kind != "f" and values.is_whole:
            limits = np.iinfo(dtype)
            if limits.min <= values.lowest and values.highest <= limits.max:
                return dtype
    return "<f4"
