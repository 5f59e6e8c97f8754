"""Augmented batches a second, side by side: this loader, and what people use otherwise.

    python bench/augment.py --rows 500 --rounds 3

Writes a file of --rows rows, then runs every contender in turn, each in a process of its own, and
prints medians over the rounds. All normalise each image by its mean and deviation and hand out
float32 batches of 32. "turns": each flip with probability 0.5, quarter turns with 0.75. "full":
rotation, scaling and shift each time; elastic, gamma and noise each with probability 0.3.

A contender whose library is not installed is left out. They come from `pip install albumentations
monai torch`.
"""

import itertools
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import click
import numpy as np

sys.path = [folder for folder in sys.path if Path(folder) != Path(__file__).parent]  # not itself

import loader  # noqa: E402

BATCH = 32
SECONDS = 2.0
Batch = tuple[object, object]
Change = Callable[[np.ndarray, np.ndarray], Batch]


def sibling() -> object:
    """Return bench/loader.py as a module: its file, its order and its clock are used here."""
    spec = spec_from_file_location("bench_loader", Path(__file__).with_name("loader.py"))
    module = module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


def settings(kind: str) -> loader.Augment:
    """Return what the kind of benchmark asks for."""
    if kind == "turns":
        return loader.Augment.none(flip_rows=0.5, flip_columns=0.5, quarter_turns=0.75)
    return loader.Augment.none(
        rotate=(1, -15, 15),
        scale=(1, 0.8, 1.25),
        shift=(1, -0.05, 0.05),
        elastic=(0.3, 0.01, 0.04),
        gamma=(0.3, 0.7, 1.5),
        noise=(0.3, 0.05, 0.1),
    )


# Contenders: each yields batches of (images, masks) without end.


def ours(path: Path, kind: str) -> Iterator[Batch]:
    """Draw augmented batches from the loader."""
    options = {"layout": "NHW", "remainder": "pad", "normalize": "zscore"}
    batches = loader.Batches(path, batch_size=BATCH, augment=settings(kind), **options)
    while True:
        yield batches.next_batch()


def plain(path: Path, kind: str) -> Iterator[Batch]:  # noqa: ARG001 as the others
    """Draw normalised batches from the loader: what augmentation adds to."""
    batches = loader.Batches(
        path, batch_size=BATCH, layout="NHW", remainder="pad", normalize="zscore"
    )
    while True:
        yield batches.next_batch()


def ours_torch(path: Path, kind: str) -> Iterator[Batch]:
    """Draw normalised batches, and augment them as tensors on the processor, with one thread."""
    import torch

    from loader.augment import draw_parameters
    from loader.torch.augment import augment_batch

    torch.set_num_threads(1)
    batches = loader.Batches(
        path, batch_size=BATCH, layout="NHW", remainder="pad", normalize="zscore"
    )
    for step in itertools.count():
        images, masks = map(torch.from_numpy, batches.next_batch())
        parameters = draw_parameters(
            settings(kind), images.shape[1:], seed=0, epoch=step, rows=batches.indices
        )
        yield augment_batch(images, masks, parameters)


def one_by_one(path: Path, change: Change) -> Iterator[Batch]:
    """Change sample after sample of random rows, and put them together."""
    data = loader.open_dataset(path)
    for rows in sibling().order(len(data)):  # type: ignore[attr-defined]
        samples = [change(data.images[row], data.masks[row]) for row in rows]
        images, masks = zip(*samples, strict=True)
        yield np.stack(images), np.stack(masks)


def albumentations_(path: Path, kind: str) -> Iterator[Batch]:
    """Change samples by an Albumentations pipeline."""
    import albumentations as A  # noqa: N812 its customary name
    import cv2

    cv2.setNumThreads(0)
    normalise = A.Normalize(normalization="image_per_channel")
    if kind == "turns":
        moves = [A.VerticalFlip(p=0.5), A.HorizontalFlip(p=0.5), A.RandomRotate90(p=1)]
        pipeline = A.Compose([normalise, *moves])
    else:
        affine = A.Affine(
            rotate=(-15, 15),
            scale=(0.8, 1.25),
            translate_percent=(-0.05, 0.05),
            border_mode=cv2.BORDER_REPLICATE,
            p=1,
        )
        # Gamma and noise there want values from 0 to 1.
        values = [A.RandomGamma((70, 150), p=0.3), A.GaussNoise((0.05, 0.1), p=0.3)]
        elastic = A.ElasticTransform(alpha=100, sigma=10, approximate=True, p=0.3)
        to_one = A.Normalize(normalization="min_max_per_channel")
        pipeline = A.Compose([to_one, affine, elastic, *values, normalise])

    def change(image: np.ndarray, mask: np.ndarray) -> Batch:
        changed = pipeline(image=image.astype(np.float32), mask=mask)
        return changed["image"], changed["mask"]

    yield from one_by_one(path, change)


def monai_(path: Path, kind: str) -> Iterator[Batch]:
    """Change samples by a MONAI pipeline of dictionaries."""
    import torch
    from monai import transforms as M  # noqa: N812 short for a list of them

    torch.set_num_threads(1)
    both = ["image", "label"]
    steps = [
        M.EnsureChannelFirstd(both, channel_dim="no_channel"),
        M.NormalizeIntensityd(["image"]),
    ]
    if kind == "turns":
        steps += [
            M.RandFlipd(both, prob=0.5, spatial_axis=0),
            M.RandFlipd(both, prob=0.5, spatial_axis=1),
            M.RandRotate90d(both, prob=0.75, max_k=3),
        ]
    else:
        modes = ("bilinear", "nearest")
        common = {"mode": modes, "padding_mode": "border"}
        ranges = {"rotate_range": 0.26, "scale_range": 0.2, "translate_range": 13}
        steps += [
            M.RandAffined(both, prob=1, **ranges, **common),
            M.Rand2DElasticd(both, spacing=(64, 64), magnitude_range=(2, 10), prob=0.3, **common),
            M.RandAdjustContrastd(["image"], prob=0.3, gamma=(0.7, 1.5)),
            M.RandGaussianNoised(["image"], prob=0.3, std=0.1),
        ]
    pipeline = M.Compose(steps)

    def change(image: np.ndarray, mask: np.ndarray) -> Batch:
        changed = pipeline({"image": image.astype(np.float32), "label": mask})
        return np.asarray(changed["image"]), np.asarray(changed["label"])

    yield from one_by_one(path, change)


CONTENDERS: dict[str, tuple[Callable[[Path, str], Iterator[Batch]], str]] = {
    "loader, normalised only": (plain, "numpy"),
    "loader": (ours, "cv2"),
    "loader, as tensors": (ours_torch, "torch"),
    "Albumentations": (albumentations_, "albumentations"),
    "MONAI": (monai_, "monai"),
}
KINDS = ("turns", "full")


def run(kind: str, name: str, path: Path) -> float:
    """Return samples a second of a contender that has run for a while."""
    batches = CONTENDERS[name][0](path, kind)
    take = sibling().take  # type: ignore[attr-defined]
    take(batches, SECONDS / 2, 2)
    return float(take(batches, SECONDS, 3)) * BATCH


@click.command()
@click.option("--rows", default=500, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--run", "running", nargs=3, hidden=True)
def main(rows: int, rounds: int, running: tuple[str, str, str] | None) -> None:
    """Compare augmented batches of one file."""
    if running:
        kind, name, path = running
        click.echo(run(kind, name, Path(path)))
        return
    folder = Path(tempfile.mkdtemp(prefix="bench-augment-"))
    found: dict[tuple[str, str], list[float]] = {}
    try:
        path = folder / "bench.h5"
        sibling().write_file(path, rows)  # type: ignore[attr-defined]
        names = [name for name, (_, module) in CONTENDERS.items() if find_spec(module)]
        for number, kind, name in itertools.product(range(rounds), KINDS, names):
            command = [sys.executable, "-W", "ignore", __file__, "--run", kind, name, str(path)]
            rate = float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            found.setdefault((kind, name), []).append(rate)
            click.echo(f"round {number + 1}: {kind}: {name}: {rate:.0f} samples/s", err=True)
    finally:
        shutil.rmtree(folder)
    medians = {key: statistics.median(rates) for key, rates in found.items()}
    click.echo("| contender | turns: samples/s | loader is faster | full: samples/s | faster |")
    click.echo("| --- | ---: | ---: | ---: | ---: |")
    for name in names:
        cells = [name]
        for kind in KINDS:
            cells += [f"{medians[kind, name]:.0f}"]
            cells += [f"{medians[kind, 'loader'] / medians[kind, name]:.2g} x"]
        click.echo(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
