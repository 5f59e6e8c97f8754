"""Contours that fit no image → the coordinates in which they were drawn.

A contour that fits has a contrast of its structure's kind all along it. One contour may have that
by chance in a wrong place; the mean over several contours, each moved alike, has not. So every
candidate is judged by the mean over some contours of the contrast at each move about its place.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from etl.contours.transform import PixelGrid, transform
from etl.labels import BRIGHTER, DARKER
from etl.model import Image, Vertices
from etl.quality.alignment import MIN_CONTRAST, SEARCH, contour_normals, peak_of
from etl.quality.statistics import median_of
from loader.format import Structure

_Floats: TypeAlias = npt.NDArray[np.float64]

# ---------------------------------------------------------------------------------- the thresholds

# Of the mean contrast of several contours. Hand-drawn contours of three real patients reach 0.49
# where they belong, exact ones of phantoms 0.96; mirrored, exchanged or turned, both stay below
# 0.4, the real ones below 0.21.
FITS: Final = 0.35
BETTER: Final = 0.15  # above what they have as they are built, for a transformation to be named
_EQUAL: Final = 0.05  # of two that are so close, the simpler one
_NEARER: Final = 0.3  # pixels that the other origin must bring the contours nearer
_SAME_SPACING: Final = 0.001  # of the spacing
_NEAR_ONE: Final = 0.02  # a spacing so close to 1 mm makes millimetres pixels

# ---------------------------------------------------------------------------------- the candidates

_TURNS: Final[tuple[tuple[str, ...], ...]] = (
    (),
    ("swap",),
    ("flip-x",),
    ("flip-y",),
    ("flip-x", "flip-y"),
    ("swap", "flip-x"),
    ("swap", "flip-y"),
    ("swap", "flip-x", "flip-y"),
)
_SPACED: Final = "spacing"  # times the pixel spacing: no step of the option, but a factor of it
# Contours are scaled before they are mirrored, which goes by the size of the image.
_SCALES: Final = ("", "scale=2", "scale=0.5", "mm", _SPACED)
CANDIDATES: Final = tuple(
    sorted(
        ((*filter(None, (scale,)), *turn) for scale, turn in itertools.product(_SCALES, _TURNS)),
        key=len,
    )
)

_REACH: Final = SEARCH  # pixels that each candidate is moved about
_FAR: Final = 24  # pixels that contours are moved about as they are built
_N_NORMALS: Final = 32
_FAINT: Final = 0.5  # of the median: fainter normals weigh less, as in the audit


class Fit(NamedTuple):
    """How well one contour fits its image under each candidate."""

    patient_id: str
    spacing: tuple[float, ...]  # mm: between rows, between columns
    is_square: bool  # the image
    maps: npt.NDArray[np.float32]  # (1 + n_candidates, 2 * _REACH + 1, same): by move y, x
    far: npt.NDArray[np.float32]  # (2 * _FAR + 1, same), as it is built


def fit(
    patient_id: str,
    image: Image,
    built: Vertices,
    written: Vertices,
    grid: PixelGrid,
    structure: Structure,
) -> Fit:
    """Return how well a contour fits under each candidate, and as it is built.

    Parameters
    ----------
    image : array, shape (rows, columns)
        Modality values.
    built, written : float64 arrays, shape (n_vertices, 2)
        The contour in pixels by the options of the build, and as its file has it.
    """
    far = _contrasts(image, built, structure, _FAR)
    maps = [far[_FAR - _REACH : _FAR + _REACH + 1, _FAR - _REACH : _FAR + _REACH + 1]]
    for steps in CANDIDATES:
        vertices = _apply(written, steps, grid)
        is_inside = vertices is not None and _touches(vertices, grid)
        maps.append(
            _contrasts(image, vertices, structure, _REACH)
            if vertices is not None and is_inside
            else np.zeros_like(maps[0])
        )
    return Fit(
        patient_id,
        grid.spacing,
        grid.rows == grid.columns,
        np.array(maps, np.float32),
        far.astype(np.float32),
    )


def _apply(vertices: Vertices, steps: Sequence[str], grid: PixelGrid) -> Vertices | None:
    """Return transformed vertices; None where the steps need a spacing that is not known."""
    if not {"mm", _SPACED} & set(steps):
        return transform(vertices, steps, grid)
    if not grid.has_spacing or max(abs(step - 1) for step in grid.spacing) < _NEAR_ONE:
        return None
    if steps[0] == _SPACED:
        between_rows, between_columns = grid.spacing
        vertices, steps = vertices * np.array([between_columns, between_rows]), steps[1:]
    return transform(vertices, steps, grid)


def _touches(vertices: Vertices, grid: PixelGrid) -> bool:
    x, y = vertices.mean(axis=0)
    return bool(0 <= x < grid.columns and 0 <= y < grid.rows)


def _contrasts(image: Image, vertices: Vertices, structure: Structure, reach: int) -> _Floats:
    """Return the contrast across a contour at each move of up to `reach` pixels in y and x.

    As `alignment.measure` does, but with half of the normals and the nearest pixels.
    """
    inside, outside = contour_normals(vertices)
    points = np.concatenate(
        [inside[:: len(inside) // _N_NORMALS], outside[:: len(outside) // _N_NORMALS]]
    )
    rows, columns = image.shape
    moves = np.arange(-reach, reach + 1)
    x, y = np.rint(points).astype(np.int64).T[:, :, None] + moves
    x, y = np.minimum(np.maximum(x, 0), columns - 1), np.minimum(np.maximum(y, 0), rows - 1)
    pixels = (y * columns)[:, :, None] + x[:, None, :]
    values = image.ravel().take(pixels).astype(np.float64)
    step = values[: len(values) // 2] - values[len(values) // 2 :]
    middle = slice(reach - _REACH, reach + _REACH + 1)
    own = np.abs(step[:, middle, middle]).max(axis=(1, 2))
    own = np.maximum(own, _FAINT * median_of(own))
    if not own.all():
        return np.zeros(step.shape[1:])
    # Far off may be steeper edges than near: no normal counts more than one.
    contrast: _Floats = (step / own[:, None, None]).clip(-1, 1).mean(axis=0)
    return -contrast if structure.contrast == DARKER else contrast


# ------------------------------------------------------------------------------------- the verdict


class Verdict(NamedTuple):
    """What some contours have in common."""

    fits: bool  # as they are built
    advice: str  # what makes them fit, or that nothing tried does
    is_named: bool  # whether something does


def judge(fits: Sequence[Fit], contour_origin: int, mend: str) -> Verdict:
    """Return what makes contours fit.

    Parameters
    ----------
    fits : sequence of Fit
        At least one.
    contour_origin : {0, 1}
        As the build had it.
    mend : str
        What to do with options that mend them.
    """
    means = np.mean([one.maps for one in fits], axis=0)
    scores = means.max(axis=(1, 2))
    built, best = float(scores[0]), float(scores[1:].max())
    if built >= FITS and best < built + BETTER:
        return Verdict(fits=True, advice="", is_named=False)
    place = 1 + int(np.argmax(scores[1:] >= best - _EQUAL))
    counts = f"{_n_fitting(fits, place)} of {len(fits)}"
    steps = CANDIDATES[place - 1]
    if best >= max(FITS, built + BETTER) and 2 * _n_fitting(fits, place) > len(fits):
        origin = _origin(steps, means[place], fits)
        how, what = _named(steps, fits, [origin] * (origin != contour_origin), mend)
        return Verdict(fits=False, advice=f"{how}, {counts} do: {what}.", is_named=True)
    if (moved := _moved(fits, built)) is not None:
        return Verdict(fits=False, advice=moved, is_named=True)
    advice = (
        "No exchange of x and y, mirroring, quarter turn, factor or unit that was tried makes them "
        f"fit; with the best, {counts} do. Look at the overlays: do contours and images belong "
        "together?"
    )
    return Verdict(fits=False, advice=advice, is_named=False)


def _n_fitting(fits: Sequence[Fit], place: int) -> int:
    return sum(float(one.maps[place].max()) >= MIN_CONTRAST[BRIGHTER] for one in fits)


def _origin(steps: Sequence[str], mean: _Floats, fits: Sequence[Fit]) -> int:
    """Return the origin that leaves the contours nearer to the edges, once transformed."""
    offset = _offset(mean)
    grid = PixelGrid(0, 0, fits[0].spacing)
    ends = _apply(np.array([[0.0, 0.0], [1.0, 1.0]]), steps, grid)
    if ends is None:
        return 0
    nearer = math.hypot(*(offset - (ends[1] - ends[0])))
    return int(nearer + _NEARER < math.hypot(*offset))


def _offset(mean: _Floats) -> _Floats:
    """Return how far contours lie off (x, y): the opposite of the move with the most contrast."""
    reach = len(mean) // 2
    row, column = divmod(int(mean.argmax()), len(mean))
    fine = None
    if {row, column}.isdisjoint({0, 2 * reach}):
        fine = peak_of(mean[row - 1 : row + 2, column - 1 : column + 2])
    x, y = fine or (0.0, 0.0)
    return np.array([reach - column - x, reach - row - y])


def _named(
    steps: Sequence[str], fits: Sequence[Fit], other_origin: Sequence[int], mend: str
) -> tuple[str, str]:
    """Return how contours fit with some steps, and what to do then."""
    steps = tuple(steps)
    if steps == ("swap", "flip-x") and all(one.is_square for one in fits):
        steps = ("rotate-90",)
    if _SPACED in steps:
        spacing = np.array([one.spacing for one in fits])
        factor = float(spacing[0, 0])
        if np.abs(spacing - factor).max() > _SAME_SPACING * factor:
            rest = f" and transformed by {','.join(steps[1:])}" if steps[1:] else ""
            return (
                f"Multiplied by the pixel spacing of their images{rest}",
                "no option does that for images of different spacing, so write them in pixels",
            )
        steps = (f"scale={factor:g}", *steps[1:])
    options = [f"--contour-origin {origin}" for origin in other_origin]
    options += [f"--contour-transform {','.join(steps)}"] * bool(steps)
    if not options:
        return "As their files have them", "build without --contour-transform"
    return f"With {' '.join(options)}", mend


def _moved(fits: Sequence[Fit], built: float) -> str | None:
    """Return the advice where contours fit after one move that the audit is too short for."""
    mean = np.mean([one.far for one in fits], axis=0)
    if float(mean.max()) < max(FITS, built + BETTER):
        return None
    x, y = _offset(mean).tolist()
    return (
        f"They lie {x:+.1f} pixels too far in x and {y:+.1f} in y: moved back, most do. Were the "
        "images cropped, padded or shifted after the drawing? Export them as they were drawn on."
    )
