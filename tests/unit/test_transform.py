"""Transforms of the user's own: what they get, what decides it, what they may return."""

import json
import pickle

import numpy as np
import pytest
from dataset_builder import write_dataset

import loader
from loader import Augment, PerBatch
from loader.transform import ManifestRows

N, ROWS, COLUMNS = 12, 6, 8
OPTIONS = {"batch_size": 4, "seed": 7, "layout": "NHW"}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("transformed") / "out.h5"
    write_dataset(path, n=N, rows=ROWS, columns=COLUMNS, split=[0] * 8 + [1] * 4)
    return path


def add_number(image, mask, manifest, generator):
    """Keep the row in the first pixel, and put a number of the generator into the second."""
    image[0, 1] = generator.integers(1000)
    return image, mask


def add_numbers(images, masks, manifest, generators):
    images[:, 0, 1] = [generator.integers(1000) for generator in generators]
    return images, masks


def numbers_of(path, epoch=0, **options):
    """Return row → the number that its transform has drawn in an epoch."""
    batches = loader.Batches(path, **OPTIONS | {"transform": add_number} | options)
    batches.set_epoch(epoch)
    found = {}
    for images, _ in batches:
        found |= zip(images[:, 0, 0].tolist(), images[:, 0, 1].tolist(), strict=True)
    return found


def test_a_transform_gets_the_image_the_mask_the_manifest_and_a_generator(path):
    dataset, seen = loader.open_dataset(path), []

    def note(image, mask, manifest, generator):
        seen.append((image.copy(), mask.copy(), dict(manifest)))
        assert isinstance(generator, np.random.Generator)
        return image, mask

    batches = loader.Batches(path, **OPTIONS, transform=note)
    images, masks = batches.next_batch()
    for i, (row, (image, mask, manifest)) in enumerate(zip(batches.indices, seen, strict=True)):
        np.testing.assert_array_equal(image, dataset.images[row])
        np.testing.assert_array_equal(mask, dataset.masks[row])
        assert manifest == {name: values[row] for name, values in dataset.manifest.items()}
        np.testing.assert_array_equal(images[i], image)
        np.testing.assert_array_equal(masks[i], mask)


def test_values_of_one_row_are_plain_and_text_is_str(path):
    manifest = ManifestRows(loader.open_dataset(path).manifest, 3)
    assert manifest["patient_id"] == "patient_id µ3"
    assert (type(manifest["slice"]), type(manifest["mean"])) == (int, float)
    assert len(manifest) == len(list(manifest)) == len(loader.open_dataset(path).manifest)
    assert "manifest of 3: patient_id" in repr(manifest)
    assert manifest.get("no_such") is None
    with pytest.raises(KeyError, match="manifest: no column 'no_such'; there are patient_id"):
        manifest["no_such"]


def test_a_transform_comes_after_normalisation_augmentation_and_patches(path):
    options = OPTIONS | {"normalize": "zscore", "augment": Augment.none(flip_rows=1.0)}
    options |= {"patches": loader.Patches((3, 4))}
    plain = loader.Batches(path, **options)
    doubled = loader.Batches(path, **options, transform=lambda image, mask, *_: (image * 2, mask))
    for (images, masks), (twice, same) in zip(plain, doubled, strict=True):
        assert images.shape == (4, 3, 4)
        np.testing.assert_array_equal(images * 2, twice)
        np.testing.assert_array_equal(masks, same)


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 3},
        {"batch_size": 12},
        {"prefetch": 3},
        {"shuffle": False},
        {"where": lambda manifest: manifest["slice"] >= 0},
        {"transform": PerBatch(add_numbers)},
        {"transform": PerBatch(add_numbers), "batch_size": 1},
    ],
)
def test_nothing_but_seed_epoch_and_row_decides_the_generator(path, options):
    assert numbers_of(path, epoch=3, **options) == numbers_of(path, epoch=3)


def test_ranks_together_draw_what_one_process_draws(path):
    ranks = [numbers_of(path, batch_size=2, rank=rank, world_size=2) for rank in range(2)]
    assert ranks[0] | ranks[1] == numbers_of(path)


@pytest.mark.parametrize("other", [{"seed": 8}, {"epoch": 1}])
def test_another_seed_or_epoch_draws_other_numbers(path, other):
    one, another = numbers_of(path), numbers_of(path, **other)
    assert sum(one[row] == another[row] for row in one) < 3
    assert len(set(one.values())) > N // 2


def test_the_first_numbers_of_a_fixed_seed(path):
    """Another release of the loader draws the same; NumPy keeps streams within a version of it."""
    from loader.transform import _generators

    rows = np.array([0, 5])
    words = [int(one.bit_generator.seed_seq.entropy) for one in _generators(7, 3, rows, rows * 0)]
    assert words == [15156353423931286542, 12318879734186409646]


def test_a_row_drawn_twice_has_two_generators(path):
    weights = np.array([1.0] + [0.0] * (N - 1))
    batches = loader.Batches(path, **OPTIONS, transform=add_number, weights=weights)
    images, _ = batches.next_batch()
    assert batches.indices.tolist() == [0, 0, 0, 0]
    assert len(np.unique(images[:, 0, 1])) == 4


def test_a_row_that_pads_is_the_same_sample_again(path):
    options = OPTIONS | {"batch_size": 24, "remainder": "pad", "transform": add_number}
    batches = loader.Batches(path, **options)
    images, _ = batches.next_batch()
    found = set(zip(batches.indices.tolist(), images[:, 0, 1].tolist(), strict=True))
    assert batches.is_padding.sum() == len(found) == N


# Shapes and types


def half(image, mask, manifest, generator):
    return image[..., ::2, ::2], mask[::2, ::2]


@pytest.mark.parametrize(
    ("layout", "shape"), [("NHW", (4, 3, 4)), ("NCHW", (4, 1, 3, 4)), ("HWN", (3, 4, 4))]
)
@pytest.mark.parametrize(
    "transform", [half, PerBatch(lambda i, m, *_: (i[:, ::2, ::2], m[:, ::2, ::2]))]
)
def test_both_shapes_may_change_in_the_same_way(path, layout, shape, transform):
    options = OPTIONS | {"layout": layout}
    whole, parts = (loader.Batches(path, **options, transform=t) for t in (None, transform))
    for (images, masks), (small, small_masks) in zip(whole, parts, strict=True):
        assert small.shape == small_masks.shape == shape
        taken = tuple(slice(None, None, 2 if axis in "HW" else 1) for axis in layout)
        np.testing.assert_array_equal(images[taken], small)
        np.testing.assert_array_equal(masks[taken], small_masks)


def test_a_transform_may_return_views_of_what_it_was_given(path):
    turned = loader.Batches(
        path, **OPTIONS, transform=lambda image, mask, *_: (image[::-1], mask[:, ::-1])
    )
    plain = loader.Batches(path, **OPTIONS)
    for (images, masks), (new, new_masks) in zip(plain, turned, strict=True):
        np.testing.assert_array_equal(images[:, ::-1], new)
        np.testing.assert_array_equal(masks[:, :, ::-1], new_masks)


def test_the_file_stays_as_it_is(path):
    def spoil(image, mask, manifest, generator):
        image[:], mask[:] = 0, 0
        return image, mask

    before = path.read_bytes()
    images, _ = loader.Batches(path, **OPTIONS, transform=spoil).next_batch()
    assert not images.any()
    assert path.read_bytes() == before


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("transform", [add_number, half])
def test_buffers_may_be_used_again(path, prefetch, transform):
    options = OPTIONS | {"transform": transform, "prefetch": prefetch}
    expected = [(images.copy(), masks.copy()) for images, masks in loader.Batches(path, **options)]
    with loader.Batches(path, **options) as batches:
        out = batches.next_batch()
        for images, masks in expected[1:]:
            found = batches.next_batch(out=out)
            assert np.shares_memory(found[0], out[0])
            np.testing.assert_array_equal(found[0], images)
            np.testing.assert_array_equal(found[1], masks)
        wrong = np.empty((4, 1, COLUMNS), out[0].dtype), np.empty((4, 1, COLUMNS), np.uint8)
        with pytest.raises(ValueError, match=r"out: expected \(4, \d, \d\), found \(4, 1, 8\)"):
            batches.next_batch(out=wrong)


def test_masks_with_channels_stay_in_the_callers_buffers(path):
    options = OPTIONS | {"layout": "NCHW", "mask_channels": "float32", "transform": add_number}
    batches = loader.Batches(path, **options)
    expected = [masks.copy() for _, masks in loader.Batches(path, **options)]
    out = batches.next_batch()
    for masks in expected[1:]:
        found = batches.next_batch(out=out)
        assert found[1].shape == (4, 2, ROWS, COLUMNS)
        assert np.shares_memory(found[1], out[1])
        np.testing.assert_array_equal(found[1], masks)


@pytest.mark.parametrize("dtype", ["?", "u1", "i8", "f4", "f8"])
def test_labels_of_any_type_that_are_whole_numbers_stay_exact(path, dtype):
    plain, other = (
        loader.Batches(path, **OPTIONS, transform=t)
        for t in (None, lambda image, mask, *_: (image, (mask > 0).astype(dtype)))
    )
    for (_, masks), (_, new) in zip(plain, other, strict=True):
        assert new.dtype == np.uint8
        np.testing.assert_array_equal(masks > 0, new)


@pytest.mark.parametrize("dtype", ["i4", "f4", "f8", "f2"])
def test_float32_images_take_values_of_any_type(path, dtype):
    batches = loader.Batches(
        path, **OPTIONS, dtype="float32", transform=lambda i, m, *_: ((i > 9).astype(dtype), m)
    )
    images, _ = batches.next_batch()
    assert images.dtype == np.float32
    np.testing.assert_array_equal(images, batches.dataset.images[batches.indices] > 9)


# What bad use gets


@pytest.mark.parametrize(
    ("transform", "why"),
    [
        (lambda *_: None, r"it returned nothing \(expected image and mask\)\. Return both"),
        (lambda image, *_: image, r"it returned ndarray \(expected image and mask\)"),
        (lambda image, mask, *_: {"image": image, "mask": mask}, "it returned dict"),
        (lambda image, mask, *_: (image, mask, 1), "it returned 3 values"),
        (lambda image, mask, *_: (image[::2], mask), r"changed one of the two shapes \(.*\(3, 8\)"),
        (lambda image, mask, *_: (image, mask[:, 1:]), r"changed one of the two shapes .*\(6, 7\)"),
        (lambda image, mask, *_: (image[None], mask), r"expected as many axes .*: 2 and 2\)"),
        (lambda image, mask, *_: (image * 0.5, mask), r"image of float64 \(expected int16, as"),
        (
            lambda image, mask, *_: (image + np.int64(70000), mask),
            r"expected int16, .*Give dtype=\"float32\"",
        ),
        (
            lambda image, mask, *_: (image, mask - 0.5),
            r"mask of float64 \(expected values that uint8 holds",
        ),
        (lambda image, mask, *_: (image, mask + np.int64(256)), r"mask of int64 .*nearest pixel"),
        (lambda image, mask, *_: (image.astype("M8[s]"), mask), r"image of datetime64"),
        (lambda *_: 1 // 0, r"it raised ZeroDivisionError: .*leave such rows out"),
        (lambda image: (image, image), r"it raised TypeError: .*positional argument"),
    ],
)
def test_what_a_transform_may_not_do_names_the_row(path, transform, why):
    batches = loader.Batches(path, **OPTIONS, shuffle=False, transform=transform)
    named = (
        r"Sample not transformed: .*out.h5, row 0 \(patient patient_id µ0, slice 0\): transform: "
    )
    for _ in range(2):  # such a batch is the next one again
        with pytest.raises(loader.LoaderError, match=named + ".*" + why):
            batches.next_batch()


def test_the_row_that_fails_is_the_one_named(path):
    def fail(image, mask, manifest, generator):
        if manifest["slice"] == 6:
            raise KeyError("no such lookup table")
        return image, mask

    with loader.Batches(path, **OPTIONS, shuffle=False, transform=fail, prefetch=2) as batches:
        batches.next_batch()
        with pytest.raises(loader.LoaderError, match=r"row 6 \(patient patient_id µ6, slice 6\)"):
            batches.next_batch()


def test_samples_of_a_batch_have_one_shape(path):
    def crop(image, mask, manifest, generator):
        side = 3 if manifest["slice"] == 2 else 4
        return image[:side], mask[:side]

    batches = loader.Batches(path, **OPTIONS, shuffle=False, transform=crop)
    why = r"row 2 .*returned an image of \(3, 8\), and \(4, 8\) for the first sample"
    with pytest.raises(loader.LoaderError, match=why):
        batches.next_batch()


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda i, m, *_: (i[:2], m), "it returned 2 images and 4 masks"),
        (lambda i, m, *_: (i[:2], m[:2]), "it returned 2 images and 2 masks"),
        (lambda i, m, *_: (i, m[:, 1:]), "changed one of the two shapes"),
        (lambda *_: (1, 2), r"an image of \(\) and a mask of \(\)"),
        (lambda *_: None, "it returned nothing"),
        (lambda *_: {}["x"], "it raised KeyError"),
    ],
)
def test_what_a_transform_of_batches_may_not_do_names_rows(path, function, why):
    batches = loader.Batches(path, **OPTIONS, shuffle=False, transform=PerBatch(function))
    with pytest.raises(loader.LoaderError, match=r"row 0 .*row 2 \(.*\) and 1 more: .*" + why):
        batches.next_batch()


def test_a_transform_of_batches_gets_columns(path):
    seen = []

    def note(images, masks, manifest, generators):
        seen.append((manifest["patient_id"].tolist(), manifest["mean"], len(generators)))
        return images, masks

    batches = loader.Batches(path, **OPTIONS, transform=PerBatch(note))
    batches.next_batch()
    [(patients, means, n_generators)] = seen
    assert patients == [f"patient_id µ{row}" for row in batches.indices]
    np.testing.assert_array_equal(means, batches.dataset.manifest["mean"][batches.indices])
    assert n_generators == 4


@pytest.mark.parametrize("wrong", [3, "flip", object()])
def test_what_is_no_function_is_refused(path, wrong):
    with pytest.raises(TypeError, match=r"transform: expected a function, loader\.PerBatch or"):
        loader.Batches(path, **OPTIONS, transform=wrong)
    with pytest.raises(TypeError, match="PerBatch: expected a function"):
        PerBatch(wrong)


# States and copies


def test_a_state_goes_on_with_the_same_generators(path):
    batches = loader.Batches(path, **OPTIONS, transform=add_number)
    batches.next_batch()
    state = json.loads(json.dumps(batches.state_dict()))
    expected = batches.next_batch()
    resumed = loader.Batches(path, **OPTIONS, transform=PerBatch(add_numbers))
    resumed.load_state_dict(state)  # another function: a state knows only that there is one
    for found in (resumed, pickle.loads(pickle.dumps(resumed))):
        for mine, theirs in zip(found.next_batch(), expected, strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_a_state_without_a_transform_is_refused_and_the_reverse(path):
    plain, other = (loader.Batches(path, **OPTIONS, transform=t) for t in (None, add_number))
    with pytest.raises(loader.LoaderError, match=r"transform \(expected True, found False\)"):
        other.load_state_dict(plain.state_dict())
    with pytest.raises(loader.LoaderError, match=r"transform \(expected False, found True\)"):
        plain.load_state_dict(other.state_dict())
    old = plain.state_dict()
    del old["transform"]  # of a release before there were transforms
    plain.load_state_dict(old)
