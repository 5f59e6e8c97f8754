"""Shapes of known volume, from each kind of source: volumes, overlap with the exact shapes, rows.

Sphere, box, torus, and cylinder with a hole, in axial, sagittal and oblique planes whose pixels are
not square.
"""

import math

import numpy as np
import pytest

import etl
from etl.phantom.objects import Patient, write_shapes
from loader import open_dataset

SLICES = 160  # with fewer, whole slices at the ends of a box are more than 1 % of it
SMALL, LARGE = (50, 100), (256, 216)


def build(folder, kind, size, patients):
    write_shapes(
        folder / "data", kind, patients=patients, slices=SLICES, rows=size[0], columns=size[1]
    )
    options = etl.BuildOptions(rows=size[0], columns=size[1], qc=False)
    etl.build(folder / "data", folder / "out.h5", options)
    return open_dataset(folder / "out.h5")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Return the data set of each kind of source, of an axial, a sagittal and an oblique series."""
    folder = tmp_path_factory.mktemp("shapes")
    kinds = ("rtstruct", "seg", "table")
    for kind in kinds:
        (folder / kind).mkdir()
    return {kind: build(folder / kind, kind, SMALL, 3) for kind in kinds}


def require_shapes(data, size, patients):
    """Compare the masks of each patient and structure with what the shapes are."""
    assert {one.name for one in data.structures} == {"sphere", "box", "torus", "cylinder"}
    for number in range(patients):
        one = Patient(number, *size, slices=SLICES, seed=0)
        mine = np.flatnonzero(data.manifest["patient_id"] == one.patient_id)
        voxel = math.prod(one.spacing) * one.thickness
        for structure in data.structures:
            found = data.masks[mine] == structure.code
            volume = float(found.sum()) * voxel
            assert volume == pytest.approx(one.shapes[structure.name].volume, rel=0.01)
            places = data.manifest["slice"][mine].tolist()
            exact = np.stack([one.mask(structure.name, place - 1) for place in places])
            dice = 2 * (found & exact).sum() / (found.sum() + exact.sum())
            assert dice >= 0.98


@pytest.mark.parametrize("kind", ["rtstruct", "seg", "table"])
def test_volumes_are_within_a_percent_in_any_orientation(small, kind):
    spacing = Patient(0, *SMALL, slices=SLICES, seed=0).spacing
    assert spacing[0] > 1.5 * spacing[1]
    require_shapes(small[kind], SMALL, 3)


@pytest.mark.parametrize(("size", "patients"), [((112, 144), 3), ((128, 108), 3), (LARGE, 1)])
def test_volumes_are_within_a_percent_in_images_of_any_size(tmp_path, size, patients):
    require_shapes(build(tmp_path, "rtstruct", size, patients), size, patients)


@pytest.mark.parametrize("kind", ["seg", "table"])
def test_each_source_gives_the_same_rows(small, kind):
    expected, found = small["rtstruct"], small[kind]
    assert np.array_equal(found.images, expected.images)
    for column in ("patient_id", "slice", "pixel_spacing_row", "pixel_spacing_column", "mean"):
        assert np.array_equal(found.manifest[column], expected.manifest[column])
    for axis in "xyz":
        name = f"image_position_{axis}"
        assert np.allclose(found.manifest[name], expected.manifest[name])
    n_drawn = int((expected.masks > 0).sum())
    assert (found.masks != expected.masks).sum() <= n_drawn / 1000  # contours are polygons
