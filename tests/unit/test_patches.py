"""Random patches of batches, against an oracle of plain integers."""

import pickle

import numpy as np
import pytest
from dataset_builder import CARDIAC, with_bits, write_dataset

import loader
from loader import Augment, Batches, Patches

N, H, W = 23, 12, 17
WORD = 2**64
G = 0x9E3779B97F4A7C15


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("patches") / "out.h5"
    return path, write_dataset(path, n=N, rows=H, columns=W)


def is_label(value, codes):
    return value in codes


def is_bit(value, codes):
    return any(value >> (code - 1) & 1 for code in codes)


def mix(z):
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ z >> 27) * 0x94D049BB133111EB % WORD
    return z ^ z >> 31


def place(centre, share, n, s, pad):
    """Return where a patch of s begins along a side of n."""
    if s >= n:
        return -((s - n) // 2)
    places = range(-(s // 2), n - s // 2) if pad else range(n - s + 1)
    if centre is None:
        return places[int(share * len(places))]
    return min(max(centre - s // 2, places[0]), places[-1])


def patch_of(
    arrays,
    row,
    epoch,
    seed,
    size,
    foreground=0.0,
    codes=(1, 2),
    copy=0,
    pad=False,
    is_shown=is_label,
):
    key = mix((mix((11 * G + seed) % WORD) + epoch) % WORD)
    key = mix((mix((key + (row + 1) * G) % WORD) + (copy + 1) * G) % WORD)
    u = [(mix((key + (i + 1) * G) % WORD) >> 11) / 2**53 for i in range(4)]
    mask = arrays["masks"][row]
    pixels = [(r, c) for r in range(H) for c in range(W) if is_shown(mask[r, c], codes)]
    is_centred = u[0] < foreground and pixels
    centre = pixels[int(u[1] * len(pixels))] if is_centred else (None, None)
    corner = [place(*one, pad=pad) for one in zip(centre, u[2:], (H, W), size, strict=True)]
    image = np.full(size, arrays["images"][row].min())
    found = np.zeros(size, mask.dtype)
    for r, c in np.ndindex(*size):
        y, x = r + corner[0], c + corner[1]
        if 0 <= y < H and 0 <= x < W:
            image[r, c], found[r, c] = arrays["images"][row, y, x], mask[y, x]
    return image, found


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize(
    "options",
    [
        {"size": (5, 6)},
        {"size": (H, W)},
        {"size": (5, 6), "foreground": 0.5},
        {"size": (4, 4), "foreground": 1, "structures": ("i-contour",)},
        {"size": (15, 6), "foreground": 0.5, "pad": True},
        {"size": (5, 6), "foreground": 0.5, "pad": True},
        {"size": (H, 7), "pad": True},
        {"size": (15, 20), "pad": True},
    ],
)
def test_patches_are_those_of_the_oracle(file, options, prefetch):
    path, arrays = file
    codes = (1,) if "structures" in options else (1, 2)
    batches = Batches(
        path,
        batch_size=4,
        seed=9,
        remainder="keep",
        layout="NHW",
        prefetch=prefetch,
        patches=Patches(**options),
    )
    with batches:
        for epoch in range(3):
            for images, masks in batches:
                for image, mask, row in zip(images, masks, batches.indices, strict=True):
                    expected = patch_of(
                        arrays,
                        int(row),
                        epoch,
                        9,
                        options["size"],
                        options.get("foreground", 0),
                        codes,
                        pad="pad" in options,
                    )
                    np.testing.assert_array_equal(image, expected[0])
                    np.testing.assert_array_equal(mask, expected[1])


@pytest.mark.parametrize("names", [None, ("i-contour",), ("o-contour",)])
@pytest.mark.parametrize("dtype", ["|u1", "<u4"])
def test_patches_of_bit_masks_are_centred_on_bits(tmp_path, dtype, names):
    structures = with_bits(CARDIAC)
    path = tmp_path / "out.h5"
    arrays = write_dataset(path, n=N, rows=H, columns=W, structures=structures, mask_dtype=dtype)
    patches = Patches((5, 6), foreground=1, structures=names)
    batches = Batches(path, batch_size=N, seed=9, layout="NHW", patches=patches)
    codes = (1, 2) if names is None else ({"i-contour": 1, "o-contour": 2}[names[0]],)
    images, masks = batches.next_batch()
    assert masks.dtype == np.dtype(dtype)
    for image, mask, row in zip(images, masks, batches.indices, strict=True):
        expected = patch_of(arrays, int(row), 0, 9, (5, 6), 1, codes, is_shown=is_bit)
        np.testing.assert_array_equal(image, expected[0])
        np.testing.assert_array_equal(mask, expected[1])


def by_row(batches, n_epochs=2):
    found = {}
    for epoch in range(n_epochs):
        for images, masks in batches:
            for one in zip(batches.indices.tolist(), images, masks, strict=True):
                found[epoch, one[0]] = one[1].tobytes() + one[2].tobytes()
    return found


@pytest.mark.filterwarnings("ignore:1 of 23 rows are left out")
@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"normalize": "zscore"},
        {"normalize": "minmax", "augment": Augment.none(flip_rows=0.5, quarter_turns=0.5)},
    ],
)
def test_ranks_and_batch_sizes_change_nothing(file, extra):
    options = {"seed": 4, "remainder": "keep", "layout": "NHW", **extra}
    options["patches"] = Patches((6, 6), foreground=0.5)
    alone = by_row(Batches(file[0], batch_size=5, **options))
    shared = {}
    for rank in range(2):
        shared |= by_row(Batches(file[0], batch_size=3, rank=rank, world_size=2, **options))
    assert len(shared) >= 2 * (N - 1)
    assert shared.items() <= alone.items()
    assert len(set(alone.values())) > N


def test_a_patch_is_normalised_as_its_image(file):
    options = {"batch_size": N, "seed": 1, "layout": "NHW"}
    whole = Batches(file[0], normalize="percentile", **options).next_batch()[0]
    padded = Batches(
        file[0], normalize="percentile", patches=Patches((H, W + 2), pad=True), **options
    ).next_batch()[0]
    assert padded[:, :, 1:-1].tobytes() == whole.tobytes()


def test_with_padding_any_pixel_is_the_centre_of_a_patch(tmp_path):
    path = tmp_path / "out.h5"
    arrays = write_dataset(path, n=4, rows=6, columns=6)
    options = {"batch_size": 4, "layout": "NHW", "patches": Patches((3, 3), pad=True)}
    batches, centres = Batches(path, **options), set()
    for _ in range(100):
        images, _ = batches.next_batch()
        centres |= {
            tuple(np.argwhere(arrays["images"][row] == image[1, 1])[0])
            for row, image in zip(batches.indices, images, strict=True)
        }
    assert len(centres) > 30


@pytest.mark.parametrize("augment", [None, Augment.none(flip_rows=0.5)])
def test_masks_of_patches_may_have_channels(file, augment):
    options = {"batch_size": N, "layout": "NHW", "patches": Patches((5, 6), 0.5, pad=True)}
    plain = Batches(file[0], augment=augment, **options)
    found = Batches(file[0], augment=augment, mask_channels="uint8", **options).next_batch()[1]
    expected = plain.dataset.mask_channels(plain.next_batch()[1], "uint8")
    np.testing.assert_array_equal(found, expected)


def test_a_row_drawn_twice_gives_two_patches(file):
    weights = np.eye(N)[5]
    batches = Batches(
        file[0], batch_size=N, seed=3, layout="NHW", weights=weights, patches=Patches((5, 5), 0.5)
    )
    images, masks = batches.next_batch()
    for copy, (image, mask) in enumerate(zip(images, masks, strict=True)):
        expected = patch_of(file[1], 5, 0, 3, (5, 5), 0.5, copy=copy)
        np.testing.assert_array_equal(image, expected[0])
        np.testing.assert_array_equal(mask, expected[1])


def test_a_state_goes_on_and_is_of_the_same_patches(file):
    options = {
        "batch_size": 4,
        "seed": 2,
        "remainder": "keep",
        "patches": Patches((5, 5), foreground=0.3),
    }
    batches = Batches(file[0], **options)
    batches.next_batch()
    state, copied = batches.state_dict(), pickle.loads(pickle.dumps(batches))
    expected = batches.next_batch()
    following = Batches(file[0], **options)
    following.load_state_dict(state)
    for found in (following.next_batch(), copied.next_batch()):
        np.testing.assert_array_equal(found[0], expected[0])
    with pytest.raises(loader.LoaderError, match="patches"):
        Batches(file[0], **options | {"patches": Patches((5, 5))}).load_state_dict(state)


def test_rows_without_foreground_are_counted(tmp_path):
    path = tmp_path / "out.h5"
    write_dataset(path, n=6, manifest={"n_pixels_1": [0, 5, 0, 5, 5, 5]})
    with pytest.warns(UserWarning, match="2 of 6 rows show no structure"):
        Batches(path, batch_size=2, patches=Patches((2, 2), 0.5, ("i-contour",)))


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: Patches((4, 4), foreground=1.5), "foreground: expected a share"),
        (lambda: Patches((4, 4), foreground=float("nan")), "foreground: expected a share"),
        (lambda: Patches((4, 4), foreground="1"), "foreground: expected a number"),
        (lambda: Patches((0, 4)), "size"),
        (lambda: Patches((4, 4), structures="i-contour"), "structures: expected names"),
        (lambda: Patches((4, 4), pad=1), "pad"),
    ],
)
def test_bad_arguments_are_refused(make, error):
    with pytest.raises((TypeError, ValueError), match=error):
        make()


def test_patches_that_a_file_cannot_give_are_refused(file):
    for patches, error in (
        (Patches((H + 1, 4)), r"larger than the images \(expected at most \(12, 17\)"),
        (Patches((4, 4), structures=("heart",)), "found heart"),
    ):
        with pytest.raises(loader.LoaderError, match=error):
            Batches(file[0], batch_size=2, patches=patches)
    with pytest.raises(TypeError, match="expected a loader"):
        Batches(file[0], batch_size=2, patches=(4, 4))
