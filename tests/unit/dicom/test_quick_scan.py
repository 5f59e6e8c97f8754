import io
import struct
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from builders import dicom_bytes, gradient, instance
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from etl.dicom import header as dicom_header
from etl.dicom.instance import read_instance
from etl.dicom.pixels import stored_values
from etl.dicom.quick_scan import scan, scan_meta
from etl.errors import ImageError

PIXEL_DATA = 0x7FE00010
ROWS_TAG = 0x00280010
PYDICOM_FILES = sorted(Path(get_testdata_file("CT_small.dcm")).parent.rglob("*.dcm"))


def outcome(data):
    """Return what a file gives: attributes and pixels, or the code of its error."""
    try:
        found = read_instance(io.BytesIO(data))
        pixels = stored_values(data, found)
    except ImageError as error:
        return error.code
    return repr(found), pixels.tobytes()


@pytest.fixture
def by_pydicom(monkeypatch):
    """Return the outcome of a file when pydicom walks its elements."""

    def read(data):
        with monkeypatch.context() as patch:
            patch.setattr(dicom_header, "_scan", lambda *_: None)
            return outcome(data)

    return read


def is_scanned(data):
    """Say whether the quick way understands a file."""
    return dicom_header._scan(data, len(data)) is not None


def test_files_alike_are_walked_once(monkeypatch):
    files = [dicom_bytes(instance(InstanceNumber=n, TriggerTime=str(n))) for n in range(10, 20)]
    dicom_header._templates.clear()
    walks = []
    monkeypatch.setattr(dicom_header, "scan", lambda *a, **k: walks.append(1) or scan(*a, **k))
    numbers = [read_instance(io.BytesIO(data)).instance_number for data in files]
    assert numbers == list(range(10, 20))
    assert len(walks) == 1


def test_a_transfer_syntax_in_the_data_set_counts_for_nothing():
    data = dicom_bytes(instance())
    end = meta_end(data)
    second = struct.pack("<HH2sH20s", 2, 0x10, b"UI", 20, b"1.2.840.10008.1.2.2")
    data = data[:end] + second + data[end:]
    dicom_header._templates.clear()
    for _ in range(2):  # the second time from what is remembered
        assert not read_instance(io.BytesIO(data)).storage.is_big_endian


def test_a_long_value_is_read_and_where_pydicom_leaves_it_out_the_file_is_refused(by_pydicom):
    data = dicom_bytes(instance(), "implicit")
    place = data.rindex(b"\xe0\x7f\x10\0")
    value = b"-1024" + b" " * 66_001
    element = struct.pack("<HHI", 0x28, 0x1052, len(value)) + value
    data = data[:place] + element + data[place:]
    assert read_instance(io.BytesIO(data)).pixel_format.rescale_intercept == -1024
    assert by_pydicom(data) == "image-unreadable"


def test_what_is_remembered_of_files_is_bounded():
    dicom_header._templates.clear()
    for n in range(3 * dicom_header._MAX_SIZES):
        read_instance(io.BytesIO(dicom_bytes(instance(PatientComments="x" * 2 * n))))
    assert 1 <= len(dicom_header._templates) <= dicom_header._MAX_SIZES
    for n in range(10):  # of one size, each laid out in its own way
        comments, name = "x" * 2 * n, "y" * (20 - 2 * n)
        read_instance(
            io.BytesIO(dicom_bytes(instance(PatientComments=comments, StudyDescription=name)))
        )
    assert max(map(len, dicom_header._templates.values())) == dicom_header._MAX_ALIKE


def meta_end(data):
    return scan_meta(data, 132, [])[1]


def test_pydicoms_own_files_are_at_hand():
    assert len(PYDICOM_FILES) > 50


@pytest.mark.parametrize("path", PYDICOM_FILES, ids=lambda path: path.name)
def test_every_file_gives_what_it_gives_by_pydicom(path, by_pydicom):
    data = path.read_bytes()
    found = outcome(data)
    assert found == by_pydicom(data)
    if not isinstance(found, str):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(path)
            expected = dataset.pixel_array
        stored = stored_values(data, read_instance(io.BytesIO(data)))
        assert np.array_equal(stored, expected)
        assert found[0].count(str(dataset.SOPInstanceUID)) >= 1


def nested(depth):
    inner = Dataset()
    inner.ReferencedSOPInstanceUID = "1.2"
    inner.Rows = 3  # not the image's
    if depth:
        inner.ReferencedImageSequence = Sequence([nested(depth - 1), nested(0)])
    return inner


@pytest.mark.parametrize("syntax", ["explicit", "implicit"])
@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("depth", [0, 1, 6])
def test_sequences_are_stepped_over(syntax, undefined, depth, by_pydicom):
    dataset = instance()
    dataset.ReferencedStudySequence = Sequence([nested(depth), nested(0)])
    dataset.SourceImageSequence = Sequence([])
    for element in dataset.iterall():
        if element.VR == "SQ":
            element.is_undefined_length = undefined
            for item in element.value:
                item.is_undefined_length_sequence_item = undefined
    data = dicom_bytes(dataset, syntax)
    assert is_scanned(data)
    assert outcome(data) == by_pydicom(data)
    assert outcome(data)[1] == gradient().tobytes()


@pytest.mark.parametrize("syntax", ["explicit", "implicit"])
@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("n_items", [0, 1, 2])
@pytest.mark.parametrize("depth", [-1, 0, 3])
def test_a_modality_lut_is_found_as_pydicom_finds_it(syntax, undefined, n_items, depth, by_pydicom):
    items = [nested(depth) if depth >= 0 else Dataset() for _ in range(n_items)]
    dataset = instance(ModalityLUTSequence=Sequence(items))
    dataset["ModalityLUTSequence"].is_undefined_length = undefined
    for item in items:
        item.is_undefined_length_sequence_item = undefined
    data = dicom_bytes(dataset, syntax)
    assert is_scanned(data)
    assert outcome(data) == by_pydicom(data)
    assert (outcome(data) == "image-unsupported-encoding") == (n_items > 0)


@pytest.mark.parametrize("syntax", ["explicit", "implicit"])
def test_private_elements_group_lengths_and_every_vr_are_stepped_over(syntax, by_pydicom):
    dataset = instance()
    block = dataset.private_block(0x0029, "ACME", create=True)
    values = {
        "AE": "X", "AS": "001Y", "AT": 0x00280010, "DA": "20200101", "DT": "2020", "FD": 1.5,
        "FL": 2.5, "LO": "x", "LT": "x", "OB": b"ab", "OD": b"8bytes..", "OF": b"4byt",
        "OL": b"4byt", "OV": b"8bytes..", "OW": b"ab", "PN": "A^B", "SH": "x", "SL": -5, "SS": -2,
        "ST": "x", "SV": -9, "TM": "1200", "UC": "long", "UL": 7, "UN": b"zz", "UR": "http://x",
        "US": 3, "UT": "text", "UV": 11, "CS": "A", "DS": "1.5", "IS": "2", "UI": "1.2",
    }  # fmt: skip
    for number, (vr, value) in enumerate(values.items()):
        block.add_new(number, vr, value)
    dataset.add_new(0x00280000, "UL", 99)
    data = dicom_bytes(dataset, syntax)
    assert is_scanned(data)
    assert outcome(data) == by_pydicom(data)


def test_a_header_longer_than_the_first_read_is_scanned_too(by_pydicom, monkeypatch):
    dataset = instance()
    dataset.private_block(0x0029, "ACME", create=True).add_new(1, "OB", bytes(60_000))
    data = dicom_bytes(dataset)
    expected = by_pydicom(data)
    monkeypatch.setattr(dicom_header, "_parse", None)  # would fail if it were called
    assert outcome(data) == expected


UNSURE = {
    "an unknown VR": lambda data: data.replace(b"\x28\0\x10\0US", b"\x28\0\x10\0ZZ"),
    "falling tags": lambda data: data.replace(b"\x28\0\x11\0US", b"\x28\0\x09\0US"),
    "a tag twice": lambda data: data.replace(b"\x28\0\x11\0US", b"\x28\0\x10\0US"),
    "reserved bytes": lambda data: data.replace(b"\x10\0OW\0\0", b"\x10\0OW\1\0"),
    "a length past the end": lambda data: data.replace(b"\x10\0OW\0\0", b"\x10\0OW\0\0\xff"),
    "something behind the pixels": lambda data: data + bytes(8),
    "undefined length pixels": lambda data: data.replace(
        b"OW\0\0" + struct.pack("<I", 336), b"OW\0\0\xff\xff\xff\xff"
    ),
    "no pixels": lambda data: data[: -336 - 12],
    "an unfinished element": lambda data: data[: -336 - 8],
    "no group length in the meta information": lambda data: data.replace(b"\0\0UL\4", b"\0\0OB\4"),
}


@pytest.mark.parametrize("case", UNSURE)
def test_what_is_out_of_the_ordinary_is_left_to_pydicom(case):
    data = dicom_bytes()
    damaged = UNSURE[case](data)
    assert damaged != data
    assert is_scanned(data)
    assert not is_scanned(damaged)


def test_nesting_without_end_is_left_to_pydicom(by_pydicom):
    start = b"\x08\0\x10\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\0\xe0\xff\xff\xff\xff"
    data = dicom_bytes()
    bomb = data[: meta_end(data)] + start * 20_000
    assert not is_scanned(bomb)
    assert isinstance(outcome(bomb), str)


def test_a_value_beyond_the_head_is_not_guessed():
    data = dicom_bytes()
    for length in range(meta_end(data), len(data) - 336):
        assert (
            scan(data[:length], meta_end(data), len(data), {ROWS_TAG}, [], implicit=False) is None
        )
    found = scan(data[:-336], meta_end(data), len(data), {ROWS_TAG}, [], implicit=False)
    assert found.keys() == {ROWS_TAG, PIXEL_DATA}
    assert found[ROWS_TAG].value == struct.pack("<H", gradient().shape[0])
