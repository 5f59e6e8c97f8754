"""Named checks of parsed data, each → nothing, an error that rejects, or a warning."""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from etl.contours.polygon import is_inside, perimeter, share_outside
from etl.errors import ContourError, ImageError
from etl.findings import Remark
from etl.model import Mask, PixelFormat, Vertices

MIN_VERTICES: Final = 3

# DICOM's Rows and Columns end at 65535: no vertex that far off belongs to any image, and polygon
# fillers stall on it.
MAX_COORDINATE: Final = 65536.0
# In pixels. Drawn borders have less than 10,000; Pillow fills one of 1e11 for minutes.
MAX_PERIMETER: Final = 1e7


def check_size(pixels: PixelFormat, rows: int, columns: int) -> None:
    """Require the expected size.

    Raises
    ------
    ImageError
        Rows or Columns is another; the message names both sizes.
    """
    if (pixels.rows, pixels.columns) != (rows, columns):
        raise ImageError(
            "image-size",
            f"is {pixels.rows}x{pixels.columns} (rows x columns), expected {rows}x{columns}. "
            "Take all sizes with --fit ROWSxCOLUMNS, or build such images apart with --size.",
        )


def check_resampled_size(
    size: tuple[int, int], pixels: PixelFormat, rows: int, columns: int
) -> None:
    """Require the expected size after resampling.

    Parameters
    ----------
    size : (int, int)
        Rows and columns that the image gets.

    Raises
    ------
    ImageError
        It is another; the message names the sizes before and after.
    """
    if size != (rows, columns):
        raise ImageError(
            "image-size",
            f"is {pixels.rows}x{pixels.columns} (rows x columns), and {size[0]}x{size[1]} by "
            f"--resample, expected {rows}x{columns}. Take all sizes with --fit ROWSxCOLUMNS.",
        )


def check_polygons(
    polygons: Sequence[Vertices], rows: int, columns: int, *, may_be_outside: bool = False
) -> list[Remark]:
    """Check each polygon of a region as `check_contour` does; of several, say which one it is.

    Raises
    ------
    ContourError
        One of them is of no use.
    """
    if len(polygons) == 1:
        return check_contour(polygons[0], rows, columns, may_be_outside=may_be_outside)
    remarks: list[Remark] = []
    for number, vertices in enumerate(polygons, 1):
        which = f"its polygon {number} of {len(polygons)}"
        try:
            found = check_contour(vertices, rows, columns, may_be_outside=may_be_outside)
        except ContourError as error:
            raise ContourError(error.code, f"{which} {error.message}") from error
        remarks += [Remark(remark.code, f"{which}: {remark.message}") for remark in found]
    return remarks


def check_mask(mask: Mask, rows: int, columns: int) -> None:
    """Require a mask of the image's size.

    Raises
    ------
    ContourError
        It has another.
    """
    if mask.shape != (rows, columns):
        size = "x".join(map(str, mask.shape))
        raise ContourError(
            "mask-size", f"is {size} (rows x columns), expected {rows}x{columns} as its image."
        )


def lie_outside(polygons: Sequence[Vertices], rows: int, columns: int) -> bool:
    """Say whether all polygons of a region lie wholly outside the image."""
    return all(share_outside(vertices, rows, columns) == 1.0 for vertices in polygons)


def outside(rows: int, columns: int) -> ContourError:
    """Return the error for a contour that lies wholly outside the image."""
    return ContourError(
        "contour-outside",
        f"lies wholly outside the {rows}x{columns} image. Is it another image's?",
    )


def check_contour(
    vertices: Vertices, rows: int, columns: int, *, may_be_outside: bool = False
) -> list[Remark]:
    """Require a polygon that touches the image; warn where part of it lies outside.

    Parameters
    ----------
    may_be_outside : bool
        Whether a polygon that is wholly outside the image gets a warning, too.

    Raises
    ------
    ContourError
        Fewer than three distinct vertices, the whole polygon outside the image, or a border of
        absurd length.
    """
    if not has_three_points(vertices):
        n_distinct = len(np.unique(vertices, axis=0))
        raise ContourError(
            "contour-too-few-points",
            f"has {n_distinct} distinct points, expected {MIN_VERTICES} or more. Draw it again.",
        )
    lowest, highest = float(vertices.min()), float(vertices.max())
    farthest = max(-lowest, highest)
    if farthest > MAX_COORDINATE:
        raise ContourError(
            "contour-outside",
            f"has a point {farthest:g} pixels off, farther than any image reaches. Draw it again.",
        )
    # No edge is longer than both sides of the square of all coordinates; most need no exact sum.
    is_short = 2 * (highest - lowest) * len(vertices) <= MAX_PERIMETER
    if not is_short and (length := perimeter(vertices)) > MAX_PERIMETER:
        raise ContourError(
            "contour-too-large",
            f"its border is {length:.4g} pixels long, expected at most {MAX_PERIMETER:g}. "
            "Draw it again.",
        )
    if is_inside(lowest, highest, rows, columns):
        return []
    share = share_outside(vertices, rows, columns)
    if share == 1.0 and not may_be_outside:
        raise outside(rows, columns)
    if share == 0.0:
        return []
    part = "part of it" if math.isnan(share) else f"{share:.1%} of its area"
    part = "all of it" if share == 1.0 else part
    message = f"{part} lies outside the {rows}x{columns} image and is cut off."
    return [Remark("contour-partly-outside", message)]


def has_three_points(vertices: Vertices) -> bool:
    """Say whether three vertices differ; sooner done than counting all that do."""
    if len(vertices) < MIN_VERTICES:
        return False
    first, second, third = vertices[:MIN_VERTICES].tolist()
    if first != second and third not in (first, second):
        return True
    others = vertices[(vertices != vertices[0]).any(axis=1)]
    return len(others) > 0 and bool((others != others[0]).any())
