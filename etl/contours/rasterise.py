"""Polygons → runs of pixels → masks; pure NumPy, and Pillow for the rule that is Pillow's own.

A run is the stretch of pixels between two borders of a polygon, row by row.
"""

from collections.abc import Container, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from etl.labels import LabelScheme
from etl.model import BitMask, LabelMap, Mask, Region, Vertices
from etl.options import Rasterizer
from loader.format import IGNORE

_BLOCK: Final = 1 << 20  # crossings held at a time: a million long edges stay within memory

# Where runs begin and end by turns, in order: first pixel inside, first one outside again, ...
_Borders: TypeAlias = npt.NDArray[np.int64]


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
    return rasterise_region([vertices], rows, columns, rule)


def rasterise_region(
    polygons: Sequence[Vertices], rows: int, columns: int, rule: Rasterizer = "center"
) -> Mask:
    """Return the pixels of a region, its polygons even-odd together; see `rasterise`."""
    mask = np.zeros((rows, columns), np.bool_)
    _fill(mask, _borders([polygons], rows, columns, rule)[0], 1)
    return mask


class Shared(NamedTuple):
    """The pixels inside two structures or more of which neither lies in the other."""

    n_pixels: int  # each once, however many structures have it
    of_two: Mapping[
        tuple[int, int], int
    ]  # codes of two structures, in paint order → pixels in both


_NONE_SHARED: Final = Shared(0, {})


class Painted(NamedTuple):
    """The mask of one sample, and the pixels of its regions, by code."""

    mask: LabelMap | BitMask
    n_inside: dict[int, int]  # pixels inside the region, covered by another one or not
    n_outside: dict[int, int]  # those of them outside the structure that it lies in, where drawn
    shared: Shared


def label_maps(
    samples: Sequence[Sequence[Region]],
    scheme: LabelScheme,
    rows: int,
    columns: int,
    rule: Rasterizer,
    drawn: Sequence[Container[int]] | None = None,
) -> Iterator[Painted]:
    """Yield the label map of each sample: its regions in the scheme's paint order.

    Parameters
    ----------
    samples : sequence of sequence of Region
        The regions of each sample. Rasterising them together costs a quarter of one by one.
    drawn : sequence of container of int, optional
        Codes of the structures that each sample tells of. The pixels that may belong to another
        one are 255. None: what no region covers is background.
    """
    for place, borders in enumerate(_borders_of(samples, rows, columns, rule)):
        labels = np.zeros((rows, columns), np.uint8)
        n_inside = {
            code: _fill(labels, borders[code], code)
            for code in sorted(borders, key=scheme.places.__getitem__)
        }
        n_outside = _n_outside(scheme, borders, n_inside, labels) if len(borders) > 1 else {}
        if drawn is not None:
            _ignore(labels, drawn[place], scheme)
        yield Painted(labels, n_inside, n_outside, _shared(scheme, borders))


def bit_masks(
    samples: Sequence[Sequence[Region]],
    scheme: LabelScheme,
    rows: int,
    columns: int,
    rule: Rasterizer,
    dtype: str,
) -> Iterator[Painted]:
    """Yield the bit mask of each sample: each region whole, in the bit of its structure.

    Parameters
    ----------
    samples : sequence of sequence of Region
        The regions of each sample.
    dtype : str
        Of the masks, with a bit for each structure.
    """
    for borders in _borders_of(samples, rows, columns, rule):
        mask = np.zeros((rows, columns), dtype)
        n_inside = {code: _add(mask, ends, scheme.bits[code]) for code, ends in borders.items()}
        n_outside = _n_outside(scheme, borders, n_inside, mask) if len(borders) > 1 else {}
        yield Painted(mask, n_inside, n_outside, _shared(scheme, borders))


def _borders_of(
    samples: Sequence[Sequence[Region]], rows: int, columns: int, rule: Rasterizer
) -> Iterator[dict[int, _Borders]]:
    """Yield the borders of each sample's regions, by code."""
    outlines = [r.polygons for regions in samples for r in regions if r.mask is None]
    found = iter(_borders(outlines, rows, columns, rule))
    for regions in samples:
        yield {
            region.code: next(found) if region.mask is None else _runs(region.mask)
            for region in regions
        }


def _ignore(labels: LabelMap, drawn: Container[int], scheme: LabelScheme) -> None:
    """Set pixels to 255 where a structure that was not drawn may be.

    It may be inside of the nearest drawn structure that it lies in, on the pixels that would show
    that one; where no such structure was drawn, on all pixels that no region covers.
    """
    by_name = {structure.name: structure for structure in scheme}
    doubtful: set[int] = set()
    for missing in scheme:
        around = missing
        while around.code not in drawn and around.inside_of:
            around = by_name[around.inside_of]
        if missing.code not in drawn:
            doubtful.add(around.code if around.code in drawn else 0)
    if doubtful:
        labels[np.isin(labels, list(doubtful))] = IGNORE


def _fill(target: Mask | LabelMap, borders: _Borders, code: int) -> int:
    """Set the runs between borders; return the number of their pixels."""
    pixels = target.reshape(-1)
    n_pixels = 0
    ends = iter(borders.tolist())
    for start, stop in zip(ends, ends, strict=True):
        pixels[start:stop] = code
        n_pixels += stop - start
    return n_pixels


def _add(mask: BitMask, borders: _Borders, bit: int) -> int:
    """Set a bit on the runs between borders; return the number of their pixels."""
    pixels, word = mask.reshape(-1), mask.dtype.type(1 << bit)
    n_pixels = 0
    ends = iter(borders.tolist())
    for start, stop in zip(ends, ends, strict=True):
        pixels[start:stop] |= word
        n_pixels += stop - start
    return n_pixels


def _n_outside(
    scheme: LabelScheme,
    borders: dict[int, _Borders],
    n_inside: dict[int, int],
    mask: LabelMap | BitMask,
) -> dict[int, int]:
    """Return how many pixels of each region are outside of the structure that it belongs in."""
    pairs = [(inner.code, outer.code) for inner, outer in scheme.nested]
    pairs = [pair for pair in pairs if borders.keys() >= set(pair)]
    if len(borders) == len(pairs) + 1 == 2:  # noqa: PLR2004  one in the other, and no third
        ((inner, outer),) = pairs
        return {inner: int(np.count_nonzero(mask)) - n_inside[outer]}
    return {
        inner: n_inside[inner] - _n_common(borders[inner], borders[outer]) for inner, outer in pairs
    }


def _shared(scheme: LabelScheme, borders: Mapping[int, _Borders]) -> Shared:
    """Return the pixels that structures share, from the borders of their runs and no pixel."""
    if len(borders) == 1:
        return _NONE_SHARED
    codes = sorted(borders, key=scheme.places.__getitem__)
    pairs = [pair for pair in combinations(codes, 2) if pair not in scheme.kin]
    if not pairs:
        return _NONE_SHARED
    ends = np.concatenate(list(borders.values()))
    order = np.argsort(ends, kind="stable")
    ends, steps = ends[order], np.where(order % 2, -1, 1)  # each region begins and ends by turns
    is_crowded = steps.cumsum()[:-1] > 1
    starts, lengths = ends[:-1][is_crowded], np.diff(ends)[is_crowded]
    if not lengths.any():
        return _NONE_SHARED
    is_in = {code: borders[code].searchsorted(starts, "right") % 2 == 1 for code in codes}
    is_shared = np.zeros(len(starts), np.bool_)
    of_two: dict[tuple[int, int], int] = {}
    for one, other in pairs:
        is_in_both = is_in[one] & is_in[other]
        if n_pixels := int(lengths[is_in_both].sum()):
            of_two[one, other] = n_pixels
            is_shared |= is_in_both
    return Shared(int(lengths[is_shared].sum()), of_two)


def _n_common(one: _Borders, other: _Borders) -> int:
    """Return how many pixels lie inside both of two regions."""
    if len(one) == 0 or len(other) == 0:
        return 0
    # Pixels of `other` before each of its borders; between two borders the number rises by 1 or 0.
    lengths = other[1::2] - other[::2]
    before = np.repeat(lengths.cumsum(), 2)
    before[::2] -= lengths
    ends = np.interp(one, other, before)
    return round(float(ends[1::2].sum() - ends[::2].sum()))


def _runs(mask: Mask | npt.NDArray[np.uint8]) -> _Borders:
    # Not np.diff with ends added: it makes whole numbers of 64 bits of them all.
    pixels = np.zeros(mask.size + 2, mask.dtype)
    pixels[1:-1] = mask.ravel()
    return np.flatnonzero(pixels[1:] != pixels[:-1])


def _borders(
    regions: Sequence[Sequence[Vertices]], rows: int, columns: int, rule: Rasterizer
) -> list[_Borders]:
    """Return the borders of each region, its polygons even-odd together."""
    if rule == "pillow":
        return [
            np.sort(np.concatenate([_pillow(vertices, rows, columns) for vertices in polygons]))
            for polygons in regions
        ]
    return _even_odd(regions, rows, columns) if regions else []


def _even_odd(regions: Sequence[Sequence[Vertices]], rows: int, columns: int) -> list[_Borders]:
    """Return where the rows of pixel centres cross the edges of each region.

    An edge crosses row r where one end has y <= r and the other y > r; pixels from the crossing on
    to the right change sides. Both rules are half-open, so that polygons which share an edge share
    no pixel and leave none out. A row is crossed an even number of times, so that a run which
    reaches its end stops there, at the first pixel of the next one.
    """
    polygons = [vertices for region in regions for vertices in region]
    lengths = np.array([len(vertices) for vertices in polygons])
    x, y = np.concatenate(polygons).T
    ends = np.cumsum(lengths)
    following = np.arange(1, len(x) + 1)
    following[ends - 1] = ends - lengths
    first_below = np.ceil(y).clip(0, rows).astype(np.int64)  # the first row at y or below
    # Most edges between vertices drawn close to each other cross no row.
    start = np.flatnonzero(first_below != first_below[following])
    end = following[start]
    # From the upper end down, so that an edge is cut alike whichever way it is drawn.
    is_up = first_below[end] < first_below[start]
    upper, lower = np.where(is_up, end, start), np.where(is_up, start, end)
    first, last = first_below[upper], first_below[lower]
    # Rounding must not carry a crossing beyond the outermost vertices.
    left, right = (
        np.repeat(np.ceil(outermost).clip(0, columns), lengths)[start]
        for outermost in (f.reduceat(x, ends - lengths) for f in (np.minimum, np.maximum))
    )
    # All regions' borders in one order: each has its own stretch of numbers.
    stretch = rows * columns + 1
    n_vertices = [sum(map(len, region)) for region in regions]
    base = np.repeat(np.arange(len(regions)) * stretch, n_vertices)[start]
    blocks = _blocks(last - first)
    borders = np.empty(0, np.int64)
    for edges in blocks:
        count = (last - first)[edges]
        edge = np.repeat(np.arange(edges.start, edges.stop), count)
        row = np.arange(len(edge)) + np.repeat(first[edges] - np.cumsum(count) + count, count)
        at, to = upper[edge], lower[edge]
        crossing = x[at] + (row - y[at]) * (x[to] - x[at]) / (y[to] - y[at])
        column = np.ceil(crossing).clip(left[edge], right[edge]).astype(np.int64)
        found = base[edge] + row * columns + column
        found.sort()
        borders = found if len(blocks) == 1 else _joined(borders, found)
    splits = np.searchsorted(borders, np.arange(1, len(regions)) * stretch)
    return [
        part - number * stretch for number, part in enumerate(np.split(borders, splits.tolist()))
    ]


def _joined(borders: _Borders, found: _Borders) -> _Borders:
    """Return the borders of two sets together: a border that stands twice is none."""
    values, counts = np.unique(found, return_counts=True)
    return np.setxor1d(borders, values[counts % 2 == 1], assume_unique=True)


def _blocks(n_crossed: npt.NDArray[np.int64]) -> list[slice]:
    """Return slices of the edges, each with some `_BLOCK` crossings."""
    total = np.cumsum(n_crossed)
    if len(total) == 0 or total[-1] < _BLOCK:
        return [slice(0, len(n_crossed))]
    n_blocks = int(total[-1]) // _BLOCK + 1
    borders = np.searchsorted(total, np.arange(1, n_blocks) * _BLOCK) + 1
    stops = [*borders.tolist(), len(n_crossed)]
    return [slice(start, stop) for start, stop in zip([0, *stops[:-1]], stops, strict=True)]


def _pillow(vertices: Vertices, rows: int, columns: int) -> _Borders:
    from PIL import Image as PillowImage  # only here: every worker waits for what it imports
    from PIL import ImageDraw

    image = PillowImage.new("L", (columns, rows), 0)
    points = list(map(tuple, vertices.tolist()))
    ImageDraw.Draw(image).polygon(points, outline=0, fill=1)
    return _runs(np.frombuffer(image.tobytes(), np.uint8))
