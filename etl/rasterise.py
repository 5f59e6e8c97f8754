"""Polygon → mask → label map; pure NumPy, and Pillow for the rule that is Pillow's own."""

import math
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage
from PIL import ImageDraw

from etl.model import Contour, Kind, LabelMap, Mask, Rasterizer, Vertices

_BLOCK: Final = 1 << 20  # crossings held at a time: a million long edges stay within memory


def rasterise(vertices: Vertices, rows: int, columns: int, rule: Rasterizer = "center") -> Mask:
    """Return the pixels of a closed polygon.

    Parameters
    ----------
    vertices : float64 array, shape (n_vertices, 2)
        (x, y) in pixels, x along Columns, y along Rows; integers are pixel centres.
    rows, columns : int
        Attributes Rows (0028,0010) and Columns (0028,0011).
    rule : {"center", "pillow"}
        "center": pixels whose centre lies inside, by the even-odd rule; a centre exactly on an edge
        counts for the left or top side only. "pillow": what Pillow's ``ImageDraw.polygon`` fills
        with ``outline=0``, bit for bit.

    Returns
    -------
    bool array, shape (rows, columns)

    References
    ----------
    DICOM PS3.3 C.7.6.2.1.1 (the position of a pixel is its centre).
    """
    if rule == "pillow":
        return _pillow(vertices, rows, columns)
    return _even_odd(vertices, rows, columns)


def label_map(
    contours: tuple[Contour, ...],
    kinds: tuple[Kind, ...],
    rows: int,
    columns: int,
    rule: Rasterizer,
) -> tuple[LabelMap, dict[Kind, int]]:
    """Return the label map of one sample, and how many pixels lie inside each of its contours.

    One kind: 1 inside its contour. Two kinds: 2 inside the outer contour, then 1 inside the inner
    one, which wins where they overlap.
    """
    labels = np.zeros((rows, columns), np.uint8)
    n_inside: dict[Kind, int] = {}
    for contour in sorted(contours, key=lambda contour: contour.kind, reverse=True):
        mask = rasterise(contour.vertices, rows, columns, rule)
        n_inside[contour.kind] = int(np.count_nonzero(mask))
        code = 1 if len(kinds) == 1 else 1 + kinds.index(contour.kind)
        np.copyto(labels, np.uint8(code), where=mask)
    return labels, n_inside


def _even_odd(vertices: Vertices, rows: int, columns: int) -> Mask:
    """Fill between the crossings of each row of pixel centres with the polygon's edges.

    An edge crosses row r where one end has y <= r and the other y > r; pixels from the crossing on
    to the right change sides. Both rules are half-open, so that polygons which share an edge share
    no pixel and leave none out.
    """
    x0, y0 = vertices.T
    x1, y1 = np.concatenate((vertices[1:], vertices[:1])).T
    # From the upper end down, so that an edge is cut alike whichever way it is drawn.
    is_up = y1 < y0
    x0, x1 = np.where(is_up, x1, x0), np.where(is_up, x0, x1)
    y0, y1 = np.minimum(y0, y1), np.maximum(y0, y1)
    first, last = np.ceil((y0, y1)).clip(0, rows).astype(np.int64)
    n_crossed = last - first
    # All that changes lies between the outermost vertices; one column more takes what is cut off.
    top, bottom = int(first.min()), int(last.max())
    left, right = _outermost(vertices[:, 0], columns)
    width = right - left + 1
    toggles = np.zeros((bottom - top) * width, np.int64)
    for edges in _blocks(n_crossed):
        count = n_crossed[edges]
        edge = np.repeat(np.arange(edges.start, edges.stop), count)
        row = np.arange(len(edge)) + (first[edges] - np.cumsum(count) + count)[edge - edges.start]
        x = x0[edge] + (row - y0[edge]) * (x1[edge] - x0[edge]) / (y1[edge] - y0[edge])
        column = np.ceil(x).clip(left, right).astype(np.int64)
        toggles += np.bincount((row - top) * width + column - left, minlength=len(toggles))
    parity = np.cumsum(toggles.reshape(-1, width)[:, :-1], axis=1) & 1
    mask = np.zeros((rows, columns), np.bool_)
    mask[top:bottom, left:right] = parity
    return mask


def _outermost(x: npt.NDArray[np.float64], columns: int) -> tuple[int, int]:
    """Return the columns that a polygon spans, as far as the image has them: [left, right)."""
    left, right = (min(max(math.ceil(end), 0), columns) for end in (x.min(), x.max()))
    return left, right


def _blocks(n_crossed: npt.NDArray[np.int64]) -> list[slice]:
    """Return slices of the edges, each with some `_BLOCK` crossings."""
    total = np.cumsum(n_crossed)
    if total[-1] < _BLOCK:
        return [slice(0, len(n_crossed))]
    n_blocks = int(total[-1]) // _BLOCK + 1
    borders = np.searchsorted(total, np.arange(1, n_blocks) * _BLOCK) + 1
    stops = [*borders.tolist(), len(n_crossed)]
    return [slice(start, stop) for start, stop in zip([0, *stops[:-1]], stops, strict=True)]


def _pillow(vertices: Vertices, rows: int, columns: int) -> Mask:
    image = PillowImage.new("L", (columns, rows), 0)
    points = list(map(tuple, vertices.tolist()))
    ImageDraw.Draw(image).polygon(points, outline=0, fill=1)
    return np.asarray(image, dtype=np.bool_)
