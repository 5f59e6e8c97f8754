"""Reading back rows that were written, before the file is whole."""

from typing import cast

import numpy as np
import numpy.typing as npt

from etl.model import BitMask, Image, LabelMap, Vertices
from etl.output.row_writer import Plan
from loader import format as file_format


class WrittenRows:
    """Images and contours of some rows of a file that is being written.

    Parameters
    ----------
    plan : Plan
        The place of the rows.
    places : int64 array, shape (n,)
        The place in the file of each row.
    contours : int64 array, shape (m, 3)
        (place, label, number of vertices) of each contour, in the order of the file.
    """

    def __init__(
        self, plan: Plan, places: npt.NDArray[np.int64], contours: npt.NDArray[np.int64]
    ) -> None:
        self._plan = plan
        self._places = places
        self._contours = contours
        self._starts = np.cumsum(contours[:, 2]) - contours[:, 2]

    def image(self, row: int) -> Image:
        """Return the modality values of a row."""
        size = self._plan.rows, self._plan.columns
        values = self._read(file_format.IMAGES, int(self._places[row]), 1, self._plan.image_dtype)
        return cast("Image", values.reshape(size))

    def mask(self, row: int) -> LabelMap | BitMask:
        """Return the mask of a row."""
        size = self._plan.rows, self._plan.columns
        values = self._read(file_format.MASKS, int(self._places[row]), 1, self._plan.mask_dtype)
        return cast("LabelMap", values.reshape(size))

    def polygons(self, row: int) -> list[tuple[int, Vertices]]:
        """Return (label, vertices) of the contours of a row."""
        place = self._places[row]
        first, stop = np.searchsorted(self._contours[:, 0], [place, place + 1]).tolist()
        found = []
        for index in range(first, stop):
            start, n_vertices = int(self._starts[index]), int(self._contours[index, 2])
            axes = [
                self._read(name, start, n_vertices, "<f8") for name in ("contours/x", "contours/y")
            ]
            found.append((int(self._contours[index, 1]), np.stack(axes, axis=1)))
        return found

    def _read(self, name: str, first: int, n_rows: int, dtype: str) -> npt.NDArray[np.generic]:
        size = self._plan.row_bytes[name]
        values: npt.NDArray[np.generic] = np.fromfile(
            self._plan.path,
            dtype,
            n_rows * size // np.dtype(dtype).itemsize,
            offset=self._plan.offsets[name] + first * size,
        )
        return values
