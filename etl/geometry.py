"""Image planes in patient coordinates: the places of pixels, in millimetres.

Conventions are those of DICOM PS3.3 C.7.6.2.1.1: a position is the centre of a pixel, x counts
columns and y rows from 0, and patient coordinates are in millimetres.
"""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]
Integers: TypeAlias = npt.NDArray[np.int64]

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
        return bool(are_directions(np.array([*self.row, *self.column]))[()])

    @property
    def normal(self) -> Floats:
        """The unit vector along which slices are stacked: row x column; shape (3,)."""
        (a, b, c), (d, e, f) = self.row, self.column
        normal = np.array([b * f - c * e, c * d - a * f, a * e - b * d])  # sooner than np.cross
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


def are_directions(cosines: Floats) -> npt.NDArray[np.bool_]:
    """Say whether direction cosines are two unit vectors at right angles, but for rounding.

    Parameters
    ----------
    cosines : float64 array, shape (..., 6)
        Along a row, then along a column; NaN are no directions.
    """
    row, column = cosines[..., :3], cosines[..., 3:]
    products = [(a * b).sum(axis=-1) for a, b in ((row, row), (column, column), (row, column))]
    off = np.abs(np.stack(products, axis=-1) - [1, 1, 0])
    return np.asarray((off <= _COSINE_TOLERANCE).all(axis=-1))


class SourceGrid(NamedTuple):
    """Where the pixels of a row of the file lie in the frame that it is made of.

    Pixel (row, column) of the file has its centre at (row_offset + row_scale * row,
    column_offset + column_scale * column) in pixels of the frame; integers are centres.

    Attributes
    ----------
    rows, columns : int
        Of the frame.
    row_offset, row_scale, column_offset, column_scale : float
        In pixels of the frame.
    """

    rows: int
    columns: int
    row_offset: float
    row_scale: float
    column_offset: float
    column_scale: float

    def to_file(self, vertices: Floats) -> Floats:
        """Return where (x, y) in pixels of the frame are in pixels of the file; shape (n, 2)."""
        offset = np.array([self.column_offset, self.row_offset])
        return np.asarray((vertices - offset) / np.array([self.column_scale, self.row_scale]))

    def nearest(self, rows: int, columns: int) -> tuple[Integers, Integers]:
        """Return the row and the column of the frame that hold the centre of each of the file's.

        Parameters
        ----------
        rows, columns : int
            Of the file.

        Returns
        -------
        two int64 arrays, shapes (rows,) and (columns,)
            Beyond the frame where the file has pixels there.
        """
        return (
            np.floor(self.row_offset + self.row_scale * np.arange(rows) + 0.5).astype(np.int64),
            np.floor(self.column_offset + self.column_scale * np.arange(columns) + 0.5).astype(
                np.int64
            ),
        )

    def shown(self, rows: int, columns: int) -> tuple[slice, slice]:
        """Return the rows and columns of the file whose centres are in the frame.

        The other pixels of the file are padding.
        """
        parts = []
        for places, length in zip(
            self.nearest(rows, columns), (self.rows, self.columns), strict=True
        ):
            first, stop = np.searchsorted(places, [0, length]).tolist()
            parts.append(slice(first, stop))
        return parts[0], parts[1]


class Planes(NamedTuple):
    """Many planes at once; rows of NaN stand where a plane is not known.

    Attributes
    ----------
    is_known : bool array, shape (n,)
        As `ImagePlane.is_known`.
    normals : float64 array, shape (n, 3)
        Unit vectors: row x column.
    positions : float64 array, shape (n, 3)
        Of the first pixels' centres, mm.
    """

    is_known: npt.NDArray[np.bool_]
    normals: Floats
    positions: Floats

    @property
    def heights(self) -> Floats:
        """The positions of the planes along their normals, mm; shape (n,)."""
        return np.asarray((self.normals * self.positions).sum(axis=1))

    @classmethod
    def of(cls, planes: Sequence[ImagePlane]) -> "Planes":
        """Return single planes together; a hundred times as fast as asking each of them."""
        flat = (number for plane in planes for part in plane for number in part)
        values = np.fromiter(flat, np.float64, 11 * len(planes)).reshape(-1, 11)
        positions, row, column, spacing = np.split(values, [3, 6, 9], axis=1)
        is_known = np.isfinite(values).all(axis=1) & (spacing > 0).all(axis=1)
        is_known &= are_directions(np.hstack([row, column]))
        normals = np.full_like(positions, np.nan)
        known = np.cross(row[is_known], column[is_known])
        normals[is_known] = known / np.linalg.norm(known, axis=1, keepdims=True)
        return cls(is_known, normals, positions)


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
