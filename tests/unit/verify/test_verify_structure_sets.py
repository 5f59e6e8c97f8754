"""`verify --source` and `--rebuild-check` on structure sets and segmentations."""

import pydicom
import pytest
from click.testing import CliRunner

import etl
from etl.cli import cli
from etl.options import BuildOptions
from etl.phantom.objects import write_shapes


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
