import csv
import io

import h5py
import numpy as np
import pytest
from builders import (
    COLUMNS,
    ROWS,
    SQUARE,
    dicom_bytes,
    gradient,
    instance,
    write_contour,
    write_tree,
)
from PIL import Image

import etl
from etl.findings import FindingRow
from etl.options import BuildOptions
from etl.report import overlays
from etl.report.findings import Selection, read_findings
from etl.report.table import csv_text
from etl.sources.row_list import COLUMNS as ROW_LIST
from loader import open_dataset

OUTSIDE = "-5.5 0\n4.5 0\n4.5 5\n-5.5 5\n"


@pytest.fixture
def data(tmp_path):
    """Build a file with an error, a warning on a contour and one on an image."""
    root = write_tree(tmp_path / "data", [("P1", "A1"), ("P2", "A2")])
    write_contour(root, "A1", 2, text="broken")
    write_contour(root, "A2", 1, text=OUTSIDE)
    image = (root / "dicoms/P2/2.dcm").read_bytes().replace(b"1.2.3.2.2", b"1.2.3.2.3")
    (root / "dicoms/P2/3.dcm").write_bytes(image)
    etl.build(root, tmp_path / "out.h5", BuildOptions(("i", "o"), ROWS, COLUMNS, audit=False))
    return open_dataset(tmp_path / "out.h5")


def size_of(path):
    with Image.open(path) as picture:
        return picture.size


def codes(findings):
    return [found.code for found in findings]


def test_findings_know_their_patient_structure_and_partner(data):
    findings = {(one.code, one.path): one for one in read_findings(data)}
    broken = findings[
        "contour-unreadable", "contourfiles/A1/i-contours/IM-0001-0002-icontour-manual.txt"
    ]
    assert (broken.row, broken.patient_id, broken.original_id, broken.label) == (-1, "P1", "A1", 1)
    outside = findings[
        "contour-partly-outside", "contourfiles/A2/i-contours/IM-0001-0001-icontour-manual.txt"
    ]
    assert (outside.row, outside.patient_id, outside.original_id, outside.label) == (
        2,
        "P2",
        "A2",
        1,
    )
    twin = findings["identical-image", "dicoms/P2/2.dcm"]
    assert (twin.row, twin.other_row, twin.label) == (3, 4, 0)


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Selection(), 5),
        (Selection(severities=("error",)), 1),
        (Selection(codes=("identical-image",)), 2),
        (Selection(patients=("P1",)), 1),
        (Selection(patients=("A1", "A2")), 5),
        (Selection(("warning",), ("identical-image",), ("P1",)), 0),
    ],
)
def test_a_selection_takes_what_fits_all_of_it(data, selection, expected):
    findings = read_findings(data)
    assert len(findings) == 5
    assert len(selection.chosen(findings)) == expected


def test_a_patient_without_rows_is_known_by_its_path():
    found = FindingRow("error", "image-size", "dicoms/P7/1.dcm", -1, "")
    assert Selection(patients=("P7",)).chosen([found]) == [found]
    assert Selection(patients=("P8",)).chosen([found]) == []


@pytest.mark.parametrize("has_column", [True, False])
def test_a_finding_without_a_row_is_of_the_patient_that_it_tells(tmp_path, has_column):
    """Not of the one that the name of a folder looks like, nor of nobody."""
    for n, place in enumerate(("P1/a", "P1/b", "x/c")):
        path = tmp_path / f"data/{place}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(dicom_bytes(instance(gradient(seed=n), uid=f"1.2.{n}")))
        path.with_suffix(".txt").write_text(SQUARE if n == 0 else "broken")
    lines = ["patient_id,image,label,contour", "P1,P1/a.dcm,heart,P1/a.txt"]
    lines += ["P2,P1/b.dcm,heart,P1/b.txt", "P3,x/c.dcm,heart,x/c.txt"]
    (tmp_path / "data/table.csv").write_text("\n".join(lines) + "\n")
    out = tmp_path / "out.h5"
    etl.build(tmp_path / "data", out, BuildOptions(rows=ROWS, columns=COLUMNS, audit=False))
    if not has_column:  # as files had it before
        with h5py.File(out, "r+") as file:
            del file["findings/patient_id"]
    found = [one for one in read_findings(open_dataset(out)) if one.code == "contour-unreadable"]
    expected = ["P2", "P3"] if has_column else ["P1", ""]
    assert [one.patient_id for one in found] == expected
    chosen = Selection(patients=("P2",)).chosen(found)
    assert [one.path for one in chosen] == (["P1/b.txt"] if has_column else [])


def test_rows_to_draw_are_those_with_a_finding_or_of_the_patient(data):
    findings = read_findings(data)
    for selection, rows in (
        (Selection(), [0, 1, 2, 3, 4]),
        (Selection(patients=("A2",)), [2, 3, 4]),
        (Selection(severities=("error",)), []),
        (Selection(codes=("identical-image", "contour-partly-outside")), [2, 3, 4]),
        (Selection(codes=("identical-image",), patients=("P1",)), []),
    ):
        assert selection.rows(data, selection.chosen(findings)) == rows


def test_the_row_list_is_what_a_build_reads_and_more(data):
    lines = list(csv.DictReader(io.StringIO(csv_text(data, read_findings(data)))))
    assert list(lines[0]) == [
        *ROW_LIST, "severity", "code", "message", "advice", "path", "original_id"
    ]  # fmt: skip
    assert (lines[0]["code"], lines[0]["slice"], lines[0]["patient_id"]) == (
        "contour-unreadable", "", "P1",
    )  # fmt: skip
    outside = next(line for line in lines if line["code"] == "contour-partly-outside")
    assert [outside[name] for name in ROW_LIST] == ["P2", "", "1", "1", "i-contour", "", ""]
    assert (outside["advice"], outside["original_id"]) == ("look at its overlay", "A2")
    assert {line["structure"] for line in lines if line["code"] == "identical-image"} == {""}


def test_a_picture_names_the_findings_that_are_chosen(data, tmp_path):
    findings = read_findings(data)
    remarks = overlays.remarks_on([*findings, *findings])
    assert {row: codes(found) for row, found in remarks.items()} == {
        2: ["contour-partly-outside", "inner-outside-outer"],
        3: ["identical-image"], 4: ["identical-image"],
    }  # fmt: skip
    for folder, named in (("plain", {}), ("named", remarks)):
        overlays.write_overlays(data, tmp_path / folder, force=False, rows=[2], remarks=named)
    (name,) = (path.name for path in (tmp_path / "plain").iterdir())
    plain, named = (
        np.asarray(Image.open(tmp_path / f / name)).astype(int) for f in ("plain", "named")
    )
    rows = np.flatnonzero((plain != named).any(axis=(1, 2)))
    line = overlays._LINE_HEIGHT
    assert len(rows) > 0
    assert rows.min() >= line
    assert rows.max() < 2 * line + 16
    colour = overlays._SEVERITY_COLOURS["warning"]
    assert (named == colour).all(axis=2).any()
    assert not (plain == colour).all(axis=2).any()


def test_a_contact_sheet_has_a_tile_for_each_row(data, tmp_path, monkeypatch):
    path = tmp_path / "sheet.png"
    options = {"force": False, "remarks": {}}
    assert overlays.write_contact_sheet(data, path, rows=range(5), **options) == 0
    step = overlays.TILE_WIDTH + overlays._TILE_GAP
    assert size_of(path) == (3 * step + overlays._TILE_GAP, 2 * step + overlays._TILE_GAP)
    with pytest.raises(etl.EtlError, match="exists already"):
        overlays.write_contact_sheet(data, path, rows=[0], **options)
    monkeypatch.setattr(overlays, "MAX_TILES", 2)
    options["force"] = True
    assert overlays.write_contact_sheet(data, path, rows=range(5), **options) == 3
    assert size_of(path) == (2 * step + overlays._TILE_GAP, step + overlays._TILE_GAP)
