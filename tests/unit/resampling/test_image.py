"""Interpolated images, held against ramps that are known everywhere and against plain sums."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.geometry import SourceGrid
from etl.resampling.image import image_on_grid
from etl.verify import reference

SCALES = [0.37, 0.5, 0.8, 1.0, 1.25, 1.4142, 2.0, 3.3]


def ramp(rows=60, columns=50, dtype="<f4"):
    row, column = np.indices((rows, columns))
    return (100 + 7 * row - 11 * column).astype(dtype)


def places(grid, rows, columns):
    """Return row and column in the frame of each pixel of the file."""
    row, column = np.indices((rows, columns))
    return grid.row_offset + grid.row_scale * row, grid.column_offset + grid.column_scale * column


@pytest.mark.parametrize("row_scale", SCALES)
@pytest.mark.parametrize("column_scale", [0.5, 1.0, 1.9])
def test_a_ramp_is_the_same_ramp_at_the_centres_of_other_pixels(row_scale, column_scale):
    rows, columns = int(40 / row_scale), int(30 / column_scale)
    offsets = 10.0 if row_scale == 1 else 10.3, 8.0 if column_scale == 1 else 8.6
    grid = SourceGrid(60, 50, offsets[0], row_scale, offsets[1], column_scale)
    row, column = places(grid, rows, columns)
    expected = 100 + 7 * row - 11 * column
    # Away from the border, beyond which its pixels repeat.
    is_inner = (row > 4) & (row < 55) & (column > 4) & (column < 45)
    off = np.abs(image_on_grid(ramp(), grid, rows, columns) - expected)[is_inner]
    assert is_inner.sum() > 0.5 * rows * columns
    assert off.max() < 2e-3 + 7 * drift(row_scale) + 11 * drift(column_scale)


def drift(scale):
    """Return how far, in pixels of the frame, the weights of a larger pixel may be off its centre.

    Triangles of Pillow's width that are sampled at whole pixels are not quite symmetric, but where
    they are a whole number of pixels wide.
    """
    return 0.0 if scale <= 1 or scale == int(scale) else 0.09


def test_whole_numbers_are_rounded_not_cut_and_stay_in_the_range_of_the_frame():
    grid = SourceGrid(60, 50, 0.25, 0.7, 0.25, 0.7)
    exact = image_on_grid(ramp(), grid, 60, 50)
    for dtype in ("<i2", "<i4"):
        found = image_on_grid(ramp(dtype=dtype), grid, 60, 50)
        assert found.dtype == dtype
        assert np.abs(found - exact).max() <= 0.5 + 2e-3
    full = np.full((20, 20), 65535, "<u2")
    assert (image_on_grid(full, SourceGrid(20, 20, 0.1, 0.9, 0.1, 0.9), 20, 20) == 65535).all()


def test_larger_pixels_see_all_that_is_under_them():
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 100).astype("<i2")
    found = image_on_grid(board, SourceGrid(64, 64, 1.5, 4.0, 1.5, 4.0), 16, 16)
    assert np.abs(found.astype(float) - 50).max() <= 2  # not 0 here and 100 there


def test_pixels_that_keep_their_spacing_are_copied():
    values = np.random.default_rng(0).integers(-(2**31), 2**31 - 1, (30, 20), "<i4")
    found = image_on_grid(values, SourceGrid(30, 20, 5.0, 1.0, -3.0, 1.0), 10, 30)
    assert np.array_equal(found[:, 3:23], values[5:15])  # float32 has no such numbers
    assert (found[:, :3] == values.min()).all()
    assert (found[:, 23:] == values.min()).all()


@pytest.mark.parametrize(("padding", "value"), [(None, 7), ((-30.0, -20.0), -30)])
def test_beyond_the_frame_is_padding(padding, value):
    values = np.full((10, 10), 9, "<i2")
    values[0, 0] = 7
    found = image_on_grid(values, SourceGrid(10, 10, -4.25, 0.5, -4.25, 0.5), 40, 40, padding)
    assert (found[:8] == value).all()
    assert (found[8:28, 8:28] > 0).all()
    assert (found[:, 28:] == value).all()


@pytest.mark.parametrize("scale", [0.4, 0.7, 1.3, 2.6])
def test_padding_of_the_image_does_not_bleed_into_it(scale):
    values = ramp(dtype="<i2")
    values[:, :20] = -2000
    grid = SourceGrid(60, 50, 0.3, scale, 0.3, scale)
    rows, columns = int(58 / scale), int(48 / scale)
    found = image_on_grid(values, grid, rows, columns, (-2000.0, -1990.0))
    _, column = places(grid, rows, columns)
    is_padding = np.floor(column + 0.5) < 20
    assert np.array_equal(found == -2000, is_padding)
    assert found[~is_padding].min() >= values[:, 20:].min()


def test_an_image_that_is_all_padding_is_resampled_as_any():
    values = np.full((10, 10), -2000, "<i2")
    found = image_on_grid(values, SourceGrid(10, 10, 0.5, 2, 0.5, 2), 5, 5, (-2000.0, -2000.0))
    assert (found == -2000).all()


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["<i2", "<u2", "<i4", "<f4"]),
    st.floats(0.2, 5),
    st.floats(0.2, 5),
    st.booleans(),
)
def test_it_is_what_the_plain_sum_of_the_reference_gives(seed, dtype, row_scale, column, is_padded):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 30000, (rng.integers(3, 20), rng.integers(3, 20))).astype(dtype)
    padding = (0.0, 9000.0) if is_padded else None
    size = int(rng.integers(1, 24)), int(rng.integers(1, 24))
    rows, columns = values.shape
    offsets = rng.uniform(-2, 2, 2).tolist()
    grid = SourceGrid(rows, columns, offsets[0], row_scale, offsets[1], column)
    if min(part.stop - part.start for part in grid.shown(*size)) == 0:
        return  # a build makes no such row
    found = image_on_grid(values, grid, *size, padding)
    axes = (
        reference.Axis(rows, offsets[0], row_scale),
        reference.Axis(columns, offsets[1], column),
    )
    plain = values.astype(np.float64)
    expected = reference.regridded(plain, axes, size, padding)
    off = np.abs(found.astype(np.float64) - expected)
    assert off.max() <= reference.tolerance(plain, values.dtype)
