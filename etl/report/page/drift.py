"""Do the parts of the split look alike? Properties of images and labels, part by part."""

import math
from collections.abc import Iterator, Sequence
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from etl.report.page.measures import finite
from etl.report.page.pictures import heat_map
from loader import Dataset
from loader.format import SPLITS

Json: TypeAlias = dict[str, object]
_Floats: TypeAlias = npt.NDArray[np.float64]
_Integers: TypeAlias = npt.NDArray[np.int64]

_LIMIT: Final = 1.358  # of Kolmogorov and Smirnov's distance, times a root: 5 % by chance
_MAP_ROWS: Final = 200  # that one heat map is the mean of


def drift(dataset: Dataset) -> Json:
    """Return a table of properties with distances, and mean labels; empty without two parts."""
    codes = dataset.manifest["split"]
    parts = [code for code in range(len(SPLITS)) if (codes == code).any()]
    if len(parts) < 2:  # noqa: PLR2004  a comparison
        return {}
    patients = np.unique(dataset.manifest.stored["patient_id"], return_inverse=True)[1]
    patients = np.asarray(patients, np.int64).reshape(-1)
    return {
        "parts": [SPLITS[code] for code in parts],
        "properties": [
            _compared(name, values, patients, codes, parts) for name, values in _properties(dataset)
        ],
        "maps": list(_maps(dataset, codes, parts)),
    }


def _properties(dataset: Dataset) -> Iterator[tuple[str, _Floats]]:
    """Yield the name and the value of each row."""
    manifest = dataset.manifest
    columns = {
        "mean value of the image": "mean",
        "deviation of the image": "std",
        "1st percentile of the image": "p01",
        "99th percentile of the image": "p99",
        "pixel spacing, mm": "pixel_spacing_row",
    }
    for name, column in columns.items():
        yield name, manifest[column].astype(np.float64)
    for one in dataset.structures:
        n_pixels = manifest[f"n_pixels_{one.code}"].astype(np.float64)
        yield f"{one.name}: pixels, where drawn", np.where(n_pixels > 0, n_pixels, np.nan)
        yield f"{one.name}: share of rows with it", (n_pixels > 0).astype(np.float64)


def _compared(
    name: str,
    values: _Floats,
    patients: _Integers,
    codes: npt.NDArray[np.generic],
    parts: Sequence[int],
) -> Json:
    """Return the quartiles of one property in each part, and its distances from the first part.

    Rows of one patient are alike, so that patients are compared: the mean of each one's rows.
    """
    samples = []
    for code in parts:
        chosen = (codes == code) & np.isfinite(values)
        samples.append(_means(patients[chosen], values[chosen]))
    first, *others = samples
    return {
        "name": name,
        "quartiles": [
            [finite(float(value)) for value in np.percentile(one, (25, 50, 75))]
            if len(one)
            else None
            for one in samples
        ],
        "distances": [_judged(first, other) for other in others],
    }


def _means(groups: _Integers, values: _Floats) -> _Floats:
    """Return the mean of each group that has a value."""
    count = np.bincount(groups)
    total = np.bincount(groups, weights=values)
    return np.asarray(total[count > 0] / count[count > 0])


def _judged(first: _Floats, other: _Floats) -> Json | None:
    if not (len(first) and len(other)):
        return None
    limit = _LIMIT * math.sqrt((len(first) + len(other)) / (len(first) * len(other)))
    found = distance(first, other)
    return {"ks": round(found, 3), "is_far": found > limit}


def distance(first: _Floats, other: _Floats) -> float:
    """Return Kolmogorov and Smirnov's distance of two samples: 0 alike, 1 apart.

    The largest difference between their empirical distribution functions.
    """
    both = np.concatenate([first, other])
    shares = [
        np.searchsorted(np.sort(one), both, side="right") / len(one) for one in (first, other)
    ]
    return float(np.abs(shares[0] - shares[1]).max())


def _maps(dataset: Dataset, codes: npt.NDArray[np.generic], parts: Sequence[int]) -> Iterator[Json]:
    """Yield where the masks of each part have each structure."""
    for one in dataset.structures:
        images = []
        for code in parts:
            rows = np.flatnonzero(codes == code)
            step = -(-len(rows) // _MAP_ROWS)
            chosen = rows[::step].tolist()
            images.append({"rows": len(chosen), "image": heat_map(dataset, chosen, one)})
        yield {"structure": one.name, "images": images}
