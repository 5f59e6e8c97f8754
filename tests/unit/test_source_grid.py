"""Predictions back on the pixels of the images that rows were made of."""

import numpy as np
import pytest
from builders import COLUMNS, ROWS, write_tree
from hypothesis import given
from hypothesis import strategies as st

import etl
import loader
from etl.geometry import SourceGrid
from etl.resampling.regions import mask_on_grid
from loader.source_grid import Axis, to_source


def axes(grid):
    return (
        Axis(grid.rows, grid.row_offset, grid.row_scale),
        Axis(grid.columns, grid.column_offset, grid.column_scale),
    )


@st.composite
def grids(draw, scales):
    rows, columns = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    size = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    offsets = draw(st.integers(-20, 39)), draw(st.integers(-20, 39))
    scale = draw(scales), draw(scales)
    return SourceGrid(rows, columns, offsets[0], scale[0], offsets[1], scale[1]), size


@given(grids(st.just(1.0)), st.integers(0, 2**32 - 1))
def test_a_mask_that_was_cropped_and_padded_comes_back_where_it_was(case, seed):
    grid, size = case
    mask = np.random.default_rng(seed).random((grid.rows, grid.columns)) < 0.5
    back = to_source(mask_on_grid(mask, grid, *size), *axes(grid))
    assert back.dtype == bool
    top, left = int(grid.row_offset), int(grid.column_offset)
    is_shown = np.zeros(mask.shape, np.bool_)
    is_shown[max(top, 0) : max(top + size[0], 0), max(left, 0) : max(left + size[1], 0)] = True
    assert np.array_equal(back, mask & is_shown)
    filled = to_source(mask_on_grid(mask, grid, *size).astype("u1"), *axes(grid), fill=9)
    assert (filled[~is_shown] == 9).all()


@given(grids(st.floats(0.1, 0.99)), st.integers(0, 2**32 - 1))
def test_a_mask_on_smaller_pixels_comes_back_as_it_was(case, seed):
    grid, size = case
    mask = np.random.default_rng(seed).random((grid.rows, grid.columns)) < 0.5
    back = to_source(mask_on_grid(mask, grid, *size), *axes(grid))
    whole = to_source(np.ones(size, np.bool_), *axes(grid))
    # Pixels at the rim of the window may have their own centre outside of it.
    is_inner = whole.copy()
    for axis in (0, 1):
        places = axes(grid)[axis].places()
        is_rim = (places < 0) | (places > size[axis] - 1)
        is_inner &= ~(is_rim[:, None] if axis == 0 else is_rim)
    assert np.array_equal(back[is_inner], mask[is_inner])


def test_probabilities_are_interpolated_linearly_and_keep_their_type():
    rows, columns = Axis(21, -0.5, 2.0), Axis(9, 1.0, 1.0)
    row, column = np.indices((12, 6))
    values = np.stack([row + 0.0, 3.0 * column]).astype("f4")
    back = to_source(values, rows, columns, linear=True, fill=-1)
    assert (back.dtype, back.shape) == (np.float32, (2, 21, 9))
    assert back[0, :, 1] == pytest.approx((np.arange(21) + 0.5) / 2)
    assert (back[:, :, 0] == -1).all()
    assert (back[:, :, 7:] == -1).all()
    assert back[1, 0, 1:7] == pytest.approx(3.0 * np.arange(6))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_what_is_beside_a_pixel_does_not_change_it(dtype):
    """Logarithms of probabilities have infinities; 0 times one is NaN."""
    values = np.array([[0.5, -np.inf, 0.25, np.nan, 1.0]], dtype)
    back = to_source(values, Axis(3, 1.0, 1.0), Axis(9, 0.0, 2.0), linear=True, fill=7)
    assert (back[[0, 2]] == 7).all()
    np.testing.assert_array_equal(back[1, ::2], values[0])
    np.testing.assert_array_equal(back[1, 1::2], [-np.inf, -np.inf, np.nan, np.nan])


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("sizes") / "data")


def opened(root, tmp_path, **options):
    etl.build(root, tmp_path / "out.h5", etl.BuildOptions(**options), force=True)
    return loader.open_dataset(tmp_path / "out.h5")


def test_in_a_file_of_whole_images_it_changes_nothing(trees, tmp_path):
    data = opened(trees, tmp_path, rows=ROWS, columns=COLUMNS)
    assert "source_rows" not in data.manifest
    assert np.array_equal(data.to_source(0, data.masks[0]), data.masks[0])


@pytest.mark.parametrize("row", [1, -2])
def test_a_row_of_the_file_comes_back_to_its_image(trees, tmp_path, row):
    whole = opened(trees, tmp_path, rows=ROWS, columns=COLUMNS)
    image, mask = (np.array(one) for one in whole[1])
    data = opened(trees, tmp_path, rows=11, columns=20, size="fit")
    assert np.array_equal(data.to_source(row, data.masks[1]), mask)
    back = data.to_source(row, np.stack([data.images[1]] * 2), fill=5)
    assert np.array_equal(back[0, :11], image[:11])
    assert (back[1, 11:] == 5).all()


@pytest.mark.parametrize(
    ("dtype", "fill"),
    [("u1", -1), ("u1", 256), ("u1", 1.5), ("u1", np.nan), ("i2", np.inf), ("?", 255)],
)
def test_a_fill_that_the_type_does_not_hold_is_refused(dtype, fill):
    """A fill of 1.5 in a label map would be label 1."""
    axis = Axis(4, 1.0, 1.0)
    with pytest.raises(ValueError, match=r"^fill: expected a value that .* holds exactly, found"):
        to_source(np.zeros((2, 2), dtype), axis, axis, fill=fill)


@pytest.mark.parametrize(("dtype", "fill"), [("u1", 255), ("u1", 255.0), ("?", 1), ("f4", 0.1)])
def test_a_fill_that_the_type_holds_is_where_the_row_shows_nothing(dtype, fill):
    axis = Axis(4, 1.0, 1.0)
    found = to_source(np.zeros((2, 2), dtype), axis, axis, fill=fill)
    assert found.dtype == dtype
    assert (found[[0, 3]] == np.array(fill, dtype)).all()
    assert (found[1:3, 1:3] == 0).all()


def test_another_size_or_row_is_refused(trees, tmp_path):
    data = opened(trees, tmp_path, rows=11, columns=20, size="fit")
    with pytest.raises(ValueError, match=r"expected the shape \(\.\.\., 11, 20\)"):
        data.to_source(0, np.zeros((ROWS, COLUMNS)))
    with pytest.raises(IndexError):
        data.to_source(99, np.zeros((11, 20)))
