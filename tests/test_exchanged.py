"""Structures whose names are exchanged in a patient: plant it, build, and see it told."""

import csv

import numpy as np
import pydicom
import pytest
from builders import copy_tree, dicom_bytes, instance

import etl
import loader
from etl.check import check
from etl.options import BuildOptions
from etl.phantom.objects import write_shapes
from etl.phantom.tree import write_phantom
from etl.quality.exchanged import Drawn, largest

CODE = "structures-exchanged"
SIZE = {"rows": 88, "columns": 112}
NAMED = {
    "rtstruct": ("StructureSetROISequence", "ROIName"),
    "seg": ("SegmentSequence", "SegmentLabel"),
}


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    root = tmp_path_factory.mktemp("clean")
    for kind in (*NAMED, "table"):
        write_shapes(root / kind, kind, patients=6, slices=9, **SIZE)
    return root


def test_a_structure_that_no_row_shows_is_largest_nowhere():
    nothing = np.empty((0, 2))
    none = Drawn(np.empty(0, np.int64), np.empty(0), np.empty((0, 3)), nothing)
    assert list(largest(np.array([0, 0, 1]), none)) == []
    row, radius = np.array([0, 1, 2]), np.array([2.0, 3.0, 1.0])
    some = Drawn(row, radius, np.zeros((3, 3)), np.zeros((3, 2)))
    assert list(largest(np.array([0, 0, 1]), some)) == [(0, 1), (1, 2)]


def rename(root, kind, patient, names):
    """Give structures of a patient other names."""
    if kind == "table":
        path = root / "table.csv"
        lines = [line.split(",") for line in path.read_text().splitlines()]
        place = lines[0].index("label")
        for line in lines:
            if line[0] == patient:
                line[place] = names.get(line[place], line[place])
        path.write_text("\n".join(map(",".join, lines)) + "\n")
        return
    path = root / "annotations" / f"{patient}.dcm"
    dataset = pydicom.dcmread(path)
    sequence, attribute = NAMED[kind]
    for one in getattr(dataset, sequence):
        setattr(one, attribute, names.get(getattr(one, attribute), getattr(one, attribute)))
    dataset.save_as(path)


def remove(root, patient, name):
    """Remove a structure from a structure set."""
    path = root / "annotations" / f"{patient}.dcm"
    dataset = pydicom.dcmread(path)
    (gone,) = (one.ROINumber for one in dataset.StructureSetROISequence if one.ROIName == name)
    for sequence in ("StructureSetROISequence", "ROIContourSequence", "RTROIObservationsSequence"):
        number = "ROINumber" if sequence.startswith("Structure") else "ReferencedROINumber"
        kept = [one for one in getattr(dataset, sequence) if getattr(one, number) != gone]
        setattr(dataset, sequence, kept)
    dataset.save_as(path)


def build(data, tmp_path, **options):
    result = etl.build(data, tmp_path / "out.h5", BuildOptions(**SIZE, **options), force=True)
    told = [one for one in result.findings if one.code == CODE]
    return result, told, loader.open_dataset(tmp_path / "out.h5")


@pytest.mark.parametrize("seed", range(2))  # more: tests/torture/test_clean_phantoms.py
def test_nothing_is_found_in_a_clean_phantom(tmp_path, seed):
    write_shapes(tmp_path / "data", patients=6, slices=9, seed=seed, **SIZE)
    assert build(tmp_path / "data", tmp_path)[1] == []


@pytest.mark.parametrize("kind", ["rtstruct", "seg", "table"])
@pytest.mark.parametrize("names", [("box", "sphere"), ("cylinder", "torus")])
def test_two_names_exchanged_in_one_patient(clean, tmp_path, kind, names):
    root = copy_tree(clean / kind, tmp_path / "data")
    rename(root, kind, "SHAPES004", dict(zip(names, names[::-1], strict=True)))
    result, told, data = build(root, tmp_path)
    codes = {one.name: one.code for one in data.structures}
    assert {one.label for one in told} == {codes[name] for name in names}
    assert {one.key.patient_id for one in told} == {"SHAPES004"}
    rows = data.manifest["patient_id"] == "SHAPES004"
    is_drawn = [data.manifest[f"label{codes[name]}_path"] != "" for name in names]
    assert (data.flagged(CODE) == (rows & (is_drawn[0] | is_drawn[1]))).all()
    message = next(one.message for one in told if one.label == codes[names[0]])
    if kind != "table":  # there the path tells it
        subject, _, message = message.partition(": ")
        assert subject.startswith(f"{names[0]} on images/SHAPES004/")
    assert message.startswith(
        f"looks like the {names[1]!r} of the other patients, and the {names[1]!r} like their "
        f"{names[0]!r}. Compared with the {names[1]!r}: "
    )
    assert "exchanged in patient SHAPES004" in message
    (diagnosis,) = (one for one in result.diagnoses if one.code == CODE)
    assert diagnosis.text.startswith(
        f"SHAPES004: the {names[0]!r} looks like the {names[1]!r} of the other patients, and the "
    )
    assert diagnosis.text.count("looks like") == 1  # once for both
    assert "--exclude-flagged structures-exchanged:SHAPES004" in diagnosis.remedy
    assert diagnosis.n_findings == len(told)


def test_three_names_passed_on(clean, tmp_path):
    root = copy_tree(clean / "rtstruct", tmp_path / "data")
    ring = {"sphere": "box", "box": "torus", "torus": "sphere"}
    rename(root, "rtstruct", "SHAPES004", ring)
    result, told, data = build(root, tmp_path)
    names = {one.code: one.name for one in data.structures}
    assert {names[one.label] for one in told} == set(ring)
    (diagnosis,) = (one for one in result.diagnoses if one.code == CODE)
    assert diagnosis.text.count("looks like the") == 3


def test_one_wrong_name_where_the_right_one_is_missing(clean, tmp_path):
    root = copy_tree(clean / "rtstruct", tmp_path / "data")
    remove(root, "SHAPES002", "box")
    assert build(root, tmp_path)[1] == []
    rename(root, "rtstruct", "SHAPES002", {"sphere": "box"})
    _, told, _ = build(root, tmp_path)
    assert {one.key.patient_id for one in told} == {"SHAPES002"}
    assert all(": looks like the 'sphere' of the other" in one.message for one in told)


def test_bits_and_excluded_structures(clean, tmp_path):
    root = copy_tree(clean / "rtstruct", tmp_path / "data")
    rename(root, "rtstruct", "SHAPES004", {"box": "sphere", "sphere": "box"})
    told = build(root, tmp_path)[1]
    assert build(root, tmp_path, masks="bits")[1] == told
    flags = {"exclude_flagged": (CODE,), "exclude_structures": True}
    _, _, data = build(root, tmp_path, **flags)
    mine = data.manifest["patient_id"] == "SHAPES004"
    for name in ("box", "sphere"):
        (code,) = (one.code for one in data.structures if one.name == name)
        assert not data.manifest[f"n_pixels_{code}"][mine].any()
    assert mine.any()


def test_inner_and_outer_contours_exchanged_are_told_by_their_nesting_alone(tmp_path):
    """With link.csv one lies in the other: each row is told already."""
    write_phantom(tmp_path / "data", patients=5, slices=6, phases=2)
    with (tmp_path / "data" / "link.csv").open() as file:
        original_id = next(csv.DictReader(file))["original_id"]
    folder = tmp_path / "data" / "contourfiles" / original_id
    outer = sorted((folder / "o-contours").iterdir())
    for path in outer:
        inner = folder / "i-contours" / path.name.replace("ocontour", "icontour")
        texts = inner.read_text(), path.read_text()
        inner.write_text(texts[1])
        path.write_text(texts[0])
    options = BuildOptions(("i", "o"), partial=True)
    result = etl.build(tmp_path / "data", tmp_path / "out.h5", options)
    told = [one.code for one in result.findings if one.severity == "warning"]
    assert told.count("inner-outside-outer") == len(outer)
    assert CODE not in told


def write_sides(root, turned):
    """Write six patients with a dim organ at the upper left and a bright one at the lower right."""
    rng = np.random.default_rng(0)
    lines = ["patient_id,image,label,contour"]
    rows, columns = np.mgrid[:48, :64]
    turns = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    for patient in (f"P{number}" for number in range(6)):
        for place in range(3):
            pixels = rng.integers(0, 20, rows.shape).astype("<i2")
            name = f"{patient}/{place}"
            for label, *middle, value in (("dim", 16, 14, 500), ("bright", 48, 34, 1500)):
                x, y = rng.normal(middle, 0.5)
                pixels[np.hypot(columns - x, rows - y) < 8] += value
                if patient == turned:
                    x, y = 63 - x, 47 - y
                points = np.stack([x + 8 * np.cos(turns), y + 8 * np.sin(turns)], axis=1)
                contour = root / f"{name}-{label}.txt"
                contour.parent.mkdir(parents=True, exist_ok=True)
                contour.write_text("".join(f"{u:.3f} {v:.3f}\n" for u, v in points))
                lines.append(f"{patient},{name}.dcm,{label},{name}-{label}.txt")
            if patient == turned:
                pixels = np.ascontiguousarray(pixels[::-1, ::-1])
            nowhere = dict.fromkeys(("ImagePositionPatient", "ImageOrientationPatient"))
            uids = {"uid": f"1.2.{name.replace('P', '').replace('/', '.')}"}
            uids["SeriesInstanceUID"] = uids["uid"].rpartition(".")[0]
            image = instance(pixels, **uids, **nowhere)
            (root / f"{name}.dcm").write_bytes(dicom_bytes(image))
    (root / "table.csv").write_text("\n".join(lines) + "\n")
    return root


def test_a_check_that_knows_no_brightness_leaves_the_answer_to_the_build(tmp_path):
    """By their places the organs of a turned patient have each other's name; they have not."""
    data = write_sides(tmp_path / "data", turned="P1")
    options = BuildOptions(rows=48, columns=64, audit=False)
    result = etl.build(data, tmp_path / "out.h5", options)
    found = check(data, options, full=True)
    for one in (result, found):
        told = {finding.code for finding in one.findings} - {"near-duplicate"}
        assert told == {"geometry-missing"}
