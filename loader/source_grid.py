"""Arrays on the pixels of a row → the pixels of the image that the row was made of."""

import contextlib
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Values: TypeAlias = npt.NDArray[np.generic]


class Axis(NamedTuple):
    """One axis of a row in its source: pixel k of the row is at offset + scale * k there.

    Attributes
    ----------
    length : int
        Pixels of the source.
    offset, scale : float
        In pixels of the source; integers are centres.
    """

    length: int
    offset: float
    scale: float

    def places(self) -> npt.NDArray[np.float64]:
        """Return where the pixels of the source are along the row, in pixels of the row."""
        return np.asarray((np.arange(self.length) - self.offset) / self.scale)


def to_source(
    values: Values, rows: Axis, columns: Axis, *, linear: bool = False, fill: float = 0
) -> Values:
    """Return values on the pixels of the source.

    Parameters
    ----------
    values : array, shape (..., rows, columns)
        On the pixels of a row.
    rows, columns : Axis
        Where the row lies in its source.
    linear : bool
        Interpolate linearly, as for probabilities; else each pixel of the source takes the value of
        the nearest one, as for labels.
    fill : number
        For pixels of the source that the row does not show.

    Returns
    -------
    array, shape (..., source rows, source columns)
    """
    shown = []
    for axis, place in ((-2, rows), (-1, columns)):
        at, length = place.places(), values.shape[axis]
        nearest = np.floor(at + 0.5).astype(np.int64)
        is_shown = (nearest >= 0) & (nearest < length)
        shown.append(is_shown)
        if linear:
            kind = values.dtype if values.dtype.kind == "f" else np.dtype(np.float64)
            values = _between(values.astype(kind), at.clip(0, length - 1), axis)
        else:
            values = values.take(nearest.clip(0, length - 1), axis)
    filled: Values = np.where(np.logical_and.outer(*shown), values, _held(fill, values.dtype))
    return filled


def _held(fill: float, dtype: np.dtype[np.generic]) -> np.generic:
    """Return `fill` as a type has it: a label must not become another one."""
    with contextlib.suppress(OverflowError, ValueError):
        held: np.generic = dtype.type(fill)
        if dtype.kind == "f" or held == fill:
            return held
    raise ValueError(f"fill: expected a value that {dtype} holds exactly, found {fill!r}.")


def _between(
    values: npt.NDArray[np.floating[Any]], at: npt.NDArray[np.float64], axis: int
) -> npt.NDArray[np.floating[Any]]:
    """Return values at places between the pixels of one axis, all of them within it."""
    low = np.floor(at).astype(np.int64)
    high = np.minimum(low + 1, values.shape[axis] - 1)
    share = (at - low).astype(values.dtype)
    if axis == -2:  # noqa: PLR2004  along columns
        share = share[:, None]
    below, above = values.take(low, axis), values.take(high, axis)
    with np.errstate(invalid="ignore"):  # 0 times infinity, at the centre of a pixel
        between = below * (1 - share) + above * share
    # There the neighbour has no part: one that is infinite or NaN would make the pixel NaN.
    return np.asarray(np.where(share == 0, below, between))
