"""Checks of what was drawn on one sample, each → a remark with its numbers.

They look at a region while a worker has it in memory, and keep of it what the checks of all rows
need.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import xxhash

from etl.contours.polygon import area, nested_areas
from etl.contours.rasterise import rasterise
from etl.findings import Remark, counted
from etl.model import Mask, Region, Vertices
from loader.format import Structure

_Floats: TypeAlias = npt.NDArray[np.float64]
_Integers: TypeAlias = npt.NDArray[np.int64]
_Flags: TypeAlias = npt.NDArray[np.bool_]

# ---------------------------------------------------------------------------------- the thresholds

# Vertices are compared on this grid: the customary contour files have two decimals.
GRID: Final = 100  # steps to a pixel
# A drawing closes itself within its usual spacing; this much more is a piece that is missing.
GAP_RATIO: Final = 3.0  # times the longest distance between any other two neighbours
MIN_GAP: Final = 3.0  # pixels: a straight line across less follows any real border
# Smaller loops are a trembling hand, and turn at most a pixel or two inside out.
MIN_LOOP: Final = 1.0  # square pixels wound round twice or backwards
# A double click or a touching pair of points is harmless; this share is a part drawn twice.
REPEATED_SHARE: Final = 0.05
MIN_REPEATED: Final = 3  # points: one double click in a contour of few points is no matter
# Two borders that touch share edge pixels: the drawings meet, the pixels' staircases do not.
OUTSIDE_SHARE: Final = 0.01
MIN_OUTSIDE: Final = 4  # pixels: of a small contour a single one is more than the share above
# Borders of neighbours drawn apart cross by about a pixel; this much is a part drawn for both.
SHARED_SHARE: Final = 0.05  # of the smaller structure's pixels
MIN_SHARED: Final = 4  # pixels
_MAX_PAIRS: Final = 3  # of structures that a message names
_MAX_COMPARED: Final = 1000  # pairs of polygons of one region
_OFF_GRID: Final = 0.31
_MAX_CELLS: Final = 1 << 20  # where two polygons are compared: larger ones more coarsely

_LINES: Final = 4  # scan lines to a pixel where a contour's loops are measured
_MAX_CROSSINGS: Final = 1 << 18  # of lines with edges: a contour of huge edges gets fewer lines
_LINE_OFFSET: Final = 0.0317  # pixels: off the grid, so that no vertex lies on a scan line

# ------------------------------------------------------------------------------------ of one region


class Shape(NamedTuple):
    """What is kept of one region until all rows are known."""

    digest: int  # of its distinct vertices: whatever their format, first point or direction
    x: float  # centre of mass, pixels
    y: float
    is_mask: bool = False


def check_region(region: Region) -> tuple[Shape, list[Remark]]:
    """Return what to keep of a region, and what is suspicious; as `check_regions` does."""
    return check_regions([region])[0]


def check_regions(regions: Sequence[Region]) -> list[tuple[Shape, list[Remark]]]:
    """Return what to keep of each region, and what is suspicious about its drawing.

    Of several polygons the remarks say which one they are about. A mask draws no line.

    Parameters
    ----------
    regions : sequence of Region
        Their polygons have three distinct vertices or more. Together they take a quarter of the
        time that they take one by one.
    """
    polygons = [
        vertices for region in regions if region.mask is None for vertices in region.polygons
    ]
    checked = iter(_check_polygons(polygons))
    return [
        (_mask_shape(region.mask), [])
        if region.mask is not None
        else _of_region(region, list(islice(checked, len(region.polygons))))
        for region in regions
    ]


def _of_region(
    region: Region, checked: list[tuple[Shape, list[Remark]]]
) -> tuple[Shape, list[Remark]]:
    """Return the shape and the remarks of a region from those of its polygons."""
    if len(checked) == 1:
        return checked[0]
    remarks = [
        Remark(remark.code, f"its polygon {number} of {len(checked)}: {remark.message}")
        for number, (_, found) in enumerate(checked, 1)
        for remark in found
    ]
    shapes = [shape for shape, _ in checked]
    remarks += _between(region.polygons, [shape.digest for shape in shapes])
    return _joined(shapes, nested_areas(region.polygons)), remarks


def _joined(shapes: Sequence[Shape], areas: Sequence[float]) -> Shape:
    """Return the shape of a region from those of its polygons and their areas, holes negative."""
    digest = xxhash.xxh3_64_intdigest(np.sort([shape.digest for shape in shapes]).tobytes())
    total = sum(areas)
    weights = [area / total if total else 1 / len(areas) for area in areas]
    x = sum(weight * shape.x for weight, shape in zip(weights, shapes, strict=True))
    y = sum(weight * shape.y for weight, shape in zip(weights, shapes, strict=True))
    return Shape(digest, x, y)


def _between(polygons: Sequence[Vertices], digests: Sequence[int]) -> Iterator[Remark]:
    """Yield what is wrong with two polygons of one region, of which even-odd makes a hole.

    A part lies apart from another one, and a hole in it. Two that are equal enclose nothing, and of
    two that cross each other the piece that both have is cut out.
    """
    lows = np.stack([vertices.min(axis=0) for vertices in polygons])
    highs = np.stack([vertices.max(axis=0) for vertices in polygons])
    n_compared = 0
    for one, vertices in enumerate(polygons):
        meets = ((lows <= highs[one]) & (highs >= lows[one])).all(axis=1)
        for other in (np.flatnonzero(meets[one + 1 :]) + one + 1).tolist():
            n_compared += 1
            if n_compared > _MAX_COMPARED:
                return
            which = f"its polygons {one + 1} and {other + 1} of {len(polygons)}"
            if digests[one] == digests[other]:
                yield Remark(
                    "contour-repeated-points",
                    f"{which} have the same points: together they enclose nothing. Remove one.",
                )
            elif shared := _crossing(vertices, polygons[other]):
                yield Remark(
                    "contour-self-crossing",
                    f"{which} cross each other: {shared:.0f} square pixels are in both, and count "
                    "as outside. Draw them as one.",
                )


def _crossing(one: Vertices, other: Vertices) -> float:
    """Return the square pixels that are in both of two polygons which cross; 0: they do not."""
    small, large = sorted((one, other), key=area)
    low = np.floor(small.min(axis=0)) - 1
    extent = np.ceil(small.max(axis=0)) + 1 - low
    # Finer than pixels, and off their grid: a border on pixel centres would be in or out whole.
    scale = min(float(_LINES), math.sqrt(_MAX_CELLS / float(extent.prod())))
    columns, rows = np.ceil(extent * scale).astype(int).tolist()
    in_small, in_large = (
        rasterise((vertices - low) * scale + _OFF_GRID, rows, columns)
        for vertices in (small, large)
    )
    n_small, n_shared = np.count_nonzero(in_small), np.count_nonzero(in_small & in_large)
    least = max(MIN_SHARED * scale**2, SHARED_SHARE * n_small)
    crosses = n_shared > least and n_small - n_shared > least
    return n_shared / scale**2 if crosses else 0.0


def _mask_shape(mask: Mask) -> Shape:
    digest = xxhash.xxh3_64_intdigest(np.packbits(mask).data)
    n_of_column, n_of_row = (np.add.reduce(mask, axis=axis, dtype=np.int64) for axis in (0, 1))
    n_pixels = int(n_of_row.sum())
    if n_pixels == 0:
        return Shape(digest, np.nan, np.nan, is_mask=True)
    x, y = (int(n @ np.arange(len(n))) / n_pixels for n in (n_of_column, n_of_row))
    return Shape(digest, x, y, is_mask=True)


def _check_polygons(polygons: Sequence[Vertices]) -> list[tuple[Shape, list[Remark]]]:
    """Return what to keep of each polygon, and what is suspicious."""
    if not polygons:
        return []
    lengths = np.array([len(vertices) for vertices in polygons])
    stops = np.cumsum(lengths)
    starts = stops - lengths
    # Whole numbers in floating point: sums are exact, so that every machine finds the same.
    grid = np.rint(np.concatenate(polygons).T * GRID) + 0.0  # one zero: -0.0 has other bytes
    digests, n_distinct = _distinct(grid, starts, stops)
    middle = np.rint(np.add.reduceat(grid, starts, axis=1) / lengths)
    x, y = grid - np.repeat(middle, lengths, axis=1)
    follower = np.arange(1, len(x) + 1)
    follower[stops - 1] = starts
    x1, y1 = x[follower], y[follower]
    cross = x * y1 - x1 * y
    centres = (middle + _off_middle(cross, (x + x1, y + y1), starts)) / GRID
    distance = np.sqrt((x1 - x) ** 2 + (y1 - y) ** 2) / GRID
    gaps = distance[stops - 1]
    distance[stops - 1] = 0.0
    longest = np.maximum.reduceat(distance, starts)
    is_star = _are_stars(cross, y, y1, starts)
    checked: list[tuple[Shape, list[Remark]]] = []
    for vertices, digest, (cx, cy), gap, step, n, is_simple in zip(
        polygons,
        digests,
        centres.T.tolist(),
        gaps.tolist(),
        longest.tolist(),
        n_distinct.tolist(),
        is_star.tolist(),
        strict=True,
    ):
        remarks = [
            *_open_gap(gap, step),
            *_repeated_points(len(vertices), n, is_closed=gap == 0),
            *(() if is_simple else _self_crossing(vertices)),
        ]
        checked.append((Shape(digest, cx, cy), remarks))
    return checked


def _distinct(grid: _Floats, starts: _Integers, stops: _Integers) -> tuple[list[int], _Integers]:
    """Return a digest of the distinct points of each polygon, and how many those are."""
    packed = grid[0] * (1 << 24) + grid[1]
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        packed[start:stop].sort()
    is_first = np.append(True, packed[1:] != packed[:-1])
    is_first[starts] = True
    n_distinct = np.add.reduceat(is_first, starts, dtype=np.int64)
    ends = np.cumsum(n_distinct)
    points = packed[is_first].data
    digests = [
        xxhash.xxh3_64_intdigest(points[start:stop])
        for start, stop in zip((ends - n_distinct).tolist(), ends.tolist(), strict=True)
    ]
    return digests, n_distinct


def _off_middle(cross: _Floats, sums: tuple[_Floats, _Floats], starts: _Integers) -> _Floats:
    """Return (x, y) from the middle of each polygon to its centre of mass; 0 without an area."""
    tripled = 3 * np.add.reduceat(cross, starts)
    moments = np.stack([np.add.reduceat(cross * axis, starts) for axis in sums])
    off: _Floats = np.divide(moments, tripled, out=np.zeros_like(moments), where=tripled != 0)
    return off


def _are_stars(cross: _Floats, y: _Floats, y1: _Floats, starts: _Integers) -> _Flags:
    """Say which polygons run once around their middle, never turning back: they cannot cross."""
    lowest, highest = np.minimum.reduceat(cross, starts), np.maximum.reduceat(cross, starts)
    n_turns = np.add.reduceat((y < 0) != (y1 < 0), starts, dtype=np.int64)
    is_star: _Flags = (n_turns == 2) & ~((lowest < 0) & (highest > 0))  # noqa: PLR2004  up and down
    return is_star


def _open_gap(gap: float, longest: float) -> Iterator[Remark]:
    if gap >= MIN_GAP and gap >= GAP_RATIO * longest:
        yield Remark(
            "contour-open-gap",
            f"its first and last point are {gap:.1f} pixels apart, other neighbours at most "
            f"{longest:.1f}; a straight line closes it. Is a piece of it missing?",
        )


def _repeated_points(n_vertices: int, n_distinct: int, *, is_closed: bool) -> Iterator[Remark]:
    n_repeated = n_vertices - n_distinct - is_closed
    if n_repeated >= MIN_REPEATED and n_repeated > REPEATED_SHARE * n_vertices:
        yield Remark(
            "contour-repeated-points",
            f"{n_repeated} of its {n_vertices} points ({n_repeated / n_vertices:.0%}) repeat "
            "others. Is a part of it drawn twice?",
        )


def _self_crossing(vertices: Vertices) -> Iterator[Remark]:
    looped = _loops(vertices)
    if looped >= MIN_LOOP:
        yield Remark(
            "contour-self-crossing",
            f"crosses itself: its loops have {looped:.1f} square pixels, which it winds round "
            "twice or backwards. Draw it again.",
        )


def _loops(vertices: Vertices) -> float:
    """Return the area that a closed polygon winds round other than once in its own direction.

    Around a place where it crosses itself winding numbers differ by two; where it only touches
    itself all are 0 or that of its inside. They are counted along scan lines, edge by edge.
    """
    ends = np.concatenate((vertices[1:], vertices[:1]))
    height = float(np.abs(ends[:, 1] - vertices[:, 1]).sum())
    if height == 0:
        return 0.0
    lines = min(_LINES, _MAX_CROSSINGS / height)
    y0, y1 = ((side[:, 1] + _LINE_OFFSET) * lines for side in (vertices, ends))
    first = np.ceil(np.minimum(y0, y1)).astype(np.int64)
    count = np.ceil(np.maximum(y0, y1)).astype(np.int64) - first
    edge = np.repeat(np.arange(len(vertices)), count)
    line = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    share = (line - y0[edge]) / (y1[edge] - y0[edge])
    x = vertices[edge, 0] + share * (ends[edge, 0] - vertices[edge, 0])
    order = np.lexsort((x, line))
    # At the last edge of a line it is 0 again, so that no stretch leads from line to line.
    winding = np.cumsum(np.sign(y1 - y0)[edge][order])[:-1]
    stretches = np.diff(x[order])
    # Whichever its own direction is: of a figure of eight the smaller half counts.
    loops = (stretches[(winding != 0) & (winding != inside)].sum() for inside in (1, -1))
    return float(min(loops)) / lines


def check_overlap(outer: Structure, n_inner: int, n_outside: int) -> list[Remark]:
    """Warn where part of a region lies outside the structure that it belongs in.

    Parameters
    ----------
    outer : Structure
        The structure that the inner one lies in.
    n_inner, n_outside : int
        Pixels inside the inner region, and those of them that are not inside the outer one.
    """
    if n_outside < MIN_OUTSIDE or n_outside <= OUTSIDE_SHARE * n_inner:
        return []
    message = (
        f"{n_outside} of its {n_inner} pixels ({n_outside / n_inner:.1%}) lie outside the "
        f"{outer.name}, expected at most {OUTSIDE_SHARE:.0%}. Does one of the two belong elsewhere?"
    )
    return [Remark("inner-outside-outer", message)]


def check_shared(
    names: Mapping[int, str],
    n_inside: Mapping[int, int],
    n_shared: int,
    of_two: Mapping[tuple[int, int], int],
) -> list[Remark]:
    """Warn where structures overlap of which neither lies in the other.

    Parameters
    ----------
    names : mapping of int to str
        Code → name of the structure.
    n_inside : mapping of int to int
        Code → pixels inside its region.
    n_shared : int
        Pixels inside two structures or more.
    of_two : mapping of (int, int) to int
        Codes of two structures, the one painted first before the other → pixels inside both.
    """
    shares = [
        (n_pixels / min(n_inside[one], n_inside[other]), n_pixels, names[one], names[other])
        for (one, other), n_pixels in of_two.items()
        if n_pixels >= MIN_SHARED
    ]
    told = [found for found in shares if found[0] > SHARED_SHARE]
    told.sort(key=lambda found: -found[0])
    if not told:
        return []
    pairs = [
        f"{n_pixels} to {one!r} and {other!r} ({share:.1%} of the smaller)"
        for share, n_pixels, one, other in told[:_MAX_PAIRS]
    ]
    more = [f"and {counted(len(told) - _MAX_PAIRS, 'more pair')}"] * (len(told) > _MAX_PAIRS)
    message = (
        f"{counted(n_shared, 'pixel')} {'is' if n_shared == 1 else 'are'} inside of more than one "
        f"structure: {', '.join([*pairs, *more])}. The mask shows the one that was painted last; "
        "--masks bits keeps all. Is one of them drawn too large?"
    )
    return [Remark("structures-overlap", message)]
