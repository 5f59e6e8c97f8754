"""Regions of several polygons and of masks: even-odd together, as one structure."""

import itertools

import numpy as np
import pytest
from builders import COLUMNS, ROWS, write_contour, write_tree
from hypothesis import given
from hypothesis import strategies as st

import etl
from etl.contours.polygon import area, nested_areas
from etl.contours.rasterise import bit_masks, label_maps, rasterise
from etl.contours.text import parse_contour
from etl.errors import ContourError, most
from etl.labels import LabelScheme, named_scheme
from etl.model import Region
from etl.quality.drawing import check_region
from etl.verify.reference import polygons_of
from loader import open_dataset
from loader.format import Structure

LEFT = "1 1\n4 1\n4 9\n1 9\n"
RIGHT = "8 2\n12 2\n12 6\n8 6\n"
HOLE = "2 3\n3 3\n3 6\n2 6\n"


def square(left, top, side):
    return np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]]) * side + [left, top]


# ----------------------------------------------------------------------------- one file, parts


@pytest.mark.parametrize(
    "text",
    [
        f"{LEFT}\n{RIGHT}",
        f"\n\n{LEFT}\n \t\n\n{RIGHT}\n\n",
        f"{LEFT}\n{RIGHT}".replace("\n", "\r\n"),
        f"{LEFT}\n{RIGHT}".replace("\n", "\r"),
        f"{LEFT}\n{RIGHT}".rstrip(),
    ],
)
def test_a_blank_line_separates_polygons(text):
    left, right = parse_contour(text.encode())
    assert left.tolist() == [[1, 1], [4, 1], [4, 9], [1, 9]]
    assert right.tolist() == [[8, 2], [12, 2], [12, 6], [8, 6]]


@pytest.mark.parametrize(
    "text",
    [
        LEFT.replace("\n", "\n\n"),
        LEFT.replace("\n", "\r\n\r\n"),
        "1 1\n\n4 1\n4 9\n1 9\n",
        "1 1\n4 1\n\n4 9\n1 9\n",
        f"\n\n{LEFT}\n\n",
    ],
)
def test_blank_lines_between_fewer_than_three_points_separate_nothing(text):
    (vertices,) = parse_contour(text.encode())
    assert vertices.tolist() == [[1, 1], [4, 1], [4, 9], [1, 9]]


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        (f"{LEFT}\n{RIGHT}\n5 5\n", [4, 5]),
        (f"5 5\n\n{LEFT}\n{RIGHT}", [5, 4]),
        (f"{LEFT}\n5 5\n6 6\n\n{RIGHT}", [6, 4]),
        ("5 5\n\n6 6\n\n7 5\n\n" + LEFT, [3, 4]),
    ],
)
def test_a_stray_point_joins_one_polygon_and_leaves_the_others_apart(text, lengths):
    """One stray point in a file of two regions must not make one polygon of both."""
    assert [len(vertices) for vertices in parse_contour(text.encode())] == lengths
    assert [len(vertices) for vertices in polygons_of(text, 0)] == lengths


def test_a_bad_line_is_named_by_its_number_in_the_file():
    with pytest.raises(ContourError) as caught:
        parse_contour(f"{LEFT}\n\n1 1\n2 x\n".encode())
    assert caught.value.message.startswith('line 8: expected two numbers, found "2 x"')


def test_too_many_polygons_are_refused():
    text = b"1 1\n2 1\n2 2\n\n"
    assert len(parse_contour(text * most("polygons"))) == most("polygons")
    with pytest.raises(ContourError) as caught:
        parse_contour(text * (most("polygons") + 1))
    assert caught.value.code == "contour-too-large"


# -------------------------------------------------------------------------- areas and label maps


def test_a_polygon_in_an_odd_number_of_others_is_a_hole():
    nest = [square(4, 4, 2), square(0, 0, 20), square(2, 2, 8), square(30, 0, 3), square(3, 3, 4)]
    assert nested_areas(nest) == [-4.0, 400.0, -64.0, 9.0, 16.0]
    assert nested_areas([square(0, 0, 3)]) == [9.0]


def masks_of(regions, scheme, rows=20, columns=24, rule="center"):
    (painted,) = label_maps([regions], scheme, rows, columns, rule)
    return painted


@pytest.mark.parametrize("rule", ["center", "pillow"])
def test_two_apart_add_up_and_one_inside_is_a_hole(rule):
    outer, inner, apart = square(1.5, 1.5, 9), square(3.5, 3.5, 3), square(14.5, 2.5, 4)
    region = Region(1, (outer, inner, apart), "")
    painted = masks_of([region], named_scheme(["x"]), rule=rule)
    whole, hole, more = (rasterise(part, 20, 24, rule) for part in region.polygons)
    assert np.array_equal(painted.mask.astype(bool), (whole & ~hole) | more)
    assert painted.n_inside == {1: int(painted.mask.sum())}


points = st.tuples(st.integers(-8, 56), st.integers(-8, 48)).map(lambda p: (p[0] / 2, p[1] / 2))
polygons = st.lists(points, min_size=3, max_size=9).map(lambda p: np.array(p, float))
regions = st.one_of(
    st.lists(polygons, min_size=1, max_size=3).map(lambda p: (tuple(p), None)),
    st.integers(0, 2**32 - 1).map(
        lambda seed: ((), np.random.default_rng(seed).random((20, 24)) < 0.3)
    ),
)


@given(st.dictionaries(st.integers(1, 5), regions, min_size=1), st.permutations(range(1, 6)))
def test_label_maps_are_what_painting_by_hand_gives(drawn, order):
    """Even-odd by exclusive or, structures over each other in the paint order; slow and obvious."""
    inside = {2: "1", 4: "2", 5: "2"}  # so that 4 and 5 lie in 1 too
    scheme = LabelScheme(
        tuple(Structure(str(c), c, "", f"s{c}", inside_of=inside.get(c, "")) for c in order)
    )
    masks, expected = {}, np.zeros((20, 24), np.uint8)
    for code, (parts, mask) in drawn.items():
        masks[code] = np.zeros((20, 24), bool) if mask is None else mask.copy()
        for vertices in parts:
            masks[code] ^= rasterise(vertices, 20, 24)
    for code in order:
        if code in masks:
            expected[masks[code]] = code
    found = masks_of([Region(c, parts, "", mask) for c, (parts, mask) in drawn.items()], scheme)
    assert np.array_equal(found.mask, expected)
    assert found.n_inside == {code: int(mask.sum()) for code, mask in masks.items()}
    assert found.n_outside == {
        inner: int((masks[inner] & ~masks[int(outer)]).sum())
        for inner, outer in inside.items()
        if inner in masks and int(outer) in masks
    }
    shared = {
        (a, b): int((masks[a] & masks[b]).sum())
        for a, b in itertools.combinations([code for code in order if code in masks], 2)
        if {a, b} not in ({1, 2}, {2, 4}, {1, 4}, {2, 5}, {1, 5}) and (masks[a] & masks[b]).any()
    }
    assert found.shared.of_two == shared
    both = [masks[a] & masks[b] for a, b in shared]
    assert found.shared.n_pixels == int(np.any(both, axis=0).sum())


@given(
    st.dictionaries(st.integers(1, 12), regions, min_size=1),
    st.permutations(range(1, 13)),
    st.sampled_from(["center", "pillow"]),
)
def test_labels_painted_from_bits_in_paint_order_are_the_label_map(drawn, order, rule):
    scheme = LabelScheme(tuple(Structure(str(c), c, "", f"s{c}") for c in order))
    given_regions = [Region(c, parts, "", mask) for c, (parts, mask) in drawn.items()]
    labels = masks_of(given_regions, scheme, rule=rule)
    (bits,) = bit_masks([given_regions], scheme, 20, 24, rule, scheme.mask_dtype("bits"))
    assert bits.mask.dtype == np.uint16
    painted = np.zeros((20, 24), np.uint8)
    for structure in scheme.structures:
        in_bits = structure._replace(bit=scheme.bits[structure.code])
        painted[in_bits.covers(bits.mask)] = structure.code
    assert np.array_equal(painted, labels.mask)
    assert bits[1:] == labels[1:]


# ---------------------------------------------------------------------------------- the checks


def test_the_shape_of_a_region_with_a_hole_is_that_of_its_pixels():
    """The centre of mass of a square with a hole off its centre, by hand."""
    region = Region(1, (square(0, 0, 10), square(6, 6, 2)), "")
    shape, remarks = check_region(region)
    assert remarks == []
    centre = (100 * 5 - 4 * 7) / 96
    assert (shape.x, shape.y) == pytest.approx((centre, centre))
    other_way = Region(1, (square(6, 6, 2)[::-1], np.roll(square(0, 0, 10), 2, axis=0)), "")
    assert check_region(other_way)[0].digest == shape.digest


def test_what_is_wrong_with_a_part_is_said_of_that_part():
    crossing = np.array([[0.0, 0], [8, 8], [8, 0], [0, 8]])
    _, remarks = check_region(Region(1, (square(20, 20, 5), crossing), ""))
    assert [remark.code for remark in remarks] == ["contour-self-crossing"]
    assert remarks[0].message.startswith("its polygon 2 of 2: crosses itself")


@pytest.mark.parametrize(
    ("second", "code", "words"),
    [
        (square(6, 6, 10), "contour-self-crossing", "polygons 1 and 2 of 2 cross each other: 16"),
        (square(0, 0, 10), "contour-repeated-points", "polygons 1 and 2 of 2 have the same points"),
        (square(0, 0, 10)[::-1], "contour-repeated-points", "have the same points"),
        (square(2, 2, 6), "", ""),  # a hole
        (square(2, 2, 8.1), "", ""),  # a hole whose border is not quite in
        (square(10, 0, 10), "", ""),  # shares an edge
        (square(9.8, 0, 10), "", ""),  # by a hand that trembles
        (square(30, 0, 10), "", ""),
        (square(-90000, -90000, 90006), "contour-self-crossing", "cross each other: 36"),
    ],
    ids=[
        "crosses",
        "twice",
        "backwards",
        "hole",
        "at the border",
        "edge",
        "sliver",
        "apart",
        "huge",
    ],
)
def test_two_polygons_that_cut_each_other_out_are_told(second, code, words):
    region = Region(1, (square(0, 0, 10), second), "")
    _, remarks = check_region(region)
    assert [remark.code for remark in remarks] == [code] * bool(code)
    assert all(words in remark.message for remark in remarks)
    _, other_way = check_region(Region(1, region.polygons[::-1], ""))
    assert [remark.code for remark in other_way] == [code] * bool(code)


def test_a_mask_has_a_digest_and_a_centre():
    mask = np.zeros((6, 7), bool)
    mask[2:4, 5] = True
    shape, remarks = check_region(Region(1, (), "", mask))
    assert (shape.x, shape.y, remarks) == (5.0, 2.5, [])
    assert check_region(Region(1, (), "", ~mask))[0].digest != shape.digest


# -------------------------------------------------------------------------------- a whole build


def test_a_contour_file_of_two_regions_and_a_hole_is_built_as_drawn(tmp_path):
    root = write_tree(tmp_path / "data", slices=(1, 2), outer=False)
    write_contour(root, "A1", 1, text=f"{LEFT}\n{RIGHT}\n{HOLE}")
    result = etl.build(
        root, tmp_path / "out.h5", etl.BuildOptions(rows=ROWS, columns=COLUMNS, audit=False)
    )
    assert result.findings == []
    data = open_dataset(tmp_path / "out.h5")
    expected = np.zeros((ROWS, COLUMNS), int)
    expected[1:9, 1:4] = expected[2:6, 8:12] = 1
    expected[3:6, 2:3] = 0
    assert data.masks[0].tolist() == expected.tolist()
    assert data.manifest["icontour_area"][0] == 24 + 16 - 3
    assert data.manifest["n_pixels_1"][0] == expected.sum()
    assert [(label, area(vertices)) for label, vertices in data.polygons(0)] == [
        (1, 24.0),
        (1, 16.0),
        (1, 3.0),
    ]


def test_a_part_outside_of_the_image_is_named(tmp_path):
    root = write_tree(tmp_path / "data", slices=(1, 2), outer=False)
    write_contour(root, "A1", 1, text=f"{LEFT}\n90 90\n95 90\n95 95\n")
    options = etl.BuildOptions(rows=ROWS, columns=COLUMNS, audit=False)
    (finding,) = etl.build(root, tmp_path / "out.h5", options).findings
    assert finding.code == "contour-outside"
    assert finding.message.startswith("its polygon 2 of 2 lies wholly outside")
