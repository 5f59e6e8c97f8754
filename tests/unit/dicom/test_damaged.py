"""Files whose wrapper or header is damaged: read where nothing is in doubt, else explained."""

import io
import math
import struct
from itertools import pairwise

import numpy as np
import pytest
from builders import SYNTAXES, dicom_bytes, gradient, instance
from pydicom.uid import RLELossless

from etl.dicom.instance import read_instance
from etl.dicom.pixels import stored_values
from etl.dicom.quick_scan import scan_meta
from etl.errors import ImageError

EXPLICIT, IMPLICIT, BIG = (SYNTAXES[name] for name in ("explicit", "implicit", "big"))


def read(data):
    return read_instance(io.BytesIO(data))


def data_set(syntax="explicit"):
    data = dicom_bytes(syntax=syntax)
    return data[scan_meta(data, 132, [])[1] :]


def with_syntax(data, uid):
    """Return a file whose file meta information names another transfer syntax."""
    at = data.index(b"\2\0\x10\0UI") + 6
    length = int.from_bytes(data[at : at + 2], "little")
    value = uid.encode() + b"\0" * (len(uid) % 2)
    changed = data[:at] + struct.pack("<H", len(value)) + value + data[at + 2 + length :]
    group_length = struct.unpack_from("<I", data, 140)[0] + len(value) - length
    return changed[:140] + struct.pack("<I", group_length) + changed[144:]


def implicit_meta(uid):
    value = uid.encode() + b"\0" * (len(uid) % 2)
    return bytes(128) + b"DICM" + struct.pack("<HHI", 2, 0x10, len(value)) + value


WRAPPERS = {
    "no preamble": (lambda: dicom_bytes()[128:], "no preamble"),
    "neither preamble nor mark": (lambda: dicom_bytes()[132:], 'no "DICM" mark'),
    "a preamble without mark": (
        lambda: bytes(128) + dicom_bytes()[132:],
        'no "DICM" mark',
    ),
    "a bare data set": (data_set, "read as Explicit VR Little Endian"),
    "a bare data set, implicit": (lambda: data_set("implicit"), "read as Implicit VR"),
    "a bare data set, big endian": (lambda: data_set("big"), "read as Explicit VR Big"),
    "no meta behind the mark": (
        lambda: bytes(128) + b"DICM" + data_set("implicit"),
        "read as Implicit VR Little Endian",
    ),
    "implicit meta": (lambda: implicit_meta(EXPLICIT) + data_set(), "is in Implicit VR"),
    "no transfer syntax": (
        lambda: dicom_bytes().replace(EXPLICIT.encode() + b"\0", b"no transfer syntax\0\0"),
        "no valid TransferSyntaxUID",
    ),
    "explicit said to be implicit": (
        lambda: with_syntax(dicom_bytes(), IMPLICIT),
        "is Implicit VR Little Endian, but it is Explicit VR Little Endian",
    ),
    "implicit said to be explicit": (
        lambda: with_syntax(dicom_bytes(syntax="implicit"), EXPLICIT),
        "is Explicit VR Little Endian, but it is Implicit VR Little Endian",
    ),
    "big said to be little endian": (
        lambda: with_syntax(dicom_bytes(syntax="big"), EXPLICIT),
        "but it is Explicit VR Big Endian",
    ),
    "little said to be big endian": (
        lambda: with_syntax(dicom_bytes(), BIG),
        "is Explicit VR Big Endian, but it is Explicit VR Little Endian",
    ),
    "not deflated": (
        lambda: with_syntax(dicom_bytes(), SYNTAXES["deflated"]),
        "but it is Explicit VR Little Endian",
    ),
    "not encapsulated": (
        lambda: with_syntax(dicom_bytes(), RLELossless),
        "transfer syntax is RLE, but its pixels are not",
    ),
    "bytes behind the pixels": (
        lambda: dicom_bytes(instance(PixelData=gradient().tobytes() + bytes(4))),
        "4 bytes behind the pixels",
    ),
}


@pytest.mark.parametrize("case", WRAPPERS)
@pytest.mark.parametrize("is_raw", [False, True])
def test_a_whole_image_in_a_damaged_wrapper_is_read_with_a_warning(case, is_raw, tmp_path):
    make, text = WRAPPERS[case]
    data = make()
    path = tmp_path / "one.dcm"
    path.write_bytes(data)
    with open(path, "rb", buffering=0 if is_raw else -1) as file:
        found = read_instance(file)
        assert not file.closed
    assert np.array_equal(stored_values(data, found), gradient())
    assert (found.sop_instance_uid, found.trigger_time) == ("1.2.3", 18.75)
    ((code, message),) = found.warnings
    assert code == "image-file-damaged"
    assert text in message


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_sound_file_has_no_warning(syntax):
    assert read(dicom_bytes(syntax=syntax)).warnings == ()


HOPELESS = {
    "zeros": (bytes(4096), "image-unreadable", "zero bytes only. Copy it again"),
    "text": (b"not an image\n" * 40, "image-unreadable", "Remove it, or export it again"),
    "nothing": (b"", "image-unreadable", "is empty (0 bytes). Copy it again"),
    "a bare data set cut short": (data_set()[:-3], "image-truncated", "Copy it again"),
    "a bare data set without pixels": (data_set()[: -336 - 12], "image-no-pixels", "Export it"),
    "an unknown syntax": (with_syntax(dicom_bytes(), "1.2.3.4"), "image-unsupported", "1.2.3.4"),
    "a syntax cut short": (with_syntax(dicom_bytes(), "1.2.840."), "image-unsupported", "1.2.840."),
}


@pytest.mark.parametrize("case", HOPELESS)
def test_what_cannot_be_mended_says_what_would_help(case):
    data, code, text = HOPELESS[case]
    with pytest.raises(ImageError) as caught:
        read(data)
    assert caught.value.code.startswith(code)
    assert text in caught.value.message


def with_value(keyword_value, new, **attributes):
    """Return a file in which a value, which is unique in it, has other bytes of its length."""
    data = dicom_bytes(instance(**attributes))
    assert data.count(keyword_value) == 1
    assert len(new) == len(keyword_value)
    return data.replace(keyword_value, new)


COMMA = "has a decimal comma, which is read as a decimal point"
VALUES = {
    "a comma": (with_value(b"18.75 ", b"18,75 "), "trigger_time", 18.75, f"TriggerTime {COMMA}"),
    "commas": (
        with_value(b"1.25\\1.5", b"1,25\\1,5"),
        "pixel_spacing",
        (1.25, 1.5),
        f"PixelSpacing {COMMA}",
    ),
    "two commas": (
        with_value(b"18.75 ", b"1,8,75"),
        "trigger_time",
        math.nan,
        "TriggerTime is not",
    ),
    "text": (with_value(b"18.75 ", b"early "), "trigger_time", math.nan, "is not one number"),
    "a number too few": (
        with_value(b"1.5\\-2.25\\3", b"1.5\\-2.2543"),
        "image_position",
        (math.nan,) * 3,
        "ImagePositionPatient is not 3 numbers and is left out",
    ),
    "a number too much": (
        with_value(b"1.25\\1.5", b"1.2\\1\\.5"),
        "pixel_spacing",
        (math.nan,) * 2,
        "PixelSpacing is not 2 numbers",
    ),
    "infinity": (with_value(b"18.75 ", b"1e9999"), "trigger_time", math.nan, "TriggerTime is not"),
    "a UID that is none": (
        with_value(b"1.2.3.4\0", b"no uid!\0"),
        "series_instance_uid",
        "",
        "SeriesInstanceUID is not a UID and is left out",
    ),
}


@pytest.mark.parametrize("case", VALUES)
def test_a_value_that_breaks_its_format_is_named(case):
    data, name, expected, text = VALUES[case]
    found = read(data)
    assert repr(getattr(found, name)) == repr(expected)
    ((code, message),) = found.warnings
    assert code == "image-header-invalid"
    assert text in message
    assert "early" not in message
    assert "no uid" not in message


def test_a_comma_in_the_slope_is_read_and_named():
    data = with_value(b"1.75", b"1,75", RescaleSlope="1.75")
    found = read(data)
    assert found.pixel_format.rescale_slope == 1.75
    assert found.warnings[0][0] == "image-header-invalid"
    assert "RescaleSlope" in found.warnings[0][1]


@pytest.mark.parametrize("empty", [b"      ", b"\\    \\", b"\0\0\0\0\0\0"])
def test_an_empty_value_is_missing_not_wrong(empty):
    found = read(with_value(b"18.75 ", empty))
    assert math.isnan(found.trigger_time)
    assert found.warnings == ()


def test_several_remarks_are_one_warning_of_each_code():
    data = with_value(b"18.75 ", b"18,75 ").replace(b"-16.634", b"-16..34")[128:]
    codes = [code for code, _ in read(data).warnings]
    assert codes == ["image-file-damaged", "image-header-invalid"]


def test_a_byte_more_or_less_of_surplus_decides():
    rows, columns = gradient().shape
    for surplus in range(2, 2 * min(rows, columns) + 8, 2):
        data = dicom_bytes(instance(PixelData=gradient().tobytes() + bytes(surplus)))
        if surplus < 2 * min(rows, columns):
            assert read(data).warnings[0][0] == "image-file-damaged"
        else:
            with pytest.raises(ImageError, match="expected 336"):
                read(data)


def test_files_cut_anywhere_are_read_in_no_wrapper():
    whole = [make() for make, _ in WRAPPERS.values()]
    for data in whole[:6]:
        for end, _ in pairwise(range(1, len(data), 37)):
            with pytest.raises(ImageError):
                read(data[:end])
