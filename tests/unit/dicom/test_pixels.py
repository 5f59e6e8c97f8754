import io

import numpy as np
import pydicom
import pytest
from builders import COLUMNS, SYNTAXES, dicom_bytes, gradient, instance

from etl.dicom.instance import read_instance
from etl.dicom.pixels import (
    image_dtype,
    modality_range,
    modality_values,
    padding_range,
    read_frame,
    stored_values,
)
from etl.model import ValueRange
from etl.quality.statistics import image_statistics


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


def cells(*values, dtype="<u2"):
    """Return an image of these pixel cells in its first row, the rest 5."""
    pixels = np.full((3, 8), 5, "<u2")
    pixels[0, : len(values)] = values
    return pixels.view(dtype)


STRAY = {
    "nothing above": ("<u2", [0, 4095], {}, [0, 4095], 0),
    "bits above": ("<u2", [0x1001, 0x0FFF, 0xF002], {}, [1, 4095, 2], 2),
    "a sign repeated": ("<i2", [0xFFFF, 0xF800, 0x07FF], {}, [-1, -2048, 2047], 0),
    "a sign not repeated": ("<i2", [0x0FFF, 0x0800], {}, [-1, -2048], 0),
    "bits above a signed value": ("<i2", [0x1001, 0xF001, 0x7FFF], {}, [1, 1, -1], 3),
    "an overlay": ("<u2", [0x1001, 0x1002], {"overlay": 12}, [1, 2], 0),
    "bits beside an overlay": ("<u2", [0x1001, 0x3002, 0x2003], {"overlay": 12}, [1, 2, 3], 2),
    "an overlay beside a sign": ("<i2", [0x9FFF, 0xFFFF], {"overlay": 15}, [-1, -1], 1),
    "an overlay of its own": ("<u2", [0x1001], {"overlay": 12, "allocated": 1}, [1], 1),
}


@pytest.mark.parametrize("case", STRAY)
@pytest.mark.parametrize("syntax", ["explicit", "big", "deflated"])
def test_bits_above_bits_stored_are_left_out_and_counted(case, syntax):
    dtype, values, options, expected, n_stray = STRAY[case]
    dataset = instance(cells(*values, dtype=dtype), bits_stored=12)
    if "overlay" in options:
        dataset.add_new(0x60020100, "US", options.get("allocated", 16))
        dataset.add_new(0x60020102, "US", options["overlay"])
    data = dicom_bytes(dataset, syntax)
    found = read_frame(data, read(data))
    assert found.stored[0, : len(values)].tolist() == expected
    assert (found.stored[1:] == 5).all()
    if n_stray:
        ((code, message),) = found.warnings
        assert code == "image-unused-bits"
        assert message.startswith(f"{n_stray} of its 24 pixels have bits set above BitsStored (12)")
    else:
        assert found.warnings == ()


PADDING = {
    "none": ({}, None),
    "a value": ({"PixelPaddingValue": 7}, (7, 7)),
    "a range": ({"PixelPaddingValue": 7, "PixelPaddingRangeLimit": 9}, (7, 9)),
    "a range downwards": ({"PixelPaddingValue": 9, "PixelPaddingRangeLimit": 7}, (7, 9)),
    "a limit of nothing": ({"PixelPaddingRangeLimit": 9}, None),
    "rescaled": (
        {"PixelPaddingValue": 7, "PixelPaddingRangeLimit": 9, "RescaleSlope": "-2"},
        (-18, -14),
    ),
    "turned": (
        {"PixelPaddingValue": 7, "PhotometricInterpretation": "MONOCHROME1"},
        (4088, 4088),
    ),
    "turned and rescaled": (
        {
            "PixelPaddingValue": 0,
            "PixelPaddingRangeLimit": 1,
            "PhotometricInterpretation": "MONOCHROME1",
            "RescaleSlope": "0.5",
            "RescaleIntercept": "1",
        },
        (2048, 2048.5),
    ),
}


@pytest.mark.parametrize("case", PADDING)
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_padding_is_a_range_of_modality_values(case, syntax):
    attributes, expected = PADDING[case]
    dataset = instance(cells(*range(12, 20)), bits_stored=12, **attributes)
    for element in dataset:
        if element.tag in {0x00280120, 0x00280121}:
            element.VR = "US"
    data = dicom_bytes(dataset, syntax)
    found = read(data)
    assert padding_range(found.pixel_format) == expected
    assert found.warnings == ()


def test_padding_of_signed_pixels_is_signed():
    dataset = instance(cells(3, dtype="<i2"))
    dataset.add_new(0x00280120, "SS", -2000)
    assert padding_range(read(dicom_bytes(dataset)).pixel_format) == (-2000, -2000)
    dataset.add_new(0x00280120, "US", 63536)  # the same bytes under the other VR
    assert padding_range(read(dicom_bytes(dataset)).pixel_format) == (-2000, -2000)


@pytest.mark.parametrize("value", [[4096], [7, 8]])
def test_padding_that_no_pixel_can_have_is_left_out_and_named(value):
    dataset = instance(cells(3), bits_stored=12)
    dataset.add_new(0x00280120, "US", value)
    found = read(dicom_bytes(dataset))
    assert padding_range(found.pixel_format) is None
    ((code, message),) = found.warnings
    assert code == "image-header-invalid"
    assert "PixelPaddingValue" in message


@pytest.mark.parametrize("attributes", [{}, {"RescaleSlope": "0.1", "RescaleIntercept": "-3.7"}])
def test_the_pixels_of_padding_are_those_of_its_range(attributes):
    pixels = gradient(40, 40, "<u2") >> 8
    dataset = instance(pixels, PhotometricInterpretation="MONOCHROME1", **attributes)
    dataset.add_new(0x00280120, "US", 30)
    dataset.add_new(0x00280121, "US", 60)
    data = dicom_bytes(dataset)
    found = read(data)
    values = modality_values(stored_values(data, found), found.pixel_format, "<f4")
    statistics = image_statistics(values, padding_range(found.pixel_format))
    is_padding = (pixels >= 30) & (pixels <= 60)
    assert statistics.n_padding == np.count_nonzero(is_padding) > 0
    assert statistics.minimum == values[~is_padding].min()
    assert statistics.maximum == values[~is_padding].max()
    assert statistics.mean == pytest.approx(values[~is_padding].astype(float).mean(), rel=1e-12)


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
