"""What the plots show of rows, measured on their pixels and contours."""

import math
from typing import Final, TypeAlias

import numpy as np

from etl.quality.alignment import MEASURED, measure
from etl.report.overlays import ignored
from etl.report.page.pictures import drawn
from loader import Dataset

Json: TypeAlias = dict[str, object]

_DIGITS: Final = 5  # significant, of what a plot shows


def intensities(dataset: Dataset, row: int) -> Json:
    """Return the mean modality value inside of each structure, and outside of all."""
    image = dataset.images[row]
    outside = ~ignored(dataset.masks[row], dataset.structures)
    inside: dict[str, float] = {}
    for one in dataset.structures:
        pixels = drawn(dataset, row, one)
        if pixels.any():
            inside[str(one.code)] = _mean(image[pixels])
            outside = outside & ~pixels
    return {"inside": inside, "outside": _mean(image[outside]) if outside.any() else None}


def displacement(dataset: Dataset, row: int) -> tuple[float, float] | None:
    """Return how far a row's contour lies off the image's edges, as the audit measures it.

    None where the row has no contour of a structure whose contrast is known, or no clear edge.
    """
    by_label: dict[int, list[np.ndarray]] = {}
    for label, vertices in dataset.polygons(row):
        by_label.setdefault(label, []).append(vertices)
    known = [one for one in dataset.structures if one.contrast and one.label in by_label]
    if not known:
        return None
    structure = min(known, key=lambda one: one.code)
    found = measure(dataset.images[row], max(by_label[structure.label], key=len), structure)
    return (round(found.dx, 2), round(found.dy, 2)) if found.outcome == MEASURED else None


def finite(value: float) -> float | None:
    """Return a number as JSON has it: some digits, and None where it is not finite."""
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None


def _mean(values: np.ndarray) -> float:
    mean = float(values.mean(dtype=np.float64))
    return float(f"{mean:.{_DIGITS}g}") if math.isfinite(mean) else 0.0
