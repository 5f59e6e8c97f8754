"""Statistics that a file claims of an image, confirmed without computing them.

To compute percentiles takes a histogram, the slowest part of checking a row. To confirm known ones
takes no more than counting the pixels below them.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from etl.model import Image
from etl.quality.statistics import moments_of_sums, rank_of

_EXACT: Final = 1 << 53  # float64 holds all whole numbers up to here
_WIDEST_GAP: Final = 32  # between the two values that a percentile lies between

_Pixels: TypeAlias = npt.NDArray[np.generic]


class Claim(NamedTuple):
    """What the manifest says of an image's pixels but its padding."""

    minimum: float
    maximum: float
    mean: float
    std: float
    p01: float
    p99: float
    n_padding: float = 0


def is_confirmed(image: Image, claim: Claim, padding: tuple[float, float] | None = None) -> bool:
    """Return whether a claim is certainly what `image_statistics` gives.

    A false claim is never confirmed. Of true ones about images of whole numbers nearly all are: not
    those about padding of several values, about sums beyond 2**53, and about percentiles between
    two values that lie far apart.

    Parameters
    ----------
    image : array, shape (rows, columns)
    claim : Claim
        `n_padding` counts pixels of the values in `padding` only.
    padding : (float, float), optional
        Lowest and highest value of the pixels that are padding.
    """
    if image.dtype.kind == "f" or image.size == 0:
        return False
    if padding is None:
        return claim.n_padding == 0 and _is_true(_Counted(image), claim)
    value, highest = padding
    if value != highest or not value.is_integer():
        return False
    counted = _Counted(image, int(value))
    return counted.n_padding == claim.n_padding and counted.n > 0 and _is_true(counted, claim)


class _Counted:
    """The pixels of an image but those of one value, by how many are below a value."""

    def __init__(self, image: Image, padding: int | None = None) -> None:
        self.image = image
        self.padding = padding
        self.n_padding = 0 if padding is None else int(np.count_nonzero(image == padding))
        self.n = image.size - self.n_padding
        self.lowest, self.highest = int(image.min()), int(image.max())
        self._known = {self.lowest: 0, self.highest + 1: self.n}

    def below(self, value: int) -> int:
        """Return how many are below a value."""
        if value not in self._known:
            n_below = int(np.count_nonzero(self.image < value))
            if self.padding is not None and self.padding < value:
                n_below -= self.n_padding
            self._known[value] = n_below
        return self._known[value]

    def is_at(self, rank: int, value: int) -> bool:
        """Return whether the pixel of a rank, in ascending order from 0, has a value."""
        is_there = self.lowest <= value <= self.highest
        return is_there and self.below(value) <= rank < self.below(value + 1)


def _is_true(counted: _Counted, claim: Claim) -> bool:
    return (
        _has_ends(counted, claim)
        and _has_moments(counted, claim)
        and all(
            _has_percentile(counted, percent, value)
            for percent, value in ((1, claim.p01), (99, claim.p99))
        )
    )


def _has_ends(counted: _Counted, claim: Claim) -> bool:
    if counted.padding is None:
        return (claim.minimum, claim.maximum) == (counted.lowest, counted.highest)
    return all(
        value.is_integer() and counted.is_at(rank, int(value))
        for rank, value in ((0, claim.minimum), (counted.n - 1, claim.maximum))
    )


def _has_moments(counted: _Counted, claim: Claim) -> bool:
    """Compare mean and deviation with those by sums of whole numbers, exact in any order."""
    largest = max(abs(counted.lowest), abs(counted.highest))
    if largest * largest * counted.image.size >= _EXACT:
        return False
    values = counted.image.astype(np.float64)
    # Line by line: for longer ones BLAS would start threads, in each of the workers.
    squares = np.matmul(values[:, None, :], values[:, :, None])
    total, total_squares = int(np.einsum("ij->", values)), int(squares.sum())
    if counted.padding is not None:
        total -= counted.n_padding * counted.padding
        total_squares -= counted.n_padding * counted.padding**2
    return moments_of_sums(total, total_squares, counted.n) == (claim.mean, claim.std)


def _has_percentile(counted: _Counted, percent: int, claimed: float) -> bool:
    rank, share = rank_of(percent, counted.n)
    following = min(rank + 1, counted.n - 1)
    return any(
        counted.is_at(rank, low) and (share == 0 or counted.is_at(following, high))
        for low, high in _neighbours(claimed, share)
    )


def _neighbours(claimed: float, share: float) -> Iterator[tuple[int, int]]:
    """Yield the pairs of values that a percentile may lie between, close ones first."""
    if not abs(claimed) < _EXACT:  # NaN too
        return
    for gap in range(_WIDEST_GAP if share else 1):
        low = round(claimed - gap * share)
        if low + gap * share == claimed:
            yield low, low + gap
