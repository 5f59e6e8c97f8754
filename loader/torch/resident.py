# mypy: allow-untyped-calls
"""Batches of rows that are all on the device."""

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Final, Unpack

import numpy as np
import torch  # type: ignore[import-not-found, unused-ignore]

import loader
from loader.augment.parameters import Parameters
from loader.errors import LoaderError
from loader.feed import Drawn, Feed, Position
from loader.torch.device import DeviceBatches
from loader.torch.on_device import Made, Maker, numbered
from loader.torch.options import Batching
from loader.torch.transform import Places, Scale, Transform, batches_together, bits_of, sent

_CHUNK_ROWS: Final = 512  # copied to the device at a time
_BLOCK_SAMPLES: Final = 4096  # whose places and parameters are drawn together
_SHARE_OF_MEMORY: Final = 0.9  # of what is free
_GB: Final = 1e9


class ResidentBatches(DeviceBatches):
    """Batches of rows that are all on the device: the fastest, where they fit.

    The selected rows are copied there as they are stored, at the first iteration, and batches are
    gathered, normalised and augmented there. Order, epochs, states and options are those of
    `loader.Batches`. Each rank holds all selected rows: its share is another one in each epoch.

    Parameters
    ----------
    source : str, path-like or loader.Dataset
        The file.
    device : torch.device or str
        Where the rows are to be.
    fallback : bool
        Where they do not fit, send batch after batch as `DeviceBatches` does, instead of an error.
    **options
        As for `DeviceBatches`, but for `transform` and `neighbours`, which the host makes.

    Raises
    ------
    TypeError
        A `transform`, or `neighbours`.
    LoaderError
        No such device; or at the first iteration, the rows do not fit its memory.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | loader.Dataset,
        device: "torch.device | str",
        *,
        fallback: bool = False,
        gather_threads: int | None = None,
        compiled: bool = False,
        **options: Unpack[Batching],
    ) -> None:
        for name in ("transform", "neighbours"):
            if options.get(name) is not None:
                raise TypeError(
                    f"loader.torch.ResidentBatches: {name}: the host makes it, and these rows are "
                    "on the device. Use DeviceBatches or IterableDataset."
                )
        super().__init__(
            source, device, gather_threads=gather_threads, compiled=compiled, **options
        )
        self._fallback = fallback

    @property
    def n_bytes(self) -> int:
        """Memory that the selected rows take on the device."""
        return self._batches.feed.n_samples * self.dataset.sample_bytes

    def _make_maker(self) -> Maker:
        free = _free_bytes(self._device)
        if free is not None and self.n_bytes > _SHARE_OF_MEMORY * free:
            if self._fallback:
                return super()._make_maker()
            raise LoaderError(
                f"Batches not made: {self.dataset.path}: {self._batches.feed.n_samples} rows take "
                f"{_size(self.n_bytes)}, and {self._device} has {_size(free)} free. "
                "Choose fewer rows, or give fallback=True or use DeviceBatches, which send batch "
                "after batch."
            )
        return _Resident(self._batches.feed, numbered(self._device), compiled=self._compiled)


def _size(n_bytes: float) -> str:
    return f"{n_bytes / _GB:.1f} GB" if n_bytes > _GB else f"{n_bytes / 1e6:.1f} MB"


def _free_bytes(device: "torch.device") -> int | None:
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    # torch keeps memory that tensors no longer need, and takes it first.
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(free + kept)


class _Resident:
    """Batches out of tensors that hold all selected rows."""

    def __init__(self, feed: Feed, device: "torch.device", *, compiled: bool) -> None:
        self._feed = feed
        self._device = device
        self._transform = Transform(feed, compiled=compiled)
        self._rows = feed.rows(np.arange(feed.n_samples))
        self._images, self._masks = self._loaded()
        self._takes_whole = feed.form.takes_whole
        scale = self._transform.scale_of(self._rows)
        self._scale = None if scale is None else Scale(*(one.to(device) for one in scale))

    def close(self) -> None:
        """Do nothing: nothing runs."""

    def _loaded(self) -> "tuple[torch.Tensor, torch.Tensor]":
        dataset, n = self._feed.dataset, len(self._rows)
        shape = (n, *dataset.images.shape[1:])
        images, masks = (
            torch.empty(shape, dtype=bits_of(np.empty(0, kind)).dtype, device=self._device)
            for kind in (dataset.images.dtype, dataset.masks.dtype)
        )
        for first in range(0, n, _CHUNK_ROWS):
            rows = self._rows[first : first + _CHUNK_ROWS]
            dataset.file.check_length()
            arrays = dataset.images[rows], dataset.masks[rows]
            dataset.check_whole()
            stretch = slice(first, first + len(arrays[0]))
            images[stretch] = bits_of(arrays[0]).to(self._device)
            masks[stretch] = bits_of(arrays[1]).to(self._device)
        return images, masks

    def made(self, position: Position) -> Iterator[Made]:
        """Yield batch after batch to the end of the epoch."""
        order = self._feed.order
        plan, (epoch, begin) = order.plan, position
        n_together = batches_together(self._feed)
        per_block = n_together * max(1, _BLOCK_SAMPLES // (n_together * plan.batch_size))
        for first in range(begin, plan.n_batches, per_block):
            batches = range(first, min(first + per_block, plan.n_batches))
            rows, is_padding = order.rows(epoch, batches)
            copies = order.copies(batches)
            which = sent(torch.from_numpy(np.searchsorted(self._rows, rows)), self._device)
            parameters = self._transform.parameters_of(rows, epoch, copies)
            places = self._transform.places_of(rows, epoch, copies)
            places = places and places.to(self._device)
            draws = []
            for batch in batches:
                start = (batch - first) * plan.batch_size
                taken = slice(start, start + plan.batch_size)
                after = (epoch, batch + 1) if batch + 1 < plan.n_batches else (epoch + 1, 0)
                draws.append(Drawn(rows[taken], is_padding[taken], after, epoch, copies[taken]))
            for start in range(0, len(draws), n_together):
                group = draws[start : start + n_together]
                stretch = slice(start * plan.batch_size, (start + n_together) * plan.batch_size)
                some = parameters and replace(parameters, table=parameters.table[stretch])
                there = places and places.part(stretch)
                yield from self._group(group, which[stretch], some, there)

    def _group(
        self,
        draws: list[Drawn],
        which: "torch.Tensor",
        parameters: Parameters | None,
        places: Places | None,
    ) -> Iterator[Made]:
        """Yield batches of some of the rows on the device."""
        if places is not None and not self._takes_whole:
            images, masks = self._transform.cut(self._images, self._masks, places, which)
            places = None
        else:
            images, masks = (one.index_select(0, which) for one in (self._images, self._masks))
        scale = self._scale and Scale(*(one[which] for one in self._scale))
        yield from self._transform.batches(draws, images, masks, scale, parameters, places)
