import math
import time

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from etl.labels import CARDIAC
from etl.model import Region
from etl.phantom.heart import Cine, contour_outline, contour_vertices
from etl.quality.drawing import (
    GAP_RATIO,
    GRID,
    MIN_GAP,
    MIN_LOOP,
    MIN_REPEATED,
    REPEATED_SHARE,
    Shape,
    check_overlap,
    check_region,
    check_regions,
    check_shared,
)

CIRCLE = contour_vertices(contour_outline(Cine(0, 0, 3, 1), 1, 0, "i"))


def check_contour(vertices):
    return check_region(Region(1, (vertices,), ""))


def codes(vertices):
    return [remark.code for remark in check_contour(vertices)[1]]


@pytest.mark.parametrize(("n_missing", "expected"), [(0, []), (1, []), (2, [])])
def test_a_contour_that_nearly_closes_is_not_open(n_missing, expected):
    assert codes(CIRCLE[: len(CIRCLE) - n_missing]) == expected


@pytest.mark.parametrize("n_missing", [4, 10, 40])
def test_a_missing_piece_is_an_open_gap(n_missing):
    (remark,) = check_contour(CIRCLE[: len(CIRCLE) - n_missing])[1]
    gap = np.hypot(*(CIRCLE[-n_missing - 1] - CIRCLE[0]))
    assert remark.code == "contour-open-gap"
    assert f"{gap:.1f} pixels" in remark.message


def test_few_points_far_apart_are_not_open():
    assert codes(np.array([[0.0, 0], [20, 0], [20, 2], [0, 2]])) == []
    assert codes(np.vstack([CIRCLE, CIRCLE[:1]])) == []  # closed by hand


@pytest.mark.parametrize(("n_twice", "is_found"), [(1, False), (2, False), (6, False), (9, True)])
def test_points_that_repeat(n_twice, is_found):
    twice = np.insert(CIRCLE, 30, CIRCLE[20 : 20 + n_twice][::-1], axis=0)
    assert ("contour-repeated-points" in codes(twice)) == is_found


def test_a_contour_drawn_twice_repeats_its_points_but_not_one_closed_by_hand():
    assert codes(np.vstack([CIRCLE, CIRCLE])) == [
        "contour-repeated-points",
        "contour-self-crossing",
    ]
    assert codes(np.vstack([CIRCLE, CIRCLE[:1]])) == []


def with_loop(side, *, backwards):
    """Return a contour with a triangle of area side²/2 at one point, outside of it."""
    place = int(np.argmax(CIRCLE[:, 0]))
    corners = CIRCLE[place] + np.array([[side, -side / 2], [side, side / 2]])
    loop = np.vstack([corners[::-1] if backwards else corners, CIRCLE[place]])
    return np.insert(CIRCLE, place + 1, loop, axis=0)


@pytest.mark.parametrize(
    ("area_", "is_found"), [(0.3, False), (0.7, False), (1.4, True), (9, True)]
)
def test_a_loop_the_other_way_round_crosses(area_, is_found):
    vertices = with_loop(np.sqrt(2 * area_), backwards=True)
    remarks = [f for f in check_contour(vertices)[1] if f.code == "contour-self-crossing"]
    assert bool(remarks) == is_found
    if is_found:
        measured = float(remarks[0].message.split("have ")[1].split()[0])
        assert measured == pytest.approx(area_, rel=0.2)


def test_a_contour_that_touches_itself_does_not_cross():
    assert codes(with_loop(2.5, backwards=False)) == []
    # Two rooms whose passage is closed, as drawings on a grid of half pixels have it.
    hourglass = [(0, 0), (3, 3), (6, 0), (6, 6), (3, 3), (0, 6)]
    assert codes(np.array(hourglass, np.float64)) == []
    ring = [(0, 0), (9, 0), (9, 9), (0, 9), (0, 4), (3, 4), (3, 6), (6, 6), (6, 3), (3, 3), (0, 4)]
    assert "contour-self-crossing" not in codes(np.array(ring, np.float64))


@pytest.mark.parametrize("turn", range(5))
@pytest.mark.parametrize("step", [1, -1])
def test_a_figure_of_eight_crosses_wherever_it_starts(turn, step):
    eight = np.array([(0, 0), (6, 6), (6, 0), (0, 6)], np.float64)
    (remark,) = check_contour(np.roll(eight, turn, axis=0)[::step])[1]
    assert remark.code == "contour-self-crossing"
    assert "9.0 square pixels" in remark.message  # the half of it


@pytest.mark.parametrize("seed", range(10))
def test_loops_agree_with_the_pixels_of_winding_numbers(seed):
    """An oracle: winding numbers at the centres of a fine grid, one angle at a time."""
    rng = np.random.default_rng(seed)
    vertices = np.round(rng.uniform(0, 12, (9, 2)), 2)
    grid = np.stack(np.meshgrid(*[np.arange(0, 12, 0.1) + 0.05] * 2), axis=-1)
    offset = vertices[:, None, None] - grid
    angle = np.arctan2(offset[..., 1], offset[..., 0])
    step = (np.diff(angle, axis=0, append=angle[:1]) + np.pi) % (2 * np.pi) - np.pi
    winding = np.round(step.sum(axis=0) / (2 * np.pi))
    expected = min(((winding != 0) & (winding != inside)).sum() for inside in (1, -1)) / 100
    found_ = [f for f in check_contour(vertices)[1] if f.code == "contour-self-crossing"]
    assert bool(found_) == (expected >= MIN_LOOP)
    if found_:
        measured = float(found_[0].message.split("have ")[1].split()[0])
        assert measured == pytest.approx(expected, rel=0.15, abs=0.3)


def test_a_huge_contour_takes_no_huge_time():
    zigzag = np.random.default_rng(0).uniform(-60000, 60000, (200_000, 2))
    start = time.process_time()
    assert "contour-self-crossing" in codes(zigzag)
    assert time.process_time() - start < 5


def test_a_shape_has_the_centre_of_mass():
    shape, _ = check_contour(np.array([[1.0, 1], [7, 1], [1, 4]]))
    assert (shape.x, shape.y) == (3, 2)
    flat, _ = check_contour(np.array([[1.0, 1], [3, 3], [5, 5]]))  # no area, no trouble
    assert (flat.x, flat.y) == (3, 3)


# --------------------------------------------------------------------------------------- one row


@pytest.mark.parametrize(
    ("n_inner", "n_outside", "is_found"),
    [(1000, 0, False), (1000, 10, False), (1000, 11, True), (100, 3, False), (100, 4, True)],
)
def test_an_inner_contour_outside_the_outer_one(n_inner, n_outside, is_found):
    remarks = check_overlap(CARDIAC["o"], n_inner, n_outside)
    assert [remark.code for remark in remarks] == ["inner-outside-outer"] * is_found
    assert all(f"{n_outside} of its {n_inner}" in remark.message for remark in remarks)
    assert all("outside the o-contour" in remark.message for remark in remarks)


@pytest.mark.parametrize(
    ("n_smaller", "n_shared", "is_found"),
    [(1000, 50, False), (1000, 51, True), (20, 3, False), (20, 4, True)],
)
def test_structures_over_each_other(n_smaller, n_shared, is_found):
    names = {1: "liver", 2: "kidney", 3: "spine"}
    n_inside = {1: 5000, 2: n_smaller, 3: 5000}
    remarks = check_shared(names, n_inside, n_shared + 2, {(1, 2): n_shared, (1, 3): 2})
    assert [remark.code for remark in remarks] == ["structures-overlap"] * is_found
    for remark in remarks:
        assert remark.message.startswith(
            f"{n_shared + 2} pixels are inside of more than one structure: {n_shared} to 'liver' "
            f"and 'kidney' ({n_shared / n_smaller:.1%} of the smaller). "
        )


def test_of_many_structures_over_each_other_the_worst_pairs_are_named():
    of_two = {(1, code): 10 * code for code in range(2, 8)}
    names, n_inside = (dict.fromkeys(range(1, 8), value) for value in ("x", 100))
    (remark,) = check_shared(names, n_inside, 90, of_two)
    found = [word for word in remark.message.split() if word.startswith("(")]
    assert found == ["(70.0%", "(60.0%", "(50.0%"]
    assert "and 3 more pairs." in remark.message


@pytest.mark.parametrize("point", [0.0, 60000.0])
def test_contours_without_height_stop_nothing(point):
    line = np.array([[0.0, point], [4, point], [9, point]])
    assert codes(line) == []
    assert codes(line[:, ::-1]) == []


# --------------------------------------------------------------------------- several polygons


def test_remarks_name_their_polygon_of_several():
    eight = np.array([(0, 0), (6, 6), (6, 0), (0, 6)], np.float64)
    _, remarks = check_region(Region(1, (CIRCLE, eight + 200), ""))
    (alone,) = check_contour(eight + 200)[1]
    assert [(r.code, r.message) for r in remarks] == [
        (alone.code, f"its polygon 2 of 2: {alone.message}")
    ]


def test_a_shape_of_several_polygons_weighs_them_by_area_and_takes_holes_out():
    def square(low, high):
        return np.array([[low, low], [high, low], [high, high], [low, high]], np.float64)

    apart, _ = check_region(Region(1, (square(0, 2), square(10, 14)), ""))
    assert (apart.x, apart.y) == pytest.approx(((4 * 1 + 16 * 12) / 20,) * 2)
    ring, _ = check_region(Region(1, (square(0, 10), square(1, 3)), ""))
    assert (ring.x, ring.y) == pytest.approx(((100 * 5 - 4 * 2) / 96,) * 2)


def test_the_order_of_the_polygons_does_not_matter_but_each_of_them_does():
    one, two = CIRCLE, CIRCLE + 100
    digest = check_region(Region(1, (one, two), ""))[0].digest
    assert check_region(Region(1, (two, one[::-1]), ""))[0].digest == digest
    assert check_region(Region(1, (one, two + 1), ""))[0].digest != digest
    assert check_region(Region(1, (one,), ""))[0].digest != digest


def test_a_mask_has_a_centre_and_no_remarks():
    mask = np.zeros((9, 12), bool)
    mask[2:5, 4:10] = True
    shape, remarks = check_region(Region(1, (), "", mask))
    assert (shape.x, shape.y, remarks) == (6.5, 3.0, [])
    moved, _ = check_region(Region(1, (), "", np.roll(mask, 1)))
    assert moved.digest != shape.digest
    empty, _ = check_region(Region(1, (), "", mask & False))
    assert np.isnan([empty.x, empty.y]).all()


# ------------------------------------------------------------------------------- several together


def plain_check(vertices):
    """Return the shape of one polygon and the codes that need no scan lines, step by step."""
    points = [(float(round(x * GRID)), float(round(y * GRID))) for x, y in vertices.tolist()]
    distinct = sorted({x * (1 << 24) + y for x, y in points})
    digest = xxhash.xxh3_64_intdigest(np.array(distinct).tobytes())
    middle = [float(np.rint(sum(axis) / len(points))) for axis in zip(*points, strict=True)]
    at = [(x - middle[0], y - middle[1]) for x, y in points]
    edges = list(zip(at, at[1:] + at[:1], strict=True))
    cross = [ax * by - bx * ay for (ax, ay), (bx, by) in edges]
    off = [0.0, 0.0]
    if total := sum(cross):
        weighed = list(zip(cross, edges, strict=True))
        off = [sum(c * (a[k] + b[k]) for c, (a, b) in weighed) / (3 * total) for k in (0, 1)]
    steps = [math.sqrt((bx - ax) ** 2 + (by - ay) ** 2) / GRID for (ax, ay), (bx, by) in edges]
    found = []
    if steps[-1] >= MIN_GAP and steps[-1] >= GAP_RATIO * max(steps[:-1]):
        found.append("contour-open-gap")
    n_repeated = len(points) - len(distinct) - (steps[-1] == 0)
    if n_repeated >= MIN_REPEATED and n_repeated > REPEATED_SHARE * len(points):
        found.append("contour-repeated-points")
    x, y = ((one + step) / GRID for one, step in zip(middle, off, strict=True))
    return Shape(digest, x, y), found


coordinates = st.integers(-400, 4000).map(lambda hundredths: hundredths / 100)
polygons = st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=60).map(np.array)


@given(st.lists(polygons, max_size=6))
def test_polygons_checked_together_are_checked_as_one_by_one_in_plain_steps(found):
    together = check_regions([Region(1, (vertices,), "") for vertices in found])
    assert together == [check_region(Region(1, (vertices,), "")) for vertices in found]
    for (shape, remarks), vertices in zip(together, found, strict=True):
        expected, codes_expected = plain_check(vertices)
        assert shape == expected
        assert [r.code for r in remarks if r.code != "contour-self-crossing"] == codes_expected


def test_regions_of_all_kinds_come_back_in_their_order():
    mask = np.zeros((8, 8), np.bool_)
    mask[2:4, 3:5] = True
    regions = [
        Region(1, (CIRCLE,), ""),
        Region(2, (), "", mask),
        Region(3, (CIRCLE, CIRCLE + 200), ""),
        Region(4, (CIRCLE[:-40],), ""),
    ]
    together = check_regions(regions)
    assert together == [check_region(region) for region in regions]
    assert [len(remarks) for _, remarks in together] == [0, 0, 0, 1]
    assert check_regions([]) == []
