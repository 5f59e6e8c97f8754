"""Masks with a channel of each structure, against an oracle that asks pixel by pixel."""

import functools
import json
import pickle

import numpy as np
import pytest
from dataset_builder import CARDIAC, with_bits, write_dataset
from hypothesis import given
from hypothesis import strategies as st

import loader
from loader import Augment, Batches, LoaderError, Neighbours, Patches, PerBatch
from loader.channels import Unpacker
from loader.format import Structure

N, H, W = 9, 6, 7
MANY = tuple(Structure(f"part {c}", c, "", f"label{c}") for c in range(40, 20, -1))
DTYPES = ["bool", "uint8", "float32"]
# Name → structures and type of the masks; bits in the order of the codes but for one.
FILES = {
    "labels": (CARDIAC, "|u1"),
    "two bits": (with_bits(CARDIAC), "|u1"),
    "bits of words": (with_bits(CARDIAC), "<u2"),
    "twenty bits": (with_bits(MANY), "<u4"),
    "highest bits": (with_bits(CARDIAC, {"i-contour": 31, "o-contour": 7}), "<u4"),
    "labels of many": (MANY, "|u1"),
}


@pytest.fixture(scope="module", params=FILES)
def file(request, tmp_path_factory):
    """Return a file, opened once, with its structures and masks."""
    structures, dtype = FILES[request.param]
    path = tmp_path_factory.mktemp("channels") / "out.h5"
    options = {"structures": structures, "mask_dtype": dtype, "alignment": 1}
    masks = write_dataset(path, n=N, rows=H, columns=W, **options)["masks"]
    return loader.open_dataset(path), structures, masks


def channels_of(mask, structures, dtype):
    """Return (structures, rows, columns), asking each pixel for each structure."""
    has_bits = structures[0].bit is not None
    ordered = sorted(structures, key=lambda one: one.bit if has_bits else one.code)
    found = np.zeros((len(ordered), *mask.shape), dtype)
    for k, one in enumerate(ordered):
        for r, c in np.ndindex(*mask.shape):
            value = int(mask[r, c])
            found[k, r, c] = value // 2**one.bit % 2 if has_bits else value == one.code
    return found


def expected_of(masks, structures, dtype):
    masks = np.ascontiguousarray(masks)
    return _expected_of(masks.tobytes(), masks.dtype.str, masks.shape, structures, dtype).copy()


@functools.cache
def _expected_of(content, mask_dtype, shape, structures, dtype):
    masks = np.frombuffer(content, mask_dtype).reshape(shape)
    return np.stack([channels_of(mask, structures, dtype) for mask in masks])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_file_unpacks_its_masks(file, dtype):
    data, structures, masks = file
    expected = expected_of(masks, structures, dtype)
    for some, theirs in (
        (data.masks, expected),
        (data[3][1], expected[3]),
        (masks[:0], expected[:0]),
    ):
        found = data.mask_channels(some, dtype)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, theirs)
    assert data.mask_channels(data.masks).dtype == bool
    has_bits = structures[0].bit is not None
    values = [one.bit if has_bits else one.code for one in data.channels]
    assert values == sorted(values)
    assert set(data.channels) == set(structures)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["HWN", "NHW", "NCHW"])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_batches_have_a_channel_of_each_structure(file, dtype, layout, prefetch):
    data, structures, masks = file
    expected = expected_of(masks, structures, dtype)
    options = {"batch_size": 4, "remainder": "keep", "layout": layout, "seed": 3}
    plain = Batches(data, **options)
    with Batches(data, mask_channels=dtype, prefetch=prefetch, **options) as batches:
        for (images, found), (same, _) in zip(batches, plain, strict=True):
            np.testing.assert_array_equal(images, same)
            theirs = expected[batches.indices]
            if layout == "HWN":
                theirs = theirs.transpose(2, 3, 1, 0)
            assert (found.shape, found.dtype) == (theirs.shape, np.dtype(dtype))
            np.testing.assert_array_equal(found, theirs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "options",
    [
        {"patches": Patches((4, 9), foreground=0.5, pad=True)},
        {"augment": Augment.none(flip_rows=0.5, flip_columns=0.5)},
        {"augment": Augment.none(flip_rows=0.5), "patches": Patches((3, 3))},
        {"normalize": "minmax"},
    ],
    ids=["patches", "augment", "both", "normalize"],
)
def test_what_moves_masks_moves_their_channels(file, dtype, options):
    data, structures, _ = file
    options = {"batch_size": N, "layout": "NCHW", "seed": 3} | options
    plain, batches = Batches(data, **options), Batches(data, mask_channels=dtype, **options)
    for _ in range(3):
        images, masks = plain.next_batch()
        same, found = batches.next_batch()
        np.testing.assert_array_equal(same, images)
        np.testing.assert_array_equal(found, expected_of(masks[:, 0], structures, dtype))


@pytest.mark.parametrize("dtype", ["<u4", "<u2"])
def test_words_are_resampled_as_they_are(tmp_path, dtype):
    pytest.importorskip("cv2")
    path = tmp_path / "out.h5"
    structures = with_bits(CARDIAC, {"i-contour": 15, "o-contour": 3})
    write_dataset(path, n=N, rows=H, columns=W, structures=structures, mask_dtype=dtype)
    options = {"batch_size": N, "layout": "NHW", "augment": Augment.none(rotate=(1, 20, 40))}
    words = Batches(path, **options).next_batch()[1]
    assert words.dtype == np.dtype(dtype)
    assert set(np.unique(words)) <= {0, 1 << 15, 1 << 3, 1 << 15 | 1 << 3}
    found = Batches(path, mask_channels="uint8", **options).next_batch()[1]
    np.testing.assert_array_equal(found, expected_of(words, structures, "uint8"))


@pytest.mark.parametrize("layout", ["HWN", "NHW", "NCHW"])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_batch_is_filled_again(file, layout, prefetch):
    data, structures, masks = file
    expected = expected_of(masks, structures, "float32")
    options = {"batch_size": 4, "layout": layout, "remainder": "keep"}
    with Batches(data, mask_channels="float32", prefetch=prefetch, **options) as batches:
        kept = batches.next_batch()
        while batches.epochs_completed < 2:
            images, found = batches.next_batch(out=kept)
            assert np.shares_memory(found, kept[1])
            assert np.shares_memory(images, kept[0])
            theirs = expected[batches.indices]
            theirs = theirs.transpose(2, 3, 1, 0) if layout == "HWN" else theirs
            np.testing.assert_array_equal(found, theirs)
        other = Batches(data, **options).next_batch()
        with pytest.raises(TypeError, match="out: expected float32 arrays with the axes"):
            batches.next_batch(out=(kept[0], other[1]))
        with pytest.raises(ValueError, match="out: expected room for 4 samples of"):
            batches.next_batch(out=(kept[0], kept[1][:-1] if layout == "HWN" else kept[1][:, 1:]))


def darken(images, masks, _manifest, _generator):
    """Change both in place; the last channel becomes empty."""
    images[...] = 7
    masks[..., -1, :, :] = 0
    return images, masks


def turn(images, masks, _manifest, _generator):
    """Exchange rows and columns, so that batches have another shape."""
    return images.swapaxes(-1, -2), masks.swapaxes(-1, -2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["HWN", "NCHW"])
@pytest.mark.parametrize("wrap", [lambda one: one, PerBatch], ids=["sample", "batch"])
def test_a_transform_gets_channels(file, dtype, layout, wrap):
    data, structures, masks = file
    expected = expected_of(masks, structures, dtype)
    options = {"batch_size": N, "layout": layout, "mask_channels": dtype, "shuffle": False}
    back = (3, 2, 0, 1) if layout == "HWN" else (0, 1, 2, 3)
    images, found = Batches(data, transform=wrap(turn), **options).next_batch()
    np.testing.assert_array_equal(found.transpose(back), expected.swapaxes(-1, -2))
    batches = Batches(data, transform=wrap(darken), **options)
    expected[:, -1] = 0
    kept = batches.next_batch()
    images, found = batches.next_batch(out=kept)
    assert np.shares_memory(found, kept[1])
    assert (images == 7).all()
    np.testing.assert_array_equal(found.transpose(back), expected)


def test_a_transform_works_in_the_buffers_of_masks_with_channels(file):
    data, structures, _ = file
    seen = []

    def look(images, masks, _manifest, _generators):
        seen.append(masks)
        return images, masks

    options = {"batch_size": 3, "layout": "NCHW", "mask_channels": "float32"}
    batches = Batches(data, transform=PerBatch(look), **options)
    kept = batches.next_batch()
    batches.next_batch(out=kept)
    assert np.shares_memory(seen[1], kept[1])
    assert seen[1].shape == (3, len(structures), H, W)


@pytest.mark.parametrize("layout", ["HWN", "NHW", "NCHW"])
@pytest.mark.parametrize("augment", [None, Augment.none(flip_rows=0.5)])
def test_images_with_neighbours_have_masks_with_channels(tmp_path, layout, augment):
    path, structures = tmp_path / "out.h5", with_bits(CARDIAC)
    stack = {"patient_id": [b"P"] * N, "series": [b"S"] * N, "series_instance_uid": [b"S"] * N}
    write_dataset(path, n=N, rows=H, columns=W, structures=structures, manifest=stack)
    options = {"batch_size": 3, "layout": layout, "augment": augment}
    options["neighbours"] = Neighbours(1, along="number")
    plain = Batches(path, **options)
    batches = Batches(path, mask_channels="uint8", **options)
    kept = None
    for _ in range(4):
        images, masks = plain.next_batch()
        same, found = batches.next_batch(out=kept)
        kept = same, found
        np.testing.assert_array_equal(same, images)
        words = masks.transpose(2, 0, 1) if layout == "HWN" else masks.reshape(3, H, W)
        expected = expected_of(words, structures, "uint8")
        expected = expected.transpose(2, 3, 1, 0) if layout == "HWN" else expected
        np.testing.assert_array_equal(found, expected)


def test_a_state_belongs_to_its_kind_of_masks(file):
    data, _, _ = file
    batches = Batches(data, batch_size=2, remainder="keep", mask_channels="bool")
    batches.next_batch()
    state = json.loads(json.dumps(batches.state_dict()))
    assert state["mask_channels"] == "bool"
    expected = batches.next_batch()[1]
    again = Batches(data, batch_size=2, remainder="keep", mask_channels="bool")
    again.load_state_dict(state)
    np.testing.assert_array_equal(again.next_batch()[1], expected)
    plain = Batches(data, batch_size=2, remainder="keep")
    with pytest.raises(LoaderError, match=r"mask_channels \(expected None, found 'bool'\)"):
        plain.load_state_dict(state)
    older = {key: value for key, value in plain.state_dict().items() if key != "mask_channels"}
    plain.load_state_dict(older)


def test_copies_hand_out_the_same(file):
    data, _, _ = file
    batches = Batches(data, batch_size=2, remainder="keep", mask_channels="uint8")
    again = pickle.loads(pickle.dumps(batches))
    np.testing.assert_array_equal(again.next_batch()[1], batches.next_batch()[1])


def test_an_unknown_type_is_refused(file):
    data, _, _ = file
    with pytest.raises(ValueError, match="mask_channels: expected"):
        Batches(data, batch_size=1, mask_channels="float64")
    with pytest.raises(ValueError, match="dtype: expected"):
        data.mask_channels(np.zeros((2, 2)), "int8")


def test_balance_by_label_takes_sets_of_bits(tmp_path):
    """Rows with the i-contour, the o-contour, and both: each set as often as the others."""
    path, structures = tmp_path / "out.h5", with_bits(CARDIAC)
    n_pixels = {1: [5] + [0] * 3 + [4] * 20, 2: [0] + [5] * 23}
    manifest = {f"n_pixels_{code}": values for code, values in n_pixels.items()}
    write_dataset(path, n=24, structures=structures, manifest=manifest)
    batches = Batches(path, batch_size=24, balance="label", seed=1)
    drawn = []
    for _ in range(60):
        batches.next_batch()
        drawn += batches.indices.tolist()
    shares = [
        np.mean([low <= row < high for row in drawn]) for low, high in ((0, 1), (1, 4), (4, 24))
    ]
    assert shares == pytest.approx([1 / 3] * 3, abs=0.05)


@given(st.data())
def test_channels_are_the_digits_of_the_words(data):
    n_bits = data.draw(st.sampled_from([8, 16, 32]))
    bits = data.draw(st.lists(st.integers(0, n_bits - 1), min_size=1, unique=True))
    words = data.draw(st.lists(st.integers(0, 2**n_bits - 1), min_size=6, max_size=6))
    structures = [Structure(str(b), k + 1, "", f"s{b}", bit=b) for k, b in enumerate(bits)]
    dtype = data.draw(st.sampled_from(DTYPES))
    mask = np.array(words, f"u{n_bits // 8}").reshape(2, 3)
    found = np.empty((len(bits), 2, 3), dtype)
    Unpacker(structures, dtype, mask.shape, mask.dtype).write(mask, found)
    digits = [f"{word:0{n_bits}b}"[::-1] for word in words]
    expected = [[int(one[bit]) for one in digits] for bit in sorted(bits)]
    assert found.astype(int).reshape(-1, 6).tolist() == expected
