"""Grid patches, against an oracle that goes from pixel to pixel."""

import math

import numpy as np
import pytest

from loader import GridPatches

GRIDS = [
    ((12, 15), (4, 5), 0),
    ((13, 17), (4, 5), 0),
    ((13, 17), (6, 7), 3),
    ((9, 9), (5, 8), 4),
    ((6, 20), (8, 8), 0),
    ((3, 2), (5, 7), 2),
    ((1, 1), (1, 1), 0),
]


def values(*shape, dtype=np.float32):
    return np.random.default_rng(3).normal(size=shape).astype(dtype)


def weight(blend, size, r, c):
    if blend == "average":
        return 1.0
    (rows, columns) = size
    y, x = (r - (rows - 1) / 2) / (rows / 8), (c - (columns - 1) / 2) / (columns / 8)
    return math.exp(-0.5 * y * y) * math.exp(-0.5 * x * x)


def stitched_slowly(grid, patches, blend):
    out = np.empty((*patches.shape[1:-2], *grid.shape))
    for r, c in np.ndindex(*grid.shape):
        total, summed = 0.0, 0.0
        for patch, (top, left) in zip(patches, grid.corners, strict=True):
            if 0 <= r - top < grid.size[0] and 0 <= c - left < grid.size[1]:
                share = weight(blend, grid.size, r - top, c - left)
                total += share
                summed += share * patch[..., r - top, c - left].astype(float)
        out[..., r, c] = summed / total
    return out


@pytest.mark.parametrize(("shape", "size", "overlap"), GRIDS)
def test_patches_are_the_pixels_of_the_image(shape, size, overlap):
    grid, image = GridPatches(shape, size, overlap), values(2, *shape)
    patches = grid.cut(image)
    assert patches.shape == (len(grid), 2, *size)
    for patch, (top, left) in zip(patches, grid.corners, strict=True):
        for r, c in np.ndindex(*size):
            row, column = min(top + r, shape[0] - 1), min(left + c, shape[1] - 1)
            assert (patch[:, r, c] == image[:, row, column]).all()


@pytest.mark.parametrize("blend", ["average", "gaussian"])
@pytest.mark.parametrize(("shape", "size", "overlap"), GRIDS)
def test_what_was_cut_is_stitched_to_the_same_bits(shape, size, overlap, blend):
    grid, image = GridPatches(shape, size, overlap), values(3, *shape)
    assert grid.stitch(grid.cut(image), blend).tobytes() == image.tobytes()


@pytest.mark.parametrize("blend", ["average", "gaussian"])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_without_overlap_every_type_keeps_its_bits(blend, dtype):
    grid, image = GridPatches((12, 15), (4, 5)), values(12, 15, dtype=dtype)
    image[0, :3] = np.nan, np.inf, -0.0
    assert grid.stitch(grid.cut(image), blend).tobytes() == image.tobytes()


@pytest.mark.parametrize("blend", ["average", "gaussian"])
@pytest.mark.parametrize(("shape", "size", "overlap"), GRIDS)
def test_predictions_are_averaged_by_their_weights(shape, size, overlap, blend):
    grid = GridPatches(shape, size, overlap)
    patches = values(len(grid), 2, *size, dtype=np.float64)
    expected = stitched_slowly(grid, patches, blend)
    np.testing.assert_allclose(grid.stitch(patches, blend), expected, rtol=1e-12)


def test_neighbours_share_the_overlap():
    assert GridPatches((10, 4), (4, 4), overlap=1).corners == ((0, 0), (3, 0), (6, 0))
    assert GridPatches((11, 4), (4, 4), overlap=1).corners == ((0, 0), (3, 0), (6, 0), (7, 0))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (((8, 8), (0, 4)), "size: expected an integer from 1"),
        (((8, 8), (4,)), "size: expected .rows, columns."),
        (((8, 8.0), (4, 4)), "shape: expected an integer"),
        (((8, 8), (4, 6), 4), "overlap: expected an integer from 0 to 3, found 4"),
        (((8, 8), (4, 4), -1), "overlap"),
    ],
)
def test_a_grid_that_covers_nothing_is_refused(arguments, error):
    with pytest.raises((TypeError, ValueError), match=error):
        GridPatches(*arguments)


def test_other_images_and_patches_are_refused():
    grid = GridPatches((8, 8), (4, 4))
    with pytest.raises(ValueError, match=r"image: .* found \(8, 9\)"):
        grid.cut(np.zeros((8, 9)))
    for shape in [(3, 4, 4), (4, 4, 5), (4, 4)]:
        with pytest.raises(ValueError, match=r"patches: expected \(4, ..., 4, 4\)"):
            grid.stitch(np.zeros(shape))
    with pytest.raises(TypeError, match="floating-point scores, found uint8"):
        grid.stitch(np.zeros((4, 4, 4), np.uint8))
    with pytest.raises(ValueError, match="blend"):
        grid.stitch(np.zeros((4, 4, 4)), blend="max")
