"""Encoded frames → pixel cells: which decoder reads which transfer syntax, and its use.

One decoder for each syntax, never the first that is found: decoders differ in the values of images
compressed with loss, and the same input gives the same file on every machine.
"""

import importlib
import struct
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from etl.dicom.decoder import SHARED, Request
from etl.errors import ImageError
from etl.model import PixelFormat

INSTALL: Final = "pip install 'dicom-etl[codecs]'"

_RLE: Final = "1.2.840.10008.1.2.5"
_UNCOMPRESSED: Final = "1.2.840.10008.1.2.1.98"
_BYTE: Final = 8  # bits
_RLE_HEADER: Final = struct.Struct("<16I")


class Codec(NamedTuple):
    """How one transfer syntax is decoded."""

    name: str
    plugin: str  # of pydicom; empty for what this module decodes
    modules: tuple[str, ...] = ()  # of the extra `codecs`
    has_loss: bool = False  # whether the syntax always loses


_OPENJPEG: Final = "pylibjpeg", ("pylibjpeg", "openjpeg")
_GDCM: Final = "gdcm", ("gdcm",)
_CHARLS: Final = "pyjpegls", ("jpeg_ls",)

CODECS: Final[dict[str, Codec]] = {
    _UNCOMPRESSED: Codec("encapsulated uncompressed", ""),
    _RLE: Codec("RLE", ""),
    "1.2.840.10008.1.2.4.50": Codec("JPEG baseline (8 bits, with loss)", "pillow", has_loss=True),
    "1.2.840.10008.1.2.4.51": Codec("JPEG extended (with loss)", "pillow", has_loss=True),
    "1.2.840.10008.1.2.4.57": Codec("JPEG lossless (process 14)", *_GDCM),
    "1.2.840.10008.1.2.4.70": Codec("JPEG lossless (process 14, first order)", *_GDCM),
    "1.2.840.10008.1.2.4.80": Codec("JPEG-LS lossless", *_CHARLS),
    "1.2.840.10008.1.2.4.81": Codec("JPEG-LS near-lossless", *_CHARLS, has_loss=True),
    "1.2.840.10008.1.2.4.90": Codec("JPEG 2000 lossless", *_OPENJPEG),
    "1.2.840.10008.1.2.4.91": Codec("JPEG 2000", *_OPENJPEG),
    "1.2.840.10008.1.2.4.201": Codec("High-Throughput JPEG 2000 lossless", *_OPENJPEG),
    "1.2.840.10008.1.2.4.202": Codec("High-Throughput JPEG 2000 RPCL lossless", *_OPENJPEG),
    "1.2.840.10008.1.2.4.203": Codec("High-Throughput JPEG 2000", *_OPENJPEG),
}


def require_decoder(syntax: str) -> None:
    """Check that frames of a transfer syntax can be decoded here.

    Raises
    ------
    ImageError
        No decoder reads it, or the one that does is not installed.
    """
    codec = CODECS.get(syntax)
    if codec is None:
        raise ImageError(
            "image-unsupported-encoding",
            f"its pixels are encoded as {_spelled(syntax)}, which is not read. "
            "Export it uncompressed.",
        )
    if not _is_installed(codec.modules):
        raise ImageError(
            "image-unsupported-encoding",
            f"its pixels are encoded as {codec.name}; the decoder is not installed. "
            f"Install it: {INSTALL}.",
        )


def _spelled(syntax: str) -> str:
    """Return the name of a transfer syntax, or its UID where it has none."""
    from pydicom import config
    from pydicom.uid import UID

    name = UID(syntax, validation_mode=config.IGNORE).name  # it would warn of a damaged one
    return name if name == syntax else f"{name} ({syntax})"


@lru_cache
def _is_installed(modules: tuple[str, ...]) -> bool:
    try:
        for name in modules:
            importlib.import_module(name)
    except ImportError:
        return False
    return True


def decode(frame: bytes, syntax: str, pixels: PixelFormat) -> npt.NDArray[np.int16 | np.uint16]:
    """Return the pixel cells of an encoded frame that `require_codestream` has accepted.

    Returns
    -------
    int8, uint8, int16 or uint16 array, shape (rows * columns,)

    Raises
    ------
    ImageError
        The decoder does not understand the frame.
    """
    codec = CODECS[syntax]
    dtype = f"<{'i' if pixels.is_signed else 'u'}{pixels.bits_allocated // _BYTE}"
    n_pixels = pixels.rows * pixels.columns
    try:
        if syntax == _UNCOMPRESSED:
            return np.frombuffer(frame, dtype, n_pixels)
        if syntax == _RLE:
            return np.frombuffer(_rle_cells(frame, pixels), dtype)
        request = Request(
            frame,
            syntax,
            codec.plugin,
            pixels.rows,
            pixels.columns,
            pixels.bits_allocated,
            pixels.bits_stored,
            pixels.is_signed,
        )
        return np.frombuffer(SHARED.decode(request), dtype, n_pixels)
    except ImageError as error:
        raise ImageError(error.code, f"its {codec.name} frame {error.message}") from error
    except (ValueError, IndexError, struct.error) as error:
        raise ImageError(
            "image-unreadable", f"its {codec.name} frame cannot be decoded. Export it again."
        ) from error


def _rle_cells(frame: bytes, pixels: PixelFormat) -> bytearray:
    """Return the pixel cells of an RLE frame, little-endian (PS3.5 annex G)."""
    n_segments = pixels.bits_allocated // _BYTE
    n_pixels = pixels.rows * pixels.columns
    starts = _RLE_HEADER.unpack_from(frame)[1 : n_segments + 1]
    cells = bytearray(pixels.n_bytes)
    for place, start in enumerate(starts):  # the most significant bytes first
        cells[n_segments - 1 - place :: n_segments] = _rle_segment(frame, start, n_pixels)
    return cells


def _rle_segment(frame: bytes, position: int, n_bytes: int) -> bytearray:
    """Return the first `n_bytes` of an RLE segment; more are padding."""
    unpacked = bytearray()
    while len(unpacked) < n_bytes:
        count = frame[position]
        if count < 128:  # noqa: PLR2004  bytes as they are, one more than the count
            end = position + 2 + count
            unpacked += frame[position + 1 : end]
            position = end
        elif count > 128:  # noqa: PLR2004  one byte, repeated
            unpacked += frame[position + 1 : position + 2] * (257 - count)
            position += 2
        else:
            position += 1
    return unpacked[:n_bytes]


# ------------------------------------------------------------- what an encoded frame says of itself


class Codestream(NamedTuple):
    """The image that the header of an encoded frame announces."""

    rows: int
    columns: int
    n_components: int
    precision: int  # bits


def require_codestream(head: bytes, syntax: str, pixels: PixelFormat) -> None:
    """Check that an encoded frame is the image that the DICOM header describes.

    A decoder allocates what the frame announces, so this bounds its memory by the expected image.

    Parameters
    ----------
    head : bytes
        The frame, or as much of its beginning as has its header.

    Raises
    ------
    ImageError
        It is not, or no decoder reads such a frame.
    """
    if syntax == _UNCOMPRESSED:
        return
    name = CODECS[syntax].name
    if syntax == _RLE:
        n_segments, expected = int.from_bytes(head[:4], "little"), pixels.bits_allocated // _BYTE
        if len(head) < _RLE_HEADER.size or n_segments != expected:
            raise ImageError(
                "image-unreadable",
                f"its RLE frame has {n_segments} segments, expected {expected}. Export it again.",
            )
        return
    found = read_codestream(head)
    if found is None:
        raise ImageError("image-unreadable", f"its frame has no header of {name}. Export it again.")
    if (found.rows, found.columns) != (pixels.rows, pixels.columns):
        raise ImageError(
            "image-unreadable",
            f"its {name} frame is {found.rows} x {found.columns}, but Rows and Columns are "
            f"{pixels.rows} x {pixels.columns}. Export it again.",
        )
    if found.n_components != 1:
        raise ImageError(
            "image-not-grayscale", f"its {name} frame has {found.n_components} components."
        )
    if CODECS[syntax].plugin == "pillow" and found.precision > _BYTE:
        raise ImageError(
            "image-unsupported-encoding",
            f"its pixels are encoded as JPEG with loss at {found.precision} bits, which no free "
            "decoder reads. Export it uncompressed.",
        )
    if found.precision > pixels.bits_allocated:
        raise ImageError(
            "image-unreadable",
            f"its {name} frame has {found.precision} bits, but BitsAllocated is "
            f"{pixels.bits_allocated}. Export it again.",
        )


def read_codestream(head: bytes) -> Codestream | None:
    """Return what a JPEG, JPEG-LS or JPEG 2000 frame says of its image; None where it says nothing.

    References
    ----------
    ISO/IEC 10918-1 B.2.2 (frame header), 14495-1 C.2.2, 15444-1 A.5.1 (SIZ).
    """
    if head.startswith(b"\xff\x4f\xff\x51"):
        return _read_siz(head)
    if head.startswith(b"\xff\xd8"):
        return _read_frame_header(head)
    return None


def _read_siz(head: bytes) -> Codestream | None:
    siz = struct.Struct(">8I H B")  # from Xsiz on, to the precision of the first component
    if len(head) < 8 + siz.size:
        return None
    x_end, y_end, x_start, y_start, _, _, _, _, n_components, precision = siz.unpack_from(head, 8)
    return Codestream(y_end - y_start, x_end - x_start, n_components, (precision & 0x7F) + 1)


# SOF0 to SOF15, but for the tables among them (DHT, JPG, DAC), and SOF55 of JPEG-LS.
_FRAME_HEADERS: Final = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})


def _read_frame_header(head: bytes) -> Codestream | None:
    position = 2
    while position + 10 <= len(head) and head[position] == 0xFF:  # noqa: PLR2004  a marker
        marker = head[position + 1]
        if marker == 0xFF:  # noqa: PLR2004  a fill byte
            position += 1
            continue
        length = int.from_bytes(head[position + 2 : position + 4], "big")
        if marker in _FRAME_HEADERS:
            precision, rows, columns, n_components = struct.unpack_from(">BHHB", head, position + 4)
            return Codestream(rows, columns, n_components, precision)
        position += 2 + length
    return None
