import csv
import json
from dataclasses import replace

import h5py
import numpy as np
import pytest
from builders import COLUMNS, ROWS, write_contour, write_dicom, write_tree

import etl
from etl.findings import Finding, FindingRow
from etl.labels import cardiac_scheme, named_scheme
from etl.options import BuildOptions
from etl.report import overlays, table
from etl.report import summary as report
from etl.report.findings import group_findings, read_findings
from etl.report.summary import number_text, tag_of
from etl.report.text import findings_text, summary_text, tag_text
from loader import LoaderError, open_dataset

STRUCTURES = cardiac_scheme(("i", "o")).structures


@pytest.fixture
def data(tmp_path):
    root = write_tree(tmp_path / "data", [("P1", "A1"), ("=P 2", "A2")])
    write_contour(root, "A1", 2, text="broken")
    for number in range(20, 26):
        write_dicom(root, "P1", f"{number}.dcm")
    out = tmp_path / "out.h5"
    options = BuildOptions(("i", "o"), ROWS, COLUMNS, split=(50.0, 0.0, 50.0), folds=2)
    etl.build(root, out, options)
    for path in root.rglob("*.*"):
        path.unlink()  # a report needs the file alone
    return open_dataset(out)


def test_the_summary_counts_what_is_there(data):
    summary = report.summarise(data)
    assert (summary.n_rows, summary.n_patients) == (5, 2)
    assert (summary.rows, summary.columns, summary.image_dtype) == (ROWS, COLUMNS, "int16")
    assert summary.minimum == data.images.min()
    assert summary.mean == pytest.approx(data.images.mean(dtype=float))
    assert summary.std == pytest.approx(data.images.std(dtype=float))
    assert summary.pixel_spacings == [(1.25, 1.5)]
    labels = [(x.code, x.n_rows, x.n_pixels, x.median_pixels) for x in summary.labels]
    assert labels == [(1, 5, 5 * 49, 49), (2, 5, 5 * 41, 41)]
    assert sorted((s.n_patients, s.n_rows) for s in summary.splits) == [(0, 0), (1, 2), (1, 3)]
    assert [(group.code, group.n_findings) for group in summary.findings] == [
        ("contour-unreadable", 1),
        ("image-no-contour", 6),
    ]


def test_the_text_shows_all_and_where_to_see_the_rest(data):
    text = "\n".join(summary_text(report.summarise(data)))
    for words in (
        "5 of 2 patients", "12x14 int16", "1.25 x 1.5 mm", "blood pool", "muscle", "test", "Folds",
        "contour-unreadable", "... and 3 more", "--csv", "dicoms/P1/20.dcm",
    ):  # fmt: skip
        assert words in text
    assert max(map(len, text.splitlines())) < 160


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-1024.0, "-1024"),
        (16777217.0, "16777217"),
        (2147483647.0, "2147483647"),
        (63.869125, "63.869125"),
        (63.869126, "63.869126"),
        (0.7421875, "0.7421875"),
        (float(np.float32(0.1)), "0.1"),
        (-999.63, "-999.63"),
    ],
)
def test_a_number_has_the_digits_that_tell_it_from_others(value, text):
    assert number_text(value) == text
    assert value in {float(text), float(np.float32(text))}


def test_frequencies_that_differ_in_the_seventh_digit_are_two_values():
    tag = tag_of("ImagingFrequency", np.array([63.869125, 63.869126, 63.869126]))
    assert tag.values == [("63.869126", 2), ("63.869125", 1)]
    assert tag_text(tag) == "ImagingFrequency: 63.869126 in 2 rows, 63.869125 in 1 row"


def test_json_holds_the_same(data):
    plain = json.loads(json.dumps(report.summarise(data).to_json(), allow_nan=False))
    assert plain["n_rows"] == 5
    assert plain["findings"][0]["examples"][0]["row"] == -1


def test_what_the_audit_measured_is_a_line_where_it_was_made(data, tmp_path):
    summary = report.summarise(data)
    counts = {"n_contours": 15, "n_too_little_contrast": 1, "n_at_edge": 2, "n_patients": 1}
    measured = counts | {"dx": 0.721, "dy": -0.775}
    text = "\n".join(summary_text(replace(summary, alignment=measured)))
    line = (
        "  Alignment contours lie (+0.72, -0.78) px off the image's edges, 15 contours of 1 patient"
    )
    assert f"{line}, 3 left out" in text
    text = "\n".join(summary_text(replace(summary, alignment=None)))
    assert "Alignment" not in text


def test_a_finding_about_all_has_no_path(data):
    group = group_findings([FindingRow("warning", "code", "", -1, "they all " * 30)])
    lines = list(findings_text(group, "dicom-etl report out.h5", ("warning",)))
    assert lines[3].startswith("          they all")
    assert max(map(len, lines)) <= 110
    finding = Finding("alignment-dataset", "", "they lie off")
    assert str(finding) == "warning: alignment-dataset: they lie off"


def test_the_table_has_every_finding_and_no_formula(data, tmp_path):
    path = tmp_path / "findings.csv"
    table.write_csv(data, read_findings(data), path, force=False)
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 7
    assert rows[0]["code"] == "contour-unreadable"
    assert table.no_formula("=1+1") == "'=1+1"
    assert table.no_formula("dicoms/=P") == "dicoms/=P"
    with pytest.raises(etl.EtlError, match="force=True"):
        table.write_csv(data, read_findings(data), path, force=False)


def test_the_table_never_takes_the_datasets_place(data, tmp_path):
    before = data.path.read_bytes()
    (tmp_path / "link").symlink_to(data.path)
    (tmp_path / "hard").hardlink_to(data.path)
    for path in (data.path, tmp_path / "link", tmp_path / "hard"):
        with pytest.raises(etl.EtlError, match="the dataset itself"):
            table.write_csv(data, read_findings(data), path, force=True)
    assert data.path.read_bytes() == before
    (tmp_path / "old.csv").write_text("any text")
    table.write_csv(data, read_findings(data), tmp_path / "old.csv", force=True)
    assert "contour-unreadable" in (tmp_path / "old.csv").read_text("utf-8-sig")


def test_no_name_steers_a_terminal_or_breaks_a_line(data, tmp_path):
    evil, shown = "a\x1b]0;x\x07\n\u202eb\udcff", "a\\x1b]0;x\\x07\\n\\u202eb\\udcff"
    assert str(Finding("image-size", evil, evil)) == f"error: image-size: {shown}: {shown}"
    row = FindingRow("error", evil, evil, -1, evil)
    summary = replace(
        report.summarise(data), path=evil, generator=evil, findings=group_findings([row])
    )
    lines = list(summary_text(summary))
    assert all(map(str.isprintable, lines))
    assert sum(line.count(shown) for line in lines) == 6
    assert table.no_formula("=\n") == "'=\\n"
    assert table.no_formula("\t=1") == "'\\t=1"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("structures", '[{"name": "x", "code": 7, "meaning": "y", "stem": "label7"}]'),
        ("sources", '{"dicoms": "many"}'), ("sources", '{"dicoms": null}'),
        ("alignment", "{}"),
    ],
)  # fmt: skip
def test_attributes_edited_to_nonsense_are_told(data, name, text):
    with h5py.File(data.path, "r+") as file:
        file.attrs[name] = np.bytes_(text)
    with pytest.raises(etl.EtlError, match="attributes are not those"):
        report.summarise(open_dataset(data.path))


@pytest.mark.parametrize("text", ["no JSON", "[]"])
def test_an_alignment_that_is_no_object_is_refused_by_the_loader(data, text):
    assert isinstance(data.attributes["alignment"], dict)
    with h5py.File(data.path, "r+") as file:
        file.attrs["alignment"] = np.bytes_(text)
    with pytest.raises(LoaderError, match="attribute alignment"):
        open_dataset(data.path)


def draw(data, folder, **options):
    return overlays.write_overlays(data, folder, rows=range(len(data)), remarks={}, **options)


def test_one_picture_per_row_named_by_patient_and_slice(data, tmp_path):
    folder = tmp_path / "overlays"
    assert draw(data, folder, force=False) == []
    names = sorted(path.name for path in folder.iterdir())
    assert names == [
        "P1_slice0001.png", "P1_slice0003.png",
        "_P_2_slice0001.png", "_P_2_slice0002.png", "_P_2_slice0003.png",
    ]  # fmt: skip
    with pytest.raises(etl.EtlError, match="has files"):
        draw(data, folder, force=False)
    (folder / "P1_slice0009.png").touch()  # of an earlier file
    assert draw(data, folder, force=True) == ["P1_slice0009.png"]


def test_pictures_show_contour_and_edge_where_they_are():
    image = np.zeros((32, 64), np.int16)
    mask = np.zeros((32, 64), np.uint8)
    mask[8:16, 20:40] = 1
    vertices = np.array([[19.5, 7.5], [39.5, 7.5], [39.5, 15.5], [19.5, 15.5]])
    picture = np.asarray(overlays.overlay(image, mask, [], "x", STRUCTURES))
    scale = picture.shape[1] // 64
    assert picture.shape == (32 * scale, 64 * scale, 3)
    line, edge = overlays._COLOURS[1]
    assert (picture[8 * scale, 20 * scale + 3] == edge).all()  # upper side of the first pixel
    assert (picture[12 * scale, 40 * scale] == edge).all()  # right side of the last
    drawn = np.asarray(overlays.overlay(image, mask, [(1, vertices)], "x", STRUCTURES))
    assert (drawn[8 * scale, 30 * scale] == line).all()  # both lie on one line


@pytest.mark.parametrize("with_contour", [False, True])
def test_a_structure_up_to_the_border_is_drawn_on_all_four_sides(with_contour):
    """Its right and lower sides are where the picture ends, one pixel beyond the last."""
    image, mask = np.zeros((6, 9), np.int16), np.ones((6, 9), np.uint8)
    corners = np.array([[-0.5, -0.5], [8.5, -0.5], [8.5, 5.5], [-0.5, 5.5]])
    contours = [(1, corners)] if with_contour else []
    picture = np.asarray(overlays.overlay(image, mask, contours, "", STRUCTURES[-1:]))
    is_line = (picture == overlays._COLOURS[1][0 if with_contour else 1]).all(-1)
    free = is_line[60:]  # below the caption
    assert free[:, 0].all()
    assert free[:, -1].all()
    assert free[-1].all()
    assert not free[:-1, 1:-1].any()


def test_the_outer_structure_ends_where_the_union_with_the_inner_one_does():
    image, mask = np.zeros((32, 64), np.int16), np.zeros((32, 64), np.uint8)
    mask[4:20, 10:50] = 2
    mask[8:16, 20:40] = 1
    picture = np.asarray(overlays.overlay(image, mask, [], "x", STRUCTURES))
    scale = picture.shape[1] // 64
    assert (picture[4 * scale, 30 * scale] == overlays._COLOURS[2][1]).all()
    assert (picture[8 * scale, 30 * scale] == overlays._COLOURS[1][1]).all()
    assert not picture[6 * scale, 30 * scale].any()


def test_every_structure_has_a_colour_of_its_own():
    scheme = named_scheme(f"organ {number}" for number in range(12))
    colours = {colour for one in scheme for colour in overlays.colours(one)}
    assert len(colours) == 24
    mask = np.arange(13, dtype=np.uint8)[None].repeat(4, axis=0)
    picture = overlays.overlay(mask.astype(np.int16), mask, [], "", scheme.structures)
    shown = {colour for _, colour in picture.getcolors(1 << 20)}
    assert shown >= {overlays.colours(one)[1] for one in scheme}


@pytest.mark.parametrize(
    ("rows", "columns", "scale"),
    [(2000, 4, 2), (20000, 2, 1), (4, 2000, 1), (256, 256, 4), (3, 1, 1024), (1, 1, 1024)],
)
def test_no_picture_is_enlarged_beyond_measure(rows, columns, scale):
    image = np.zeros((rows, columns), np.int16)
    picture = overlays.overlay(image, image.astype(np.uint8), [], "x", STRUCTURES)
    assert picture.size == (columns * scale, rows * scale)


def test_names_that_meet_are_told_apart():
    class Two:
        manifest = {  # noqa: RUF012
            "patient_id": np.array(["a/b", "a b", "a_b"]),
            "slice": np.array([1, 1, 1]),
        }

    names = overlays.file_names(Two())
    assert names == ["a_b_slice0001.png", "a_b_slice0001_row1.png", "a_b_slice0001_row2.png"]


def test_letters_of_every_script_stay_in_names_and_captions():
    class Three:
        manifest = {  # noqa: RUF012
            "patient_id": np.array(["\u5f20\u4e09", "\u674e \u56db", "Jose\u0301" + "\u5f20" * 99]),
            "slice": np.array([1, 1, 1]),
        }

    first, second, third = overlays.file_names(Three())
    assert (first, second) == ("\u5f20\u4e09_slice0001.png", "\u674e_\u56db_slice0001.png")
    assert third == f"Jos\u00e9{31 * chr(0x5F20)}_slice0001.png"


def test_a_window_of_a_constant_image_is_black():
    assert not np.asarray(
        overlays.overlay(
            np.full((8, 8), 7, np.int16), np.zeros((8, 8), np.uint8), [], "", STRUCTURES
        )
    )[20:].any()


def test_a_caption_escapes_the_letters_that_the_font_lacks():
    """It drew a box for each, so that patients named in other scripts looked alike."""
    image, mask = np.zeros((64, 64), np.int16), np.zeros((64, 64), np.uint8)

    def picture(caption):
        return overlays.overlay(image, mask, [], caption, STRUCTURES).tobytes()

    assert picture("\u5f20\u4e09") == picture("\\u5f20\\u4e09") != picture("\u674e\u56db")
