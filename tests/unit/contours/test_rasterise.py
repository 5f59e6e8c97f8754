import time

import numpy as np
import pytest
from PIL import Image, ImageDraw

import etl.contours.rasterise
from etl.contours.rasterise import label_maps, rasterise
from etl.labels import cardiac_scheme, named_scheme
from etl.model import Region


def square(low, high):
    return np.array([[low, low], [high, low], [high, high], [low, high]], float)


BOTH = cardiac_scheme(("i", "o"))


def region(code, *polygons):
    return Region(code, polygons, "")


def next_label_map(regions, *options):
    return next(label_maps([regions], *options))


def test_pixels_whose_centre_lies_inside():
    assert rasterise(square(1.5, 3.5), 6, 6).nonzero()[0].tolist() == [2, 2, 3, 3]


def test_a_centre_on_an_edge_counts_for_the_left_and_top_side_only():
    mask = rasterise(square(1, 3), 5, 5)
    assert np.argwhere(mask).tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]


def test_x_runs_along_columns_and_y_along_rows():
    vertices = np.array([[0, 0], [4, 0], [4, 2], [0, 2]], float)
    assert np.array_equal(rasterise(vertices, 3, 6).sum(axis=1), [4, 4, 0])


def test_two_polygons_that_share_an_edge_share_no_pixel_and_leave_none_out():
    corners = np.array([[1.0, 1], [8, 1], [8, 9], [1, 9]])
    left = np.array([corners[0], [4.2, 1], [5.9, 9], corners[3]])
    right = np.array([[4.2, 1], corners[1], corners[2], [5.9, 9]])
    whole = rasterise(corners, 12, 12)
    masks = rasterise(left, 12, 12).astype(int) + rasterise(right, 12, 12)
    assert np.array_equal(masks, whole.astype(int))


def test_overlapping_turns_cancel_by_the_even_odd_rule():
    twice = np.vstack([square(1.5, 6.5), square(1.5, 6.5)])
    assert not rasterise(twice, 8, 8).any()


def test_what_lies_outside_is_cut_off():
    assert rasterise(square(-50.5, 50.5), 7, 9).all()
    assert not rasterise(square(20, 30), 7, 9).any()


@pytest.mark.parametrize("radius", [3.0, 10.5, 40.25])
def test_the_area_of_a_circle(radius):
    angle = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    circle = 50.3 + radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    area = rasterise(circle, 100, 101).sum()
    assert abs(area - np.pi * radius**2) <= 2 * np.pi * radius * 0.25 + 1


def test_the_pillow_rule_is_pillows_own():
    rng = np.random.default_rng(5)
    for _ in range(50):
        vertices = rng.uniform(-5, 45, (rng.integers(3, 12), 2))
        image = Image.new("L", (40, 30), 0)
        ImageDraw.Draw(image).polygon(list(map(tuple, vertices)), outline=0, fill=1)
        assert np.array_equal(rasterise(vertices, 30, 40, "pillow"), np.array(image))


@pytest.mark.parametrize("rule", ["center", "pillow"])
def test_many_points_and_far_ones_are_done_in_bounded_time(rule):
    zigzag = np.empty((100_000, 2))
    zigzag[:, 0] = np.linspace(0, 250, len(zigzag))
    zigzag[::2, 1], zigzag[1::2, 1] = -5, 300
    far = np.array([[-65536.0, -65536], [65536, 0], [3, 65536]])
    began = time.process_time()
    rasterise(zigzag, 256, 256, rule)
    rasterise(far, 256, 256, rule)
    assert time.process_time() - began < 60


def test_a_polygon_of_too_many_crossings_is_done_part_by_part(monkeypatch):
    rng = np.random.default_rng(2)
    polygons = [rng.integers(-8, 48, (n, 2)) / 2 for n in (3, 40, 7, 200)]
    whole = [rasterise(vertices, 20, 16) for vertices in polygons]
    monkeypatch.setattr(etl.contours.rasterise, "_BLOCK", 9)
    assert all(
        np.array_equal(rasterise(vertices, 20, 16), mask)
        for vertices, mask in zip(polygons, whole, strict=True)
    )
    samples = [(region(1, vertices),) for vertices in polygons]
    scheme = cardiac_scheme(("i",))
    found = [painted.mask for painted in label_maps(samples, scheme, 20, 16, "center")]
    assert np.array_equal(found, whole)


def test_rounding_carries_no_border_beyond_the_outermost_vertex():
    sharp = [[-250.4639330255056, -248.90191387562038], [17.0, 55.00000000000001]]
    vertices = np.array([*sharp, [-43.53994361898884, 108.38284544185808]])
    assert not rasterise(vertices, 64, 64)[:, 17:].any()
    shifted = [(region(1, vertices + np.array([0, n])),) for n in range(3)]
    for painted in label_maps(shifted, cardiac_scheme(("i",)), 64, 64, "center"):
        assert not painted.mask[:, 17:].any()


def test_one_kind_is_a_binary_mask():
    for kind in ("i", "o"):
        scheme = cardiac_scheme((kind,))
        painted = next_label_map((region(1, square(1, 3)),), scheme, 5, 5, "center")
        assert (painted.mask == rasterise(square(1, 3), 5, 5)).all()
        assert painted.n_inside == {1: painted.mask.sum()}
        assert painted.n_outside == {}


def test_two_kinds_are_pool_1_and_muscle_2_and_the_inner_wins():
    inner, outer = square(2, 4), square(1, 3)
    regions = region(1, inner), region(2, outer)
    painted = next_label_map(regions, BOTH, 6, 6, "center")
    in_inner, in_outer = rasterise(inner, 6, 6), rasterise(outer, 6, 6)
    assert np.array_equal(painted.mask, np.where(in_inner, 1, np.where(in_outer, 2, 0)))
    assert painted.n_inside == {1: in_inner.sum(), 2: in_outer.sum()}
    assert painted.n_outside == {1: (in_inner & ~in_outer).sum()}


def test_a_contour_without_a_pixel_has_none():
    regions = region(1, square(1.2, 1.8)), region(2, square(1, 3))
    assert next_label_map(regions, BOTH, 6, 6, "center").n_inside == {1: 0, 2: 4}


@pytest.mark.parametrize("rule", ["center", "pillow"])
def test_samples_together_are_as_each_alone(rule):
    inside, outside, line = square(1.5, 4.5), square(20, 30), square(2.2, 2.8)
    samples = [
        (region(1, inside), region(2, square(0, 5))),
        (region(2, outside),),
        (),
        (region(1, line), region(2, inside)),
    ]
    options = BOTH, 7, 6, rule
    together = list(label_maps(samples, *options))
    for regions, painted in zip(samples, together, strict=True):
        alone = next_label_map(regions, *options)
        assert np.array_equal(painted.mask, alone.mask)
        assert painted[1:] == alone[1:]


@pytest.mark.parametrize("seed", range(20))
def test_pixels_outside_the_outer_contour_are_counted_as_in_masks(seed):
    rng = np.random.default_rng(seed)
    inner, outer = (rng.uniform(-4, 24, (5, 2)) for _ in range(2))
    painted = next_label_map((region(1, inner), region(2, outer)), BOTH, 20, 18, "center")
    in_inner, in_outer = rasterise(inner, 20, 18), rasterise(outer, 20, 18)
    assert painted.n_outside == {1: (in_inner & ~in_outer).sum()}


def test_polygons_of_one_region_are_even_odd_together():
    ring = region(1, square(0.5, 8.5), square(2.5, 5.5))
    labels = next_label_map((ring,), named_scheme(["a"]), 10, 10, "center").mask
    expected = rasterise(square(0.5, 8.5), 10, 10) & ~rasterise(square(2.5, 5.5), 10, 10)
    assert np.array_equal(labels, expected)


def test_later_structures_of_a_scheme_are_painted_over_earlier_ones():
    regions = [region(code, square(code - 0.5, code + 3.5)) for code in (1, 2, 3)]
    expected = np.zeros((9, 9), np.uint8)
    for one in regions:
        expected[rasterise(one.polygons[0], 9, 9)] = one.code
    for given in (regions, regions[::-1]):
        painted = next_label_map(given, named_scheme("abc"), 9, 9, "center")
        assert np.array_equal(painted.mask, expected)
        assert painted.n_inside == {1: 16, 2: 16, 3: 16}


def test_a_mask_is_painted_as_it_is_beside_polygons():
    mask = np.random.default_rng(0).random((7, 8)) < 0.5
    regions = (Region(1, (), "", mask), region(2, square(1.5, 3.5)))
    painted = next_label_map(regions, named_scheme("ab"), 7, 8, "center")
    assert np.array_equal(painted.mask, np.where(rasterise(square(1.5, 3.5), 7, 8), 2, mask))
    assert painted.n_inside == {1: mask.sum(), 2: 4}
