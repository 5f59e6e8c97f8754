"""What `dicom-etl check` says must be what a build does, and it must write nothing."""

import csv
import json
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest
from builders import (
    COLUMNS,
    ROWS,
    contour_path,
    dicom_bytes,
    gradient,
    instance,
    write_contour,
    write_dicom,
    write_tree,
)
from click.testing import CliRunner

import etl
from etl.check import check
from etl.cli import cli
from etl.errors import EtlError
from etl.options import BuildOptions
from loader import open_dataset

OPTIONS = BuildOptions(rows=ROWS, columns=COLUMNS, audit=False)
TWO = (("P1", "A1"), ("P2", "A2"))


@pytest.fixture
def root(tmp_path):
    return write_tree(tmp_path / "data", TWO)


@pytest.fixture
def damaged(root):
    """A folder with one pair of each kind of trouble, and four good ones."""
    write_contour(root, "A1", 1, text="2 2\nbroken\n")
    write_dicom(root, "P1", "2.dcm", b"junk")
    write_dicom(root, "P1", "4.dcm", instance(gradient(8, 10), uid="1.2.3.9"))
    write_contour(root, "A1", 4)
    write_dicom(root, "P2", "9.dcm")
    write_contour(root, "A2", 1, text="2.2 2.2\n2.8 2.2\n2.5 2.8\n")  # no pixel inside
    write_dicom(root, "P2", "3.IMA", b"junk")
    return root


def files(root):
    return {path: path.stat().st_mtime_ns for path in sorted(Path(root).rglob("*"))}


def codes(found):
    return Counter(finding.code for finding in found.findings)


def test_the_facts_of_a_clean_folder(root):
    write_dicom(root, "P2", "3.dcm", dicom_bytes(instance(series := gradient()), "implicit"))
    summary = check(root, OPTIONS).summary
    assert (summary.n_pairs, summary.n_rows, summary.n_unread, summary.n_series) == (6, 6, 0, 1)
    assert summary.sizes == [((ROWS, COLUMNS), 6)]
    assert summary.encodings == [("Explicit VR Little Endian", 5), ("Implicit VR Little Endian", 1)]
    assert summary.structures == [(1, "i-contour", 6, 6)]
    assert summary.patients == [("P1", "A1", 3, 3), ("P2", "A2", 3, 3)]
    assert summary.image_dtype == "int16"
    assert summary.n_bytes == 6 * ROWS * COLUMNS * 3 == 6 * (series.nbytes + series.size)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("workers", [1, 2])
def test_what_it_says_is_what_a_build_does_and_nothing_is_written(
    damaged, tmp_path, monkeypatch, full, workers
):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.chdir(tmp_path)
    before = files(tmp_path)
    found = check(damaged, OPTIONS, full=full, workers=workers)
    assert files(tmp_path) == before
    result = etl.build(damaged, tmp_path / "out.h5", OPTIONS)
    summary = found.summary
    assert (summary.n_pairs, summary.n_unread) == (7, 1)
    if full:
        assert found.findings == result.findings
        assert summary.n_rows == result.n_rows == 3
        rows = open_dataset("out.h5").manifest["patient_id"].tolist()
        assert {one.patient_id: one.n_rows for one in summary.patients} == Counter(rows)
    else:  # an empty mask shows when it is drawn
        assert codes(found) == codes(result) - Counter(["mask-empty"])
        assert summary.n_rows == 4
    assert summary.sizes == [((ROWS, COLUMNS), 5), ((8, 10), 1)]
    assert summary.structures == [(1, "i-contour", 7, summary.n_rows)]


def test_quality_checks_and_audit_are_for_the_full_check(root):
    flat = instance(np.full((ROWS, COLUMNS), 7, "<i2"), uid="1.2.3.1.1")
    write_dicom(root, "P1", "1.dcm", flat)
    assert codes(check(root, OPTIONS)) == {}
    assert codes(check(root, OPTIONS, full=True)) == {"image-constant": 1}


def test_the_full_check_says_what_is_wrong_as_a_build_does(damaged, tmp_path):
    result = etl.build(damaged, tmp_path / "out.h5", OPTIONS)
    found = check(damaged, OPTIONS, full=True)
    assert found.diagnoses == result.diagnoses != []
    lines = list(found.text())
    assert lines[1:3] == ["", "What is wrong, most harmful first"]
    assert lines[3].startswith(f"  1. {result.diagnoses[0].text[:30]}")
    assert found.to_json()["diagnoses"] == [one.to_json() for one in result.diagnoses]
    quick = check(damaged, OPTIONS)
    assert quick.diagnoses == quick.to_json()["diagnoses"] == []


def test_the_full_check_of_an_input_without_a_usable_pair_says_why(root):
    for path in root.glob("dicoms/*/*.dcm"):
        path.write_bytes(b"junk")
    diagnoses = check(root, OPTIONS, full=True).diagnoses
    assert [(one.code, one.n_findings) for one in diagnoses] == [("image-unreadable", 3)] * 2


@pytest.mark.parametrize("full", [False, True])
def test_a_row_of_which_fit_leaves_nothing_is_no_row(tmp_path, full):
    """Of slice 2 all is beyond the 6x6 pixels that are kept; of slice 1 a corner is not."""
    root = write_tree(tmp_path / "data", slices=(1, 2), outer=False)
    write_contour(root, "A1", 2, text="10 0\n13 0\n13 2\n10 2\n")
    options = BuildOptions(rows=6, columns=6, size="fit", audit=False)
    found = check(root, options, full=full)
    result = etl.build(root, tmp_path / "out.h5", options)
    assert (result.n_rows, found.summary.n_rows) == (1, 1)
    assert [one.n_rows for one in found.summary.structures] == [1]
    (empty,) = (one for one in found.findings if one.code == "mask-empty")
    assert empty in result.findings
    assert empty.key.slice == 2


@pytest.mark.parametrize("full", [False, True])
def test_a_row_of_which_fit_leaves_a_pixel_is_a_row(tmp_path, full):
    """All centres of the image's pixels in the drawing are cut off, but not those of the file."""
    root = write_tree(tmp_path / "data", slices=(1, 2), outer=False)
    for slice_number in (1, 2):
        image = instance(gradient(seed=slice_number), uid=f"1.{slice_number}", PixelSpacing=[2, 2])
        write_dicom(root, "P1", f"{slice_number}.dcm", image)
    write_contour(root, "A1", 2, text="0 0\n2.9 0\n2.9 2.9\n0 2.9\n")
    options = BuildOptions(rows=12, columns=16, size="fit", resample=(1.0, 1.0), audit=False)
    found = check(root, options, full=full)
    result = etl.build(root, tmp_path / "out.h5", options)
    assert open_dataset(tmp_path / "out.h5").manifest["n_pixels_1"].min() > 0
    assert found.summary.n_rows == result.n_rows == 2
    assert set(found.findings) <= set(result.findings)
    assert "all of it" not in "".join(one.message for one in result.findings)


def test_the_size_that_takes_most_is_named(root, tmp_path):
    found = check(root, BuildOptions())
    assert (found.summary.n_rows, found.summary.size_option) == (0, f"{ROWS}x{COLUMNS}")
    text = "\n".join(found.text())
    assert f"--size {ROWS}x{COLUMNS} takes 6 pairs, --size 256x256 takes 0." in text
    assert "No row for 2 patients: P1, P2." in text
    assert check(root, OPTIONS).summary.size_option == ""
    write_tree(tmp_path / "both", slices=(1, 2))  # as many of either size: nothing to say
    write_dicom(tmp_path / "both", "P1", "1.dcm", instance(gradient(8, 10)))
    both = check(tmp_path / "both", OPTIONS).summary
    assert (sorted(n for _, n in both.sizes), both.size_option) == ([1, 1], "")


def test_compressed_pixels_are_told_in_words(root):
    path = root / "dicoms/P1/1.dcm"
    dataset = pydicom.dcmread(path)
    dataset.compress(pydicom.uid.RLELossless)
    dataset.save_as(path)
    write_dicom(root, "P1", "2.dcm", dicom_bytes(instance(gradient()), "deflated"))
    assert check(root, OPTIONS).summary.encodings == [
        ("Explicit VR Little Endian", 4),
        ("RLE", 1),
        ("Deflated Explicit VR Little Endian", 1),
    ]


def test_kinds_and_partial_are_those_of_the_build(root):
    (root / contour_path("A1", 1, "o")).unlink()
    options = {"rows": ROWS, "columns": COLUMNS, "contours": ("i", "o")}
    whole = check(root, BuildOptions(**options)).summary
    assert [one[2:] for one in whole.structures] == [(5, 5), (5, 5)]
    partial = check(root, BuildOptions(**options, partial=True)).summary
    assert [one[2:] for one in partial.structures] == [(6, 6), (5, 5)]


def test_a_table(tmp_path):
    for number in (1, 2):
        dataset = instance(gradient(seed=number), uid=f"1.2.{number}", InstanceNumber=number)
        (tmp_path / f"{number}.dcm").write_bytes(dicom_bytes(dataset))
    write_contour(tmp_path, "A", 1)
    rows = [f"P1,{n}.dcm,{name},{contour_path('A', 1)}" for n in (1, 2) for name in ("a", "b")]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["patient_id,image,label,contour", *rows[:3]]))
    found = check(table, OPTIONS)
    assert found.layout == "Layout table: found table.csv."
    assert found.summary.structures == [(1, "a", 2, 2), (2, "b", 1, 1)]
    assert found.summary.patients == [("P1", "", 2, 2)]
    assert "Label 1     a: in 2 pairs, 2 rows" in "\n".join(found.text())


def test_text_is_plain_and_says_everything(damaged):
    assert list(check(damaged, OPTIONS).text())[:12] == [
        f"{damaged}  (headers and annotations read, nothing written)",
        "",
        "  Layout      link: found link.csv.",
        "  Sources     2 patients, 8 DICOM files, 7 i-contours, 6 o-contours, 1 other file",
        "  Pairs       7 in 1 series; 1 header not readable",
        f"  Sizes       {ROWS}x{COLUMNS} (5), 8x10 (1)",
        "  Encodings   Explicit VR Little Endian (6)",
        "  Label 1     i-contour: in 7 pairs, 4 rows",
        "",
        f"A build would write 4 of 7 pairs, of 2 patients: {ROWS}x{COLUMNS} int16, 0.0 MB.",
        "The images have 2 sizes: --fit ROWSxCOLUMNS takes all of them.",
        "",
    ]
    assert next(check(damaged, OPTIONS, full=True).text()).endswith(
        "(headers, annotations and pixels read, nothing written)"
    )
    assert list(check(damaged, OPTIONS).text())[-1] == (
        f"All findings: dicom-etl check {damaged} --csv findings.csv"
    )


def test_json_has_all_numbers_and_the_findings(damaged):
    found = json.loads(json.dumps(check(damaged, OPTIONS).to_json(), allow_nan=False))
    assert found["n_rows"] == 4
    assert found["sizes"][1] == {"rows": 8, "columns": 10, "n_pairs": 1}
    assert found["encodings"] == [{"transfer_syntax": "Explicit VR Little Endian", "n_pairs": 6}]
    assert found["structures"] == [{"code": 1, "name": "i-contour", "n_pairs": 7, "n_rows": 4}]
    assert found["patients"][1] == {
        "patient_id": "P2", "original_id": "A2", "n_pairs": 3, "n_rows": 3,
    }  # fmt: skip
    assert {group["code"]: group["n_findings"] for group in found["findings"]} == {
        "contour-unreadable": 1,
        "image-size": 1,
        "image-unreadable": 1,
        "file-misnamed": 1,
        "image-no-contour": 1,
    }
    misnamed = next(group for group in found["findings"] if group["code"] == "file-misnamed")
    assert misnamed["examples"][0]["path"] == "dicoms/P2/3.IMA"


def test_the_table_of_findings(damaged, tmp_path):
    out = tmp_path / "findings.csv"
    found = check(damaged, OPTIONS)
    found.write_csv(out, force=False)
    with out.open(encoding="utf-8-sig", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(found.findings) == 5
    broken = next(line for line in lines if line["code"] == "contour-unreadable")
    assert broken["path"] == contour_path("A1", 1)
    place = {name: broken[name] for name in ("patient_id", "original_id", "slice", "structure")}
    assert place == {
        "patient_id": "P1", "original_id": "A1", "slice": "1", "structure": "i-contour",
    }  # fmt: skip
    with pytest.raises(EtlError, match="exists"):
        found.write_csv(out, force=False)
    found.write_csv(out, force=True)


def test_nothing_to_build_is_said_at_the_end(root):
    for number in (1, 2, 3):
        for original_id in ("A1", "A2"):
            (root / contour_path(original_id, number)).unlink()
    found = check(root, OPTIONS)
    assert "\n".join(found.text()).count("Sizes       none") == 1
    with pytest.raises(EtlError, match=r"^Nothing to build.*No i-contour file was found: expected"):
        found.require_rows()
    check(write_tree(root.parent / "other"), OPTIONS).require_rows()


# ------------------------------------------------------------------------- options of a build


def test_kept_attributes_are_counted_over_the_rows(root):
    for number, echo in ((1, "1.5"), (2, "1.5"), (3, "2.5")):
        image = instance(gradient(seed=number), uid=f"1.2.3.1.{number}", EchoTime=echo)
        image.Manufacturer = "Maker"
        write_dicom(root, "P1", f"{number}.dcm", image)
    tags = ("EchoTime", "Manufacturer", "FlipAngle")
    options = etl.BuildOptions(rows=ROWS, columns=COLUMNS, keep_tags=tags)
    for full in (False, True):
        found = check(root, options, full=full)
        by_name = {one.keyword: one for one in found.tags}
        assert by_name["EchoTime"].values == [("1.5", 2), ("2.5", 1)]
        assert by_name["EchoTime"].n_unknown == 3
        assert by_name["FlipAngle"].n_unknown == 6
        lines = "\n".join(found.text())
        assert "  Tag         EchoTime: 1.5 in 2 rows, 2.5 in 1 row, none in 3 rows" in lines
        assert "  Tag         FlipAngle: no row has a value" in lines
        assert found.to_json()["tags"][0]["keyword"] == "EchoTime"
    assert "tags" not in check(root, OPTIONS).to_json()


def test_an_attribute_that_no_build_keeps_is_refused_before_the_work(root):
    options = etl.BuildOptions(rows=ROWS, columns=COLUMNS, keep_tags=("PatientName",))
    with pytest.raises(EtlError, match="PatientName is a person's name"):
        check(root, options)
    anyway = etl.BuildOptions(
        rows=ROWS, columns=COLUMNS, keep_tags=("PatientName",), keep_tags_anyway=True
    )
    assert any("patients may be found" in note for note in check(root, anyway).notes)


@pytest.mark.parametrize("full", [False, True])
def test_rows_of_a_row_list_are_left_out_as_by_a_build(root, tmp_path, full):
    path = tmp_path / "rows.csv"
    path.write_text("patient_id,slice\nP1,2\nP9,1\n")
    options = etl.BuildOptions(rows=ROWS, columns=COLUMNS, exclude_file=str(path))
    found = check(root, options, full=full)
    result = etl.build(root, tmp_path / "out.h5", options)
    assert found.summary.n_rows == result.n_rows == 5
    assert codes(found)["row-excluded"] == 1
    assert set(found.notes) <= set(result.notes)
    assert found.notes


@pytest.mark.parametrize("by_structure", [False, True])
def test_flagged_rows_are_left_out_by_the_full_check_as_by_a_build(root, tmp_path, by_structure):
    same = (root / contour_path("A1", 1)).read_bytes()
    (root / contour_path("A1", 2)).write_bytes(same)
    options = etl.BuildOptions(
        contours=("i", "o"), partial=True, rows=ROWS, columns=COLUMNS,
        exclude_flagged=("identical-contour",), exclude_structures=by_structure,
    )  # fmt: skip
    found = check(root, options, full=True)
    result = etl.build(root, tmp_path / "out.h5", options)
    drawn = open_dataset(tmp_path / "out.h5").manifest
    assert found.summary.n_rows == result.n_rows
    assert [one.n_rows for one in found.summary.structures] == [
        int(drawn[f"drawn_{one.code}"].sum()) for one in found.summary.structures
    ]
    assert result.n_rows == (6 if by_structure else 4)


def test_the_options_of_pixels_need_the_full_check(root):
    size = ["--size", f"{ROWS}x{COLUMNS}"]
    for option in (["--no-qc"], ["--no-audit"], ["--exclude-flagged", "area-jump"]):
        found = CliRunner().invoke(cli, ["check", str(root), *size, *option])
        assert (found.exit_code, "needs --full" in found.output) == (2, True)
        found = CliRunner().invoke(cli, ["check", str(root), *size, "--full", *option])
        assert found.exit_code == 0, found.output


def test_the_command_passes_every_option_on(root, tmp_path):
    (tmp_path / "rows.csv").write_text("patient_id,slice\nP1,2\n")
    arguments = ["--keep-tags", "EchoTime, FlipAngle", "--exclude-file", str(tmp_path / "rows.csv")]
    arguments += ["--rasterizer", "pillow", "--size", f"{ROWS}x{COLUMNS}", "--json"]
    found = CliRunner().invoke(cli, ["check", str(root), *arguments])
    assert found.exit_code == 0, found.output
    said = json.loads(found.stdout)
    assert said["n_rows"] == 5
    assert [one["keyword"] for one in said["tags"]] == ["EchoTime", "FlipAngle"]
