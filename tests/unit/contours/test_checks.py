import time

import numpy as np
import pytest

from etl.contours.checks import (
    MAX_PERIMETER,
    check_contour,
    check_mask,
    check_polygons,
    check_size,
)
from etl.contours.rasterise import rasterise
from etl.errors import ContourError, ImageError
from etl.findings import CODES
from etl.model import PixelFormat

SIZE = 256, 240
SQUARE = np.array([[10.0, 10], [60, 10], [60, 60], [10, 60]])


def rejection(vertices):
    with pytest.raises(ContourError) as caught:
        check_contour(np.array(vertices, float), *SIZE)
    assert CODES[caught.value.code].severity == "error"
    return caught.value


def zigzag(n_vertices, reach):
    vertices = np.empty((n_vertices, 2))
    vertices[:, 0] = np.linspace(0, 200, n_vertices)
    vertices[::2, 1], vertices[1::2, 1] = -reach, reach
    return vertices


def test_a_polygon_inside_the_image_passes_without_a_word():
    assert check_contour(SQUARE, *SIZE) == []


def test_another_size_names_both():
    found = PixelFormat(12, 14, 16, 16, False, False, 1.0, 0.0)
    check_size(found, 12, 14)
    with pytest.raises(ImageError, match=r"is 12x14 .* expected 14x12") as caught:
        check_size(found, 14, 12)
    assert caught.value.code == "image-size"


@pytest.mark.parametrize(("n_points", "n_distinct"), [(0, 0), (2, 2), (3, 2), (9, 1)])
def test_fewer_than_three_distinct_points_are_no_polygon(n_points, n_distinct):
    error = rejection(np.resize(SQUARE[: max(n_distinct, 1)], (n_points, 2)))
    assert error.code == "contour-too-few-points"
    assert f"has {n_distinct} distinct" in error.message


@pytest.mark.parametrize("shift", [300, -300, 1e6])
def test_a_polygon_wholly_outside_is_rejected(shift):
    assert rejection(SQUARE + shift).code == "contour-outside"


def test_the_share_that_is_cut_off_is_told():
    (remark,) = check_contour(SQUARE - [35.5, 0], *SIZE)
    assert remark.code == "contour-partly-outside"
    assert remark.message.startswith("50.0% of its area lies outside the 256x240 image")


def test_a_polygon_whose_loops_cancel_is_still_told_to_lie_outside():
    crossed = np.array([[-40.0, 100], [40, 180], [-40, 180], [40, 100]])
    (remark,) = check_contour(crossed, *SIZE)
    assert remark.code == "contour-partly-outside"
    assert remark.message == "part of it lies outside the 256x240 image and is cut off."


def test_of_several_polygons_the_one_that_is_wrong_is_named():
    assert check_polygons([SQUARE, SQUARE + 80], *SIZE) == []
    (remark,) = check_polygons([SQUARE + 80, SQUARE - [35.5, 0]], *SIZE)
    assert remark.code == "contour-partly-outside"
    assert remark.message.startswith("its polygon 2 of 2: 50.0% of its area lies outside")
    with pytest.raises(ContourError, match="its polygon 2 of 3 lies wholly") as caught:
        check_polygons([SQUARE, SQUARE + 300, SQUARE], *SIZE)
    assert caught.value.code == "contour-outside"
    alone = check_contour(SQUARE - [35.5, 0], *SIZE)
    assert check_polygons([SQUARE - [35.5, 0]], *SIZE) == alone


def test_a_mask_of_another_size_is_rejected_with_both_sizes():
    check_mask(np.zeros(SIZE, bool), *SIZE)
    with pytest.raises(ContourError, match=r"is 12x14 .* expected 256x240") as caught:
        check_mask(np.zeros((12, 14), bool), *SIZE)
    assert caught.value.code == "mask-size"


def test_a_border_of_absurd_length_is_rejected_with_its_length():
    error = rejection(zigzag(1_000_000, 60_000))
    assert error.code == "contour-too-large"
    assert "1.2e+11 pixels long, expected at most 1e+07" in error.message


@pytest.mark.parametrize("rule", ["center", "pillow"])
@pytest.mark.parametrize("reach", [4.9, 200, 60_000])
def test_what_just_passes_is_rasterised_in_bounded_time(rule, reach):
    n_vertices = min(int(0.99 * MAX_PERIMETER / (2 * reach)), 1_000_000)
    vertices = zigzag(n_vertices, reach)
    began = time.process_time()
    assert check_contour(vertices, *SIZE)
    rasterise(vertices, *SIZE, rule)
    assert time.process_time() - began < 30
