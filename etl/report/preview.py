"""A contact sheet of what an augmentation makes of rows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image as PillowImage

from etl.output import target
from etl.report.overlays import TILE_WIDTH, overlay, sheet_of
from loader import Augment, Batches, Dataset

N_CHANGED: Final = 5  # tiles of a row, after the one that shows it as it is


def write_preview(
    dataset: Dataset, path: Path, augment: Augment, *, n_rows: int, seed: int, force: bool
) -> list[int]:
    """Draw some rows, each as it is and in its first epochs; return the rows.

    Raises
    ------
    EtlError
        `path` exists (without `force`) or cannot be written.
    LoaderError
        OpenCV is needed and not installed.
    """
    path = target.check_target(path, force=force, only_hdf5=False)
    rows: list[int] = np.unique(np.linspace(0, len(dataset) - 1, n_rows).astype(np.int64)).tolist()
    of_rows = [[one] for one in _tiles(dataset, rows, Augment.none(), seed, "as it is", 1)]
    changed = _tiles(dataset, rows, augment, seed, "epoch", N_CHANGED)
    for place, tile in enumerate(changed):
        of_rows[place % len(rows)].append(tile)
    tiles = [tile for line in of_rows for tile in line]
    sheet = sheet_of(tiles, len(tiles), 1 + N_CHANGED)
    with target.replacing(path, force=force) as partial:
        sheet.save(partial, "PNG", optimize=False)
    return rows


def _tiles(
    dataset: Dataset, rows: list[int], augment: Augment, seed: int, words: str, n_epochs: int
) -> Iterator[PillowImage.Image]:
    """Yield the pictures of all rows in one epoch after the other."""
    batches = Batches(
        dataset,
        batch_size=len(rows),
        where=np.isin(np.arange(len(dataset)), rows),
        seed=seed,
        shuffle=False,
        layout="NHW",
        augment=augment,
    )
    for epoch in range(n_epochs):
        number = "" if n_epochs == 1 else f" {epoch}"
        for row, image, mask in zip(rows, *batches.next_batch(), strict=True):
            caption = f"row {row}, {words}{number}"
            yield overlay(image, mask, [], caption, dataset.structures, width=TILE_WIDTH)
