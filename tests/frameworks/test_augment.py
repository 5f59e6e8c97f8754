"""Augmentation in real PyTorch: the backend of tensors, and the adapters."""

import importlib.util
import multiprocessing
import shutil

import numpy as np
import pytest
from dataset_builder import write_dataset

import loader
from loader import Augment
from loader.augment import arrays as numpy_backend
from loader.augment import draw_parameters

torch = pytest.importorskip("torch")
pytest.importorskip("cv2")

from torch.utils.data import DataLoader  # noqa: E402 torch may be missing

import loader.torch as loader_torch  # noqa: E402
from loader.torch import augment as torch_backend  # noqa: E402

N, BATCH = 12, 4
MOVES = {"rotate": (1, -60, 60), "scale": (1, 0.7, 1.4), "elastic": (0.7, 0.02, 0.05)}
TURNS = {"flip_rows": 0.5, "flip_columns": 0.5, "quarter_turns": 0.7}

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*multi-threaded.*fork:DeprecationWarning",
    "ignore:'set_vital' is deprecated:UserWarning",  # in torchdata
)


def samples(rows, columns, n=8):
    y, x = np.mgrid[:rows, :columns]
    rng = np.random.default_rng(0)
    waves = [np.sin(x / 7 + i) * np.cos(y / 9) + 0.3 * np.sin((x + y) / 5) for i in range(n)]
    images = np.stack(waves).astype(np.float32)
    return images, rng.choice([0, 1, 2, 255], (n, rows, columns)).astype(np.uint8)


def both(augment, images, masks, **options):
    """Return the batch of each backend, of the same parameters."""
    shape, rows = images.shape[1:], np.arange(len(images))
    parameters = draw_parameters(augment, shape, seed=7, epoch=1, rows=rows)
    expected = numpy_backend.augment_batch(images, masks, parameters)
    tensors = torch.from_numpy(images), torch.from_numpy(masks)
    found = torch_backend.augment_batch(*tensors, parameters, **options)
    assert found[0].dtype == torch.float32
    assert found[1].dtype == tensors[1].dtype
    return expected, (found[0].numpy(), found[1].numpy())


# Both backends


@pytest.mark.parametrize("shape", [(64, 64), (48, 80), (256, 256)])
@pytest.mark.parametrize(
    ("augment", "tolerance"),
    [
        (Augment.none(**TURNS), 0),
        (Augment.none(**TURNS, **MOVES), 1 / 32),
        (Augment.none(**MOVES, interpolation="cubic"), 1 / 32),
        (Augment.none(blur=(0.5, 0.5, 2), low_resolution=(0.5, 0.3, 1)), 1e-6),
        (Augment.none(gamma=(0.7, 0.5, 2), bias_field=(0.7, 0, 0.5)), 1e-5),
        (Augment.none(contrast=(0.7, 0.5, 2), brightness=(0.7, -1, 1), noise=(0.7, 0, 1)), 1e-5),
        (Augment(), 1 / 32),
        (Augment.cardiac_mr(), 1 / 32),
        (Augment.ct(), 1 / 32),
    ],
)
def test_both_backends_agree(augment, tolerance, shape):
    """Images to the tolerance of the documentation, masks but for ties."""
    images, masks = samples(*shape)
    expected, found = both(augment, images, masks)
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=tolerance)
    n_other = (found[1] != expected[1]).sum()
    assert n_other <= 1e-4 * masks.size
    if not augment.has("rotate", "scale", "elastic"):
        assert n_other == 0


def test_with_opencv_5_images_agree_to_a_ten_thousandth():
    cv2 = pytest.importorskip("cv2", "5.0")
    assert cv2 is not None
    images, masks = samples(256, 256)
    expected, found = both(Augment.none(**TURNS, **MOVES), images, masks)
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "int64"])
def test_masks_keep_their_type_and_labels(dtype):
    images, masks = samples(40, 40)
    labels = masks.astype(dtype) * (1 if dtype == "uint8" else 100)
    tensors = torch.from_numpy(images), torch.from_numpy(labels)
    parameters = draw_parameters(Augment.cardiac_mr(), (40, 40), seed=7, epoch=0, rows=np.arange(8))
    _, found = torch_backend.augment_batch(*tensors, parameters)
    assert found.dtype == tensors[1].dtype
    assert set(np.unique(found)) <= set(np.unique(labels))


def test_the_same_call_gives_the_same_bits():
    images, masks = samples(64, 64)
    tensors = torch.from_numpy(images), torch.from_numpy(masks)
    parameters = draw_parameters(Augment.cardiac_mr(), (64, 64), seed=7, epoch=0, rows=np.arange(8))
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        one, another = (torch_backend.augment_batch(*tensors, parameters) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(before)
    assert torch.equal(one[0], another[0])
    assert torch.equal(one[1], another[1])


def test_the_first_exponential_of_a_process_is_by_one_thread(monkeypatch):
    """Several threads at once can get one of half the digits from MKL, in that call alone."""
    sizes, exp = [], torch.Tensor.exp
    monkeypatch.setattr(
        torch.Tensor, "exp", lambda values: sizes.append(values.shape) or exp(values)
    )
    spec = torch_backend.__spec__
    spec.loader.exec_module(importlib.util.module_from_spec(spec))  # as a new process imports it
    assert sizes == [(1,)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("compiled", [False, True])
def test_cuda_makes_what_numpy_makes(compiled):
    images, masks = samples(128, 128, n=16)
    augment = Augment.cardiac_mr()
    parameters = draw_parameters(augment, (128, 128), seed=7, epoch=0, rows=np.arange(16))
    expected = numpy_backend.augment_batch(images, masks, parameters)
    tensors = torch.from_numpy(images).cuda(), torch.from_numpy(masks).cuda()
    found = torch_backend.augment_batch(*tensors, parameters, compiled=compiled)
    np.testing.assert_allclose(found[0].cpu(), expected[0], rtol=0, atol=1 / 32)
    assert (found[1].cpu().numpy() != expected[1]).sum() <= 1e-3 * masks.size


DISC = (54.06, 70.2)  # row and column of its centre


def centroids(samples):
    """Return the mean row and column of the values of each sample."""
    rows, columns = (np.arange(side) for side in samples.shape[1:])
    values = samples.astype(np.float64)
    down, across = values.sum(2) @ rows, values.sum(1) @ columns
    return np.stack([down, across], 1) / values.sum((1, 2))[:, None]


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize(
    "parts",
    [
        {"flip_rows": 0.5, "flip_columns": 0.5, "quarter_turns": 0.7},
        {"rotate": (1, -45, 45)},
        {"scale": (1, 0.7, 1.4)},
        {"shift": (1, -0.1, 0.1)},
        {"shear": (1, -10, 10)},
        {"elastic": (1, 0.01, 0.04)},
        {**TURNS, "rotate": (1, -45, 45), "scale": (1, 0.7, 1.2), "interpolation": "cubic"},
    ],
)
def test_a_disc_and_its_mask_go_to_one_place(backend, parts):
    """A mask moves by whole pixels; on average it must be where the image is, and no pixel off."""
    y, x = np.mgrid[:128, :128]
    distance, n = np.hypot(y - DISC[0], x - DISC[1]), 300
    images = np.repeat(np.clip(20.5 - distance, 0, 1)[None], n, 0).astype(np.float32)
    masks = np.repeat((distance <= 20)[None], n, 0).astype(np.uint8)
    parameters = draw_parameters(
        Augment.none(**parts), (128, 128), seed=3, epoch=1, rows=np.arange(n)
    )
    if backend == "numpy":
        found = numpy_backend.augment_batch(images, masks, parameters)
    else:
        tensors = torch.from_numpy(images), torch.from_numpy(masks)
        found = [one.numpy() for one in torch_backend.augment_batch(*tensors, parameters)]
    shown, drawn = map(centroids, found)
    assert np.abs((shown - drawn).mean(0)).max() < 0.05
    assert np.abs(shown - drawn).max() < 0.6
    if "elastic" in parts:
        return
    tables, middle = parameters.parts(), np.array([63.5, 63.5])
    affine = tables.get("affine", np.eye(2, 3)[None].repeat(n, 0))
    before = np.array(DISC)[::-1] - middle
    if "turn" in tables:
        flips = 1 - 2 * tables["turn"][:, 1::-1]
        angle = np.pi / 2 * tables["turn"][:, 2]
        turned = before * flips
        cosine, sine = np.cos(angle), np.sin(angle)
        before = np.stack(
            [
                cosine * turned[:, 0] + sine * turned[:, 1],
                -sine * turned[:, 0] + cosine * turned[:, 1],
            ],
            1,
        )
    moved = np.linalg.solve(affine[:, :, :2], (before - affine[:, :, 2])[..., None])[..., 0]
    assert np.abs(shown - (moved + middle)[:, ::-1]).max() < 0.05


def test_autocast_of_the_training_loop_changes_nothing():
    """Matrix products would be of 8 bits there: displacements wrong by a tenth of a pixel."""
    augment = Augment.cardiac_mr(elastic=(1, 0.05, 0.1), bias_field=(1, 0.2, 0.4))
    images, masks = samples(64, 64)
    expected = both(augment, images, masks)[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = both(augment, images, masks)[1]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.filterwarnings("ignore")  # of torch.compile's own
@pytest.mark.parametrize("has_corners", [False, True])
def test_operations_are_one_graph(has_corners):
    """What breaks a graph is not fused, and tells nobody."""
    augment = Augment.cardiac_mr(**TURNS)
    images, masks = map(torch.from_numpy, samples(40, 40))
    shape = (24, 24) if has_corners else (40, 40)
    parameters = draw_parameters(augment, shape, seed=7, epoch=1, rows=np.arange(8))
    corners = torch.full((8, 2), 5) if has_corners else None
    traced = torch.compile(torch_backend._change, backend="eager", fullgraph=True, dynamic=False)
    found = traced(
        images,
        masks,
        torch.from_numpy(parameters.table),
        (parameters.layout, parameters.interpolation, parameters.shape),
        torch_backend._bases(shape, images.device),
        torch_backend._normals(images.device),
        corners,
    )
    expected = torch_backend.augment_batch(images, masks, parameters, corners=corners)
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-5)
    assert torch.equal(found[1], expected[1])


@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler for torch.compile")
@pytest.mark.filterwarnings("ignore")  # of torch.compile's own
def test_compiled_operations_give_the_same():
    images, masks = samples(32, 32)
    augment = Augment.none(**TURNS, **MOVES, gamma=(0.7, 0.5, 2), noise=(0.7, 0, 1))
    expected, found = both(augment, images, masks, compiled=True)
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=1 / 32)
    assert (found[1] != expected[1]).sum() <= 1e-3 * masks.size


def test_tensors_of_another_type_shape_or_device_are_refused():
    images, masks = map(torch.from_numpy, samples(16, 16))
    parameters = draw_parameters(Augment(), (16, 16), seed=0, epoch=0, rows=np.arange(8))
    with pytest.raises(TypeError, match=r"expected float32 and integers, found torch\.float16"):
        torch_backend.augment_batch(images.half(), masks, parameters)
    with pytest.raises(TypeError, match=r"found torch\.float32 and torch\.float32"):
        torch_backend.augment_batch(images, masks.float(), parameters)
    with pytest.raises(ValueError, match=r"expected \(8, 16, 16\), found \(8, 1, 16, 16\)"):
        torch_backend.augment_batch(images[:, None], masks, parameters)
    with pytest.raises(ValueError, match="expected one device, found cpu and meta"):
        torch_backend.augment_batch(images, masks.to("meta"), parameters)


# The adapters


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("torch") / "out.h5"
    write_dataset(path, n=N, rows=24, columns=24)
    return path


OPTIONS = {"seed": 7, "normalize": "zscore", "augment": Augment.cardiac_mr()}


def epochs_of(path, n_epochs):
    batches = loader.Batches(path, batch_size=BATCH, layout="NCHW", **OPTIONS)
    return [[(images.copy(), masks.copy()) for images, masks in batches] for _ in range(n_epochs)]


def require_equal(found, expected):
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine[0], theirs[0])
        np.testing.assert_array_equal(mine[1], theirs[1])


@pytest.mark.parametrize("n_workers", [0, 2])
def test_iterable_data_sets_have_the_samples_of_the_loader(path, n_workers):
    dataset = loader_torch.IterableDataset(path, batch_size=BATCH, **OPTIONS)
    batches = DataLoader(dataset, batch_size=None, num_workers=n_workers)
    for expected in epochs_of(path, 2):
        require_equal(list(batches), expected)


def test_batches_on_a_device_have_the_samples_of_the_loader(path):
    batches = loader_torch.DeviceBatches(path, "cpu", batch_size=BATCH, **OPTIONS)
    for expected in epochs_of(path, 2):
        require_equal(list(batches), expected)


@pytest.mark.parametrize("context", [None, "fork", "spawn"])
def test_samples_one_by_one_follow_set_epoch(path, context):
    dataset = loader_torch.Dataset(path, **OPTIONS)
    workers = (
        {}
        if context is None
        else {"num_workers": 2, "multiprocessing_context": context, "persistent_workers": True}
    )
    batches = DataLoader(dataset, batch_size=3, **workers)
    for epoch in (0, 5):
        dataset.set_epoch(epoch)
        found = [torch.cat(tensors).numpy() for tensors in zip(*batches, strict=True)]
        expected = loader.Batches(path, batch_size=N, layout="NCHW", shuffle=False, **OPTIONS)
        expected.set_epoch(epoch)
        images, masks = expected.next_batch()
        np.testing.assert_array_equal(found[0], images)
        np.testing.assert_array_equal(found[1], masks)


def test_samples_are_not_augmented_before_the_epoch_is_known(path):
    dataset = loader_torch.Dataset(path, **OPTIONS)
    with pytest.raises(loader.LoaderError, match=r"Sample not made: .* Call set_epoch"):
        dataset[0]
    with pytest.raises(ValueError, match="epoch: expected"):
        dataset.set_epoch(-1)
    loader_torch.Dataset(path, normalize="zscore")[0]  # which needs no epoch


def test_a_copy_of_a_data_set_has_an_epoch_of_its_own(path):
    import pickle

    dataset = loader_torch.Dataset(path, **OPTIONS)
    dataset.set_epoch(2)
    copy = pickle.loads(pickle.dumps(dataset))
    expected = copy[0]
    dataset.set_epoch(3)
    assert torch.equal(copy[0][0], expected[0])
    assert multiprocessing.active_children() == []
