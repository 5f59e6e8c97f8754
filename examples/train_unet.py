"""Train a small 2-D U-Net on a file that dicom-etl built with --split.

Run: python examples/train_unet.py out.h5 --epochs 6

Half way through an epoch it saves a checkpoint; at the end, `--check-resume` trains on from there
and shows that the weights are the same, bit for bit. Prints Dice over the validation patients, and
the share of the time that training spent waiting for data.
"""

import argparse
import io
import sys
import time
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional

import loader
import loader.torch


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


class UNet(nn.Module):
    """A U-Net that halves the image three times before it begins, and three times within.

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
            values = block(functional.max_pool2d(values, 2) if depth else values)
            skipped.append(values)
        skipped.pop()
        for block in self.up:
            values = functional.interpolate(values, scale_factor=2.0)
            values = block(torch.cat([values, skipped.pop()], dim=1))
        return functional.interpolate(self.head(values), size=images.shape[-2:], mode="bilinear")


def loss_of(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Return cross-entropy plus one minus the soft Dice of the structures."""
    labels = masks[:, 0].long()
    chances = logits.softmax(1)[:, 1:]
    truth = functional.one_hot(labels, logits.shape[1]).movedim(-1, 1)[:, 1:]
    overlap = 2 * (chances * truth).sum((0, 2, 3)) + 1
    dice = overlap / (chances.sum((0, 2, 3)) + truth.sum((0, 2, 3)) + 1)
    return functional.cross_entropy(logits, labels) + 1 - dice.mean()


@dataclass
class Training:
    """A model, what trains it, and how long that took."""

    path: str
    n_classes: int
    batch_size: int
    device: str
    n_steps: int
    model: UNet = field(init=False)
    seconds: float = 0.0
    seconds_waiting: float = 0.0

    def __post_init__(self) -> None:
        """Begin with weights that the seed decides."""
        torch.manual_seed(7)
        self.model = UNet(self.n_classes).to(self.device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 3e-3)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, 6e-3, self.n_steps)
        self.batches = loader.torch.DeviceBatches(
            self.path,
            self.device,
            split="train",
            batch_size=self.batch_size,
            normalize="percentile",
            remainder="pad",
            seed=7,
            prefetch=2,
        )

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

    @torch.inference_mode()
    def dice(self) -> list[float]:
        """Return Dice over all pixels of the validation patients, for each structure."""
        self.model.eval()
        validation = loader.torch.DeviceBatches(
            self.path,
            self.device,
            split="validation",
            batch_size=self.batch_size,
            normalize="percentile",
            remainder="keep",
            shuffle=False,
        )
        overlap, total = torch.zeros(2, self.n_classes, dtype=torch.float64)
        for images, masks in validation:
            found = self.model(images).argmax(1)
            for label in range(self.n_classes):
                is_found, is_true = found == label, masks[:, 0] == label
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
    parser.add_argument("--check-resume", action="store_true")
    options = parser.parse_args()
    structures = loader.open_dataset(options.path).structures
    labels = {one.code: one.meaning for one in sorted(structures, key=lambda one: one.code)}
    n_classes = 1 + len(labels)
    n_batches = len(
        loader.Batches(options.path, split="train", batch_size=options.batch_size, remainder="pad")
    )
    if options.check_resume and n_batches < 2:  # noqa: PLR2004
        parser.error("--check-resume: an epoch has one batch, without a middle to resume from")

    def make() -> Training:
        n_steps = n_batches * options.epochs
        return Training(options.path, n_classes, options.batch_size, options.device, n_steps)

    training, checkpoint = make(), b""
    for epoch in range(options.epochs):
        is_last = epoch + 1 == options.epochs
        checkpoint = training.epoch(n_batches // 2 if is_last else -1)
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
