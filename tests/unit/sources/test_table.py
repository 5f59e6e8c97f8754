import math
import re
from collections import Counter

import numpy as np
import pytest
from builders import COLUMNS, ROWS, SQUARE, dicom_bytes, gradient, instance

import etl
from etl.errors import EtlError
from etl.findings import SampleKey
from etl.labels import named_scheme
from etl.options import BuildOptions
from etl.sources import table
from etl.sources.table import Header
from loader import open_dataset

HEADER = "patient_id,image,label,contour"
LINES = ("P1,a.dcm,heart,a.txt", "P1,b.dcm,heart,b.txt", "P2,c.dcm,heart,c.txt")


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for seed, name in enumerate("abc"):
        attributes = {"uid": f"1.2.{seed}", "InstanceNumber": 5 - seed}
        dataset = instance(gradient(seed=seed), SeriesInstanceUID=f"1.9.{seed // 2}", **attributes)
        (folder / f"{name}.dcm").write_bytes(dicom_bytes(dataset))
        (folder / f"{name}.txt").write_text(f"{SQUARE}2 {3 + seed / 10}\n")
    return folder


def write(root, *lines, header=HEADER):
    (root / "table.csv").write_text("\n".join([header, *lines]) + "\n")
    return root


def discover(root, **options):
    return table.discover(root, BuildOptions(**options))


def build(root, out, **options):
    options = BuildOptions(rows=ROWS, columns=COLUMNS, audit=False, **options)
    return etl.build(root, out, options), open_dataset(out)


def codes(found):
    return Counter(finding.code for finding in found.findings)


@pytest.mark.parametrize("numbers", [("1", ""), ("", "1")])
def test_frame_1_of_an_image_of_one_frame_is_that_image(root, tmp_path, numbers):
    (root / "a2.txt").write_text("1 1\n4 1\n4 4\n1 4\n")
    first, second = numbers
    lines = [f"{LINES[0]},{first}", f"P1,a.dcm,lesion,a2.txt,{second}"]
    _, data = build(write(root, *lines, header=f"{HEADER},frame"), tmp_path / "out.h5")
    assert len(data) == 1
    assert (data.manifest["drawn_1"][0], data.manifest["drawn_2"][0]) == (1, 1)
    assert set(np.unique(data.masks).tolist()) == {0, 1, 2}


def test_labels_that_are_spelled_alike_are_told(root, tmp_path):
    lines = [LINES[0], LINES[2].replace("heart", "Heart")]
    result, data = build(write(root, *lines), tmp_path / "out.h5")
    assert [one.name for one in data.structures] == ["Heart", "heart"]
    assert codes(result)["names-alike"] == 1


def test_each_image_is_a_row_and_each_label_a_structure(root, tmp_path):
    (root / "a2.txt").write_text("1 1\n4 1\n4 4\n1 4\n")
    write(root, *LINES, "P1,a.dcm,lesion,a2.txt")
    result, data = build(root, tmp_path / "out.h5")
    assert result.n_rows == 3
    assert codes(result) == {"structures-overlap": 1}
    assert [(one.code, one.name, one.stem) for one in data.structures] == [
        (1, "heart", "label1"),
        (2, "lesion", "label2"),
    ]
    manifest = data.manifest
    assert manifest["dicom_path"].tolist() == ["b.dcm", "a.dcm", "c.dcm"]  # InstanceNumber 4, 5, 3
    assert manifest["slice"].tolist() == [4, 5, 3]
    assert manifest["series"].tolist() == ["1.9.0", "1.9.0", "1.9.1"]
    assert manifest["label2_path"].tolist() == ["", "a2.txt", ""]
    assert manifest["drawn_2"].tolist() == [0, 1, 0]
    assert manifest["n_pixels_2"].tolist() == [0, 9, 0]
    assert data.masks[1, 1:4, 1:4].tolist() == [[2] * 3] * 3  # the later label is on top
    assert manifest["label1_area"][1] == 49.0
    assert data.attributes["labels"] == {"1": "heart", "2": "lesion"}
    assert data.attributes["min_reader_version"] == 2


def test_the_structures_chosen_have_their_codes_in_that_order(root, tmp_path):
    (root / "a2.txt").write_text("1 1\n4 1\n4 4\n1 4\n")
    write(root, *LINES, "P1,a.dcm,lesion,a2.txt", "P1,a.dcm,scar,a2.txt")
    result, data = build(root, tmp_path / "out.h5", structures=("lesion", "heart"))
    assert [structure.name for structure in data.structures] == ["lesion", "heart"]
    assert data.masks[1, 2, 2] == 2  # now the heart is on top
    overlap, finding = result.findings
    assert (overlap.code, finding.code) == ("structures-overlap", "structure-not-chosen")
    assert finding.message == "label 'scar' of 1 annotation is not among --structures."


def test_a_structure_asked_for_in_vain_is_told(root):
    found = discover(write(root, *LINES), structures=("heart", "hart"))
    (finding,) = found.findings
    assert (finding.code, finding.label) == ("structure-missing", 2)
    with pytest.raises(EtlError, match=r"its names are heart \(3\)"):
        discover(root, structures=("hart",))


def test_images_without_a_chosen_annotation_are_listed(root):
    write(root, LINES[0], "P1,b.dcm,,", "P2,c.dcm,scar,c.txt")
    found = discover(root, structures=("heart",))
    assert [link.frame.path for link in found.links] == ["a.dcm"]
    listed = [f.path for f in found.findings if f.code == "image-no-contour"]
    assert listed == ["b.dcm", "c.dcm"]
    assert found.counts == {"patients": 2, "images": 3, "annotations": 2, "pairs": 1}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (",a.dcm,heart,a.txt", "line 2: patient_id is empty"),
        ("P1,,heart,a.txt", "line 2: image is empty"),
        ("P1,a.dcm,heart,", "line 2: contour is empty"),
        ("P1,a.dcm,,a.txt", "line 2: label is empty"),
        ("P\x1b1,a.dcm,heart,a.txt", r"patient_id 'P\\x1b1' has a character that cannot be seen"),
        ("P1,/etc/a.dcm,heart,a.txt", "image '/etc/a.dcm' is absolute"),
        ("P1,C:\\a.dcm,heart,a.txt", "is absolute"),
        ("P1,../a.dcm,heart,a.txt", "leads out of the table's folder"),
        ("P1,a.dcm,heart,x/../../a.txt", "leads out of the table's folder"),
        ("P1,a.dcm,heart,a.txt,0", "frame '0' is not a whole number from 1"),
        ("P1,a.dcm,heart,a.txt,1_0", "frame '1_0' is not"),
        ("P1,a.dcm,heart,a.txt,²", "frame '²' is not"),
    ],
)
def test_a_line_that_cannot_be_is_named(root, line, words):
    found = discover(write(root, line, LINES[2], header=f"{HEADER},frame"))
    (finding,) = found.findings
    assert (finding.code, finding.path) == ("link-invalid", "table.csv")
    assert re.search(words, finding.message)
    assert [link.frame.path for link in found.links] == ["c.dcm"]


def test_paths_are_read_as_people_write_them(root):
    (root / "sub").mkdir()
    write(root, "P1,.\\sub\\a.dcm,heart,sub//./a.txt")
    (link,) = discover(root).links
    assert link.frame.path == "sub/a.dcm"
    assert link.annotations[0].path == "sub/a.txt"


def test_an_image_of_two_patients_is_nobodys(root):
    write(root, *LINES, "P2,a.dcm,heart,a.txt")
    found = discover(root)
    assert [link.frame.path for link in found.links] == ["b.dcm", "c.dcm"]
    (finding,) = found.findings
    assert finding.code == "link-duplicate"
    assert finding.message.startswith("line 5: image 'a.dcm' has the patients 'P1' and 'P2'")


def test_two_contours_of_one_label_leave_the_image_out(root):
    found = discover(write(root, *LINES, "P1,a.dcm,heart,b.txt"))
    assert [link.frame.path for link in found.links] == ["b.dcm", "c.dcm"]
    (finding,) = found.findings
    assert (finding.code, finding.key.patient_id) == ("annotation-duplicate", "P1")
    assert finding.message.startswith("line 5: a second contour of 'heart' on a.dcm")


def test_missing_files_are_errors_with_the_row_they_would_have_been(root, tmp_path):
    write(root, *LINES, "P3,missing.dcm,heart,a.txt")
    (root / "b.txt").unlink()
    result, data = build(root, tmp_path / "out.h5")
    assert codes(result) == {"image-unreadable": 1, "contour-unreadable": 1}
    assert data.manifest["dicom_path"].tolist() == ["a.dcm", "c.dcm"]
    assert data.findings["row"].tolist() == [-1, -1]


class TestSlices:
    """A slice is InstanceNumber where that tells the images of a series apart."""

    @staticmethod
    def resolved(headers, lines):
        links = [
            table.Link(SampleKey("P", "", place, frame or 1), "", table.FrameRef(path, frame), ())
            for place, (path, frame) in enumerate(lines, 1)
        ]
        found = table.Discovery(table.Path(), "t", named_scheme(["x"]), links, [], {})
        return [
            (link.frame.path, link.key.series, link.key.slice, link.key.frame_number)
            for link in table.resolve(found, headers, BuildOptions()).links
        ]

    def test_instance_numbers_order_the_images(self):
        headers = {"a": Header("1.2", 9.0), "b": Header("1.2", 3.0)}
        assert self.resolved(headers, [("a", None), ("b", None)]) == [
            ("b", "1.2", 3, 1),
            ("a", "1.2", 9, 1),
        ]

    @pytest.mark.parametrize("numbers", [(4.0, 4.0), (4.0, math.nan), (4.0, 4.5)])
    def test_else_the_order_in_the_table_does_for_the_whole_series(self, numbers):
        headers = {"a": Header("1.2", numbers[0]), "b": Header("1.2", numbers[1])}
        headers["c"] = Header("1.3", 7.0)
        assert self.resolved(headers, [("b", None), ("a", None), ("c", None)]) == [
            ("b", "1.2", 1, 1),
            ("a", "1.2", 2, 1),
            ("c", "1.3", 7, 1),
        ]

    def test_frames_of_a_file_share_its_number(self):
        headers = {"a": Header("1.2", 4.0), "b": Header("1.2", 2.0)}
        assert self.resolved(headers, [("a", 2), ("a", 1), ("b", None)]) == [
            ("b", "1.2", 2, 1),
            ("a", "1.2", 4, 1),
            ("a", "1.2", 4, 2),
        ]


def test_the_order_of_the_lines_changes_nothing_that_headers_tell(root, tmp_path):
    build(write(root, *LINES), tmp_path / "one.h5")
    build(write(root, *LINES[::-1]), tmp_path / "two.h5")
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()


@pytest.mark.parametrize("name", ["table.csv", "my annotations.CSV"])
def test_data_is_the_table_or_its_folder(root, tmp_path, name):
    write(root, *LINES)
    (root / "table.csv").rename(root / name)
    data = root if name == "table.csv" else root / name
    result, _ = build(data, tmp_path / "out.h5")
    assert result.n_rows == 3


class TestSplit:
    HEADER = f"{HEADER},split,fold"

    def test_the_tables_own_split_is_taken(self, root, tmp_path):
        lines = (f"{LINES[0]},train,1", f"{LINES[1]},train,1", f"{LINES[2]},test,")
        _, data = build(write(root, *lines, header=self.HEADER), tmp_path / "out.h5")
        assert data.manifest["split"].tolist() == [0, 0, 2]
        assert data.manifest["fold"].tolist() == [1, 1, -1]

    @pytest.mark.parametrize(
        ("cells", "words"),
        [
            (("train,", "test,"), "line 3: patient 'P1' is on two sides"),
            (("train,1", "train,2"), "line 3: patient 'P1' is on two sides"),
            (("training,", ""), "line 2: expected split train, validation, test"),
            ((",3", ""), "line 2: has a fold but no split"),
            (("test,3", ""), "line 2: a test patient has no fold"),
        ],
    )
    def test_a_side_that_cannot_be_stops_the_build(self, root, cells, words):
        lines = [f"{line},{cell}" for line, cell in zip(LINES, cells, strict=False)]
        with pytest.raises(EtlError, match=words):
            discover(write(root, *lines, header=self.HEADER))

    def test_patients_for_whom_it_has_nothing_are_counted(self, root, tmp_path):
        lines = [f"{LINES[0]},train,", f"{LINES[1]},,", f"{LINES[2]},,"]
        result, data = build(write(root, *lines, header=self.HEADER), tmp_path / "out.h5")
        assert data.manifest["split"].tolist() == [0, 0, -1]
        note = "patients without a split, because the table has none for them: 1."
        assert note in result.notes

    def test_two_splits_are_one_too_many(self, root):
        write(root, f"{LINES[0]},train,", header=self.HEADER)
        with pytest.raises(EtlError, match="has a split, and so have the options"):
            discover(root, split=(70, 15, 15))


@pytest.mark.parametrize(
    ("options", "words"), [({"contours": ("i",)}, "`contours`"), ({"partial": True}, "`partial`")]
)
def test_options_of_another_layout_are_refused(root, tmp_path, options, words):
    with pytest.raises(EtlError, match=words):
        build(write(root, *LINES), tmp_path / "out.h5", **options)


def test_a_table_without_annotations_says_so(root, tmp_path):
    with pytest.raises(EtlError, match=r"Nothing to build.*table\.csv has no annotation"):
        build(write(root, "P1,a.dcm,,"), tmp_path / "out.h5")


def test_more_labels_than_codes_are_refused(root):
    lines = [f"P1,a.dcm,label {n},a.txt" for n in range(255)]
    with pytest.raises(EtlError, match="has 255 structures, expected at most 254"):
        discover(write(root, *lines))


def test_twelve_structures_end_to_end(root, tmp_path):
    """Masks, counts and contours of twelve labels equal what is drawn here by hand."""
    lines, expected = [], np.zeros((ROWS, COLUMNS), np.uint8)
    for code in range(1, 13):
        x, y = (code - 1) % 6 * 2, (code - 1) // 6 * 5
        (root / f"{code}.txt").write_text(f"{x} {y}\n{x + 3} {y}\n{x + 3} {y + 4}\n{x} {y + 4}\n")
        lines.append(f"P1,a.dcm,part {code:02d},{code}.txt")
        expected[y : y + 4, x : x + 3] = code
    result, data = build(write(root, *lines[::-1]), tmp_path / "out.h5")
    assert result.n_rows == 1
    assert codes(result) == {"structures-overlap": 1}  # a column of pixels between neighbours
    assert data.masks[0].tolist() == expected.tolist()
    counts = [int(data.manifest[f"n_pixels_{code}"][0]) for code in range(1, 13)]
    assert counts == np.bincount(expected.ravel(), minlength=13)[1:].tolist()
    assert [label for label, _ in data.polygons(0)] == list(range(1, 13))
    assert [data.manifest[f"label{code}_path"][0] for code in (1, 12)] == ["1.txt", "12.txt"]


class TestFrames:
    """Frames of one file are rows of their own, and findings know which is meant."""

    @pytest.fixture
    def cine(self, root):
        frames = np.stack([gradient(seed=10 + n) for n in range(3)])
        frames[1] = 7  # constant: the second frame is the suspicious one
        pixels = {"PixelData": frames.tobytes(), "NumberOfFrames": 3}
        (root / "cine.dcm").write_bytes(dicom_bytes(instance(frames[0], **pixels)))
        lines = [f"P1,cine.dcm,heart,{name}.txt,{n}" for n, name in enumerate("abc", 1)]
        return write(root, *lines, header=f"{HEADER},frame"), frames

    def test_each_frame_is_a_row(self, cine, tmp_path):
        root, frames = cine
        _, data = build(root, tmp_path / "out.h5")
        assert np.array_equal(data.images, frames)
        assert data.manifest["frame_number"].tolist() == [1, 2, 3]
        assert data.manifest["slice"].tolist() == [7, 7, 7]
        assert len(set(data.manifest["row_xxh3"].tolist())) == 3

    def test_a_finding_about_one_frame_marks_that_row(self, cine, tmp_path):
        root, _ = cine
        _, data = build(root, tmp_path / "out.h5")
        assert data.flagged("image-constant").tolist() == [False, True, False]
        rows = data.findings["row"][data.findings["code"] == "image-constant"]
        assert rows.tolist() == [1]

    def test_the_frame_with_a_finding_is_left_out_and_no_other(self, cine, tmp_path):
        root, frames = cine
        _, data = build(root, tmp_path / "out.h5", exclude_flagged=("image-constant",))
        assert np.array_equal(data.images, frames[[0, 2]])

    def test_twins_name_each_other(self, cine, tmp_path):
        root, _ = cine
        (root / "c.txt").write_bytes((root / "a.txt").read_bytes())
        _, data = build(root, tmp_path / "out.h5")
        twins = data.findings["code"] == "identical-contour"
        pairs = [data.findings[name][twins].tolist() for name in ("row", "other_row", "label")]
        assert sorted(zip(*pairs, strict=True)) == [(0, 2, 1), (2, 0, 1)]

    def test_a_frame_that_is_not_there_is_an_error(self, cine, tmp_path):
        root, _ = cine
        with (root / "table.csv").open("a") as file:
            file.write("P1,cine.dcm,heart,a.txt,4\n")
        result, data = build(root, tmp_path / "out.h5")
        (finding,) = (one for one in result.findings if one.severity == "error")
        assert (finding.code, finding.key.frame_number) == ("image-no-frame", 4)
        assert len(data) == 3

    def test_a_file_of_frames_without_a_number_is_refused(self, cine, tmp_path):
        root, _ = cine
        write(root, "P1,cine.dcm,heart,a.txt", LINES[2])
        result, _ = build(root, tmp_path / "out.h5")
        (finding,) = (one for one in result.findings if one.severity == "error")
        assert finding.code == "image-multiframe"
