import io

import numpy as np
import pydicom
import pytest
from builders import COLUMNS, SYNTAXES, dicom_bytes, gradient, instance

from etl.dicom.instance import read_instance
from etl.dicom.pixels import image_dtype, modality_range, modality_values, stored_values
from etl.model import ValueRange


def read(data):
    return read_instance(io.BytesIO(data))


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("dtype", ["<i2", "<u2", "<i1", "<u1"])
@pytest.mark.parametrize("columns", [COLUMNS, COLUMNS + 1])
def test_pixels_equal_pydicoms_in_every_encoding(syntax, dtype, columns):
    data = dicom_bytes(instance(gradient(11, columns, dtype)), syntax)
    expected = pydicom.dcmread(io.BytesIO(data)).pixel_array
    found = stored_values(data, read(data))
    assert np.array_equal(found, expected)
    assert np.array_equal(found, gradient(11, columns, dtype))
    assert found.shape == (11, columns)


@pytest.mark.parametrize("dtype", ["<i2", "<u2"])
def test_bits_above_bits_stored_are_dropped(dtype):
    pixels = gradient(dtype=dtype)
    data = dicom_bytes(instance(pixels, bits_stored=12))
    found = stored_values(data, read(data))
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
    found = read(data)
    found = modality_values(stored_values(data, found), found.pixel_format, "<i4")
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
    stored = stored_values(data, read(data))
    values = modality_values(stored, pixels, image_dtype(modality_range(pixels)))
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


def test_one_byte_of_padding_is_fine():
    data = dicom_bytes(instance(gradient(3, 5, "<u1")))
    assert np.array_equal(stored_values(data, read(data)), gradient(3, 5, "<u1"))
