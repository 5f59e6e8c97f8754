"""Batches that a device normalises and augments; on the CPU's tensors, and on CUDA where it is."""

import copy
import pickle

import numpy as np
import pytest
from dataset_builder import CARDIAC, with_bits, write_dataset

import loader
from loader import Augment, Patches

torch = pytest.importorskip("torch")

import loader.torch as loader_torch  # noqa: E402 torch may be missing

N, BATCH = 53, 4
OPTIONS = {"batch_size": BATCH, "seed": 7, "remainder": "keep"}
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
KINDS = ["minmax", "zscore", "percentile", "dataset"]


@pytest.fixture(scope="module", params=["<i2", "<u2", "<i4", "<f4"])
def path(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("device") / "out.h5"
    offset = 40_000 if request.param == "<u2" else 0  # beyond what int16 holds
    low = np.linspace(offset, offset + 90, N)
    statistics = {"minimum": low, "p01": low + 1, "mean": low + 400, "p99": low + 800}
    statistics |= {"maximum": low + 999, "std": np.linspace(3, 200, N)}
    write_dataset(
        path,
        n=N,
        rows=16,
        columns=20,
        image_dtype=request.param,
        offset=offset,
        manifest=statistics,
    )
    return path


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    path = tmp_path_factory.mktemp("short") / "out.h5"
    write_dataset(path, n=N, rows=16, columns=20)
    return path


def epochs_of(batches, n_epochs):
    return [
        [(images.cpu().numpy(), masks.cpu().numpy()) for images, masks in batches]
        for _ in range(n_epochs)
    ]


def expected_epochs(path, n_epochs, **options):
    batches = loader.Batches(path, layout="NCHW", **OPTIONS | options)
    return [[(images.copy(), masks.copy()) for images, masks in batches] for _ in range(n_epochs)]


def require_equal(found, expected):
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert len(mine) == len(theirs)
        for one, other in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(one[0], other[0])
            np.testing.assert_array_equal(one[1], other[1])
            assert one[0].dtype == other[0].dtype


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("options", [{}, {"dtype": "float32"}, *({"normalize": k} for k in KINDS)])
def test_values_are_those_of_the_host(path, device, options):
    expected = expected_epochs(path, 2, **options)
    for make in (loader_torch.ResidentBatches, loader_torch.DeviceBatches):
        with make(path, device, **OPTIONS | options) as batches:
            require_equal(epochs_of(batches, 2), expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("patches", [None, Patches((8, 9), pad=True)])
def test_padding_is_clipped_as_on_the_host(tmp_path, device, patches):
    path, limits = tmp_path / "out.h5", {"minimum": [100] * N, "maximum": [600] * N}
    limits |= {"n_padding": [9] * N}
    write_dataset(path, n=N, rows=16, columns=20, manifest=limits)
    options = {"normalize": "minmax", "patches": patches}
    expected = expected_epochs(path, 1, **options)
    for make in (loader_torch.ResidentBatches, loader_torch.DeviceBatches):
        with make(path, device, **OPTIONS | options) as batches:
            found = epochs_of(batches, 1)
        require_equal(found, expected)
        assert {float(images.min()) for images, _ in found[0]} == {0.0}
        assert {float(images.max()) for images, _ in found[0]} == {1.0}


MASKS = {
    "labels": (CARDIAC, "|u1"),
    "byte": (with_bits(CARDIAC), "|u1"),
    "uint16": (with_bits(CARDIAC, {"i-contour": 15, "o-contour": 2}), "<u2"),
    "uint32": (with_bits(CARDIAC, {"i-contour": 3, "o-contour": 31}), "<u4"),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("channels", [None, "bool", "uint8", "float32"])
@pytest.mark.parametrize("augment", [None, Augment.none(flip_rows=0.5, flip_columns=0.5)])
def test_masks_are_those_of_the_host(tmp_path, device, kind, channels, augment):
    structures, dtype = MASKS[kind]
    path = tmp_path / "out.h5"
    write_dataset(path, n=N, rows=16, columns=20, structures=structures, mask_dtype=dtype)
    options = {"mask_channels": channels, "augment": augment}
    expected = expected_epochs(path, 2, **options)
    for make in (loader_torch.ResidentBatches, loader_torch.DeviceBatches):
        with make(path, device, **OPTIONS | options) as batches:
            found = epochs_of(batches, 2)
            require_equal(found, expected)
            for mine, theirs in zip(found[0], expected[0], strict=True):
                assert (mine[1].dtype, mine[1].shape) == (theirs[1].dtype, theirs[1].shape)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["byte", "uint16", "uint32"])
def test_words_are_resampled_on_the_device(tmp_path, device, kind):
    """The nearest pixel of a word is that of each of its bits."""
    structures, dtype = MASKS[kind]
    path = tmp_path / "out.h5"
    write_dataset(path, n=N, rows=16, columns=20, structures=structures, mask_dtype=dtype)
    data, options = loader.open_dataset(path), {"augment": Augment.none(rotate=(1, 10, 40))}
    with loader_torch.ResidentBatches(path, device, **OPTIONS | options) as batches:
        (words,) = epochs_of(batches, 1)
    options["mask_channels"] = "uint8"
    with loader_torch.ResidentBatches(path, device, **OPTIONS | options) as batches:
        (channels,) = epochs_of(batches, 1)
    for (_, stored), (_, found) in zip(words, channels, strict=True):
        np.testing.assert_array_equal(found, data.mask_channels(stored[:, 0], "uint8"))


@pytest.mark.filterwarnings("ignore:.*rows fill no whole batch:UserWarning")
@pytest.mark.parametrize(
    "options",
    [
        {"split": "train"},
        {"shuffle": False},
        {"remainder": "pad", "batch_size": 6, "rank": 1, "world_size": 2},
        {"remainder": "sample"},
        {"balance": "patient"},
        {"where": np.arange(N) % 3 == 1},
    ],
)
def test_order_is_that_of_the_loader(tmp_path, options):
    path = tmp_path / "out.h5"
    write_dataset(path, n=N, split=[0] * 40 + [1] * 13)
    options = OPTIONS | options
    batches = loader.Batches(path, layout="NCHW", **options)
    resident = loader_torch.ResidentBatches(path, "cpu", **options)
    for _ in range(2):
        for (images, _), (mine, _) in zip(batches, resident, strict=True):
            assert resident.indices.tolist() == batches.indices.tolist()
            assert resident.is_padding.tolist() == batches.is_padding.tolist()
            np.testing.assert_array_equal(mine.numpy(), images)
    assert resident.state_dict() == batches.state_dict()


@pytest.mark.parametrize("device", DEVICES)
def test_a_state_is_exact_and_the_same_for_all_ways(short, device):
    (together,) = expected_epochs(short, 1)
    ways = (loader_torch.DeviceBatches, loader_torch.ResidentBatches)
    for make, other in (ways, ways[::-1]):
        batches = make(short, device, **OPTIONS)
        for n, _ in enumerate(batches, 1):
            if n == 5:
                break
        state = batches.state_dict()
        assert state["batch"] == 5
        following = other(short, device, **OPTIONS)
        following.load_state_dict(state)
        require_equal([epochs_of(following, 1)[0]], [together[5:]])
        batches.set_epoch(3)
        assert (batches.epochs_completed, batches.state_dict()["batch"]) == (3, 0)
        batches.close()


@pytest.mark.parametrize("device", DEVICES)
def test_copies_iterate_on_their_own(short, device):
    batches = loader_torch.ResidentBatches(short, device, **OPTIONS)
    next(iter(batches))
    for twin in (copy.copy(batches), pickle.loads(pickle.dumps(batches))):
        assert twin.state_dict() == batches.state_dict()
        (rest,) = epochs_of(twin, 1)
        assert len(rest) == len(batches) - 1
    assert batches.epochs_completed == 0


@pytest.mark.parametrize("device", DEVICES)
def test_augmentation_on_the_device_is_that_of_the_host(short, device):
    augment = Augment.none(flip_rows=0.5, gamma=(0.5, 0.7, 1.4), brightness=(0.5, -0.3, 0.3))
    expected = expected_epochs(short, 2, augment=augment, normalize="zscore")
    options = OPTIONS | {"augment": augment, "normalize": "zscore"}
    for make in (loader_torch.ResidentBatches, loader_torch.DeviceBatches):
        batches = make(short, device, **options)
        for mine, theirs in zip(epochs_of(batches, 2), expected, strict=True):
            for one, other in zip(mine, theirs, strict=True):
                np.testing.assert_allclose(one[0], other[0], atol=2e-4)
                np.testing.assert_array_equal(one[1], other[1])


@pytest.mark.parametrize("device", DEVICES)
def test_after_close_an_iteration_goes_on(short, device):
    (together,) = expected_epochs(short, 1)
    for make in (loader_torch.DeviceBatches, loader_torch.ResidentBatches):
        found = []
        batches = make(short, device, prefetch=2, **OPTIONS)
        for n, (images, masks) in enumerate(batches):
            found.append((images.cpu().numpy(), masks.cpu().numpy()))
            if n in {0, 5}:
                batches.close()
                batches.close()
        batches.close()
        require_equal([found], [together])


def test_what_does_not_fit_is_refused_with_the_sizes(short, monkeypatch):
    from loader.torch import resident

    monkeypatch.setattr(resident, "_free_bytes", lambda _: 10_000)
    batches = loader_torch.ResidentBatches(short, "cpu", **OPTIONS)
    assert batches.n_bytes == N * 16 * 20 * 3
    with pytest.raises(loader.LoaderError, match=r"53 rows take 0\.1 MB, and cpu has 0\.0 MB free"):
        next(iter(batches))
    batches = loader_torch.ResidentBatches(short, "cpu", fallback=True, **OPTIONS)
    require_equal(epochs_of(batches, 1), expected_epochs(short, 1))


@pytest.mark.parametrize("gather_threads", [0, -1, 1.5, "2"])
def test_threads_are_a_number(short, gather_threads):
    with pytest.raises((TypeError, ValueError), match="gather_threads"):
        loader_torch.DeviceBatches(short, "cpu", gather_threads=gather_threads, **OPTIONS)


@CUDA
@pytest.mark.parametrize("gather_threads", [1, 3])
@pytest.mark.parametrize("prefetch", [0, 1, 4])
def test_cuda_takes_batches_through_pinned_memory(path, gather_threads, prefetch):
    with loader_torch.DeviceBatches(
        path, "cuda", gather_threads=gather_threads, prefetch=prefetch, **OPTIONS
    ) as batches:
        require_equal(epochs_of(batches, 3), expected_epochs(path, 3))


@CUDA
def test_cuda_batches_that_nobody_waits_for_are_whole(short):
    """Ten epochs of work queued on the device before the first result is looked at."""
    batches = loader_torch.DeviceBatches(short, "cuda", normalize="zscore", **OPTIONS)
    sums = [images.double().sum() for _ in range(10) for images, _ in batches]
    expected = [
        images.astype(np.float64).sum()
        for epoch in expected_epochs(short, 10, normalize="zscore")
        for images, _ in epoch
    ]
    np.testing.assert_allclose([one.item() for one in sums], expected, rtol=1e-9, atol=1e-6)
