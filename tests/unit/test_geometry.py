import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.geometry import ImagePlane, Planes, heights, offsets_in_plane

AXIAL = ImagePlane((-10.0, 20.0, 5.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (2.0, 0.5))
SAGITTAL = ImagePlane((7.0, -3.0, 40.0), (0.0, 1.0, 0.0), (0.0, 0.0, -1.0), (1.5, 0.75))
# Turned by 30 degrees about the patient's z axis: rows run to the left and back, columns down.
TURNED = ImagePlane((0.0, 0.0, 0.0), (math.sqrt(3) / 2, 0.5, 0.0), (0.0, 0.0, -1.0), (1.0, 4.0))


@pytest.mark.parametrize(
    ("plane", "point", "pixel", "distance"),
    [
        (AXIAL, (-10, 20, 5), (0, 0), 0),
        (AXIAL, (-9, 20, 5), (2, 0), 0),  # 1 mm along a row: columns are 0.5 mm apart
        (AXIAL, (-10, 21, 5), (0, 0.5), 0),  # 1 mm along a column: rows are 2 mm apart
        (AXIAL, (-9.75, 26, 7), (0.5, 3), 2),
        (SAGITTAL, (7, -1.5, 37), (2, 2), 0),
        (SAGITTAL, (4, -3, 40), (0, 0), 3),  # its normal is -x
        (TURNED, (2 * math.sqrt(3), 2, -3), (1, 3), 0),
        (TURNED, (-0.5, math.sqrt(3) / 2, 0), (0, 0), 1),
    ],
)
def test_points_lie_where_geometry_says(plane, point, pixel, distance):
    points = np.array([point], float)
    assert plane.to_pixels(points) == pytest.approx(np.array([pixel]), abs=1e-12)
    assert plane.distances(points) == pytest.approx([distance], abs=1e-12)


def test_the_normal_is_row_times_column_and_the_height_lies_along_it():
    assert AXIAL.normal.tolist() == [0, 0, 1]
    assert AXIAL.height == 5
    assert SAGITTAL.normal.tolist() == [-1, 0, 0]
    assert SAGITTAL.height == -7
    assert TURNED.normal == pytest.approx([-0.5, math.sqrt(3) / 2, 0])


angles = st.floats(-math.pi, math.pi)
millimetres = st.floats(-500, 500)


@st.composite
def planes(draw):
    """Return a plane of any orientation, by its Euler angles."""
    a, b, c = draw(angles), draw(angles), draw(angles)
    about_z = [[math.cos(a), -math.sin(a), 0], [math.sin(a), math.cos(a), 0], [0, 0, 1]]
    about_x = [[1, 0, 0], [0, math.cos(b), -math.sin(b)], [0, math.sin(b), math.cos(b)]]
    again = [[math.cos(c), -math.sin(c), 0], [math.sin(c), math.cos(c), 0], [0, 0, 1]]
    turn = np.array(about_z) @ about_x @ again
    position = tuple(draw(millimetres) for _ in range(3))
    spacing = tuple(draw(st.floats(0.1, 10)) for _ in range(2))
    return ImagePlane(position, tuple(turn[:, 0]), tuple(turn[:, 1]), spacing)


@given(planes(), millimetres, millimetres, millimetres)
def test_mapping_there_and_back_is_identity_on_any_plane(plane, x, y, distance):
    assert plane.is_known
    pixels = np.array([[x, y]])
    points = plane.to_patient(pixels) + distance * plane.normal
    assert plane.to_pixels(points) == pytest.approx(pixels, abs=1e-7)
    assert plane.distances(points) == pytest.approx([distance], abs=1e-7)


def test_cosines_rounded_in_a_header_map_back_exactly():
    rounded = TURNED._replace(row=(0.87, 0.5, 0.0), column=(0.003, 0.0, -1.0))
    assert rounded.is_known
    pixels = np.array([[250.0, 255.0]])
    assert rounded.to_pixels(rounded.to_patient(pixels)) == pytest.approx(pixels, abs=1e-9)


@pytest.mark.parametrize(
    "unknown",
    [
        AXIAL._replace(position=(math.nan,) * 3),
        AXIAL._replace(row=(math.nan,) * 3),
        AXIAL._replace(spacing=(math.nan, 1.0)),
        AXIAL._replace(spacing=(0.0, 1.0)),
        AXIAL._replace(spacing=(-1.0, 1.0)),
        AXIAL._replace(position=(math.inf, 0.0, 0.0)),
        AXIAL._replace(row=(0.0, 0.0, 0.0)),
        AXIAL._replace(row=AXIAL.column),
        AXIAL._replace(row=(0.9, 0.0, 0.0)),
    ],
)
def test_a_plane_that_lacks_a_value_or_makes_no_sense_is_not_known(unknown):
    assert AXIAL.is_known
    assert not unknown.is_known


def test_many_planes_at_once_give_what_each_gives():
    each = [AXIAL, SAGITTAL, TURNED._replace(position=(3.0, -8.0, 2.0))]
    orientation = np.array([[*plane.row, *plane.column] for plane in each])
    position = np.array([plane.position for plane in each])
    assert heights(orientation, position) == pytest.approx([plane.height for plane in each])
    expected = [[np.dot(plane.position, axis) for axis in plane[1:3]] for plane in each]
    assert offsets_in_plane(orientation, position) == pytest.approx(np.array(expected))


def test_many_planes_are_what_each_of_them_is():
    rng = np.random.default_rng(5)
    planes = []
    for _ in range(40):
        row, column = np.linalg.qr(rng.normal(size=(3, 3)))[0][:2]
        planes.append(
            ImagePlane(tuple(rng.normal(size=3) * 50), tuple(row), tuple(column), (0.7, 1.3))
        )
    odd = [
        planes[0]._replace(position=(math.nan, 0.0, 0.0)),
        planes[0]._replace(spacing=(0.0, 1.0)),
        planes[0]._replace(row=(0.5, 0.0, 0.0)),
        planes[0]._replace(column=planes[0].row),
        planes[0]._replace(row=(math.nan,) * 3, column=(math.nan,) * 3),
    ]
    found = Planes.of([*planes, *odd])
    assert found.is_known.tolist() == [one.is_known for one in (*planes, *odd)]
    assert found.is_known.sum() == 40
    for number, plane in enumerate(planes):
        assert found.normals[number] == pytest.approx(plane.normal)
        assert found.heights[number] == pytest.approx(plane.height)
    assert np.isnan(found.normals[40:]).all()
    assert np.isnan(found.heights[40:]).all()
    assert len(Planes.of([]).heights) == 0


@given(planes())
def test_the_normal_is_that_of_numpy_to_the_last_bit(plane):
    cross = np.cross(plane.row, plane.column)
    assert np.array_equal(plane.normal, cross / np.linalg.norm(cross))
