"""Rows that are there already: those of an older OUT, or of a killed build's partial file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from etl.model import Vertices
from etl.output.row_writer import Plan, read_at
from loader import Dataset
from loader import format as file_format

_CONTOURS = ("row", "label", "length", "x", "y")


@dataclass(frozen=True, eq=False)
class Older:
    """A file whose rows a new one may take over.

    Attributes
    ----------
    name : str
        For messages.
    path : Path
    dtypes, offsets : mapping
        The types of images and masks, and where they begin.
    places : int64 array, shape (n,)
        Row of the manifest → its place in the file.
    manifest : mapping
        Column → values; text as stored.
    contours : mapping
        row (a place), label and length of each contour, by place; x and y of all vertices.
    check_whole : callable
        Raises where the file has changed since it was opened.
    """

    name: str
    path: Path
    dtypes: Mapping[str, np.dtype[np.generic]]
    offsets: Mapping[str, int]
    places: npt.NDArray[np.int64]
    manifest: Mapping[str, npt.NDArray[np.generic]]
    contours: Mapping[str, npt.NDArray[np.generic]]
    check_whole: Callable[[], object]

    @classmethod
    def of_dataset(cls, dataset: Dataset) -> "Older":
        """Return the rows of a file that is whole."""
        base = np.frombuffer(dataset.buffer, np.uint8).ctypes.data
        arrays = {file_format.IMAGES: dataset.images, file_format.MASKS: dataset.masks}
        return cls(
            name=dataset.path.name,
            path=dataset.path,
            dtypes={name: array.dtype for name, array in arrays.items()},
            offsets={name: array.ctypes.data - base for name, array in arrays.items()},
            places=np.arange(len(dataset)),
            manifest=dataset.manifest.stored,
            contours={name: dataset.contours[name] for name in _CONTOURS},
            check_whole=dataset.check_whole,
        )

    def image(self, row: int, plan: Plan) -> npt.NDArray[np.generic]:
        """Return the modality values of a row, which has the size that the plan has."""
        n_bytes = plan.row_bytes[file_format.IMAGES]
        offset = self.offsets[file_format.IMAGES] + int(self.places[row]) * n_bytes
        with self.path.open("rb", buffering=0) as file:
            data = read_at(file.fileno(), n_bytes, offset)
        image: npt.NDArray[np.generic] = np.frombuffer(data, self.dtypes[file_format.IMAGES])
        return image.reshape(plan.rows, plan.columns)

    def has_contours(self, row: int) -> bool:
        """Say whether a row has contours, not only masks."""
        first, stop = self._contours_of(row)
        return first < stop

    def polygons(self, row: int) -> list[tuple[int, Vertices]]:
        """Return (label, vertices) of the contours of a row."""
        first, stop = self._contours_of(row)
        end = int(self.contours["length"][:first].sum())
        found = []
        for index in range(first, stop):
            start, end = end, end + int(self.contours["length"][index])
            axes = [self.contours[axis][start:end] for axis in "xy"]
            found.append((int(self.contours["label"][index]), np.stack(axes, axis=1)))
        return found

    def _contours_of(self, row: int) -> tuple[int, int]:
        """Return the positions of the first contour of a row, and of the first of the next one."""
        place = self.places[row]
        first, stop = np.searchsorted(self.contours["row"], [place, place + 1]).tolist()
        return first, stop
