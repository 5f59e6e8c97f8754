"""Augmentation of NumPy arrays: OpenCV where pixels are resampled, NumPy for all else."""

from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias, TypeVar, cast

import numpy as np
import numpy.typing as npt

from loader.augment.parameters import (
    N_NORMALS,
    Parameters,
    Shape,
    before_turns,
    kept_pixels,
    normals,
    power_basis,
    spline_basis,
)
from loader.errors import LoaderError
from loader.normalise import Floats
from loader.sampler import Indices, Table

if TYPE_CHECKING:
    import types

Region: TypeAlias = tuple[tuple[int, int], tuple[int, int]]  # first row and column; how many
_Value = TypeVar("_Value", bound=np.generic)

_MASK_TYPES: Final = ("uint8", "uint16", "uint32", "int16", "int32")
_OF_VALUES: Final = ("gamma", "contrast", "brightness", "noise")
_STRIP: Final = 64  # rows that are transposed at a time, so that they stay in the nearest cache
_CHANNEL_STEP: Final = 648055  # numbers from the noise of one channel to that of the next
_BAND: Final = 2**16  # pixels that are resampled at a time, so that their sources stay in the cache
_REACH: Final = 3  # pixels around a place that interpolation may take, and one for rounding


def augment_batch(
    images: Floats, masks: npt.NDArray[np.integer], parameters: Parameters
) -> tuple[Floats, npt.NDArray[np.integer]]:
    """Return augmented copies of a batch.

    Parameters
    ----------
    images : float32 array, shape (n, rows, columns)
    masks : uint8, uint16, uint32, int16 or int32 array, shape (n, rows, columns)
    parameters : Parameters
        Of as many samples.

    Raises
    ------
    TypeError, ValueError
        Another type or shape.
    LoaderError
        OpenCV is needed and not installed.
    """
    expected = (len(parameters), *parameters.shape)
    if images.shape != expected or masks.shape != expected:
        raise ValueError(
            f"images, masks: expected {expected}, found {images.shape} and {masks.shape}."
        )
    if images.dtype != np.float32 or masks.dtype.name not in _MASK_TYPES:
        raise TypeError(
            f"images, masks: expected float32 and one of {', '.join(_MASK_TYPES)}, found "
            f"{images.dtype} and {masks.dtype}."
        )
    changed = np.empty_like(images), np.empty_like(masks)
    augmenter = SampleAugmenter(parameters)
    for i in range(len(images)):
        if augmenter.is_resampled[i]:
            augmenter.resample(i, images[i], changed[0][i])
        else:
            np.copyto(changed[0][i], augmenter.turned(i, images[i]))
        augmenter.move_mask(i, masks[i], changed[1][i])
        augmenter.shade(i, changed[0][i])
    return changed


class Windows(NamedTuple):
    """Where patches are in their images.

    Attributes
    ----------
    corners : int64 array, shape (n, 2)
        First row and column of each.
    shape : (int, int)
        Rows and columns of the images.
    is_padded : bool
        Whether images have a constant value beyond their border; otherwise the border's pixels go
        on, where a patch is resampled from beyond it.
    """

    corners: Indices
    shape: Shape
    is_padded: bool


class SampleAugmenter:
    """Changes the samples of a batch one by one, while each is in the processor's cache.

    Parameters
    ----------
    parameters : Parameters
    windows : Windows, optional
        Where the samples are, which then are patches: each is changed as an image of its own size,
        but what comes from beyond its border comes from the image.

    Attributes
    ----------
    is_resampled : list of bool
        Whether a sample needs `resample`; otherwise `turned`.
    regions : list of ((int, int), (int, int))
        Which part of the image each sample is made of: first row and column, and how many of both.
    """

    def __init__(self, parameters: Parameters, windows: Windows | None = None) -> None:
        n, self._parts = len(parameters), parameters.parts()
        self._shape = parameters.shape
        turn = self._parts.get("turn", np.zeros((n, 3))).astype(np.int64)
        self._turns = [tuple(one) for one in turn.tolist()]
        is_resampled = self._parts.get("is_resampled", np.zeros(n)) > 0
        self.is_resampled = is_resampled.tolist()
        whole = np.zeros((n, 2), np.int64)
        corners = whole if windows is None else windows.corners
        ends = corners + np.array(self._shape)
        if is_resampled.any():
            self._maps = _Maps(parameters, turn, corners)
            if windows is not None:
                reached = is_resampled[:, np.newaxis]
                corners, ends = (
                    np.where(reached, there, here)
                    for there, here in zip(self._maps.reach(windows), (corners, ends), strict=True)
                )
                self._maps.begin_at(corners)
            self._cv2 = _opencv()
            cubic = parameters.interpolation == "cubic"
            self._image_flag = self._cv2.INTER_CUBIC if cubic else self._cv2.INTER_LINEAR
        of_values = np.ones((n, 1)), np.ones((n, 1)), np.zeros((n, 1)), np.zeros((n, 3))
        columns = [
            self._parts.get(name, neutral).reshape(n, -1)
            for name, neutral in zip(_OF_VALUES, of_values, strict=True)
        ]
        self._values = np.concatenate(columns, 1).tolist()
        self.regions: list[Region] = [
            ((top, left), (bottom - top, right - left))
            for (top, left), (bottom, right) in zip(corners.tolist(), ends.tolist(), strict=True)
        ]
        self._buffer = np.empty(self._shape, np.float32)
        self._turned: npt.NDArray[np.generic] | None = None

    def turned(self, i: int, image: npt.NDArray[_Value]) -> npt.NDArray[_Value]:
        """Return sample i's image, flipped and turned: itself, or an array that is used again."""
        if not any(self._turns[i]):
            return image
        if self._turned is None:
            self._turned = np.empty(image.shape, image.dtype)
        turned = cast("npt.NDArray[_Value]", self._turned)
        copy_turned(image, turned, *self._turns[i])
        return turned

    def resample(self, i: int, image: Floats, out: Floats) -> None:
        """Write sample i's image into `out`, flips and turns included; `image` is its region."""
        self._remap(i, image, out, self._image_flag)

    def move_mask(
        self, i: int, mask: npt.NDArray[np.generic], out: npt.NDArray[np.generic]
    ) -> None:
        """Write sample i's mask into `out`, of the nearest pixels; `mask` is its region."""
        if self.is_resampled[i]:
            self._remap(i, _for_opencv(mask), _for_opencv(out), self._cv2.INTER_NEAREST)
        else:
            copy_turned(mask, out, *self._turns[i])

    def shade(self, i: int, image: Floats, channel: int = 0) -> None:
        """Change the values of sample i's image in place; noise is another in each channel."""
        gamma, contrast, brightness, deviation, start, stride = self._values[i]
        bias_field, kernel, n_kept = (
            self._parts[name][i] if name in self._parts else None
            for name in ("bias_field", "blur", "low_resolution")
        )
        has_field = bias_field is not None and bool(bias_field.any())
        lowest = image.min() if has_field or gamma != 1 else np.float32(0)
        highest = image.max() if gamma != 1 else np.float32(0)
        mean = std = np.float32(0)
        if contrast != 1 or brightness or deviation:
            mean, std = self._mean_and_std(image)
        if bias_field is not None and has_field:
            self._multiply_field(image, lowest, bias_field)
        if kernel is not None and kernel[0] != 1:
            self._blur(image, kernel)
        if n_kept is not None and tuple(n_kept) != self._shape:
            self._keep_pixels(image, n_kept)
        if gamma != 1:
            _raise_to(image, lowest, highest, np.float32(gamma))
        if contrast != 1 or brightness:
            np.multiply(image, np.float32(contrast), out=image)
            image += mean * np.float32(1 - contrast) + np.float32(brightness) * std
        if deviation:
            start += channel * _CHANNEL_STEP
            self._add_noise(image, np.float32(deviation) * std, start, stride)

    def _remap(
        self,
        i: int,
        samples: npt.NDArray[np.generic],
        out: npt.NDArray[np.generic],
        flag: int,
    ) -> None:
        border = self._cv2.BORDER_REPLICATE
        n_rows = max(1, _BAND // self._shape[1])
        for start in range(0, self._shape[0], n_rows):
            band = slice(start, start + n_rows)
            maps = self._maps.of(i, band)
            self._cv2.remap(samples, *maps, flag, dst=out[band], borderMode=border)

    def _mean_and_std(self, image: Floats) -> tuple[np.float32, np.float32]:
        mean = image.mean()
        apart = np.subtract(image, mean, out=self._buffer).reshape(-1)
        return mean, np.sqrt(np.dot(apart, apart) / np.float32(apart.size))

    def _multiply_field(self, image: Floats, lowest: np.float32, coefficients: Table) -> None:
        rows, columns = (power_basis(side).astype(np.float32) for side in self._shape)
        field = np.matmul(rows @ coefficients.astype(np.float32), columns.T, out=self._buffer)
        np.exp(field, out=field)
        image -= lowest
        image *= field
        image += lowest

    def _blur(self, image: Floats, kernel: Table) -> None:
        half = np.trim_zeros(kernel, "b").astype(np.float32)
        for axis in (0, 1):
            _convolve(image, half, axis, self._buffer)

    def _keep_pixels(self, image: Floats, n_kept: Table) -> None:
        for axis, (side, kept) in enumerate(zip(self._shape, n_kept[:, np.newaxis], strict=True)):
            low, high, share = kept_pixels(np.arange(side, dtype=np.float64), kept)
            first = image.take(low.astype(np.int64), axis)
            second = image.take(high.astype(np.int64), axis)
            second -= first
            second *= np.expand_dims(share.astype(np.float32), 1 - axis)
            np.add(first, second, out=image)

    def _add_noise(self, image: Floats, deviation: np.float32, start: float, stride: float) -> None:
        rows, columns = self._shape
        begins = (int(start) + np.arange(rows) * int(stride)) % N_NORMALS
        noise = _windows(columns)[begins]  # np.take would first copy all of them
        noise *= deviation
        image += noise


class _Maps:
    """Where each pixel of a resampled sample comes from, flips and turns included."""

    def __init__(
        self, parameters: Parameters, turn: npt.NDArray[np.int64], corners: Indices
    ) -> None:
        parts, (rows, columns) = parameters.parts(), parameters.shape
        back = before_turns(turn)
        self._affine = back @ parts["affine"]
        centre = np.array([columns - 1, rows - 1]) / 2
        self._along = np.arange(columns) - centre[0], np.arange(rows) - centre[1]
        self._centres = self._affine[:, :, 2] + centre + corners[:, ::-1]
        self.begin_at(np.zeros_like(corners))
        self._of_rows = (self._affine[:, :, 1:2] * self._along[1]).astype(np.float32)
        self._buffers = np.empty((2, min(rows, max(1, _BAND // columns)), columns), np.float32)
        if "elastic" in parts:
            moved = parts["elastic"]
            self._moved = np.einsum("nij,njkl->nikl", back, moved).astype(np.float32)
            self._is_bent = [bool(one.any()) for one in moved]
            self._bases = [spline_basis(side).astype(np.float32) for side in (rows, columns)]
        else:
            self._moved = np.zeros((len(parameters), 2, 1, 1), np.float32)
            self._is_bent = [False] * len(parameters)
        self._held: tuple[int, int, int] | None = None

    def begin_at(self, corners: Indices) -> None:
        """Count rows and columns from the first of each sample's region."""
        # As float32 only at the end: the torch backend takes the same steps.
        origins = (self._centres - corners[:, ::-1])[:, :, np.newaxis]
        columns = self._affine[:, :, :1] * self._along[0] + origins
        self._of_columns = columns.astype(np.float32)

    def reach(self, windows: Windows) -> tuple[Indices, Indices]:
        """Return the first row and column that each sample takes, and those after the last."""
        half = np.array([len(side) - 1 for side in self._along]) / 2
        extent = np.abs(self._affine[:, :, :2]) @ half
        extent += np.abs(self._moved).max(axis=(2, 3)) + _REACH  # a B-spline is within its controls
        outside = _REACH if windows.is_padded else 0  # the same value all over: a few are enough
        lowest, highest = -outside, np.array(windows.shape[::-1]) + outside
        first = np.clip(np.floor(self._centres - extent), lowest, highest - 1).astype(np.int64)
        last = np.clip(np.ceil(self._centres + extent), first, highest - 1).astype(np.int64)
        return first[:, ::-1], last[:, ::-1] + 1

    def of(self, i: int, band: slice) -> list[Floats]:
        """Return the columns and the rows that the pixels of some rows come from."""
        n_rows = len(range(*band.indices(len(self._of_rows[i, 0]))))
        maps = [buffer[:n_rows] for buffer in self._buffers]
        if self._held == (i, band.start, n_rows):
            return maps
        for axis, coordinates in enumerate(maps):
            of_columns = self._of_columns[i, axis]
            of_rows = self._of_rows[i, axis, band, np.newaxis]
            if self._is_bent[i]:
                rows, columns = self._bases
                np.matmul(rows[band] @ self._moved[i, axis], columns.T, out=coordinates)
                np.add(coordinates, of_columns, out=coordinates)
                np.add(coordinates, of_rows, out=coordinates)
            else:
                np.add(of_columns, of_rows, out=coordinates)
        self._held = i, band.start, n_rows
        return maps


def copy_turned(
    samples: npt.NDArray[np.generic],
    out: npt.NDArray[np.generic],
    flips_rows: int,
    flips_columns: int,
    n_turns: int,
) -> None:
    """Copy an image, flipped and then turned anticlockwise, without changing a value."""
    if not (flips_rows or flips_columns or n_turns):
        np.copyto(out, samples)
        return
    cv2 = _opencv_if_there()
    if cv2 is not None and samples.dtype == out.dtype:  # five times as fast
        samples, out = _for_opencv(samples), _for_opencv(out)
        # A quarter turn is a transposition, then a flip; one before it flips the other axis after.
        is_odd = n_turns % 2 == 1
        after = (flips_columns, flips_rows) if is_odd else (flips_rows, flips_columns)
        rows, columns = after[0] ^ (n_turns in {1, 2}), after[1] ^ (n_turns in {2, 3})
        if is_odd:
            samples = cv2.transpose(samples, dst=out)
        if rows or columns:
            cv2.flip(samples, {(1, 0): 0, (0, 1): 1, (1, 1): -1}[rows, columns], dst=out)
        elif not is_odd:
            np.copyto(out, samples)
        return
    turned = samples[:: -1 if flips_rows else 1, :: -1 if flips_columns else 1]
    turned = np.rot90(turned, n_turns)
    if n_turns % 2 == 0:
        np.copyto(out, turned)
        return
    for start in range(0, len(out), _STRIP):
        strip = slice(start, start + _STRIP)
        out[:, strip] = turned[:, strip]


def _raise_to(image: Floats, lowest: np.float32, highest: np.float32, gamma: np.float32) -> None:
    extent = highest - lowest
    image -= lowest
    image *= np.float32(1) / extent if extent > 0 else np.float32(1)
    # By logarithms it takes a third of np.power's time; blurring may end a rounding below 0.
    np.maximum(image, np.finfo(np.float32).tiny, out=image)
    np.log(image, out=image)
    image *= gamma
    np.exp(image, out=image)
    image *= extent
    image += lowest


def _convolve(image: Floats, half: Floats, axis: int, buffer: Floats) -> None:
    """Convolve with a symmetric kernel along an axis, in place; the border's pixels go on."""
    radius = len(half) - 1
    padded = np.pad(image, [(radius, radius) if axis == a else (0, 0) for a in (0, 1)], "edge")
    side = image.shape[axis]

    def shifted(by: int) -> Floats:
        part = slice(radius + by, radius + by + side)
        return padded[part] if axis == 0 else padded[:, part]

    np.multiply(image, half[0], out=image)
    for distance in range(1, radius + 1):
        np.add(shifted(-distance), shifted(distance), out=buffer)
        np.multiply(buffer, half[distance], out=buffer)
        np.add(image, buffer, out=image)


@lru_cache(4)
def _windows(columns: int) -> Floats:
    """Return, as a view, the numbers that a row of noise has from each start on."""
    table = normals()
    endless = np.concatenate([table, table[:columns]])
    return np.lib.stride_tricks.sliding_window_view(endless, columns)


def _for_opencv(samples: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Return samples as a type of as many bits that version 4 of OpenCV knows: not uint32."""
    return samples.view(np.int32) if samples.dtype == np.uint32 else samples


@lru_cache(1)
def _opencv_if_there() -> "types.ModuleType | None":
    try:
        import cv2
    except ImportError:
        return None
    return cv2


def _opencv() -> "types.ModuleType":
    cv2 = _opencv_if_there()
    if cv2 is None:
        raise LoaderError(
            "Batch not augmented: rotate, scale, shift, shear and elastic need OpenCV (expected "
            "cv2, found none). Install it: pip install 'dicom-etl[augment]'; or leave them out, or "
            "augment on a device."
        )
    return cv2
