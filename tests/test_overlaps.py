"""Structures that are drawn over each other: what of them a file keeps, and what it says."""

import json

import numpy as np
import pytest
from builders import gradient, instance, write_contour, write_dicom
from click.testing import CliRunner

import etl
import loader
from etl.cli import cli
from etl.options import BuildOptions

ROWS, COLUMNS = 12, 14
# First row, row after the last, first column, column after the last; in paint order.
BOXES = {"liver": (2, 9, 1, 8), "kidney": (5, 11, 4, 10), "spine": (0, 3, 10, 13)}
BOTH = np.zeros((ROWS, COLUMNS), bool)
BOTH[5:9, 4:8] = True


def inside(name):
    """Return the pixels of a box."""
    top, bottom, left, right = BOXES[name]
    mask = np.zeros((ROWS, COLUMNS), bool)
    mask[top:bottom, left:right] = True
    return mask


def write_boxes(root, slices=(1, 2, 3), names=tuple(BOXES)):
    """Write images with boxes drawn on them, and a table; return its path."""
    lines = ["patient_id,image,label,contour"]
    for number in slices:
        write_dicom(
            root, "P1", f"{number}.dcm", instance(gradient(seed=number), uid=f"1.2.{number}")
        )
        for kind, name in zip("abcdefg", names, strict=False):
            top, bottom, left, right = np.array(BOXES[name]) - 0.5
            corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
            corners.insert(3, ((2 * left + right) / 3 + number / 100, bottom))  # no two alike
            text = "\n".join(f"{x} {y}" for x, y in corners)
            path = write_contour(root, "A1", number, kind, text).relative_to(root)
            lines.append(f"P1,dicoms/P1/{number}.dcm,{name},{path.as_posix()}")
    table = root / "boxes.csv"
    table.write_text("\n".join(lines) + "\n")
    return table


def options(**others):
    return BuildOptions(rows=ROWS, columns=COLUMNS, structures=tuple(BOXES), **others)


@pytest.fixture
def table(tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    return write_boxes(root)


def report(out, *arguments):
    result = CliRunner().invoke(cli, ["report", str(out), *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


class TestLabels:
    """One code a pixel: the structure painted last."""

    @pytest.fixture
    def built(self, table, tmp_path):
        result = etl.build(table, tmp_path / "out.h5", options())
        return result, loader.open_dataset(tmp_path / "out.h5")

    def test_the_last_one_covers_and_the_pixels_of_both_are_counted(self, built):
        _, data = built
        expected = np.select([inside("spine"), inside("kidney"), inside("liver")], [3, 2, 1])
        assert (data.masks == expected).all()
        assert data.manifest["n_overlapping"].tolist() == [BOTH.sum()] * 3
        assert data.manifest["n_pixels_1"].tolist() == [(inside("liver") & ~BOTH).sum()] * 3
        assert data.manifest["label1_area"].tolist() == [inside("liver").sum()] * 3

    def test_it_is_a_finding_of_each_row(self, built):
        result, data = built
        found = [one for one in result.findings if one.code == "structures-overlap"]
        assert [one.path for one in found] == [f"dicoms/P1/{n}.dcm" for n in (1, 2, 3)]
        share = BOTH.sum() / inside("kidney").sum()
        assert (
            f"16 pixels are inside of more than one structure: 16 to 'liver' and 'kidney' "
            f"({share:.1%} of the smaller)."
        ) in found[0].message
        assert data.flagged("structures-overlap").all()
        (diagnosis,) = result.diagnoses
        assert diagnosis.code == "structures-overlap"

    def test_the_report_sums_them_up(self, built):
        _, data = built
        line = "Overlap   structures share 48 pixels in 3 rows: there masks show the one painted"
        assert line in report(data.path)
        as_json = json.loads(report(data.path, "--json"))
        assert (as_json["n_overlap_rows"], as_json["n_overlap_pixels"]) == (3, 48)

    def test_other_code_counts_the_same(self, table, built):
        _, data = built
        arguments = ["verify", str(data.path), "--source", str(table), "--rebuild-check"]
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 0, result.output

    def test_a_row_that_loses_a_structure_is_counted_without_it(self, table, tmp_path):
        rows = tmp_path / "rows.csv"
        rows.write_text("patient_id,slice,structure\nP1,2,kidney\n")
        chosen = options(exclude_file=str(rows), exclude_structures=True)
        result = etl.build(table, tmp_path / "out.h5", chosen)
        data = loader.open_dataset(tmp_path / "out.h5")
        assert data.manifest["n_overlapping"].tolist() == [16, 0, 16]
        assert data.flagged("structures-overlap").tolist() == [True, False, True]
        assert [one.code for one in result.findings].count("structures-overlap") == 2

    def test_an_excluded_structure_takes_its_overlap_along(self, table, tmp_path):
        """Not so a row list, which takes it out before the row is first written."""
        place = table.parent / "contourfiles/A1/b-contours/IM-0001-0002-bcontour-manual.txt"
        first, *others = place.read_text().splitlines()  # the kidney crosses itself
        place.write_text("\n".join([first, "9.5 8", "3.5 8", *others]))
        chosen = options(exclude_flagged=("contour-self-crossing",), exclude_structures=True)
        result = etl.build(table, tmp_path / "out.h5", chosen)
        data = loader.open_dataset(tmp_path / "out.h5")
        assert [one.code for one in result.findings].count("structure-excluded") == 1
        assert data.manifest["n_overlapping"].tolist() == [16, 0, 16]
        assert data.flagged("structures-overlap").tolist() == [True, False, True]

    def test_without_the_checks_it_is_counted_and_no_finding(self, table, tmp_path):
        result = etl.build(table, tmp_path / "out.h5", options(qc=False))
        data = loader.open_dataset(tmp_path / "out.h5")
        assert data.manifest["n_overlapping"].tolist() == [16] * 3
        assert result.findings == []
