"""Patches that are augmented, against an oracle that looks up each pixel in the whole image."""

import math

import numpy as np
import pytest
from dataset_builder import write_dataset

from loader import Augment, Batches, Patches
from loader.augment import draw_parameters
from loader.augment.parameters import spline_basis

cv2 = pytest.importorskip("cv2")

# Neighbours differ by up to 1000; OpenCV 4 divides a pixel into 32 places.
TOLERANCE = 0.1 if int(cv2.__version__.partition(".")[0]) > 4 else 1000 / 16
N, H, W = 10, 40, 52
TURNS = {"flip_rows": 0.5, "flip_columns": 0.5, "quarter_turns": 0.7}
MOVES = {"rotate": (0.6, -60, 60), "scale": (0.6, 0.6, 1.5), "shift": (0.5, -0.3, 0.3)}
BENDS = {"elastic": (0.6, 0.03, 0.08), "shear": (0.3, -15, 15)}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("augmented") / "out.h5"
    write_dataset(path, n=N, rows=H, columns=W)
    return path


def value_at(image, y, x, padding):
    """Return the value between four pixels; beyond the border, the padding or the border's."""

    def pixel(r, c):
        if padding is not None and not (0 <= r < H and 0 <= c < W):
            return padding
        return image[min(max(r, 0), H - 1), min(max(c, 0), W - 1)]

    r, c = math.floor(y), math.floor(x)
    down, across = y - r, x - c
    above = (1 - across) * pixel(r, c) + across * pixel(r, c + 1)
    below = (1 - across) * pixel(r + 1, c) + across * pixel(r + 1, c + 1)
    return (1 - down) * above + down * below


def source(parts, i, r, c, size):
    """Return row and column, from the first of the patch, that a pixel comes from."""
    middle = (size[0] - 1) / 2, (size[1] - 1) / 2
    y, x = r - middle[0], c - middle[1]
    if "affine" in parts:
        a = parts["affine"][i]
        bent = np.zeros(2)
        if "elastic" in parts:
            along = spline_basis(size[0])[r], spline_basis(size[1])[c]
            bent = np.einsum("j,k,ajk->a", *along, parts["elastic"][i])
        moved = a @ (x, y, 1) + bent
        x, y = moved
    flips_rows, flips_columns, n_turns = parts["turn"][i].astype(int)
    for _ in range(n_turns):  # anticlockwise: the first column becomes the last row
        y, x = x, -y
    y, x = (-y if flips_rows else y), (-x if flips_columns else x)
    return y + middle[0], x + middle[1]


@pytest.mark.parametrize("size", [(16, 16), (15, 22), (50, 17)])
@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize(
    "augment",
    [
        Augment.none(**TURNS),
        Augment.none(**TURNS, **MOVES),
        Augment.none(**TURNS, **MOVES, **BENDS),
    ],
)
def test_a_patch_is_resampled_from_the_whole_image(path, size, pad, augment):
    if size[0] > H and not pad:
        pytest.skip("larger than the image")
    patches = Patches(size, foreground=0.5, pad=pad)
    options = {"batch_size": N, "seed": 5, "layout": "NHW", "patches": patches}
    batches = Batches(path, augment=augment, **options)
    images, masks = batches.next_batch()
    rows = batches.indices
    corners = batches.feed.windows.corners(rows, 0, np.zeros_like(rows))
    parts = draw_parameters(augment, size, seed=5, epoch=0, rows=rows).parts()
    n_ties = 0
    for i, row in enumerate(rows.tolist()):
        image, mask = batches.dataset[row]
        padding = image.min() if pad else None
        for r, c in np.ndindex(*size):
            y, x = np.add(source(parts, i, r, c, size), corners[i])
            assert abs(images[i, r, c] - value_at(image, y, x, padding)) < TOLERANCE
            label = value_at(mask, math.floor(y + 0.5), math.floor(x + 0.5), 0 if pad else None)
            n_ties += masks[i, r, c] != label
    assert n_ties <= images.size / 2000
    if not augment.resamples:
        assert n_ties == 0


@pytest.mark.parametrize("normalize", ["zscore", "percentile"])
def test_a_window_of_the_whole_image_is_the_image(path, normalize):
    options = {"batch_size": N, "seed": 2, "layout": "NHW", "normalize": normalize}
    options["augment"] = Augment.cardiac_mr()
    whole = Batches(path, **options).next_batch()
    patches = Batches(path, patches=Patches((H, W)), **options).next_batch()
    for mine, theirs in zip(patches, whole, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_what_cubic_interpolation_needs_is_there(path):
    """A shift by whole pixels, so that the border's pixels are seen through the kernel."""
    augment = Augment.none(shift=(1, 0.25, 0.25), interpolation="cubic")
    options = {"batch_size": N, "layout": "NHW", "patches": Patches((16, 16), pad=True)}
    plain, moved = (Batches(path, augment=one, **options) for one in (None, augment))
    images, shifted = plain.next_batch()[0], moved.next_batch()[0]
    np.testing.assert_allclose(shifted[:, 4:, 4:], images[:, :-4, :-4], atol=1e-2)


def test_state_ranks_and_prefetch_change_nothing(path):
    options = {"seed": 3, "layout": "NHW", "normalize": "zscore", "remainder": "keep"}
    options |= {"patches": Patches((20, 20), 0.5), "augment": Augment.cardiac_mr()}

    def by_row(**more):
        batches = Batches(path, **options | more)
        found = {}
        with batches:
            for images, masks in batches:
                for one in zip(batches.indices.tolist(), images, masks, strict=True):
                    found[one[0]] = one[1].tobytes() + one[2].tobytes()
        return found

    alone = by_row(batch_size=4)
    assert by_row(batch_size=3, prefetch=2) == alone
    ranks = [by_row(batch_size=2, rank=rank, world_size=2) for rank in range(2)]
    assert ranks[0] | ranks[1] == alone
    batches, following = (Batches(path, batch_size=4, **options) for _ in range(2))
    batches.next_batch()
    following.load_state_dict(batches.state_dict())
    np.testing.assert_array_equal(following.next_batch()[0], batches.next_batch()[0])
