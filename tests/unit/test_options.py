import json

import numpy as np
import pytest

import etl
from etl.options import BuildOptions


def test_contours_are_put_in_order():
    assert BuildOptions(contours=("o", "i")) == BuildOptions(contours=("i", "o"))
    assert BuildOptions(contours=["o", "i", "o"]).contours == ("i", "o")


def test_options_have_one_form_whatever_they_were_given_as():
    expected = BuildOptions(
        split=(70.0, 15.0, 15.0), exclude_flagged=("area-jump", "image-constant")
    )
    found = BuildOptions(split=[70, 15, 15], exclude_flagged={"image-constant", "area-jump"})
    assert json.dumps(found.to_json()) == json.dumps(expected.to_json())
    assert BuildOptions(contours=(kind for kind in "oi")).contours == ("i", "o")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"contours": "i,o"}, TypeError, "contours: expected a tuple"),
        ({"contours": ()}, ValueError, "contours: expected some of"),
        ({"contours": ("x",)}, ValueError, "contours: expected some of"),
        ({"exclude_flagged": "area-jump"}, TypeError, "exclude_flagged: expected a tuple"),
        ({"exclude_flagged": ("image-size",)}, ValueError, "exclude_flagged: no row is flagged"),
        ({"exclude_flagged": ("image-size:P1",)}, ValueError, "no row is flagged image-size"),
        ({"exclude_flagged": ("area-jump:",)}, ValueError, "expected a patient after 'area-jump:'"),
        ({"exclude_structures": 1}, TypeError, "exclude_structures: expected True or False"),
        (
            {"exclude_structures": True, "contours": ("i", "o")},
            ValueError, "exclude_structures: expected partial=True",
        ),
        ({"rasterizer": "foo"}, ValueError, "rasterizer: expected 'center' or 'pillow'"),
        ({"same_person": "no"}, ValueError, "same_person: expected 'keep' or 'separate'"),
        ({"contour_origin": 7}, ValueError, "contour_origin: expected 0 to 1, found 7"),
        ({"contour_origin": np.int64(1)}, TypeError, "contour_origin: expected a whole number"),
        ({"contour_origin": True}, TypeError, "contour_origin: expected a whole number"),
        ({"qc": "no"}, TypeError, "qc: expected True or False"),
        ({"rows": 0}, ValueError, "rows: expected 1 to 65535, found 0"),
        ({"columns": 2.5}, TypeError, "columns: expected a whole number"),
        ({"folds": 1}, ValueError, "folds: expected 2 to 9999"),
        ({"split_seed": -1}, ValueError, "split_seed: expected 0 or more"),
        ({"audit_contours": 0}, ValueError, "audit_contours: expected 1 or more"),
        ({"split": (70, 70, 70)}, ValueError, "split: expected three shares"),
        ({"split": "70/15/15"}, ValueError, "split: expected three shares"),
        ({"split": (70, 15, 15), "split_file": "s.csv"}, ValueError, "found both"),
        ({"layout": 7}, TypeError, "layout: expected a string"),
        ({"structures": "liver"}, TypeError, "structures: expected a tuple"),
        ({"structures": ()}, ValueError, "structures: expected names, each once"),
        ({"structures": ("a", "")}, ValueError, "structures: expected names, each once"),
        ({"structures": ("a", "b", "a")}, ValueError, "structures: expected names, each once"),
        ({"limits": 7}, TypeError, "limits: expected names with numbers"),
        ({"limits": {"polygon": 7}}, ValueError, "limits: expected some of image-bytes"),
        ({"limits": {"polygons": 0}}, ValueError, "limits: polygons: expected 1 to"),
        ({"limits": {"polygons": 7.0}}, TypeError, "limits: polygons: expected a whole number"),
    ],
)  # fmt: skip
def test_options_that_no_build_can_have_are_refused(options, error, words):
    with pytest.raises(error, match=words):
        BuildOptions(**options)


def test_codes_to_exclude_may_name_a_patient_by_either_id():
    options = BuildOptions(exclude_flagged=("image-constant:a:b", "area-jump", "image-constant:P1"))
    assert options.exclude_flagged == ("area-jump", "image-constant:P1", "image-constant:a:b")
    assert options.excludes("area-jump", "any")
    assert options.excludes("image-constant", "P1", "A1")
    assert options.excludes("image-constant", "x", "a:b")
    assert not options.excludes("image-constant", "P2", "A2")
    assert not options.excludes("centroid-jump", "P1")


def test_no_path_is_recorded():
    options = BuildOptions(split_file="/home/me/split.csv", exclude_file="/home/me/rows.csv")
    assert "/home/me" not in json.dumps(options.to_json())


@pytest.mark.parametrize(
    ("arguments", "error"),
    [({"options": {"rows": 256}}, TypeError), ({"workers": 0}, ValueError)],
)
def test_a_build_with_wrong_arguments_looks_at_nothing(tmp_path, arguments, error):
    with pytest.raises(error):
        etl.build(tmp_path / "missing", tmp_path / "out.h5", **arguments)


def test_limits_have_one_form_and_defaults_are_none():
    limits = {"polygons": 7, "contour-points": 8, "items": 500_000}
    found = BuildOptions(limits=limits)
    assert found.limits == (("contour-points", 8), ("polygons", 7))
    assert found == BuildOptions(limits=found.limits)
    assert found.to_json()["limits"] == {"contour-points": 8, "polygons": 7}
    assert "limits" not in BuildOptions().to_json()
