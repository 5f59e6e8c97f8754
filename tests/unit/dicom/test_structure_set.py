import io
import os
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from etl.dicom import structure_set
from etl.dicom.structure_set import STRUCTURE_SET, read_points, read_structure_set
from etl.errors import SourceError
from etl.phantom.objects import write_shapes

SHARED = Path(os.environ.get("DICOM_ETL_REAL_DATA", Path(__file__).parents[4] / "shared" / "data"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Return the bytes of a structure set."""
    root = tmp_path_factory.mktemp("shapes")
    write_shapes(root, "rtstruct", patients=1, slices=4, seed=1)
    (path,) = (root / "annotations").glob("*.dcm")
    return path.read_bytes()


def make_undefined(dataset):
    for element in dataset:
        if element.VR == "SQ":
            element.is_undefined_length = True
            for item in element.value:
                item.is_undefined_length_sequence_item = True
                make_undefined(item)


def changed(data, change=lambda _: None, syntax=ExplicitVRLittleEndian, undefined=False):
    dataset = pydicom.dcmread(io.BytesIO(data))
    change(dataset)
    if undefined:
        make_undefined(dataset)
    file = io.BytesIO()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(
        file,
        enforce_file_format=True,
        implicit_vr=syntax.is_implicit_VR,
        little_endian=syntax.is_little_endian,
    )
    return file.getvalue()


def outcome(read, data):
    """Return what a parser gives, in a form that compares; or its error."""
    try:
        found = read(data)
    except SourceError as error:
        return error.code, error.message
    if isinstance(found, list):
        return [one if isinstance(one, str) else one.tolist() for one in found]
    return found


def assert_reads_as_pydicom(data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(structure_set, "_open_quickly", lambda _: None)
        expected = [outcome(read, data) for read in (read_structure_set, read_points)]
    assert [outcome(read, data) for read in (read_structure_set, read_points)] == expected
    return expected


def first_contour(dataset):
    return dataset.ROIContourSequence[0].ContourSequence[0]


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("undefined", [False, True])
def test_the_quick_way_reads_what_pydicom_reads(plain, syntax, undefined):
    data = changed(plain, syntax=syntax, undefined=undefined)
    assert structure_set._open_quickly(data) is not None
    found, points = assert_reads_as_pydicom(data)
    assert len(points) == len(found.drawings) > 0
    assert found.structures


def test_another_encoding_is_left_to_pydicom(plain):
    data = changed(plain, syntax=DeflatedExplicitVRLittleEndian)
    assert structure_set._open_quickly(data) is None
    assert outcome(read_points, data) == outcome(read_points, plain)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_contours_longer_than_a_short_value_are_read(plain, syntax):
    angles = np.linspace(0, 2 * np.pi, 4000, endpoint=False)
    points = np.stack([20 * np.cos(angles), 20 * np.sin(angles), 0 * angles], 1).round(4)

    def lengthen(dataset):
        contour = first_contour(dataset)
        del contour.ContourData
        text = "\\".join(map(str, points.ravel().tolist())).encode()
        # Explicit VR has 16 bits for the length of a DS: a longer one is written as UN.
        contour.add_new(0x30060050, "UN", text + b" " * (len(text) % 2))
        contour.NumberOfContourPoints = len(points)

    data = changed(plain, lengthen, syntax)
    assert structure_set._open_quickly(data) is not None
    assert_reads_as_pydicom(data)
    assert np.array_equal(read_points(data)[0], points)


def set_in(path, keyword, value):
    def change(dataset):
        item = dataset
        for name in path:
            item = item[name][0] if name in item else item
        setattr(item, keyword, value)

    return change


CONTOUR = ("ROIContourSequence", "ContourSequence")
IMAGE = (*CONTOUR, "ContourImageSequence")


@pytest.mark.parametrize(
    ("change", "is_quick"),
    [
        (lambda dataset: delattr(first_contour(dataset), "ContourData"), True),
        (lambda dataset: delattr(first_contour(dataset), "ContourImageSequence"), True),
        (lambda dataset: delattr(first_contour(dataset), "NumberOfContourPoints"), True),
        (lambda dataset: delattr(dataset.ROIContourSequence[0], "ContourSequence"), True),
        (lambda dataset: delattr(dataset.ROIContourSequence[0], "ReferencedROINumber"), True),
        (lambda dataset: delattr(dataset, "ROIContourSequence"), False),
        (set_in((), "ROIContourSequence", []), True),
        (set_in(CONTOUR, "ContourImageSequence", []), True),
        (set_in(CONTOUR, "ContourGeometricType", ""), True),
        (set_in(CONTOUR, "ContourGeometricType", ["POINT", "CLOSED_PLANAR"]), False),
        (set_in(CONTOUR, "NumberOfContourPoints", "007"), False),
        (set_in(CONTOUR, "NumberOfContourPoints", "+7"), False),
        (set_in(CONTOUR, "ContourData", ["1", "2"]), True),
        (set_in(CONTOUR, "ContourData", []), True),
        (set_in(IMAGE, "ReferencedFrameNumber", "3"), True),
        (set_in(IMAGE, "ReferencedFrameNumber", ["3", "4"]), False),
        (lambda dataset: dataset.add_new(0x7FE00010, "OW", b"12"), False),
    ],
)
def test_what_is_odd_reads_as_by_pydicom(plain, change, is_quick):
    data = changed(plain, change)
    assert (structure_set._open_quickly(data) is not None) == is_quick
    assert_reads_as_pydicom(data)


def test_damaged_files_read_as_by_pydicom(plain):
    rng = np.random.default_rng(1)
    begin = plain.index(b"CLOSED_PLANAR") - 200
    for _ in range(12):
        damaged = bytearray(plain)
        for place in rng.integers(begin, begin + 3000, rng.integers(1, 4)).tolist():
            damaged[place] = int(rng.choice([rng.integers(256), *b" \\\0+-_0E.1aA"]))
        assert_reads_as_pydicom(bytes(damaged))
        assert_reads_as_pydicom(plain[: rng.integers(len(plain))])


@pytest.mark.real_data
def test_the_quick_way_reads_what_pydicom_reads_in_real_files():
    if not (SHARED / "rtstruct").is_dir():
        pytest.skip("no structure sets here: DICOM_ETL_REAL_DATA names the folder of rtstruct/")
    n_quick = 0
    for path in sorted((SHARED / "rtstruct").rglob("*.dcm")):
        data = path.read_bytes()
        if STRUCTURE_SET.encode() in data[:2048]:
            assert_reads_as_pydicom(data)
            n_quick += structure_set._open_quickly(data) is not None
    assert n_quick
