import copy
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
from dataset_builder import wait_until_prepared, write_dataset

import loader

SPLIT = [0, 1, 0, 2, 0, 1, 0, 0, 2, 0]
FOLD = [0, 1, 2, -1, 0, 1, 2, 0, -1, 1]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("batches") / "out.h5"
    write_dataset(path, n=10, split=SPLIT, fold=FOLD)
    return path


@pytest.fixture(scope="module")
def plain_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("plain") / "out.h5"
    write_dataset(path, n=10)
    return path


def rows_of_epoch(batches):
    return [batches.indices.tolist() for _ in batches]


def set_of_epoch(batches):
    return frozenset(row for rows in rows_of_epoch(batches) for row in rows)


def rows_of_next(batches):
    batches.next_batch()
    return batches.indices.tolist()


def rows_in(images):
    """Return the rows of the file that are in an HWN batch, as its first pixels tell."""
    return images[0, 0].tolist()


# What a batch is


def test_batch_holds_the_rows_that_indices_names(path):
    data = loader.open_dataset(path)
    batches = loader.Batches(data, batch_size=5, seed=7)
    for images, masks in batches:
        np.testing.assert_array_equal(images, data.images[batches.indices].transpose(1, 2, 0))
        np.testing.assert_array_equal(masks, data.masks[batches.indices].transpose(1, 2, 0))
        assert not batches.is_padding.any()


@pytest.mark.parametrize(
    ("layout", "shape"), [("HWN", (4, 5, 2)), ("NHW", (2, 4, 5)), ("NCHW", (2, 1, 4, 5))]
)
def test_layouts_are_views_of_the_same_samples(path, layout, shape):
    images, masks = loader.Batches(path, batch_size=2, seed=7, layout=layout).next_batch()
    expected, _ = loader.Batches(path, batch_size=2, seed=7, layout="NHW").next_batch()
    assert images.shape == masks.shape == shape
    assert (images.dtype, masks.dtype) == (np.int16, np.uint8)
    samples = np.moveaxis(images, layout.index("N"), 0)
    assert samples.flags.c_contiguous
    np.testing.assert_array_equal(samples.reshape(2, 4, 5), expected)


@pytest.mark.parametrize("image_dtype", ["<i2", "<u2", "<i4", "<f4"])
def test_images_keep_their_type(tmp_path, image_dtype):
    write_dataset(tmp_path / "out.h5", n=2, image_dtype=image_dtype)
    images, _ = loader.Batches(tmp_path / "out.h5", batch_size=2).next_batch()
    assert images.dtype == np.dtype(image_dtype)


def test_batches_are_writable_and_stay_as_they_are(path):
    batches = loader.Batches(path, batch_size=5, shuffle=False)
    images, masks = batches.next_batch()
    kept = images.copy()
    batches.next_batch()
    np.testing.assert_array_equal(images, kept)
    images[...] = masks[...] = batches.indices[...] = 0
    np.testing.assert_array_equal(next(iter(batches))[0], kept)


def test_samples_that_lie_unaligned_in_the_file(tmp_path):
    written = write_dataset(tmp_path / "out.h5", n=3, rows=1, columns=1, alignment=1)
    data = loader.open_dataset(tmp_path / "out.h5")
    assert not data.images.flags.aligned  # the masks before them have 3 bytes
    images, _ = loader.Batches(data, batch_size=3, shuffle=False, layout="NHW").next_batch()
    np.testing.assert_array_equal(images, written["images"])


def test_more_rows_than_are_drawn_at_a_time(tmp_path):
    write_dataset(tmp_path / "out.h5", n=9001, rows=1, columns=1, image_dtype="<i4")
    for options in ({"remainder": "keep"}, {"remainder": "pad"}):
        batches = loader.Batches(tmp_path / "out.h5", batch_size=7, seed=7, **options)
        drawn = np.concatenate([batches.indices[~batches.is_padding] for _ in batches])
        np.testing.assert_array_equal(np.sort(drawn), np.arange(9001))
    assert len(loader.Batches(tmp_path / "out.h5", batch_size=9001)) == 1


# The caller's buffers


@pytest.mark.parametrize("layout", ["HWN", "NHW", "NCHW"])
@pytest.mark.parametrize("values", [{}, {"normalize": "minmax"}, {"dtype": "float32"}])
def test_out_is_filled_again(path, layout, values):
    options = {"batch_size": 4, "seed": 7, "remainder": "keep", "layout": layout} | values
    batches, fresh = loader.Batches(path, **options), loader.Batches(path, **options)
    out = batches.next_batch()
    fresh.next_batch()
    for _ in range(4):
        for found, expected, buffer in zip(
            batches.next_batch(out=out), fresh.next_batch(), out, strict=True
        ):
            assert np.shares_memory(found, buffer)
            assert found.strides == expected.strides
            np.testing.assert_array_equal(found, expected)


def test_out_may_be_arrays_of_the_caller(path):
    batches = loader.Batches(path, batch_size=2, seed=7)
    out = np.empty((3, 4, 5), np.int16).transpose(1, 2, 0), np.empty((2, 4, 5), np.uint8).T
    with pytest.raises(ValueError, match=r"out: expected room for 2 samples of \(4, 5\)"):
        batches.next_batch(out=out)
    images, masks = batches.next_batch(out=(out[0], np.empty((3, 4, 5), "u1").transpose(1, 2, 0)))
    assert images.shape == masks.shape == (4, 5, 2)
    assert rows_in(images) == batches.indices.tolist() == [5, 3]


def test_out_that_overlaps_itself(path):
    batches = loader.Batches(path, batch_size=2, layout="NHW")
    images = np.zeros((2, *batches.dataset.images.shape[1:]), np.int16)
    masks = images.view(np.uint8).reshape(-1)[: images.size].reshape(images.shape)
    with pytest.raises(ValueError, match="out: images and masks overlap in memory"):
        batches.next_batch(out=(images, masks))


@pytest.mark.parametrize(
    ("change", "error", "why"),
    [
        (lambda images, _: images, TypeError, "expected a pair of arrays"),
        (lambda images, _: (images, None), TypeError, "expected uint8 arrays"),
        (lambda images, masks: (masks, images), TypeError, "expected int16 arrays .* found uint8"),
        (lambda images, masks: (images[..., :1], masks), ValueError, "room for 2 samples"),
        (lambda images, masks: (images.copy("C"), masks), ValueError, "one after the other"),
        (lambda images, masks: (images[:, :, 0], masks), TypeError, "with the axes HWN"),
    ],
)
def test_out_that_cannot_hold_a_batch_loses_none(path, change, error, why):
    batches = loader.Batches(path, batch_size=2, seed=7)
    out = batches.next_batch()
    with pytest.raises(error, match=f"out: .*{why}"):
        batches.next_batch(out=change(*out))
    data = batches.dataset
    read_only = data.images[:2].transpose(1, 2, 0), data.masks[:2].transpose(1, 2, 0)
    with pytest.raises(ValueError, match="out: expected writable arrays"):
        batches.next_batch(out=read_only)
    assert batches.state_dict()["batch"] == 1


# Memory


MEMORY_OF_EPOCHS = """
import gc, sys
from pathlib import Path
import loader
def rss_anon():
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1])
batches = loader.Batches(sys.argv[1], batch_size=32, prefetch=int(sys.argv[2]), normalize="zscore")
after = []
for _ in range(50):
    for _ in batches:
        pass
    after.append(rss_anon())
print(max(after[25:]) - max(after[5:25]))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is not told")
@pytest.mark.parametrize("prefetch", ["0", "3"])
def test_memory_does_not_grow_over_epochs(tmp_path, prefetch):
    write_dataset(tmp_path / "out.h5", n=256, rows=64, columns=64)
    command = [sys.executable, "-c", MEMORY_OF_EPOCHS, tmp_path / "out.h5", prefetch]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    assert int(run.stdout) < 2000  # kilobytes; a batch has 640


@pytest.mark.parametrize("prefetch", [0, 2])
def test_file_cut_short_under_an_open_loader_is_an_error(tmp_path, prefetch):
    write_dataset(tmp_path / "out.h5", n=10)
    with loader.Batches(tmp_path / "out.h5", batch_size=2, prefetch=prefetch) as batches:
        batches.next_batch()
        wait_until_prepared(batches)
        os.truncate(tmp_path / "out.h5", 65536)
        with pytest.raises(loader.LoaderError, match=r"cut short while it was open .* found 65536"):
            list(batches)
        for options in ({"where": lambda manifest: manifest["slice"] > 3}, {"balance": "patient"}):
            with pytest.raises(loader.LoaderError, match="cut short while it was open"):
                loader.Batches(batches.dataset, batch_size=2, **options)


# Epochs


def test_first_order_of_a_fixed_seed(path):
    batches = loader.Batches(path, batch_size=5, seed=7)
    assert rows_of_epoch(batches) == [[5, 3, 0, 4, 9], [8, 2, 1, 6, 7]]
    assert rows_of_epoch(batches) == [[6, 2, 0, 7, 9], [4, 1, 5, 3, 8]]


def test_epochs_completed_rises_with_the_last_batch(path):
    batches = loader.Batches(path, batch_size=4, seed=7, remainder="keep")
    completed = []
    for _ in range(7):
        batches.next_batch()
        completed.append(batches.epochs_completed)
    assert completed == [0, 0, 1, 1, 1, 2, 2]


def test_iterating_gives_what_is_left_of_the_epoch(path):
    batches = loader.Batches(path, batch_size=5, seed=7)
    assert len(batches) == 2
    batches.next_batch()
    assert rows_of_epoch(batches) == [[8, 2, 1, 6, 7]]
    assert len(rows_of_epoch(batches)) == 2
    assert batches.epochs_completed == 2


def test_file_order(path):
    batches = loader.Batches(path, batch_size=4, shuffle=False, remainder="keep")
    for _ in range(2):
        assert rows_of_epoch(batches) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_nothing_is_handed_out_at_first(path):
    batches = loader.Batches(path, batch_size=5)
    assert batches.indices.tolist() == batches.is_padding.tolist() == []
    assert batches.epochs_completed == 0


def test_ranks_together_draw_what_one_process_draws(path):
    whole = loader.Batches(path, batch_size=4, seed=7, remainder="pad")
    ranks = [
        loader.Batches(path, batch_size=2, seed=7, remainder="pad", rank=rank, world_size=2)
        for rank in (0, 1)
    ]
    for _ in range(7):
        whole.next_batch()
        for rank in ranks:
            rank.next_batch()
        together = np.concatenate([rank.indices for rank in ranks])
        padding = np.concatenate([rank.is_padding for rank in ranks])
        np.testing.assert_array_equal(together, whole.indices)
        np.testing.assert_array_equal(padding, whole.is_padding)


# What happens to the rows that fill no batch


def test_sample_warns_once_and_leaves_out_other_rows_each_epoch(path):
    with pytest.warns(UserWarning, match="^2 of 10 rows fill no whole batch") as caught:
        batches = loader.Batches(path, batch_size=4, seed=7)
    left_out = [frozenset(range(10)) - set_of_epoch(batches) for _ in range(50)]
    assert len(caught) == 1
    assert 'remainder="keep"' in str(caught[0].message)
    assert caught[0].filename == __file__
    assert {len(rows) for rows in left_out} == {2}
    assert len(set(left_out)) > 10
    assert frozenset.union(*left_out) == set(range(10))


def test_sample_does_not_warn_when_no_row_is_left_out(path):
    loader.Batches(path, batch_size=5)  # a warning would be an error here


def test_keep_hands_out_a_short_last_batch(path):
    batches = loader.Batches(path, batch_size=4, seed=7, remainder="keep")
    assert len(batches) == 3
    assert [images.shape for images, _ in batches] == [(4, 5, 4), (4, 5, 4), (4, 5, 2)]


@pytest.mark.parametrize(
    ("shuffle", "which"), [(True, "other ones at random in each epoch"), (False, "the same in ev")]
)
def test_keep_warns_once_of_rows_that_ranks_cannot_share(path, shuffle, which):
    options = {"batch_size": 2, "seed": 7, "remainder": "keep", "shuffle": shuffle}
    with pytest.warns(UserWarning, match=f"^1 of 10 rows are left out, {which}") as caught:
        ranks = [loader.Batches(path, rank=rank, world_size=3, **options) for rank in range(3)]
    assert len(caught) == len(ranks)
    assert "3 ranks" in str(caught[0].message)
    assert 'remainder="pad"' in str(caught[0].message)
    assert caught[0].filename == __file__
    left_out = [
        frozenset(range(10)).difference(*(set_of_epoch(one) for one in ranks)) for _ in range(50)
    ]
    assert {len(rows) for rows in left_out} == {1}
    assert frozenset.union(*left_out) == (set(range(10)) if shuffle else {9})


@pytest.mark.parametrize(("world_size", "options"), [(2, {}), (1, {}), (3, {"balance": "patient"})])
def test_keep_does_not_warn_where_no_row_is_left_out(path, world_size, options):
    # Draws with replacement leave rows out at random anyway.
    loader.Batches(path, batch_size=4, remainder="keep", world_size=world_size, **options)


def test_pad_marks_the_rows_that_it_repeats(path):
    batches = loader.Batches(path, batch_size=4, seed=7, remainder="pad")
    rows = rows_of_epoch(batches)
    assert rows == [[5, 3, 0, 4], [9, 8, 2, 1], [6, 7, 5, 3]]
    assert batches.is_padding.tolist() == [False, False, True, True]


def test_error_refuses_rows_left_over(path):
    with pytest.raises(
        loader.LoaderError, match=r"multiple of 4, batch_size 2 x world_size 2; fou"
    ):
        loader.Batches(path, batch_size=2, world_size=2, remainder="error")
    assert len(loader.Batches(path, batch_size=5, world_size=2, remainder="error")) == 1


@pytest.mark.parametrize(
    ("batch_size", "world_size", "remainder", "needed"),
    [(11, 1, "sample", 11), (4, 3, "sample", 12), (1, 11, "keep", 11)],
)
def test_too_few_rows_for_one_batch(path, batch_size, world_size, remainder, needed):
    with pytest.raises(loader.LoaderError, match=f"expected {needed} or more .*, found 10"):
        loader.Batches(path, batch_size=batch_size, world_size=world_size, remainder=remainder)


def test_dataset_without_rows(tmp_path):
    write_dataset(tmp_path / "out.h5", n=0)
    for remainder in ("sample", "keep", "pad", "error"):
        with pytest.raises(loader.LoaderError, match="the file has no rows"):
            loader.Batches(tmp_path / "out.h5", batch_size=1, remainder=remainder)


# Selection


@pytest.mark.parametrize(
    ("selection", "rows"),
    [
        ({}, range(10)),
        ({"split": "train"}, [0, 2, 4, 6, 7, 9]),
        ({"split": "validation"}, [1, 5]),
        ({"split": "test"}, [3, 8]),
        ({"fold": 1}, [0, 2, 4, 6, 7]),
        ({"fold": 1, "fold_role": "validation"}, [1, 5, 9]),
        ({"fold": 1, "split": "train"}, [0, 2, 4, 6, 7]),
        ({"fold": 1, "fold_role": "validation", "split": "train"}, [9]),
    ],
)
def test_selection(path, selection, rows):
    batches = loader.Batches(path, batch_size=len(rows), seed=7, **selection)
    assert sorted(rows_of_next(batches)) == list(rows)
    in_order = loader.Batches(path, batch_size=len(rows), shuffle=False, **selection)
    assert rows_of_next(in_order) == list(rows)
    assert in_order.indices.dtype == np.int64


def test_selection_that_the_file_does_not_have(path, plain_path):
    with pytest.raises(loader.LoaderError, match=r"no splits. Build it again with --split"):
        loader.Batches(plain_path, batch_size=1, split="train")
    with pytest.raises(loader.LoaderError, match=r"no folds. Build it again with --folds"):
        loader.Batches(plain_path, batch_size=1, fold=0)
    for role in ("train", "validation"):
        with pytest.raises(loader.LoaderError, match=r"no such fold \(expected 0 to 2, found 3\)"):
            loader.Batches(path, batch_size=1, fold=3, fold_role=role)
    with pytest.raises(
        loader.LoaderError,
        match=r"no row has split='test' and fold=0, fold_role='train' \(found rows: train 6, "
        "validation 2, test 2; found 3 folds",
    ):
        loader.Batches(path, batch_size=1, split="test", fold=0)
    with pytest.raises(ValueError, match="fold_role: expected a fold with it, found none"):
        loader.Batches(path, batch_size=1, split="validation", fold_role="validation")


# Arguments


@pytest.mark.parametrize("name", ["batch_size", "fold", "seed", "rank", "world_size"])
@pytest.mark.parametrize("value", [1.0, "1", True, np.True_])
def test_argument_that_is_not_an_integer(path, name, value):
    with pytest.raises(TypeError, match=f"{name}: expected an integer, found"):
        loader.Batches(path, **({"batch_size": 1} | {name: value}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 0),
        ("fold", -1),
        ("seed", -1),
        ("seed", 2**64),
        ("rank", 1),
        ("world_size", 0),
        ("batch_size", 2**31),
        ("world_size", 2**31),
    ],
)
def test_argument_out_of_range(path, name, value):
    with pytest.raises(ValueError, match=f"{name}: expected an integer .*, found {value}"):
        loader.Batches(path, **({"batch_size": 1} | {name: value}))


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("split", "train, validation, test"),
        ("fold_role", "train, validation"),
        ("remainder", "sample, keep, pad, error"),
        ("layout", "HWN, NHW, NCHW"),
    ],
)
def test_argument_that_is_not_a_choice(path, name, choices):
    with pytest.raises(ValueError, match=f"{name}: expected one of {choices}, found 'drop'"):
        loader.Batches(path, batch_size=1, **{name: "drop"})


@pytest.mark.parametrize("name", ["shuffle", "allow_shared_patients"])
def test_switch_that_is_not_a_bool(path, name):
    with pytest.raises(TypeError, match=f"{name}: expected True or False, found 1"):
        loader.Batches(path, batch_size=1, **{name: 1})


def test_strings_of_other_classes_are_strings(path):
    batches = loader.Batches(path, batch_size=1, split=np.str_("train"), remainder=np.str_("keep"))
    batches.load_state_dict(json.loads(json.dumps(batches.state_dict())))


def test_all_rows_in_one_batch(path):
    batches = loader.Batches(path, batch_size=2**31 - 1, remainder="keep")
    images, _ = batches.next_batch()
    assert images.shape[-1] == len(batches.dataset)
    assert batches.epochs_completed == 1


def test_integers_of_numpy_are_integers(path):
    batches = loader.Batches(path, batch_size=np.int64(5), seed=np.uint64(7))
    assert json.loads(json.dumps(batches.state_dict())) == batches.state_dict()
    assert rows_of_next(batches) == [5, 3, 0, 4, 9]


def test_missing_file(tmp_path):
    with pytest.raises(loader.LoaderError, match="no such file"):
        loader.Batches(tmp_path / "none.h5", batch_size=1)


# Saved positions


@pytest.mark.filterwarnings("ignore:1 of 5 rows are left out")
def test_state_names_what_it_belongs_to(path):
    batches = loader.Batches(
        path, batch_size=1, split="train", fold=1, seed=7, remainder="keep", world_size=2
    )
    batches.next_batch()
    assert batches.state_dict() == {
        "dataset_id": "0123456789abcdef",
        "seed": 7,
        "batch_size": 1,
        "split": "train",
        "fold": 1,
        "fold_role": "train",
        "selection": "db61e6c22676ca9c25b58135783c171c",
        "weights": None,
        "remainder": "keep",
        "shuffle": True,
        "dtype": "int16",
        "normalize": None,
        "augment": None,
        "patches": None,
        "neighbours": None,
        "transform": False,
        "mask_channels": None,
        "world_size": 2,
        "epoch": 0,
        "batch": 1,
    }


@pytest.mark.parametrize("n_drawn", range(8))
def test_restored_state_goes_on_exactly(path, n_drawn):
    options = {"batch_size": 4, "seed": 7, "remainder": "pad", "rank": 0, "world_size": 1}
    batches = loader.Batches(path, **options)
    for _ in range(n_drawn):
        batches.next_batch()
    state = json.loads(json.dumps(batches.state_dict()))
    restored = loader.Batches(path, **options)
    restored.next_batch()
    restored.load_state_dict(state)
    assert restored.epochs_completed == batches.epochs_completed == n_drawn // 3
    for _ in range(5):
        for found, expected in zip(restored.next_batch(), batches.next_batch(), strict=True):
            np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(restored.indices, batches.indices)
        np.testing.assert_array_equal(restored.is_padding, batches.is_padding)
        assert restored.state_dict() == batches.state_dict()


def test_state_of_one_rank_is_good_for_all(path):
    ranks = [loader.Batches(path, batch_size=1, rank=r, world_size=2, seed=7) for r in (0, 1)]
    ranks[0].next_batch()
    ranks[1].load_state_dict(ranks[0].state_dict())
    assert ranks[0].state_dict() == ranks[1].state_dict()


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 8},
        {"split": "validation"},
        {"fold": 0},
        {"fold_role": "validation"},
        {"remainder": "pad"},
        {"shuffle": False},
        {"dataset_id": "another"},
        {"selection": None},
        {"weights": "0123"},
        {"normalize": "zscore"},
        {"dtype": "float32", "normalize": "zscore"},
        {"seed": 8, "split": None},
        {"seed": "7"},
        {"shuffle": 1},
    ],
)
def test_state_of_something_else_is_refused_by_name(path, other):
    batches = loader.Batches(path, batch_size=2, split="train", seed=7)
    state = batches.state_dict()
    with pytest.raises(loader.LoaderError, match="State not loaded") as caught:
        batches.load_state_dict(state | other)
    for name in state:
        assert (f"{name} (expected {state[name]!r}, found" in str(caught.value)) == (name in other)
    assert batches.state_dict() == state


@pytest.mark.parametrize(
    ("name", "other", "rows"), [("world_size", 2, 5), ("batch_size", 10, 10), ("batch_size", 1, 1)]
)
def test_sizes_may_change_between_epochs_only(path, name, other, rows):
    one = loader.Batches(path, batch_size=5, seed=7)
    two = loader.Batches(path, **{"batch_size": 5, "seed": 7, name: other})
    one.next_batch()
    found = {"world_size": 1, "batch_size": 5}[name]
    why = rf"{name} \(expected {other}, found {found}\).*At the start of an epoch, a state may"
    with pytest.raises(loader.LoaderError, match=why):
        two.load_state_dict(one.state_dict())
    one.next_batch()
    two.load_state_dict(one.state_dict())
    assert two.epochs_completed == 1
    expected = [row for batch in rows_of_epoch(one) for row in batch]
    assert rows_of_next(two) == expected[:rows]


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.array, lambda n: np.array(n, ">i4")])
def test_numbers_of_a_state_may_be_numpys(path, kind):
    batches = loader.Batches(path, batch_size=4, split="train", fold=1, seed=7, remainder="pad")
    batches.next_batch()
    state = batches.state_dict()
    saved = {
        name: kind(value) if type(value) is int else np.str_(value) if value else value
        for name, value in state.items()
    } | {"shuffle": np.True_}
    assert batches.epochs_completed == 0
    batches.set_epoch(3)
    batches.load_state_dict(saved)
    assert batches.state_dict() == state
    assert {type(value) for value in batches.state_dict().values()} == {int, str, bool, type(None)}


@pytest.mark.parametrize(
    "value", [np.float64(1), np.array(1.0), np.array([1]), np.True_, np.array(True), np.int64(-1)]
)
@pytest.mark.parametrize("name", ["epoch", "batch"])
def test_what_numpy_has_that_is_no_count_is_refused(path, name, value):
    batches = loader.Batches(path, batch_size=5, seed=7)
    with pytest.raises(loader.LoaderError, match="epoch and batch are counts"):
        batches.load_state_dict(batches.state_dict() | {name: value})


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: None,
        lambda _: [],
        lambda _: {},
        lambda state: state | {"new": 1},
        lambda state: {name: state[name] for name in state if name != "epoch"},
        lambda state: state | {"epoch": -1},
        lambda state: state | {"epoch": "1"},
        lambda state: state | {"epoch": True},
        lambda state: state | {"batch": 0.5},
        lambda state: state | {"batch": None},
        lambda state: state | {"batch": 2},
    ],
)
def test_malformed_state_is_refused(path, damage):
    batches = loader.Batches(path, batch_size=5, seed=7)
    with pytest.raises(
        loader.LoaderError, match=r"State not loaded.*Give what state_dict (of .*)?returned"
    ):
        batches.load_state_dict(damage(batches.state_dict()))
    assert rows_of_next(batches) == [5, 3, 0, 4, 9]


# Processes and threads


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda b: pickle.loads(pickle.dumps(b))]
)
def test_copy_goes_on_from_the_same_position(path, duplicate):
    batches = loader.Batches(path, batch_size=2, split="train", seed=7, layout="NHW")
    first = rows_of_next(batches)
    other = duplicate(batches)
    expected = rows_of_epoch(batches)
    assert rows_of_epoch(other) == expected
    assert sorted(sum(expected, first)) == [0, 2, 4, 6, 7, 9]
    assert other.next_batch()[0].shape == (2, 4, 5)


def test_unpickling_does_not_warn_again(path):
    with pytest.warns(UserWarning, match="left out"):
        batches = loader.Batches(path, batch_size=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(pickle.loads(pickle.dumps(batches))) == 2


def send_rows(batches, connection):
    connection.send([rows_in(images) for images, _ in batches])


def rows_from_another_process(batches, start_method):
    context = multiprocessing.get_context(start_method)
    ours, theirs = context.Pipe()
    process = context.Process(target=send_rows, args=(batches, theirs))
    process.start()
    try:
        assert ours.poll(300), "the process hangs"
        return ours.recv()
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize("start_method", multiprocessing.get_all_start_methods())
def test_another_process_goes_on_from_the_same_position(path, start_method):
    batches = loader.Batches(path, batch_size=2, seed=7)
    batches.next_batch()
    rows = rows_from_another_process(batches, start_method)
    assert rows == rows_of_epoch(batches)
    assert len(rows) == 4


def send_epochs(path, rank, connection):
    batches = loader.Batches(
        path, batch_size=2, seed=7, remainder="keep", rank=rank, world_size=4, prefetch=2
    )
    first = [rows_of_next(batches) for _ in range(2)]
    state = json.dumps(batches.state_dict())
    connection.send((first, state, [rows_of_next(batches) for _ in range(7)]))


@pytest.mark.filterwarnings("ignore:3 of 27 rows are left out")
def test_four_ranks_as_processes_share_the_epochs_and_resume(tmp_path):
    path = tmp_path / "out.h5"
    write_dataset(path, n=27)
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe(duplex=False) for _ in range(4)]
    processes = [
        context.Process(target=send_epochs, args=(path, rank, theirs))
        for rank, (_, theirs) in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    try:
        assert all(ours.poll(60) for ours, _ in pipes), "a process hangs"
        received = [ours.recv() for ours, _ in pipes]
    finally:
        for process in processes:
            process.kill()
            process.join()
    firsts, states, rests = zip(*received, strict=True)
    assert len(set(states)) == 1
    whole = loader.Batches(path, batch_size=8, seed=7, remainder="keep", world_size=1)
    # Over 4 ranks an epoch leaves out the last 27 mod 4 rows of the order.
    epochs = [np.concatenate([whole.indices for _ in whole])[:24].tolist() for _ in range(3)]
    ranks = [first + rest for first, rest in zip(firsts, rests, strict=True)]
    steps = [np.concatenate(batches) for batches in zip(*ranks, strict=True)]
    assert [np.concatenate(steps[i : i + 3]).tolist() for i in (0, 3, 6)] == epochs
    for rank in range(4):
        resumed = loader.Batches(
            path, batch_size=2, seed=7, remainder="keep", rank=rank, world_size=4
        )
        resumed.load_state_dict(json.loads(states[0]))
        assert [rows_of_next(resumed) for _ in range(7)] == rests[rank]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_fork_while_another_thread_holds_the_lock(path):
    batches = loader.Batches(path, batch_size=2, seed=7)
    with batches._runtime.lock:
        rows = rows_from_another_process(batches, "fork")
    assert rows == rows_of_epoch(batches)


@pytest.mark.parametrize("remainder", ["keep", "pad"])
def test_threads_draw_an_epoch_exactly_once(tmp_path, remainder):
    write_dataset(tmp_path / "out.h5", n=999)
    batches = loader.Batches(tmp_path / "out.h5", batch_size=2, seed=7, remainder=remainder)
    drawn, all_started = [], threading.Barrier(4)

    def draw():
        all_started.wait()
        for _ in range(125):
            images, _ = batches.next_batch()
            assert rows_in(images) == batches.indices.tolist()
            drawn.extend(batches.indices[~batches.is_padding].tolist())

    threads = [threading.Thread(target=draw) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(drawn) == list(range(999))
    assert batches.epochs_completed == 1


@pytest.mark.parametrize("prefetch", [0, 2])
def test_indices_are_of_the_batch_that_this_thread_was_handed(path, prefetch):
    with loader.Batches(path, batch_size=2, seed=7, prefetch=prefetch) as batches:
        own = rows_of_next(batches)
        other = threading.Thread(target=batches.next_batch)
        other.start()
        other.join()
        assert batches.indices.tolist() == own


def test_repr_tells_file_rows_and_position(path):
    batches = loader.Batches(path, batch_size=2, split="train")
    batches.next_batch()
    assert repr(batches) == (
        f"<Batches of {str(path)!r}, split='train': 6 rows, 3 batches of 2, at batch 1 of epoch 0>"
    )


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_epoch_that_is_set_comes_next_from_its_start(tmp_path, prefetch):
    path = tmp_path / "set_epoch.h5"
    write_dataset(path, n=21)
    options = {"batch_size": 4, "seed": 5, "remainder": "keep", "prefetch": prefetch}
    with loader.Batches(path, **options) as batches, loader.Batches(path, **options) as expected:
        epochs = [[expected.indices.tolist() for _ in expected] for _ in range(6)]
        batches.next_batch()
        batches.set_epoch(4)
        assert batches.epochs_completed == 4
        assert [batches.indices.tolist() for _ in batches] == epochs[4]
        batches.set_epoch(np.int64(0))
        assert [batches.indices.tolist() for _ in batches] == epochs[0]
        assert batches.state_dict()["epoch"] == 1
        for wrong, error in ((-1, ValueError), (1.5, TypeError), (True, TypeError)):
            with pytest.raises(error, match="epoch: expected an integer"):
                batches.set_epoch(wrong)
