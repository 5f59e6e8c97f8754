"""The bytes of PixelData → stored values → modality values."""

from typing import Final

import numpy as np
import numpy.typing as npt

from etl.dicom.codecs import decode
from etl.dicom.pydicom_scan import inflated_data_set
from etl.model import Image, Instance, NativePixels, PixelFormat, ValueRange
from loader import format as file_format

_BYTE: Final = 8  # bits
_WORD_BYTES: Final = 2


def stored_values(data: bytes, instance: Instance) -> npt.NDArray[np.int16 | np.uint16]:
    """Return the stored values of an instance's frame: as they lie in its file, cut to BitsStored.

    Parameters
    ----------
    data : bytes
        The whole file.

    Returns
    -------
    int8, uint8, int16 or uint16 array, shape (rows, columns)

    Raises
    ------
    ImageError
        Encoded pixels cannot be decoded.

    References
    ----------
    DICOM PS3.5 8.1.1 (pixel cells) and annex D (bytes of 8-bit pixels in 16-bit words).
    """
    pixels = instance.pixel_format
    storage = instance.storage
    if isinstance(storage, NativePixels):
        stored = _native_cells(data, pixels, storage, instance.frame_number)
    else:
        fragments = [data[offset : offset + length] for offset, length in storage.fragments]
        stored = decode(b"".join(fragments), storage.transfer_syntax_uid, pixels)
    unused = pixels.bits_allocated - pixels.bits_stored
    if unused:
        # Up and down again: drops the bits above, and carries the sign where there is one.
        stored = np.right_shift(np.left_shift(stored, unused), unused)
    return stored.reshape(pixels.rows, pixels.columns)


def _native_cells(
    data: bytes, pixels: PixelFormat, storage: NativePixels, frame_number: int
) -> npt.NDArray[np.int16 | np.uint16]:
    """Return the pixel cells of one frame, all bits of them; shape (rows * columns,)."""
    if storage.is_deflated:
        data = inflated_data_set(data)
    n_pixels = pixels.rows * pixels.columns
    kind, n_bytes = ("i" if pixels.is_signed else "u"), pixels.bits_allocated // _BYTE
    skipped = (frame_number - 1) * pixels.n_bytes
    if storage.is_word_swapped:
        # A frame of an odd number of bytes ends, and the next begins, in the middle of a word.
        first, shift = divmod(skipped, _WORD_BYTES)
        n_words = -(-(shift + n_pixels) // _WORD_BYTES)
        words = np.frombuffer(data, ">u2", n_words, storage.offset + _WORD_BYTES * first)
        return words.astype("<u2").view(f"{kind}1")[shift : shift + n_pixels]
    order = ">" if storage.is_big_endian else "<"
    cells = np.frombuffer(data, f"{order}{kind}{n_bytes}", n_pixels, storage.offset + skipped)
    return cells.astype(f"{kind}{n_bytes}", copy=False)


def modality_values(
    stored: npt.NDArray[np.int16 | np.uint16], pixels: PixelFormat, dtype: npt.DTypeLike
) -> Image:
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


def stored_range(pixels: PixelFormat) -> tuple[int, int]:
    """Return the lowest and highest value that BitsStored and PixelRepresentation allow."""
    if pixels.is_signed:
        return -(1 << (pixels.bits_stored - 1)), (1 << (pixels.bits_stored - 1)) - 1
    return 0, (1 << pixels.bits_stored) - 1


def modality_range(pixels: PixelFormat) -> ValueRange:
    """Return the values possible after rescaling, from the header alone."""
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
