"""Measures of a polygon; the same to the last bit on every machine."""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from etl.model import Vertices

_SAMPLED: Final = 16  # vertices that tell whether a polygon lies in another one
_HALF: Final = 0.5  # of a pixel
_NEARLY_ALL: Final = math.nextafter(1.0, 0.0)


def area(vertices: Vertices) -> float:
    """Return the area of a closed polygon in square pixels (shoelace formula, exactly summed)."""
    return abs(_signed_area(vertices))


def nested_areas(polygons: Sequence[Vertices]) -> list[float]:
    """Return the area of each polygon of a region, negative where it is a hole.

    Even-odd: a polygon that lies in an odd number of others is a hole. Where the polygons do not
    cross each other, the sum is the region's area.
    """
    areas = [area(vertices) for vertices in polygons]
    if len(polygons) == 1:
        return areas
    lows = np.stack([vertices.min(axis=0) for vertices in polygons])
    highs = np.stack([vertices.max(axis=0) for vertices in polygons])
    signed = []
    for vertices, low, high, size in zip(polygons, lows, highs, areas, strict=True):
        is_around = ((lows <= low) & (highs >= high)).all(axis=1)
        others = [polygons[place] for place in np.flatnonzero(is_around).tolist()]
        depth = sum(_lies_in(vertices, other) for other in others if other is not vertices)
        signed.append(-size if depth % 2 else size)
    return signed


def _lies_in(inner: Vertices, outer: Vertices) -> bool:
    """Say whether most of some vertices of one polygon lie inside another one."""
    x, y = inner[:: max(1, len(inner) // _SAMPLED)].T[:, :, None]
    (x0, y0), (x1, y1) = outer.T, np.roll(outer, -1, axis=0).T
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = x0 + (y - y0) * (x1 - x0) / (y1 - y0)
    is_crossed = ((y0 <= y) != (y1 <= y)) & (crossing > x)
    is_inside = is_crossed.sum(axis=1) % 2 == 1
    return 2 * int(is_inside.sum()) > len(is_inside)


def perimeter(vertices: Vertices) -> float:
    """Return the length of a closed polygon's border in pixels."""
    x, y = (np.roll(vertices, -1, axis=0) - vertices).T
    return math.fsum(np.hypot(x, y).tolist())


def is_inside(lowest: float, highest: float, rows: int, columns: int) -> bool:
    """Say whether a polygon certainly lies in the image; sooner seen than its `share_outside`.

    Parameters
    ----------
    lowest, highest : float
        Of all coordinates of its vertices, x and y.
    """
    return lowest >= -_HALF and highest <= min(rows, columns) - _HALF


def share_outside(vertices: Vertices, rows: int, columns: int) -> float:
    """Return the share (0 to 1) of a polygon's area that lies outside the image.

    Pixels reach half a pixel beyond their centres, so the image spans -0.5 to columns - 0.5 and
    -0.5 to rows - 0.5. The share is 0 only where the whole polygon lies in the image, and 1 only
    where no part of it does. Of a polygon that crosses itself the areas of its loops may cancel:
    the share is a rough one then, and NaN where it would be no share at all.
    """
    low, high = (-_HALF, -_HALF), (columns - _HALF, rows - _HALF)
    if ((vertices >= low) & (vertices <= high)).all():
        return 0.0
    clipped = vertices
    for axis in (0, 1):
        clipped = _clip(clipped, axis, low[axis], keep_above=True)
        clipped = _clip(clipped, axis, high[axis], keep_above=False)
    if len(clipped) == 0:
        return 1.0
    whole = _signed_area(vertices)
    share = 1.0 - _signed_area(clipped) / whole if whole else math.nan
    return min(share, _NEARLY_ALL) if 0.0 < share <= 1.0 else math.nan


def _signed_area(vertices: Vertices) -> float:
    if len(vertices) == 0:
        return 0.0
    # From the first vertex, so that a small polygon far from the origin loses no digits.
    x, y = (vertices - vertices[0]).T
    # The edge that closes the polygon ends at the origin and adds nothing.
    cross = x[:-1] * y[1:] - x[1:] * y[:-1]
    return math.fsum(cross.tolist()) / 2


def _clip(vertices: Vertices, axis: int, bound: float, *, keep_above: bool) -> Vertices:
    """Cut a closed polygon at one axis-parallel line (Sutherland and Hodgman)."""
    if len(vertices) == 0:
        return vertices
    ends = np.roll(vertices, -1, axis=0)
    start_in = (vertices[:, axis] >= bound) == keep_above
    end_in = (ends[:, axis] >= bound) == keep_above
    crosses = start_in != end_in
    step = np.where(crosses, ends[:, axis] - vertices[:, axis], 1.0)
    cuts = vertices + (ends - vertices) * ((bound - vertices[:, axis]) / step)[:, None]
    cuts[:, axis] = bound
    # Each edge gives its start where that is inside, then its cut where it crosses.
    pairs = np.stack([vertices, cuts], axis=1).reshape(-1, 2)
    kept: Vertices = pairs[np.stack([start_in, crosses], axis=1).ravel()]
    return kept
