import io
import logging
import struct

import numpy as np
import pytest
from builders import dicom_bytes, gradient, instance
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders.base import get_encoder
from pydicom.uid import (
    MPEG2MPML,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from etl.dicom import codecs
from etl.dicom.codecs import Codestream, read_codestream
from etl.dicom.instance import read_instance
from etl.dicom.pixels import stored_values
from etl.errors import ImageError
from etl.model import EncapsulatedPixels

UNCOMPRESSED = "1.2.840.10008.1.2.1.98"  # of the standard, not yet of pydicom


def smooth(rows, columns, dtype, bits):
    """Return an image that all encoders take: every value of `bits` bits may occur."""
    info = np.iinfo(dtype)
    y, x = np.mgrid[:rows, :columns]
    low = -(1 << (bits - 1)) if info.min < 0 else 0
    values = (y * 37 + x * 101) * 11 % (1 << bits) + low
    return values.astype(dtype)


def encode(dataset, pixels, syntax):
    """Return the frame of `pixels`, which `dataset` describes, encoded."""
    if syntax == UNCOMPRESSED:
        return pixels.tobytes()
    if syntax in (JPEGBaseline8Bit, JPEGExtended12Bit):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=100)
        return file.getvalue()
    if syntax == JPEGLosslessSV1:
        return encode_jpeg_lossless(pixels, dataset.BitsStored)
    plugins = {RLELossless: "pydicom", JPEG2000Lossless: "pylibjpeg"}
    options = {"jls_error": 2} if syntax == JPEGLSNearLossless else {}
    return get_encoder(syntax).encode(
        pixels,
        rows=pixels.shape[0],
        columns=pixels.shape[1],
        samples_per_pixel=1,
        bits_allocated=dataset.BitsAllocated,
        bits_stored=dataset.BitsStored,
        pixel_representation=dataset.PixelRepresentation,
        photometric_interpretation="MONOCHROME2",
        number_of_frames=1,
        encoding_plugin=plugins.get(syntax, "pyjpegls"),
        **options,
    )


def encode_jpeg_lossless(pixels, precision):
    """Return a JPEG lossless frame: first-order prediction, codes of five bits for all categories.

    ISO/IEC 10918-1 annex H: each pixel is predicted from its left neighbour, the first of a row
    from the one above, the very first as half the range.
    """
    cells = pixels.astype(np.int64) & ((1 << precision) - 1)
    predicted = np.roll(cells, 1, axis=1)
    predicted[1:, 0] = cells[:-1, 0]
    predicted[0, 0] = 1 << (precision - 1)
    bits = ""
    # Modulo 2**16; its largest value, 32768, has category 16 and no further bits.
    differences = (cells - predicted + 32767) % 65536 - 32767
    for difference in differences.ravel().tolist():
        category = abs(difference).bit_length()
        bits += f"{category:05b}"
        if 0 < category < 16 or difference < 0:
            value = difference if difference > 0 else difference + (1 << category) - 1
            bits += f"{value:0{category}b}"
    bits += "1" * (-len(bits) % 8)
    scan = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    table = b"\0" + bytes([0, 0, 0, 0, 17] + [0] * 11) + bytes(range(17))
    return b"".join(
        [
            sof(precision, *pixels.shape, marker=0xC3),
            b"\xff\xc4" + struct.pack(">H", 2 + len(table)) + table,
            b"\xff\xda\0\x08\1\1\0\1\0\0" + scan + b"\xff\xd9",
        ]
    )


def sof(precision=8, rows=8, columns=8, components=1, marker=0xC1):
    """Return the beginning of a JPEG stream, up to its frame header."""
    header = struct.pack(">BHHB", precision, rows, columns, components) + b"\1\x11\0" * components
    return b"\xff\xd8\xff" + bytes([marker]) + struct.pack(">H", 2 + len(header)) + header


def encapsulated(dataset, frames, syntax, *, fragments=1, has_table=True):
    """Return a file whose PixelData has these encoded frames."""
    dataset.PixelData = encapsulate(frames, fragments_per_frame=fragments, has_bot=has_table)
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return dicom_bytes(dataset, syntax)


def file_of(pixels, syntax, bits=None, **attributes):
    dataset = instance(pixels, bits_stored=bits, **attributes)
    return encapsulated(dataset, [encode(dataset, pixels, syntax)], syntax)


def read(data, frame_number=None):
    return read_instance(io.BytesIO(data), frame_number)


def rejection(data):
    with pytest.raises(ImageError) as caught:
        stored_values(data, read(data))
    return caught.value


LOSSLESS = {
    "uncompressed": UNCOMPRESSED,
    "RLE": RLELossless,
    "JPEG lossless": JPEGLosslessSV1,
    "JPEG-LS": JPEGLSLossless,
    "JPEG 2000": JPEG2000Lossless,
}


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize(
    ("dtype", "bits"), [("<u2", 16), ("<u2", 12), ("<u2", 10), ("<i2", 16), ("<i2", 12), ("<u1", 8)]
)
def test_lossless_pixels_are_those_that_were_encoded(name, dtype, bits):
    pixels = smooth(43, 37, dtype, bits)
    data = file_of(pixels, LOSSLESS[name], bits)
    found = read(data)
    assert isinstance(found.storage, EncapsulatedPixels)
    assert found.transfer_syntax_uid == LOSSLESS[name]
    stored = stored_values(data, found)
    assert stored.dtype == pixels.dtype
    assert np.array_equal(stored, pixels)
    assert found.warnings == ()


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEGExtended12Bit])
def test_jpeg_with_loss_is_read_and_named(syntax):
    pixels = smooth(40, 32, "<u1", 8) // 16 + np.arange(32, dtype="<u1") * 4
    found = read(data := file_of(pixels, syntax))
    off = np.abs(stored_values(data, found).astype(int) - pixels)
    assert off.max() <= 4  # quality 100: rounding of the cosine transform
    assert [code for code, _ in found.warnings] == ["image-lossy"]
    assert "JPEG" in found.warnings[0][1]


def test_jpeg_ls_near_lossless_is_read_and_named():
    pixels = smooth(40, 32, "<u2", 12)
    found = read(data := file_of(pixels, JPEGLSNearLossless, 12))
    assert 0 < np.abs(stored_values(data, found).astype(int) - pixels).max() <= 2
    assert [code for code, _ in found.warnings] == ["image-lossy"]


@pytest.mark.parametrize(("value", "codes"), [("01", ["image-lossy"]), ("00", []), ("", [])])
def test_loss_before_is_named_whatever_the_encoding_now(value, codes):
    found = read(dicom_bytes(instance(LossyImageCompression=value)))
    assert [code for code, _ in found.warnings] == codes


def test_a_decoder_that_is_not_installed_is_named_with_the_command(monkeypatch):
    data = file_of(smooth(40, 32, "<u2", 12), JPEG2000Lossless, 12)
    monkeypatch.setattr(codecs, "_is_installed", lambda modules: not modules)
    error = rejection(data)
    assert error.code == "image-unsupported-encoding"
    assert "JPEG 2000 lossless" in error.message
    assert "pip install 'dicom-etl[codecs]'" in error.message
    rle = file_of(smooth(8, 8, "<u2", 12), RLELossless, 12)
    assert stored_values(rle, read(rle)).shape == (8, 8)


def test_an_encoding_that_is_not_read_is_named_in_words():
    error = rejection(encapsulated(instance(), [b"\0" * 64], MPEG2MPML))
    assert error.code == "image-unsupported-encoding"
    assert "MPEG2 Main Profile / Main Level" in error.message
    unknown = rejection(encapsulated(instance(), [b"\0" * 64], "1.2.3.4.5"))
    assert "encoded as 1.2.3.4.5," in unknown.message


def test_jpeg_with_loss_at_12_bits_is_said_to_be_read_by_nothing():
    dataset = instance(smooth(8, 8, "<u2", 12), bits_stored=12)
    error = rejection(encapsulated(dataset, [sof(12) + b"\xff\xd9"], JPEGExtended12Bit))
    assert error.code == "image-unsupported-encoding"
    assert "JPEG with loss at 12 bits, which no free decoder reads" in error.message


@pytest.mark.parametrize(
    ("head", "code", "text"),
    [
        (sof(rows=60000, columns=60000), "image-unreadable", "is 60000 x 60000"),
        (sof(components=3), "image-not-grayscale", "3 components"),
        (sof(precision=16), "image-unsupported-encoding", "16 bits"),
        (b"no image at all", "image-unreadable", "has no header of JPEG"),
        (b"\xff\xd8\xff\xd9", "image-unreadable", "has no header of JPEG"),
    ],
)
def test_a_frame_that_is_not_the_image_of_the_header_is_not_decoded(head, code, text, monkeypatch):
    monkeypatch.setattr(codecs, "decode", None)
    data = encapsulated(instance(smooth(8, 8, "<u1", 8)), [head + b"\xff\xd9"], JPEGBaseline8Bit)
    error = rejection(data)
    assert error.code == code
    assert text in error.message


def test_a_jpeg_2000_frame_of_another_size_is_not_decoded():
    small = instance(smooth(8, 8, "<u2", 12), bits_stored=12)
    frame = encode(small, smooth(64, 48, "<u2", 12), JPEG2000Lossless)
    error = rejection(encapsulated(small, [frame], JPEG2000Lossless))
    assert "frame is 64 x 48, but Rows and Columns are 8 x 8" in error.message


def test_the_frame_header_is_found_behind_long_comments():
    comment = b"\xff\xfe" + struct.pack(">H", 60_002) + bytes(60_000)
    pixels = smooth(8, 8, "<u1", 8)
    dataset = instance(pixels)
    frame = encode(dataset, pixels, JPEGBaseline8Bit)
    data = encapsulated(dataset, [frame[:2] + comment + frame[2:]], JPEGBaseline8Bit)
    assert stored_values(data, read(data)).shape == (8, 8)


# Half of a JPEG-LS frame: of a third its decoder makes up pixels for many seconds, then fails.
@pytest.mark.parametrize(
    ("name", "share"), [("RLE", 3), ("JPEG lossless", 3), ("JPEG-LS", 2), ("JPEG 2000", 3)]
)
def test_a_damaged_frame_is_an_error_and_nothing_is_logged(name, share, caplog, capfd):
    pixels = smooth(32, 32, "<u2", 12)
    dataset = instance(pixels, bits_stored=12)
    frame = encode(dataset, pixels, LOSSLESS[name])
    data = encapsulated(dataset, [frame[: len(frame) // share]], LOSSLESS[name])
    with caplog.at_level(logging.DEBUG):
        try:
            stored_values(data, read(data))
        except ImageError as error:
            assert error.code == "image-unreadable"
            assert "cannot be decoded" in error.message
        else:
            pytest.fail("a third of a frame was decoded")
    assert caplog.text == ""
    assert capfd.readouterr().err == ""


def test_high_throughput_jpeg_2000_has_a_decoder():
    codecs.require_decoder(HTJ2KLossless)


def test_what_is_no_codestream_says_nothing():
    assert read_codestream(b"") is None
    assert read_codestream(b"\xff\x4f\xff\x51\0\x29") is None
    assert read_codestream(sof()[:8]) is None
    assert read_codestream(sof(12, 3, 5, marker=0xF7)) == Codestream(3, 5, 1, 12)
    assert read_codestream(b"\xff\xd8\xff\xff\xc3" + sof(16, 3, 5)[4:]) == Codestream(3, 5, 1, 16)


def test_native_pixels_of_an_unknown_encoding_are_untouched():
    data = dicom_bytes(instance(), ExplicitVRLittleEndian)
    assert np.array_equal(stored_values(data, read(data)), gradient())
