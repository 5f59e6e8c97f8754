"""The loader inside real PyTorch; skipped where torch is not installed (make test-frameworks)."""

import contextlib
import copy
import dataclasses
import gc
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest
from dataset_builder import CARDIAC, with_bits, write_dataset

import loader

torch = pytest.importorskip("torch")

from torch.utils.data import DataLoader  # noqa: E402 torch may be missing

import loader.torch as loader_torch  # noqa: E402
from loader import feed  # noqa: E402
from loader.torch import options, passes  # noqa: E402

N, BATCH = 53, 4  # 13 batches, one row left out
OPTIONS = {"batch_size": BATCH, "seed": 7, "remainder": "keep"}

pytestmark = pytest.mark.filterwarnings(
    "ignore:1 of 53 rows are left out, other ones",  # of 2 or 4 ranks
    "ignore:.*multi-threaded.*fork:DeprecationWarning",
    "ignore:This DataLoader will create:UserWarning",
    "ignore:'set_vital' is deprecated:UserWarning",  # in torchdata
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("torch") / "out.h5"
    write_dataset(path, n=N, split=[0] * 40 + [1] * 13)
    return path


def rows_of(tensors):
    """Return the rows of the file in a batch, as its first pixels tell."""
    return tensors[0][:, 0, 0, 0].int().tolist()


def epochs_of(batches, n_epochs):
    return [[rows_of(tensors) for tensors in batches] for _ in range(n_epochs)]


MAKE_ITERABLE = {
    "iterable": loader_torch.IterableDataset,
    "device": lambda path, **given: loader_torch.DeviceBatches(path, "cpu", **given),
    "resident": lambda path, **given: loader_torch.ResidentBatches(path, "cpu", **given),
}


def expected_epochs(path, n_epochs, **options):
    batches = loader.Batches(path, **OPTIONS | options)
    return [[batches.indices.tolist() for _ in batches] for _ in range(n_epochs)]


def workers(n_workers, context="fork", **options):
    if not n_workers:
        return {"num_workers": 0}
    # A worker that hangs is an error after so many seconds.
    common = {"num_workers": n_workers, "timeout": 600, "multiprocessing_context": context}
    return common | options


# The iterable data set


def test_batches_are_channels_first_tensors(path):
    dataset = loader_torch.IterableDataset(path, normalize="minmax", **OPTIONS)
    images, masks = next(iter(DataLoader(dataset, batch_size=None)))
    expected = loader.Batches(path, normalize="minmax", layout="NCHW", **OPTIONS).next_batch()
    assert images.shape == masks.shape == (BATCH, 1, 4, 5)
    assert (images.dtype, masks.dtype) == (torch.float32, torch.uint8)
    np.testing.assert_array_equal(images.numpy(), expected[0])
    np.testing.assert_array_equal(masks.numpy(), expected[1])


@pytest.mark.parametrize("dtype", ["bool", "uint8", "float32"])
def test_masks_have_a_channel_of_each_structure(tmp_path, dtype):
    path = tmp_path / "out.h5"
    structures = with_bits(CARDIAC, {"i-contour": 15, "o-contour": 0})
    write_dataset(path, n=N, structures=structures, mask_dtype="<u2")
    expected = loader.open_dataset(path).mask_channels(loader.open_dataset(path).masks, dtype)
    kind = getattr(torch, dtype)
    dataset = loader_torch.IterableDataset(path, mask_channels=dtype, **OPTIONS)
    for images, masks in DataLoader(dataset, batch_size=None, **workers(2)):
        assert (masks.dtype, masks.shape[1:]) == (kind, (2, 4, 5))
        np.testing.assert_array_equal(masks.numpy(), expected[rows_of((images,))])
    samples = loader_torch.Dataset(path, mask_channels=dtype)
    image, mask = samples[5]
    assert (image.shape, mask.shape, mask.dtype) == ((1, 4, 5), (2, 4, 5), kind)
    np.testing.assert_array_equal(mask.numpy(), expected[5])
    images, masks = next(iter(DataLoader(samples, batch_size=7)))
    np.testing.assert_array_equal(masks.numpy(), expected[:7])


def test_words_are_tensors_as_the_file_has_them(tmp_path):
    path = tmp_path / "out.h5"
    masks = write_dataset(path, structures=with_bits(CARDIAC), mask_dtype="<u4")["masks"]
    _, found = loader_torch.Dataset(path)[3]
    assert (found.dtype, found.shape) == (torch.uint32, (1, 4, 5))
    np.testing.assert_array_equal(found[0].numpy(), masks[3])


@pytest.mark.parametrize("prefetch", [0, 3])
def test_epochs_are_those_of_the_loader(path, prefetch):
    dataset = loader_torch.IterableDataset(path, prefetch=prefetch, **OPTIONS)
    assert epochs_of(dataset, 3) == expected_epochs(path, 3)
    assert len(dataset) == len(DataLoader(dataset, batch_size=None)) == 14


@pytest.mark.parametrize(
    ("context", "persistent_workers"),
    [("fork", False), ("fork", True), ("spawn", False), ("forkserver", True)],
)
def test_workers_share_each_epoch_in_the_same_order(path, context, persistent_workers):
    dataset = loader_torch.IterableDataset(path, prefetch=1, **OPTIONS)
    options = workers(2, context, persistent_workers=persistent_workers)
    batches = DataLoader(dataset, batch_size=None, **options)
    assert epochs_of(batches, 3) == expected_epochs(path, 3)


@pytest.mark.parametrize("n_workers", [1, 2, 20])
def test_any_number_of_workers_gives_the_same_epochs(path, n_workers):
    dataset = loader_torch.IterableDataset(path, where=lambda m: m["slice"] > 9, **OPTIONS)
    batches = DataLoader(dataset, batch_size=None, **workers(n_workers))
    assert epochs_of(batches, 2) == expected_epochs(path, 2, where=lambda m: m["slice"] > 9)


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("n_workers", [0, 1, 3])
def test_an_epoch_that_is_set_is_the_next_pass(path, n_workers, persistent):
    """Set between passes, also while persistent workers live: it reaches them."""
    dataset = loader_torch.IterableDataset(path, **OPTIONS)
    given = workers(n_workers) | {"persistent_workers": persistent and n_workers > 0}
    batches = DataLoader(dataset, batch_size=None, **given)
    expected = expected_epochs(path, 8)
    assert epochs_of(batches, 2) == expected[:2]
    for epoch in (5, 0, 6):
        dataset.set_epoch(epoch)
        assert epochs_of(batches, 2) == expected[epoch : epoch + 2]
    with pytest.raises(ValueError, match="epoch: expected an integer from 0"):
        dataset.set_epoch(-1)


def test_device_batches_go_to_the_epoch_that_is_set(path):
    batches = loader_torch.DeviceBatches(path, "cpu", **OPTIONS)
    expected = expected_epochs(path, 5)
    next(iter(batches))
    batches.set_epoch(3)
    assert batches.epochs_completed == 3
    assert epochs_of(batches, 2) == expected[3:5]


def test_loaders_with_other_numbers_of_workers_take_turns(path):
    """One data set, one DataLoader after the other: each pass is the next epoch."""
    dataset = loader_torch.IterableDataset(path, **OPTIONS)
    found = []
    for n_workers in (2, 4, 0, 4, 3, 0, 2, 2):
        found += epochs_of(DataLoader(dataset, batch_size=None, **workers(n_workers)), 1)
    assert found == expected_epochs(path, 8)


@pytest.mark.parametrize("persistent_workers", [False, True])
@pytest.mark.parametrize("new_loader", [False, True])
def test_seeding_torch_anew_does_not_repeat_an_epoch(path, persistent_workers, new_loader):
    dataset = loader_torch.IterableDataset(path, **OPTIONS)

    def make():
        generator = torch.Generator().manual_seed(5)
        options = workers(2, persistent_workers=persistent_workers, generator=generator)
        return DataLoader(dataset, batch_size=None, **options)

    batches = make()
    found = []
    for _ in range(4):
        batches = make() if new_loader else batches
        batches.generator.manual_seed(5)
        found += epochs_of(batches, 1)
    assert found == expected_epochs(path, 4)


@pytest.mark.parametrize(
    ("n_workers", "options"), [(0, {}), (2, {}), (2, {"persistent_workers": True})]
)
def test_state_loaded_between_iterations(path, n_workers, options):
    dataset = loader_torch.IterableDataset(path, **OPTIONS)
    state = dataset.state_dict() | {"epoch": 1, "batch": 5}
    batches = DataLoader(dataset, batch_size=None, **workers(n_workers, **options))
    expected = expected_epochs(path, 5)
    assert epochs_of(batches, 1) == expected[:1]
    dataset.load_state_dict(state)
    assert epochs_of(batches, 2) == [expected[1][5:], expected[2]]
    assert epochs_of(dataset, 1) == expected[3:4]
    assert epochs_of(batches, 1) == expected[4:]


def test_epoch_that_was_left_early_is_followed_by_another(path):
    dataset = loader_torch.IterableDataset(path, **OPTIONS)
    batches = DataLoader(dataset, batch_size=None, **workers(2))
    for _ in range(3):
        next(iter(batches))
    assert epochs_of(batches, 1) == expected_epochs(path, 4)[3:]
    assert epochs_of(dataset, 1) == expected_epochs(path, 5)[4:]


@pytest.mark.parametrize("n_workers", [0, 2])
@pytest.mark.parametrize("n_drawn", [0, 5, 14, 20])
def test_state_without_workers_resumes_in_any_number_of_workers(path, n_workers, n_drawn):
    dataset = loader_torch.IterableDataset(path, prefetch=2, **OPTIONS)
    together = [rows for epoch in expected_epochs(path, 4) for rows in epoch]
    drawn = []
    while len(drawn) < n_drawn:
        with contextlib.closing(iter(dataset)) as epoch:
            for tensors in epoch:
                drawn.append(rows_of(tensors))
                if len(drawn) == n_drawn:
                    state = json.loads(json.dumps(dataset.state_dict()))
                    break
    state = state if n_drawn else dataset.state_dict()
    resumed = loader_torch.IterableDataset(path, **OPTIONS)
    resumed.load_state_dict(state)
    batches = DataLoader(resumed, batch_size=None, **workers(n_workers))
    n_epochs = 2 if n_drawn % 14 else 1
    found = [rows for epoch in epochs_of(batches, n_epochs) for rows in epoch]
    assert drawn == together[:n_drawn]
    assert found == together[n_drawn : n_drawn + len(found)]
    assert len(found) == 14 * n_epochs - n_drawn % 14


@pytest.mark.parametrize("n_workers", [0, 1, 3])
@pytest.mark.parametrize("n_drawn", [1, 5, 13, 14])
def test_stateful_data_loader_resumes_exactly(path, n_workers, n_drawn):
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader

    def make():
        dataset = loader_torch.IterableDataset(path, **OPTIONS)
        return stateful(dataset, batch_size=None, **workers(n_workers))

    together = [rows for epoch in expected_epochs(path, 4) for rows in epoch]
    batches = make()
    for n, tensors in enumerate(batches, start=1):
        assert rows_of(tensors) == together[n - 1]
        if n == n_drawn:
            state = pickle.loads(pickle.dumps(batches.state_dict()))
    resumed = make()
    resumed.load_state_dict(state)
    found = [rows for epoch in epochs_of(resumed, 3) for rows in epoch]
    assert found == together[n_drawn : n_drawn + len(found)]
    assert len(found) >= 28


@pytest.mark.parametrize("n_workers", [0, 1, 2])
@pytest.mark.parametrize("n_ended", [1, 2])
def test_stateful_data_loader_resumes_between_epochs(path, n_workers, n_ended):
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader

    def make():
        dataset = loader_torch.IterableDataset(path, **OPTIONS)
        return stateful(dataset, batch_size=None, **workers(n_workers))

    batches = make()
    epochs_of(batches, n_ended)
    resumed = make()
    resumed.load_state_dict(pickle.loads(pickle.dumps(batches.state_dict())))
    assert epochs_of(resumed, 2) == expected_epochs(path, n_ended + 2)[n_ended:]


def test_stateful_data_loader_resumes_where_torch_is_seeded_at_the_start(path):
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader

    def make():
        torch.manual_seed(3)
        dataset = loader_torch.IterableDataset(path, **OPTIONS)
        return stateful(dataset, batch_size=None, **workers(2))

    together = [rows for epoch in expected_epochs(path, 5) for rows in epoch]
    batches = make()
    epochs_of(batches, 1)
    for _ in zip(range(5), batches, strict=False):
        state = batches.state_dict()
    resumed = make()
    resumed.load_state_dict(state)
    found = [rows for epoch in epochs_of(resumed, 3) for rows in epoch]
    assert found == together[19 : 19 + len(found)]
    assert len(found) == 9 + 2 * 14


def test_state_of_plain_workers_is_refused_and_not_guessed(path):
    dataset = loader_torch.IterableDataset(path, **OPTIONS)
    list(DataLoader(dataset, batch_size=None, **workers(2)))
    with pytest.raises(loader.LoaderError, match="State not saved: workers of a DataLoader"):
        dataset.state_dict()


@pytest.mark.parametrize(
    ("change", "why"),
    [({"seed": 8}, "seed"), ({"stride": 2}, "stride"), ({"stride": "1"}, "stride")],
)
def test_state_of_something_else_is_refused(path, change, why):
    dataset = loader_torch.IterableDataset(path, **OPTIONS)
    with pytest.raises(loader.LoaderError, match=rf"State not loaded.*{why} \(expected"):
        dataset.load_state_dict(dataset.state_dict() | change)


def test_pickled_copy_iterates(path):
    copy = pickle.loads(pickle.dumps(loader_torch.IterableDataset(path, **OPTIONS)))
    assert epochs_of(copy, 2) == expected_epochs(path, 2)


def test_error_in_a_worker_reaches_the_caller(tmp_path):
    write_dataset(tmp_path / "out.h5", n=N)
    dataset = loader_torch.IterableDataset(tmp_path / "out.h5", **OPTIONS)
    with (tmp_path / "out.h5").open("r+b") as file:
        file.truncate(65536)
    with pytest.raises(loader.LoaderError, match="cut short"):
        list(DataLoader(dataset, batch_size=None, **workers(2)))


@pytest.mark.parametrize("n_workers", [0, 3])
@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("n_drawn", [0, 5])
def test_padding_comes_with_its_batch(path, n_workers, prefetch, n_drawn):
    given = {"batch_size": 4, "seed": 7, "remainder": "pad", "rank": 1, "world_size": 2}
    dataset = loader_torch.IterableDataset(path, prefetch=prefetch, with_padding=True, **given)
    expected = loader.Batches(path, **given)
    found = DataLoader(dataset, batch_size=None, **workers(n_workers))
    for batches in (dataset, expected):  # go on in the middle of an epoch
        batches.load_state_dict(batches.state_dict() | {"batch": n_drawn})
    for _ in range(2):
        for images, masks, is_padding in found:
            expected.next_batch()
            assert rows_of((images, masks)) == expected.indices.tolist()
            assert is_padding.dtype == torch.bool
            assert is_padding.tolist() == expected.is_padding.tolist()
        assert is_padding.tolist() == [False, True, True, True]
    assert len(next(iter(loader_torch.IterableDataset(path, **given)))) == 2


def test_padding_is_asked_for_by_a_bool(path):
    with pytest.raises(TypeError, match="with_padding: expected True or False, found 1"):
        loader_torch.IterableDataset(path, with_padding=1, **OPTIONS)


@pytest.mark.parametrize("n_workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 3, 5])
@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_padded_ranks_validate_over_all_rows_once(path, n_workers, world_size, batch_size):
    counted = []
    for rank in range(world_size):
        dataset = loader_torch.IterableDataset(
            path,
            batch_size=batch_size,
            split="validation",
            shuffle=False,
            remainder="pad",
            with_padding=True,
            rank=rank,
            world_size=world_size,
        )
        for images, masks, is_padding in DataLoader(dataset, batch_size=None, **workers(n_workers)):
            counted += rows_of((images[~is_padding], masks))
    assert sorted(counted) == list(range(40, 53))


@pytest.mark.parametrize("kind", [torch.tensor, np.int32, np.array])
def test_numbers_of_a_state_may_be_tensors(path, kind):
    for make in MAKE_ITERABLE.values():
        batches = make(path, **OPTIONS)
        state = batches.state_dict() | {"epoch": 3, "batch": 2}
        saved = {
            name: kind(value) if type(value) is int else value for name, value in state.items()
        }
        batches.load_state_dict(saved)
        assert batches.state_dict() == state
        assert [rows_of(tensors) for tensors in batches] == expected_epochs(path, 4)[3][2:]


def test_another_batch_size_at_the_start_of_an_epoch(path):
    for make in MAKE_ITERABLE.values():
        batches, other = make(path, **OPTIONS), make(path, **OPTIONS | {"batch_size": 8})
        for _ in batches:
            pass
        other.load_state_dict(batches.state_dict())
        assert epochs_of(other, 1) == expected_epochs(path, 2, batch_size=8)[1:]
        next(iter(batches))
        with pytest.raises(loader.LoaderError, match=r"batch_size \(expected 8, found 4\)"):
            other.load_state_dict(batches.state_dict())


class LoadInWorker(torch.utils.data.IterableDataset):
    """Loads a state where StatefulDataLoader does: in the worker."""

    def __init__(self, dataset, state):
        self.dataset, self.state = dataset, state

    def __iter__(self):
        self.dataset.load_state_dict(self.state)
        return iter(self.dataset)


def test_a_workers_end_of_an_epoch_is_no_start_for_another_batch_size(path):
    """Batch 9 of 14 is beyond the end of an epoch of 7, and yet in the middle of its own."""
    state = loader_torch.IterableDataset(path, **OPTIONS).state_dict() | {"batch": 9, "stride": 1}
    dataset = loader_torch.IterableDataset(path, **OPTIONS | {"batch_size": 8})
    loading = DataLoader(LoadInWorker(dataset, state), batch_size=None, **workers(1))
    with pytest.raises(loader.LoaderError, match=r"batch_size \(expected 8, found 4\)"):
        list(loading)


# A file that changes while it is open


def overwrite(path):
    other = path.with_name("other.h5")
    write_dataset(other, n=N, offset=100)
    with path.open("r+b") as file:  # never empty between: a worker may look at any moment
        file.write(other.read_bytes())


def cut_short(path):
    os.truncate(path, 65536)


ON_PATHS = {
    "iterable": lambda path: loader_torch.IterableDataset(path, **OPTIONS),
    "iterable, prefetch": lambda path: loader_torch.IterableDataset(path, prefetch=2, **OPTIONS),
    "iterable, workers": lambda path: DataLoader(
        loader_torch.IterableDataset(path, **OPTIONS), batch_size=None, **workers(2)
    ),
    "samples": lambda path: DataLoader(loader_torch.Dataset(path), batch_size=4),
    "samples, workers": lambda path: DataLoader(
        loader_torch.Dataset(path), batch_size=4, **workers(2)
    ),
    "device": lambda path: loader_torch.DeviceBatches(path, "cpu", **OPTIONS),
    "resident": lambda path: loader_torch.ResidentBatches(path, "cpu", **OPTIONS),
}


@pytest.mark.parametrize(
    ("change", "why"), [(overwrite, "written to while it was open"), (cut_short, "cut short")]
)
@pytest.mark.parametrize("make", ON_PATHS.values(), ids=ON_PATHS)
def test_a_changed_file_is_refused_on_every_path(tmp_path, make, change, why):
    path = tmp_path / "out.h5"
    write_dataset(path, n=N)
    os.utime(path, (10**9, 10**9))  # two writes within one tick of the clock look the same
    batches = make(path)
    change(path)
    with pytest.raises(loader.LoaderError, match=why):
        list(batches)


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize(
    ("change", "why"), [(overwrite, "written to while it was open"), (cut_short, "cut short")]
)
def test_a_changed_file_does_not_reach_a_device(tmp_path, current_stream, prefetch, change, why):
    """Several threads copy into pinned memory, each a part of a batch."""
    path = tmp_path / "out.h5"
    write_dataset(path, n=N)
    os.utime(path, (10**9, 10**9))
    with loader_torch.DeviceBatches(
        path, "cuda", prefetch=prefetch, gather_threads=3, **OPTIONS
    ) as batches:
        next(iter(batches))
        state = batches.state_dict()
        change(path)
        with pytest.raises(loader.LoaderError, match=why):
            list(batches)
        assert batches.state_dict() == state


def test_resident_rows_need_the_file_no_more(tmp_path):
    path = tmp_path / "out.h5"
    write_dataset(path, n=N)
    os.utime(path, (10**9, 10**9))
    batches = loader_torch.ResidentBatches(path, "cpu", **OPTIONS)
    expected = expected_epochs(path, 2)
    assert epochs_of(batches, 1) == expected[:1]
    overwrite(path)
    assert epochs_of(batches, 1) == expected[1:]


# The map-style data set


@pytest.mark.parametrize("n_workers", [0, 2])
def test_samples_are_those_of_the_selection(path, n_workers):
    dataset = loader_torch.Dataset(path, split="validation", dtype="float32")
    data = loader.open_dataset(path)
    assert len(dataset) == 13
    for index in (0, 12, -1):
        image, mask = dataset[index]
        np.testing.assert_array_equal(image[0], data.images[40 + index % 13])
        np.testing.assert_array_equal(mask[0], data.masks[40 + index % 13])
    batches = DataLoader(dataset, batch_size=5, shuffle=True, **workers(n_workers, "spawn"))
    drawn = [rows_of(tensors) for tensors in batches]
    assert [len(rows) for rows in drawn] == [5, 5, 3]
    assert sorted(row for rows in drawn for row in rows) == list(range(40, 53))


@pytest.mark.parametrize("index", [13, -14, 10**30])
def test_sample_out_of_range(path, index):
    with pytest.raises(IndexError, match="there are 13"):
        loader_torch.Dataset(path, split="validation")[index]


def test_no_samples(path):
    assert loader_torch.Dataset(path).__getitems__([]) == []


# Batches on a device


@pytest.mark.parametrize("prefetch", [0, 2])
def test_device_batches_on_the_cpu(path, prefetch):
    batches = loader_torch.DeviceBatches(path, "cpu", prefetch=prefetch, **OPTIONS)
    assert len(batches) == 14
    assert epochs_of(batches, 3) == expected_epochs(path, 3)
    assert batches.epochs_completed == 3
    batches.close()


def test_device_batches_tell_which_samples_they_hold(path):
    batches = loader_torch.DeviceBatches(path, "cpu", batch_size=6, remainder="pad", prefetch=2)
    assert not len(batches.indices)
    expected = loader.Batches(path, batch_size=6, remainder="pad")
    for tensors, _ in zip(batches, expected, strict=True):
        assert batches.indices.tolist() == expected.indices.tolist() == rows_of(tensors)
        assert batches.is_padding.tolist() == expected.is_padding.tolist()
    assert batches.is_padding.tolist() == [False] * 5 + [True]


def test_a_copy_of_device_batches_iterates_on_its_own(path):
    batches = loader_torch.DeviceBatches(path, "cpu", **OPTIONS)
    expected = expected_epochs(path, 1)[0]
    drawn = iter(batches)
    assert rows_of(next(drawn)) == expected[0]
    for other in (copy.copy(batches), copy.deepcopy(batches), pickle.loads(pickle.dumps(batches))):
        assert rows_of(next(iter(other))) == expected[1]
    assert rows_of(next(drawn)) == expected[1]


# The choice of samples, for all of them


MAKE = {
    "IterableDataset": lambda path, **options: loader_torch.IterableDataset(
        path, batch_size=2, remainder="keep", **options
    ),
    "Dataset": loader_torch.Dataset,
    "DeviceBatches": lambda path, **options: loader_torch.DeviceBatches(
        path, "cpu", batch_size=2, remainder="keep", **options
    ),
}


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_rows_that_take_part_are_told(path, make):
    chosen = make(path, split="validation", where=np.arange(N) % 2 == 0)
    assert chosen.rows.tolist() == [40, 42, 44, 46, 48, 50, 52]
    assert chosen.dataset.path == path
    assert repr(chosen).endswith(f"of {str(path)!r}, split='validation', where=...: 7 rows>")


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
@pytest.mark.parametrize("other", [*MAKE.values(), loader.Batches])
def test_apart_from_takes_any_of_them(path, make, other):
    options = {"batch_size": 1} if other is loader.Batches else {}
    training = other(path, split="train", **options)
    assert len(make(path, split="validation", apart_from=training).rows) == 13
    with pytest.raises(loader.LoaderError, match=r"found 40 of this selection among .*apart_from"):
        make(path, apart_from=training)


@pytest.mark.parametrize(
    ("make", "options", "why"),
    [
        (
            "Dataset",
            {"batch_size": 4, "sampler": 5},
            "Dataset: batch_size, sampler: no option.*DataLoader",
        ),
        (
            "Dataset",
            {"seed": 5},
            "Dataset: seed: .* there is none of them. Give batch_size",
        ),
        ("Dataset", {"balance": "patient"}, "Dataset: balance: .*WeightedRandomSampler"),
        ("Dataset", {"layout": "HWN"}, "Dataset: layout: no option"),
        ("IterableDataset", {"layout": "HWN"}, "IterableDataset: layout: .* channels first"),
        ("DeviceBatches", {"shufle": True}, "DeviceBatches: shufle: .*expected split, fold, "),
    ],
)
def test_options_that_would_do_nothing_are_refused(path, make, options, why):
    with pytest.raises(TypeError, match=rf"loader\.torch\.{why}"):
        MAKE[make](path, **options)


class Stream:
    """A stream as slow as may be: it does what it was given only when the host waits for it."""

    entered = None

    n_made = 0

    def __init__(self, device=None):
        self.device, self.todo = device, []
        Stream.n_made += 1

    def wait_event(self, event):
        todo = event.todo  # as recorded now
        self.todo.append(lambda: finish(todo))

    @classmethod
    @contextlib.contextmanager
    def enter(cls, stream):
        cls.entered, before = stream, cls.entered
        yield
        cls.entered = before


class Event:
    def __init__(self):
        self.todo = []

    def record(self, stream):
        self.todo, stream.todo = stream.todo, []

    def synchronize(self):
        finish(self.todo)


def finish(todo):
    while todo:
        todo.pop(0)()


@pytest.fixture
def current_stream(monkeypatch):
    """Stand in for CUDA: memory of the CPU, with rubbish in it until a copy is done."""

    def send(tensor, device, *, non_blocking=False):
        assert non_blocking == (device.type == "cuda")
        if not non_blocking:
            return tensor
        sent = torch.full_like(tensor, 77)
        Stream.entered.todo.append(lambda: sent.copy_(tensor))
        return sent

    current_stream = Stream()
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", Stream.enter)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: current_stream)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
    monkeypatch.setattr(torch.Tensor, "to", send)
    return current_stream


@pytest.mark.parametrize("prefetch", [0, 2])
def test_no_buffer_is_filled_again_before_it_has_left_for_a_slow_device(
    path, current_stream, prefetch
):
    batches = loader_torch.DeviceBatches(path, "cuda", prefetch=prefetch, **OPTIONS)
    n_made = Stream.n_made
    for epoch in expected_epochs(path, 3):
        arrived = list(batches)
        finish(current_stream.todo)
        assert [rows_of(tensors) for tensors in arrived] == epoch
    assert Stream.n_made == n_made + 1
    batches.close()


@pytest.mark.parametrize("prefetch", [0, 4])
def test_patches_go_through_pinned_memory_that_is_kept(path, current_stream, prefetch):
    options = OPTIONS | {"patches": loader.Patches((2, 3), foreground=0.5)}
    batches = loader_torch.DeviceBatches(
        path, "cuda", prefetch=prefetch, gather_threads=3, **options
    )
    expected = loader.Batches(path, layout="NCHW", **options)
    slots = []
    for _ in range(3):
        arrived = list(batches)
        finish(current_stream.todo)
        for tensors, arrays in zip(arrived, expected, strict=True):
            for mine, theirs in zip(tensors, arrays, strict=True):
                np.testing.assert_array_equal(mine.numpy(), theirs)
        slots.append([id(slot) for slot in batches._maker._slots])
    assert slots[0] == slots[1] == slots[2]
    batches.close()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_state_loaded_within_an_iteration_is_where_it_goes_on(path, current_stream, device):
    batches = loader_torch.DeviceBatches(path, device, **OPTIONS)
    (together,) = expected_epochs(path, 1)
    state = batches.state_dict()
    found = []
    for n, tensors in enumerate(batches):
        finish(current_stream.todo)
        found.append(rows_of(tensors))
        if n == 2:
            batches.load_state_dict(state)
    assert found == together[:3] + together


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_iterations_of_one_object_do_not_mix(path, current_stream, device):
    batches = loader_torch.DeviceBatches(path, device, **OPTIONS)
    (together,) = expected_epochs(path, 1)
    first = iter(batches)
    next(first)
    second = iter(batches)
    found = [next(second)]
    with pytest.raises(loader.LoaderError, match="another iteration over these batches has begun"):
        next(first)
    found += second
    finish(current_stream.todo)
    assert [rows_of(tensors) for tensors in found] == together[1:]


def test_one_batch_is_in_flight_and_the_state_is_that_of_the_one_handed_out(path, current_stream):
    together = [rows for epoch in expected_epochs(path, 4) for rows in epoch]
    batches = loader_torch.DeviceBatches(path, "cuda", **OPTIONS)
    other = loader_torch.DeviceBatches(path, "cuda", **OPTIONS)
    n_drawn = 0
    for n_taken in (3, 99, 14, 5):
        for taken, tensors in enumerate(batches, start=1):
            finish(current_stream.todo)
            assert rows_of(tensors) == batches.indices.tolist() == together[n_drawn]
            n_drawn += 1
            other.load_state_dict(batches.state_dict())
            following = next(iter(other))
            finish(current_stream.todo)
            assert rows_of(following) == together[n_drawn]
            if taken == n_taken:
                break


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_device_batches_without_cuda(path):
    with pytest.raises(loader.LoaderError, match=r"no CUDA device cuda .* finds 0\)\. Use another"):
        loader_torch.DeviceBatches(path, "cuda", **OPTIONS)


def test_device_batches_on_a_device_that_is_not_there(path, current_stream):
    with pytest.raises(loader.LoaderError, match=r"no CUDA device cuda:7 .* finds 1\)"):
        loader_torch.DeviceBatches(path, "cuda:7", **OPTIONS)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_device_batches_are_on_cuda(path):
    batches = loader_torch.DeviceBatches(path, "cuda", **OPTIONS)
    for epoch in expected_epochs(path, 3):
        for rows, (images, masks) in zip(epoch, batches, strict=True):
            assert images.is_cuda
            assert masks.is_cuda
            assert rows_of((images.cpu(), masks.cpu())) == rows


# Iterations at the same time


def test_other_processes_do_not_mix_epochs(path):
    dataset = loader_torch.IterableDataset(path, **OPTIONS)
    batches = DataLoader(dataset, batch_size=None, **workers(3))
    is_over = threading.Event()

    def start_processes():
        while not is_over.is_set():
            process = multiprocessing.get_context("fork").Process(target=len, args=("",))
            process.start()
            process.join()

    thread = threading.Thread(target=start_processes)
    thread.start()
    try:
        assert epochs_of(batches, 3) == expected_epochs(path, 3)
    finally:
        is_over.set()
        thread.join()


class Wrapped(torch.utils.data.IterableDataset):
    """A data set that makes another one in each worker."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def __iter__(self):
        yield from loader_torch.IterableDataset(self.path, **OPTIONS)


def test_data_set_made_in_a_worker(path):
    batches = DataLoader(Wrapped(path), batch_size=None, **workers(2))
    assert epochs_of(batches, 2) == expected_epochs(path, 1) * 2


@pytest.mark.parametrize("n_workers", [0, 2])
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_copies_have_epochs_of_their_own(path, n_workers, duplicate):
    dataset = loader_torch.IterableDataset(path, **OPTIONS)
    epochs_of(DataLoader(dataset, batch_size=None, **workers(n_workers)), 1)
    other = duplicate(dataset)
    for each in (dataset, other):
        if n_workers:
            with pytest.raises(loader.LoaderError, match="State not saved"):
                each.state_dict()
        batches = DataLoader(each, batch_size=None, **workers(n_workers))
        assert epochs_of(batches, 1) == expected_epochs(path, 2)[1:]


def test_nothing_is_left_behind(path):
    dataset = loader_torch.IterableDataset(path, **OPTIONS)
    del dataset
    for number in range(4):
        if number == 1:  # shared memory that is free again is kept for the next data set
            gc.collect()
            before = len(os.listdir("/proc/self/fd"))
        dataset = loader_torch.IterableDataset(path, **OPTIONS)
        other = copy.deepcopy(dataset)
        epochs_of(DataLoader(other, batch_size=None, **workers(2)), 1)
        epochs_of(DataLoader(other, batch_size=None, **workers(2, "spawn")), 1)
        next(iter(DataLoader(Wrapped(path), batch_size=None, **workers(2))))
        del dataset, other
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_iteration_that_asks_for_no_batch_begins_no_epoch(path):
    dataset = loader_torch.IterableDataset(path, **OPTIONS)
    first, second, third = expected_epochs(path, 3)
    unused = iter(dataset)
    assert dataset.state_dict()["batch"] == 0
    assert epochs_of(dataset, 1) == [first]
    iter(dataset)
    assert (dataset.state_dict()["epoch"], dataset.state_dict()["batch"]) == (1, 0)
    left_early = iter(dataset)
    assert rows_of(next(left_early)) == second[0]
    again = iter(dataset)
    assert (dataset.state_dict()["epoch"], dataset.state_dict()["batch"]) == (2, 0)
    assert [rows_of(tensors) for tensors in again] == third
    assert rows_of(next(unused)) == expected_epochs(path, 4)[3][0]


@pytest.mark.parametrize("n_workers", [0, 2])
def test_no_batch_is_prepared_beyond_the_epoch(path, monkeypatch, n_workers):
    made = multiprocessing.get_context("fork").Value("i", 0)
    gather = feed.Stream.gather

    def count(stream, drawn, out=None):
        with made:
            made.value += 1
        return gather(stream, drawn, out)

    monkeypatch.setattr(feed.Stream, "gather", count)
    dataset = loader_torch.IterableDataset(path, prefetch=5, **OPTIONS)
    batches = DataLoader(dataset, batch_size=None, **workers(n_workers))
    found = epochs_of(batches, 3)
    assert made.value == 3 * 14
    assert found == expected_epochs(path, 3)


class Endless(torch.utils.data.IterableDataset):
    """Epoch after epoch, so that workers whose share is smaller run ahead."""

    def __init__(self, dataset, n_epochs):
        super().__init__()
        self.dataset = dataset
        self.n_epochs = n_epochs

    def __iter__(self):
        for _ in range(self.n_epochs):
            yield from self.dataset


def test_workers_that_run_ahead_share_each_epoch(path):
    n_epochs = 300
    dataset = loader_torch.IterableDataset(path, batch_size=18, seed=7, remainder="keep")
    batches = DataLoader(Endless(dataset, n_epochs), batch_size=None, **workers(2))
    found = sorted(tuple(rows_of(tensors)) for tensors in batches)
    expected = expected_epochs(path, n_epochs, batch_size=18)
    assert len(expected[0]) == 3
    assert found == sorted(tuple(rows) for epoch in expected for rows in epoch)


def send_epochs_of_two_copies(pickled, connection):
    one, two = pickle.loads(pickled), pickle.loads(pickled)
    found = [epochs_of(one, 2), epochs_of(two, 1)]
    del two
    connection.send([*found, epochs_of(one, 1)])


def test_copies_in_another_process_have_epochs_of_their_own(path):
    dataset = loader_torch.IterableDataset(path, **OPTIONS)
    epochs_of(dataset, 1)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    arguments = pickle.dumps(dataset), sender
    process = context.Process(target=send_epochs_of_two_copies, args=arguments)
    process.start()
    expected = expected_epochs(path, 4)
    assert receiver.poll(600)
    assert receiver.recv() == [expected[1:3], expected[1:2], expected[3:4]]
    process.join()


def test_rows_left_out_of_a_rank_are_told_at_the_callers_line(path, monkeypatch):
    monkeypatch.setattr(options, "_rank_and_world_size", lambda: (1, 3))
    for make in (MAKE_ITERABLE["iterable"], MAKE_ITERABLE["device"]):
        for remainder, n_batches, why in (
            ("keep", 5, "2 of 53 rows are left out, other ones at random in each epoch, because"),
            ("sample", 4, "5 of 53 rows fill no whole batch"),
        ):
            with pytest.warns(UserWarning, match=why) as warned:
                batches = make(path, batch_size=4, remainder=remainder)
            assert len(batches) == n_batches
            assert warned[0].filename == __file__


@pytest.mark.parametrize("position", [(0, 0), (5, 2)])
def test_a_state_saved_while_an_epoch_begins_is_where_it_begins(path, monkeypatch, position):
    dataset = loader_torch.IterableDataset(path, **OPTIONS)
    if position != (0, 0):
        state = dataset.state_dict()
        dataset.load_state_dict(state | {"epoch": position[0], "batch": position[1]})
    begin, seen = passes.Passes.begin, []

    def begin_and_save(epochs):
        seen.append(dataset.state_dict())
        found = begin(epochs)
        seen.append(dataset.state_dict())
        return found

    monkeypatch.setattr(passes.Passes, "begin", begin_and_save)
    next(iter(dataset))
    assert [(state["epoch"], state["batch"]) for state in seen] == [position] * 2


@dataclasses.dataclass
class Equal(loader_torch.IterableDataset):
    """A subclass that compares by value, and so has no hash; and has another length."""

    path: str

    def __post_init__(self):
        super().__init__(self.path, **OPTIONS)

    def __len__(self):
        return N


def test_a_subclass_may_compare_and_count_as_it_likes(path):
    datasets = [Equal(path), Equal(path)]
    context = multiprocessing.get_context("fork")
    for dataset in datasets:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=send_epochs, args=(dataset, 0, None, sender))
        process.start()
        assert receiver.poll(600)
        assert receiver.recv() == expected_epochs(path, 2)
        process.join()
        assert epochs_of(dataset, 1) == expected_epochs(path, 1)
        state = dataset.state_dict()
        assert (state["epoch"], state["batch"]) == (1, 0)
        dataset.load_state_dict(state)
        assert epochs_of(dataset, 1) == expected_epochs(path, 2)[1:]


# A data set that several processes were given


def send_epochs(dataset, n_workers, context, connection):
    if context == "fork":
        dataset.set_epoch(1)  # counts here from now on
    batches = DataLoader(dataset, batch_size=None, **workers(n_workers, context))
    connection.send(epochs_of(batches, 2))


@pytest.mark.parametrize(
    ("context", "n_workers", "context_of_workers"),
    [
        ("fork", 0, None),
        ("fork", 2, "fork"),
        ("fork", 2, "spawn"),
        ("spawn", 0, None),
        ("spawn", 2, "fork"),
        ("spawn", 2, "spawn"),
    ],
)
def test_each_process_has_its_own_epochs(path, context, n_workers, context_of_workers):
    dataset = loader_torch.IterableDataset(path, **OPTIONS)
    epochs_of(dataset, 1)
    start = multiprocessing.get_context(context)
    pipes = [start.Pipe(duplex=False) for _ in range(2)]
    rest = n_workers, context_of_workers
    processes = [
        start.Process(target=send_epochs, args=(dataset, *rest, sender)) for _, sender in pipes
    ]
    for process in processes:
        process.start()
    found = [receiver.recv() for receiver, _ in pipes]
    for process in processes:
        process.join()
    assert found == [expected_epochs(path, 3)[1:]] * 2
    assert epochs_of(dataset, 1) == expected_epochs(path, 2)[1:]


def send_error(dataset, connection):
    batches = DataLoader(dataset, batch_size=None, **workers(2))
    with pytest.raises(loader.LoaderError, match="call set_epoch before the DataLoader"):
        next(iter(batches))
    connection.send("refused")


def test_processes_that_might_count_together_are_refused(path):
    dataset = loader_torch.IterableDataset(path, **OPTIONS)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=send_error, args=(dataset, sender))
    process.start()
    assert receiver.poll(600)
    assert receiver.recv() == "refused"
    process.join()


# Several processes under torch.distributed


def send_rows(path, rank, store, n_workers, connection):
    from torch import distributed

    # Before the group: the rank is taken up later.
    dataset = loader_torch.IterableDataset(path, **OPTIONS)
    on_device = loader_torch.DeviceBatches(path, "cpu", **OPTIONS)
    distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=4)
    batches = DataLoader(dataset, batch_size=None, **workers(n_workers, "spawn"))
    epochs = epochs_of(batches, 2)
    n_batches = torch.tensor([len(epochs[0])])
    distributed.all_reduce(n_batches)
    assert on_device.state_dict()["world_size"] == 4
    given = {"batch_size": 8, "split": "validation", "shuffle": False, "remainder": "pad"}
    padded = loader_torch.IterableDataset(path, with_padding=True, **given)
    n_rows = torch.tensor([sum(int((~is_padding).sum()) for *_, is_padding in padded)])
    distributed.all_reduce(n_rows)
    assert n_rows == 13
    assert epochs_of(on_device, 2) == epochs
    connection.send((epochs, int(n_batches)))
    distributed.destroy_process_group()


@pytest.mark.parametrize("n_workers", [0, 2])
def test_ranks_of_torch_distributed_share_the_epochs(path, tmp_path, n_workers):
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe(duplex=False) for _ in range(4)]
    processes = [
        context.Process(target=send_rows, args=(path, rank, tmp_path / "store", n_workers, theirs))
        for rank, (_, theirs) in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    try:
        assert all(ours.poll(600) for ours, _ in pipes), "a process hangs"
        received = [ours.recv() for ours, _ in pipes]
        for process in processes:
            process.join(600)
        assert [process.exitcode for process in processes] == [0] * 4
    finally:
        for process in processes:
            process.kill()
            process.join()
    for rank, (epochs, n_batches) in enumerate(received):
        assert epochs == expected_epochs(path, 2, rank=rank, world_size=4)
        assert n_batches == 4 * len(epochs[0])


def test_torch_is_not_imported_unless_asked_for():
    probe = "import sys, loader; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


@pytest.mark.parametrize("options", [{}, {"batch_size": 4}, {"num_workers": 1}])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_batches_of_batches_are_refused(path, options):
    """A DataLoader has batch_size=1 by default."""
    dataset = loader_torch.IterableDataset(path, **OPTIONS)
    with pytest.raises(loader.LoaderError, match="Give batch_size=None to the DataLoader"):
        next(iter(DataLoader(dataset, **options)))
    images, masks = next(iter(DataLoader(dataset, batch_size=None)))
    assert len(images) == len(masks) == OPTIONS["batch_size"]
