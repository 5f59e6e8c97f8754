"""Contours drawn in other coordinates than the image's pixels → pixels, step by step.

`etl.options.TRANSFORM_STEPS` lists the steps; they apply left to right, after the contour origin.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from etl.errors import ContourError
from etl.model import Instance, Vertices
from etl.options import SCALE_STEP


class PixelGrid(NamedTuple):
    """The image that contours are to fit."""

    rows: int
    columns: int
    spacing: tuple[float, ...]  # mm: between rows, between columns; NaN where it is not known

    @classmethod
    def of(cls, instance: Instance | None, rows: int, columns: int) -> "PixelGrid":
        """Return the grid of an instance, or one of this size where there is no instance."""
        if instance is None:
            return cls(rows, columns, (np.nan, np.nan))
        pixels = instance.pixel_format
        return cls(pixels.rows, pixels.columns, instance.pixel_spacing)

    @property
    def has_spacing(self) -> bool:
        """Whether both distances between pixels are known and make sense."""
        return all(np.isfinite(step) and step > 0 for step in self.spacing)


def transform(vertices: Vertices, steps: Sequence[str], grid: PixelGrid) -> Vertices:
    """Return vertices after each of some steps.

    Parameters
    ----------
    vertices : float64 array, shape (n_vertices, 2)
        (x, y) as the file has them, after the contour origin.
    steps : sequence of str
        As `BuildOptions.contour_transform` has them.
    grid : PixelGrid
        Size and pixel spacing of the image.

    Raises
    ------
    ContourError
        A step needs the pixel spacing, which the image does not have.
    """
    for step in steps:
        name, _, factor = step.partition("=")
        is_scale = name == SCALE_STEP
        vertices = vertices * float(factor) if is_scale else _STEPS[name](vertices, grid)
    return vertices


def _swap(vertices: Vertices, _frame: PixelGrid) -> Vertices:
    return vertices[:, ::-1].copy()


def _flip_x(vertices: Vertices, grid: PixelGrid) -> Vertices:
    x, y = vertices.T
    return np.stack([grid.columns - 1 - x, y], axis=1)


def _flip_y(vertices: Vertices, grid: PixelGrid) -> Vertices:
    x, y = vertices.T
    return np.stack([x, grid.rows - 1 - y], axis=1)


def _rotate_90(vertices: Vertices, grid: PixelGrid) -> Vertices:
    x, y = vertices.T
    return np.stack([grid.rows - 1 - y, x], axis=1)


def _millimetres(vertices: Vertices, grid: PixelGrid) -> Vertices:
    if not grid.has_spacing:
        raise ContourError(
            "contour-no-spacing",
            "is to be read as millimetres (--contour-transform mm), but its image has no usable "
            "PixelSpacing. Give the image its PixelSpacing, or write the contour in pixels.",
        )
    between_rows, between_columns = grid.spacing
    return np.asarray(vertices / np.array([between_columns, between_rows]))


_STEPS: Final[Mapping[str, Callable[[Vertices, PixelGrid], Vertices]]] = {
    "swap": _swap,
    "flip-x": _flip_x,
    "flip-y": _flip_y,
    "rotate-90": _rotate_90,
    "mm": _millimetres,
}
