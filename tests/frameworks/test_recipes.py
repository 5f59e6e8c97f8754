"""The examples with other libraries; each test is skipped where its library is not installed."""

import importlib
import importlib.util
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from dataset_builder import write_dataset

import loader

EXAMPLES = Path(__file__).parents[2] / "examples"
N, SIDE = 12, 64
OPTIONS = {"batch_size": 4, "seed": 7, "layout": "NHW", "normalize": "minmax"}

pytestmark = pytest.mark.filterwarnings("ignore")  # those of the libraries are not ours


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipes") / "out.h5"
    write_dataset(path, n=N, rows=SIDE, columns=SIDE, split=[0] * 8 + [1] * 4)
    return path


def require(library):
    """Skip the test where a library is not installed; does not import it."""
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")


def run_apart(*arguments):
    """Run Python and return what it prints.

    JAX and TensorFlow start threads, after which the other tests of this process could not fork.
    """
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (EXAMPLES.parent, EXAMPLES)))
    }
    run = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env=environment,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.fixture
def recipe(monkeypatch):
    """Import an example whose library is installed."""

    def imported(library):
        require(library)
        monkeypatch.syspath_prepend(EXAMPLES)
        return importlib.import_module(f"with_{library}")

    return imported


def samples_of(batches):
    """Return row → image and mask, of all that is left of an epoch."""
    found = {}
    for images, masks in batches:
        found |= {
            row: (image.tobytes(), mask.tobytes())
            for row, image, mask in zip(batches.indices.tolist(), images, masks, strict=True)
        }
    return found


LIBRARIES = ["albumentations", "monai", "torchio"]


@pytest.mark.parametrize("library", LIBRARIES)
def test_nothing_but_seed_epoch_and_row_decides_what_a_library_does(path, recipe, library):
    augment = recipe(library).augment
    plain = samples_of(loader.Batches(path, **OPTIONS))
    expected = samples_of(loader.Batches(path, **OPTIONS, transform=augment))
    assert sum(expected[row] != plain[row] for row in plain) > N // 2
    for other in ({"batch_size": 6}, {"batch_size": 1}, {"prefetch": 2}):
        with loader.Batches(path, **OPTIONS | other, transform=augment) as batches:
            assert samples_of(batches) == expected
            assert samples_of(batches) != expected  # the second epoch


@pytest.mark.parametrize("library", LIBRARIES)
def test_labels_stay_labels(path, recipe, library):
    for images, masks in loader.Batches(path, **OPTIONS, transform=recipe(library).augment):
        assert images.shape == masks.shape == (4, SIDE, SIDE)
        assert (images.dtype, masks.dtype) == (np.float32, np.uint8)
        assert set(np.unique(masks)) == {0, 1, 2}
        assert np.isfinite(images).all()


@pytest.mark.parametrize("library", LIBRARIES)
def test_image_and_mask_move_together(tmp_path, recipe, library):
    """Where the image is its own mask, the mask stays the brighter part of the image."""
    write_dataset(tmp_path / "out.h5", n=N, rows=SIDE, columns=SIDE)
    disc = np.hypot(*(np.indices((SIDE, SIDE)) - [[[26]], [[38]]])) < 14

    def drawn(image, mask, manifest, generator):
        image[:], mask[:] = disc, disc
        return recipe(library).augment(image, mask, manifest, generator)

    batches = loader.Batches(tmp_path / "out.h5", **OPTIONS, transform=drawn)
    for image, mask in itertools.chain.from_iterable(zip(*pair, strict=True) for pair in batches):
        inside, outside = (np.median(image[mask == label]) for label in (1, 0))
        is_bright = image > (inside + outside) / 2
        assert np.mean(is_bright == (mask == 1)) > 0.96


@pytest.mark.parametrize("library", LIBRARIES)
def test_workers_of_a_dataloader_change_nothing(path, recipe, library):
    torch_data = pytest.importorskip("torch.utils.data", reason="torch is not installed")
    import loader.torch

    augment = recipe(library).augment
    options = {name: value for name, value in OPTIONS.items() if name != "layout"}
    dataset = loader.torch.IterableDataset(path, **options, transform=augment)
    batches = torch_data.DataLoader(dataset, batch_size=None, num_workers=2, timeout=600)
    expected = loader.Batches(path, **OPTIONS | {"layout": "NCHW"}, transform=augment)
    for tensors, arrays in zip(batches, expected, strict=True):
        for tensor, array in zip(tensors, arrays, strict=True):
            np.testing.assert_array_equal(tensor.numpy(), array)


CHECK_OF_JAX = """
import sys, jax, numpy as np, loader, with_jax
options = {"batch_size": 4, "seed": 7, "layout": "NHW", "normalize": "minmax"}
expected, batches = (loader.Batches(sys.argv[1], **options) for _ in range(2))
for _ in range(2):
    found = list(with_jax.on_device(batches))
    assert len(found) == len(batches) == 3
    for tensors, arrays in zip(found, expected, strict=True):
        for tensor, array in zip(tensors, arrays, strict=True):
            assert isinstance(tensor, jax.Array)
            np.testing.assert_array_equal(np.asarray(tensor), array)
assert batches.epochs_completed == 2
assert list(with_jax.on_device(iter(()))) == []
print("checked")
"""

CHECK_OF_TENSORFLOW = """
import sys, numpy as np, loader, with_tensorflow
options = {"batch_size": 4, "seed": 7, "layout": "NHW", "normalize": "minmax"}
expected, batches = (loader.Batches(sys.argv[1], **options) for _ in range(2))
dataset = with_tensorflow.dataset_of(batches)
assert int(dataset.cardinality()) == len(batches) == 3
for _ in range(2):
    for (images, masks), arrays in zip(dataset, expected, strict=True):
        assert images.shape == masks.shape == (4, 64, 64, 1)
        np.testing.assert_array_equal(images.numpy()[..., 0], arrays[0])
        np.testing.assert_array_equal(masks.numpy()[..., 0], arrays[1])
assert batches.epochs_completed == 2
print("checked")
"""


@pytest.mark.parametrize(
    ("library", "check"), [("jax", CHECK_OF_JAX), ("tensorflow", CHECK_OF_TENSORFLOW)]
)
def test_batches_arrive_as_the_loader_makes_them_in_each_epoch(path, library, check):
    require(library)
    assert run_apart("-c", check, path) == "checked\n"


def test_lightning_goes_on_from_a_checkpoint_within_an_epoch(path, recipe, tmp_path):
    example = recipe("lightning")
    import lightning

    class Noted(example.Model):
        """Notes the rows of its batches."""

        def __init__(self, seen):
            super().__init__()
            self.seen = seen

        def training_step(self, batch, number):
            self.seen.append(hash(batch[0].numpy().tobytes()))
            return super().training_step(batch, number)

    def trained(seen, checkpoint=None):
        lightning.seed_everything(0, verbose=False)
        saving = lightning.pytorch.callbacks.ModelCheckpoint(
            tmp_path, "{step}", every_n_train_steps=6, save_top_k=-1
        )
        trainer = lightning.Trainer(
            max_epochs=3,
            accelerator="cpu",
            logger=False,
            callbacks=[saving],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        model = Noted(seen)
        trainer.fit(model, example.Data(path, batch_size=2), ckpt_path=checkpoint)
        return model.layer.weight.detach().numpy()

    whole, rest = [], []
    expected = trained(whole)
    assert len(whole) == len(set(whole)) == 3 * 4
    found = trained(rest, tmp_path / "step=6.ckpt")  # in the middle of the second epoch
    assert rest == whole[6:]
    np.testing.assert_array_equal(found, expected)


def test_ranks_of_ddp_train_as_one_process_with_their_batches_together(path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    import loader.torch

    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    printed = run_apart(*launcher, EXAMPLES / "with_ddp.py", path)
    found = re.findall(r"rank (\d) of 2: (\S+)", printed)
    assert sorted(rank for rank, _ in found) == ["0", "1"]
    assert len({weights for _, weights in found}) == 1

    dataset = loader.torch.IterableDataset(path, batch_size=4, seed=7, normalize="zscore")
    torch.manual_seed(0)
    model = torch.nn.Conv2d(1, 3, 3, padding=1)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for images, masks in itertools.chain(dataset, dataset):
        loss = torch.nn.functional.cross_entropy(model(images), masks.squeeze(1).long())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    expected = sum(one.double().sum().item() for one in model.parameters())
    assert float(found[0][1]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("library", [*LIBRARIES, "jax", "tensorflow", "lightning"])
def test_the_example_runs(path, library):
    require(library)
    printed = run_apart(EXAMPLES / f"with_{library}.py", path)
    last = {"lightning": "epochs: 2", "tensorflow": "2 epochs, completed: 2"}.get(library, "uint8")
    assert last in printed.splitlines()[-1]
