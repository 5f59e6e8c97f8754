"""What happens to each sample: all randomness of an augmentation, by counter; pure.

A sample has a key of (seed, epoch, row, copy), and each number is a function of the key and the
number's own counter. So the rank, the batch, the worker, and whether NumPy or torch changes the
pixels make no difference. With `mix`, G and key[10] as in `loader.sampler`:

    key(row, copy) = mix(mix(key[10] + (row + 1) * G) + (copy + 1) * G)
    uniform(i)     = (mix(key + (i + 1) * G) >> 11) * 2**-53                      in [0, 1)

Part k of `PARTS` has the counters 256 * k and on: the first decides whether it happens, the others
are its values, lowest + (highest - lowest) * uniform.

Noise is read from a table of 2**20 normal numbers: the pixel at row r and column c takes number
(start + r * stride + c) mod 2**20, where the key decides start and stride.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from loader.augment.settings import PARTS, Augment, Interpolation
from loader.normalise import Floats
from loader.sampler import DROP_TO_53, GOLDEN, Indices, Table, Words, keys_of, mix

Shape: TypeAlias = tuple[int, int]  # rows, columns
Layout: TypeAlias = tuple[tuple[str, tuple[int, ...]], ...]

_Array = TypeVar("_Array")

N_CONTROL: Final = 7  # control points along a side: four intervals of a cubic B-spline
N_NORMALS: Final = 2**20
_N_POWERS: Final = 4  # of the bias field's polynomial along a side: 1 to the third power
_KEY_NUMBER: Final = 10
_COUNTERS_PER_PART: Final = 256
_NUMBER: Final[Mapping[str, int]] = {name: number for number, name in enumerate(PARTS)}
_MOVING: Final = ("rotate", "scale", "shift", "shear", "elastic")
_TURNING: Final = ("flip_rows", "flip_columns", "quarter_turns")
_PLAIN: Final = ("gamma", "contrast", "brightness")


@dataclass(frozen=True, eq=False)
class Parameters:
    """What happens to each sample of a batch, as one table that travels in one piece.

    Attributes
    ----------
    table : float64 array, shape (n, width)
        A line for each sample.
    layout : tuple of (str, tuple of int)
        Name and shape of what a line holds, one after the other: only of parts that can happen.

        | name | shape | meaning |
        | --- | --- | --- |
        | turn | (3,) | whether rows and columns are reversed; then, quarter turns anticlockwise |
        | is_resampled | () | whether affine or elastic do anything |
        | affine | (2, 3) | (column, row, 1) after → (column, row) before, from the centre, pixels |
        | elastic | (2, 7, 7) | displacement of control points, column and row, in pixels |
        | bias_field | (4, 4) | coefficients of powers of row and column, from -1 to 1 |
        | blur | (k,) | one half of the kernel, its centre first |
        | low_resolution | (2,) | rows and columns that are kept |
        | gamma, contrast, brightness | () | as in `Augment` |
        | noise | (3,) | deviation, as in `Augment`; start and stride in the table of normals |
    shape : (int, int)
        Rows and columns of the images.
    interpolation : "linear" or "cubic"
    """

    table: Table
    layout: Layout
    shape: Shape
    interpolation: Interpolation

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.table)

    def parts(self) -> Mapping[str, Table]:
        """Return views of the table by name."""
        return split(self.table, self.layout)


def draw_parameters(
    augment: Augment,
    shape: Shape,
    *,
    seed: int,
    epoch: int,
    rows: Indices,
    copies: Indices | None = None,
) -> Parameters:
    """Draw what happens to some rows of the file in an epoch.

    Parameters
    ----------
    augment : Augment
    shape : (int, int)
        Rows and columns of the images.
    seed, epoch : int
        From 0 to 2**64 - 1; at least 0.
    rows : int64 array, shape (n,)
        Rows of the file.
    copies : int64 array, shape (n,), optional
        The draw's position in the epoch where a row can be drawn several times; 0 by default.
    """
    keys = _keys(seed, epoch, rows, np.zeros_like(rows) if copies is None else copies)
    happens, values = _draw(augment, keys)
    found: dict[str, npt.NDArray[np.generic]] = {}
    if augment.has(*_TURNING):
        found["turn"] = _turn(happens, keys, shape)
    if augment.has(*_MOVING):
        is_moved = [happens[:, _NUMBER[name]] for name in _MOVING]
        found["is_resampled"] = np.logical_or.reduce(is_moved)
        found["affine"] = _affine(happens, values, keys, augment, shape)
    if augment.has("elastic"):
        found["elastic"] = _elastic(values["elastic"], keys, shape)
    if augment.has("bias_field"):
        found["bias_field"] = _bias_field(values["bias_field"], keys)
    if augment.has("blur"):
        found["blur"] = _half_kernels(values["blur"], augment.range_of("blur")[2])
    if augment.has("low_resolution"):
        kept = np.rint(np.multiply.outer(values["low_resolution"], np.array(shape)))
        found["low_resolution"] = np.maximum(1, kept)
    found |= {name: values[name] for name in _PLAIN if augment.has(name)}
    if augment.has("noise"):
        places = np.floor(_uniform(keys, "noise", 2, 2) * N_NORMALS)
        found["noise"] = np.column_stack([values["noise"], places])
    table = np.concatenate(
        [np.empty((len(rows), 0)), *(part.reshape(len(rows), -1) for part in found.values())], 1
    )
    layout = tuple((name, part.shape[1:]) for name, part in found.items())
    return Parameters(table, layout, shape, augment.interpolation)


def split(table: _Array, layout: Layout) -> dict[str, _Array]:
    """Return the parts of a table, an array of NumPy or a tensor, by name."""
    parts, start = {}, 0
    for name, shape in layout:
        stop = start + math.prod(shape)
        parts[name] = table[:, start:stop].reshape(-1, *shape)  # type: ignore[index]
        start = stop
    return parts


@lru_cache(4)
def spline_basis(side: int) -> Table:
    """Return the weights of control points at each pixel along a side, shape (side, 7)."""
    intervals = N_CONTROL - 3
    place = np.arange(side) * (intervals / max(1, side - 1))
    first = np.minimum(place.astype(np.int64), intervals - 1)
    t = place - first
    weights = [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, 1 + 3 * t + 3 * t**2 - 3 * t**3, t**3]
    basis = np.zeros((side, N_CONTROL))
    for i, weight in enumerate(weights):
        basis[np.arange(side), first + i] = weight / 6
    return basis


@lru_cache(4)
def power_basis(side: int) -> Table:
    """Return 1, t, t**2 and t**3 at each pixel along a side, t from -1 to 1; shape (side, 4)."""
    t = np.linspace(-1, 1, side) if side > 1 else np.zeros(1)
    return np.power.outer(t, np.arange(_N_POWERS))


@lru_cache(1)
def normals() -> Floats:
    """Return the table of normal numbers, float32, shape (2**20,); Box and Muller's."""
    counters = np.arange(1, N_NORMALS + 1, dtype=np.uint64) * GOLDEN
    uniform = (mix(counters) >> DROP_TO_53) * 2.0**-53
    half = N_NORMALS // 2
    radius = np.sqrt(-2 * np.log1p(-uniform[:half]))
    angle = 2 * np.pi * uniform[half:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)]).astype(np.float32)


def kept_pixels(side: Table, n_kept: Table) -> tuple[Table, Table, Table]:
    """Return where each pixel of a side finds its values when only some pixels are kept.

    Parameters
    ----------
    side : float64 array, shape (s,)
        0, 1, ... s - 1; a tensor does as well.
    n_kept : float64 array, shape (..., 1)
        Whole numbers from 1 to s.

    Returns
    -------
    low, high, share : float64 arrays, shape (..., s)
        The kept pixels on both sides, and the weight of the second. All are exact quotients of
        whole numbers, so that every backend has the same.
    """
    s = len(side)
    above = (2 * side + 1) * n_kept - s
    before = above // (2 * s)
    share = (above - before * (2 * s)) / (2 * s)
    # Beyond the border, the border's pixels go on.
    low, high = before.clip(0, None), (before + 1).clip(None, n_kept - 1)
    return _centre(low, s, n_kept), _centre(high, s, n_kept), share


def _centre(kept: Table, s: int, n_kept: Table) -> Table:
    return ((2 * kept + 1) * s) // (2 * n_kept)


def before_turns(turn: npt.NDArray[np.int64]) -> Table:
    """Return the matrices (n, 2, 2) that take (column, row) from the centre back before turns."""
    cosine, sine = np.array([1, 0, -1, 0])[turn[:, 2]], np.array([0, 1, 0, -1])[turn[:, 2]]
    back = np.stack([cosine, -sine, sine, cosine], 1).reshape(-1, 2, 2).astype(np.float64)
    back *= (1 - 2 * turn[:, 1::-1])[:, :, np.newaxis]
    return back


def _keys(seed: int, epoch: int, rows: Indices, copies: Indices) -> Words:
    key = keys_of(seed, epoch, np.array([_KEY_NUMBER], np.uint64))
    of_rows = mix(key + (rows.astype(np.uint64) + np.uint64(1)) * GOLDEN)
    return mix(of_rows + (copies.astype(np.uint64) + np.uint64(1)) * GOLDEN)


def _uniform(keys: Words, name: str, first: int, count: int = 1) -> Table:
    """Return some numbers of a part, from 0 to below 1; shape (n, count)."""
    start = _NUMBER[name] * _COUNTERS_PER_PART + first
    return _uniforms(keys, np.arange(start, start + count, dtype=np.uint64))


def _uniforms(keys: Words, counters: Words) -> Table:
    words = mix(keys[:, np.newaxis] + (counters + np.uint64(1)) * GOLDEN)
    return (words >> DROP_TO_53).astype(np.float64) * 2.0**-53


def _draw(augment: Augment, keys: Words) -> tuple[npt.NDArray[np.bool_], dict[str, Table]]:
    """Return which parts happen, (n, parts), and each part's first value, neutral where not."""
    ranges = np.array([augment.range_of(name) for name in PARTS])
    first = np.arange(len(PARTS), dtype=np.uint64) * np.uint64(_COUNTERS_PER_PART)
    happens = _uniforms(keys, first) < ranges[:, 0]
    values = ranges[:, 1] + (ranges[:, 2] - ranges[:, 1]) * _uniforms(keys, first + np.uint64(1))
    neutral = np.array([part.neutral for part in PARTS.values()])
    values = np.where(happens, values, neutral)
    return happens, dict(zip(PARTS, values.T, strict=True))


def _turn(happens: npt.NDArray[np.bool_], keys: Words, shape: Shape) -> Table:
    turn = happens[:, [_NUMBER[name] for name in _TURNING]].astype(np.float64)
    is_square = shape[0] == shape[1]
    n_turns = 1 + np.floor(3 * _uniform(keys, "quarter_turns", 1)[:, 0]) if is_square else 2
    turn[:, 2] *= n_turns
    return turn


def _affine(
    happens: npt.NDArray[np.bool_],
    values: Mapping[str, Table],
    keys: Words,
    augment: Augment,
    shape: Shape,
) -> Table:
    """Return the inverse of scaling, shear, rotation and shift, each about the image's centre."""
    angle = np.radians(values["rotate"])
    cosine, sine = np.cos(angle) / values["scale"], np.sin(angle) / values["scale"]
    second = {}
    for name in ("shear", "shift"):  # along columns; the first value is along rows
        _, lowest, highest = augment.range_of(name)
        drawn = lowest + (highest - lowest) * _uniform(keys, name, 2)[:, 0]
        second[name] = np.where(happens[:, _NUMBER[name]], drawn, 0)
    a, b = np.tan(np.radians(second["shear"])), np.tan(np.radians(values["shear"]))
    affine = np.empty((len(keys), 2, 3))
    affine[:, 0, 0], affine[:, 0, 1] = cosine - a * sine, -sine - a * cosine
    affine[:, 1, 0], affine[:, 1, 1] = sine - b * cosine, cosine + b * sine
    affine[:, :, :2] /= (1 - a * b)[:, np.newaxis, np.newaxis]
    moved = np.column_stack([second["shift"] * shape[1], values["shift"] * shape[0]])
    affine[:, :, 2] = -np.einsum("nij,nj->ni", affine[:, :, :2], moved)
    return affine


def _elastic(amounts: Table, keys: Words, shape: Shape) -> Table:
    moved = np.zeros((len(keys), 2, N_CONTROL, N_CONTROL))
    chosen = np.flatnonzero(amounts)
    drawn = 2 * _uniform(keys[chosen], "elastic", 2, 2 * N_CONTROL**2) - 1
    sides = np.array(shape[::-1])
    scale = amounts[chosen, np.newaxis] * sides
    moved[chosen] = drawn.reshape(-1, 2, N_CONTROL, N_CONTROL) * scale[:, :, np.newaxis, np.newaxis]
    return moved


def _bias_field(amounts: Table, keys: Words) -> Table:
    coefficients = 2 * _uniform(keys, "bias_field", 2, _N_POWERS**2) - 1
    powers = np.add.outer(np.arange(_N_POWERS), np.arange(_N_POWERS)).reshape(-1)
    coefficients *= (powers > 0) & (powers < _N_POWERS)  # a constant would be brightness
    coefficients *= amounts[:, np.newaxis]
    return coefficients.reshape(-1, _N_POWERS, _N_POWERS)


def _half_kernels(sigmas: Table, highest: float) -> Table:
    """Return one half of each Gaussian, cut off at three deviations, shape (n, k)."""
    distance = np.arange(1 + math.ceil(3 * highest))
    spread = np.maximum(sigmas, np.finfo(np.float32).tiny)[:, np.newaxis]
    weights = np.exp(-0.5 * np.square(np.minimum(distance / spread, 40)))
    weights *= distance <= np.ceil(3 * sigmas)[:, np.newaxis]
    halves: Table = weights / (2 * weights.sum(1, keepdims=True) - weights[:, :1])
    return halves
