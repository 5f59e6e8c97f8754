"""Patches in PyTorch: the data sets, batches on a device, and grids of tensors."""

import numpy as np
import pytest
from dataset_builder import write_dataset

import loader
from loader import Augment, Patches

torch = pytest.importorskip("torch")

from torch.utils.data import DataLoader  # noqa: E402 torch may be missing

import loader.torch as loader_torch  # noqa: E402
from loader.augment import draw_parameters  # noqa: E402
from loader.torch import augment as torch_backend  # noqa: E402

N, H, W, BATCH = 23, 20, 26, 4
OPTIONS = {"batch_size": BATCH, "seed": 7, "remainder": "keep"}
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
KINDS = [
    Patches((8, 9)),
    Patches((8, 8), foreground=0.5),
    Patches((8, 9), foreground=0.5, pad=True),
    Patches((24, 9), pad=True),
]
TURNS = {"flip_rows": 0.5, "flip_columns": 0.5, "quarter_turns": 0.7}
MOVES = {"rotate": (0.6, -60, 60), "scale": (0.6, 0.6, 1.5), "shift": (0.5, -0.4, 0.4)}
MOVES |= {"elastic": (0.5, 0.03, 0.08)}
VALUES = {"gamma": (0.5, 0.7, 1.4), "brightness": (0.5, -0.3, 0.3)}

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*multi-threaded.*fork:DeprecationWarning", "ignore:1 of 23 rows are left out"
)


@pytest.fixture(scope="module", params=["<i2", "<u2", "<f4"])
def path(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("patches") / "out.h5"
    offset = 40_000 if request.param == "<u2" else 0  # beyond what int16 holds
    write_dataset(path, n=N, rows=H, columns=W, image_dtype=request.param, offset=offset)
    return path


def epochs_of(batches, n_epochs=2):
    return [
        [tuple(torch.as_tensor(one).cpu().numpy().copy() for one in batch) for batch in batches]
        for _ in range(n_epochs)
    ]


def require_close(found, expected, tolerance=0.0, n_ties=0.0):
    """Images within a tolerance, and few masks of another label."""
    n_pixels = n_differing = 0
    for mine, theirs in zip(found, expected, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            assert one[0].dtype == other[0].dtype
            differ = one[1] != other[1]
            np.testing.assert_allclose(one[0], other[0], rtol=0, atol=tolerance)
            n_pixels, n_differing = n_pixels + differ.size, n_differing + differ.sum()
    assert n_differing <= n_ties * n_pixels


def host(path, **options):
    return epochs_of(loader.Batches(path, layout="NCHW", **OPTIONS | options))


def makers(path, device, **options):
    for make in (loader_torch.ResidentBatches, loader_torch.DeviceBatches):
        yield make(path, device, **OPTIONS | options)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("patches", KINDS)
def test_on_a_device_patches_are_those_of_the_host(path, device, patches):
    for values in ({}, {"normalize": "zscore"}, {"mask_channels": "uint8"}):
        options = {"patches": patches, **values}
        for batches in makers(path, device, **options):
            with batches:
                require_close(epochs_of(batches), host(path, **options))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("patches", KINDS)
@pytest.mark.parametrize("parts", [{}, MOVES, {**MOVES, "interpolation": "cubic"}])
def test_they_are_augmented_as_on_the_host(path, device, patches, parts):
    cv2 = pytest.importorskip("cv2")
    augment = Augment.none(**TURNS, **VALUES, **parts)
    options = {"patches": patches, "augment": augment, "normalize": "minmax"}
    is_exact = int(cv2.__version__.partition(".")[0]) > 4
    for batches in makers(path, device, **options):
        with batches:
            # The kernels of cubic interpolation differ: see docs/augmentation.md.
            tolerance = 1e-3 if is_exact and "interpolation" not in parts else 0.3
            ties = 1e-3 if parts else 0
            require_close(epochs_of(batches), host(path, **options), tolerance, ties)


@pytest.mark.parametrize("shape", [(8, 8), (7, 11)])
def test_a_patch_of_tensors_is_a_part_of_the_image(shape):
    """Where nothing is resampled; and where all of the image is the patch."""
    images = torch.randn(6, H, W)
    masks = torch.randint(0, 3, (6, H, W), dtype=torch.uint8)
    corners = torch.tensor([(0, 0), (3, 4), (9, 15), (12, 2), (5, 5), (1, 1)])
    turns = draw_parameters(Augment.none(**TURNS), shape, seed=1, epoch=0, rows=np.arange(6))
    cuts = [
        torch.stack(
            [one[i, r : r + shape[0], c : c + shape[1]] for i, (r, c) in enumerate(corners)]
        )
        for one in (images, masks)
    ]
    expected = torch_backend.augment_batch(*cuts, turns)
    found = torch_backend.augment_batch(images, masks, turns, corners=corners)
    assert all(map(torch.equal, found, expected))
    moves = draw_parameters(Augment.none(**MOVES), (H, W), seed=1, epoch=0, rows=np.arange(6))
    expected = torch_backend.augment_batch(images, masks, moves)
    nowhere = torch.zeros(6, 2, dtype=torch.int64)
    found = torch_backend.augment_batch(images, masks, moves, corners=nowhere)
    assert all(map(torch.equal, found, expected))


def test_states_and_ranks_mean_the_same(path):
    options = {"patches": Patches((8, 9), 0.5, pad=True), "normalize": "zscore"}
    together = host(path, **options)[0]
    for batches in makers(path, "cpu", **options):
        for n, _ in enumerate(batches, 1):
            if n == 2:
                break
        state = batches.state_dict()
        for following in makers(path, "cpu", **options):
            following.load_state_dict(state)
            require_close(epochs_of(following, 1), [together[2:]])
        with pytest.raises(loader.LoaderError, match="patches"):
            loader_torch.DeviceBatches(path, "cpu", **OPTIONS, normalize="zscore").load_state_dict(
                state
            )
    shares = [
        host(path, **options | {"rank": rank, "world_size": 2, "batch_size": 2})[0]
        for rank in range(2)
    ]
    for rank, share in enumerate(shares):
        for batches in makers(
            path, "cpu", **options | {"rank": rank, "world_size": 2, "batch_size": 2}
        ):
            require_close(epochs_of(batches, 1), [share])


@pytest.mark.parametrize("n_workers", [0, 2])
def test_iterable_data_sets_have_the_patches_of_the_loader(path, n_workers):
    options = {"patches": KINDS[1]}
    dataset = loader_torch.IterableDataset(path, **OPTIONS | options)
    loaded = DataLoader(
        dataset,
        batch_size=None,
        num_workers=n_workers,
        multiprocessing_context="fork" if n_workers else None,
    )
    require_close(epochs_of(loaded), host(path, **options))


def test_samples_one_by_one_follow_set_epoch(path):
    dataset = loader_torch.Dataset(path, patches=KINDS[1], seed=7)
    with pytest.raises(loader.LoaderError, match=r"Sample not made: .* Call set_epoch"):
        dataset[0]
    batches = loader.Batches(path, layout="NCHW", shuffle=False, patches=KINDS[1], **OPTIONS)
    for epoch in range(2):
        dataset.set_epoch(epoch)
        expected = [pair for arrays in batches for pair in zip(*arrays, strict=True)]
        for i, (image, mask) in enumerate(expected):
            np.testing.assert_array_equal(dataset[i][0].numpy(), image)
            np.testing.assert_array_equal(dataset[i][1].numpy(), mask)


# Grids


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("blend", ["average", "gaussian"])
@pytest.mark.parametrize(
    ("shape", "size", "overlap"),
    [((12, 15), (4, 5), 0), ((13, 17), (6, 7), 3), ((6, 20), (8, 8), 0), ((3, 2), (5, 7), 2)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_grids_are_those_of_arrays(shape, size, overlap, blend, device, dtype):
    grid, of_arrays = (
        loader_torch.GridPatches(shape, size, overlap),
        loader.GridPatches(shape, size, overlap),
    )
    assert (len(grid), grid.corners) == (len(of_arrays), of_arrays.corners)
    images = torch.randn(2, 3, *shape).to(dtype)
    patches = grid.cut(images.to(device))
    assert patches.device.type == device
    np.testing.assert_array_equal(patches.cpu().numpy(), of_arrays.cut(images.numpy()))
    if dtype != torch.float64:
        assert torch.equal(grid.stitch(patches, blend).cpu(), images)
    predictions = torch.randn(len(grid), 4, *size).to(dtype)
    found = grid.stitch(predictions.to(device), blend).cpu()
    expected = of_arrays.stitch(predictions.numpy(), blend)
    # torch rounds float64 to float32 on the way to float16.
    tolerance = {torch.float16: 1e-3, torch.float64: 1e-12 if device != "cpu" else 0}
    np.testing.assert_allclose(
        found.numpy(), expected, rtol=tolerance.get(dtype, 0), atol=1e-3 * (dtype == torch.float16)
    )


def test_grids_refuse_what_does_not_fit():
    grid = loader_torch.GridPatches((8, 8), (4, 4))
    assert grid.stitch(grid.cut(torch.randn(8, 8).bfloat16())).dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"image: .* found \(8, 9\)"):
        grid.cut(torch.zeros(8, 9))
    with pytest.raises(ValueError, match=r"patches: expected \(4, ..., 4, 4\)"):
        grid.stitch(torch.zeros(3, 4, 4))
    with pytest.raises(TypeError, match=r"floating-point scores, found torch\.uint8"):
        grid.stitch(torch.zeros(4, 4, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match="blend"):
        grid.stitch(torch.zeros(4, 4, 4), blend="max")
