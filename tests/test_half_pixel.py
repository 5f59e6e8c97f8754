"""Contours that lie half a pixel off, whatever is drawn: plant it, build, and see it told."""

import csv
import os
from pathlib import Path

import numpy as np
import pydicom
import pytest
from builders import copy_tree, points_of, set_points

import etl
import loader
from etl.options import BuildOptions
from etl.phantom.objects import write_shapes
from etl.update.cache import cache_path

SIZE = {"rows": 176, "columns": 224}
CODES = ("alignment-dataset", "alignment-patient", "contours-misfit")


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clean") / "data"
    write_shapes(folder, patients=4, slices=10, **SIZE)
    return folder


def moved(clean, folder, shift, patients=None):
    """Return a copy whose contours are moved by (x, y) pixels."""
    root = copy_tree(clean, folder)
    for path in sorted((root / "annotations").iterdir()):
        if patients is not None and path.stem not in patients:
            continue
        image = pydicom.dcmread(next((root / "images" / path.stem).iterdir()))
        row, column = np.array(image.ImageOrientationPatient, float).reshape(2, 3)
        between_rows, between_columns = image.PixelSpacing
        move = shift[0] * between_columns * row + shift[1] * between_rows * column
        dataset = pydicom.dcmread(path)
        for structure in dataset.ROIContourSequence:
            for contour in structure.ContourSequence:
                set_points(contour, points_of(contour) + move)
        dataset.save_as(path)
    return root


def told(data, out, **options):
    result = etl.build(data, out, BuildOptions(**options))
    return [one for one in result.findings if one.code in CODES]


@pytest.mark.parametrize("seed", range(2))  # more: tests/torture/test_clean_phantoms.py
def test_a_clean_phantom_gives_nothing(tmp_path, seed):
    write_shapes(tmp_path / "data", patients=3, slices=8, seed=seed, **SIZE)
    assert told(tmp_path / "data", tmp_path / "out.h5", **SIZE) == []


@pytest.mark.parametrize(
    ("shift", "is_found"),
    [((0.5, 0), True), ((0, -0.5), True), ((-0.5, 0.5), True), ((0.3, 0.3), False)],
)
def test_half_a_pixel_of_a_structure_set_is_told(clean, tmp_path, shift, is_found):
    data = moved(clean, tmp_path / "data", shift)
    found = told(data, tmp_path / "out.h5", **SIZE)
    assert [one.code for one in found] == ["alignment-dataset"] * is_found
    assert all("ImagePositionPatient" in one.message for one in found)
    alignment = loader.open_dataset(tmp_path / "out.h5").attributes["alignment"]
    assert (alignment["dx"], alignment["dy"]) == pytest.approx(shift, abs=0.1)


def test_half_a_pixel_of_one_patient_is_told(clean, tmp_path):
    data = moved(clean, tmp_path / "data", (0.5, 0.5), ["SHAPES002"])
    (found,) = told(data, tmp_path / "out.h5", **SIZE)
    assert (found.code, found.path) == ("alignment-patient", "images/SHAPES002")


def test_an_update_that_audits_other_rows_says_what_a_full_build_says(clean, tmp_path):
    """An older file is updated when a patient has fewer planes, so that others are measured."""
    data = moved(clean, tmp_path / "data", (0.5, 0))
    hidden = sorted((data / "images" / "SHAPES001").iterdir())[:3]
    for path in hidden:
        path.rename(tmp_path / path.name)
    out, full = tmp_path / "out.h5", tmp_path / "full.h5"
    etl.build(data, out, BuildOptions(**SIZE), update=True)
    assert cache_path(out).exists()
    for path in hidden:
        (tmp_path / path.name).rename(path)
    result = etl.build(data, out, BuildOptions(**SIZE), update=True)
    assert any("taken over" in note for note in result.notes)
    etl.build(data, full, BuildOptions(**SIZE))
    assert out.read_bytes() == full.read_bytes()


def test_segmentations_are_not_audited(tmp_path):
    write_shapes(tmp_path / "data", "seg", patients=3, slices=6, **SIZE)
    assert told(tmp_path / "data", tmp_path / "out.h5", **SIZE) == []
    assert "alignment" not in loader.open_dataset(tmp_path / "out.h5").attributes


def real_table(folder, shift):
    """Return a table of real inner contours, which count from 1, moved by (x, y) pixels."""
    default = Path(__file__).parents[2] / "shared" / "data"
    source = Path(os.environ.get("DICOM_ETL_REAL_DATA", default)) / "sunnybrook"
    if not (source / "link.csv").exists():
        pytest.skip("no real patients here: DICOM_ETL_REAL_DATA names the folder of sunnybrook/")
    root = copy_tree(source, folder)
    lines = ["patient_id,image,label,contour"]
    with (root / "link.csv").open() as file:
        for line in csv.DictReader(file):
            drawn = root / "contourfiles" / line["original_id"] / "i-contours"
            for path in sorted(drawn.glob("*.txt")):
                np.savetxt(path, np.loadtxt(path) + shift, "%.2f")
                image = f"dicoms/{line['patient_id']}/{int(path.name.split('-')[2])}.dcm"
                lines.append(f"{line['patient_id']},{image},inner,{path.relative_to(root)}")
    (root / "table.csv").write_text("\n".join(lines) + "\n")
    return root / "table.csv"


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("shift", "is_found"),
    [((0, 0), False), ((-0.5, 0), True), ((0, -0.5), True), ((0.5, 0.5), True), ((0.2, 0), False)],
)
def test_half_a_pixel_of_contours_drawn_by_hand_is_told(tmp_path, shift, is_found):
    """All are measured: 56 contours by hand scatter by 0.6 pixel about -0.1 and 0.04."""
    table = real_table(tmp_path / "data", shift)
    options = {"contour_origin": 1, "audit_contours": None}
    found = told(table, tmp_path / "out.h5", **options)
    assert [one.code for one in found] == ["alignment-dataset"] * is_found


@pytest.mark.real_data
@pytest.mark.parametrize("folder", ["rtstruct", "seg/dcmqi", "seg/highdicom"])
def test_real_objects_say_nothing(tmp_path, folder):
    default = Path(__file__).parents[2] / "shared" / "data"
    data = Path(os.environ.get("DICOM_ETL_REAL_DATA", default)) / folder
    if not data.exists():
        pytest.skip("no real objects here: DICOM_ETL_REAL_DATA names the folder of seg/")
    assert told(data, tmp_path / "out.h5", size="most") == []
