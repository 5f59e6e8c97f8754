"""Checks of what was drawn and of how the rows agree, each → warnings with their numbers.

`check_contour` and `check_overlap` look at one row while a worker has it in hand. `check_rows`
looks at all rows at the end: at their manifest and at a few numbers of each (`ROW_NUMBERS`),
sorted and grouped, never all against all. `neighbours` compares neighbouring slices and phases.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import xxhash

from etl.findings import Finding
from etl.geometry import heights, offsets_in_plane
from etl.model import Image, Vertices
from etl.options import KINDS, Kind
from etl.quality.neighbours import Stack, find_jumps

Columns: TypeAlias = Mapping[str, npt.NDArray[np.generic]]  # of the manifest
_Floats: TypeAlias = npt.NDArray[np.float64]
_Integers: TypeAlias = npt.NDArray[np.int64]
_Flags: TypeAlias = npt.NDArray[np.bool_]

# What the checks of all rows need of each, besides its manifest: 56 bytes. A digest is 0 and a
# centroid NaN where the row lacks that contour.
_SHAPE: Final = [("digest", "<u8"), ("x", "<f8"), ("y", "<f8")]
ROW_NUMBERS: Final = np.dtype([("image", "<u8"), *((kind, _SHAPE) for kind in KINDS)])

# ---------------------------------------------------------------------------------- the thresholds

# Vertices are compared on this grid: the customary contour files have two decimals.
GRID: Final = 100  # steps to a pixel
# A drawing closes itself within its usual spacing; this much more is a piece that is missing.
GAP_RATIO: Final = 3.0  # times the longest distance between any other two neighbours
MIN_GAP: Final = 3.0  # pixels: a straight line across less follows any real border
# Smaller loops are a trembling hand, and turn at most a pixel or two inside out.
MIN_LOOP: Final = 1.0  # square pixels wound round twice or backwards
# A double click or a touching pair of points is harmless; so many say that a part is drawn twice.
REPEATED_SHARE: Final = 0.05
MIN_REPEATED: Final = 3  # points: one double click in a contour of few points is no matter
# Two borders that touch share edge pixels: the drawings meet, the pixels' staircases do not.
OUTSIDE_SHARE: Final = 0.01
MIN_OUTSIDE: Final = 4  # pixels: of a small contour a single one is more than the share above
# Where p01 and p99 are equal, an image is constant but for two pixels in a hundred. Where p99 and
# the maximum are, this share has the highest value, which otherwise only a few pixels reach.
SATURATED_SHARE: Final = 0.01
# Hearts differ by less than this from the median; the robust deviation makes room for mixed data.
LARGE_RADIUS: Final = 2.0  # times the median radius (four times its area)
LARGE_DEVIATIONS: Final = 5.0  # robust standard deviations of the radius as well
SMALL_RADIUS: Final = 0.15  # times the median radius (a fiftieth of its area): less than any apex
MIN_CONTOURS: Final = 10  # fewer have no usual size
# Rounding in headers is far below these.
SPACING_TOLERANCE: Final = 0.001  # of the spacing
ORIENTATION_TOLERANCE: Final = 0.01  # of a direction cosine: 0.6 degrees
# A patient's numbers agree where three rows do, and three of four of all its rows.
AGREEING_ROWS: Final = 3
AGREEING_SHARE: Final = 0.75

_LINES: Final = 4  # scan lines to a pixel where a contour's loops are measured
_MAX_CROSSINGS: Final = 1 << 18  # of lines with edges: a contour of huge edges gets fewer lines
_LINE_OFFSET: Final = 0.0317  # pixels: off the grid, so that no vertex lies on a scan line
_ROBUST: Final = 1.4826  # times the median absolute deviation: a normal distribution's deviation
_LARGEST: Final = 1e10  # of a number in a header: more means nothing
_N_NAMED: Final = 3  # others that a message names

# ----------------------------------------------------------------------------------- of one contour


class Shape(NamedTuple):
    """What is kept of one contour until all rows are known."""

    digest: int  # of its distinct vertices: whatever their format, first point or direction
    x: float  # centre of mass, pixels
    y: float


def check_contour(path: str, vertices: Vertices) -> tuple[Shape, list[Finding]]:
    """Return what to keep of a contour, and what is suspicious about its drawing.

    Parameters
    ----------
    path : str
        Of the contour file, for the findings.
    vertices : float64 array, shape (n_vertices, 2)
        (x, y) in pixels, three or more of them distinct.
    """
    # Whole numbers in floating point: sums are exact, so that every machine finds the same.
    grid = np.rint(vertices * GRID) + 0.0  # one zero: -0.0 has other bytes
    middle = np.rint(grid.sum(axis=0) / len(grid))
    closed = np.concatenate((grid, grid[:1])) - middle
    x, y = closed[:, 0], closed[:, 1]
    cross = x[:-1] * y[1:] - x[1:] * y[:-1]
    shape, n_distinct = _shape(grid, middle, closed, cross)
    dx, dy = x[1:] - x[:-1], y[1:] - y[:-1]
    distance = np.sqrt(dx * dx + dy * dy) / GRID
    findings = [
        *_open_gap(path, distance),
        *_repeated_points(path, len(grid), n_distinct, is_closed=bool(distance[-1] == 0)),
    ]
    if not _is_star(cross, y):
        findings += _self_crossing(path, vertices)
    return shape, findings


def _shape(grid: _Floats, middle: _Floats, closed: _Floats, cross: _Floats) -> tuple[Shape, int]:
    """Return digest and centre of mass of a contour, and how many distinct points it has."""
    packed = np.sort(grid[:, 0] * (1 << 24) + grid[:, 1])
    distinct = np.concatenate((packed[:1], packed[1:][packed[1:] != packed[:-1]]))
    digest = xxhash.xxh3_64_intdigest(distinct.data)
    doubled_area = float(cross.sum())
    centre = middle
    if doubled_area:
        centre = middle + cross @ (closed[:-1] + closed[1:]) / (3 * doubled_area)
    x, y = centre.tolist()
    return Shape(digest, x / GRID, y / GRID), len(distinct)


def _open_gap(path: str, distance: _Floats) -> Iterator[Finding]:
    gap, longest = float(distance[-1]), float(distance[:-1].max())
    if gap >= MIN_GAP and gap >= GAP_RATIO * longest:
        yield Finding(
            "contour-open-gap",
            path,
            f"its first and last point are {gap:.1f} pixels apart, other neighbours at most "
            f"{longest:.1f}; a straight line closes it. Is a piece of it missing?",
        )


def _repeated_points(
    path: str, n_vertices: int, n_distinct: int, *, is_closed: bool
) -> Iterator[Finding]:
    n_repeated = n_vertices - n_distinct - is_closed
    if n_repeated >= MIN_REPEATED and n_repeated > REPEATED_SHARE * n_vertices:
        yield Finding(
            "contour-repeated-points",
            path,
            f"{n_repeated} of its {n_vertices} points ({n_repeated / n_vertices:.0%}) repeat "
            "others. Is a part of it drawn twice?",
        )


def _is_star(cross: _Floats, y: _Floats) -> bool:
    """Say whether a contour runs once around its middle, never turning back: it cannot cross."""
    if cross.min() < 0 < cross.max():
        return False
    is_above = y < 0
    n_turns = int(np.count_nonzero(is_above[1:] != is_above[:-1]))
    return n_turns == 2  # noqa: PLR2004  once up and once down


def _self_crossing(path: str, vertices: Vertices) -> Iterator[Finding]:
    area = _loops(vertices)
    if area >= MIN_LOOP:
        yield Finding(
            "contour-self-crossing",
            path,
            f"crosses itself: its loops have {area:.1f} square pixels, which it winds round twice "
            "or backwards. Draw it again.",
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


# --------------------------------------------------------------------------------------- of one row


def check_overlap(path: str, n_inner: int, n_outside: int) -> list[Finding]:
    """Warn where part of the inner contour lies outside the outer one.

    Parameters
    ----------
    path : str
        Of the inner contour file.
    n_inner, n_outside : int
        Pixels inside the inner contour, and those of them that are not inside the outer one.
    """
    if n_outside < MIN_OUTSIDE or n_outside <= OUTSIDE_SHARE * n_inner:
        return []
    message = (
        f"{n_outside} of its {n_inner} pixels ({n_outside / n_inner:.1%}) lie outside the outer "
        f"contour, expected at most {OUTSIDE_SHARE:.0%}. Does one of the two belong elsewhere?"
    )
    return [Finding("inner-outside-outer", path, message)]


def row_numbers(image: Image, shapes: Mapping[Kind, Shape]) -> tuple[int | Shape, ...]:
    """Return one row of `ROW_NUMBERS`; many of them make an array of that type."""
    absent = Shape(0, math.nan, math.nan)
    digest = xxhash.xxh3_64_intdigest(image.data)
    return digest, *(shapes.get(kind, absent) for kind in KINDS)


# -------------------------------------------------------------------------------------- of all rows


def check_rows(manifest: Columns, numbers: npt.NDArray[np.void]) -> list[Finding]:
    """Return what only all rows together show.

    Parameters
    ----------
    manifest : mapping of name to array
        The columns of /manifest but split, fold and flags.
    numbers : array of `ROW_NUMBERS`
        One for each row of the manifest.
    """
    return [finding for check in CHECKS for finding in check(manifest, numbers)]


def _image_values(manifest: Columns, _: npt.NDArray[np.void]) -> Iterator[Finding]:
    low, high, top = (manifest[name].astype(np.float64) for name in ("p01", "p99", "maximum"))
    is_constant = low == high
    for row in np.flatnonzero(is_constant | (high == top)).tolist():
        if is_constant[row]:
            code = "image-constant"
            message = f"almost all of its pixels have one value ({low[row]:g}). Is it empty?"
        else:
            code = "image-saturated"
            message = (
                f"{SATURATED_SHARE:.0%} or more of its pixels have its highest value "
                f"({top[row]:g}): what was brighter is cut off. Export it again."
            )
        yield Finding(code, _path(manifest, "dicom_path", row), message)


def _identical_images(manifest: Columns, numbers: npt.NDArray[np.void]) -> Iterator[Finding]:
    paths = manifest["dicom_path"]
    for rows in _equal(numbers["image"]):
        for position, row in enumerate(rows):
            others = _others(paths, rows, position)
            message = f"has the same pixels as {others}. Remove one of them, or its twin."
            yield Finding("identical-image", _path(manifest, "dicom_path", row), message)


def _identical_contours(manifest: Columns, numbers: npt.NDArray[np.void]) -> Iterator[Finding]:
    """Compare contours of both kinds: the same one on the same pixels is no second mistake."""
    n_rows = len(numbers)
    digests = np.concatenate([numbers[kind]["digest"] for kind in KINDS])
    images = numbers["image"]
    paths = np.concatenate([manifest[f"{kind}contour_path"] for kind in KINDS])
    for places in _equal(digests):
        if len(np.unique(images[places % n_rows])) == 1:
            continue
        for position, place in enumerate(places):
            message = (
                f"has the same points as {_others(paths, places, position)}, of another image. "
                "Is it a copy?"
            )
            yield Finding("identical-contour", bytes(paths[place]).decode(), message)


def _area_outliers(manifest: Columns, _: npt.NDArray[np.void]) -> Iterator[Finding]:
    spacing = _spacing(manifest).prod(axis=1)
    in_mm = not np.isnan(spacing).any()
    unit = "mm" if in_mm else "pixels"
    for kind in KINDS:
        area = _floats(manifest, f"{kind}contour_area") * (spacing if in_mm else 1.0)
        radius = np.sqrt(area / math.pi)
        known = radius[~np.isnan(radius)]
        if len(known) < MIN_CONTOURS:
            continue
        median = float(np.median(known))
        deviation = _ROBUST * float(np.median(np.abs(known - median)))
        high = max(LARGE_RADIUS * median, median + LARGE_DEVIATIONS * deviation)
        for row in np.flatnonzero((radius > high) | (radius < SMALL_RADIUS * median)).tolist():
            message = (
                f"is as large as a circle of radius {radius[row]:.1f} {unit}, expected "
                f"{SMALL_RADIUS * median:.1f} to {high:.1f}: the median of {len(known)} "
                f"{kind}-contours is {median:.1f}. Look at its overlay."
            )
            yield Finding("area-outlier", _path(manifest, f"{kind}contour_path", row), message)


def _geometry_changes(manifest: Columns, _: npt.NDArray[np.void]) -> Iterator[Finding]:
    """Compare each row with the geometry that most rows of its series have."""
    spacing, orientation = _spacing(manifest), _orientation(manifest)
    uids = manifest["series_instance_uid"]
    patients, series = _codes(manifest["patient_id"]), _codes(uids)
    group = _codes(patients * (int(series.max(initial=0)) + 1) + series)
    example = _usual(group, _geometries(spacing, orientation))[0]
    is_spaced = np.abs(spacing - spacing[example]) > SPACING_TOLERANCE * spacing[example]
    is_turned = np.abs(orientation - orientation[example]) > ORIENTATION_TOLERANCE
    is_other = (is_spaced.any(axis=1) | is_turned.any(axis=1)) & (uids != b"")
    for row in np.flatnonzero(is_other).tolist():
        name, values = "orientation", orientation
        if is_spaced[row].any():
            name, values = "spacing", spacing
        message = (
            f"its {name} is {_listed(values[row])}, but {_listed(values[example[row]])} in most of "
            "its series. Does it belong there?"
        )
        yield Finding("geometry-changes", _path(manifest, "dicom_path", row), message)


def _instance_numbers(manifest: Columns, _: npt.NDArray[np.void]) -> Iterator[Finding]:
    """Compare file name and InstanceNumber; in a patient they may differ by one constant."""
    instance, number = _floats(manifest, "instance_number"), _floats(manifest, "slice")
    known = np.flatnonzero(~np.isnan(instance - number))
    ahead = (instance - number)[known]
    patients = _codes(manifest["patient_id"])[known]
    example, n_usual, n_rows = _usual(patients, _codes(ahead))
    agrees = (n_usual >= AGREEING_ROWS) & (n_usual >= AGREEING_SHARE * n_rows)
    for place in np.flatnonzero(agrees & (ahead != ahead[example])).tolist():
        row = int(known[place])
        expected = number[row] + ahead[example[place]]
        message = (
            f"its InstanceNumber is {instance[row]:g}, expected {expected:g}: {n_usual[place]} of "
            f"the patient's {n_rows[place]} images agree on that. Is the file misnamed?"
        )
        yield Finding("instance-number-differs", _path(manifest, "dicom_path", row), message)


def _jumps(manifest: Columns, numbers: npt.NDArray[np.void]) -> Iterator[Finding]:
    """Compare areas and centroids with those of neighbouring slices and phases."""
    spacing, orientation = _spacing(manifest), _orientation(manifest)
    position = np.stack([_floats(manifest, f"image_position_{axis}") for axis in "xyz"], axis=1)
    height = heights(orientation, position)
    is_placed = ~np.isnan(height)
    # Where the first pixel lies in the slice's plane: slices of a stack may be cut out differently.
    shift = offsets_in_plane(orientation, position) / spacing[:, ::-1]
    key = [_codes(manifest["patient_id"]), is_placed, _geometries(spacing, orientation)]
    stack = Stack(
        group=_codes(_as_one(np.column_stack(key))),
        height=np.where(is_placed, height, _floats(manifest, "slice_location")),
        time=_floats(manifest, "trigger_time"),
    )
    for kind in KINDS:
        radius = np.sqrt(_floats(manifest, f"{kind}contour_area") / math.pi)
        centroid = np.stack([numbers[kind]["x"], numbers[kind]["y"]], axis=1)
        for jump in find_jumps(stack, radius, centroid + np.nan_to_num(shift)):
            path = _path(manifest, f"{kind}contour_path", jump.row)
            yield Finding(jump.code, path, jump.message)


# Named checks of all rows, in the order in which their findings come.
CHECKS: Final[tuple[Callable[[Columns, npt.NDArray[np.void]], Iterable[Finding]], ...]] = (
    _image_values,
    _identical_images,
    _identical_contours,
    _area_outliers,
    _geometry_changes,
    _instance_numbers,
    _jumps,
)


def _floats(manifest: Columns, name: str) -> _Floats:
    """Return a column; as unknown where a header's value is beyond all sense."""
    values = manifest[name].astype(np.float64)
    values[~(np.abs(values) < _LARGEST)] = np.nan
    return values


def _path(manifest: Columns, column: str, row: int) -> str:
    return bytes(manifest[column][row]).decode()


def _orientation(manifest: Columns) -> _Floats:
    names = [f"image_orientation_{half}_{axis}" for half in ("row", "column") for axis in "xyz"]
    return np.stack([_floats(manifest, name) for name in names], axis=1)


def _spacing(manifest: Columns) -> _Floats:
    spacing = np.stack(
        [_floats(manifest, f"pixel_spacing_{axis}") for axis in ("row", "column")], 1
    )
    spacing[~(spacing > 1 / _LARGEST)] = np.nan
    return spacing


def _listed(values: _Floats) -> str:
    return " ".join(f"{value:g}" for value in values.tolist())


def _geometries(spacing: _Floats, orientation: _Floats) -> _Integers:
    """Return codes that are equal where spacing and orientation are, but for rounding."""
    scaled = np.hstack([spacing / SPACING_TOLERANCE, orientation / ORIENTATION_TOLERANCE])
    return _codes(_as_one(np.rint(np.nan_to_num(scaled)).astype(np.int64)))


def _as_one(table: _Integers) -> npt.NDArray[np.void]:
    """Return each row of a table as one opaque value, which sorts and compares."""
    whole: npt.NDArray[np.void] = table.view(f"V{table.itemsize * table.shape[1]}").ravel()
    return whole


def _codes(values: npt.NDArray[np.generic]) -> _Integers:
    """Return small whole numbers that are equal where the values are."""
    codes: _Integers = np.unique(values, return_inverse=True)[1].reshape(-1).astype(np.int64)
    return codes


def _equal(digests: npt.NDArray[np.uint64]) -> Iterator[_Integers]:
    """Yield the places of each digest that occurs more than once, in order; 0 is none."""
    order = np.argsort(digests, kind="stable")
    ordered = digests[order]
    borders = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    lengths = np.diff(np.append(borders, len(ordered)))
    for start, length in zip(borders[lengths > 1], lengths[lengths > 1], strict=True):
        if ordered[start]:
            yield order[start : start + length].astype(np.int64)


def _others(paths: npt.NDArray[np.generic], places: _Integers, position: int) -> str:
    """Return the paths of the first few of `places` but one, and how many more there are."""
    shown = [place for place in places[: _N_NAMED + 1].tolist() if place != places[position]]
    names = [bytes(paths[place]).decode() for place in shown[:_N_NAMED]]
    n_more = len(places) - 1 - len(names)
    return ", ".join(names) + (f" and {n_more} more" if n_more else "")


def _usual(group: _Integers, code: _Integers) -> tuple[_Integers, _Integers, _Integers]:
    """Return, for each row, what is usual in its group.

    Returns
    -------
    example : int64 array
        The first row that has the group's most frequent code (the first such code where two are).
    n_usual, n_rows : int64 array
        How many rows of the group have that code, and how many it has.
    """
    if len(group) == 0:
        return group, group, group
    pair = group * (int(code.max()) + 1) + code
    _, first, count = np.unique(pair, return_index=True, return_counts=True)
    order = np.lexsort((first, -count, group[first]))
    best = order[np.append(True, np.diff(group[first][order]) != 0)]  # by group, ascending
    place = np.searchsorted(group[first][best], group)
    return first[best][place], count[best][place], np.bincount(group)[group]
