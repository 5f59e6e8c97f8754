"""Modality values on the pixels of a frame → on the pixels of its row."""

import math
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from etl.geometry import SourceGrid
from etl.model import Image

_Floats: TypeAlias = npt.NDArray[np.float32]
_Part: TypeAlias = tuple[slice, slice]

_MARGIN: Final = 1.5  # pixels of the file that its outermost pixels see beyond their centres


def image_on_grid(
    image: Image,
    grid: SourceGrid,
    rows: int,
    columns: int,
    padding: tuple[float, float] | None = None,
) -> Image:
    """Return the values of a row's pixels.

    They are interpolated linearly, by Pillow; where pixels become larger, over as many more of the
    frame, so that nothing between two of them is passed over. In files of whole numbers they are
    rounded, halves to even. A ramp stays the same ramp to 1/1000 of its step where pixels become
    smaller, or larger by a whole factor, else to 0.09 of its step. Beyond the frame they are
    padding. A frame whose pixels keep their spacing is copied.

    Parameters
    ----------
    image : array, shape (frame rows, frame columns)
    rows, columns : int
        Of the file.
    padding : (float, float), optional
        Lowest and highest value that is padding and not image. It takes no part in the
        interpolation: pixels whose nearest one in the frame is padding are padding, of the lowest
        such value. So are pixels beyond the frame; without it they have the lowest value of the
        frame.

    Returns
    -------
    array, shape (rows, columns)
        Of the type of `image`.
    """
    part = grid.shown(rows, columns)
    nearest = tuple(
        places[shown] for places, shown in zip(grid.nearest(rows, columns), part, strict=True)
    )
    if (grid.row_scale, grid.column_scale) == (1, 1):  # then the offsets are whole numbers
        shown = image[np.ix_(*nearest)]
    else:
        shown = _resampled(image, grid, part, nearest, padding)
    if shown.shape == (rows, columns):
        return shown
    beyond = image.min() if padding is None else padding[0]
    out: Image = np.full((rows, columns), beyond, image.dtype)
    out[part] = shown
    return out


def _resampled(
    image: Image,
    grid: SourceGrid,
    part: _Part,
    nearest: tuple[npt.NDArray[np.int64], ...],
    padding: tuple[float, float] | None,
) -> Image:
    is_image = None
    if padding is not None:
        low, high = (image.dtype.type(end) for end in padding)
        is_image = (image < low) | (image > high)
        if is_image.all() or not is_image.any():
            is_image = None
    if is_image is None:
        values = _interpolated(image, grid, part).astype(np.float64)
        known = image
    else:
        known = image[is_image]
        weights = _interpolated(is_image, grid, part)
        sums = _interpolated(np.where(is_image, image, image.dtype.type(0)), grid, part)
        # Without weight are only pixels that are padding anyway.
        values = sums / np.where(weights > 0, weights, 1).astype(np.float64)
    if image.dtype.kind != "f":
        values = np.rint(values)
    # Rounding in single precision must not lead out of what the frame has.
    out: Image = values.clip(float(known.min()), float(known.max())).astype(image.dtype)
    if is_image is not None:
        out[~is_image[np.ix_(*nearest)]] = low
    return out


def _interpolated(image: npt.NDArray[np.generic], grid: SourceGrid, part: _Part) -> _Floats:
    """Return the part of a row that its frame shows; beyond its border, border pixels repeat."""
    from PIL import Image as PillowImage  # only here: every worker waits for what it imports

    edges, margins, size = [], [], []
    for shown, offset, scale in zip(
        part,
        (grid.row_offset, grid.column_offset),
        (grid.row_scale, grid.column_scale),
        strict=True,
    ):
        margin = math.ceil(_MARGIN * max(scale, 1)) + 1
        # Pillow counts from the corner of the first pixel, half a pixel before its centre.
        edges.append(
            [offset + scale * (end - 0.5) + 0.5 + margin for end in (shown.start, shown.stop)]
        )
        margins.append((margin, margin))
        size.append(shown.stop - shown.start)
    (top, bottom), (left, right) = edges
    wide = np.pad(image.astype(np.float32), margins, mode="edge")
    resized = PillowImage.fromarray(wide).resize(
        (size[1], size[0]), PillowImage.Resampling.BILINEAR, (left, top, right, bottom)
    )
    return np.asarray(resized)
