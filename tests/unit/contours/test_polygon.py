import math

import numpy as np
import pytest

from etl.contours.polygon import area, perimeter, share_outside

SQUARE = np.array([[0.0, 0], [4, 0], [4, 4], [0, 4]])


def test_area_of_known_shapes():
    assert area(SQUARE) == 16
    assert area(SQUARE[::-1]) == 16
    assert area(SQUARE[:3]) == 8
    assert area(np.vstack([SQUARE, SQUARE[:1]])) == 16  # closed by hand: the same polygon


def test_a_small_polygon_far_from_the_origin_keeps_its_area():
    assert area(SQUARE / 1024 + 60000.5) == 16 / 1024**2


def test_perimeter_of_a_closed_border():
    assert perimeter(SQUARE) == 16
    assert perimeter(np.vstack([SQUARE, SQUARE[:1]])) == 16
    assert perimeter(np.array([[0.0, 0], [3, 4], [0, 0]])) == 10


def test_nothing_outside():
    assert share_outside(SQUARE, 5, 5) == 0
    assert share_outside(SQUARE - 0.5, 5, 5) == 0  # a border pixel reaches half a pixel out


@pytest.mark.parametrize(
    ("shift", "share"),
    [((2.5, 0), 0.5), ((0, 1.5), 0.25), ((-2.5, -2.5), 0.75), ((50, 0), 1), ((4.75, 4.75), 1)],
)
def test_share_of_a_square_in_a_five_by_five_image(shift, share):
    moved = SQUARE + np.array(shift)
    assert share_outside(moved, 5, 5) == pytest.approx(share)
    assert share_outside(moved[::-1], 5, 5) == pytest.approx(share)


def test_share_of_a_polygon_round_the_whole_image():
    around = (SQUARE - 2) * 5 + 2
    assert share_outside(around, 5, 5) == pytest.approx(1 - 25 / 400)


def test_share_of_a_concave_polygon():
    # A U whose open side lies to the right; the image cuts its arms.
    u = np.array([[0.0, 0], [8, 0], [8, 1], [1, 1], [1, 3], [8, 3], [8, 4], [0, 4]])
    inside = 1 * 4 + 2 * 3.5
    assert share_outside(u, 5, 5) == pytest.approx(1 - inside / area(u))


@pytest.mark.parametrize(
    "corners",
    [
        [[-2, 1], [2, 3], [-2, 3], [2, 1]],  # two loops of one size: no area in all
        [[1, 1], [6, 4], [6, 1], [1, 4]],  # the loop inside is as large as the one outside
        [[1, 1], [8, 5], [8, 1], [1, 3]],  # the loop outside is the larger one
        [[-1, 1], [3, 1], [2, 1]],  # no area at all
    ],
)
def test_loops_that_cancel_have_no_share(corners):
    vertices = np.array(corners, float)
    assert math.isnan(share_outside(vertices, 5, 5))
    assert math.isnan(share_outside(vertices[::-1], 5, 5))
