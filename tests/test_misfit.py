"""The table of contours in other coordinates: plant them, and see that the build names the mend."""

import os
from pathlib import Path

import numpy as np
import pydicom
import pytest
from builders import copy_tree, images_unchanged, link_tree
from click.testing import CliRunner

import etl
import loader
from etl.cli import cli
from etl.options import BuildOptions
from etl.phantom.tree import write_phantom

SIDE = 255  # columns - 1 and rows - 1 of phantoms and real images


def mirrored(v):
    return v * [-1, 1] + [SIDE, 0]


def upside_down(v):
    return v * [1, -1] + [0, SIDE]


def exchanged(v):
    return v[:, ::-1]


# What the files say of a contour v in pixels, its image's spacing (x, y), and what mends it.
TABLE = {
    "exchanged": (lambda v, _: exchanged(v), "--contour-transform swap"),
    "mirrored": (lambda v, _: mirrored(v), "--contour-transform flip-x"),
    "upside down": (lambda v, _: upside_down(v), "--contour-transform flip-y"),
    "half a turn": (lambda v, _: SIDE - v, "--contour-transform flip-x,flip-y"),
    "turned back": (lambda v, _: upside_down(exchanged(v)), "--contour-transform rotate-90"),
    "turned": (lambda v, _: mirrored(exchanged(v)), "--contour-transform swap,flip-y"),
    "other diagonal": (lambda v, _: SIDE - exchanged(v), "--contour-transform swap,flip-x,flip-y"),
    "half": (lambda v, _: v / 2, "--contour-transform scale=2"),
    "double": (lambda v, _: v * 2, "--contour-transform scale=0.5"),
    "mm": (lambda v, spacing: v * spacing, "--contour-transform mm"),
    "exchanged mm": (lambda v, s: exchanged(v * s), "--contour-transform mm,swap"),
    "mirrored mm": (lambda v, s: mirrored(v) * s, "--contour-transform mm,flip-x"),
    "half, upside down": (lambda v, _: upside_down(v) / 2, "--contour-transform scale=2,flip-y"),
    "double, exchanged": (lambda v, _: exchanged(v) * 2, "--contour-transform scale=0.5,swap"),
    "exchanged from 1": (
        lambda v, _: exchanged(v) + 1,
        "--contour-origin 1 --contour-transform swap",
    ),
    "mirrored from 1": (
        lambda v, _: mirrored(v) + 1,
        "--contour-origin 1 --contour-transform flip-x",
    ),
    "half from 1": (lambda v, _: v / 2 + 1, "--contour-origin 1 --contour-transform scale=2"),
}


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    root = tmp_path_factory.mktemp("misfit") / "data"
    write_phantom(root, patients=4, slices=5, phases=2)
    with images_unchanged(root):
        yield root


@pytest.fixture(scope="module")
def clean(phantom, tmp_path_factory):
    """Return the findings and the file of the phantom itself."""
    return build(phantom, tmp_path_factory.mktemp("clean") / "out.h5")


@pytest.fixture(scope="module")
def clean_real(real, tmp_path_factory):
    """Return the same of the real patients, whose contours count from 1."""
    return build(real, tmp_path_factory.mktemp("clean") / "out.h5", contour_origin=1)


@pytest.fixture(scope="module")
def real():
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("DICOM_ETL_REAL_DATA", default)) / "sunnybrook"
    if not folder.is_dir():
        pytest.skip("no real patients here: DICOM_ETL_REAL_DATA names the folder of sunnybrook/")
    return folder


def patients(root):
    """Return (patient_id, original_id, spacing as x and y) of a tree."""
    for line in (root / "link.csv").read_text().splitlines()[1:]:
        patient_id, original_id = line.split(",")
        image = next((root / "dicoms" / patient_id).glob("*.dcm"))
        spacing = pydicom.dcmread(image, specific_tags=["PixelSpacing"]).PixelSpacing
        yield patient_id, original_id, np.array(spacing, float)[::-1]


def rewrite(root, change, only=None, origin=0):
    """Write inner contours in other coordinates; `origin` is what the files count from."""
    for patient_id, original_id, spacing in patients(root):
        if only in (None, patient_id):
            for path in (root / "contourfiles" / original_id).glob("i-contours/*.txt"):
                vertices = np.array(path.read_bytes().split(), float).reshape(-1, 2) - origin
                np.savetxt(path, change(vertices, spacing), "%.6f")


def build(root, out, **options):
    result = etl.build(root, out, BuildOptions(contours=("i",), **options), force=True)
    return [one for one in result.findings if one.severity != "info"], loader.open_dataset(out)


def said(root, out):
    """Return the findings of a build, whether or not it wrote anything."""
    try:
        return build(root, out)[0]
    except etl.EtlError as error:
        assert "contours-misfit" in str(error)
        return [one for one in error.findings if one.severity != "info"]


def require_same(data, clean, mend):
    for row in range(len(data)):
        for (_, one), (_, other) in zip(data.polygons(row), clean.polygons(row), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
    # A pixel centre on an edge may change sides where a division does not undo a product.
    most = 2e-4 if "mm" in mend else 0
    assert (data.masks != clean.masks).mean() <= most


def as_options(mend):
    words = mend.split()
    options = dict(zip(words[::2], words[1::2], strict=True))
    return {
        "contour_origin": int(options.get("--contour-origin", 0)),
        "contour_transform": tuple(options["--contour-transform"].split(",")),
    }


@pytest.mark.parametrize("kind", TABLE)
def test_other_coordinates_of_the_phantom_are_named_and_mended(phantom, clean, tmp_path, kind):
    change, mend = TABLE[kind]
    root = link_tree(phantom, tmp_path / "data")
    rewrite(root, change)
    found = said(root, tmp_path / "out.h5")
    (finding,) = (one for one in found if one.code == "contours-misfit")
    assert f"With {mend}, " in finding.message
    assert (finding.path, finding.key) == ("", None)
    assert not {"alignment-dataset", "alignment-patient"} & {one.code for one in found}
    findings, data = build(root, tmp_path / "out.h5", **as_options(mend))
    assert findings == clean[0] == []
    require_same(data, clean[1], mend)


@pytest.mark.real_data
@pytest.mark.parametrize("kind", TABLE)
def test_other_coordinates_of_real_contours_are_named_and_mended(real, clean_real, tmp_path, kind):
    change, mend = TABLE[kind]
    root = copy_tree(real, tmp_path / "data")
    rewrite(root, change, origin=1)  # these count from 1: their findings say so
    found = said(root, tmp_path / "out.h5")
    (finding,) = (one for one in found if one.code == "contours-misfit")
    assert f"With {mend}, " in finding.message
    findings, data = build(root, tmp_path / "out.h5", **as_options(mend))
    assert findings == []
    require_same(data, clean_real[1], mend)


# ---------------------------------------------------------------- what no step of the option mends


def test_pixels_divided_by_the_spacing_are_told_apart(phantom, tmp_path):
    root = copy_tree(phantom, tmp_path / "data")
    rewrite(root, lambda v, spacing: v / spacing)
    (finding,) = (one for one in said(root, tmp_path / "out.h5") if one.code == "contours-misfit")
    assert "Multiplied by the pixel spacing of their images, " in finding.message
    for path in root.glob("dicoms/*/*.dcm"):
        dataset = pydicom.dcmread(path)
        dataset.PixelSpacing = ["1.300", "1.300"]
        dataset.save_as(path)
    write_contours = copy_tree(phantom, tmp_path / "pixels")
    for path in root.glob("contourfiles/*/*/*.txt"):
        vertices = np.loadtxt(write_contours / path.relative_to(root)) / 1.3
        np.savetxt(path, vertices, "%.6f")
    (finding,) = (one for one in said(root, tmp_path / "out.h5") if one.code == "contours-misfit")
    assert "With --contour-transform scale=1.3, " in finding.message


def test_a_shift_beyond_the_audit_is_measured(phantom, tmp_path):
    root = link_tree(phantom, tmp_path / "data")
    rewrite(root, lambda v, _: v + np.array([12, -9]))
    (finding,) = said(root, tmp_path / "out.h5")
    assert finding.code == "contours-misfit"
    assert "They lie +12.0 pixels too far in x and -9.0 in y" in finding.message


def test_what_nothing_mends_is_still_said(phantom, tmp_path):
    root = link_tree(phantom, tmp_path / "data")
    rewrite(root, lambda v, _: v * 0.8 + [40, -30])
    (finding,) = (one for one in said(root, tmp_path / "out.h5") if one.code == "contours-misfit")
    assert "No exchange of x and y, mirroring, quarter turn, factor or unit" in finding.message


def test_a_transform_that_the_contours_do_not_need_is_told(phantom, tmp_path):
    found, _ = build(phantom, tmp_path / "out.h5", contour_transform=("flip-y",))
    assert [one.code for one in found] == ["contours-misfit"]
    assert "As their files have them, " in found[0].message
    assert "build without --contour-transform." in found[0].message


@pytest.mark.parametrize("origin", [0, 1])
def test_an_offset_of_a_pixel_stays_what_it_is(phantom, tmp_path, origin):
    root = link_tree(phantom, tmp_path / "data")
    rewrite(root, lambda v, _: v + 1)
    found, _ = build(root, tmp_path / "out.h5", contour_origin=origin)
    assert [one.code for one in found] == ["alignment-dataset"] * (1 - origin)


# -------------------------------------------------------------------------------- one patient only


@pytest.mark.parametrize(
    ("patient", "kind"),
    [
        *[("PHANTOM001", kind) for kind in ("exchanged", "mirrored", "half", "double", "mm")],
        ("PHANTOM003", "mirrored"),  # the heart is so close to the middle that some nearly fit
    ],
)
def test_one_patient_in_other_coordinates_is_named(phantom, tmp_path, patient, kind):
    change, mend = TABLE[kind]
    root = link_tree(phantom, tmp_path / "data")
    rewrite(root, change, only=patient)
    found, _ = build(root, tmp_path / "out.h5")
    (finding,) = (one for one in found if one.code == "alignment-patient")
    assert finding.path == f"dicoms/{patient}"
    assert f"With {mend}, " in finding.message
    assert "rewrite its files, or build this patient by itself." in finding.message
    assert "contours-misfit" not in {one.code for one in found}


# --------------------------------------------------------------------------------------- clean data


@pytest.mark.parametrize("seed", range(2))  # more: tests/torture/test_clean_phantoms.py
def test_clean_phantoms_say_nothing(tmp_path, seed):
    write_phantom(tmp_path / "data", patients=3, slices=4, phases=2, seed=seed)
    assert build(tmp_path / "data", tmp_path / "out.h5")[0] == []


@pytest.mark.real_data
@pytest.mark.parametrize("contours", [("i",), ("o",), ("i", "o")])
def test_clean_real_patients_say_nothing(real, tmp_path, contours):
    options = BuildOptions(contours=contours, contour_origin=1, partial=True)
    result = etl.build(real, tmp_path / "out.h5", options)
    assert {one.code for one in result.findings if one.severity != "info"} <= {"contour-open-gap"}


@pytest.mark.parametrize("text", ["", "1 1\n2 2\n", "1e300 1\n1 1e300\n0 0\n"])
def test_contours_of_no_use_are_not_tried(phantom, tmp_path, text):
    root = link_tree(phantom, tmp_path / "data")
    for path in root.glob("contourfiles/*/*/*.txt"):
        path.write_text(text)
    with pytest.raises(etl.EtlError, match="Nothing to build") as caught:
        etl.build(root, tmp_path / "out.h5")
    assert not {"contours-misfit", "alignment-patient"} & {
        one.code for one in caught.value.findings
    }


def test_without_the_audit_nothing_is_tried(phantom, tmp_path):
    root = link_tree(phantom, tmp_path / "data")
    rewrite(root, TABLE["exchanged"][0])
    assert build(root, tmp_path / "out.h5", audit=False)[0] == []


def test_a_check_of_the_pixels_names_it_too(phantom, tmp_path):
    root = link_tree(phantom, tmp_path / "data")
    rewrite(root, TABLE["exchanged"][0])
    result = CliRunner().invoke(cli, ["check", str(root), "--full"])
    assert "With --contour-transform swap, " in " ".join(result.output.split())
    mended = ["check", str(root), "--full", "--contour-transform", "swap"]
    assert "contours-misfit" not in CliRunner().invoke(cli, mended).output


def test_any_number_of_workers_names_the_same(phantom, tmp_path):
    root = link_tree(phantom, tmp_path / "data")
    rewrite(root, TABLE["exchanged mm"][0])
    for workers in (1, 2):
        etl.build(root, tmp_path / f"{workers}.h5", workers=workers)
    assert (tmp_path / "1.h5").read_bytes() == (tmp_path / "2.h5").read_bytes()


# ---------------------------------------------------------------------- images that are not square


def test_images_that_are_not_square_are_named_by_what_mends_them(phantom, tmp_path):
    root = copy_tree(phantom, tmp_path / "data")
    for path in root.glob("dicoms/*/*.dcm"):
        dataset = pydicom.dcmread(path)
        dataset.PixelData = dataset.pixel_array[:200].tobytes()
        dataset.Rows = 200
        dataset.save_as(path)
    rewrite(root, lambda v, _: exchanged(v * [-1, 1] + [SIDE, 0]))  # turned: 256 rows, 200 columns
    options = {"rows": 200, "columns": 256}
    result = etl.build(root, tmp_path / "out.h5", BuildOptions(**options))
    (finding,) = (one for one in result.findings if one.code == "contours-misfit")
    assert "With --contour-transform swap,flip-x, " in finding.message
    mended = BuildOptions(**options, contour_transform=("swap", "flip-x"))
    result = etl.build(root, tmp_path / "out.h5", mended, force=True)
    assert [one for one in result.findings if one.severity != "info"] == []
