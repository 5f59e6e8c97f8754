"""Contours that do not fit between their neighbours in the stack of slices and in the heart beat.

A row has up to two lines of neighbours: the same phase in the slices below and above, and the same
slice shortly before and after. Along a line, a value is rough where it leaves the straight line
through its neighbours. The row whose removal smooths its line the most is the one that jumps: its
neighbours look rough only because of it. It is taken out, and the rest is looked at again.
"""

import math
from collections.abc import Iterator
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from etl.quality.statistics import median_of

_Floats: TypeAlias = npt.NDArray[np.float64]
_Integers: TypeAlias = npt.NDArray[np.int64]
_Flags: TypeAlias = npt.NDArray[np.bool_]

# Between two neighbours, in radii (median of the patient's contours of the kind). Three real
# patients drawn by hand have at most 0.04 and 0.13.
AREA_JUMP: Final = 0.15  # of the radius of the circle of equal area: a third of the area
CENTROID_JUMP: Final = 0.25
# At the end of a stack there is no second neighbour, and the apex closes quickly: real ones have up
# to 0.15 and 0.36.
END_FACTOR: Final = 3.0
# Where a data set is drawn more roughly than that, what is usual there decides.
DEVIATIONS: Final = 7.0  # robust standard deviations of all rows
SAME_SLICE: Final = 0.1  # mm between positions: rounding
NEAR_SLICES: Final = 25.0  # mm: two or three slices of a usual stack; beyond, anatomy differs
# The times of a phase differ a little from slice to slice, as the heart rate does; end-diastole and
# end-systole lie a third of the beat apart.
SAME_PHASE: Final = 0.1  # of the longest trigger time in the stack, taken as the beat
SHORTEST_BEAT: Final = 500.0  # ms: where only end-diastole is drawn, all trigger times are short
_ROUNDS: Final = 8  # of taking jumps out and looking again: more in one line is no line
_ROBUST: Final = 1.4826  # times the median absolute deviation: a normal distribution's deviation


class Stack(NamedTuple):
    """The place of each row among the others of its patient."""

    group: _Integers  # the same for all rows of one patient and one orientation
    height: _Floats  # mm along the slices' normal; NaN where it is not known
    time: _Floats  # ms after the heart beat's start; NaN where it is not known


class Jump(NamedTuple):
    """One row that does not fit."""

    row: int
    code: str
    message: str


def find_jumps(stack: Stack, radius: _Floats, centroid: _Floats) -> Iterator[Jump]:
    """Yield the contours of one kind that do not fit between their neighbours.

    Parameters
    ----------
    stack : Stack
        Of every row.
    radius : float64 array, shape (n_rows,)
        Of the circle with the contour's area, pixels; NaN where a row has no such contour.
    centroid : float64 array, shape (n_rows, 2)
        In a plane that all slices of the stack share, pixels.
    """
    rows = np.flatnonzero(~np.isnan(radius) & ~np.isnan(stack.height))
    part = Stack(stack.group[rows], stack.height[rows], stack.time[rows])
    scale = _group_median(part.group, radius[rows])
    for place, fitting in _jumps(part, radius[rows, None], scale, AREA_JUMP):
        row, fit = int(rows[place]), float(fitting[0])
        message = (
            f"its area is {math.pi * radius[row] ** 2:.0f} square pixels, expected about "
            f"{math.pi * max(fit, 0.0) ** 2:.0f} between its neighbours (radius "
            f"{radius[row] - fit:+.1f} pixels). Look at its overlay."
        )
        yield Jump(row, "area-jump", message)
    for place, fitting in _jumps(part, centroid[rows], scale, CENTROID_JUMP):
        row = int(rows[place])
        dx, dy = (centroid[row] - fitting).tolist()
        message = (
            f"its centre lies ({dx:+.1f}, {dy:+.1f}) pixels (x, y) off the line through its "
            "neighbours'. Look at its overlay."
        )
        yield Jump(row, "centroid-jump", message)


def _jumps(
    stack: Stack, values: _Floats, scale: _Floats, limit: float
) -> Iterator[tuple[int, _Floats]]:
    """Yield (row, fitting value) of the rows that are off by more than `limit` of `scale`."""
    time, tolerance = _phases(stack)
    kept = np.arange(len(values))
    for _ in range(_ROUNDS):
        left = Stack(stack.group[kept], stack.height[kept], time[kept])
        slices = _rough(_next_slices(left, tolerance[kept]), left.height, values[kept])
        phases = _rough(_next_phases(left, tolerance[kept]), left.time, values[kept])
        size = np.fmin(slices.size, phases.size) / scale[kept]
        known = size[~np.isnan(size)]
        if len(known) == 0:
            return
        usual = _ROBUST * median_of(np.abs(known))
        is_off = np.nan_to_num(size) > max(limit, DEVIATIONS * usual)
        is_jump = is_off & slices.is_peak & phases.is_peak
        if not is_jump.any():
            return
        for place in np.flatnonzero(is_jump):
            line = phases if np.isnan(slices.size[place]) else slices
            yield int(kept[place]), line.fitting[place]
        kept = kept[~is_jump]


class _Roughness(NamedTuple):
    """How rows fit in their lines of neighbours."""

    size: _Floats  # how far each is off, at an end divided by END_FACTOR; NaN: too few neighbours
    fitting: _Floats  # the values that would fit
    is_peak: _Flags  # no neighbour's removal would smooth the line more


def _rough(neighbours: tuple[_Integers, _Integers], place: _Floats, values: _Floats) -> _Roughness:
    """Compare each row with the two rows on either side of it.

    Parameters
    ----------
    neighbours : two int64 arrays, shape (n_rows + 1,)
        The row before and the row after each in its line; `n_rows`, the last, means none.
    place : float64 array, shape (n_rows,)
        The position of each row along its line.
    values : float64 array, shape (n_rows, n)
    """
    b, d = neighbours
    a, e = b[b], d[d]
    c = np.arange(len(b))
    place = np.append(place, np.nan)
    values = np.vstack([values, np.full(values.shape[1], np.nan)])

    def share(low: _Integers, middle: _Integers, high: _Integers) -> _Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            part: _Floats = (place[middle] - place[low]) / (place[high] - place[low])
        return part

    def line(low: _Integers, middle: _Integers, high: _Integers) -> _Floats:
        """Return the value at `middle` of the straight line through `low` and `high`."""
        rise = values[high] - values[low]
        through: _Floats = values[low] + share(low, middle, high)[:, None] * rise
        return through

    def bend(low: _Integers, middle: _Integers, high: _Integers) -> _Floats:
        """Return how far `middle` is off the line through its neighbours; NaN without both."""
        off: _Floats = np.hypot.reduce(values[middle] - line(low, middle, high), axis=1)
        return off

    below, here, above = bend(a, b, c), bend(b, c, d), bend(c, d, e)
    gain = _sum(below, here, above) - _sum(bend(a, b, d), bend(b, d, e))
    # A row that is off by 1 bends its line by this much: the one by which size is measured.
    unit = _sum(
        np.where(np.isnan(below), np.nan, share(a, b, c)),
        np.where(np.isnan(here), np.nan, 1.0),
        np.where(np.isnan(above), np.nan, 1 - share(c, d, e)),
    )
    is_inside = ~np.isnan(here) & ~(np.isnan(below) & np.isnan(above))
    is_first = np.isnan(here) & ~np.isnan(bend(d, e, d[e]))
    is_last = np.isnan(here) & ~np.isnan(bend(b[a], a, b)) & ~is_first
    with np.errstate(divide="ignore", invalid="ignore"):
        size = gain / unit
    size[is_first | is_last] /= END_FACTOR
    size[~(is_inside | is_first | is_last)] = np.nan
    fitting = np.where(is_first[:, None], line(d, c, e), line(b, c, d))
    fitting = np.where(is_last[:, None], line(a, c, b), fitting)
    gain[-1] = -np.inf
    highest = np.max([gain[other] for other in (a, b, d, e)], axis=0)
    is_peak = np.isnan(size) | (gain >= highest)
    return _Roughness(size[:-1], fitting[:-1], is_peak[:-1])


def _sum(*parts: _Floats) -> _Floats:
    """Add up, taking NaN as 0."""
    total: _Floats = np.nan_to_num(np.stack(parts)).sum(axis=0)
    return total


def _phases(stack: Stack) -> tuple[_Floats, _Floats]:
    """Return a time from 0 to 1 for each row, and by how much it may differ within a phase.

    Where a stack lacks a trigger time, a phase is the rank in its slice, and matches only slices
    with as many contours; it has no neighbours in time.
    """
    n_groups = int(stack.group.max(initial=-1)) + 1
    longest = np.full(n_groups, SHORTEST_BEAT)
    np.maximum.at(longest, stack.group, np.nan_to_num(stack.time))
    is_lacking = np.zeros(n_groups, np.bool_)
    is_lacking[stack.group[np.isnan(stack.time)]] = True
    slice_of = _slices(stack)
    order = np.argsort(slice_of, kind="stable")
    count = np.bincount(slice_of, minlength=1)
    rank = np.empty(len(order))
    rank[order] = np.arange(len(order)) - (np.cumsum(count) - count)[slice_of[order]]
    own = count[slice_of]
    ranked = (own + rank / np.maximum(own, 1)) / (count.max() + 1)
    timed = np.clip(stack.time / longest[stack.group], 0, 1)
    lacking = is_lacking[stack.group]
    return np.where(lacking, ranked, timed), np.where(lacking, 1e-9, SAME_PHASE)


def _slices(stack: Stack) -> _Integers:
    """Return consecutive numbers of the slices, along each stack."""
    order = np.lexsort((stack.height, stack.group))
    group, height = stack.group[order], stack.height[order]
    is_new = (np.diff(group) != 0) | (np.diff(height) > SAME_SLICE)
    numbers = np.empty(len(order), np.int64)
    numbers[order] = np.cumsum(np.append(False, is_new)[: len(order)])
    return numbers


def _next_slices(stack: Stack, tolerance: _Floats) -> tuple[_Integers, _Integers]:
    """Return the row of the same phase in the slice below, and above; the last means none."""
    n_rows = len(stack.group)
    # Times lie between 0 and 1, so that slices are four apart and never meet.
    key = _slices(stack) * 4.0 + stack.time
    order = np.argsort(key, kind="stable")
    ordered = np.append(key[order], np.inf)
    rows = np.append(order, n_rows)
    found = []
    for step in (-4.0, 4.0):
        wanted = key + step
        right = np.searchsorted(ordered[:-1], wanted)
        left = np.maximum(right - 1, 0)
        is_left = np.abs(ordered[left] - wanted) <= np.abs(ordered[right] - wanted)
        nearest = np.where(is_left, left, right)
        other = np.minimum(rows[nearest], max(n_rows - 1, 0))
        is_good = (
            (np.abs(ordered[nearest] - wanted) <= tolerance)
            & (stack.group[other] == stack.group)
            & (np.abs(stack.height[other] - stack.height) <= NEAR_SLICES)
        )
        found.append(np.append(np.where(is_good, other, n_rows), n_rows))
    return found[0], found[1]


def _next_phases(stack: Stack, tolerance: _Floats) -> tuple[_Integers, _Integers]:
    """Return the row shortly before, and after, in the same slice; the last means none."""
    n_rows = len(stack.group)
    slice_of = _slices(stack)
    order = np.lexsort((stack.time, slice_of))
    near = (np.diff(slice_of[order]) == 0) & (np.diff(stack.time[order]) <= tolerance[order][1:])
    before, after = np.full((2, n_rows + 1), n_rows)
    before[order[1:][near]] = order[:-1][near]
    after[order[:-1][near]] = order[1:][near]
    return before, after


def _group_median(group: _Integers, values: _Floats) -> _Floats:
    """Return, for each row, the (upper) median of its group."""
    order = np.lexsort((values, group))
    count = np.bincount(group)
    middle = np.cumsum(count) - count + count // 2
    median: _Floats = values[order][np.minimum(middle, max(len(order) - 1, 0))]
    return median[group]
