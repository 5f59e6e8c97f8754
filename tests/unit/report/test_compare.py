import json
import shutil

import numpy as np
import pytest
from builders import COLUMNS, ROWS, write_contour, write_dicom, write_tree
from click.testing import CliRunner

import etl
from etl.cli import cli
from etl.report.compare import compare, comparison_text
from loader import open_dataset

OPTIONS = {
    "rows": ROWS,
    "columns": COLUMNS,
    "audit": False,
    "contours": ("i", "o"),
    "partial": True,
}
THREE = tuple((f"P{n}", f"A{n}") for n in (1, 2, 3))


@pytest.fixture
def old(tmp_path):
    root = write_tree(tmp_path / "data", THREE, slices=(1, 2))
    write_contour(root, "A3", 2, text="broken")
    etl.build(root, tmp_path / "old.h5", etl.BuildOptions(split=(70, 30, 0), **OPTIONS))
    return root, open_dataset(tmp_path / "old.h5")


def rebuilt(root, tmp_path, **options):
    etl.build(root, tmp_path / "new.h5", etl.BuildOptions(**{**OPTIONS, **options}))
    return open_dataset(tmp_path / "new.h5")


def test_a_file_equals_itself(old):
    _, data = old
    found = compare(data, data)
    assert found.is_equal
    assert list(comparison_text(found))[-1] == "  Nothing differs."


def test_what_was_added_went_and_changed_is_told(old, tmp_path):
    root, before = old
    write_contour(root, "A1", 1, text="2 2\n9 2\n9 7\n2 7\n")  # five of seven rows of pixels left
    write_contour(root, "A2", 1, text="broken")
    write_contour(root, "A3", 2)
    write_dicom(root, "P3", "2.dcm")
    found = compare(before, rebuilt(root, tmp_path, split=(70, 30, 0)))
    keys = [(key.patient_id, key.slice) for key in found.rows_added]
    assert keys == [("P3", 2)]
    assert [(key.patient_id, key.slice) for key in found.rows_gone] == [("P2", 1)]
    (changed,) = found.rows_changed
    assert (changed.key.patient_id, changed.key.slice, changed.image_changed) == ("P1", 1, False)
    assert changed.dice["i-contour"] == 2 * 35 / (49 + 35)
    assert changed.dice["o-contour"] == 2 * 41 / (41 + 55)
    assert found.n_rows_equal == 3
    assert found.findings_solved == {"contour-unreadable": 1}
    assert found.findings_new["contour-unreadable"] == 1
    assert found.attributes == {}


def test_an_image_that_changed_is_told(old, tmp_path):
    root, before = old
    write_dicom(root, "P1", "1.dcm")
    (changed,) = compare(before, rebuilt(root, tmp_path, split=(70, 30, 0))).rows_changed
    assert (changed.image_changed, changed.dice) == (True, {})


def test_a_type_that_differs_is_no_change_of_rows(old, tmp_path):
    """One image with values beyond int16 gives all images int32, and no pixel another value."""
    root, before = old
    shutil.copytree(root, tmp_path / "more")
    write_tree(tmp_path / "more", (("P4", "A4"),), slices=(1,), RescaleIntercept=-50_000)
    (tmp_path / "more/link.csv").write_text(
        "".join(["patient_id,original_id\n", *(f"P{n},A{n}\n" for n in (1, 2, 3, 4))])
    )
    after = rebuilt(tmp_path / "more", tmp_path, split=(70, 30, 0))
    assert (before.images.dtype, after.images.dtype) == (np.int16, np.int32)
    found = compare(before, after)
    assert [key.patient_id for key in found.rows_added] == ["P4"]
    assert (found.rows_changed, found.n_rows_equal) == ([], len(before))
    assert found.attributes["image_dtype"] == ("int16", "int32")


def test_a_structure_that_a_file_lacks_has_no_pixel_in_common(old, tmp_path):
    root, before = old
    after = rebuilt(root, tmp_path, contours=("i",), partial=False)
    for found in (compare(before, after), compare(after, before)):
        assert [one.dice for one in found.rows_changed] == [{"o-contour": 0.0}] * 5
        assert "slice 1: o-contour (Dice 0.000)" in "\n".join(comparison_text(found))


def test_pixels_that_are_ignored_now_are_told(tmp_path):
    root = write_tree(tmp_path / "data", slices=(1, 2), outer=False)
    write_contour(root, "A1", 1, "o")
    etl.build(root, tmp_path / "old.h5", etl.BuildOptions(**OPTIONS))
    before = open_dataset(tmp_path / "old.h5")
    found = compare(before, rebuilt(root, tmp_path, not_drawn="ignore"))
    (changed,) = found.rows_changed
    assert (changed.key.slice, changed.dice, changed.ignored_changed) == (2, {}, True)
    assert "slice 2: ignored pixels" in "\n".join(comparison_text(found))
    assert found.to_json()["rows_changed"][0]["ignored_changed"] is True


def test_options_and_patients_on_other_sides_are_told(old, tmp_path):
    root, before = old
    now = rebuilt(root, tmp_path, split=(0, 0, 100), rasterizer="pillow")
    found = compare(before, now)
    assert found.attributes["option rasterizer"] == ("center", "pillow")
    sides = dict(zip(before.manifest["patient_id"], before.manifest["split"], strict=True))
    names = np.array(["train", "validation", "test"])
    assert [(m.patient_id, m.what, m.before, m.now) for m in found.moves] == [
        (patient, "split", names[side], "test") for patient, side in sides.items()
    ]
    text = "\n".join(comparison_text(found))
    assert "Differs   option rasterizer: 'center', now 'pillow'" in text
    assert "moved:    P1: split" in text


def test_the_command_compares_as_text_and_json(old, tmp_path):
    root, before = old
    now = rebuilt(root, tmp_path, split=(70, 30, 0), contour_origin=1)
    arguments = ["report", str(now.path), "--compare", str(before.path)]
    run = CliRunner().invoke(cli, arguments)
    assert run.exit_code == 0
    assert run.stdout.startswith(f"{now.path}, compared with {before.path}\n")
    run = CliRunner().invoke(cli, [*arguments, "--json"])
    plain = json.loads(run.stdout)
    assert plain["attributes"]["option contour_origin"] == {"old": 0, "new": 1}
    assert len(plain["rows_changed"]) == 5
