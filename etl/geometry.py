"""Image planes in patient coordinates: the places of pixels, in millimetres.

Conventions are those of DICOM PS3.3 C.7.6.2.1.1: a position is the centre of a pixel, x counts
columns and y rows from 0, and patient coordinates are in millimetres.
"""

import math
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]

_COSINE_TOLERANCE: Final = 0.01  # of lengths and angles of the direction cosines: 0.6 degrees


class ImagePlane(NamedTuple):
    """The plane of one frame, as its header gives it; NaN where the header has no value.

    Attributes
    ----------
    position : tuple of 3 floats
        Of the centre of the first pixel, mm (ImagePositionPatient).
    row, column : tuple of 3 floats
        Direction cosines along a row, which is that of growing column index, and along a column
        (ImageOrientationPatient).
    spacing : tuple of 2 floats
        Between rows and between columns, mm (PixelSpacing).
    """

    position: tuple[float, ...]
    row: tuple[float, ...]
    column: tuple[float, ...]
    spacing: tuple[float, ...]

    @property
    def is_known(self) -> bool:
        """Whether all values are there and make sense; no other plane maps anything."""
        numbers = [*self.position, *self.row, *self.column, *self.spacing]
        if not all(map(math.isfinite, numbers)) or min(self.spacing) <= 0:
            return False
        row, column = np.array(self.row), np.array(self.column)
        cosines = np.array([row @ row, column @ column, row @ column])
        return bool((np.abs(cosines - [1, 1, 0]) <= _COSINE_TOLERANCE).all())

    @property
    def normal(self) -> Floats:
        """The unit vector along which slices are stacked: row x column; shape (3,)."""
        normal = np.cross(self.row, self.column)
        return np.asarray(normal / np.linalg.norm(normal))

    @property
    def height(self) -> float:
        """The position of the plane along its normal, mm."""
        return float(self.normal @ np.array(self.position))

    def to_pixels(self, points: Floats) -> Floats:
        """Return where points lie in the image, dropped onto the plane along its normal.

        Parameters
        ----------
        points : float64 array, shape (n, 3)
            Patient coordinates, mm.

        Returns
        -------
        float64 array, shape (n, 2)
            (x, y) in pixels; integers are pixel centres.
        """
        axes = self._axes()
        # Exact where the two axes are not quite at right angles, as cosines rounded in a header.
        offsets = points - np.array(self.position)
        return np.asarray(np.linalg.solve(axes @ axes.T, axes @ offsets.T).T)

    def to_patient(self, pixels: Floats) -> Floats:
        """Return the patient coordinates of pixels.

        Parameters
        ----------
        pixels : float64 array, shape (n, 2)
            (x, y) in pixels.

        Returns
        -------
        float64 array, shape (n, 3)
            Patient coordinates, mm.
        """
        return np.asarray(pixels @ self._axes() + np.array(self.position))

    def distances(self, points: Floats) -> Floats:
        """Return how far points of shape (n, 3) lie in front of the plane, mm; shape (n,)."""
        return np.asarray((points - np.array(self.position)) @ self.normal)

    def _axes(self) -> Floats:
        """Return the steps from one column to the next, and from one row to the next, mm."""
        between_rows, between_columns = self.spacing
        return np.array([self.row, self.column]) * [[between_columns], [between_rows]]


def heights(orientation: Floats, position: Floats) -> Floats:
    """Return the positions of many planes along their normals, mm; shape (n,).

    Parameters
    ----------
    orientation : float64 array, shape (n, 6)
        Direction cosines along a row, then along a column.
    position : float64 array, shape (n, 3)
        Of the first pixels' centres, mm.
    """
    normals = np.cross(orientation[:, :3], orientation[:, 3:])
    return np.asarray((normals * position).sum(axis=1))


def offsets_in_plane(orientation: Floats, position: Floats) -> Floats:
    """Return where the first pixels of many planes lie along their rows and columns, mm.

    Parameters
    ----------
    orientation, position : float64 arrays, shapes (n, 6) and (n, 3)
        As for `heights`.

    Returns
    -------
    float64 array, shape (n, 2)
        The offset along a row, then along a column.
    """
    along_row, along_column = orientation[:, :3], orientation[:, 3:]
    return np.stack([(along_row * position).sum(axis=1), (along_column * position).sum(axis=1)], 1)
