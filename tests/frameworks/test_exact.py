"""The same samples by every way, for options drawn at random."""

import json
import pickle
import random

import numpy as np
import pytest
from dataset_builder import write_dataset

import loader
from loader import Augment, Neighbours, Patches

torch = pytest.importorskip("torch")
pytest.importorskip("cv2")

from torch.utils.data import DataLoader  # noqa: E402 torch may be missing

import loader.torch as loader_torch  # noqa: E402

N = 37
CHOICES = {
    "remainder": ["sample", "keep", "pad"],
    "patches": [None, Patches((8, 8)), Patches((9, 8), foreground=0.5, pad=True)],
    "neighbours": [None, 1, Neighbours(2, edges="mark")],
    "augment": [
        None,
        Augment.none(flip_rows=0.5, quarter_turns=0.5, gamma=(0.5, 0.7, 1.4)),
        Augment.cardiac_mr(),
    ],
    "mask_channels": [None, "uint8", "float32"],
    "normalize": [None, "zscore"],
    "batch_size": [1, 3, 4, 16, 37, 50],
}
WEIGHTS = [{}, {}, {"balance": "patient"}, {"weights": np.arange(N) + 1.0}]

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*rows .*left out:UserWarning", "ignore:.*multi-threaded.*fork:DeprecationWarning"
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Return a file of stacks of six slices."""
    path, heights = tmp_path_factory.mktemp("exact") / "out.h5", np.arange(N) % 6
    manifest = {"patient_id": [f"P{row // 6}".encode() for row in range(N)], "series": [b""] * N}
    manifest |= {"trigger_time": [0.0] * N, "slice_location": heights}
    manifest |= {"image_position_x": [np.nan] * N}
    write_dataset(path, n=N, rows=20, columns=20, manifest=manifest)
    return path


def bits(batch):
    return tuple(np.ascontiguousarray(one).tobytes() for one in batch)


def epoch_of(batches):
    return [bits(batch) for batch in batches]


def watched(batches):
    """Return an epoch: samples, rows and padding of each batch, and the states around them."""
    states, found = [batches.state_dict()], []
    for batch in batches:
        found.append((bits(batch), batches.indices.tolist(), batches.is_padding.tolist()))
        states.append(batches.state_dict())
    return found, states


@pytest.mark.parametrize("number", range(12))
def test_every_way_hands_out_the_same(path, number):
    rng = random.Random(number)  # noqa: S311  no secret
    options = {name: rng.choice(values) for name, values in CHOICES.items()}
    options |= rng.choice(WEIGHTS) | {"seed": rng.randrange(2**64)}
    world_size = rng.choice([1, 1, 2, 3])
    if options["remainder"] == "sample":
        options["batch_size"] = min(options["batch_size"], N // world_size)
    drawn = []
    for rank in range(world_size):
        of_rank = options | {"rank": rank, "world_size": world_size}
        batches = loader.Batches(path, layout="NCHW", **of_rank)
        epochs = [watched(batches) for _ in range(2)]
        drawn += [(row, pads) for _, rows, is_padding in epochs[0][0]
                  for row, pads in zip(rows, is_padding, strict=True)]  # fmt: skip
        require_ways(path, of_rank, epochs, rng)
    if not {"weights", "balance"} & options.keys():
        rows = [row for row, pads in drawn if not pads]
        n_fewest = N if options["remainder"] == "pad" else N - world_size * options["batch_size"]
        assert n_fewest <= len(rows) == len(set(rows))


def require_ways(path, options, epochs, rng):
    first, second = ([one[0] for one in found] for found, _ in epochs)
    states, n = epochs[0][1], len(first)
    with loader.Batches(path, layout="NCHW", prefetch=rng.choice([1, 3]), **options) as batches:
        assert [epoch_of(batches), epoch_of(batches)] == [first, second]
    for place in {0, rng.randrange(n + 1), n}:
        batches = loader.Batches(path, layout="NCHW", prefetch=rng.choice([0, 2]), **options)
        batches.load_state_dict(json.loads(json.dumps(states[place])))
        twin = pickle.loads(pickle.dumps(batches))
        for one in (batches, twin):
            assert epoch_of(one) == (first[place:] or second)
            one.close()
    dataset = loader_torch.IterableDataset(path, **options)
    n_workers = rng.choice([0, 0, 1, 2])
    ways = {"persistent_workers": rng.random() < 0.5} if n_workers else {}
    ways |= {"multiprocessing_context": "fork"} if n_workers else {}
    together = DataLoader(dataset, batch_size=None, num_workers=n_workers, **ways)
    assert [epoch_of(together), epoch_of(together)] == [first, second]
    makers = [loader_torch.DeviceBatches]
    if options["neighbours"] is None and options["augment"] is None:
        makers.append(loader_torch.ResidentBatches)
    for make in makers:
        batches = make(path, "cpu", prefetch=rng.choice([0, 2]), **options)
        assert [watched(batches), watched(batches)] == epochs
        batches.close()
        batches.close()
