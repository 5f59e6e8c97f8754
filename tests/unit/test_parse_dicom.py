import io
import struct

import numpy as np
import pydicom
import pytest
from builders import COLUMNS, ROWS, SYNTAXES, dicom_bytes, gradient, instance

from etl.errors import ImageError
from etl.model import ValueRange
from etl.parse_dicom import (
    image_dtype,
    modality_range,
    modality_values,
    read_instance,
    stored_values,
)


def read(data):
    return read_instance(io.BytesIO(data))


def rejection(data):
    with pytest.raises(ImageError) as caught:
        read(data)
    return caught.value.code


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("dtype", ["<i2", "<u2", "<i1", "<u1"])
@pytest.mark.parametrize("columns", [COLUMNS, COLUMNS + 1])
def test_pixels_equal_pydicoms_in_every_encoding(syntax, dtype, columns):
    data = dicom_bytes(instance(gradient(11, columns, dtype)), syntax)
    expected = pydicom.dcmread(io.BytesIO(data)).pixel_array
    found = stored_values(data, read(data).pixel_format)
    assert np.array_equal(found, expected)
    assert np.array_equal(found, gradient(11, columns, dtype))
    assert found.shape == (11, columns)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_attributes_are_those_of_the_file(syntax):
    found = read(dicom_bytes(syntax=syntax))
    assert found.sop_instance_uid == "1.2.3"
    assert found.series_instance_uid == "1.2.3.4"
    assert found.instance_number == 7
    assert found.pixel_spacing == (1.25, 1.5)
    assert found.image_position == (1.5, -2.25, 3)
    assert found.image_orientation == (1, 0, 0, 0, 0.5, -0.5)
    assert (found.slice_location, found.trigger_time) == (-16.634, 18.75)
    assert (found.pixel_format.rows, found.pixel_format.columns) == (ROWS, COLUMNS)


def test_missing_or_malformed_attributes_are_nan_or_empty():
    bare = instance(PixelSpacing=None, TriggerTime=None, SliceLocation=None, SOPInstanceUID=None)
    found = read(dicom_bytes(bare))
    assert np.isnan([*found.pixel_spacing, found.trigger_time, found.slice_location]).all()
    assert found.sop_instance_uid == ""
    broken = dicom_bytes().replace(b"18.75", b"18,75")
    assert np.isnan(read(broken).trigger_time)


@pytest.mark.parametrize("dtype", ["<i2", "<u2"])
def test_bits_above_bits_stored_are_dropped(dtype):
    pixels = gradient(dtype=dtype)
    data = dicom_bytes(instance(pixels, bits_stored=12))
    found = stored_values(data, read(data).pixel_format)
    low = pixels.astype(np.int64) & 0xFFF
    expected = np.where((low >= 0x800) & (dtype == "<i2"), low - 0x1000, low)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("dtype", "bits", "turned"),
    [("<u2", 12, lambda v: 4095 - v), ("<i2", 12, lambda v: -1 - v), ("<u1", 8, lambda v: 255 - v)],
)
def test_monochrome1_is_turned_before_it_is_rescaled(dtype, bits, turned):
    pixels = gradient(dtype=dtype) >> (np.dtype(dtype).itemsize * 8 - bits)
    dataset = instance(pixels, bits_stored=bits, PhotometricInterpretation="MONOCHROME1")
    dataset.RescaleSlope, dataset.RescaleIntercept = "3", "-7"
    data = dicom_bytes(dataset)
    pixel_format = read(data).pixel_format
    found = modality_values(stored_values(data, pixel_format), pixel_format, "<i4")
    assert np.array_equal(found, turned(pixels.astype(np.int64)) * 3 - 7)


@pytest.mark.parametrize(
    ("slope", "intercept", "expected"),
    [
        (None, None, (1, 0)),
        ("2", None, (2, 0)),
        (None, "-1024", (1, -1024)),
        ("0.5", "3", (0.5, 3)),
    ],
)
def test_slope_and_intercept_each_stand_alone(slope, intercept, expected):
    dataset = instance(gradient(dtype="<u1"), RescaleSlope=slope, RescaleIntercept=intercept)
    data = dicom_bytes(dataset)
    pixels = read(data).pixel_format
    assert (pixels.rescale_slope, pixels.rescale_intercept) == expected
    values = modality_values(
        stored_values(data, pixels), pixels, image_dtype(modality_range(pixels))
    )
    assert np.array_equal(values, gradient(dtype="<u1") * float(expected[0]) + expected[1])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (ValueRange(-32768, 32767, is_whole=True), "<i2"),
        (ValueRange(0, 32767, is_whole=True), "<i2"),
        (ValueRange(0, 32768, is_whole=True), "<u2"),
        (ValueRange(-1, 65535, is_whole=True), "<i4"),
        (ValueRange(-1024, 65535 * 2.0, is_whole=True), "<i4"),
        (ValueRange(0, 2.0**31, is_whole=True), "<f4"),
        (ValueRange(0, 10, is_whole=False), "<f4"),
    ],
)
def test_dtype_is_the_first_that_holds_the_range(values, expected):
    assert image_dtype(values) == expected


def test_ranges_join_over_images():
    joined = ValueRange(0, 4095, is_whole=True) | ValueRange(-5, 9, is_whole=False)
    assert joined == ValueRange(-5, 4095, is_whole=False)


def test_value_range_follows_the_header():
    pixels = read(dicom_bytes(instance(bits_stored=12, RescaleSlope="-2"))).pixel_format
    assert modality_range(pixels) == ValueRange(-4094, 4096, is_whole=True)


def data_set_replaced(data, junk):
    """Keep preamble, mark and file meta information, whose length the first element gives."""
    return data[: 144 + struct.unpack_from("<I", data, 140)[0]] + junk


CASES = {
    "empty": (lambda: b"", "image-unreadable"),
    "text": (lambda: b"not an image\n" * 40, "image-unreadable"),
    "no mark": (lambda: dicom_bytes().replace(b"DICM", b"DICK", 1), "image-unreadable"),
    "one byte short": (lambda: dicom_bytes()[:-1], "image-truncated"),
    "half its pixels": (lambda: dicom_bytes()[:-168], "image-truncated"),
    "cut in a value": (lambda: dicom_bytes()[: -336 - 25], "image-truncated"),
    "cut before PixelData": (lambda: dicom_bytes()[: -336 - 12], "image-no-pixels"),
    "cut in a short header": (lambda: dicom_bytes()[: -336 - 8], "image-truncated"),
    "cut in a long header": (lambda: dicom_bytes()[: -336 - 1], "image-truncated"),
    "no pixels": (lambda: dicom_bytes(instance(PixelData=None)), "image-no-pixels"),
    "no rows": (lambda: dicom_bytes(instance(Rows=None)), "image-unreadable"),
    "zero rows": (lambda: dicom_bytes(instance(Rows=0)), "image-no-pixels"),
    "short pixels": (lambda: dicom_bytes(instance(PixelData=bytes(100))), "image-truncated"),
    "long pixels": (lambda: dicom_bytes(instance(PixelData=bytes(338))), "image-unreadable"),
    "colour": (
        lambda: dicom_bytes(instance(PhotometricInterpretation="RGB", SamplesPerPixel=3)),
        "image-not-grayscale",
    ),
    "palette": (
        lambda: dicom_bytes(instance(PhotometricInterpretation="PALETTE COLOR")),
        "image-not-grayscale",
    ),
    "frames": (lambda: dicom_bytes(instance(NumberOfFrames=2)), "image-multiframe"),
    "jpeg": (
        lambda: dicom_bytes(instance(), "explicit").replace(
            b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0"
        ),
        "image-unsupported-encoding",
    ),
    "high bit": (lambda: dicom_bytes(instance(HighBit=11)), "image-unsupported-encoding"),
    "32 bits": (lambda: dicom_bytes(instance(BitsAllocated=32)), "image-unsupported-encoding"),
    "17 of 16 bits": (lambda: dicom_bytes(instance(BitsStored=17, HighBit=16)), "image-unreadable"),
    "slope 0": (lambda: dicom_bytes(instance(RescaleSlope="0")), "image-unreadable"),
    "slope text": (
        lambda: dicom_bytes(instance(RescaleSlope="1.5 ")).replace(b"1.5 ", b"1,5 "),
        "image-unreadable",
    ),
    "slope huge": (lambda: dicom_bytes(instance(RescaleSlope="1e+300")), "image-unreadable"),
    "two pixel data": (
        lambda: dicom_bytes() + b"\xe0\x7f\x10\x00OW\0\0" + struct.pack("<I", 336) + bytes(336),
        "image-unreadable",
    ),
    "deflated cut": (lambda: dicom_bytes(syntax="deflated")[:-20], "image-truncated"),
    "deflated junk": (
        lambda: data_set_replaced(dicom_bytes(syntax="deflated"), b"\x07" * 99),
        "image-unreadable",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_file_is_rejected_with_its_code(case):
    make, code = CASES[case]
    assert rejection(make()) == code


def test_one_byte_of_padding_is_fine():
    data = dicom_bytes(instance(gradient(3, 5, "<u1")))
    assert np.array_equal(stored_values(data, read(data).pixel_format), gradient(3, 5, "<u1"))


def test_trailing_padding_is_stepped_over():
    data = dicom_bytes() + bytes(512)
    assert np.array_equal(stored_values(data, read(data).pixel_format), gradient())


def test_messages_name_no_patient():
    dataset = instance(PatientName="Doe^Jane", PhotometricInterpretation="DOE JANE")
    with pytest.raises(ImageError) as caught:
        read(dicom_bytes(dataset))
    assert "DOE" not in caught.value.message
