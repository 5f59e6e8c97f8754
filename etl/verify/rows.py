"""Rows of a built file → what in them differs from their digest, their columns or their labels.

`check_rows` runs in workers, on stretches of consecutive rows.
"""

import math
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from etl.findings import SampleKey, sample_keys
from etl.geometry import SourceGrid
from etl.model import BitMask, Image, LabelMap
from etl.output.row_writer import row_digest
from etl.quality.statistics import image_statistics
from etl.verify.claims import Claim, is_confirmed
from etl.verify.problem import Problem
from etl.verify.reading import RowReader, read_ahead
from loader import Dataset, open_dataset
from loader.format import IGNORE

_FARTHEST: Final = 1e9  # pixels: no row lies so far off its frame
_WORD_BYTES: Final = 8


def check_rows(path: Path, task: tuple[int, int]) -> list[Problem]:
    """Return the problems of the rows from the first to before the second of `task`.

    Raises
    ------
    LoaderError
        The file was written to or cut short meanwhile.
    """
    status = path.stat()
    dataset = _opened(path, status.st_ino, status.st_size, status.st_mtime_ns)
    read_ahead(dataset, task)
    reader, manifest = RowReader(dataset), _Manifest(dataset, *task)
    problems: list[Problem] = []
    for row in range(*task):
        try:
            image, mask = reader.read(row)
        except OSError as error:
            messages = [f"image and mask cannot be read ({error.strerror})."]
        else:
            messages = list(_messages(dataset, manifest, row, image, mask))
        problems += [Problem(_place(row, manifest.key(row)), message) for message in messages]
    dataset.check_whole()
    return problems


@lru_cache(1)
def _opened(path: Path, *_stamp: int) -> Dataset:
    """Return a file that this process need not open and map for each of its tasks."""
    return open_dataset(path)


def forget() -> None:
    """Close the file that the last task of this process has opened."""
    _opened.cache_clear()


def give_up(task: tuple[int, int], why: str) -> list[Problem]:
    """Return a problem for rows that workers could not check."""
    first, last = task[0], task[1] - 1
    return [Problem(f"rows {first} to {last}", why)]


class _Manifest:
    """What the manifest says of consecutive rows: as lists, whose items are fast to look up."""

    def __init__(self, dataset: Dataset, first: int, stop: int) -> None:
        stored = dataset.manifest.stored
        self._keys = _keys(dataset, first, stop)
        self.structures = sorted(dataset.structures, key=lambda one: one.code)
        # A version 1 file lacks the last one, and has no padding.
        self.statistics = tuple(name for name in Claim._fields if name in stored)
        names = {"row_xxh3", "padding_minimum", "padding_maximum", *self.statistics}
        names |= {f"n_pixels_{structure.code}" for structure in self.structures}
        self._first = first
        self._columns = {name: stored[name][first:stop].tolist() for name in names & stored.keys()}

    def key(self, row: int) -> SampleKey:
        """Return the key of a row."""
        return self._keys[row - self._first]

    def value(self, name: str, row: int) -> float:
        """Return what a column says of a row."""
        found: float = self._columns[name][row - self._first]
        return found

    def claim(self, row: int) -> Claim:
        """Return the statistics of a row."""
        return Claim(*(self.value(name, row) for name in self.statistics))

    def padding(self, row: int) -> tuple[float, float] | None:
        """Return the lowest and highest value of a row's padding, if it may have any."""
        if "padding_minimum" not in self._columns:
            return None
        low, high = self.value("padding_minimum", row), self.value("padding_maximum", row)
        return None if math.isnan(low) else (low, high)


def _messages(
    dataset: Dataset, manifest: _Manifest, row: int, image: Image, mask: LabelMap | BitMask
) -> Iterator[str]:
    """Yield what is wrong with a row."""
    found = row_digest(manifest.key(row), image, mask)
    if found != manifest.value("row_xxh3", row):
        yield "image, mask or key differ from the row's digest (row_xxh3)."
    yield from _statistics(dataset, manifest, row, image)
    yield from _labels(dataset, manifest, row, mask)


def _statistics(dataset: Dataset, manifest: _Manifest, row: int, image: Image) -> Iterator[str]:
    """Yield which statistics in the manifest are not those of the image."""
    claim, padding, shown = manifest.claim(row), manifest.padding(row), _shown(dataset, row)
    if padding is not None and (no_values := _no_values(image.dtype, padding)):
        yield from no_values
        return
    inside = image if shown is None else np.ascontiguousarray(image[shown])
    n_padding_inside = claim.n_padding - (image.size - inside.size)
    if is_confirmed(inside, claim._replace(n_padding=n_padding_inside), padding):
        return
    beyond = None
    if shown is not None:
        beyond = np.ones(image.shape, np.bool_)
        beyond[shown] = False
    statistics = image_statistics(image, padding, beyond)
    for name in manifest.statistics:
        expected, value = getattr(statistics, name), float(getattr(claim, name))
        if expected != value:
            yield f"{name} is {value!r} in the manifest, {expected!r} in the image."


def _no_values(dtype: np.dtype[np.generic], padding: tuple[float, float]) -> list[str]:
    """Say which ends of the padding no pixel can have."""
    names = ("padding_minimum", "padding_maximum")
    return [
        f"{name} is {value!r} in the manifest, which no pixel of {dtype} can have."
        for name, value in zip(names, padding, strict=True)
        if not _is_value(dtype, value)
    ]


def _is_value(dtype: np.dtype[Any], number: float) -> bool:
    if dtype.kind == "f":
        return math.isinf(number) or abs(number) <= float(np.finfo(dtype).max)
    return number.is_integer() and np.iinfo(dtype).min <= number <= np.iinfo(dtype).max


def _labels(
    dataset: Dataset, manifest: _Manifest, row: int, mask: LabelMap | BitMask
) -> Iterator[str]:
    """Yield whose pixels in the mask are not as many as the manifest says, and unknown ones."""
    drawn, n_known = _drawn(mask), 0
    for structure in manifest.structures:
        name, n_pixels = f"n_pixels_{structure.code}", _count(structure.covers(drawn))
        n_known += n_pixels
        expected = manifest.value(name, row)
        if n_pixels != expected:
            yield f"{name} is {expected} in the manifest, {n_pixels} in the mask."
    if dataset.has_bits:
        what, n_unknown = "bit", _count(_has_unknown_bits(dataset, drawn))
    else:
        what = "code"
        n_unknown = drawn.size - n_known - _count(drawn == 0) - _count(drawn == IGNORE)
    if n_unknown:
        yield f"{n_unknown} pixels of the mask have a {what} of no structure."


def _drawn(mask: LabelMap | BitMask) -> LabelMap | BitMask:
    """Return the pixels of a mask without most of its background, which most of it is."""
    pixels = mask.reshape(-1)
    if pixels.nbytes % _WORD_BYTES:
        return pixels
    words = pixels.view(np.uint64)
    drawn: LabelMap | BitMask = words[words != 0].view(mask.dtype)
    return drawn


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


def _shown(dataset: Dataset, row: int) -> tuple[slice, slice] | None:
    """Return which part of a row is in its frame: the rest is padding; None where all of it is."""
    grid = grid_of(dataset, row)
    if grid is None or not _makes_sense(grid):  # the digest of the columns tells the damage
        return None
    _, rows, columns = dataset.images.shape
    shown = grid.shown(rows, columns)
    is_empty = any(part.start >= part.stop for part in shown)
    return None if is_empty or shown == (slice(0, rows), slice(0, columns)) else shown


def _makes_sense(grid: SourceGrid) -> bool:
    return min(grid.row_scale, grid.column_scale) > 0 and all(
        abs(number) < _FARTHEST for number in grid
    )


def key_of(dataset: Dataset, row: int) -> SampleKey:
    """Return the key of a row; of damaged text with what is no UTF-8 shown."""
    (key,) = _keys(dataset, row, row + 1)
    return key


def _keys(dataset: Dataset, first: int, stop: int) -> list[SampleKey]:
    some = {
        name: _text(values[first:stop])
        for name, values in dataset.manifest.stored.items()
        if name in SampleKey._fields
    }
    return sample_keys(some)


def _text(values: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    if np.issubdtype(values.dtype, np.bytes_):
        return np.char.decode(values.astype(np.bytes_), "utf-8", "backslashreplace")
    return values


def place_of(dataset: Dataset, row: int) -> str:
    """Return the words by which messages name a row."""
    return _place(row, key_of(dataset, row))


def _place(row: int, key: SampleKey) -> str:
    series = f", series {key.series}" if key.series else ""
    frame = f", frame {key.frame_number}" if key.frame_number != 1 else ""
    return f"row {row} (patient {key.patient_id}{series}, slice {key.slice}{frame})"
