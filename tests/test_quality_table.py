"""The table of quality findings: plant one defect in a phantom's files, build, look what is said.

Each defect stands at strengths on both sides of its threshold. It must give exactly its code on
exactly the rows it is in, and nothing below; the clean phantom gives nothing at all.
"""

import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import pytest
import xxhash
from builders import contour_path, images_unchanged, link_tree
from click.testing import CliRunner

import etl
import loader
from etl.check import check
from etl.cli import cli
from etl.contours.polygon import area
from etl.contours.rasterise import rasterise
from etl.findings import FLAG_CODES, QUALITY_CODES
from etl.options import BuildOptions
from etl.phantom.heart import Cine, end_systole
from etl.phantom.tree import write_phantom
from etl.verify.file import verify
from etl.workers import chunks

STACKS = (4, 8, 3)  # patients, slices, phases: 12 rows a patient, which have neighbours
ALONE = (8, 1, 2)  # 2 rows a patient, which have none
DIASTOLE, SYSTOLE = 0, end_systole(3)
PLACE = (1, 3, SYSTOLE)  # patient, slice and phase in the middle of a stack; an i-contour alone
BOTH = (1, 3, DIASTOLE)  # here both are drawn
EDGE = (1, 1, SYSTOLE)  # at the end of the stack


@dataclass(frozen=True)
class Tree:
    """A phantom's folder, in which files can be changed."""

    root: Path
    shape: tuple[int, int, int]

    def cine(self, patient):
        return Cine(0, patient, *self.shape[1:])

    def dicom(self, place):
        patient, *where = place
        return f"dicoms/{self.cine(patient).patient_id}/{self.cine(patient).number(*where)}.dcm"

    def contour(self, place, kind="i"):
        patient, *where = place
        return contour_path(self.cine(patient).original_id, self.cine(patient).number(*where), kind)

    def vertices(self, place, kind="i"):
        return np.loadtxt(self.root / self.contour(place, kind))

    def draw(self, place, vertices, kind="i", form="%.4f"):
        path = self.contour(place, kind)
        np.savetxt(self.root / path, vertices, form)
        return path

    def edit(self, place, change):
        """Change one DICOM file's data set; return its path."""
        path = self.dicom(place)
        dataset = pydicom.dcmread(self.root / path)
        change(dataset)
        (self.root / path).unlink()  # it may be shared with the clean phantom
        dataset.save_as(self.root / path)
        return path

    def places(self, patient):
        """Return the places of a patient's rows."""
        return sorted({(patient, *where) for *where, _ in self.cine(patient).contoured()})

    def move(self, patients, shift):
        for patient in patients:
            for where in self.cine(patient).contoured():
                place, kind = (patient, *where[:2]), where[2]
                self.draw(place, self.vertices(place, kind) + np.array(shift), kind)


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """Grow clean phantoms, once each, without the images that have no contour."""
    trees = {}
    watch = ExitStack()

    def grow(shape, seed=0):
        if (shape, seed) not in trees:
            tree = Tree(tmp_path_factory.mktemp("phantom"), shape)
            patients, slices, phases = shape
            write_phantom(tree.root, patients=patients, slices=slices, phases=phases, seed=seed)
            rows = {tree.dicom(place) for k in range(patients) for place in tree.places(k)}
            for path in tree.root.glob("dicoms/*/*.dcm"):
                if path.relative_to(tree.root).as_posix() not in rows:
                    path.unlink()
            watch.enter_context(images_unchanged(tree.root))
            trees[shape, seed] = tree
        return trees[shape, seed]

    with watch:
        yield grow


@pytest.fixture
def copied(grown, tmp_path):
    """Copy a clean phantom, to be changed."""
    return lambda shape: Tree(link_tree(grown(shape).root, tmp_path / "data"), shape)


@pytest.fixture
def stacks(copied):
    return copied(STACKS)


def build(tree, tmp_path, **options):
    """Build with both contours and all checks; return the open file."""
    options = BuildOptions(**({"contours": ("i", "o"), "partial": True} | options))
    out = tmp_path / "out.h5"
    etl.build(tree.root, out, options, force=True)
    return loader.open_dataset(out)


def findings(data, *severities):
    """Return (code, path) of the findings, whose rows and flags must agree with that."""
    check_rows(data)
    columns = (data.findings[name].tolist() for name in ("severity", "code", "path"))
    return sorted(
        (code, path)
        for severity, code, path in zip(*columns, strict=True)
        if severity in (severities or ("error", "warning"))
    )


def check_rows(data):
    """Check that findings name the row that has their path, and that its flags name them."""
    flags = np.zeros(len(data), np.uint64)
    paths = [data.manifest[f"{name}_path"].tolist() for name in ("dicom", "icontour", "ocontour")]
    columns = (data.findings[name].tolist() for name in ("code", "path", "row"))
    for code, path, row in zip(*columns, strict=True):
        owners = {k for column in paths for k, own in enumerate(column) if own == path and path}
        if code == "structure-excluded":  # the row has lost that path
            assert row >= 0
            assert not owners
            continue
        assert owners == ({row} if row >= 0 else set())
        if row >= 0 and code in FLAG_CODES:
            flags[row] |= np.uint64(1 << FLAG_CODES.index(code))
    assert data.manifest["flags"].tolist() == flags.tolist()


def messages(data, code):
    pairs = zip(data.findings["code"].tolist(), data.findings["message"].tolist(), strict=True)
    return [message for found, message in pairs if found == code]


# ------------------------------------------------------------------------------- clean phantoms


@pytest.mark.parametrize("seed", range(1))  # more: tests/torture/test_clean_phantoms.py
@pytest.mark.parametrize("shape", [(3, 6, 3), (6, 1, 2), (2, 3, 1), (1, 10, 2)], ids=str)
def test_a_clean_phantom_gives_nothing(grown, tmp_path, shape, seed):
    data = build(grown(shape, seed), tmp_path)
    assert findings(data) == []


# ---------------------------------------------------------------------- defects, and where they are
#
# Each takes a tree and a strength, changes files, and returns the paths that are to be found.


def radius(vertices):
    return np.sqrt(area(vertices) / np.pi)


def median_radius(tree, patient):
    return np.median([radius(tree.vertices(place)) for place in tree.places(patient)])


def resized(vertices, factor):
    return vertices.mean(axis=0) + factor * (vertices - vertices.mean(axis=0))


def spike(tree, x):
    """Run a line from the contour to a point at x, and back beside it."""
    vertices = tree.vertices(PLACE)
    leftmost = int(vertices[:, 0].argmin())
    corners = [(x, vertices[leftmost, 1]), vertices[leftmost] + (0, -0.02)]
    return [tree.draw(PLACE, np.insert(vertices, leftmost + 1, corners, axis=0))]


def missing_points(tree, n_points):
    return [tree.draw(PLACE, tree.vertices(PLACE)[: -int(n_points)])]


def loop(tree, n_pixels):
    """Add a triangle that is wound the other way round, outside of the contour."""
    vertices = tree.vertices(PLACE)
    right = int(vertices[:, 0].argmax())
    side = np.sqrt(2 * n_pixels)
    corners = vertices[right] + side * np.array([[1, 0.5], [1, -0.5], [0, 0]])
    return [tree.draw(PLACE, np.insert(vertices, right + 1, corners, axis=0))]


def double_clicks(tree, share):
    """Write the first points twice, until they are such a share of all."""
    vertices = tree.vertices(PLACE)
    n_twice = round(share / (1 - share) * len(vertices))
    times = np.where(np.arange(len(vertices)) < n_twice, 2, 1)
    return [tree.draw(PLACE, np.repeat(vertices, times, axis=0))]


def bump(tree, share):
    """Pull a piece of the inner contour over the outer one, by so large a share of its pixels."""
    inner, outer = (tree.vertices(BOTH, kind) for kind in "io")
    in_outer = rasterise(outer, 256, 256)
    right = int(inner[:, 0].argmax())
    for length in np.arange(4, 40, 0.1):
        drawn = inner.copy()
        drawn[(right + np.arange(-6, 7)) % len(inner), 0] += length
        mask = rasterise(drawn, 256, 256)
        if (mask & ~in_outer).sum() > share * mask.sum():
            return [tree.draw(BOTH, drawn)]
    raise AssertionError("no bump is long enough")


def copy_of_a_contour(tree, shift):
    """Draw a neighbour's contour, which is hardly another size, moved by `shift`."""
    other = (1, 2, SYSTOLE)
    vertices = np.round(tree.vertices(other), 2)
    return [tree.draw(other, vertices), tree.draw(PLACE, vertices + shift)]


def copy_of_an_image(tree, brighter):
    """Give one image another's pixels, one of them brighter."""
    other = pydicom.dcmread(tree.root / tree.dicom((1, 4, SYSTOLE)))
    pixels = np.frombuffer(other.PixelData, "<u2").copy()
    pixels[1000] += brighter
    place = tree.edit(PLACE, lambda dataset: setattr(dataset, "PixelData", pixels.tobytes()))
    return [place, tree.dicom((1, 4, SYSTOLE))]


def copy_of_another_patients_image(tree, shift):
    """Give one image another patient's pixels, in 8 bits, moved by some pixels."""
    other = 2, *PLACE[1:]
    pixels = np.frombuffer(pydicom.dcmread(tree.root / tree.dicom(other)).PixelData, "<u2")
    scaled = np.rint(pixels.reshape(256, 256) * (255 / pixels.max()))
    moved = np.roll(scaled, int(shift), axis=(0, 1)).astype("<u2").tobytes()
    return [
        tree.edit(PLACE, lambda dataset: setattr(dataset, "PixelData", moved)),
        tree.dicom(other),
    ]


def other_size(tree, change, place=PLACE):
    """Change the contour's radius by such a share of the patient's median radius."""
    vertices = tree.vertices(place)
    factor = 1 + change * median_radius(tree, place[0]) / radius(vertices)
    return [tree.draw(place, resized(vertices, factor))]


def other_size_at_the_end(tree, change):
    return other_size(tree, change, EDGE)


def other_place(tree, change, place=PLACE):
    """Move the contour by such a share of the patient's median radius."""
    shift = change * median_radius(tree, place[0]) * np.array([0.6, 0.8])
    return [tree.draw(place, tree.vertices(place) + shift)]


def other_place_at_the_end(tree, change):
    return other_place(tree, change, EDGE)


def outlier(tree, factor):
    """Make one contour so many times the data set's median radius."""
    radii = [radius(tree.vertices(p)) for k in range(tree.shape[0]) for p in tree.places(k)]
    place = (2, 0, SYSTOLE)
    vertices = tree.vertices(place)
    return [tree.draw(place, resized(vertices, factor * np.median(radii) / radius(vertices)))]


def constant(tree, share):
    """Set all pixels to one value, but such a share below it and as much above."""
    n_pixels = 256 * 256
    pixels = np.full(n_pixels, 300, "<u2")
    n_other = round(share * n_pixels)
    pixels[:n_other] -= np.arange(1, n_other + 1, dtype="<u2") % 200 + 1
    pixels[-n_other:] += np.arange(1, n_other + 1, dtype="<u2") % 200 + 1
    return [tree.edit(PLACE, lambda dataset: setattr(dataset, "PixelData", pixels.tobytes()))]


def saturated(tree, share):
    """Cut the values off so that such a share of the pixels has the highest."""

    def clip(dataset):
        pixels = np.frombuffer(dataset.PixelData, "<u2")
        top = np.sort(pixels)[-round(share * len(pixels))]
        dataset.PixelData = np.minimum(pixels, top).tobytes()

    return [tree.edit(PLACE, clip)]


def one_series(tree, change):
    """Make all images of the patient one series, and change one of them."""
    for place in tree.places(PLACE[0]):
        tree.edit(place, lambda dataset: setattr(dataset, "SeriesInstanceUID", "1.2.3"))
    return [tree.edit(PLACE, change)]


def other_spacing(tree, share):
    def change(dataset):
        spacing = [f"{float(value) * (1 + share):.8f}" for value in dataset.PixelSpacing]
        dataset.PixelSpacing = spacing

    return one_series(tree, change)


def turned(tree, degrees):
    """Turn an image in its plane."""

    def change(dataset):
        row, column = np.array(dataset.ImageOrientationPatient, float).reshape(2, 3)
        cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        both = [*(cosine * row + sine * column), *(cosine * column - sine * row)]
        dataset.ImageOrientationPatient = [f"{value:.8f}" for value in both]

    return one_series(tree, change)


def unrescaled(tree, n_images):
    """Leave so many of the patient's twelve images without the RescaleIntercept of their series."""

    def rescaled(dataset):
        dataset.SeriesInstanceUID = "1.2.3"
        dataset.RescaleSlope, dataset.RescaleIntercept = "1", "-1024"

    def plain(dataset):
        dataset.SeriesInstanceUID = "1.2.3"

    places = tree.places(PLACE[0])
    for place in places[n_images:]:
        tree.edit(place, rescaled)
    return [tree.edit(place, plain) for place in places[:n_images]]


def in_another_unit(tree, n_images):
    """Give so many of the patient's twelve images another unit, and no other patient any."""
    places = tree.places(PLACE[0])
    for place in places[n_images:]:
        tree.edit(place, lambda dataset: setattr(dataset, "RescaleType", "normalized"))
    return [
        tree.edit(place, lambda dataset: setattr(dataset, "RescaleType", "mrad"))
        for place in places[:n_images]
    ]


def misnamed(tree, n_images):
    """Add one to the InstanceNumber of so many of the patient's twelve images."""

    def change(dataset):
        dataset.InstanceNumber = int(dataset.InstanceNumber) + 1

    return [tree.edit(place, change) for place in tree.places(2)[: int(n_images)]]


def all_displaced(tree, pixels):
    tree.move(range(tree.shape[0]), (0.6 * pixels, -0.8 * pixels))
    return [""]


def all_far_off(tree, pixels):
    return all_displaced(tree, pixels)


def one_patient_displaced(tree, pixels):
    tree.move([2], (-0.8 * pixels, 0.6 * pixels))
    return [f"dicoms/{tree.cine(2).patient_id}"]


def tongue(tree, n_pixels):
    """Draw a tongue over the left border of what `--fit` keeps, by so many pixels."""
    vertices = tree.vertices(PLACE)
    leftmost = int(vertices[:, 0].argmin())
    end = np.array([(256 - FITTED["columns"]) / 2 - 0.5 - n_pixels, vertices[leftmost, 1]])
    side = np.array([0, 0.6])
    corners = [end - side, end + side]
    if vertices[leftmost + 1, 1] < vertices[leftmost, 1]:
        corners.reverse()
    return [tree.draw(PLACE, np.insert(vertices, leftmost + 1, corners, axis=0))]


FITTED = {"size": "fit", "rows": 104, "columns": 104}
OPTIONS = {"structure-cut": FITTED}  # that a code needs

# Code, planted how, strengths that are not found, strengths that are.
TABLE = [
    ("contour-partly-outside", spike, [0.0, -0.4], [-0.6, -3.0]),
    ("structure-cut", tongue, [-2.0, -0.1], [0.6, 4.0]),
    ("contour-open-gap", missing_points, [1, 2], [6, 12]),
    ("contour-self-crossing", loop, [0.5, 0.8], [1.2, 8.0]),
    ("contour-repeated-points", double_clicks, [0.02, 0.045], [0.055, 0.3]),
    ("inner-outside-outer", bump, [0.001, 0.006], [0.0125, 0.04]),
    ("identical-contour", copy_of_a_contour, [0.03, 0.5], [0.0, 0.003]),
    ("identical-image", copy_of_an_image, [1], [0]),
    ("near-duplicate", copy_of_another_patients_image, [30], [0, 1]),
    ("area-jump", other_size, [-0.1, 0.1], [-0.2, 0.2, 0.5]),
    ("area-jump", other_size_at_the_end, [-0.3, 0.3], [0.6]),
    ("centroid-jump", other_place, [0.18], [0.32, 0.5]),
    ("centroid-jump", other_place_at_the_end, [0.5], [0.95]),
    ("area-outlier", outlier, [0.18, 1.9], [0.13, 2.2]),
    ("image-constant", constant, [0.011, 0.1], [0.009, 0.001]),
    ("image-saturated", saturated, [0.005, 0.009], [0.011, 0.05]),
    ("geometry-changes", other_spacing, [0.0, 0.0008], [0.0012, -0.1]),
    ("geometry-changes", turned, [0.3, -0.5], [0.8, -5.0]),
    ("rescale-differs", unrescaled, [0, 4, 12], [1, 3]),
    ("units-differ", in_another_unit, [0, 12], [1, 5]),
    ("instance-number-differs", misnamed, [0, 4, 12], [1, 3]),
    ("alignment-dataset", all_displaced, [0.2, 0.35], [0.65, 1.3, 2.2]),
    ("contours-misfit", all_far_off, [], [8.0, 20.0]),
    ("alignment-patient", one_patient_displaced, [0.2, 0.4], [0.6, 1.0, 2.0]),
]
CASES = [
    pytest.param(code, plant, strength, is_found, id=f"{code}-{plant.__name__}-{strength}")
    for code, plant, below, above in TABLE
    for strengths, is_found in ((below, False), (above, True))
    for strength in strengths
]


@pytest.mark.parametrize(("code", "plant", "strength", "is_found"), CASES)
def test_a_defect_gives_its_code_on_its_rows_and_no_other(
    copied, tmp_path, code, plant, strength, is_found
):
    tree = copied(ALONE if plant is outlier else STACKS)
    paths = plant(tree, strength)
    expected = [(code, path) for path in sorted(paths)] if is_found else []
    assert findings(build(tree, tmp_path, **OPTIONS.get(code, {}))) == expected


def test_every_code_of_the_checks_stands_in_the_table():
    alignment = {"alignment-dataset", "alignment-patient"}
    found = {code for code, *_ in TABLE} | {"structures-overlap"}  # the next test
    found |= {"structures-exchanged"}  # test_exchanged.py
    always = {"contour-partly-outside", "structure-cut"}
    assert found == {*QUALITY_CODES} | always | alignment


@pytest.mark.parametrize(
    ("share", "is_found"), [(0.0, False), (0.03, False), (0.07, True), (0.5, True)]
)
def test_two_structures_drawn_over_each_other_are_flagged(stacks, tmp_path, share, is_found):
    """With link.csv one structure lies in the other, so it takes a table."""
    vertices = stacks.vertices(PLACE)
    right = vertices.copy()
    right[:, 0] = 2 * vertices[:, 0].max() - vertices[:, 0]  # mirrored, so that both touch
    mask = rasterise(vertices, 256, 256)
    while (mask & rasterise(right, 256, 256)).sum() < share * mask.sum():
        right[:, 0] -= 0.05
    np.savetxt(stacks.root / "right.txt", right, "%.4f")
    lines = ["patient_id,image,label,contour"]
    lines += [f"P,{stacks.dicom(PLACE)},left,{stacks.contour(PLACE)}"]
    lines += [f"P,{stacks.dicom(PLACE)},right,right.txt"]
    (stacks.root / "table.csv").write_text("\n".join(lines))
    result = etl.build(stacks.root / "table.csv", tmp_path / "out.h5", BuildOptions())
    told = [one for one in result.findings if one.severity in {"error", "warning"}]
    assert [one.code for one in told] == ["structures-overlap"] * is_found
    assert [one.path for one in told] == [stacks.dicom(PLACE)] * is_found
    data = loader.open_dataset(tmp_path / "out.h5")
    assert data.flagged("structures-overlap").tolist() == [is_found]
    both = mask & rasterise(np.loadtxt(stacks.root / "right.txt"), 256, 256)
    assert data.manifest["n_overlapping"].tolist() == [both.sum()]
    assert ("to 'left' and 'right'" in str(told)) == is_found


@pytest.mark.parametrize("layout", ["link", "table"])
@pytest.mark.parametrize("n_images", [0, 1, 4])
def test_images_with_the_uid_of_another_give_one_warning_a_patient(
    stacks, tmp_path, n_images, layout
):
    before = build(stacks, tmp_path)
    first, *others = stacks.places(2)
    uid = pydicom.dcmread(stacks.root / stacks.dicom(first)).SOPInstanceUID
    for place in others[:n_images]:
        stacks.edit(place, lambda dataset: setattr(dataset, "SOPInstanceUID", uid))
    told = {stacks.dicom(place) for place in others[:n_images]}
    if layout == "table":
        lines = ["patient_id,image,label,contour"]
        lines += [f"P,{stacks.dicom(one)},blood,{stacks.contour(one)}" for one in stacks.places(2)]
        (stacks.root / "table.csv").write_text("\n".join(lines))
        etl.build(stacks.root / "table.csv", tmp_path / "table.h5", BuildOptions())
        data = loader.open_dataset(tmp_path / "table.h5")
    else:
        data = build(stacks, tmp_path)
        assert (data.images == before.images).all()
    columns = (data.findings[name].tolist() for name in ("severity", "code", "row", "other_row"))
    found = [values for values in zip(*columns, strict=True) if values[0] != "info"]
    assert [values[:2] for values in found] == [("warning", "instance-duplicate")] * bool(n_images)
    for _, _, row, other_row in found:
        assert data.manifest["dicom_path"][row] in told
        assert data.manifest["dicom_path"][other_row] == stacks.dicom(first)
        [message] = messages(data, "instance-duplicate")
        assert (f"with {n_images - 1} more files" in message) == (n_images > 1)
    source, options = stacks.root, BuildOptions(contours=("i", "o"), partial=True)
    if layout == "table":
        source, options = stacks.root / "table.csv", BuildOptions()
    of_headers = check(source, options)
    assert [one.code for one in of_headers.findings].count("instance-duplicate") == bool(n_images)


@pytest.mark.parametrize("n_images", [0, 1, 5])
def test_missing_geometry_is_one_info_however_many_images_lack_it(stacks, tmp_path, n_images):
    for place in stacks.places(2)[:n_images]:
        stacks.edit(place, lambda dataset: delattr(dataset, "PixelSpacing"))
    data = build(stacks, tmp_path)
    assert findings(data) == []
    told = messages(data, "geometry-missing")
    assert len(told) == bool(n_images)
    for message in told:
        assert f"no usable PixelSpacing in {n_images} of 48 rows (1 patient)." in message


# ------------------------------------------------------------------------------- copies


@pytest.mark.parametrize(
    ("change", "form"),
    [
        (lambda vertices: vertices, "%.12e"),
        (lambda vertices: np.roll(vertices, 40, axis=0), "%.2f"),
        (lambda vertices: vertices[::-1], "%.4f"),
        (lambda vertices: np.vstack([vertices, vertices[:1]]), "%+.3f"),
    ],
    ids=["exponents", "other start, two decimals", "backwards", "closed"],
)
def test_a_contour_of_another_patient_is_found_however_it_is_written(
    copied, tmp_path, change, form
):
    tree = copied(ALONE)
    one, other = (0, 0, SYSTOLE), (5, 0, SYSTOLE)
    tree.draw(one, tree.vertices(one), form="%.2f")  # as the customary files have it
    tree.draw(other, change(tree.vertices(one)), form=form)
    data = build(tree, tmp_path)
    paths = [tree.contour(place) for place in (one, other)]
    assert findings(data) == [("identical-contour", paths[1])]  # the edges tell which is the copy
    assert messages(data, "identical-contour")[0].startswith(f"is a copy of {paths[0]}, of another")


def test_images_and_contours_copied_together_are_identical_images_alone(stacks, tmp_path):
    other = (1, 4, SYSTOLE)
    paths = copy_of_an_image(stacks, 0)
    stacks.draw(PLACE, stacks.vertices(other))
    assert findings(build(stacks, tmp_path)) == [("identical-image", p) for p in sorted(paths)]


@pytest.mark.parametrize("code", ["identical-image", "near-duplicate"])
@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"split": (50, 25, 25)}, "on two sides of the split: "),
        ({"folds": 4}, "in two folds: "),
        ({}, ""),
    ],
    ids=["split", "folds", "neither"],
)
def test_two_patients_with_one_image_in_two_splits_or_folds_are_a_leak(
    stacks, tmp_path, code, options, where
):
    first, second = (stacks.cine(k).patient_id for k in (1, 2))
    pixels = pydicom.dcmread(stacks.root / stacks.dicom((2, *PLACE[1:]))).PixelData
    if code == "near-duplicate":
        pixels = (np.frombuffer(pixels, "<u2") // 2).tobytes()
    stacks.edit(PLACE, lambda dataset: setattr(dataset, "PixelData", pixels))
    sides = tmp_path / "sides.csv"
    if "split" in options:  # the two apart, whatever the seed
        names = [stacks.cine(k).patient_id for k in range(4)]
        splits = ("train", "train", "test", "validation")
        lines = [f"{one},{side}" for one, side in zip(names, splits, strict=True)]
        sides.write_text("\n".join(["patient_id,split", *lines]) + "\n")
        options = {"split_file": sides}
    data = build(stacks, tmp_path, **options)
    told = messages(data, code)
    assert len(told) == 2
    for message in told:
        assert ("They are " in message) == bool(where)
        assert where in message
    if where:
        column = data.manifest["fold" if "folds" in where else "split"]
        values = dict(zip(data.manifest["patient_id"].tolist(), column.tolist(), strict=True))
        assert values[first] != values[second]
        assert told[0].endswith("Scores will be too good: give them one side in your split.")
    report = CliRunner().invoke(cli, ["report", str(tmp_path / "out.h5"), "--json"])
    (diagnosis,) = json.loads(report.stdout)["diagnoses"]
    assert ("They are " in diagnosis["text"]) == bool(where)
    assert f"{first} ({stacks.cine(1).original_id}) and {second}" in diagnosis["text"]


def copy_all(tree, kind):
    """Give patient 1 all contours of patient 2 of a kind; return their paths."""
    places = [(1, *where) for *where, found in tree.cine(1).contoured() if found == kind]
    for place in places:
        tree.draw(place, tree.vertices((2, *place[1:]), kind), kind)
    return [tree.contour(place, kind) for place in places]


@pytest.mark.parametrize("kind", ["i", "o"])
def test_of_two_patients_with_the_same_contours_the_one_they_do_not_fit_is_told(
    stacks, tmp_path, kind
):
    copied = copy_all(stacks, kind)
    data = build(stacks, tmp_path)
    flagged = [path for code, path in findings(data) if code == "identical-contour"]
    assert flagged == sorted(copied)
    result = CliRunner().invoke(cli, ["report", str(tmp_path / "out.h5"), "--json"])
    (diagnosis,) = json.loads(result.stdout)["diagnoses"]
    mine, other = stacks.cine(1), stacks.cine(2)
    assert diagnosis["text"].startswith(
        f"{mine.patient_id} ({mine.original_id}): all {len(copied)} {kind}-contours are copies of "
        f"{other.patient_id} ({other.original_id})'s and do not fit these images ("
    )
    assert diagnosis["remedy"] == (
        f"Exclude with --exclude-flagged identical-contour:{mine.patient_id}."
    )
    assert len(diagnosis["rows"]) == len(copied)


# ------------------------------------------------------------------------------- the audit


@pytest.mark.parametrize("shift", [(0, 0), (1, 1), (-0.4, 1.7), (2.3, -2.2)])
def test_the_displacement_is_measured_and_stands_in_the_file(stacks, tmp_path, shift):
    stacks.move(range(4), shift)
    build(stacks, tmp_path)
    result = CliRunner().invoke(cli, ["report", str(tmp_path / "out.h5"), "--json"])
    alignment = json.loads(result.stdout)["alignment"]
    assert (alignment["dx"], alignment["dy"]) == pytest.approx(shift, abs=0.25)
    assert alignment["n_patients"] == 4
    for patient in alignment["patients"].values():
        assert (patient["dx"], patient["dy"]) == pytest.approx(shift, abs=0.25)
        assert patient["n_contours"] == 6


def test_contours_that_count_from_1_are_told_and_mended_by_the_option(stacks, tmp_path):
    stacks.move(range(4), (1, 1))
    data = build(stacks, tmp_path)
    assert findings(data) == [("alignment-dataset", "")]
    (message,) = messages(data, "alignment-dataset")
    assert "build with --contour-origin 1." in message
    assert findings(build(stacks, tmp_path, contour_origin=1)) == []


def test_too_much_is_told_as_well(grown, tmp_path):
    data = build(grown(STACKS), tmp_path, contour_origin=1)
    assert "build with --contour-origin 0." in messages(data, "alignment-dataset")[0]


@pytest.mark.parametrize("patient", range(4))
def test_the_displaced_patient_is_named_and_no_other(stacks, tmp_path, patient):
    stacks.move([patient], (1.5, 1.5))
    data = build(stacks, tmp_path)
    assert findings(data) == [("alignment-patient", f"dicoms/{stacks.cine(patient).patient_id}")]


def test_outer_contours_whose_contrast_is_faint_say_nothing(stacks, tmp_path):
    stacks.move(range(4), (1, 1))
    assert findings(build(stacks, tmp_path, contours=("o",))) == []
    text = CliRunner().invoke(cli, ["report", str(tmp_path / "out.h5")]).stdout
    assert "Alignment not known: none of 24 contours lies by a clear edge" in text


@pytest.mark.parametrize(("n_contours", "n_measured"), [(2, 8), (None, 48)])
def test_the_audit_measures_as_many_contours_as_it_is_told(grown, tmp_path, n_contours, n_measured):
    build(grown(STACKS), tmp_path, audit_contours=n_contours)
    result = CliRunner().invoke(cli, ["report", str(tmp_path / "out.h5"), "--json"])
    alignment = json.loads(result.stdout)["alignment"]
    counts = [alignment[f"n_{name}"] for name in ("contours", "too_little_contrast", "at_edge")]
    assert sum(counts) == n_measured


# ------------------------------------------------------------------------------- the user decides


@pytest.fixture
def spoiled(stacks):
    """Return a phantom with a jump, an empty image and all contours displaced."""
    stacks.move(range(4), (1, 1))
    other_size(stacks, 0.4)
    other_place(stacks, 0.6, (0, 4, SYSTOLE))
    return stacks


def test_flagged_rows_are_left_out_and_it_is_said(spoiled, tmp_path):
    whole = build(spoiled, tmp_path)
    jump, other = spoiled.contour(PLACE), spoiled.contour((0, 4, SYSTOLE))
    warnings = [("alignment-dataset", ""), ("area-jump", jump), ("centroid-jump", other)]
    assert findings(whole) == warnings
    flagged = int(np.flatnonzero(whole.manifest["icontour_path"] == jump)[0])
    kept = np.delete(np.arange(len(whole)), flagged)
    dataset = {name: column[kept] for name, column in whole.manifest.items()}
    images, masks = whole.images[kept], whole.masks[kept]
    data = build(spoiled, tmp_path, exclude_flagged=("area-jump",))
    assert findings(data) == [*warnings, ("row-excluded", jump)]
    assert findings(data, "error") == [("row-excluded", jump)]
    (message,) = messages(data, "row-excluded")
    assert message == f"left out by --exclude-flagged area-jump: {messages(data, 'area-jump')[0]}"
    assert np.array_equal(data.images, images)
    assert np.array_equal(data.masks, masks)
    for name, column in dataset.items():
        np.testing.assert_array_equal(data.manifest[name], column)


def test_the_flagged_structure_of_one_patient_is_left_out_as_if_nobody_had_drawn_it(
    stacks, tmp_path
):
    copied = copy_all(stacks, "o")
    named = f"identical-contour:{stacks.cine(1).patient_id}"
    data = build(stacks, tmp_path, exclude_flagged=(named,), exclude_structures=True)
    assert verify(tmp_path / "out.h5", source=stacks.root, rebuild=True).problems == []
    gone = [path for code, path in findings(data, "info") if code == "structure-excluded"]
    assert gone == sorted(copied)
    assert messages(data, "structure-excluded")[0].startswith(
        "left out by --exclude-flagged identical-contour: is a copy of "
    )
    assert not data.manifest["flags"].any()
    for path in copied:
        (stacks.root / path).unlink()
    (tmp_path / "other").mkdir()
    expected = build(stacks, tmp_path / "other")
    assert data.dataset_id == expected.dataset_id
    for group in ("manifest", "contours"):
        for name, column in getattr(expected, group).stored.items():
            np.testing.assert_array_equal(getattr(data, group).stored[name], column)


def test_a_row_whose_only_structure_is_flagged_is_left_out(spoiled, tmp_path):
    """So is one whose image is flagged."""
    options = {"exclude_structures": True, "exclude_flagged": ("area-jump", "image-constant")}
    place = (2, 3, DIASTOLE)
    black = bytes(2 * 256 * 256)
    spoiled.edit(place, lambda dataset: setattr(dataset, "PixelData", black))
    data = build(spoiled, tmp_path, **options)
    left_out = {path for code, path in findings(data) if code == "row-excluded"}
    assert left_out == {spoiled.contour(PLACE), spoiled.dicom(place)}
    assert messages(data, "structure-excluded") == []


def test_a_row_list_of_a_report_leaves_out_its_rows(spoiled, tmp_path):
    whole = build(spoiled, tmp_path)
    n_rows, listed = len(whole), tmp_path / "rows.csv"
    found = ["report", str(tmp_path / "out.h5"), "--code", "area-jump,centroid-jump"]
    assert CliRunner().invoke(cli, [*found, "--csv", str(listed)]).exit_code == 0
    data = build(spoiled, tmp_path, exclude_file=str(listed))
    assert len(data) == n_rows - 2
    jump, other = spoiled.dicom(PLACE), spoiled.dicom((0, 4, SYSTOLE))
    assert [path for code, path in findings(data) if code == "row-excluded"] == sorted(
        [jump, other]
    )
    assert verify(tmp_path / "out.h5").problems == []
    options = data.attributes["options"]
    assert options["exclude_file_xxh3"] == xxhash.xxh3_128_hexdigest(listed.read_bytes())
    assert str(tmp_path) not in json.dumps(options)


def test_any_number_of_workers_leaves_out_the_same(spoiled, tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "MAX_PAIRS", 1)
    options = BuildOptions(("i", "o"), partial=True, exclude_flagged=("area-jump", "centroid-jump"))
    for workers in (1, 2):
        etl.build(spoiled.root, tmp_path / f"{workers}.h5", options, workers=workers)
    assert (tmp_path / "1.h5").read_bytes() == (tmp_path / "2.h5").read_bytes()


def test_any_number_of_workers_leaves_out_the_same_structures(stacks, tmp_path, monkeypatch):
    copy_all(stacks, "o")
    monkeypatch.setattr(chunks, "MAX_PAIRS", 1)
    flags = {"exclude_flagged": ("identical-contour",), "exclude_structures": True}
    options = BuildOptions(("i", "o"), partial=True, **flags)
    for workers in (1, 2):
        etl.build(stacks.root, tmp_path / f"{workers}.h5", options, workers=workers)
    assert (tmp_path / "1.h5").read_bytes() == (tmp_path / "2.h5").read_bytes()


def test_strict_and_leaving_out_all_stop_the_build(copied, tmp_path):
    tree = copied((2, 1, 1))
    for patient in (0, 1):
        tree.edit((patient, 0, 0), lambda dataset: setattr(dataset, "PixelData", bytes(1 << 17)))
    options = BuildOptions(exclude_flagged=("image-constant",))
    with pytest.raises(etl.EtlError, match=r"no usable pair(.|\n)*row-excluded"):
        etl.build(tree.root, tmp_path / "out.h5", options)
    one = BuildOptions(exclude_flagged=("identical-image",))
    with pytest.raises(etl.EtlError, match="row-excluded"):
        etl.build(tree.root, tmp_path / "out.h5", one, strict=True)
    assert not (tmp_path / "out.h5").exists()


def test_without_the_checks_nothing_is_said(spoiled, tmp_path):
    assert findings(build(spoiled, tmp_path, qc=False)) == []
    codes = [code for code, _ in findings(build(spoiled, tmp_path, audit=False))]
    assert codes == ["area-jump", "centroid-jump"]


def test_the_loader_leaves_out_by_flags(spoiled, tmp_path):
    data = build(spoiled, tmp_path)
    bit = np.uint64(1 << data.attributes["flag_codes"].index("area-jump"))
    batches = loader.Batches(
        data, batch_size=5, remainder="keep", where=lambda manifest: manifest["flags"] & bit == 0
    )
    rows = {int(row) for _ in batches for row in batches.indices}
    flagged = data.manifest["icontour_path"] == spoiled.contour(PLACE)
    assert rows == set(np.flatnonzero(~flagged).tolist())
