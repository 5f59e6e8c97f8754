"""Images as float32, scaled by the statistics that the manifest holds."""

from collections.abc import Mapping
from typing import Final, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from loader.dataset import Dataset, Images
from loader.errors import LoaderError
from loader.format import Attribute
from loader.sampler import Indices

Normalize: TypeAlias = Literal["minmax", "zscore", "percentile", "dataset"]
Floats: TypeAlias = npt.NDArray[np.float32]
_Doubles: TypeAlias = npt.NDArray[np.float64]

# The manifest columns of what becomes 0 and 1.
_RANGES: Final[Mapping[str, tuple[str, str]]] = {
    "minmax": ("minimum", "maximum"),
    "percentile": ("p01", "p99"),
}


# Kinds whose values are clipped to 0 to 1; of "minmax", those of the sample's own image.
CLIPPED: Final = frozenset({"minmax", "percentile"})


class Scaler(Protocol):
    """Writes the image of the i-th row as float32."""

    def __call__(self, i: int, stored: Images, scaled: Floats, *, is_own: bool = True) -> None:
        """Write `stored` into `scaled`; it is the row's own image, or else a neighbour's."""


def scale(
    dataset: Dataset, kind: Normalize, rows: Indices, out: Floats, like: Indices | None = None
) -> None:
    """Write the images of some rows into `out`, scaled as those of rows `like`; see `scaler`."""
    like = rows if like is None else like
    write = scaler(dataset, kind, like)
    each = zip(rows.tolist(), like.tolist(), out, strict=True)
    for i, (row, own, scaled) in enumerate(each):
        write(i, dataset.images[row], scaled, is_own=row == own)


def scaler(dataset: Dataset, kind: Normalize, rows: Indices) -> Scaler:
    """Return a function of i and the image of rows[i], in any order of its pixels, and where to.

    It writes (values - shift) * factor as float32.

    | kind | shift | divisor | |
    | --- | --- | --- | --- |
    | "minmax" | minimum | maximum - minimum | clipped to 0 to 1, but for neighbours |
    | "percentile" | p01 | p99 - p01 | clipped to 0 to 1 |
    | "zscore" | mean | std | of the image itself |
    | "dataset" | image_mean | image_std | of all rows of the file |

    The difference is taken in float32 of 16-bit values, which it holds exactly, and in float64 of
    others. The factor is 1 / divisor in float32, which times the divisor is never above 1; a
    divisor of 0 or nearly so, of a constant image, counts as 1. The statistics are those without
    padding, which may be far outside of them.

    Raises
    ------
    LoaderError
        The statistics of a row are not numbers.
    """
    shifts, factors = shifts_and_factors(dataset, kind, rows)
    is_short = dataset.images.dtype.itemsize == 2  # noqa: PLR2004 bytes
    is_clipped = _is_clipped(dataset, kind, rows)

    def write(i: int, stored: Images, scaled: Floats, *, is_own: bool = True) -> None:
        # A row fits the processor's cache, so that it travels from and to memory once.
        if is_short:
            np.copyto(scaled, stored, casting="same_kind")
            np.subtract(scaled, np.float32(shifts[i]), out=scaled)
        else:
            np.subtract(stored, shifts[i], out=scaled, dtype="f8", casting="same_kind")
        np.multiply(scaled, factors[i], out=scaled)
        if is_clipped[i] and (is_own or kind != "minmax"):
            np.clip(scaled, 0, 1, out=scaled)

    return write


def _is_clipped(dataset: Dataset, kind: Normalize, rows: Indices) -> npt.NDArray[np.bool_]:
    """Return which rows have values to be clipped, which takes nearly half the time of a row."""
    stored = dataset.manifest.stored
    if kind == "minmax" and "n_padding" in stored:  # a file of version 1 may have padding too
        has_padding: npt.NDArray[np.bool_] = stored["n_padding"][rows] > 0
        return has_padding
    return np.full(len(rows), kind in CLIPPED)


def shifts_and_factors(dataset: Dataset, kind: Normalize, rows: Indices) -> tuple[_Doubles, Floats]:
    """Return what `scaler` takes from each image, and what it multiplies by.

    Returns
    -------
    shifts : float64 array, shape (n,)
    factors : float32 array, shape (n,)

    Raises
    ------
    LoaderError
        The statistics of a row are not numbers.
    """
    shifts, divisors = _shifts_and_divisors(dataset, kind, rows)
    with np.errstate(over="ignore"):  # beyond its range: infinite
        divisors = divisors.astype(np.float32)
    if not np.all(np.isfinite(shifts) & np.isfinite(divisors)):
        raise LoaderError(
            f"Images not normalised: {dataset.path}: normalize={kind!r} needs statistics that are "
            "numbers, found NaN or infinity. Build the file again, or leave these rows out with "
            "where."
        )
    divisors = np.where(divisors >= np.finfo(np.float32).tiny, divisors, np.float32(1))
    return shifts, np.reciprocal(divisors)


def _shifts_and_divisors(
    dataset: Dataset, kind: Normalize, rows: Indices
) -> tuple[_Doubles, npt.NDArray[np.floating]]:
    attributes, manifest = dataset.attributes, dataset.manifest
    if kind == "dataset":
        mean, std = (attributes[name] for name in (Attribute.IMAGE_MEAN, Attribute.IMAGE_STD))
        return np.full(len(rows), mean, np.float64), np.full(len(rows), std, np.float64)
    if kind == "zscore":
        mean, std = (manifest[name][rows].astype(np.float64) for name in ("mean", "std"))
        return mean, std
    low, high = (manifest[name][rows].astype(np.float64) for name in _RANGES[kind])
    return low, high - low


def convert(images: Images, rows: Indices, out: Floats) -> None:
    """Write the images of some rows into `out` as float32, values as they are."""
    for row, converted in zip(rows.tolist(), out, strict=True):
        np.copyto(converted, images[row], casting="same_kind")
