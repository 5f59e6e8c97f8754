import copy
import math
import shutil
from collections import Counter

import numpy as np
import pydicom
import pytest
from builders import points_of, set_points
from click.testing import CliRunner
from pydicom.uid import ExplicitVRLittleEndian, MediaStorageDirectoryStorage

import etl
from etl.cli import cli
from etl.dicom.structure_set import STRUCTURE_SET
from etl.errors import EtlError
from etl.options import BuildOptions, StructureChoice
from etl.phantom.objects import Patient, write_shapes
from etl.sources.structures import read_choices
from etl.verify.file import verify
from loader import open_dataset

SLICES = 12
ROWS, COLUMNS = 88, 112


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes") / "clean"
    write_shapes(root, patients=1, slices=SLICES, rows=ROWS, columns=COLUMNS)
    return root


@pytest.fixture
def root(clean, tmp_path):
    return shutil.copytree(clean, tmp_path / "data")


def build(root, out=None, rows=ROWS, columns=COLUMNS, **options):
    out = out or root.parent / "out.h5"
    result = etl.build(root, out, BuildOptions(rows=rows, columns=columns, **options), force=True)
    return result, open_dataset(out)


def change(root, edit, name="SHAPES001"):
    path = root / "annotations" / f"{name}.dcm"
    dataset = pydicom.dcmread(path)
    edit(dataset)
    dataset.save_as(path)


def contours(dataset, place=0):
    return dataset.ROIContourSequence[place].ContourSequence


def drawn(dataset, name):
    """Return the contours of a structure."""
    (number,) = (s.ROINumber for s in dataset.StructureSetROISequence if s.ROIName == name)
    items = dataset.ROIContourSequence
    return next(one.ContourSequence for one in items if one.ReferencedROINumber == number)


def move(contour, x=0.0, z=0.0):
    points = points_of(contour) + np.array([x, 0, z])
    set_points(contour, points)


def numbered(contour, n_points):
    contour.NumberOfContourPoints = n_points


def codes(result):
    return Counter(finding.code for finding in result.findings)


def only(result, code):
    (found,) = (finding for finding in result.findings if finding.code == code)
    return found


@pytest.mark.parametrize("size", [(50, 100)])  # more: tests/test_shapes.py
def test_masks_and_volumes_are_those_of_the_shapes_in_any_orientation(tmp_path, size):
    write_shapes(tmp_path / "data", patients=3, slices=40, rows=size[0], columns=size[1])
    result, data = build(tmp_path / "data", rows=size[0], columns=size[1])
    assert set(codes(result)) <= {"image-no-contour", "file-not-used"}  # truth.csv
    assert [one.name for one in data.structures] == ["box", "cylinder", "sphere", "torus"]
    for number in range(3):
        one = Patient(number, *size, slices=40, seed=0)
        mine = np.flatnonzero(data.manifest["patient_id"] == one.patient_id)
        voxel = math.prod(one.spacing) * one.thickness
        for structure in data.structures:
            found = data.masks[mine] == structure.code
            volume = float(found.sum()) * voxel
            assert volume == pytest.approx(one.shapes[structure.name].volume, rel=0.03)
            exact = np.stack(
                [
                    one.mask(structure.name, place - 1)
                    for place in data.manifest["slice"][mine].tolist()
                ]
            )
            dice = 2 * (found & exact).sum() / (found.sum() + exact.sum())
            assert dice >= 0.99


def test_areas_are_those_of_the_shapes(clean):
    _, data = build(clean, clean.parent / "areas.h5")
    one = Patient(0, ROWS, COLUMNS, SLICES, 0)
    for structure in data.structures:
        area = data.manifest[f"{structure.stem}_area"]
        for row in np.flatnonzero(data.manifest[f"n_pixels_{structure.code}"] > 0).tolist():
            place = int(data.manifest["slice"][row]) - 1
            exact = one.shapes[structure.name].area(one.height(place)) / math.prod(one.spacing)
            assert area[row] == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("kind", ["enhanced", "table", "seg"])
def test_the_same_shapes_give_the_same_rows_from_another_source(clean, tmp_path, kind):
    write_shapes(tmp_path / "data", kind, patients=1, slices=SLICES, rows=ROWS, columns=COLUMNS)
    _, expected = build(clean, tmp_path / "expected.h5")
    _, found = build(tmp_path / "data")
    assert np.array_equal(found.images, expected.images)
    assert (found.masks != expected.masks).sum() <= 6  # millimetres are rounded, circles polygons
    for column in ("slice", "pixel_spacing_row", "image_position_x", "mean"):
        assert np.allclose(found.manifest[column], expected.manifest[column])


def test_the_file_is_the_same_from_any_number_of_workers(clean, tmp_path):
    options = BuildOptions(rows=ROWS, columns=COLUMNS)
    files = []
    for workers in (1, 2):
        out = tmp_path / f"{workers}.h5"
        etl.build(clean, out, options, workers=workers)
        files.append(out.read_bytes())
    assert files[0] == files[1]


def test_manifest_says_where_each_row_is_from(clean):
    _, data = build(clean, clean.parent / "manifest.h5")
    manifest = data.manifest
    one = Patient(0, ROWS, COLUMNS, SLICES, 0)
    assert set(manifest["patient_id"].tolist()) == {"SHAPES001"}
    assert set(manifest["series"].tolist()) == {one.uid("series")}
    assert manifest["dicom_path"].tolist() == [
        f"images/SHAPES001/{n}.dcm" for n in manifest["slice"].tolist()
    ]
    assert set(manifest["label1_path"].tolist()) <= {"", "annotations/SHAPES001.dcm"}
    # The set has the box, so that an image without it shows none.
    assert manifest["drawn_1"].tolist() == [1] * len(data)
    assert 0 in manifest["n_pixels_1"].tolist()


def test_background_writes_the_images_without_a_structure_too(clean):
    _, some = build(clean, clean.parent / "some.h5")
    result, data = build(clean, clean.parent / "background.h5", background=True)
    assert len(some) < len(data) == SLICES
    assert "image-no-contour" not in codes(result)
    bare = np.flatnonzero(~data.masks.any(axis=(1, 2)))
    assert len(bare) == SLICES - len(some)
    assert data.manifest["drawn_1"][bare].tolist() == [1] * len(bare)


@pytest.mark.parametrize("lines", ["SHAPES001,1,", "SHAPES009,1,", "SHAPES001,3,box"])
def test_a_row_list_leaves_images_without_a_structure_that_it_does_not_name(clean, tmp_path, lines):
    _, data = build(clean, clean.parent / "all.h5", background=True)
    path = tmp_path / "list.csv"
    path.write_text(f"patient_id,slice,structure\n{lines}\n")
    listed = {"exclude_file": str(path), "exclude_structures": True}
    result, some = build(clean, clean.parent / "some.h5", background=True, **listed)
    n_gone = codes(result)["row-excluded"]
    assert n_gone == (lines == "SHAPES001,1,")
    assert len(some) == len(data) - n_gone


def test_nothing_drawn_is_not_ignored_where_the_set_has_the_structure(clean):
    _, data = build(clean, clean.parent / "ignore.h5", not_drawn="ignore", background=True)
    assert not (data.masks == 255).any()


class TestStructures:
    @pytest.mark.parametrize(
        ("wanted", "names"),
        [
            (("torus", "BOX"), ["torus", "BOX"]),
            (("*o*",), ["box", "torus"]),
            ({"solid": ["box", "hole*"]}, ["solid"]),
            ({"ring": {"patterns": ["tor*"], "code": 7}}, ["ring"]),
        ],
    )
    def test_are_chosen_by_name_pattern_or_mapping(self, root, wanted, names):
        result, data = build(root, structures=wanted)
        assert [one.name for one in data.structures] == names
        assert codes(result)["structure-not-chosen"] >= 2
        assert data.structures[0].code == (7 if names == ["ring"] else 1)
        assert (data.masks == data.structures[0].code).any()

    def test_a_recorded_mapping_gives_the_same_options_again(self):
        options = BuildOptions(structures={"ring": {"patterns": ["tor*"], "code": 7}, "box": "b*"})
        recorded = options.to_json()["structures"]
        again = BuildOptions(structures=[list(one) for one in recorded])
        assert again == options
        assert [one.code for one in options.structures] == [7, 1]

    def test_numbers_name_structures_whatever_their_order(self, root):
        def swap(dataset):
            first, second = dataset.StructureSetROISequence[:2]
            first.ROIName, second.ROIName = second.ROIName, first.ROIName
            first.ROINumber, second.ROINumber = second.ROINumber, first.ROINumber
            dataset.ROIContourSequence = list(reversed(dataset.ROIContourSequence))

        _, before = build(root, root.parent / "before.h5")
        change(root, swap)
        _, after = build(root)
        assert np.array_equal(before.masks, after.masks)


class TestMappingFiles:
    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("s.toml", 'ring = ["tor*"]\nbox = {patterns = "b*", code = 9}\n'),
            ("s.json", '{"ring": ["tor*"], "box": {"patterns": ["b*"], "code": 9}}'),
        ],
    )
    def test_toml_and_json_say_the_same(self, tmp_path, name, text):
        (tmp_path / name).write_text(text)
        ring, box = read_choices(tmp_path / name)
        assert ring == StructureChoice("ring", ("tor*",), 1)
        assert box == StructureChoice("box", ("b*",), 9)

    @pytest.mark.parametrize(
        ("name", "text", "words"),
        [
            ("s.toml", "liver = 5", "liver: expected a tuple of strings, found 5"),
            ("s.toml", "liver = {code = 300}", "liver: expected 1 to 254, found 300"),
            ("s.toml", "liver = {colour = 1}", "expected patterns and code"),
            ("s.toml", "", "expected names and codes"),
            ("s.toml", "liver", "Expected"),
            ("s.json", '["liver"]', "expected names with patterns, found a list"),
            ("s.json", "\xff", "Expecting value"),
        ],
    )
    def test_others_are_refused_with_an_example(self, clean, tmp_path, name, text, words):
        path = tmp_path / name
        path.write_text(text)
        found = CliRunner().invoke(
            cli, ["build", str(clean), str(tmp_path / "out.h5"), "--structures", str(path)]
        )
        assert found.exit_code == 1
        assert f"Error: Structures not usable: {path}: " in found.output
        assert words in found.output
        assert "Write lines such as" in found.output


class TestMistakes:
    """Each is a finding, and what is right is still written."""

    def test_unknown_references_are_replaced_by_the_place(self, root):
        def unknown(dataset):
            for contour in contours(dataset):
                contour.ContourImageSequence[0].ReferencedSOPInstanceUID = "1.2.3"
            for contour in contours(dataset, 1):
                del contour.ContourImageSequence

        _, before = build(root, root.parent / "before.h5")
        change(root, unknown)
        result, after = build(root)
        assert "refer to no image" in only(result, "contour-by-position").message
        assert np.array_equal(before.masks, after.masks)

    def test_a_reference_to_another_plane_is_not_believed(self, root):
        def next_image(dataset):
            mine = contours(dataset)
            uid = mine[-1].ContourImageSequence[0].ReferencedSOPInstanceUID
            mine[0].ContourImageSequence[0].ReferencedSOPInstanceUID = uid

        _, before = build(root, root.parent / "before.h5")
        change(root, next_image)
        result, after = build(root)
        assert only(result, "contour-by-position").message.startswith("1 contour ")
        assert np.array_equal(before.masks, after.masks)

    @pytest.mark.parametrize("what", ["localiser", "dose"])
    def test_other_objects_through_the_middle_of_a_contour_are_not_its_plane(self, root, what):
        """A localiser cuts the plane of the contour, and a dose map may be in it."""

        def unknown(dataset):
            for place in range(4):
                for contour in contours(dataset, place):
                    del contour.ContourImageSequence
            for one in dataset.ReferencedFrameOfReferenceSequence:
                del one.RTReferencedStudySequence

        _, before = build(root, root.parent / "before.h5")
        other = pydicom.dcmread(root / "images" / "SHAPES001" / "6.dcm")
        set_uid = other.file_meta
        other.SeriesInstanceUID, other.SOPInstanceUID = "1.2.3", "1.2.3.4"
        if what == "dose":
            other.SOPClassUID = set_uid.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.481.2"
        else:
            middle = pydicom.dcmread(root / "annotations" / "SHAPES001.dcm")
            points = np.array(drawn(middle, "sphere")[1].ContourData, float).reshape(-1, 3)
            turned = np.array(other.ImageOrientationPatient, float).reshape(2, 3)
            normal = np.cross(*turned)
            other.ImagePositionPatient = [f"{value:.4f}" for value in points.mean(axis=0)]
            other.ImageOrientationPatient = [f"{value:.8f}" for value in (*turned[0], *normal)]
        other.save_as(root / "images" / "other")
        change(root, unknown)
        result, after = build(root)
        assert np.array_equal(before.masks, after.masks)
        assert codes(result)["slice-ambiguous"] == 0

    def test_contours_between_planes_without_reference_are_left_out(self, root):
        def between(dataset):
            for contour in contours(dataset)[:2]:
                move(contour, z=1.5)
                del contour.ContourImageSequence

        change(root, between)
        message = only(build(root)[0], "contour-off-plane").message
        assert message.startswith("2 contours of torus between the planes of the images, 1.5 mm ")
        assert codes(build(root, plane_tolerance=1.6)[0])["contour-off-plane"] == 0

    def test_contours_between_planes_beside_one_on_the_image_cost_no_row(self, root):
        def added(dataset):
            contour = copy.deepcopy(drawn(dataset, "box")[1])
            move(contour, z=1.5)
            drawn(dataset, "box").append(contour)

        _, before = build(root, root.parent / "before.h5")
        change(root, added)
        result, after = build(root)
        assert "1 contour of box between the planes" in only(result, "contour-off-plane").message
        assert np.array_equal(before.masks, after.masks)

    @pytest.mark.parametrize(
        ("name", "damage", "code", "words"),
        [
            ("box", lambda one: move(one, z=1.5), "contour-off-plane", "up to 1.5 mm off the"),
            ("box", lambda one: numbered(one, 9), "contour-unreadable", "NumberOfContourPoints"),
            ("torus", lambda one: numbered(one, 9), "contour-unreadable", "its contour has"),
        ],
        ids=["off its plane", "unreadable", "one of two parts is unreadable"],
    )
    def test_a_lost_contour_costs_its_row_which_would_show_background(
        self, root, name, damage, code, words
    ):
        path = ""

        def lose(dataset):
            nonlocal path
            contour = drawn(dataset, name)[1]
            uid = contour.ContourImageSequence[0].ReferencedSOPInstanceUID
            one = Patient(0, ROWS, COLUMNS, SLICES, 0)
            (place,) = (k for k in range(SLICES) if one.uid("image", k) == uid)
            path = f"images/SHAPES001/{place + 1}.dcm"
            damage(contour)

        _, before = build(root, root.parent / "before.h5")
        change(root, lose)
        result, after = build(root)
        found = only(result, code)
        assert f" on {path}: " in found.message
        assert words in found.message
        assert found.key is not None
        kept = before.manifest["dicom_path"] != path
        assert np.array_equal(after.masks, before.masks[kept])
        _, others = build(root, root.parent / "others.h5", structures=("sphere",))
        assert path in others.manifest["dicom_path"].tolist()

    def test_a_tilted_contour_costs_its_row_and_says_why(self, root):
        def tilt(dataset):
            contour = contours(dataset)[0]
            points = points_of(contour)
            points[:, 2] += 0.1 * (points[:, 0] - points[:, 0].mean())
            set_points(contour, points)

        change(root, tilt)
        found = only(build(root)[0], "contour-off-plane")
        assert found.message.startswith("torus on images/SHAPES001/6.dcm: ")
        assert "has points up to" in found.message
        assert found.key is not None

    def test_contours_on_images_that_are_not_there_are_said_once(self, root):
        for number in (5, 6, 7):
            (root / "images" / "SHAPES001" / f"{number}.dcm").unlink()
        result, data = build(root)
        # Where the gap is, a contour lies between two planes that are far apart.
        assert codes(result)["contour-off-plane"] + codes(result)["contour-no-image"] == 1
        assert 0 < len(data) < SLICES

    def test_a_series_that_is_not_there_leaves_nothing_to_build(self, root):
        shutil.rmtree(root / "images")
        with pytest.raises(EtlError, match=r"contour-no-image.*No file is an image") as caught:
            build(root, layout="rtstruct")
        assert codes(caught.value)["contour-no-image"] == 1

    @pytest.mark.parametrize("number", ["9", None])
    def test_a_number_that_names_no_structure_or_two(self, root, number):
        def other(dataset):
            if number:
                dataset.ROIContourSequence[0].ReferencedROINumber = number
            else:
                first, second = dataset.StructureSetROISequence[:2]
                first.ROINumber = second.ROINumber

        change(root, other)
        assert codes(build(root)[0])["structure-number-invalid"] >= 1

    def test_open_contours_and_points_are_no_regions(self, root):
        def kinds(dataset):
            first, second, *_ = contours(dataset)
            first.ContourGeometricType, second.ContourGeometricType = "OPEN_PLANAR", "POINT"

        change(root, kinds)
        result, _ = build(root)
        assert "1 contour of type OPEN_PLANAR" in only(result, "contour-not-closed").message
        assert only(result, "contour-point").severity == "info"

    @pytest.mark.parametrize("options", [{}, {"resample": (2.0, 2.0)}])
    def test_a_structure_without_a_pixel_costs_the_others_no_row(self, root, options):
        def sliver(dataset):
            contour = drawn(dataset, "box")[1]
            points = np.array(contour.ContourData, float).reshape(-1, 3)
            points = points.mean(axis=0) + (points - points.mean(axis=0)) / 1e4
            contour.ContourData = [f"{value:.5f}" for value in points.ravel()]

        if options:
            options |= {"size": "fit"}
        _, before = build(root, root.parent / "before.h5", **options)
        expected = before.masks.copy()
        change(root, sliver)
        result, after = build(root, **options)
        found = only(result, "structure-too-small")
        assert found.key is not None
        (row,) = np.flatnonzero(after.flagged("structure-too-small")).tolist()
        assert found.label == after.structures[0].code == 1  # box
        others = [place for place in range(len(after)) if place != row]
        assert np.array_equal(after.masks[others], expected[others])
        assert expected[row].any()
        assert (expected[row] == 1).any()
        assert set(np.unique(after.masks[row]).tolist()) == set(np.unique(expected[row])) - {1}
        assert after.manifest["n_pixels_1"][row] == 0
        assert after.manifest["drawn_1"][row] == 1
        assert 0 < after.manifest["label1_area"][row] < 1e-3
        assert codes(result)["mask-empty"] == 0
        assert verify(root.parent / "out.h5", source=root, rebuild=True).problems == []

    @pytest.mark.parametrize("part", ["structure", "one of two contours"])
    def test_what_is_outside_the_image_costs_the_others_no_row(self, root, part):
        """As couches, and structures that were drawn on a larger field of view."""

        def away(dataset):
            mine = drawn(dataset, "box")
            moved = copy.deepcopy(mine[1])
            move(moved, x=500)
            if part == "structure":
                mine[1] = moved
            else:
                mine.append(moved)

        _, before = build(root, root.parent / "before.h5")
        change(root, away)
        result, after = build(root)
        found = only(result, "contour-partly-outside")
        assert "all of it lies outside the 88x112 image and is cut off." in found.message
        assert len(after) == len(before)
        differ = (after.masks != before.masks).any(axis=(1, 2))
        assert differ.sum() == (part == "structure")
        if part == "structure":
            (row,) = np.flatnonzero(differ).tolist()
            assert not (after.masks[row] == 1).any()
            assert codes(result)["structure-too-small"] == 0
        assert verify(root.parent / "out.h5", source=root, rebuild=True).problems == []

    def test_where_all_is_outside_the_image_there_is_no_row(self, root):
        def away(dataset):
            for contour in drawn(dataset, "box"):
                move(contour, x=500)

        change(root, away)
        with pytest.raises(EtlError, match="contour-outside") as caught:
            build(root, structures=("box",))
        assert codes(caught.value)["mask-empty"] == 0

    def test_an_image_on_which_no_structure_has_a_pixel_is_no_row(self, root):
        def slivers(dataset):
            for contour in drawn(dataset, "box"):
                points = np.array(contour.ContourData, float).reshape(-1, 3)
                points = points.mean(axis=0) + (points - points.mean(axis=0)) / 1e4
                contour.ContourData = [f"{value:.5f}" for value in points.ravel()]

        change(root, slivers)
        with pytest.raises(EtlError, match="mask-empty"):
            build(root, structures=("box",))

    @pytest.mark.parametrize("n_points", [1, 2, 4])
    def test_contours_of_one_or_two_points_enclose_nothing(self, root, n_points):
        """As planning systems leave behind; 4: two points, each twice."""

        def added(dataset):
            for contour in list(drawn(dataset, "box"))[1:3]:
                stray = copy.deepcopy(contour)
                points = np.array(contour.ContourData, float).reshape(-1, 3)[:2]
                points = np.tile(points, (2, 1))[:n_points]
                stray.ContourData = [f"{value:.4f}" for value in points.ravel()]
                stray.NumberOfContourPoints = n_points
                drawn(dataset, "box").append(stray)

        _, before = build(root, root.parent / "before.h5")
        change(root, added)
        result, after = build(root)
        message = only(result, "contour-not-closed").message
        assert message.startswith("'box': 2 contours of fewer than 3 distinct points")
        assert np.array_equal(before.masks, after.masks)

    @pytest.mark.parametrize(
        ("value", "words"),
        [
            (b"1\\2", "not a multiple of three"),
            (b"1\\2\\x ", "not a number"),
            (b"1\\2\\1_0 ", "not a number"),
            (b"1\\2\\nan ", "not a number"),
            (b"1\\2\\3", "NumberOfContourPoints is"),
        ],
    )
    def test_coordinates_that_cannot_be_read_are_told(self, root, value, words):
        path = root / "annotations" / "SHAPES001.dcm"
        dataset = pydicom.dcmread(path)
        old = contours(dataset)[0].get_item("ContourData").value
        path.write_bytes(path.read_bytes().replace(old, value + b" " * (len(old) - len(value))))
        assert words in only(build(root)[0], "contour-unreadable").message

    @pytest.mark.parametrize("is_on_several", [True, False])
    def test_an_image_is_not_guessed_among_several_in_one_plane(self, root, is_on_several):
        """As phases of a cine are; the other planes have one image each."""
        image = root / "images" / "SHAPES001" / "6.dcm"
        later = pydicom.dcmread(image)
        later.SOPInstanceUID = later.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
        later.InstanceNumber = 100
        later.PixelData = bytes(len(later.PixelData))
        later.save_as(image.with_name("100.dcm"))
        mine = Patient(0, ROWS, COLUMNS, SLICES, 0).uid("image", 5)

        def unnamed(dataset):
            for place in range(4):
                for contour in contours(dataset, place):
                    uid = contour.ContourImageSequence[0].ReferencedSOPInstanceUID
                    if (uid == mine) == is_on_several:
                        del contour.ContourImageSequence

        change(root, unnamed)
        result, data = build(root)
        is_there = "images/SHAPES001/6.dcm" in data.manifest["dicom_path"].tolist()
        assert is_there != is_on_several
        assert "images/SHAPES001/100.dcm" not in data.manifest["dicom_path"].tolist()
        if is_on_several:
            message = only(result, "slice-ambiguous").message
            assert message.startswith("6 contours of box, cylinder, sphere refer to no image")
            assert codes(result)["contour-by-position"] == 0
        else:
            assert codes(result)["slice-ambiguous"] == 0
            assert codes(result)["contour-by-position"] == 1

    @pytest.mark.parametrize("numbers", [(0, 0), (None, None), (1, 2)])
    def test_a_frame_is_not_guessed_where_all_have_one_plane(self, tmp_path, numbers):
        write_shapes(
            tmp_path / "data", "enhanced", patients=1, slices=2, rows=ROWS, columns=COLUMNS
        )
        image = tmp_path / "data" / "images" / "SHAPES001" / "1.dcm"
        dataset = pydicom.dcmread(image)
        first, second = dataset.PerFrameFunctionalGroupsSequence
        second.PlanePositionSequence = first.PlanePositionSequence
        dataset.save_as(image)
        place = first.PlanePositionSequence[0].ImagePositionPatient

        def numbered(dataset):
            for roi in dataset.ROIContourSequence:
                for contour in roi.ContourSequence:
                    reference = contour.ContourImageSequence[0]
                    number = numbers[reference.ReferencedFrameNumber - 1]
                    del reference.ReferencedFrameNumber
                    if number is not None:
                        reference.ReferencedFrameNumber = number
                    points = points_of(contour)
                    points[:, 2] = float(place[2])
                    set_points(contour, points)

        change(tmp_path / "data", numbered)
        if numbers == (1, 2):
            assert build(tmp_path / "data")[1].manifest["frame_number"].tolist() == [1, 2]
        else:
            with pytest.raises(EtlError, match="slice-ambiguous"):
                build(tmp_path / "data")

    def test_two_structures_with_the_same_name_are_not_joined(self, root):
        """The second is drawn over the first: even-odd, both would be holes in each other."""

        def twin(dataset):
            roi = copy.deepcopy(dataset.StructureSetROISequence[0])
            (item,) = (
                one
                for one in dataset.ROIContourSequence
                if one.ContourSequence is drawn(dataset, "box")
            )
            again = copy.deepcopy(item)
            roi.ROIName, roi.ROINumber, again.ReferencedROINumber = "box", 77, 77
            for contour in again.ContourSequence:
                move(contour, x=6)
            dataset.StructureSetROISequence.append(roi)
            dataset.ROIContourSequence.append(again)

        change(root, twin)
        result, data = build(root)
        message = only(result, "structure-ambiguous").message
        assert message.startswith("2 structures have the name 'box' (ROINumber ")
        assert "77" in message
        assert data.manifest["drawn_1"].tolist() == [0] * len(data)
        assert not (data.masks == 1).any()

    def test_two_structures_of_one_name_are_not_guessed(self, root):
        result, data = build(root, structures={"round": ["sphere", "torus"], "box": "box"})
        assert "both mean 'round'" in only(result, "structure-ambiguous").message
        assert set(np.unique(data.masks).tolist()) == {0, 2}

    @pytest.mark.parametrize(
        ("patient", "is_told"), [("OTHER7", True), ("ANONYMOUS", False), ("", False)]
    )
    def test_another_persons_structure_set_is_told(self, root, patient, is_told):
        change(root, lambda dataset: setattr(dataset, "PatientID", patient))
        result, _ = build(root)
        assert codes(result)["patient-id-differs"] == is_told
        if is_told:
            found = only(result, "patient-id-differs")
            assert found.path == "annotations/SHAPES001.dcm"
            assert "images that it draws on, of patient 'SHAPES001'" in found.message
        by_folder, _ = build(root, patient_id="folder")
        assert codes(by_folder)["patient-id-differs"] == 0

    def test_another_frame_of_reference_is_told(self, root):
        def other(dataset):
            dataset.StructureSetROISequence[0].ReferencedFrameOfReferenceUID = "1.2.3"

        change(root, other)
        assert only(build(root)[0], "frame-of-reference-differs").message.startswith("sphere:")

    def test_of_two_files_with_one_uid_the_first_is_taken(self, root):
        path = root / "images" / "SHAPES001" / "6.dcm"
        shutil.copyfile(path, path.with_name("7a.dcm"))
        found = only(build(root)[0], "instance-duplicate")
        assert found.path.endswith("7a.dcm")
        assert "the same place" in found.message

    def test_an_image_without_a_plane_is_left_out(self, root):
        path = root / "images" / "SHAPES001" / "6.dcm"
        dataset = pydicom.dcmread(path)
        del dataset.ImageOrientationPatient
        dataset.save_as(path)
        result, data = build(root)
        assert codes(result)["image-no-plane"] == 4  # each of the four structures
        assert "images/SHAPES001/6.dcm" not in data.manifest["dicom_path"].tolist()

    def test_files_that_are_no_images_are_named_and_damaged_ones_too(self, root):
        (root / "notes.txt").write_text("hello")
        (root / "broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"x" * 100)
        result, _ = build(root)
        assert (
            "2 files without image or annotation, not read: notes.txt, truth.csv"
            in only(result, "file-not-used").message
        )
        assert only(result, "image-unreadable").path == "broken.dcm"

    def test_a_dicomdir_that_lists_a_structure_set_is_none(self, root):
        """As a CD has it: its records name the classes of the files."""
        record = pydicom.Dataset()
        record.DirectoryRecordType = "RT STRUCTURE SET"
        record.ReferencedFileID = ["CD", "RS000000"]
        record.ReferencedSOPClassUIDInFile = STRUCTURE_SET
        listing = pydicom.Dataset()
        listing.file_meta = pydicom.dataset.FileMetaDataset()
        listing.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
        listing.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
        listing.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        listing.DirectoryRecordSequence = [record]
        listing.save_as(root / "DICOMDIR", enforce_file_format=True)
        result, _ = build(root)
        assert codes(result)["structure-set-unreadable"] == 0
        assert "DICOMDIR" in only(result, "file-not-used").message

    def test_a_damaged_set_is_told(self, root):
        path = root / "annotations" / "SHAPES001.dcm"
        path.write_bytes(path.read_bytes()[:4000])
        with pytest.raises(EtlError, match="Nothing to build"):
            build(root)


class TestSets:
    @pytest.fixture
    def two(self, root):
        path = root / "annotations" / "SHAPES001.dcm"
        draft = pydicom.dcmread(path)
        draft.StructureSetDate, draft.SOPInstanceUID = "19990101", "1.2.3"
        del draft.ROIContourSequence[0]  # the torus
        draft.StructureSetROISequence[0].ROIName = "ball"  # the sphere
        draft.save_as(path.with_name("draft.dcm"))
        return root

    @pytest.mark.parametrize(
        ("rule", "names", "code", "left"),
        [
            (
                "newest",
                ["box", "cylinder", "sphere", "torus"],
                "drawings-not-taken",
                ["annotations/draft.dcm"],
            ),
            (
                "all",
                ["ball", "box", "cylinder", "sphere", "torus"],
                "drawings-not-taken",
                ["annotations/draft.dcm"] * 2,
            ),
            (
                "1.2.3",
                ["ball", "box", "cylinder"],
                "structure-set-not-chosen",
                ["annotations/SHAPES001.dcm"],
            ),
        ],
    )
    def test_the_newest_all_or_one_by_its_uid(self, two, rule, names, code, left):
        result, data = build(two, structure_sets=rule)
        assert [one.name for one in data.structures] == names
        told = {"drawings-not-taken", "structure-set-not-chosen"}
        assert [(one.code, one.path) for one in result.findings if one.code in told] == [
            (code, path) for path in left
        ]

    def test_what_only_the_older_one_draws_is_a_warning(self, two):
        found = only(build(two)[0], "drawings-not-taken")
        assert found.severity == "warning"
        assert found.message.startswith("structure set ")
        assert "draws 'ball' and is left out; annotations/SHAPES001.dcm" in found.message

    def test_what_nobody_asked_for_is_no_warning(self, two):
        result, _ = build(two, structures=("box", "torus"))
        assert codes(result)["drawings-not-taken"] == 0
        assert only(result, "structure-set-not-chosen").path == "annotations/draft.dcm"

    def test_of_one_structure_that_two_sets_draw_the_older_drawing_is_a_warning(self, two):
        found = [
            one
            for one in build(two, structure_sets="all")[0].findings
            if one.code == "drawings-not-taken"
        ]
        n_images = {one.message.split(": ")[0]: one.message for one in found}
        assert sorted(n_images) == ["'box'", "'cylinder'"]
        assert all("a newer structure set draws it on" in one for one in n_images.values())

    @pytest.mark.parametrize("name", ["01", "+1", " 1 "])
    def test_numbers_are_compared_as_numbers(self, root, name):
        def padded(dataset):
            for roi in dataset.ROIContourSequence:
                number = str(roi.ReferencedROINumber)
                roi.add_new("ReferencedROINumber", "IS", name.replace("1", number))

        _, before = build(root, root.parent / "before.h5")
        change(root, padded)
        result, after = build(root)
        assert codes(result)["structure-number-invalid"] == 0
        assert np.array_equal(before.masks, after.masks)

    def test_a_newer_one_that_draws_nothing_hides_no_other(self, root):
        """As a template of a plan: names without contours."""
        path = root / "annotations" / "SHAPES001.dcm"
        template = pydicom.dcmread(path)
        template.StructureSetDate, template.SOPInstanceUID = "20990101", "1.2.3"
        for roi in template.ROIContourSequence:
            del roi.ContourSequence
        _, before = build(root, root.parent / "before.h5")
        template.save_as(path.with_name("template.dcm"))
        result, after = build(root)
        assert np.array_equal(before.masks, after.masks)
        found = only(result, "structure-set-not-chosen")
        assert found.path == "annotations/template.dcm"
        assert "draws nothing and is left out; annotations/SHAPES001.dcm is taken" in found.message

    def test_an_unknown_uid_is_refused(self, two):
        with pytest.raises(EtlError, match=r"no structure set has that SOPInstanceUID\. There are"):
            build(two, structure_sets="9.9")


class TestPatients:
    def test_an_empty_patient_id_gives_the_folder(self, root):
        for path in [*root.glob("images/*/*.dcm"), *root.glob("annotations/*.dcm")]:
            dataset = pydicom.dcmread(path)
            dataset.PatientID = ""
            dataset.save_as(path)
        _, data = build(root)
        assert set(data.manifest["patient_id"].tolist()) == {"images"}

    def test_the_folder_can_be_asked_for(self, root):
        (root / "images" / "SHAPES001").rename(root / "P7")
        _, data = build(root, patient_id="folder")
        assert set(data.manifest["patient_id"].tolist()) == {"P7"}


@pytest.mark.parametrize(
    "options", [{"contours": ("i",)}, {"partial": True}, {"contour_transform": ("swap",)}]
)
def test_options_of_text_contours_are_refused(clean, options):
    with pytest.raises(EtlError, match="Option not usable"):
        build(clean, clean.parent / "refused.h5", **options)


@pytest.mark.parametrize("name", ["background", "structure_sets", "patient_id", "plane_tolerance"])
def test_options_of_structure_sets_are_refused_elsewhere(tmp_path, name):
    write_shapes(tmp_path / "data", "table", patients=1, slices=2, rows=ROWS, columns=COLUMNS)
    given = {"background": True, "structure_sets": "all", "patient_id": "folder"}
    with pytest.raises(EtlError, match=f"`{name}` is for structure sets"):
        build(tmp_path / "data", **{name: given.get(name, 1.0)})
