import functools
import warnings

import numpy as np
import pytest
from dataset_builder import write_dataset
from hypothesis import assume, given
from hypothesis import strategies as st

import loader
from loader.sampler import EpochPlan, draw, permute

counts = st.integers(1, 40)
remainders = st.sampled_from(["sample", "keep", "pad", "error"])
seeds = st.integers(0, 2**64 - 1)
epochs = st.one_of(st.integers(0, 5), st.integers(0, 2**70))
plans = st.builds(EpochPlan, counts, st.integers(1, 9), st.integers(1, 5), remainders)


@pytest.fixture(scope="module")
def dataset_of(tmp_path_factory):
    """Return a function that gives a dataset of n samples, made once."""
    folder = tmp_path_factory.mktemp("datasets")

    @functools.cache
    def make(n):
        path = folder / f"{n}.h5"
        write_dataset(path, n=n, rows=1, columns=2)
        return loader.open_dataset(path)

    return make


def make_batches(dataset, **options):
    """Return Batches, or nothing where these options give no batch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            return loader.Batches(dataset, **options)
        except loader.LoaderError:
            assume(False)


def n_left_out(plan):
    """Return the second column of the table of remainders in the README."""
    n, per_step = plan.n_samples, plan.batch_size * plan.world_size
    modulo = {"sample": per_step, "keep": plan.world_size, "error": per_step, "pad": 1}
    return n % modulo[plan.remainder]


def shards(plan):
    return [plan.positions(rank, 0, plan.n_batches) for rank in range(plan.world_size)]


@given(plans)
def test_shards_are_disjoint_and_equal_and_cover_the_epoch(plan):
    ranks = shards(plan)
    assert len({len(positions) for positions in ranks}) == 1
    n_positions = len(ranks) * len(ranks[0])
    assert sorted(np.concatenate(ranks).tolist()) == list(range(n_positions))
    if plan.remainder == "pad":
        assert plan.n_samples <= n_positions < plan.n_samples + plan.n_per_step
    else:
        assert n_positions == plan.n_samples - n_left_out(plan)


@given(plans)
def test_batches_are_full_but_for_the_last_one_of_keep(plan):
    for rank in range(plan.world_size):
        sizes = [len(plan.positions(rank, b, b + 1)) for b in range(plan.n_batches)]
        full = sizes[:-1] if plan.remainder == "keep" else sizes
        assert set(full) <= {plan.batch_size}
        assert all(0 < size <= plan.batch_size for size in sizes)


@given(plans, st.data())
def test_positions_drawn_in_blocks_are_those_drawn_batch_by_batch(plan, data):
    first = data.draw(st.integers(0, plan.n_batches))
    stop = data.draw(st.integers(first, plan.n_batches))
    for rank in range(plan.world_size):
        batches = [plan.positions(rank, b, b + 1) for b in range(first, stop)]
        together = plan.positions(rank, first, stop).tolist()
        assert together == [position for batch in batches for position in batch.tolist()]


@given(plans, seeds, epochs, st.booleans())
def test_an_epoch_covers_every_sample_once_but_for_the_remainder(plan, seed, epoch, shuffle):
    drawn = [draw(plan, p, seed=seed, epoch=epoch, shuffle=shuffle) for p in shards(plan)]
    rows, times = np.unique(np.concatenate(drawn), return_counts=True)
    assert set(rows.tolist()) <= set(range(plan.n_samples))
    assert len(rows) == plan.n_samples - n_left_out(plan)
    if plan.remainder == "pad":
        assert times.max() - times.min() <= 1
    else:
        assert (times == 1).all()


@given(plans, seeds, epochs)
def test_file_order_is_the_order_of_the_file(plan, seed, epoch):
    assume(plan.remainder != "pad")
    drawn = draw(plan, np.arange(plan.n_positions), seed=seed, epoch=epoch, shuffle=False)
    assert (np.diff(drawn) > 0).all()


@given(st.integers(1, 3000), seeds, epochs)
def test_order_is_a_bijection(n_samples, seed, epoch):
    order = permute(np.arange(n_samples), n_samples, seed, epoch)
    assert sorted(order.tolist()) == list(range(n_samples))


@given(st.integers(1, 2**63 - 1), seeds, epochs, st.data())
def test_order_drawn_in_pieces_is_the_order(n_samples, seed, epoch, data):
    positions = st.integers(0, n_samples - 1)
    some = np.array(data.draw(st.lists(positions, min_size=1, max_size=20, unique=True)))
    together = permute(some, n_samples, seed, epoch).tolist()
    assert together == [int(permute(p, n_samples, seed, epoch)[0]) for p in some[:, np.newaxis]]
    assert len(set(together)) == len(together)
    assert all(0 <= row < n_samples for row in together)


@given(counts, st.integers(1, 9), st.integers(1, 4), remainders, st.booleans(), seeds)
def test_ranks_hand_out_an_epoch_together(
    dataset_of, n, batch_size, world_size, remainder, shuffle, seed
):
    options = {"batch_size": batch_size, "world_size": world_size, "seed": seed}
    options |= {"remainder": remainder, "shuffle": shuffle}
    ranks = [make_batches(dataset_of(n), rank=rank, **options) for rank in range(world_size)]
    rows = []
    for batches in ranks:
        n_batches = 0
        for images, _ in batches:
            assert images[0, 0].tolist() == batches.indices.tolist()
            rows += batches.indices[~batches.is_padding].tolist()
            n_batches += 1
        assert n_batches == len(ranks[0])
        assert batches.epochs_completed == 1
    left_out = n_left_out(EpochPlan(n, batch_size, world_size, remainder))
    assert len(rows) == len(set(rows)) == n - left_out


choices = st.sampled_from(
    [
        {},
        {"balance": "patient"},
        {"weights": lambda manifest: manifest["slice"] + 1},
        {"where": lambda manifest: manifest["slice"] % 3 != 1},
        {"prefetch": 1},
        {"prefetch": 4, "where": lambda manifest: manifest["slice"] > 2, "balance": "label"},
    ]
)


@given(counts, st.integers(1, 9), remainders, seeds, st.integers(0, 60), choices)
def test_restored_state_goes_on_bit_for_bit(
    dataset_of, n, batch_size, remainder, seed, n_drawn, choice
):
    options = {"batch_size": batch_size, "remainder": remainder, "seed": seed} | choice
    batches = make_batches(dataset_of(n), **options)
    for _ in range(n_drawn):
        batches.next_batch()
    restored = make_batches(dataset_of(n), **options)
    restored.load_state_dict(batches.state_dict())
    for _ in range(len(batches) + 1):
        for found, expected in zip(restored.next_batch(), batches.next_batch(), strict=True):
            assert found.tobytes() == expected.tobytes()
        assert restored.indices.tolist() == batches.indices.tolist()
    assert restored.state_dict() == batches.state_dict()


@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("bytes") / "out.h5"
    write_dataset(path, n=2, rows=1, columns=2, n_findings=1, alignment=1)
    return path.read_bytes()


def open_and_read(path):
    """Read every value of a file, or give the loader's error."""
    try:
        data = loader.open_dataset(path)
    except loader.LoaderError as error:
        return error
    arrays = [data.images, data.masks]
    for table in (data.manifest, data.contours, data.findings):
        arrays += table.values()
    return b"".join(array.tobytes() for array in arrays)


@given(st.data())
def test_flipped_bytes_give_a_dataset_or_an_error(small_file, tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "flipped.h5"
    positions = st.integers(0, len(small_file) - 1)
    changes = data.draw(st.dictionaries(positions, st.integers(0, 255), min_size=1, max_size=8))
    content = bytearray(small_file)
    for position, value in changes.items():
        content[position] = value
    path.write_bytes(content)
    assert isinstance(open_and_read(path), bytes | loader.LoaderError)


@given(st.binary(max_size=300), st.integers(0, 100))
def test_any_bytes_give_an_error(small_file, tmp_path_factory, content, n_genuine):
    path = tmp_path_factory.getbasetemp() / "any.h5"
    path.write_bytes(small_file[:n_genuine] + content)
    assert isinstance(open_and_read(path), loader.LoaderError)
