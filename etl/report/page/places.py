"""The neighbours of rows: the same phase in the next slices, the same slice shortly before, after.

Other than in the checks, any distance will do: the page shows what is there.
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from etl.geometry import heights
from etl.quality.neighbours import SAME_SLICE
from loader import Dataset

_Floats: TypeAlias = npt.NDArray[np.float64]
_Integers: TypeAlias = npt.NDArray[np.int64]

NAMES: Final = ("below", "above", "before", "after")


class Places(NamedTuple):
    """Where each row lies in the stack and the heart beat of its patient."""

    group: _Integers  # the same for all rows of one patient and series
    slice: _Integers  # consecutive numbers along each stack, over all groups
    height: _Floats  # mm along the slices' normal, or the number of the slice
    time: _Floats  # ms, or the frame's number


def places(dataset: Dataset) -> Places:
    """Return the places of all rows."""
    manifest = dataset.manifest.stored
    halves = ("row", "column")
    orientation = _columns(
        manifest, [f"image_orientation_{half}_{axis}" for half in halves for axis in "xyz"]
    )
    position = _columns(manifest, [f"image_position_{axis}" for axis in "xyz"])
    group = _codes(manifest["patient_id"])
    if "series" in manifest:
        series = _codes(manifest["series"])
        group = _codes(group * (int(series.max(initial=0)) + 1) + series)
    height = _known(heights(orientation, position), manifest["slice_location"], group)
    height = _known(height, manifest["slice"], group)
    frame = manifest.get("frame_number", np.ones(len(group)))
    time = _known(manifest["trigger_time"].astype(np.float64), manifest["slice"], group)
    time = time + np.asarray(frame, np.float64) * 1e-6  # an order for frames of one time
    order = np.lexsort((height, group))
    is_new = (np.diff(group[order]) != 0) | (np.diff(height[order]) > SAME_SLICE)
    numbers = np.empty(len(order), np.int64)
    numbers[order] = np.cumsum(np.append(False, is_new)[: len(order)])
    return Places(group, numbers, height, time)


def neighbours(found: Places, rows: Sequence[int]) -> dict[int, dict[str, int]]:
    """Return the neighbours of some rows: row → name of the direction → row; none are left out."""
    order = np.lexsort((found.time, found.slice))
    slices, times = found.slice[order], found.time[order]
    n_slices = int(found.slice.max(initial=-1)) + 1
    starts = np.searchsorted(slices, np.arange(n_slices + 1))
    place_of = np.empty(len(order), np.int64)
    place_of[order] = np.arange(len(order))

    def in_slice(number: int, row: int) -> int | None:
        """Return the row of a slice that is nearest in time."""
        if not 0 <= number < n_slices:
            return None
        first, last = int(starts[number]), int(starts[number + 1])
        nearest = first + int(np.abs(times[first:last] - found.time[row]).argmin())
        other = int(order[nearest])
        return other if found.group[other] == found.group[row] else None

    def beside(row: int, step: int) -> int | None:
        place = int(place_of[row]) + step
        is_there = 0 <= place < len(order) and slices[place] == found.slice[row]
        return int(order[place]) if is_there else None

    result = {}
    for row in rows:
        number = int(found.slice[row])
        around = (
            *(in_slice(number - 1, row), in_slice(number + 1, row)),
            *(beside(row, -1), beside(row, 1)),
        )
        named = zip(NAMES, around, strict=True)
        result[row] = {name: other for name, other in named if other is not None}
    return result


def _columns(manifest: Mapping[str, npt.NDArray[np.generic]], names: Sequence[str]) -> _Floats:
    return np.stack([manifest[name].astype(np.float64) for name in names], axis=1)


def _codes(values: npt.NDArray[np.generic]) -> _Integers:
    return np.asarray(np.unique(values, return_inverse=True)[1], np.int64).reshape(-1)


def _known(values: _Floats, instead: npt.NDArray[np.generic], group: _Integers) -> _Floats:
    """Return values, and where a group lacks some, others for all of the group."""
    is_lacking = np.zeros(int(group.max(initial=-1)) + 1, np.bool_)
    is_lacking[group[~np.isfinite(values)]] = True
    return np.where(is_lacking[group], instead.astype(np.float64), values)
