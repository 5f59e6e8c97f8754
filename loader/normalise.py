"""Images as float32, scaled by the statistics that the manifest holds."""

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from loader.dataset import Dataset, Images
from loader.errors import LoaderError
from loader.layout import Attribute
from loader.sampler import Indices

Normalize: TypeAlias = Literal["minmax", "zscore", "percentile", "dataset"]
Floats: TypeAlias = npt.NDArray[np.float32]
_Doubles: TypeAlias = npt.NDArray[np.float64]

# The manifest columns of what becomes 0 and 1; for "zscore", of the shift and the divisor.
_RANGES: Final[Mapping[str, tuple[str, str]]] = {
    "minmax": ("minimum", "maximum"),
    "percentile": ("p01", "p99"),
}


class Scaling(NamedTuple):
    """What `normalize` does to an image: (values - shift) * factor, as float32.

    | kind | shift | divisor | |
    | --- | --- | --- | --- |
    | "minmax" | minimum | maximum - minimum | within 0 to 1 |
    | "percentile" | p01 | p99 - p01 | clipped to 0 to 1 |
    | "zscore" | mean | std | of the image itself |
    | "dataset" | image_mean | image_std | of all rows of the file |

    The difference is taken in float32 of 16-bit values, which it holds exactly, and in float64 of
    others. The factor is 1 / divisor in float32, rounded so that the highest value does not exceed
    1; a divisor of 0, of a constant image, counts as 1.
    """

    dataset: Dataset
    kind: Normalize

    def apply(self, rows: Indices, out: Floats) -> None:
        """Write the scaled images of some rows into `out`, one row after the other."""
        images = self.dataset.images
        shifts, factors = self._shifts_and_factors(rows)
        is_clipped = self.kind == "percentile"
        is_short = images.dtype.itemsize == 2  # noqa: PLR2004 bytes
        # A row fits the processor's cache, so that it travels from and to memory once.
        for row, shift, factor, scaled in zip(rows.tolist(), shifts, factors, out, strict=True):
            if is_short:
                np.copyto(scaled, images[row], casting="same_kind")
                np.subtract(scaled, np.float32(shift), out=scaled)
            else:
                np.subtract(images[row], shift, out=scaled, dtype="f8", casting="same_kind")
            np.multiply(scaled, factor, out=scaled)
            if is_clipped:
                np.clip(scaled, 0, 1, out=scaled)

    def _shifts_and_factors(self, rows: Indices) -> tuple[_Doubles, Floats]:
        shifts, divisors = self._shifts_and_divisors(rows)
        if not np.all(np.isfinite(shifts) & np.isfinite(divisors)):
            raise LoaderError(
                f"Images not normalised: {self.dataset.path}: normalize={self.kind!r} needs "
                "statistics that are numbers, found NaN or infinity. Build the file again, or "
                "leave these rows out with where."
            )
        divisors = np.where(divisors > 0, divisors, 1).astype(np.float32)
        factors = np.reciprocal(divisors)
        is_above = divisors * factors > 1
        factors[is_above] = np.nextafter(factors[is_above], np.float32(0))
        return shifts, factors

    def _shifts_and_divisors(self, rows: Indices) -> tuple[_Doubles, _Doubles]:
        attributes, manifest = self.dataset.attributes, self.dataset.manifest
        if self.kind == "dataset":
            mean, std = (attributes[name] for name in (Attribute.IMAGE_MEAN, Attribute.IMAGE_STD))
            return np.full(len(rows), mean, np.float64), np.full(len(rows), std, np.float64)
        if self.kind == "zscore":
            return (
                manifest["mean"][rows].astype(np.float64),
                manifest["std"][rows].astype(np.float64),
            )
        low, high = (manifest[name][rows].astype(np.float64) for name in _RANGES[self.kind])
        return low, high - low


def convert(images: Images, rows: Indices, out: Floats) -> None:
    """Write the images of some rows into `out` as float32, values as they are."""
    for row, converted in zip(rows.tolist(), out, strict=True):
        np.copyto(converted, images[row], casting="same_kind")
