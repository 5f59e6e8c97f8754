"""Predict each patient with a small U-Net that trained on the patients of other folds.

Run: python examples/predict_folds.py out.h5 predictions.h5 --epochs 20

The file must be built with --folds. `dicom-etl report out.h5 --predictions predictions.h5` then
lists the masks that agree least with the predictions.
"""

import argparse
import sys

import h5py
import numpy as np
import torch
from train_unet import UNet, loss_of  # in this folder

import loader
import loader.torch

_SEED = 7


def trained(path: str, fold: int, n_classes: int, epochs: int, device: str) -> UNet:
    """Return a model that saw no patient of a fold."""
    torch.manual_seed(_SEED)
    batches = loader.torch.DeviceBatches(
        path,
        device,
        fold=fold,
        fold_role="train",
        batch_size=8,
        normalize="percentile",
        remainder="pad",
        seed=_SEED,
        augment=loader.Augment.cardiac_mr(),
    )
    model = UNet(n_classes).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, epochs * len(batches))
    for _ in range(epochs):
        for images, masks in batches:
            loss = loss_of(model(images), masks)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model


@torch.inference_mode()
def predicted(path: str, fold: int, model: UNet, device: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of a fold and their probabilities, (k, classes, rows, columns)."""
    model.eval()
    batches = loader.torch.DeviceBatches(
        path,
        device,
        fold=fold,
        fold_role="validation",
        batch_size=8,
        normalize="percentile",
        remainder="keep",
        shuffle=False,
    )
    rows, chances = [], []
    for images, _ in batches:
        rows.append(batches.indices)
        chances.append(model(images).softmax(1).half().cpu().numpy())
    return np.concatenate(rows), np.concatenate(chances)


def main() -> None:
    """Train a model for each fold, and write what it predicts for the fold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", nargs="?", default="out.h5")
    parser.add_argument("out", nargs="?", default="predictions.h5")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    data = loader.open_dataset(options.path)
    folds = [fold for fold in np.unique(data.manifest["fold"]).tolist() if fold >= 0]
    if not folds:
        parser.error(f"{options.path} has no folds: build it with --folds")
    n_classes = 1 + len(data.structures)
    n_rows = int((data.manifest["fold"] >= 0).sum())
    with h5py.File(options.out, "w") as file:
        file.attrs["dataset_id"] = data.dataset_id
        rows = file.create_dataset("rows", n_rows, "<i8")
        shape = (n_rows, n_classes, *data.images.shape[1:])
        chances = file.create_dataset("probabilities", shape, "<f2")
        start = 0
        for fold in folds:
            model = trained(options.path, fold, n_classes, options.epochs, options.device)
            found, values = predicted(options.path, fold, model, options.device)
            rows[start : start + len(found)] = found
            chances[start : start + len(found)] = values
            start += len(found)
            print(f"fold {fold}: predicted {len(found)} rows")
    print(f"Wrote {options.out}: {start} rows.")


if __name__ == "__main__":
    try:
        main()
    except loader.LoaderError as error:
        sys.exit(str(error))
