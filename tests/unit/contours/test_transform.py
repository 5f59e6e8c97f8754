import itertools

import numpy as np
import pytest

from etl.contours.transform import PixelGrid, transform
from etl.errors import ContourError
from etl.options import TRANSFORM_STEPS, BuildOptions

GRID = PixelGrid(rows=10, columns=20, spacing=(1.25, 2.0))  # not square, in pixels nor in mm
POINTS = np.array([[0.0, 0.0], [19.0, 9.0], [4.5, 2.25]])


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ("", [(0, 0), (19, 9), (4.5, 2.25)]),
        ("swap", [(0, 0), (9, 19), (2.25, 4.5)]),
        ("flip-x", [(19, 0), (0, 9), (14.5, 2.25)]),
        ("flip-y", [(0, 9), (19, 0), (4.5, 6.75)]),
        ("rotate-90", [(9, 0), (0, 19), (6.75, 4.5)]),
        ("scale=2", [(0, 0), (38, 18), (9, 4.5)]),
        ("scale=0.5", [(0, 0), (9.5, 4.5), (2.25, 1.125)]),
        ("mm", [(0, 0), (9.5, 7.2), (2.25, 1.8)]),
        ("swap,flip-x", [(19, 0), (10, 19), (16.75, 4.5)]),
        ("flip-x,swap", [(0, 19), (9, 0), (2.25, 14.5)]),
        ("scale=2,flip-y", [(0, 9), (38, -9), (9, 4.5)]),
        ("swap,mm", [(0, 0), (4.5, 15.2), (1.125, 3.6)]),
    ],
)
def test_each_step_does_what_it_says_from_left_to_right(steps, expected):
    found = transform(POINTS, tuple(filter(None, steps.split(","))), GRID)
    assert found.tolist() == [pytest.approx(point) for point in expected]
    assert found.flags.c_contiguous


@pytest.mark.parametrize("step", ["swap", "flip-x", "flip-y"])
def test_an_exchange_twice_is_none(step):
    assert np.array_equal(transform(POINTS, (step, step), GRID), POINTS)


def test_four_quarter_turns_of_a_square_are_none():
    square = GRID._replace(columns=10)
    assert np.array_equal(transform(POINTS, ("rotate-90",) * 4, square), POINTS)
    assert np.array_equal(
        transform(POINTS, ("rotate-90",), square), transform(POINTS, ("swap", "flip-x"), square)
    )


@pytest.mark.parametrize(
    "spacing", [(np.nan, np.nan), (1.0, np.nan), (0.0, 1.0), (-1.0, 1.0), (np.inf, 1.0)]
)
def test_millimetres_need_a_spacing(spacing):
    with pytest.raises(ContourError, match="no usable PixelSpacing") as caught:
        transform(POINTS, ("mm",), GRID._replace(spacing=spacing))
    assert caught.value.code == "contour-no-spacing"
    for step in set(TRANSFORM_STEPS) - {"mm"}:
        transform(POINTS, (step,), GRID._replace(spacing=spacing))


def test_steps_have_one_form_in_the_options():
    options = BuildOptions(contour_transform=["swap", "scale=2.0", "scale=5e-1"])
    assert options.contour_transform == ("swap", "scale=2", "scale=0.5")
    assert options.to_json()["contour_transform"] == ("swap", "scale=2", "scale=0.5")
    for steps in itertools.permutations(TRANSFORM_STEPS, 2):
        assert BuildOptions(contour_transform=steps).contour_transform == steps


@pytest.mark.parametrize("step", ["turn", "", "scale", "swap=1", "SWAP"])
def test_other_steps_are_refused(step):
    with pytest.raises(ValueError, match="expected steps of swap"):
        BuildOptions(contour_transform=(step,))


@pytest.mark.parametrize("factor", ["0", "-2", "nan", "inf", "x", ""])
def test_other_factors_are_refused(factor):
    with pytest.raises(ValueError, match="expected a factor above 0"):
        BuildOptions(contour_transform=(f"scale={factor}",))
