"""Frames → the pixels that the file has of them, by the options of sizes.

Along each axis, the frame is resampled first, about its middle: then pixels at its ends are cut
off, or padding is added there.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from etl.contours.rasterise import rasterise_region
from etl.errors import ImageError
from etl.findings import Remark
from etl.geometry import SourceGrid
from etl.model import Instance, Mask, Region
from etl.options import BuildOptions
from etl.resampling.regions import region_on_grid

_HALF: Final = 0.5  # of a pixel
_MAX_PIXELS: Final = 65535  # along a side, as Rows and Columns have


def resampled_size(instance: Instance, options: BuildOptions) -> tuple[int, int]:
    """Return the rows and columns that a frame has after `resample`.

    Raises
    ------
    ImageError
        It has no usable spacing, or gets less than half a pixel or more than 65535 along a side.
    """
    pixels = instance.pixel_format
    lengths, scales = (pixels.rows, pixels.columns), _scales(instance, options)
    sides = [length / scale for length, scale in zip(lengths, scales, strict=True)]
    if options.resample is not None and not all(_HALF <= side <= _MAX_PIXELS for side in sides):
        wanted, spacing = (
            " x ".join(f"{step:g}" for step in steps)
            for steps in (options.resample, instance.pixel_spacing)
        )
        raise ImageError(
            "image-no-spacing",
            f"its PixelSpacing of {spacing} mm makes {sides[0]:.3g} x {sides[1]:.3g} pixels of it "
            f"at {wanted} mm, expected 1 to {_MAX_PIXELS} along each side. Check its PixelSpacing, "
            "or give another --resample.",
        )
    rows, columns = map(_n_resampled, lengths, scales)
    return rows, columns


def place(instance: Instance, regions: Sequence[Region], options: BuildOptions) -> SourceGrid:
    """Return where the pixels of a frame's row lie in the frame.

    Parameters
    ----------
    regions : sequence of Region
        What is drawn on the frame, in its pixels.
    """
    pixels = instance.pixel_format
    lengths, scales = (pixels.rows, pixels.columns), _scales(instance, options)
    middles: tuple[float | None, float | None] = None, None
    if options.fit_about == "structures" and regions:
        middles = _middle(regions, lengths)
    (row_offset, column_offset) = (
        _offset(length, scale, n_file, middle)
        for length, scale, n_file, middle in zip(
            lengths, scales, (options.rows, options.columns), middles, strict=True
        )
    )
    return SourceGrid(*lengths, row_offset, scales[0], column_offset, scales[1])


def check_cut(region: Region, grid: SourceGrid, options: BuildOptions) -> list[Remark]:
    """Warn where a part of a region is not in the part of its frame that is kept."""
    share = share_cut(region, grid, options)
    if not share:
        return []
    part = "all" if share == 1 else f"{share:.1%}"
    other = "" if options.fit_about == "structures" else ", or --fit-about structures"
    message = (
        f"{part} of it lies outside the {options.rows}x{options.columns} pixels that --fit keeps, "
        f"and is cut off. Give a larger --fit{other}."
    )
    return [Remark("structure-cut", message)]


def share_cut(region: Region, grid: SourceGrid, options: BuildOptions) -> float:
    """Return the share (0 to 1) of a region's pixels in its frame that the file does not show.

    It is 1 only where no pixel of the file is inside the region.
    """
    rows, columns = options.rows, options.columns
    ends = [
        (offset - scale / 2, offset + scale * (n_file - _HALF))
        for offset, scale, n_file in (
            (grid.row_offset, grid.row_scale, rows),
            (grid.column_offset, grid.column_scale, columns),
        )
    ]
    box = _box(region, (grid.rows, grid.columns))
    if all(
        low <= start and stop <= high for (low, high), (start, stop) in zip(ends, box, strict=True)
    ):
        return 0.0
    mask = region.mask
    if mask is None:  # in the frame: what lies outside of it is no loss of ours
        mask = rasterise_region(region.polygons, grid.rows, grid.columns)
    (top, bottom), (left, right) = ([max(0, math.ceil(end)) for end in pair] for pair in ends)
    n_pixels, n_shown = np.count_nonzero(mask), np.count_nonzero(mask[top:bottom, left:right])
    if not n_pixels:
        return 0.0
    if not n_shown:  # smaller pixels may lie between those of the frame and the edge
        area = grid.row_scale * grid.column_scale
        return max(0.0, 1 - np.count_nonzero(_painted(region, grid, options)) * area / n_pixels)
    return float(1 - n_shown / n_pixels)


def _painted(region: Region, grid: SourceGrid, options: BuildOptions) -> Mask:
    """Return the pixels of the file that are inside a region."""
    shown = region_on_grid(region, grid, options)
    if shown.mask is not None:
        return shown.mask
    return rasterise_region(shown.polygons, options.rows, options.columns, options.rasterizer)


def file_plane(
    instance: Instance, grid: SourceGrid, options: BuildOptions
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return position and spacing of a row's pixels, as `Instance` has those of the frame's."""
    (x, y, z), (between_rows, between_columns) = instance.image_position, instance.pixel_spacing
    along_row, along_column = instance.image_orientation[:3], instance.image_orientation[3:]
    right = grid.column_offset * between_columns if grid.column_offset else 0.0
    down = grid.row_offset * between_rows if grid.row_offset else 0.0
    position = instance.image_position
    if right or down:
        position = tuple(
            start + right * one + down * other
            for start, one, other in zip((x, y, z), along_row, along_column, strict=True)
        )
    return position, options.resample or instance.pixel_spacing


def _scales(instance: Instance, options: BuildOptions) -> tuple[float, float]:
    """Return the pixels of the frame that one of the file is long, along both axes."""
    if options.resample is None:
        return 1.0, 1.0
    row, column = instance.pixel_spacing
    if not (0 < row < math.inf and 0 < column < math.inf):
        raise ImageError(
            "image-no-spacing",
            "has no usable PixelSpacing, which --resample needs. Export it again with its "
            "PixelSpacing, or build without --resample.",
        )
    return options.resample[0] / row, options.resample[1] / column


def _n_resampled(length: int, scale: float) -> int:
    return math.floor(length / scale + _HALF)


def _offset(length: int, scale: float, n_file: int, middle: float | None) -> float:
    """Return where the first pixel of the file lies along one axis of the frame.

    Parameters
    ----------
    middle : float, optional
        Of what is to be in the middle of the file's pixels, as far as the frame reaches.
    """
    n_resampled = _n_resampled(length, scale)
    first = (length - 1) / 2 - scale * (n_resampled - 1) / 2
    surplus = n_resampled - n_file
    start = int(surplus / 2)  # an odd pixel is cut off, or added, at the end
    if middle is not None and surplus > 0:
        wished = math.floor((middle - first) / scale - (n_file - 1) / 2 + _HALF)
        start = min(max(wished, 0), surplus)
    return first + scale * start


def _middle(regions: Sequence[Region], lengths: tuple[int, int]) -> tuple[float, float]:
    """Return the middle of the smallest box around regions: row and column of the frame."""
    boxes = np.array([_box(region, lengths) for region in regions])
    low, high = boxes[:, :, 0].min(axis=0), boxes[:, :, 1].max(axis=0)
    row, column = ((low + high) / 2).tolist()
    return row, column


def _box(region: Region, lengths: tuple[int, int]) -> list[tuple[float, float]]:
    """Return from where to where a region reaches in its frame, along rows and columns."""
    box = []
    for axis, length in enumerate(lengths):
        if region.mask is not None:
            places = np.flatnonzero(region.mask.any(axis=1 - axis))
            low, high = (places[0] - _HALF, places[-1] + _HALF) if len(places) else (0.0, 0.0)
        else:
            values = np.concatenate([vertices[:, 1 - axis] for vertices in region.polygons])
            low, high = values.min(), values.max()
        ends = (min(max(float(end), -_HALF), length - _HALF) for end in (low, high))
        box.append((next(ends), next(ends)))
    return box
