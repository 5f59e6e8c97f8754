"""What holds for every polygon, every file of bytes, and every table."""

import io
from fractions import Fraction
from unittest import mock

import numpy as np
from builders import ROWS, dicom_bytes, gradient, instance
from hypothesis import example, given, settings
from hypothesis import strategies as st

import etl.contours.text
from etl.contours.polygon import area, share_outside
from etl.contours.rasterise import rasterise
from etl.contours.text import parse_contour
from etl.dicom.instance import read_instance
from etl.dicom.pixels import stored_values
from etl.errors import ContourError, EtlError
from etl.sources.csv_table import read_csv

SIZE = 11, 13

quarters = st.integers(-12, 64).map(lambda n: n / 4)
polygons = st.lists(st.tuples(quarters, quarters), min_size=3, max_size=9).map(np.array)
shifts = st.tuples(st.integers(-4, 4), st.integers(-4, 4))


def is_inside(vertices, x, y):
    """Say by exact fractions whether a point lies inside: the slow and obvious oracle."""
    crossings = 0
    corners = [(Fraction(a), Fraction(b)) for a, b in vertices]
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        if (y0 <= y) != (y1 <= y):
            crossings += x0 + (y - y0) * (x1 - x0) / (y1 - y0) <= x
    return crossings % 2 == 1


@given(polygons)
def test_the_mask_equals_a_slow_point_in_polygon_oracle(vertices):
    rows, columns = SIZE
    expected = [[is_inside(vertices, x, y) for x in range(columns)] for y in range(rows)]
    assert np.array_equal(rasterise(vertices, rows, columns), expected)


@given(polygons, shifts)
def test_whole_pixel_shifts_of_a_contour_shift_its_mask(vertices, shift):
    dx, dy = shift
    large = rasterise(vertices + 20, 60, 60)
    moved = rasterise(vertices + 20 + np.array(shift), 60, 60)
    assert np.array_equal(np.roll(large, (dy, dx), axis=(0, 1)), moved)


@given(polygons, st.integers(0, 8))
def test_start_and_direction_do_not_matter(vertices, start):
    mask = rasterise(vertices, *SIZE)
    assert np.array_equal(rasterise(np.roll(vertices, start, axis=0), *SIZE), mask)
    assert np.array_equal(rasterise(vertices[::-1], *SIZE), mask)
    assert area(vertices[::-1]) == area(vertices)


@given(st.lists(st.floats(2, 20), min_size=5, max_size=24), st.floats(0, 6))
def test_the_mask_has_the_polygons_area_within_its_perimeter(radii, turn):
    angle = turn + np.linspace(0, 2 * np.pi, len(radii), endpoint=False)
    star = 30 + np.array(radii)[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    perimeter = np.hypot(*(np.roll(star, -1, axis=0) - star).T).sum()
    assert abs(rasterise(star, 60, 60).sum() - area(star)) <= perimeter + 1


@given(polygons)
def test_the_share_outside_is_a_share(vertices):
    share = share_outside(vertices, *SIZE)
    high = np.array(SIZE[::-1]) - 0.5
    assert (share == 0) == ((vertices >= -0.5) & (vertices <= high)).all()
    assert 0 <= share <= 1 or np.isnan(share)
    if share == 1:
        assert not rasterise(vertices, *SIZE).any()


numbers = st.sampled_from(
    ["1", "2.5", "-3", "+4.", ".5", "6e1", "7E-2", "", ".", "1.2.3", "e5", "--1", "8e"]
)
texts = st.lists(
    st.tuples(numbers, st.sampled_from([" ", " ", " ", "", "  ", "\t", "\r", " \r"]), numbers),
    max_size=4,
)
line_ends = st.sampled_from(["\n", "\n", "\r\n", "\r", "\n\n"])


def outcome(data):
    try:
        return [part.tolist() for part in parse_contour(data)]
    except ContourError as error:
        return error.code


@settings(max_examples=300)
@given(texts, line_ends, st.booleans())
def test_a_contour_is_read_as_without_the_short_way(text, end, ends):
    data = end.join("".join(line) for line in text).encode() + end.encode() * ends
    found = outcome(data)
    with mock.patch.object(etl.contours.text, "_plain", return_value=None):
        assert found == outcome(data)


lines = st.lists(
    st.tuples(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4), st.sampled_from([" ", "\t", "  "])),
    max_size=30,
)


@given(lines, st.sampled_from(["\n", "\r\n", "\r"]))
def test_vertices_written_are_read_back(vertices, line_end):
    text = line_end.join(f"{x!r}{blank}{y!r}" for x, y, blank in vertices)
    (found,) = parse_contour(text.encode())
    assert found.tolist() == [[x, y] for x, y, _ in vertices]


@given(
    st.binary(max_size=200) | st.text("0123456789.+-e ,nainf_\n\t\r", max_size=80).map(str.encode)
)
@example(b"1_0 2")
@example("٣ ٤".encode())
def test_any_bytes_are_vertices_or_our_error(data):
    try:
        parts = parse_contour(data)
    except EtlError as error:
        assert str(error)
    else:
        assert all(part.shape[1:] == (2,) and np.isfinite(part).all() for part in parts)
        n_lines = sum(1 for line in data.splitlines() if line.split())
        assert sum(map(len, parts)) == n_lines
        assert len(parts) == 1 or min(map(len, parts)) >= 3


@given(st.binary(max_size=300))
def test_any_table_is_rows_or_our_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(data)
    try:
        for _, row in read_csv(path, required=("patient_id",)):
            assert all(value == value.strip() for value in row.values())
    except EtlError as error:
        assert "any.csv" in str(error)


def pixels_or_rejection(data):
    try:
        found = read_instance(io.BytesIO(data))
        return stored_values(data, found).shape
    except EtlError as error:
        return error.args[0]


VALID = {name: dicom_bytes(syntax=name) for name in ("explicit", "implicit", "big", "deflated")}


@given(st.binary(max_size=400), st.booleans())
def test_any_bytes_are_an_image_or_our_error(data, with_mark):
    assert pixels_or_rejection((bytes(128) + b"DICM" if with_mark else b"") + data)


@settings(max_examples=200)
@given(
    st.sampled_from(sorted(VALID)),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=6),
    st.integers(0, 2000),
)
def test_a_damaged_file_is_an_image_or_our_error(syntax, changes, cut):
    data = bytearray(VALID[syntax])
    for place, value in changes:
        data[place % len(data)] = value
    assert pixels_or_rejection(bytes(data[: len(data) - (cut if cut < 1000 else 0)]))


@given(st.integers(1, 400))
def test_a_file_cut_anywhere_is_rejected(n_bytes):
    assert isinstance(pixels_or_rejection(VALID["explicit"][:-n_bytes]), str)


@given(st.sampled_from(["<i2", "<u2", "<i1", "<u1"]), st.integers(1, 16), st.integers(0, 9))
def test_stored_values_are_in_the_range_of_bits_stored(dtype, bits, seed):
    allocated = np.dtype(dtype).itemsize * 8
    bits = min(bits, allocated)
    pixels = gradient(ROWS, 9, dtype, seed)
    data = dicom_bytes(instance(pixels, bits_stored=bits))
    found = stored_values(data, read_instance(io.BytesIO(data)))
    low = pixels.astype(np.int64) & ((1 << bits) - 1)
    signed = np.where((low >> (bits - 1)) & 1, low - (1 << bits), low)
    assert np.array_equal(found, signed if dtype[1] == "i" else low)
