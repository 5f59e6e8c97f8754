"""Augmentation in `Batches`: what decides it, what a state says of it, what is refused."""

import json
import pickle
import warnings

import numpy as np
import pytest
from dataset_builder import write_dataset

import loader
from loader import Augment
from loader.augment import draw_parameters
from loader.augment.arrays import augment_batch

pytest.importorskip("cv2")

N = 12
AUGMENT = Augment.cardiac_mr()
OPTIONS = {"batch_size": 4, "seed": 7, "layout": "NHW", "normalize": "zscore", "augment": AUGMENT}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("augmented") / "out.h5"
    write_dataset(path, n=N, rows=24, columns=24, split=[0] * 8 + [1] * 2 + [2] * 2)
    return path


def samples_of(path, epoch=0, **options):
    """Return row → image and mask of an epoch."""
    batches = loader.Batches(path, **OPTIONS | options)
    batches.set_epoch(epoch)
    found = {}
    axis = batches.feed.form.layout.index("N")
    for arrays in batches:
        images, masks = (np.moveaxis(array, axis, 0) for array in arrays)
        for row, image, mask in zip(batches.indices.tolist(), images, masks, strict=True):
            found[row] = (image.copy(), mask.copy())
    return found


def require_equal(one, another):
    assert one.keys() == another.keys()
    for row, arrays in one.items():
        for mine, theirs in zip(arrays, another[row], strict=True):
            np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("normalize", [None, "minmax", "zscore", "percentile", "dataset"])
@pytest.mark.parametrize("image_dtype", ["<i2", "<i4", "<f4"])
def test_images_are_normalised_then_augmented(tmp_path, normalize, image_dtype):
    path = tmp_path / "out.h5"
    write_dataset(path, n=N, rows=24, columns=24, image_dtype=image_dtype)
    plain = loader.Batches(
        path, **OPTIONS | {"augment": None, "normalize": normalize}, dtype="float32"
    )
    augmented = loader.Batches(path, **OPTIONS | {"normalize": normalize})
    for (images, masks), (new_images, new_masks) in zip(plain, augmented, strict=True):
        parameters = draw_parameters(AUGMENT, (24, 24), seed=7, epoch=0, rows=plain.indices)
        expected = augment_batch(images, masks, parameters)
        assert new_images.dtype == np.float32
        np.testing.assert_array_equal(new_images, expected[0])
        np.testing.assert_array_equal(new_masks, expected[1])


def test_augmentation_alone_makes_images_float32(path):
    batches = loader.Batches(path, batch_size=2, augment=Augment.none())
    images, masks = batches.next_batch()
    assert (images.dtype, masks.dtype) == (np.float32, np.uint8)
    np.testing.assert_array_equal(
        images, batches.dataset.images[batches.indices].transpose(1, 2, 0).astype(np.float32)
    )


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 3},
        {"batch_size": 12},
        {"prefetch": 3},
        {"layout": "HWN"},
        {"shuffle": False},
        {"where": lambda manifest: manifest["mean"] == manifest["mean"]},
    ],
)
def test_nothing_but_seed_epoch_and_row_decides(path, options):
    require_equal(samples_of(path, epoch=3, **options), samples_of(path, epoch=3))


def test_ranks_together_have_the_samples_of_one_process(path):
    ranks = [samples_of(path, batch_size=2, rank=rank, world_size=2) for rank in range(2)]
    require_equal(ranks[0] | ranks[1], samples_of(path))


@pytest.mark.parametrize("other", [{"seed": 8}, {"epoch": 1}])
def test_another_seed_or_epoch_augments_in_another_way(path, other):
    one, another = samples_of(path), samples_of(path, **other)
    assert any((one[row][0] != another[row][0]).any() for row in one)


def test_a_row_drawn_twice_is_augmented_in_two_ways(path):
    weights = np.array([1.0] + [0.0] * (N - 1))
    batches = loader.Batches(path, **OPTIONS, weights=weights)
    images, _ = batches.next_batch()
    assert batches.indices.tolist() == [0, 0, 0, 0]
    assert len(np.unique(images.reshape(4, -1), axis=0)) == 4
    again = loader.Batches(path, **OPTIONS | {"batch_size": 2}, weights=weights)
    again.next_batch()
    np.testing.assert_array_equal(again.next_batch()[0], images[2:])


def test_a_row_that_pads_is_the_same_sample_again(path):
    batches = loader.Batches(path, **OPTIONS | {"batch_size": 24}, remainder="pad")
    images, masks = batches.next_batch()
    first = {row: i for i, row in enumerate(batches.indices[:N].tolist())}
    assert batches.is_padding.sum() == N
    for i in np.flatnonzero(batches.is_padding):
        np.testing.assert_array_equal(images[i], images[first[batches.indices[i]]])
        np.testing.assert_array_equal(masks[i], masks[first[batches.indices[i]]])


def test_buffers_may_be_used_again(path):
    expected = [(images.copy(), masks.copy()) for images, masks in loader.Batches(path, **OPTIONS)]
    batches = loader.Batches(path, **OPTIONS)
    out = batches.next_batch()
    for images, masks in expected[1:]:
        found = batches.next_batch(out=out)
        np.testing.assert_array_equal(found[0], images)
        np.testing.assert_array_equal(found[1], masks)


def test_a_state_goes_on_with_the_same_augmentation(path):
    batches = loader.Batches(path, **OPTIONS)
    batches.next_batch()
    state = json.loads(json.dumps(batches.state_dict()))
    expected = batches.next_batch()
    resumed = loader.Batches(path, **OPTIONS | {"augment": Augment.from_json(state["augment"])})
    resumed.load_state_dict(state)
    for copy in (resumed, pickle.loads(pickle.dumps(resumed))):
        for mine, theirs in zip(copy.next_batch(), expected, strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_a_state_of_another_augmentation_is_refused(path):
    state = loader.Batches(path, **OPTIONS).state_dict()
    other = loader.Batches(path, **OPTIONS | {"augment": Augment.cardiac_mr(rotate=(1, -5, 5))})
    expected = (
        r"differs in augment's rotate \(expected \(1.0, -5.0, 5.0\), found \(0.5, -45.0, 45.0\)\)"
    )
    with pytest.raises(loader.LoaderError, match=expected):
        other.load_state_dict(state)
    plain = loader.Batches(path, **OPTIONS | {"augment": None})
    with pytest.raises(loader.LoaderError, match=r"augment \(expected None, found '{"):
        plain.load_state_dict(state)
    with pytest.raises(loader.LoaderError, match=r"augment \(expected one, found None\)"):
        other.load_state_dict(plain.state_dict() | {"dtype": "float32"})
    with pytest.raises(loader.LoaderError, match="Augmentation not read"):
        other.load_state_dict(state | {"augment": "{}"})


def test_a_state_from_before_augmentation_still_loads(path):
    plain = loader.Batches(path, **OPTIONS | {"augment": None})
    plain.next_batch()
    state = plain.state_dict()
    del state["augment"]
    plain.load_state_dict(state)
    with pytest.raises(loader.LoaderError, match=r"augment \(expected one, found None\)"):
        loader.Batches(path, **OPTIONS).load_state_dict(state)


@pytest.mark.parametrize("role", ["validation", "test"])
def test_rows_that_judge_a_model_are_augmented_with_a_warning(path, role):
    with pytest.warns(UserWarning, match=f"Rows for {role} are augmented") as warned:
        loader.Batches(path, **OPTIONS | {"batch_size": 2}, split=role)
    assert len(warned) == 1
    assert warned[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loader.Batches(path, **OPTIONS | {"batch_size": 2}, split="train")
        loader.Batches(path, batch_size=2, split=role)


def test_a_fold_that_judges_a_model_warns_too(tmp_path):
    write_dataset(tmp_path / "out.h5", n=6, rows=24, columns=24, fold=[0, 0, 1, 1, 2, 2])
    options = OPTIONS | {"batch_size": 2, "fold": 1}
    with pytest.warns(UserWarning, match="Rows for validation are augmented"):
        loader.Batches(tmp_path / "out.h5", **options, fold_role="validation")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"augment": "ct"}, TypeError, "augment: expected a loader.Augment or None, found 'ct'"),
        ({"augment": Augment}, TypeError, "augment: expected a loader.Augment or None"),
        ({"dtype": "stored", "normalize": None}, ValueError, "augmented images are float32"),
    ],
)
def test_arguments_that_can_never_be_right(path, options, error, message):
    with pytest.raises(error, match=message):
        loader.Batches(path, **OPTIONS | options)
