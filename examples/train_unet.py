"""Train a small 2-D U-Net on a file that dicom-etl built with --split or --folds.

Run: python examples/train_unet.py out.h5 --epochs 6

Images are augmented at random; `--patch 96` trains on patches of 96x96, half of them around the
structures. On a GPU, the rows are in its memory where they fit, and are augmented there. With
`--fold K` it trains on all patients but those of fold K, which judge it.

Half way through an epoch it saves a checkpoint; at the end, `--check-resume` trains on from there
and shows that the weights are the same, bit for bit. Prints Dice over the validation patients, and
the share of the time that training spent waiting for data.
"""

import argparse
import io
import os
import sys
import time
from dataclasses import dataclass, field

# On a GPU, matrix products give the same bits each time only with this; before CUDA starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch
from torch import nn

import loader
import loader.format
import loader.torch

AUGMENTATIONS = {
    "cardiac-mr": loader.Augment.cardiac_mr(),
    "ct": loader.Augment.ct(),
    "any": loader.Augment(),
    "none": None,
}


def double_convolution(n_in: int, n_out: int) -> nn.Sequential:
    """Return two 3x3 convolutions, each with normalisation and ReLU."""
    layers: list[nn.Module] = []
    for channels in (n_in, n_out):
        layers += [
            nn.Conv2d(channels, n_out, 3, padding=1, bias=False),
            nn.GroupNorm(4, n_out),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)


def doubled(values: torch.Tensor) -> torch.Tensor:
    """Return each pixel four times; unlike an interpolation's, its gradient is deterministic."""
    n, channels, rows, columns = values.shape
    wide = values[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2)
    return wide.reshape(n, channels, 2 * rows, 2 * columns)


def halved(values: torch.Tensor) -> torch.Tensor:
    """Return the largest of each 2x2 pixels; unlike max_pool2d's, its gradient is deterministic."""
    return values.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).amax((3, 5))


class UNet(nn.Module):
    """A U-Net that halves the image once before it begins, and three times within.

    All its operations are deterministic on a GPU too.

    References
    ----------
    Ronneberger, Fischer, Brox: U-Net, MICCAI 2015.
    """

    def __init__(self, n_classes: int, width: int = 16) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width, 8 * width]
        self.stem = nn.Conv2d(1, width, 4, stride=2, padding=1)
        self.down = nn.ModuleList(
            double_convolution(n_in, n_out)
            for n_in, n_out in zip([width, *widths], widths, strict=False)
        )
        self.up = nn.ModuleList(
            double_convolution(n_in + n_out, n_out)
            for n_in, n_out in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.head = nn.Conv2d(width, n_classes, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of each class, (n, n_classes, rows, columns)."""
        values, skipped = self.stem(images), []
        for depth, block in enumerate(self.down):
            values = block(halved(values) if depth else values)
            skipped.append(values)
        skipped.pop()
        for block in self.up:
            values = block(torch.cat([doubled(values), skipped.pop()], dim=1))
        return doubled(self.head(values))


def loss_of(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Return cross-entropy plus one minus the soft Dice of the structures; 255 is left out."""
    codes = torch.arange(logits.shape[1], dtype=masks.dtype, device=masks.device)
    truth = (masks == codes.view(1, -1, 1, 1)).float()
    is_known = (masks != loader.format.IGNORE).float()
    # Not functional.cross_entropy, which is not deterministic on a GPU.
    entropy = -(truth * logits.log_softmax(1)).sum() / is_known.sum().clamp(min=1)
    chances = logits.softmax(1) * is_known
    overlap = 2 * (chances * truth).sum((0, 2, 3)) + 1
    dice = overlap / (chances.sum((0, 2, 3)) + truth.sum((0, 2, 3)) + 1)
    return entropy + 1 - dice[1:].mean()


@dataclass
class Training:
    """A model, what trains it, and how long that took."""

    path: str
    n_classes: int
    batch_size: int
    device: str
    n_epochs: int
    augment: loader.Augment | None
    patches: loader.Patches | None
    fold: int | None
    model: UNet = field(init=False)
    seconds: float = 0.0
    seconds_waiting: float = 0.0

    def __post_init__(self) -> None:
        """Begin with weights that the seed decides."""
        torch.manual_seed(7)
        self.model = UNet(self.n_classes).to(self.device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 3e-3)
        self.batches = self.rows_for(
            "train",
            augment=self.augment,
            patches=self.patches,
            remainder="pad",
            seed=7,
            prefetch=2,
        )

        n_steps = self.n_epochs * len(self.batches)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, 6e-3, n_steps)

    def rows_for(self, role: str, **options: object) -> loader.torch.DeviceBatches:
        """Return the batches of "train" or "validation": in a GPU's memory where they fit."""
        part = {"split": role} if self.fold is None else {"fold": self.fold, "fold_role": role}
        options |= {"batch_size": self.batch_size, "normalize": "percentile", **part}
        if self.device == "cpu":
            return loader.torch.DeviceBatches(self.path, self.device, **options)
        return loader.torch.ResidentBatches(self.path, self.device, fallback=True, **options)

    def epoch(self, checkpoint_at: int = -1) -> bytes:
        """Train on what is left of an epoch; return the checkpoint after some batches."""
        self.model.train()
        checkpoint = b""
        asked = time.perf_counter()
        for n_done, (images, masks) in enumerate(self.batches, start=1):
            self.seconds_waiting += time.perf_counter() - asked
            loss = loss_of(self.model(images.contiguous(memory_format=torch.channels_last)), masks)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            if n_done == checkpoint_at:
                checkpoint = self.checkpoint()
            self.seconds += time.perf_counter() - asked
            asked = time.perf_counter()
        return checkpoint

    def parts(self) -> dict[str, object]:
        """Return all that a checkpoint holds: each has state_dict and load_state_dict."""
        return {
            "model": self.model,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "batches": self.batches,
        }

    def checkpoint(self) -> bytes:
        """Return the state of the whole training, as it would be saved to a file."""
        file = io.BytesIO()
        torch.save({name: part.state_dict() for name, part in self.parts().items()}, file)
        return file.getvalue()

    def resume(self, checkpoint: bytes) -> None:
        """Go on from a checkpoint, in the middle of an epoch too."""
        states = torch.load(io.BytesIO(checkpoint), weights_only=True)
        for name, part in self.parts().items():
            part.load_state_dict(states[name])

    def scores(self, images: torch.Tensor) -> torch.Tensor:
        """Return the probabilities of each class: of a model of patches, stitched of its patches.

        On whole images its normalisation would meet other means than those that it has learnt.
        """
        if self.patches is None:
            return self.model(images).softmax(1)
        size = self.patches.size
        grid = loader.torch.GridPatches(images.shape[-2:], size, overlap=size[0] // 3)
        patches = grid.cut(images)
        chances = self.model(patches.flatten(0, 1)).softmax(1)
        return grid.stitch(chances.unflatten(0, patches.shape[:2]), blend="gaussian")

    @torch.inference_mode()
    def dice(self) -> list[float]:
        """Return Dice over all pixels of the validation patients, for each structure."""
        self.model.eval()
        validation = self.rows_for("validation", remainder="keep", shuffle=False)
        overlap, total = torch.zeros(2, self.n_classes, dtype=torch.float64)
        for images, masks in validation:
            found = self.scores(images).argmax(1)
            is_known = masks[:, 0] != loader.format.IGNORE
            for label in range(self.n_classes):
                is_found, is_true = (found == label) & is_known, masks[:, 0] == label
                overlap[label] += (is_found & is_true).sum().cpu()
                total[label] += (is_found.sum() + is_true.sum()).cpu()
        return (2 * overlap / total)[1:].tolist()


def main() -> None:
    """Train, print Dice, and show that a checkpoint resumes exactly."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", nargs="?", default="out.h5")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--augment", choices=AUGMENTATIONS, default="cardiac-mr")
    parser.add_argument("--patch", type=int, help="side of random patches; a multiple of 16")
    parser.add_argument("--fold", type=int, help="validate on this fold, train on the others")
    parser.add_argument("--check-resume", action="store_true")
    options = parser.parse_args()
    if options.patch is not None and options.patch % 16:
        parser.error("--patch: expected a multiple of 16, for the U-Net halves it four times")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # it only looks for mistakes
    structures = loader.open_dataset(options.path).structures
    labels = {one.code: one.meaning for one in sorted(structures, key=lambda one: one.code)}
    n_classes = 1 + len(labels)
    patches = options.patch and loader.Patches((options.patch, options.patch), foreground=0.5)

    def make() -> Training:
        return Training(
            options.path,
            n_classes,
            options.batch_size,
            options.device,
            options.epochs,
            AUGMENTATIONS[options.augment],
            patches or None,
            options.fold,
        )

    training, checkpoint = make(), b""
    n_batches = len(training.batches)
    if options.check_resume and n_batches < 2:  # noqa: PLR2004
        parser.error("--check-resume: an epoch has one batch, without a middle to resume from")
    for epoch in range(options.epochs):
        is_last = epoch + 1 == options.epochs
        checkpoint = training.epoch(n_batches // 2 if is_last else -1)
        if not is_last and (epoch + 1) % max(1, options.epochs // 6):
            continue
        dice = ", ".join(
            f"{name} {value:.4f}"
            for name, value in zip(labels.values(), training.dice(), strict=True)
        )
        share = training.seconds_waiting / training.seconds
        print(
            f"epoch {epoch + 1}: validation Dice {dice}; {share:.2%} of the time waiting for data"
        )
    rate = n_batches * options.epochs * options.batch_size / training.seconds
    print(f"{training.seconds:.0f} s of training, {rate:.0f} images/s on {options.device}")
    if options.check_resume:
        resumed = make()
        resumed.resume(checkpoint)
        resumed.epoch()
        pairs = zip(training.model.parameters(), resumed.model.parameters(), strict=True)
        is_same = all(torch.equal(a, b) for a, b in pairs)
        print(f"resumed half way through the last epoch: same weights: {is_same}")
        if not is_same:
            raise SystemExit(1)


if __name__ == "__main__":
    try:
        main()
    except loader.LoaderError as error:
        sys.exit(str(error))
