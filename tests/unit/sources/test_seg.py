import copy
import gzip
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest
from click.testing import CliRunner

import etl
from etl.cli import cli
from etl.errors import EtlError
from etl.options import BuildOptions
from etl.phantom.objects import Patient, segmentation, write_shapes
from loader import open_dataset

SLICES = 6
ROWS, COLUMNS = 43, 57  # no frame of an odd number of pixels begins at a byte
ONE = Patient(0, ROWS, COLUMNS, SLICES, 0)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes") / "clean"
    write_shapes(root, "seg", patients=1, slices=SLICES, rows=ROWS, columns=COLUMNS)
    return root


@pytest.fixture
def root(clean, tmp_path):
    return shutil.copytree(clean, tmp_path / "data")


def build(root, rows=ROWS, columns=COLUMNS, **options):
    out = root.parent / "out.h5"
    result = etl.build(root, out, BuildOptions(rows=rows, columns=columns, **options), force=True)
    return result, open_dataset(out)


def change(root, edit):
    path = root / "annotations" / "SHAPES001.dcm"
    dataset = pydicom.dcmread(path)
    edit(dataset)
    dataset.save_as(path)


def only(result, code):
    (found,) = (finding for finding in result.findings if finding.code == code)
    return found


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_masks_are_exactly_the_segments(root, kind):
    segmentation(ONE, kind).save_as(
        root / "annotations" / "SHAPES001.dcm", enforce_file_format=True
    )
    result, data = build(root)
    assert [one.name for one in data.structures] == ["box", "cylinder", "sphere", "torus"]
    assert not [one for one in result.findings if one.severity != "info"]
    for row, place in enumerate(data.manifest["slice"].tolist()):
        for structure in data.structures:
            exact = ONE.mask(structure.name, place - 1)
            assert np.array_equal(data.masks[row] == structure.code, exact)
            assert data.manifest[f"{structure.stem}_area"][row] == exact.sum() or not exact.any()


def test_a_segment_that_a_frame_does_not_show_is_no_region(root):
    """Label maps and whole stacks have frames without some segments: that is background."""

    def emptied(dataset):
        dataset.PixelData = bytes(len(dataset.PixelData))

    change(root, emptied)
    with pytest.raises(EtlError, match="Nothing to build"):
        build(root, layout="seg")


@pytest.mark.parametrize(("threshold", "is_written"), [(0.4, True), (0.6, False)])
def test_the_threshold_decides_on_fractions(root, threshold, is_written):
    dataset = segmentation(ONE, "FRACTIONAL")
    values = np.frombuffer(dataset.PixelData, np.uint8)
    dataset.PixelData = (values // 2).tobytes()  # a half of the highest
    dataset.save_as(root / "annotations" / "SHAPES001.dcm", enforce_file_format=True)
    if is_written:
        _, data = build(root, segment_threshold=threshold)
        assert (data.masks > 0).any()
    else:
        with pytest.raises(EtlError, match="Nothing to build"):
            build(root, segment_threshold=threshold)


def write(root, dataset):
    dataset.save_as(root / "annotations" / "SHAPES001.dcm", enforce_file_format=True)


def fractional(edit):
    """Return a fractional segmentation whose values, by frame, are changed."""
    dataset = segmentation(ONE, "FRACTIONAL")
    n_bytes = dataset.NumberOfFrames * ROWS * COLUMNS
    values = np.frombuffer(dataset.PixelData, np.uint8)[:n_bytes].reshape(-1, ROWS, COLUMNS).copy()
    numbers = [
        group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        for group in dataset.PerFrameFunctionalGroupsSequence
    ]
    edit(values, np.array(numbers))
    dataset.PixelData = values.tobytes() + b"\0" * (n_bytes % 2)
    return dataset


def test_a_segment_that_reaches_the_threshold_nowhere_is_told(root):
    def weaken(values, numbers):
        values[numbers == 1] //= 4
        values[np.flatnonzero(numbers == 2)[0]] //= 4  # the others of it reach the threshold

    write(root, fractional(weaken))
    result, data = build(root)
    first, second, *_ = ONE.shapes
    message = only(result, "mask-empty").message
    assert message.startswith(f"{first!r}: its ")
    assert (
        "reach 25.0% of MaximumFractionalValue at most, and --segment-threshold is 0.5" in message
    )
    assert first not in [one.name for one in data.structures]
    assert second in [one.name for one in data.structures]


def padded_frames():
    """Return a segmentation each frame of which is filled up to whole bytes."""
    dataset = segmentation(ONE)
    bits = np.unpackbits(np.frombuffer(dataset.PixelData, np.uint8), bitorder="little")
    frames = bits[: dataset.NumberOfFrames * ROWS * COLUMNS].reshape(-1, ROWS * COLUMNS)
    data = b"".join(np.packbits(one, bitorder="little").tobytes() for one in frames)
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    return dataset


def without(kind, keyword):
    dataset = segmentation(ONE, kind)
    del dataset[keyword]
    return dataset


def set_to(kind, keyword, value):
    dataset = segmentation(ONE, kind)
    setattr(dataset, keyword, value)
    return dataset


def graded():
    def halve(values, _):
        values[:, ::2] //= 2

    dataset = fractional(halve)
    dataset.SegmentationType = "BINARY"
    return dataset


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            padded_frames,
            r"PixelData has \d+ bytes, expected \d+ for \d+ frames of 43 x 57 pixels of 1",
        ),
        (lambda: without("BINARY", "SegmentationType"), "SegmentationType is ''"),
        (lambda: set_to("FRACTIONAL", "SegmentationType", "OTHER"), "SegmentationType is 'OTHER'"),
        (lambda: without("FRACTIONAL", "MaximumFractionalValue"), "no MaximumFractionalValue"),
        (lambda: set_to("FRACTIONAL", "MaximumFractionalValue", 0), "no MaximumFractionalValue"),
        (lambda: set_to("FRACTIONAL", "MaximumFractionalValue", 100), "pixels of 200, but Max"),
        (graded, "is BINARY, but its pixels have more than two values"),
    ],
    ids=["filled frames", "no type", "other type", "no maximum", "maximum 0", "above it", "graded"],
)
def test_a_segmentation_that_contradicts_itself_is_refused(root, make, words):
    write(root, make())
    with pytest.raises(EtlError, match=rf"segmentation-unreadable(.|\n)*{words}"):
        build(root)


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_a_number_that_no_segment_has_is_told(root, kind):
    dataset = segmentation(ONE, kind)
    names = list(ONE.shapes)
    n_frames = sum(ONE.mask(names[1], place).any() for place in range(SLICES))
    del dataset.SegmentSequence[1]
    write(root, dataset)
    result, data = build(root)
    message = only(result, "structure-number-invalid").message
    assert message.startswith(f"{n_frames} frames of segment number '2', which no segment of the")
    assert sorted(one.name for one in data.structures) == sorted({*names} - {names[1]})


@pytest.mark.parametrize("is_named", [True, False])
def test_the_background_of_a_label_map_may_have_any_value(root, is_named):
    dataset = segmentation(ONE, "LABELMAP")
    values = np.frombuffer(dataset.PixelData, np.uint8).copy()
    values[values == 0] = 255
    dataset.PixelData = values.tobytes()
    dataset.add_new("PixelPaddingValue", "US", 255)
    if is_named:
        item = copy.deepcopy(dataset.SegmentSequence[0])
        item.SegmentNumber, item.SegmentLabel = 255, "Background"
        dataset.SegmentSequence.append(item)
    write(root, dataset)
    result, data = build(root)
    assert [one.name for one in data.structures] == ["box", "cylinder", "sphere", "torus"]
    assert not [one for one in result.findings if one.severity != "info"]


def test_without_references_the_plane_tells(root):
    def unknown(dataset):
        for group in dataset.PerFrameFunctionalGroupsSequence:
            del group.DerivationImageSequence

    _, before = build(root)
    masks = before.masks.copy()
    change(root, unknown)
    result, after = build(root)
    assert "frames refer to no image" in only(result, "contour-by-position").message
    assert np.array_equal(after.masks, masks)


@pytest.mark.parametrize("is_placed", [False, True])
def test_images_without_a_place_have_the_segments_that_name_them(root, is_placed):
    """As of radiographs and ultrasound, whose segmentations have no places either."""

    def unplaced(dataset):
        for group in dataset.PerFrameFunctionalGroupsSequence:
            del group.PlanePositionSequence
        del dataset.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence

    _, before = build(root)
    masks = dict(zip(before.manifest["sop_instance_uid"], before.masks.copy(), strict=True))
    for path in (root / "images").rglob("*.dcm"):
        dataset = pydicom.dcmread(path)
        del dataset.ImagePositionPatient, dataset.ImageOrientationPatient
        dataset.save_as(path)
    if not is_placed:
        change(root, unplaced)
    result, after = build(root)
    assert not [one for one in result.findings if one.severity == "error"]
    assert len(after) == len(masks)
    for uid, mask in zip(after.manifest["sop_instance_uid"], after.masks, strict=True):
        assert np.array_equal(mask, masks[uid])
    verified = CliRunner().invoke(
        cli, ["verify", str(root.parent / "out.h5"), "--source", str(root), "--rebuild-check"]
    )
    assert verified.exit_code == 0, verified.output


def test_frames_between_planes_are_left_out(root):
    def moved(dataset):
        for group in dataset.PerFrameFunctionalGroupsSequence[:2]:
            position = list(group.PlanePositionSequence[0].ImagePositionPatient)
            position[2] = float(position[2]) + 2
            group.PlanePositionSequence[0].ImagePositionPatient = [f"{v:.4f}" for v in position]

    change(root, moved)
    result, data = build(root)
    told = [one for one in result.findings if one.code == "contour-off-plane"]
    assert ["up to 2 mm off the plane of its image" in one.message for one in told] == [True, True]
    assert len(data) == SLICES - len({one.key for one in told})


@pytest.mark.parametrize("lost", ["place", "tilt"])
def test_a_frame_that_lies_elsewhere_costs_its_row(root, lost):
    """The row would show background there; a plane that is tilted by 2 degrees meets its corner."""

    def change_one(dataset):
        group = dataset.PerFrameFunctionalGroupsSequence[2]
        if lost == "place":
            del group.PlanePositionSequence
        else:
            turn = pydicom.Dataset()
            turn.ImageOrientationPatient = ["1", "0", "0", "0", "0.99939083", "0.0348995"]
            group.PlaneOrientationSequence = [turn]

    _, before = build(root)
    paths, masks = before.manifest["dicom_path"], before.masks.copy()
    change(root, change_one)
    result, after = build(root)
    found = only(result, "contour-unreadable" if lost == "place" else "contour-off-plane")
    assert found.key is not None
    assert found.key.slice == 3
    kept = paths != "images/SHAPES001/3.dcm"
    assert np.array_equal(after.masks, masks[kept])


def test_segments_of_one_name_add_up(root):
    def renamed(dataset):
        for item in dataset.SegmentSequence:
            item.SegmentLabel = "solid"

    change(root, renamed)
    _, data = build(root)
    exact = [
        np.any([ONE.mask(name, place - 1) for name in ONE.shapes], axis=0)
        for place in data.manifest["slice"].tolist()
    ]
    assert np.array_equal(data.masks == 1, np.stack(exact))


def test_pixels_of_another_size_or_place_are_refused(root):
    def turned(dataset):
        groups = dataset.SharedFunctionalGroupsSequence[0]
        groups.PixelMeasuresSequence[0].PixelSpacing = ["3.0", "3.0"]

    change(root, turned)
    with pytest.raises(EtlError, match="mask-grid"):
        build(root)

    def smaller(dataset):
        dataset.Rows, dataset.Columns = COLUMNS, ROWS

    change(root, smaller)
    with pytest.raises(EtlError, match="mask-size"):
        build(root)


def test_half_a_pixel_is_another_place(root):
    def shifted(dataset):
        for group in dataset.PerFrameFunctionalGroupsSequence:
            plane = group.PlanePositionSequence[0]
            position = np.array(plane.ImagePositionPatient, float)
            row = ONE.orientation[:3] * ONE.spacing[1] / 2
            plane.ImagePositionPatient = [f"{value:.4f}" for value in position + row]

    change(root, shifted)
    with pytest.raises(EtlError, match=r"mask-grid.*up to 0\.5 pixels off"):
        build(root)


def test_an_image_of_another_size_is_one_mistake(root):
    with pytest.raises(EtlError) as caught:
        build(root, rows=44)
    codes = Counter(one.code for one in caught.value.findings)
    assert codes["image-size"] > 0
    assert codes["mask-size"] == 0


def test_names_are_labels_else_meanings(root):
    def unlabelled(dataset):
        code = pydicom.Dataset()
        code.CodeMeaning = "Spleen"
        dataset.SegmentSequence[0].SegmentLabel = ""
        dataset.SegmentSequence[0].SegmentedPropertyTypeCodeSequence = [code]

    change(root, unlabelled)
    assert "Spleen" in [one.name for one in build(root)[1].structures]


@pytest.mark.parametrize("where", [700, -500])
def test_a_damaged_file_is_a_finding(root, where):
    path = root / "annotations" / "SHAPES001.dcm"
    path.write_bytes(path.read_bytes()[:where])
    with pytest.raises(EtlError, match="segmentation-unreadable"):
        build(root)


def test_a_folder_with_both_kinds_is_refused_until_one_is_named(root):
    shutil.copytree(root, root.parent / "both")
    write_shapes(root.parent / "rt", patients=1, slices=SLICES, rows=ROWS, columns=COLUMNS)
    shutil.copyfile(
        root.parent / "rt/annotations/SHAPES001.dcm", root.parent / "both/annotations/rt.dcm"
    )
    with pytest.raises(EtlError, match=r"more than one layout fits: seg .*, rtstruct "):
        build(root.parent / "both")
    for layout in ("rtstruct", "seg"):
        assert len(build(root.parent / "both", layout=layout)[1]) > 0


# --------------------------------------------------------------------------------------- real files

SHARED = Path(os.environ.get("DICOM_ETL_REAL_DATA", Path(__file__).parents[4] / "shared" / "data"))


def read_nrrd(path):
    """Return the array of a NRRD file, with its last axis first."""
    header, _, data = path.read_bytes().partition(b"\n\n")
    fields = dict(line.split(": ", 1) for line in header.decode().splitlines() if ": " in line)
    data = gzip.decompress(data) if fields["encoding"] in {"gzip", "gz"} else data
    dtype = {"short": "<i2", "unsigned char": "u1", "signed short": "<i2", "uint8": "u1"}
    shape = [int(n) for n in fields["sizes"].split()][::-1]
    return np.frombuffer(data, dtype.get(fields["type"], fields["type"])).reshape(shape)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("folder", "files", "size", "nrrd"),
    [
        ("23x38x3", ["image", "seg"], (38, 23), "23x38x3/nrrd/label.nrrd"),
        ("24x38x3", ["image", "seg"], (38, 24), "24x38x3/nrrd/label.nrrd"),
        (".", ["ct-3slice", "liver.dcm"], (512, 512), "liver_seg.nrrd"),
        (
            ".",
            ["24x38x3/image", "sparse-labelmap-noppv.dcm"],
            (38, 24),
            "sparse_labelmap_noppv_seg.nrrd",
        ),
    ],
)
def test_masks_equal_those_of_another_program(tmp_path, folder, files, size, nrrd):
    source = SHARED / "seg" / "dcmqi"
    if not source.is_dir():
        pytest.skip("no segmentations here: DICOM_ETL_REAL_DATA names the folder of seg/")
    for name in files:
        path = source / folder / name
        copy = shutil.copytree if path.is_dir() else shutil.copyfile
        (tmp_path / "data").mkdir(exist_ok=True)
        copy(path, tmp_path / "data" / path.name)
    _, data = build(tmp_path / "data", *size, background=True)
    expected = read_nrrd(source / nrrd)
    stack = np.zeros_like(expected)
    stack[data.manifest["slice"] - 1] = data.masks
    assert stack.any()
    assert np.array_equal(stack > 0, expected > 0) or np.array_equal(stack[::-1] > 0, expected > 0)
