# mypy: allow-untyped-calls
"""Stored values → what the options say, on the device that they are on."""

import math
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import torch  # type: ignore[import-not-found, unused-ignore]

from loader.augment.parameters import Parameters, draw_parameters
from loader.channels import MaskChannels
from loader.dataset import Dataset
from loader.feed import Drawn, Feed
from loader.normalise import CLIPPED, shifts_and_factors
from loader.sampler import Indices
from loader.torch.augment import augment_batch
from loader.torch.on_device import Made
from loader.torch.options import Tensors
from loader.torch.patches import cut, framed

_UNSIGNED: Final = np.dtype(np.uint16)
_SIGNED: Final = {np.dtype(np.uint16): np.int16, np.dtype(np.uint32): np.int32}

# What is sent or made together: small batches cost the device and Python as much as large ones.
_MOST_SAMPLES: Final = 256
_MOST_BYTES: Final = 1 << 26
# Pixels of padding around an image, enough for interpolation; beyond them the same goes on.
_FRAME: Final = 3


class Scale(NamedTuple):
    """What normalisation takes from each image, and multiplies by; shape (n,) each."""

    shifts: "torch.Tensor"  # float64
    factors: "torch.Tensor"  # float32


class Places(NamedTuple):
    """Where patches are in whole images, and the value around each image where they are padded."""

    corners: "torch.Tensor"  # int64, shape (n, 2)
    padding: "torch.Tensor | None"  # of the type of stored images, shape (n,)

    def to(self, device: "torch.device") -> "Places":
        """Return it on a device, where it arrives before what is asked of the device next."""
        padding = None if self.padding is None else sent(self.padding, device)
        return Places(sent(self.corners, device), padding)

    def part(self, samples: slice) -> "Places":
        """Return those of some samples."""
        padding = None if self.padding is None else self.padding[samples]
        return Places(self.corners[samples], padding)


class Transform:
    """Normalises and augments batches of stored values; the numbers are those of the host.

    Parameters
    ----------
    feed : Feed
        Its form says what images are, its order has the seed.
    compiled : bool
        Fuse the operations of augmentation with torch.compile.
    """

    def __init__(self, feed: Feed, *, compiled: bool) -> None:
        self._dataset = feed.dataset
        self._form = feed.form
        self._shape = feed.shape
        self._seed = feed.order.seed
        self._compiled = compiled
        self._windows = feed.windows
        self._n_usual = feed.batch_size * batches_together(feed)
        self._stored = feed.dataset.images.dtype
        self._words = feed.dataset.masks.dtype
        channels = feed.form.mask_channels
        self._unpacker = None if channels is None else _Unpacker(feed.dataset, channels)

    @property
    def is_plain(self) -> bool:
        """Whether images are handed out as stored."""
        return not self._form.is_float32 and self._form.normalize is None

    def scale_of(self, rows: Indices) -> Scale | None:
        """Return what normalisation needs of some rows; None where there is none.

        Raises
        ------
        LoaderError
            The statistics of a row are not numbers.
        """
        if self._form.normalize is None:
            return None
        shifts, factors = shifts_and_factors(self._dataset, self._form.normalize, rows)
        return Scale(torch.from_numpy(shifts), torch.from_numpy(factors))

    def parameters_of(self, rows: Indices, epoch: int, copies: Indices) -> Parameters | None:
        """Return what augmentation does to some rows; None where there is none."""
        if self._form.augment is None:
            return None
        shape = self._shape
        return draw_parameters(
            self._form.augment, shape, seed=self._seed, epoch=epoch, rows=rows, copies=copies
        )

    def places_of(self, rows: Indices, epoch: int, copies: Indices) -> Places | None:
        """Return where the patches of some rows are; None where images are handed out whole."""
        if self._windows is None:
            return None
        corners = torch.from_numpy(self._windows.corners(rows, epoch, copies))
        if self._form.patches is None or not self._form.patches.pad:
            return Places(corners, None)
        minima = self._dataset.manifest["minimum"][rows].astype(self._stored)
        return Places(corners, bits_of(minima))

    def cut(
        self,
        images: "torch.Tensor",
        masks: "torch.Tensor",
        places: Places,
        rows: "torch.Tensor | None" = None,
    ) -> Tensors:
        """Return the patches of whole images, or of some of them, as stored."""
        padding = places.padding
        around = None if padding is None else torch.zeros_like(padding, dtype=masks.dtype)
        return (
            cut(images, places.corners, self._shape, padding, rows),
            cut(masks, places.corners, self._shape, around, rows),
        )

    def __call__(
        self,
        images: "torch.Tensor",
        masks: "torch.Tensor",
        scale: Scale | None,
        parameters: Parameters | None,
        places: Places | None = None,
        *,
        is_usual: bool = True,
    ) -> Tensors:
        """Return the batch, (n, 1, rows, columns); masks with channels (n, structures, ...).

        Parameters
        ----------
        images, masks : tensors, shape (n, rows, columns)
            As stored, as `bits_of` has them.
        places : Places, optional
            Of patches that are augmented out of these images, because they are resampled.
        is_usual : bool
            Whether most calls have as many samples: what is compiled is so for one shape.
        """
        corners = None if places is None else places.corners
        if places is not None and places.padding is not None:
            images = framed(images, places.padding, _FRAME)
            masks = framed(masks, torch.zeros_like(places.padding, dtype=masks.dtype), _FRAME)
            corners = places.corners + _FRAME
        if not self.is_plain:
            images = self._scaled(self._values(images), scale)
        elif self._stored == _UNSIGNED:
            images = images.view(torch.uint16)
        if parameters is not None:
            images, masks = augment_batch(
                images,
                masks,
                parameters,
                corners=corners,
                compiled=self._compiled and is_usual,
            )
        if self._unpacker is not None:
            return images[:, None], self._unpacker(masks)
        if self._words in _SIGNED:
            masks = masks.view(getattr(torch, self._words.name))
        return images[:, None], masks[:, None]

    def batches(
        self,
        draws: Sequence[Drawn],
        images: "torch.Tensor",
        masks: "torch.Tensor",
        scale: Scale | None,
        parameters: Parameters | None,
        places: Places | None = None,
    ) -> Iterator[Made]:
        """Yield batches whose stored values lie one after the other, changed all at once."""
        is_usual = len(images) == self._n_usual
        made = self(images, masks, scale, parameters, places, is_usual=is_usual)
        first = 0
        for drawn in draws:
            taken = slice(first, first + len(drawn.rows))
            first = taken.stop
            yield Made(drawn, (made[0][taken], made[1][taken]))

    def _values(self, images: "torch.Tensor") -> "torch.Tensor":
        return images.to(torch.int32) & 0xFFFF if self._stored == _UNSIGNED else images

    def _scaled(self, images: "torch.Tensor", scale: Scale | None) -> "torch.Tensor":
        if scale is None:
            return images.to(torch.float32)
        shifts, factors = (one[:, None, None] for one in scale)
        # As the host: in float32 of 16-bit values, which it holds exactly, in float64 of others.
        if self._stored.itemsize == 2:  # noqa: PLR2004 bytes
            images = images.to(torch.float32) - shifts.to(torch.float32)
        else:
            images = (images.to(torch.float64) - shifts).to(torch.float32)
        images = images * factors
        return images.clamp(0, 1) if self._form.normalize in CLIPPED else images


class _Unpacker:
    """Masks → a channel of each structure, on the device that they are on."""

    def __init__(self, dataset: Dataset, dtype: MaskChannels) -> None:
        ordered, word = dataset.channels, dataset.masks.dtype
        self._has_bits = dataset.has_bits
        values = [one.code if one.bit is None else 1 << one.bit for one in ordered]
        self._values = bits_of(np.array(values, word))[:, None, None]
        self._dtype: torch.dtype = getattr(torch, dtype)

    def __call__(self, masks: "torch.Tensor") -> "torch.Tensor":
        """Return masks, (n, rows, columns) as `bits_of` has them, as (n, structures, ...)."""
        if self._values.device != masks.device:
            self._values = self._values.to(masks.device)
        masks = masks[:, None]
        is_in = masks & self._values != 0 if self._has_bits else masks == self._values
        return is_in.to(self._dtype)


def batches_together(feed: Feed) -> int:
    """Return how many batches of a feed are sent or made together."""
    dataset, channels = feed.dataset, feed.form.mask_channels
    n_bytes = batch_bytes(feed)
    if channels is not None:
        rows, columns = feed.stored_shape
        sizes = rows, columns, np.dtype(channels).itemsize
        n_bytes += feed.batch_size * len(dataset.structures) * math.prod(sizes)
    return int(max(1, min(_MOST_SAMPLES // feed.batch_size, _MOST_BYTES // max(1, n_bytes))))


def batch_bytes(feed: Feed) -> int:
    """Return how many bytes a batch has as stored."""
    (rows, columns), dataset = feed.stored_shape, feed.dataset
    n_pixels = feed.batch_size * rows * columns
    return n_pixels * (dataset.images.itemsize + dataset.masks.itemsize)


def sent(tensor: "torch.Tensor", device: "torch.device") -> "torch.Tensor":
    """Return a small tensor on a device, on the current stream, without waiting for it."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type == "cuda")


def bits_of(stored: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]") -> "torch.Tensor":
    """Return stored values as a tensor that shares their memory; uint16 as int16, uint32 as int32.

    Few operations of torch know unsigned numbers of 16 and 32 bits.
    """
    return torch.from_numpy(stored.view(_SIGNED.get(stored.dtype, stored.dtype)))
