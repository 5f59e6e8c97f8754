"""Transforms and neighbours in the adapters of PyTorch: samples are those of `loader.Batches`."""

import threading

import numpy as np
import pytest
from dataset_builder import write_dataset

import loader

torch = pytest.importorskip("torch")

from torch.utils.data import DataLoader  # noqa: E402 torch may be missing

import loader.torch as loader_torch  # noqa: E402

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
N = 12
OPTIONS = {"batch_size": 4, "seed": 7, "normalize": "zscore"}

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*multi-threaded.*fork:DeprecationWarning",
    "ignore:This DataLoader will create:UserWarning",
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("transformed") / "out.h5"
    write_dataset(path, n=N, rows=6, columns=8)
    return path


def noisy_half(image, mask, manifest, generator):
    noise = generator.normal(scale=0.1, size=image.shape)
    return (image + noise)[..., ::2, ::2], mask[::2, ::2]


def fail(image, mask, manifest, generator):
    raise RuntimeError("no transform today")


def expected_epoch(path, epoch):
    batches = loader.Batches(path, layout="NCHW", transform=noisy_half, **OPTIONS)
    batches.set_epoch(epoch)
    return [(images.copy(), masks.copy()) for images, masks in batches]


def require_equal(found, expected):
    assert len(found) == len(expected)
    for tensors, arrays in zip(found, expected, strict=True):
        for tensor, array in zip(tensors, arrays, strict=True):
            assert tensor.shape == (4, 1, 3, 4)
            np.testing.assert_array_equal(tensor.numpy(), array)


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("options", [{}, {"num_workers": 2, "timeout": 600}])
def test_the_iterable_data_set_transforms_in_workers_too(path, options, prefetch):
    dataset = loader_torch.IterableDataset(path, transform=noisy_half, prefetch=prefetch, **OPTIONS)
    batches = DataLoader(dataset, batch_size=None, **options)
    for epoch in range(2):
        require_equal(list(batches), expected_epoch(path, epoch))


def test_spawned_workers_import_the_transform(path):
    dataset = loader_torch.IterableDataset(path, transform=noisy_half, **OPTIONS)
    options = {"num_workers": 1, "timeout": 600, "multiprocessing_context": "spawn"}
    require_equal(list(DataLoader(dataset, batch_size=None, **options)), expected_epoch(path, 0))


@pytest.mark.parametrize("n_workers", [0, 2])
def test_the_data_set_of_samples_transforms_as_the_epoch_says(path, n_workers):
    options = {name: value for name, value in OPTIONS.items() if name != "batch_size"}
    dataset = loader_torch.Dataset(path, transform=noisy_half, **options)
    with pytest.raises(loader.LoaderError, match="Call set_epoch"):
        dataset[0]
    for epoch in range(2):
        dataset.set_epoch(epoch)
        order = loader.Batches(path, **OPTIONS)
        order.set_epoch(epoch)
        rows = [row for _ in order for row in order.indices.tolist()]
        batches = DataLoader(dataset, 4, sampler=rows, num_workers=n_workers)
        require_equal(list(batches), expected_epoch(path, epoch))


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])
def test_batches_on_a_device_are_transformed_on_the_host(path, device, prefetch):
    before = threading.enumerate()
    options = OPTIONS | {"transform": noisy_half, "prefetch": prefetch}
    with loader_torch.DeviceBatches(path, device, **options) as batches:
        for epoch in range(2):
            found = list(batches)
            assert {tensor.device.type for pair in found for tensor in pair} == {device}
            require_equal(
                [tuple(one.cpu() for one in pair) for pair in found], expected_epoch(path, epoch)
            )
        iterator = iter(batches)
        next(iterator)
        state = batches.state_dict()
    begun = [one for one in threading.enumerate() if one not in before]
    assert not [one for one in begun if one.name == "loader-prefetch"]
    resumed = loader_torch.DeviceBatches(path, device, **options)
    resumed.load_state_dict(state)
    found = [tuple(one.cpu() for one in pair) for pair in resumed]
    require_equal(found, expected_epoch(path, 2)[1:])


def test_batches_that_are_resident_have_no_transform(path):
    with pytest.raises(TypeError, match=r"ResidentBatches: transform: .* Use DeviceBatches"):
        loader_torch.ResidentBatches(path, "cpu", transform=noisy_half, **OPTIONS)


def test_an_error_in_a_worker_names_the_row(path):
    dataset = loader_torch.IterableDataset(path, transform=fail, shuffle=False, **OPTIONS)
    batches = DataLoader(dataset, batch_size=None, num_workers=1, timeout=600)
    with pytest.raises(loader.LoaderError, match=r"row 0 \(patient patient_id µ0, slice 0\)"):
        next(iter(batches))


def test_neighbours_are_channels_of_tensors(tmp_path):
    heights = np.arange(N) % 4
    manifest = {"patient_id": [f"P{row // 4}".encode() for row in range(N)], "series": [b""] * N}
    manifest |= {"trigger_time": [0.0] * N, "slice_location": heights}
    manifest |= {"image_position_x": [np.nan] * N}
    write_dataset(tmp_path / "out.h5", n=N, rows=6, columns=8, manifest=manifest)
    options = OPTIONS | {"neighbours": 1}
    expected, _ = loader.Batches(tmp_path / "out.h5", layout="NCHW", **options).next_batch()
    assert expected.shape == (4, 3, 6, 8)
    iterable = loader_torch.IterableDataset(tmp_path / "out.h5", **options)
    on_device = loader_torch.DeviceBatches(tmp_path / "out.h5", "cpu", **options)
    for batches in (DataLoader(iterable, batch_size=None, num_workers=1, timeout=600), on_device):
        np.testing.assert_array_equal(next(iter(batches))[0].numpy(), expected)
    rows = on_device.indices.tolist()
    samples = loader_torch.Dataset(tmp_path / "out.h5", normalize="zscore", neighbours=1)
    images, masks = next(iter(DataLoader(samples, 4, sampler=rows)))
    np.testing.assert_array_equal(images.numpy(), expected)
    assert masks.shape == (4, 1, 6, 8)
    patches = {"patches": loader.Patches((3, 4), pad=True)}
    options |= patches
    expected, _ = loader.Batches(tmp_path / "out.h5", layout="NCHW", **options).next_batch()
    iterable = loader_torch.IterableDataset(tmp_path / "out.h5", **options)
    on_device = loader_torch.DeviceBatches(tmp_path / "out.h5", "cpu", **options)
    for batches in (DataLoader(iterable, batch_size=None, num_workers=1, timeout=60), on_device):
        np.testing.assert_array_equal(next(iter(batches))[0].numpy(), expected)
    samples = loader_torch.Dataset(
        tmp_path / "out.h5", normalize="zscore", neighbours=1, seed=options["seed"], **patches
    )
    samples.set_epoch(0)
    images, _ = next(iter(DataLoader(samples, 4, sampler=rows)))
    np.testing.assert_array_equal(images.numpy(), expected)
    with pytest.raises(TypeError, match=r"ResidentBatches: neighbours: .* Use DeviceBatches"):
        loader_torch.ResidentBatches(tmp_path / "out.h5", "cpu", **options)
