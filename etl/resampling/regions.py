"""Regions in pixels of a frame → in pixels of its row."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from etl.contours.rasterise import rasterise_region
from etl.geometry import SourceGrid
from etl.model import BitMask, LabelMap, Mask, Region, Vertices
from etl.options import BuildOptions

_HALF: Final = 0.5  # of a pixel


def region_on_grid(region: Region, grid: SourceGrid, options: BuildOptions) -> Region:
    """Return a region as it is painted into the mask of its row.

    Vertices move; nothing is rasterised before. A pixel of a mask is a square, so that a pixel of
    the file belongs to it where its centre is inside: it takes the nearest pixel of the mask. What
    is drawn beyond the frame is cut off there, as in a row that has the frame's pixels.
    """
    size = options.rows, options.columns
    if region.mask is not None:
        return region._replace(mask=mask_on_grid(region.mask, grid, *size))
    polygons = tuple(map(grid.to_file, region.polygons))
    if _is_inside(region.polygons, grid):
        return region._replace(polygons=polygons)
    mask = rasterise_region(polygons, *size, options.rasterizer)
    return Region(region.code, (), region.xxh3, mask & ~padding_of(grid, *size))


def mask_on_grid(mask: Mask, grid: SourceGrid, rows: int, columns: int) -> Mask:
    """Return the pixels of a row whose centres are in a mask of its frame."""
    out = np.zeros((rows, columns), np.bool_)
    part = grid.shown(rows, columns)
    row, column = grid.nearest(rows, columns)
    out[part] = mask[np.ix_(row[part[0]], column[part[1]])]
    return out


def padding_of(grid: SourceGrid, rows: int, columns: int) -> Mask:
    """Return the pixels of a row that lie beyond its frame."""
    is_padding = np.ones((rows, columns), np.bool_)
    is_padding[grid.shown(rows, columns)] = False
    return is_padding


def clear_padding(labels: LabelMap | BitMask, grid: SourceGrid) -> None:
    """Set the pixels of a label map that lie beyond the frame to 0: nothing can be there."""
    labels[padding_of(grid, *labels.shape)] = 0


def _is_inside(polygons: Sequence[Vertices], grid: SourceGrid) -> bool:
    highest = np.array([grid.columns, grid.rows]) - _HALF
    return all(
        bool((vertices >= -_HALF).all() and (vertices <= highest).all()) for vertices in polygons
    )
