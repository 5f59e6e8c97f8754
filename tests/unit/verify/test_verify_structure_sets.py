"""`verify --source` and `--rebuild-check` on structure sets and segmentations."""

import copy

import numpy as np
import pydicom
import pytest
from click.testing import CliRunner

import etl
from etl.cli import cli
from etl.options import BuildOptions
from etl.phantom.objects import Patient, segmentation, write_shapes
from etl.verify import reference
from etl.verify.sources import rebuild_rows
from loader import open_dataset
from loader.format import IGNORE


@pytest.fixture(scope="module", params=["rtstruct", "enhanced", "seg"])
def built(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    write_shapes(root / "data", request.param, patients=2, slices=8, rows=44, columns=56)
    out = root / "out.h5"
    etl.build(root / "data", out, BuildOptions(rows=44, columns=56, background=True))
    return root / "data", out


def verify(out, data, *options):
    found = CliRunner().invoke(cli, ["verify", str(out), "--source", str(data), *options])
    return found.exit_code, found.output


def test_a_second_parser_makes_the_same_rows(built):
    data, out = built
    status, text = verify(out, data, "--rebuild-check")
    assert status == 0, text


def test_what_a_series_has_nowhere_on_an_image_is_not_ignored(tmp_path):
    """The set of one patient lacks the box: its pixels may be anywhere, in this patient's rows."""
    data, out = tmp_path / "data", tmp_path / "out.h5"
    write_shapes(data, "rtstruct", patients=2, slices=8, rows=44, columns=56)
    path = data / "annotations" / "SHAPES002.dcm"
    drawing = pydicom.dcmread(path)
    (box,) = (one for one in drawing.StructureSetROISequence if one.ROIName == "box")
    drawing.ROIContourSequence = [
        one for one in drawing.ROIContourSequence if one.ReferencedROINumber != box.ROINumber
    ]
    drawing.StructureSetROISequence.remove(box)
    drawing.save_as(path)
    options = BuildOptions(rows=44, columns=56, background=True, not_drawn="ignore")
    etl.build(data, out, options)
    dataset = open_dataset(out)
    has_box = dataset.manifest["patient_id"] == "SHAPES001"
    assert not (dataset.masks[has_box] == IGNORE).any()
    assert (dataset.masks[~has_box] == IGNORE).any(axis=(1, 2)).all()
    status, text = verify(out, data, "--rebuild-check")
    assert status == 0, text


def test_a_newer_structure_set_of_known_images_is_named(built, tmp_path):
    """Without it, a build would draw other structures: nothing else has changed."""
    data, out = built
    path = data / "annotations" / "SHAPES001.dcm"
    newer = path.with_name("NEWER.dcm")
    dataset = pydicom.dcmread(path)
    dataset.SOPInstanceUID = f"{dataset.SOPInstanceUID}.9"
    for name in ("StructureSet", "Content", "Series", "InstanceCreation"):
        setattr(dataset, f"{name}Date", "20991231")
    try:
        dataset.save_as(newer)
        status, text = verify(out, data)
    finally:
        newer.unlink()
    assert status == 1
    assert "annotations/NEWER.dcm: row 1" in text  # row 0 is background
    assert "takes the place of annotations/SHAPES001.dcm" in text


def test_a_changed_structure_set_and_a_new_image_are_named(built, tmp_path):
    data, out = built
    path = data / "annotations" / "SHAPES001.dcm"
    before = path.read_bytes()
    try:
        dataset = pydicom.dcmread(path)
        dataset.PatientName = "Other"
        dataset.save_as(path)
        status, text = verify(out, data)
    finally:
        path.write_bytes(before)
    assert status == 1
    assert "annotations/SHAPES001.dcm" in text
    assert "has changed since the build" in text


def shapes(root, kind, edit, **options):
    """Return the folder and the file of one patient's shapes, whose annotations are edited."""
    write_shapes(root / "data", kind, patients=1, slices=8, rows=43, columns=57)
    path = root / "data" / "annotations" / "SHAPES001.dcm"
    dataset = pydicom.dcmread(path)
    dataset = edit(dataset) or dataset
    dataset.save_as(path, enforce_file_format=True)
    etl.build(root / "data", root / "out.h5", BuildOptions(rows=43, columns=57, **options))
    return root / "data", root / "out.h5"


def long_contour(dataset):
    """Repeat points until ContourData is longer than Explicit VR has a length for as numbers."""
    contour = dataset.ROIContourSequence[0].ContourSequence[0]
    points = np.array(contour.ContourData, float).reshape(-1, 3)
    points = np.repeat(points, 65536 // (15 * len(points)) + 1, axis=0)
    contour.NumberOfContourPoints = len(points)
    text = "\\".join(f"{value:.4f}" for value in points.ravel())
    contour.add_new("ContourData", "UN", text.encode().ljust(len(text) + len(text) % 2))
    explicit = pydicom.Dataset(dataset)
    explicit.file_meta = dataset.file_meta
    explicit.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    return explicit


def unnamed_structure(dataset):
    dataset.StructureSetROISequence[0].ROIName = ""


def unlabelled_segments(dataset):
    first, second, *_ = dataset.SegmentSequence
    del first.SegmentLabel
    first.SegmentedPropertyTypeCodeSequence[0].CodeMeaning = "Liver"
    second.SegmentLabel = ""
    second.SegmentedPropertyTypeCodeSequence = []


@pytest.mark.parametrize(
    ("kind", "edit"),
    [
        ("rtstruct", long_contour),
        ("rtstruct", unnamed_structure),
        ("seg", unlabelled_segments),
        ("seg", lambda _: segmentation(Patient(0, 43, 57, 8, 0), "LABELMAP")),
        ("seg", lambda _: segmentation(Patient(0, 43, 57, 8, 0), "FRACTIONAL")),
    ],
    ids=["long", "unnamed", "unlabelled", "label map", "fractional"],
)
def test_a_second_parser_reads_what_the_build_reads(tmp_path, kind, edit):
    data, out = shapes(tmp_path, kind, edit)
    status, text = verify(out, data, "--rebuild-check")
    assert status == 0, text


def test_images_without_file_meta_information_are_built_again(tmp_path):
    data, out = shapes(tmp_path, "rtstruct", lambda _: None)
    for path in (data / "images").rglob("*.dcm"):
        bare = pydicom.Dataset(pydicom.dcmread(path))
        bare.save_as(path, implicit_vr=True, little_endian=True, enforce_file_format=False)
    etl.build(data, out, BuildOptions(rows=43, columns=57), force=True)
    status, text = verify(out, data, "--rebuild-check")
    assert status == 0, text


def test_an_image_with_a_damaged_transfer_syntax_is_built_again(tmp_path):
    data, out = shapes(tmp_path, "rtstruct", lambda _: None)
    path = data / str(open_dataset(out).manifest["dicom_path"][0])
    stated = b"1.2.840.10008.1.2.1\0"
    assert path.read_bytes().count(stated) == 1
    path.write_bytes(path.read_bytes().replace(stated, stated.replace(b"840", b"x40")))
    result = etl.build(data, out, BuildOptions(rows=43, columns=57), force=True)
    assert "image-file-damaged" in {one.code for one in result.findings}
    status, text = verify(out, data, "--rebuild-check")
    assert status == 0, text


@pytest.mark.parametrize("kind", ["rtstruct", "enhanced", "seg"])
def test_each_file_is_parsed_once(tmp_path, kind, monkeypatch):
    data, out = shapes(tmp_path, kind, lambda _: None)
    parsed = []
    read = pydicom.dcmread

    def counted(path, *args, **kwargs):
        parsed.append(str(path))
        return read(path, *args, **kwargs)

    monkeypatch.setattr(reference.pydicom, "dcmread", counted)
    assert rebuild_rows(out, data, (0, len(open_dataset(out)))) == []
    assert sorted(parsed) == sorted(set(parsed))


@pytest.mark.parametrize("kind", ["rtstruct", "enhanced"])
def test_contours_of_other_images_in_the_plane_are_not_drawn_here(tmp_path, kind):
    """Phases of a cine: another image of the plane is no row, and has contours of its own."""
    write_shapes(tmp_path / "data", kind, patients=1, slices=4, rows=43, columns=57)
    path = tmp_path / "data" / "annotations" / "SHAPES001.dcm"
    drawing = pydicom.dcmread(path)
    image = pydicom.dcmread(tmp_path / "data" / "images" / "SHAPES001" / "1.dcm")
    if kind == "enhanced":  # all frames are in the plane of the first
        frames = image.PerFrameFunctionalGroupsSequence
        for frame in frames[1:]:
            frame.PlanePositionSequence = frames[0].PlanePositionSequence
        height = float(frames[0].PlanePositionSequence[0].ImagePositionPatient[2])
        image.save_as(tmp_path / "data" / "images" / "SHAPES001" / "1.dcm")
    for roi in drawing.ROIContourSequence:
        for contour in list(roi.ContourSequence):
            points = np.array(contour.ContourData, float).reshape(-1, 3)
            mine = contour.ContourImageSequence[0].ReferencedSOPInstanceUID
            if kind == "enhanced":
                points[:, 2] = height
            else:
                other = copy.deepcopy(contour)
                other.ContourImageSequence[0].ReferencedSOPInstanceUID = f"{mine}.1"
                moved = points + np.array([3, 0, 0])
                other.ContourData = [f"{value:.4f}" for value in moved.ravel()]
                roi.ContourSequence.append(other)
            contour.ContourData = [f"{value:.4f}" for value in points.ravel()]
    drawing.save_as(path)
    if kind == "rtstruct":  # each image again, which is of another size and no row
        for number in range(1, 5):
            twin = pydicom.dcmread(tmp_path / "data" / "images" / "SHAPES001" / f"{number}.dcm")
            uid = f"{twin.SOPInstanceUID}.1"
            twin.SOPInstanceUID = twin.file_meta.MediaStorageSOPInstanceUID = uid
            twin.Rows -= 1
            twin.PixelData = twin.PixelData[: 2 * twin.Rows * twin.Columns]
            twin.save_as(tmp_path / "data" / "images" / "SHAPES001" / f"{number}b.dcm")
    options = BuildOptions(rows=43, columns=57)
    result = etl.build(tmp_path / "data", tmp_path / "out.h5", options)
    assert result.n_rows >= 2
    status, text = verify(tmp_path / "out.h5", tmp_path / "data", "--rebuild-check")
    assert status == 0, text


def test_a_coordinate_that_is_no_number_costs_its_image_and_no_other(tmp_path):
    data, out = shapes(tmp_path, "rtstruct", lambda _: None)
    n_rows = len(open_dataset(out))
    path = data / "annotations" / "SHAPES001.dcm"
    contour = pydicom.dcmread(path).ROIContourSequence[0].ContourSequence[0]
    first = "\\".join(map(str, contour.ContourData[:3])).encode()
    broken = path.read_bytes().replace(first, first.replace(b".", b"x", 1), 1)
    path.write_bytes(broken)
    result = etl.build(data, out, BuildOptions(rows=43, columns=57), force=True)
    assert [one.code for one in result.findings if one.severity == "error"] == [
        "contour-unreadable"
    ]
    assert result.n_rows == n_rows - 1 > 3
    status, text = verify(out, data, "--rebuild-check")
    assert status == 0, text
