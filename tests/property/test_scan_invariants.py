"""The quick way through a DICOM file gives what pydicom gives, or leaves it to pydicom."""

import io
import struct
from unittest import mock

from builders import SYNTAXES, dicom_bytes, gradient, instance
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import RLELossless

from etl.dicom import header as dicom_header
from etl.dicom.instance import read_instance
from etl.dicom.pixels import read_frame, stored_range, stored_values
from etl.dicom.quick_scan import scan, scan_meta
from etl.errors import ImageError
from etl.findings import CODES

SHORT = ["AE", "CS", "DS", "IS", "LO", "UI", "US", "FD", "UL"]
ITEM = b"\xfe\xff\0\xe0"
LONG = ["OB", "OW", "UT", "UN"]


def outcome(data):
    try:
        found = read_instance(io.BytesIO(data))
        return repr(found), stored_values(data, found).tobytes()
    except ImageError as error:
        return error.code


def outcome_by_pydicom(data):
    with mock.patch.object(dicom_header, "_scan", return_value=None):
        return outcome(data)


def encoded(tag, vr, value, implicit):
    head = struct.pack("<HH", *tag)
    if implicit:
        return head + struct.pack("<I", len(value)) + value
    if vr in SHORT:
        return head + vr.encode() + struct.pack("<H", len(value)) + value
    return head + vr.encode() + b"\0\0" + struct.pack("<I", len(value)) + value


@st.composite
def sequences(draw, implicit, depth=0):
    """Return the value of a sequence of undefined length, its delimiter included."""
    items = b""
    for _ in range(draw(st.integers(0, 2))):
        content = b"".join(
            encoded((8, 2 * n), draw(st.sampled_from(SHORT)), draw(values), implicit)
            for n in range(draw(st.integers(0, 3)))
        )
        if depth < 3 and draw(st.booleans()):
            header = b"\x40\0\x75\2" + (b"" if implicit else b"SQ\0\0") + b"\xff" * 4
            content += header + draw(sequences(implicit, depth + 1))
        if draw(st.booleans()):
            items += ITEM + struct.pack("<I", len(content)) + content
        else:
            items += ITEM + b"\xff" * 4 + content + b"\xfe\xff\x0d\xe0\0\0\0\0"
    return items + b"\xfe\xff\xdd\xe0\0\0\0\0"


values = st.binary(max_size=6).map(lambda value: value + b" " * (len(value) % 2))


@st.composite
def files(draw, encodings=(False, True)):
    """Return a file with further elements, private ones and sequences, before its attributes."""
    implicit = draw(st.sampled_from(encodings))
    data = dicom_bytes(instance(), "implicit" if implicit else "explicit")
    start = scan_meta(data, 132, [])[1]
    added = b""
    for number in sorted(draw(st.sets(st.integers(1, 0xFF), max_size=6))):
        if draw(st.booleans()):
            vr = draw(st.sampled_from(SHORT + LONG))
            added += encoded((7, number), vr, draw(values), implicit)
        else:
            header = struct.pack("<HH", 7, number) + (b"" if implicit else b"SQ\0\0") + b"\xff" * 4
            added += header + draw(sequences(implicit))
    return data[:start] + added + data[start:]


@given(files())
def test_generated_files_are_scanned_and_give_what_pydicom_gives(data):
    assert dicom_header._scan(data, len(data)) is not None
    assert outcome(data) == outcome_by_pydicom(data)


VALID = [dicom_bytes(syntax=syntax) for syntax in ("explicit", "implicit")]
changes = st.lists(st.tuples(st.integers(132, 1000), st.integers(0, 255)), min_size=1, max_size=3)


@settings(max_examples=300)
# Of Implicit VR no sequences: pydicom looks the VR of a damaged tag up and may then see none.
@given(files(encodings=(False,)) | st.sampled_from(VALID), changes, st.integers(0, 30))
@example(VALID[0], [], 0)
def test_a_damaged_file_gives_what_it_gives_by_pydicom(data, changed, cut):
    damaged = bytearray(data)
    for place, value in changed:
        damaged[place % len(damaged)] = value
    damaged = bytes(damaged[: len(damaged) - cut])
    found, expected = outcome(damaged), outcome_by_pydicom(damaged)
    if found != expected:  # pydicom gives a file up for damage inside of a sequence's item
        assert isinstance(expected, str)
        assert isinstance(found, tuple)
        assert ITEM in data


@settings(max_examples=300)
@given(files() | st.sampled_from(VALID), changes)
def test_a_file_is_read_the_same_whatever_was_read_before(data, changed):
    alike = bytearray(data)  # of the same size: what is remembered of `data` may hold for it
    for place, value in changed:
        alike[place % len(alike)] = value
    dicom_header._templates.clear()
    expected = outcome(bytes(alike))
    dicom_header._templates.clear()
    outcome(data)
    assert outcome(bytes(alike)) == expected
    assert outcome(bytes(alike)) == expected


def enhanced():
    """Return a file of two frames with functional groups."""
    groups, values = Dataset(), Dataset()
    values.RescaleSlope, values.RescaleIntercept = 2, -3
    groups.PixelValueTransformationSequence = Sequence([values])
    dataset = instance(NumberOfFrames=2)
    dataset.PixelData = 2 * gradient().tobytes()
    dataset.SharedFunctionalGroupsSequence = Sequence([groups])
    dataset.PerFrameFunctionalGroupsSequence = Sequence([groups, groups])
    return dicom_bytes(dataset)


def compressed():
    dataset = instance()
    dicom_bytes(dataset)  # gives it the file meta information that compress needs
    dataset.compress(RLELossless, generate_instance_uid=False)
    return dicom_bytes(dataset, RLELossless)


def with_overlay_and_padding():
    dataset = instance(gradient(dtype="<u2"), bits_stored=12)
    dataset.add_new(0x60020100, "US", 16)
    dataset.add_new(0x60020102, "US", 12)
    dataset.add_new(0x00280120, "US", 7)
    dataset.add_new(0x00280121, "US", 9)
    return dicom_bytes(dataset)


WRAPPED = [
    *(dicom_bytes(syntax=syntax) for syntax in SYNTAXES),
    dicom_bytes()[128:],
    dicom_bytes()[132:],
    VALID[0][scan_meta(VALID[0], 132, [])[1] :],
    VALID[1][scan_meta(VALID[1], 132, [])[1] :],
    enhanced(),
    compressed(),
    with_overlay_and_padding(),
]
edits = st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=6)


@settings(max_examples=400)
@given(st.sampled_from(WRAPPED), edits, st.integers(0, 400), st.sampled_from([None, 1, 2]))
def test_any_damage_gives_an_image_or_an_image_error(data, changed, cut, frame_number):
    damaged = bytearray(data)
    for place, value in changed:
        damaged[place % len(damaged)] = value
    damaged = bytes(damaged[: len(damaged) - (cut if cut < 100 else 0)])
    try:
        found = read_instance(io.BytesIO(damaged), frame_number)
        stored, warnings = read_frame(damaged, found)
    except ImageError as error:
        assert error.code in CODES
        return
    pixels = found.pixel_format
    lowest, highest = stored_range(pixels)
    assert stored.shape == (pixels.rows, pixels.columns)
    assert lowest <= stored.min() <= stored.max() <= highest
    assert all(code in CODES for code, _ in found.warnings + warnings)


@given(st.binary(max_size=300), st.integers(0, 40), st.booleans())
def test_any_bytes_end_in_elements_or_in_nothing(data, offset, implicit):
    found = scan(data, offset, len(data) + 10, range(1 << 32), [], implicit=implicit)
    for element in (found or {}).values():
        assert 0 <= element.offset <= element.offset + element.length <= len(data) + 10
