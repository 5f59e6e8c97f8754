"""Rows of a built file → what in them differs from their digest, their columns or their labels.

`check_rows` runs in workers, on stretches of consecutive rows.
"""

import math
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from etl.findings import SampleKey, sample_keys
from etl.geometry import SourceGrid
from etl.model import BitMask
from etl.output.row_writer import row_digest
from etl.quality.statistics import image_statistics
from etl.verify.problem import Problem
from loader import Dataset, open_dataset
from loader.format import IGNORE

_FARTHEST: Final = 1e9  # pixels: no row lies so far off its frame
_STATISTICS = ("minimum", "maximum", "mean", "std", "p01", "p99")


def check_rows(path: Path, stretch: tuple[int, int]) -> list[Problem]:
    """Return the problems of the rows from the first to before the second of `stretch`."""
    status = path.stat()
    dataset = _opened(path, status.st_ino, status.st_size, status.st_mtime_ns)
    return [
        Problem(place_of(dataset, row), message)
        for row in range(*stretch)
        for message in _messages(dataset, row)
    ]


@lru_cache(1)
def _opened(path: Path, *_stamp: int) -> Dataset:
    """Return a file that this process need not open and map for each of its tasks."""
    return open_dataset(path)


def forget() -> None:
    """Close the file that the last task of this process has opened."""
    _opened.cache_clear()


def give_up(stretch: tuple[int, int], why: str) -> list[Problem]:
    """Return a problem for rows that workers could not check."""
    first, last = stretch[0], stretch[1] - 1
    return [Problem(f"rows {first} to {last}", why)]


def _messages(dataset: Dataset, row: int) -> Iterator[str]:
    """Yield what is wrong with a row."""
    manifest, (image, mask) = dataset.manifest.stored, dataset[row]
    found = row_digest(key_of(dataset, row), image, mask)
    if found != int(manifest["row_xxh3"][row]):
        yield "image, mask or key differ from the row's digest (row_xxh3)."
    padding = None
    if "padding_minimum" in manifest and not math.isnan(manifest["padding_minimum"][row]):
        padding = float(manifest["padding_minimum"][row]), float(manifest["padding_maximum"][row])
    statistics = image_statistics(np.ascontiguousarray(image), padding, _beyond(dataset, row))
    for name in (*_STATISTICS, *["n_padding"] * ("n_padding" in manifest)):
        expected, value = getattr(statistics, name), float(manifest[name][row])
        if expected != value:
            yield f"{name} is {value!r} in the manifest, {expected!r} in the image."
    n_known = 0
    for structure in sorted(dataset.structures, key=lambda one: one.code):
        name, n_pixels = f"n_pixels_{structure.code}", _count(structure.covers(mask))
        n_known += n_pixels
        expected = int(manifest[name][row])
        if n_pixels != expected:
            yield f"{name} is {expected} in the manifest, {n_pixels} in the mask."
    if dataset.has_bits:
        what, n_unknown = "bit", _count(_has_unknown_bits(dataset, mask))
    else:
        what = "code"
        n_unknown = mask.size - n_known - _count(mask == 0) - _count(mask == IGNORE)
    if n_unknown:
        yield f"{n_unknown} pixels of the mask have a {what} of no structure."


def _count(flags: npt.NDArray[np.bool_]) -> int:
    return int(np.count_nonzero(flags))


def _has_unknown_bits(dataset: Dataset, mask: BitMask) -> npt.NDArray[np.bool_]:
    """Return which pixels of a bit mask say something that the attributes do not explain."""
    bits = sum(1 << structure.bit for structure in dataset.structures if structure.bit is not None)
    is_unknown: npt.NDArray[np.bool_] = mask & ~mask.dtype.type(bits) != 0
    return is_unknown


def grid_of(dataset: Dataset, row: int) -> SourceGrid | None:
    """Return where a row lies in its frame; None where it has the frame's pixels."""
    manifest = dataset.manifest.stored
    if "source_rows" not in manifest:
        return None
    return SourceGrid(*(manifest[f"source_{name}"][row].item() for name in SourceGrid._fields))


def _beyond(dataset: Dataset, row: int) -> npt.NDArray[np.bool_] | None:
    """Return the pixels of a row that are padding, because they lie beyond its frame."""
    grid = grid_of(dataset, row)
    if grid is None or not _makes_sense(grid):  # the digest of the columns tells the damage
        return None
    _, rows, columns = dataset.images.shape
    beyond = np.ones((rows, columns), np.bool_)
    beyond[grid.shown(rows, columns)] = False
    return None if beyond.all() else beyond


def _makes_sense(grid: SourceGrid) -> bool:
    return min(grid.row_scale, grid.column_scale) > 0 and all(
        abs(number) < _FARTHEST for number in grid
    )


def key_of(dataset: Dataset, row: int) -> SampleKey:
    """Return the key of a row; of damaged text with what is no UTF-8 shown."""
    one = {
        name: _text(values[row : row + 1])
        for name, values in dataset.manifest.stored.items()
        if name in SampleKey._fields
    }
    (key,) = sample_keys(one)
    return key


def _text(values: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    if np.issubdtype(values.dtype, np.bytes_):
        return np.char.decode(values.astype(np.bytes_), "utf-8", "backslashreplace")
    return values


def place_of(dataset: Dataset, row: int) -> str:
    """Return the words by which messages name a row."""
    key = key_of(dataset, row)
    series = f", series {key.series}" if key.series else ""
    frame = f", frame {key.frame_number}" if key.frame_number != 1 else ""
    return f"row {row} (patient {key.patient_id}{series}, slice {key.slice}{frame})"
