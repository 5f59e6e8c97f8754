"""The images before and after each row: neighbouring slices or phases of the same series."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from loader.arguments import choice, whole
from loader.dataset import Dataset
from loader.errors import LoaderError
from loader.sampler import Indices, Table

Along: TypeAlias = Literal["slice", "phase", "number"]
Edges: TypeAlias = Literal["repeat", "mark"]
_Flags: TypeAlias = npt.NDArray[np.bool_]

NONE: Final = -1  # no row
_MOST: Final = 64  # on each side
_SAME_POSITION: Final = 0.1  # mm: rounding
_ROUNDING: Final = 0.05  # mm, in the step between positions that have two decimals
_ROUNDING_OF_TIMES: Final = 1e-6  # of a step
_SAME_DIRECTION: Final = 0.01  # of a direction cosine: half a degree
# The times of a phase differ a little from slice to slice, as the heart rate does.
_SAME_PHASE: Final = 0.1  # of the longest trigger time in the stack, taken as the beat
_SHORTEST_BEAT: Final = 500.0  # ms: where only end-diastole is drawn, all trigger times are short
LACKING: Final[dict[Along, str]] = {
    "slice": (
        "image position and orientation, or slice location; and where a position has several "
        "images, trigger times, temporal positions, or as many images at each position"
    ),
    "phase": (
        "trigger time, temporal position, or as many images at each position; and image position "
        "and orientation, or slice location"
    ),
    "number": "a number",
}


@dataclass(frozen=True)
class Neighbours:
    """The images before and after each sample as channels of it, given to `Batches`.

    Neighbours are rows of the same file, of the same patient and `series`, whether they take part
    or not. A sample has 2 n + 1 channels, its own image in the middle.

    Parameters
    ----------
    n : int
        Images on each side.
    along : "slice", "phase" or "number"
        In order of the position along the normal of the slices, of images of the same phase and
        orientation; in order of the phase, of images at the same position; or in order of the
        columns `slice` and `frame_number`, whatever these count. The phase is the trigger time;
        without it the column `temporal_position`; and without that, where each position of the
        series has as many images, the place among them, in order of these two columns.
    edges : "repeat" or "mark"
        Where a series ends, repeat the last image, or hand out a channel of zeros.
    within : float, optional
        The largest step from one image to the next, in mm, ms (phases, where no trigger time is
        known), or numbers of `slice`; a gap that is wider, by more than rounding (0.05 mm), is an
        edge. By default the next image of the file counts, however far it is.

    Raises
    ------
    TypeError, ValueError
        Another type, or a number out of range.
    """

    n: int = 1
    along: Along = "slice"
    edges: Edges = "repeat"
    within: float | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        object.__setattr__(self, "n", whole("neighbours", self.n, 1, _MOST + 1))
        object.__setattr__(self, "along", choice("along", self.along, get_args(Along)))
        object.__setattr__(self, "edges", choice("edges", self.edges, get_args(Edges)))
        if self.within is not None:
            if isinstance(self.within, bool) or not isinstance(self.within, int | float):
                raise TypeError(f"within: expected a number, found {self.within!r}.")
            if not self.within > 0:
                raise ValueError(f"within: expected a number above 0, found {self.within!r}.")

    def rows_of(self, dataset: Dataset) -> Indices:
        """Return the neighbours of each row of a file.

        Parameters
        ----------
        dataset : Dataset

        Returns
        -------
        int64 array, shape (n_rows, 2 n + 1)
            In the order of the channels, the row itself in the middle; -1 where there is none.
        """
        return self._lines(dataset).table

    def shown(self, dataset: Dataset) -> Indices:
        """Return the row that each channel of each row shows; -1 for a channel of zeros."""
        table = self.rows_of(dataset)
        if self.edges == "repeat":
            for step in range(1, self.n + 1):
                for side in (-1, 1):
                    missing = table[:, self.n + side * step] == NONE
                    nearer = table[:, self.n + side * (step - 1)]
                    table[missing, self.n + side * step] = nearer[missing]
        return table

    def n_without_place(self, dataset: Dataset, rows: Indices) -> int:
        """Return how many rows lack what decides their neighbours.

        Raises
        ------
        LoaderError
            None of the rows has a neighbour.
        """
        lines = self._lines(dataset)
        found = np.delete(lines.table[rows], self.n, axis=1)
        if (found == NONE).all():
            other = "slice" if self.along == "number" else "number"
            raise LoaderError(
                f"Batches not made: {dataset.path}: no row has a neighbour along {self.along} "
                f"(expected {LACKING[self.along]}; found rows of one image each, or without "
                f"these). Leave neighbours out, or use another along, such as along={other!r}."
            )
        return int(np.count_nonzero(~lines.is_placed[rows]))

    def _lines(self, dataset: Dataset) -> "_Lines":
        places = _places(dataset)
        of_series = places.series
        if self.along == "number":
            value = dataset.manifest["slice"].astype(np.float64)
            frame = _numbers(dataset, "frame_number")
            lines = _Lines.of(of_series, (value, frame), ~np.isnan(value), self.n)
        elif self.along == "phase":
            position = _clusters(places.stack, places.height, _SAME_POSITION)
            value = places.phase
            is_placed = ~np.isnan(places.height + value) & ~places.is_only
            lines = _Lines.of(position, (value,), is_placed, self.n)
        else:
            value, lines = places.height, _along_slices(places, self.n)
        if self.within is not None:
            # Positions of slices 8 mm apart differ by 8 mm only up to rounding, as those of phases.
            along_slices = self.along == "slice"
            rounding = _ROUNDING if along_slices else self.within * _ROUNDING_OF_TIMES
            _cut(lines.table, value, self.within + rounding)
        return lines


@dataclass(frozen=True, eq=False)
class _Places:
    """Where and when the image of each row was taken."""

    series: Indices  # equal for the rows of one patient and series
    stack: Indices  # and of one orientation, and whose phases are told in the same way
    height: Table  # mm along the normal, or the slice location; NaN where neither is known
    is_timed: _Flags  # whether the trigger time is known
    phase: Table  # this time, in ms; or the number of the phase; NaN where neither is known
    is_only: _Flags  # whether the phase has a number only because its position has one image


@dataclass(frozen=True, eq=False)
class _Lines:
    """The neighbours of each row, and which rows have a place among others."""

    table: Indices
    is_placed: _Flags

    @classmethod
    def of(cls, line: Indices, keys: Sequence[Table], is_placed: _Flags, n: int) -> "_Lines":
        """Return the neighbours of rows of one line each, in the order of some keys."""
        table = _only_centres(len(line), n)
        rows = np.flatnonzero(is_placed)
        order = rows[np.lexsort((*(key[rows] for key in reversed(keys)), line[rows]))]
        for step in range(1, n + 1):
            low, high = order[:-step], order[step:]
            same = line[low] == line[high]
            table[high[same], n - step] = low[same]
            table[low[same], n + step] = high[same]
        return cls(table, is_placed)


def check_neighbours(neighbours: int | Neighbours | None) -> Neighbours | None:
    """Return the neighbours that an argument asks for."""
    if neighbours is None or isinstance(neighbours, Neighbours):
        return neighbours
    if isinstance(neighbours, bool) or not isinstance(neighbours, int | np.integer):
        raise TypeError(
            f"neighbours: expected a number, loader.Neighbours or None, found {neighbours!r}."
        )
    return Neighbours(neighbours)


def _places(dataset: Dataset) -> _Places:
    manifest = dataset.manifest
    codes = [
        np.unique(manifest.stored[name], return_inverse=True)[1].reshape(-1).astype(np.int64)
        for name in ("patient_id", "series")
        if name in manifest.stored  # version 1 has no series
    ]
    series = codes[0] if len(codes) == 1 else codes[0] * (codes[1].max(initial=0) + 1) + codes[1]
    position, row, column = (
        np.stack([_numbers(dataset, f"image_{name}_{axis}") for axis in "xyz"], axis=1)
        for name in ("position", "orientation_row", "orientation_column")
    )
    is_known = ~np.isnan(np.concatenate([position, row, column], axis=1)).any(axis=1)
    stack = series * 2 + is_known
    for cosines in (*row.T, *column.T):
        stack = _clusters(stack, np.where(is_known, cosines, 0), _SAME_DIRECTION)
    # One normal for a stack, so that rounding of the cosines does not move its slices.
    first = np.unique(stack, return_index=True)[1][stack]
    height = np.einsum("ni,ni->n", position, np.cross(row, column)[first])
    height = np.where(is_known, height, _numbers(dataset, "slice_location"))
    time = _numbers(dataset, "trigger_time")
    is_timed = ~np.isnan(time)
    stack, phase, is_only = _numbered_phases(dataset, stack, height, is_timed)
    phase = np.where(is_timed, time, phase)
    return _Places(series, stack, height, is_timed, phase, is_only & ~is_timed)


def _numbered_phases(
    dataset: Dataset, stack: Indices, height: Table, is_timed: _Flags
) -> tuple[Indices, Table, _Flags]:
    """Return stacks anew, the number of each row's phase, and whether it is the only one there.

    The number is NaN where it is not known. Stacks are split where some rows have a trigger time or
    a temporal position and others do not. Without both, the k-th image of a position is of phase k
    if each position of the stack has as many, or if it is the only one there. Images of one
    position and one number have none: nobody can tell them apart.
    """
    temporal = np.where(is_timed, np.nan, _numbers(dataset, "temporal_position", np.nan))
    for is_apart in (is_timed, ~np.isnan(temporal), np.isnan(height)):
        stack = stack * 2 + is_apart
    position = _clusters(stack, height, _SAME_POSITION)
    keys = [_numbers(dataset, name) for name in ("slice", "frame_number", "instance_number")]
    order = np.lexsort((*keys[::-1], position))
    n_there = np.bincount(position)
    starts = np.cumsum(n_there) - n_there
    place = np.empty(len(order))
    place[order] = np.arange(len(order)) - starts[position[order]]
    of_stack = np.unique(stack, return_inverse=True)[1].reshape(-1)
    most, fewest = np.zeros(len(order), np.int64), np.full(len(order), len(order))
    np.maximum.at(most, of_stack, n_there[position])
    np.minimum.at(fewest, of_stack, n_there[position])
    is_told = (most == fewest)[of_stack] | (n_there[position] == 1)
    phase = np.where(np.isnan(temporal), np.where(is_told, place, np.nan), temporal)
    # Of equal keys: those of places, or the phases themselves.
    for *by, twins in (
        (*keys, np.isnan(temporal)),
        (phase, ~np.isnan(phase)),
    ):
        order = np.lexsort((*by[::-1], position))
        before, after = order[:-1], order[1:]
        same = (position[before] == position[after]) & twins[before] & twins[after]
        for key in by:
            same &= (key[before] == key[after]) | (np.isnan(key[before]) & np.isnan(key[after]))
        phase[before[same]] = phase[after[same]] = np.nan
    return stack, phase, np.isnan(temporal) & (n_there[position] == 1)


def _numbers(dataset: Dataset, column: str, missing: float = 0.0) -> Table:
    """Return a column; NaN where it is not finite, `missing` where the file does not have it."""
    stored = dataset.manifest.stored
    if column not in stored:
        return np.full(len(dataset), missing)
    values = stored[column].astype(np.float64)
    values[~np.isfinite(values)] = np.nan
    return values


def _clusters(group: Indices, values: Table, gap: float) -> Indices:
    """Return codes, ascending with the values, of groups split where values are a gap apart."""
    is_nan = np.isnan(values)
    order = np.lexsort((values, is_nan, group))
    ordered = values[order]
    is_new = np.zeros(len(order), np.bool_)
    is_new[1:] = (np.diff(group[order]) != 0) | (np.diff(is_nan[order].astype(np.int8)) != 0)
    is_new[1:] |= np.diff(ordered) > gap  # False where one is NaN
    codes = np.empty(len(order), np.int64)
    codes[order] = np.cumsum(is_new)
    return codes


def _only_centres(n_rows: int, n: int) -> Indices:
    table = np.full((n_rows, 2 * n + 1), NONE, np.int64)
    table[:, n] = np.arange(n_rows)
    return table


def _along_slices(places: _Places, n: int) -> _Lines:
    """Return the neighbours at other positions of a stack, of the same phase."""
    stack, phase, is_timed = places.stack, places.phase, places.is_timed
    is_placed = ~np.isnan(places.height + phase)
    numbered = is_placed & ~is_timed
    of_one_phase = _clusters(stack, np.where(is_timed, np.nan, phase), 0.0)
    table = _Lines.of(of_one_phase, (places.height,), numbered, n).table
    position = _clusters(stack, places.height, _SAME_POSITION)
    for rows in _groups(stack, np.flatnonzero(is_placed & is_timed)):
        table[rows] = _of_one_phase(rows, position[rows], phase[rows], n)
    return _Lines(table, is_placed)


def _groups(codes: Indices, rows: Indices) -> Iterator[Indices]:
    """Yield the rows of each code, ascending."""
    order = rows[np.argsort(codes[rows], kind="stable")]
    yield from np.split(order, np.flatnonzero(np.diff(codes[order])) + 1) if len(order) else ()


def _of_one_phase(rows: Indices, position: Indices, time: Table, n: int) -> Indices:
    """Return the neighbours of the rows of a stack: at each position, the nearest in time.

    A position without an image of the phase is passed over.
    """
    tolerance = _SAME_PHASE * max(float(time.max()), _SHORTEST_BEAT)
    found = [_nearest(np.flatnonzero(position == p), time, tolerance) for p in np.unique(position)]
    places = np.unique(position, return_inverse=True)[1].reshape(-1)
    sides = []
    for sign, upwards in ((1, enumerate(found)), (-1, reversed(list(enumerate(found))))):
        nearest = np.full((len(rows), n), NONE, np.int64)
        for place, candidates in upwards:  # from the far end towards each row
            is_beside = (sign * places > sign * place) & (candidates != NONE)
            nearest[is_beside, 1:] = nearest[is_beside, :-1]
            nearest[is_beside, 0] = rows[candidates[is_beside]]
        sides.append(nearest)
    return np.column_stack([sides[0][:, ::-1], rows, sides[1]])


def _nearest(members: Indices, time: Table, tolerance: float) -> Indices:
    """Return, for each time, the member that is nearest to it, the earlier and first of equals."""
    members = members[np.argsort(time[members], kind="stable")]
    times = time[members]
    above = np.searchsorted(times, time)
    low = np.searchsorted(times, times[np.maximum(above - 1, 0)])  # the first of equal times
    high = np.minimum(above, len(times) - 1)
    is_low = np.abs(time - times[low]) <= np.abs(time - times[high])
    nearest = np.where(is_low, low, high)
    is_near = np.abs(time - times[nearest]) <= tolerance
    return np.where(is_near, members[nearest], NONE)


def _cut(table: Indices, value: Table, within: float) -> None:
    """Take out the neighbours behind a step that is too wide, in place."""
    n = table.shape[1] // 2
    for side in (-1, 1):
        is_cut = np.zeros(len(table), np.bool_)
        for step in range(1, n + 1):
            one, before = table[:, n + side * step], table[:, n + side * (step - 1)]
            is_cut |= (one != NONE) & (np.abs(value[one] - value[before]) > within)
            one[is_cut] = NONE
