"""Structures that lie in others without anybody having said so: told once, not in each row."""

import json

import numpy as np
import pytest
from builders import gradient, instance, write_contour, write_dicom

import etl
import loader
from etl.errors import EtlError
from etl.options import BuildOptions, structure_choices
from etl.sources.structures import read_choices
from etl.verify.file import verify

SIZE = {"rows": 24, "columns": 28}
# First row, row after the last, first column, column after the last.
LIVER, TUMOUR, ASIDE = (2, 20, 2, 22), (6, 12, 5, 11), (15, 23, 18, 26)


def corners(box, shift):
    top, bottom, left, right = np.array(box) - 0.5
    middle = ((2 * left + right) / 3 + shift, bottom)  # no two alike
    return [(left, top), (right, top), (right, bottom), middle, (left, bottom)]


@pytest.fixture
def table(tmp_path):
    """Return a function that writes three patients with a tumour in the liver on each image."""

    def write(*, patients=3, aside=(), n_alone=0):
        root = tmp_path / "data"
        root.mkdir()
        lines = ["patient_id,image,label,contour"]
        for patient in range(1, patients + 1):
            for number in range(1, 6):
                place = patient, number
                uid = f"1.2.{patient}.{number}"
                image = instance(gradient(*SIZE.values(), seed=10 * patient + number), uid=uid)
                write_dicom(root, f"P{patient}", f"{number}.dcm", image)
                drawn = {"liver": LIVER, "tumour": ASIDE if place in aside else TUMOUR}
                if number <= n_alone:
                    del drawn["tumour"]
                for kind, (name, box) in zip("ab", drawn.items(), strict=False):
                    shift = patient / 10 + number / 100
                    text = "\n".join(f"{x} {y}" for x, y in corners(box, shift))
                    path = write_contour(root, f"A{patient}", number, kind, text).relative_to(root)
                    lines.append(f"P{patient},dicoms/P{patient}/{number}.dcm,{name},{path}")
        (root / "table.csv").write_text("\n".join(lines) + "\n")
        return root / "table.csv"

    return write


def build(table, tmp_path, **options):
    result = etl.build(table, tmp_path / "out.h5", BuildOptions(**SIZE, **options), force=True)
    data = loader.open_dataset(tmp_path / "out.h5")
    codes = ("structures-overlap", "structures-nested", "inner-outside-outer")
    return [one for one in result.findings if one.code in codes], data


@pytest.mark.parametrize("n_alone", [0, 2])
def test_what_lies_in_another_in_all_rows_is_told_once(table, tmp_path, n_alone):
    (one,), data = build(table(n_alone=n_alone), tmp_path)
    assert (one.code, one.severity, one.path) == ("structures-nested", "info", "")
    n = 3 * (5 - n_alone)
    assert one.message.startswith(
        f"'tumour' lies inside of 'liver' on {n} of {n} images that show both, in 3 of 3 patients: "
        "these overlaps are not flagged. "
    )
    assert "with inside_of = 'liver'" in one.message
    assert not data.manifest["flags"].any()
    assert (data.manifest["n_overlapping"] > 0).sum() == n  # which are counted as before


def test_a_partial_overlap_stays_flagged(table, tmp_path):
    found, data = build(table(aside=[(2, 3)]), tmp_path)
    assert [one.code for one in found] == ["structures-overlap", "structures-nested"]
    assert found[0].key[:1] + found[0].key[2:3] == ("P2", 3)
    assert data.flagged("structures-overlap").sum() == 1


@pytest.mark.parametrize(
    "options",
    [
        {"patients": 2},
        {"aside": [(1, 1), (2, 3)]},  # 13 of 15
    ],
)
def test_few_patients_or_rows_are_no_rule(table, tmp_path, options):
    found, _ = build(table(**options), tmp_path)
    assert {one.code for one in found} == {"structures-overlap"}
    assert len(found) == 5 * options.get("patients", 3)


def test_what_is_painted_over_stays_flagged(table, tmp_path):
    """The masks lack it."""
    found, data = build(table(), tmp_path, structures=("tumour", "liver"))
    assert [one.code for one in found] == ["structures-overlap"] * 15
    assert not (data.masks == 1).any()


def test_a_mapping_says_what_lies_in_what(table, tmp_path):
    mapping = tmp_path / "structures.toml"
    mapping.write_text('tumour = { patterns = ["tum*"], inside_of = "liver" }\nliver = "liver"\n')
    chosen = read_choices(mapping)
    path = table(aside=[(2, 3)])
    (one,), data = build(path, tmp_path, structures=chosen)
    assert (one.code, one.key.patient_id, one.key.slice) == ("inner-outside-outer", "P2", 3)
    structures = {one.name: one for one in data.structures}
    assert structures["tumour"].inside_of == "liver"
    assert structures["tumour"].code == 1  # and yet painted over the liver
    assert (data.masks == 1).any(axis=(1, 2)).all()
    assert not data.manifest["n_overlapping"].any()
    recorded = data.attributes["options"]["structures"]
    assert recorded == [["liver", ["liver"], 2], ["tumour", ["tum*"], 1, "liver"]]
    assert verify(data.path, source=path, rebuild=True).problems == []


@pytest.mark.parametrize(
    "mapping",
    [
        {"a": {"inside_of": "b"}},
        {"a": {"inside_of": "a"}},
        {"a": {"inside_of": "b"}, "b": {"inside_of": "a"}},
        {"c": {"inside_of": "a"}, "a": {"inside_of": "b"}, "b": {"inside_of": "a"}},
    ],
)
def test_a_mapping_without_sense_is_refused(tmp_path, mapping):
    with pytest.raises(ValueError, match="expected inside_of to name another structure"):
        structure_choices(mapping)
    path = tmp_path / "structures.json"
    path.write_text(json.dumps(mapping))
    with pytest.raises(EtlError, match="expected inside_of to name another structure"):
        read_choices(path)


def test_a_row_that_is_written_again_is_not_flagged_again(table, tmp_path):
    path = table()
    place = path.parent / "contourfiles/A1/b-contours/IM-0001-0002-bcontour-manual.txt"
    first, *others = place.read_text().splitlines()  # the tumour crosses itself
    place.write_text("\n".join([first, "12.5 9", "4.5 11.2", *others]))
    flags = {"exclude_flagged": ("contour-self-crossing",), "exclude_structures": True}
    found, _ = build(path, tmp_path, **flags)
    assert [one.code for one in found] == ["structures-nested"]
