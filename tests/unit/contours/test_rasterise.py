import time

import numpy as np
import pytest
from PIL import Image, ImageDraw

import etl.contours.rasterise
from etl.contours.rasterise import label_maps, rasterise
from etl.model import Contour


def square(low, high):
    return np.array([[low, low], [high, low], [high, high], [low, high]], float)


def next_label_map(contours, *options):
    return next(label_maps([contours], *options))


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
    samples = [(contour("i", vertices),) for vertices in polygons]
    found = [labels for labels, _ in label_maps(samples, ("i",), 20, 16, "center")]
    assert np.array_equal(found, whole)


def test_rounding_carries_no_border_beyond_the_outermost_vertex():
    sharp = [[-250.4639330255056, -248.90191387562038], [17.0, 55.00000000000001]]
    vertices = np.array([*sharp, [-43.53994361898884, 108.38284544185808]])
    assert not rasterise(vertices, 64, 64)[:, 17:].any()
    shifted = [(contour("i", vertices + np.array([0, n])),) for n in range(3)]
    for labels, _ in label_maps(shifted, ("i",), 64, 64, "center"):
        assert not labels[:, 17:].any()


def contour(kind, vertices):
    return Contour(kind, vertices, "")


def test_one_kind_is_a_binary_mask():
    for kind in ("i", "o"):
        labels, n_inside = next_label_map((contour(kind, square(1, 3)),), (kind,), 5, 5, "center")
        assert (labels == rasterise(square(1, 3), 5, 5)).all()
        assert n_inside == {kind: labels.sum()}


def test_two_kinds_are_pool_1_and_muscle_2_and_the_inner_wins():
    inner, outer = square(2, 4), square(1, 3)
    contours = contour("i", inner), contour("o", outer)
    labels, n_inside = next_label_map(contours, ("i", "o"), 6, 6, "center")
    in_inner, in_outer = rasterise(inner, 6, 6), rasterise(outer, 6, 6)
    assert np.array_equal(labels, np.where(in_inner, 1, np.where(in_outer, 2, 0)))
    assert n_inside == {"i": in_inner.sum(), "o": in_outer.sum()}


def test_a_contour_without_a_pixel_has_none():
    contours = contour("i", square(1.2, 1.8)), contour("o", square(1, 3))
    assert next_label_map(contours, ("i", "o"), 6, 6, "center")[1] == {"i": 0, "o": 4}


@pytest.mark.parametrize("rule", ["center", "pillow"])
def test_samples_together_are_as_each_alone(rule):
    inside, outside, line = square(1.5, 4.5), square(20, 30), square(2.2, 2.8)
    samples = [
        (contour("i", inside), contour("o", square(0, 5))),
        (contour("o", outside),),
        (),
        (contour("i", line), contour("o", inside)),
    ]
    options = ("i", "o"), 7, 6, rule
    together = list(label_maps(samples, *options))
    for contours, (labels, n_inside) in zip(samples, together, strict=True):
        alone, n_alone = next_label_map(contours, *options)
        assert np.array_equal(labels, alone)
        assert n_inside == n_alone
