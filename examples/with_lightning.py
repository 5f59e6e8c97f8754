"""A LightningDataModule whose checkpoints hold the position within the epoch.

Run: python examples/with_lightning.py out.h5
"""

import sys

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader

import loader
import loader.torch


class Data(lightning.LightningDataModule):
    """Batches of a file that dicom-etl built with --split."""

    def __init__(self, path: str, batch_size: int = 4) -> None:
        super().__init__()
        self._path, self._batch_size = path, batch_size

    def setup(self, stage: str) -> None:  # noqa: ARG002 Lightning passes it
        """Open the file, in each process; before Lightning loads a state."""
        options = {"batch_size": self._batch_size, "normalize": "zscore", "prefetch": 2}
        augment = loader.Augment.none(flip_columns=0.5)
        # Under DDP, rank and world size are those of torch.distributed.
        self.train = loader.torch.IterableDataset(
            self._path, split="train", seed=7, augment=augment, **options
        )
        self.check = loader.torch.IterableDataset(
            self._path, split="validation", shuffle=False, remainder="keep", **options
        )

    def train_dataloader(self) -> DataLoader:
        """Return the batches of one epoch after the other."""
        return DataLoader(self.train, batch_size=None)

    def val_dataloader(self) -> DataLoader:
        """Return every validation row."""
        return DataLoader(self.check, batch_size=None)

    def state_dict(self) -> dict[str, object]:
        """Return the position, for the checkpoint."""
        return self.train.state_dict()

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Go on from a checkpoint's position."""
        self.train.load_state_dict(state)


class Model(lightning.LightningModule):
    """One convolution, in place of a network."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 3, 3, padding=1)

    def loss(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Return the cross-entropy of a batch."""
        images, masks = batch
        return nn.functional.cross_entropy(self.layer(images), masks.squeeze(1).long())

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> torch.Tensor:
        """Return the loss."""
        return self.loss(batch)

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> None:
        """Log the loss."""
        self.log("loss", self.loss(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimiser."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


if __name__ == "__main__":
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False
    )
    trainer.fit(Model(), Data(sys.argv[1]))
    print("epochs:", trainer.current_epoch)
