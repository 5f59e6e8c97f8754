import dataclasses
import json
import math
import pickle

import pytest

import loader
from loader import Augment
from loader.augment.settings import PARTS

PRESETS = [Augment(), Augment.cardiac_mr(), Augment.ct(), Augment.none()]
RANGED = [name for name in PARTS if name not in {"flip_rows", "flip_columns", "quarter_turns"}]


@pytest.mark.parametrize("augment", PRESETS)
def test_json_makes_an_equal_one(augment):
    text = augment.to_json()
    assert Augment.from_json(text) == augment
    assert json.loads(text)["version"] == 1
    assert pickle.loads(pickle.dumps(augment)) == augment


def test_numbers_become_plain_floats_so_that_equal_settings_have_one_json():
    import numpy as np

    one = Augment.none(rotate=[1, np.float32(-5), np.int64(5)], flip_rows=1)
    assert one == Augment.none(rotate=(1.0, -5.0, 5.0), flip_rows=1.0)
    assert one.to_json() == Augment.none(rotate=(1.0, -5.0, 5.0), flip_rows=1.0).to_json()


def test_none_has_no_part_but_those_given():
    assert not Augment.none().has(*PARTS)
    assert Augment.none().describe() == "nothing"
    only = Augment.none(rotate=(0.25, -5, 5), flip_rows=0.5, noise=(0.1, 0, 0.2))
    assert [name for name in PARTS if only.has(name)] == ["flip_rows", "rotate", "noise"]
    assert only.describe() == (
        "flip_rows: 50 % of the samples\n"
        "rotate: 25 % of the samples, -5 to 5 degrees, positive anticlockwise\n"
        "noise: 10 % of the samples, 0 to 0.2 standard deviations of the image, as that of the "
        "noise\n"
        "interpolation: linear"
    )


def test_presets_take_other_values_for_single_parts():
    changed = Augment.ct(elastic=None, rotate=(1, -3, 3))
    assert changed == dataclasses.replace(Augment.ct(), elastic=None, rotate=(1, -3, 3))


def test_the_default_and_ct_keep_left_on_the_left():
    for augment in (Augment(), Augment.ct()):
        assert not augment.has("flip_rows", "flip_columns", "quarter_turns")


def test_parts_that_never_happen_may_have_a_range():
    assert not Augment.none(gamma=(0, 0.5, 2)).has("gamma")


@pytest.mark.parametrize("name", RANGED)
def test_the_values_that_change_nothing_are_within_the_limits(name):
    part = PARTS[name]
    assert part.lowest <= part.neutral <= part.highest
    Augment.none(**{name: (1, part.lowest, part.highest)})


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        ({"flip_rows": 1.5}, ValueError, "flip_rows: expected a probability from 0 to 1"),
        ({"flip_rows": -0.1}, ValueError, "flip_rows: expected a probability from 0 to 1"),
        ({"flip_rows": True}, TypeError, "flip_rows: expected finite numbers"),
        ({"flip_rows": None}, TypeError, "flip_rows: expected finite numbers"),
        ({"rotate": (2, -5, 5)}, ValueError, "rotate, the first of the three: expected a prob"),
        ({"rotate": (1, 5, -5)}, ValueError, "rotate: .*lowest <= highest, from -360 to 360"),
        ({"rotate": (1, -5, math.inf)}, TypeError, "rotate: expected finite numbers"),
        ({"rotate": (1, math.nan, 5)}, TypeError, "rotate: expected finite numbers"),
        ({"rotate": (-5, 5)}, TypeError, r"rotate: expected \(probability, lowest, highest\)"),
        ({"rotate": 5}, TypeError, r"rotate: expected \(probability, lowest, highest\) or None"),
        ({"rotate": ("1", 2, 3)}, TypeError, "rotate: expected finite numbers"),
        ({"scale": (1, 0, 1)}, ValueError, "scale: .*from 0.1 to 10"),
        ({"elastic": (1, 0, 0.2)}, ValueError, "elastic: .*from 0 to 0.1"),
        ({"interpolation": "nearest"}, ValueError, "interpolation: expected one of linear, cubic"),
        ({"flip": 0.5}, TypeError, "flip"),
    ],
)
def test_settings_that_can_never_be_right(parts, error, message):
    with pytest.raises(error, match=message):
        Augment.none(**parts)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "1",
        "{}",
        '{"version": 2}',
        '{"version": 1, "turn": 1}',
        '{"version": 1, "scale": 3}',
    ],
)
def test_json_that_is_no_augmentation(text):
    with pytest.raises(loader.LoaderError, match="Augmentation not read: expected the JSON"):
        Augment.from_json(text)


def test_a_part_that_json_lacks_never_happens():
    assert Augment.from_json('{"version": 1, "flip_rows": 0.5}') == Augment.none(flip_rows=0.5)
