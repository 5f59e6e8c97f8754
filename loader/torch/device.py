# mypy: allow-untyped-calls
"""Batches on a device, each copied there while the one before is in use."""

import copy
import os
from collections.abc import Iterator, Mapping
from itertools import cycle
from typing import Final, NamedTuple, Self, Unpack

import numpy as np
import torch  # type: ignore[import-not-found, unused-ignore]
import torch.utils.data  # type: ignore[import-not-found, unused-ignore]

import loader
from loader.errors import LoaderError
from loader.feed import Padding
from loader.sampler import Indices
from loader.torch.options import (
    CHANNELS_FIRST,
    Batching,
    OfFile,
    State,
    Tensors,
    as_tensors,
    ranked_batches,
)

_N_SLOTS: Final = 2  # pinned buffers: one on its way to the device, one being filled


class _Sent(NamedTuple):
    """A batch on the device, and what belongs to it."""

    tensors: Tensors
    rows: Indices
    is_padding: Padding
    state: State


class DeviceBatches(OfFile):
    """Batches on a device, each copied there while the one before is in use.

    On a CUDA device, rows are gathered into pinned memory and travel on a stream of their own, one
    batch in advance. To any other device they are copied when they are asked for. `state_dict` is
    that of the batches handed out.

    Parameters
    ----------
    source : str, path-like or loader.Dataset
        The file.
    device : torch.device or str
        Where the tensors are to be.
    **options
        As for `loader.Batches`.

    Raises
    ------
    LoaderError
        No CUDA device where one is asked for; or as `loader.Batches`.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | loader.Dataset,
        device: "torch.device | str",
        **options: Unpack[Batching],
    ) -> None:
        self._refuse_others(options, Batching, CHANNELS_FIRST)
        self._batches = ranked_batches(source, options)
        self._device = torch.device(device)
        if self._device.type == "cuda":
            self._check_cuda()
        self._copies: torch.cuda.Stream | None = None
        self._iteration: object = None  # the one that may hand out batches
        self._n_loads = 0
        self._state: State = self._batches.state_dict()
        self._indices, self._is_padding = self._batches.indices, self._batches.is_padding

    def __copy__(self) -> Self:
        """Return a copy that iterates on its own."""
        return copy.deepcopy(self)

    def __len__(self) -> int:
        """Return the number of batches in an epoch, on this rank."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Tensors]:
        """Hand out what is left of this epoch: images and masks, (samples, 1, rows, columns).

        Raises
        ------
        LoaderError
            In an iteration that another one has followed.
        """
        self._batches.load_state_dict(self.state_dict())  # forgets a batch in flight
        self._iteration = iteration = object()
        batches = self._pinned() if self._device.type == "cuda" else self._plain()
        return self._handed_out(batches, iteration)

    def __enter__(self) -> Self:
        """Return the object itself, to be closed where the `with` statement ends."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """End the prefetch thread, if there is one; see `loader.Batches.close`."""
        self._batches.close()

    @property
    def epochs_completed(self) -> int:
        """Epochs whose last batch has been handed out."""
        return int(self._state["epoch"] or 0)

    @property
    def indices(self) -> Indices:
        """Rows of the file in the batch just handed out; int64, shape (n,)."""
        return self._indices

    @property
    def is_padding(self) -> Padding:
        """Which samples of that batch repeat others to fill it; bool, shape (n,)."""
        return self._is_padding

    def state_dict(self) -> State:
        """Return the position and what it belongs to, as plain JSON."""
        if self._state["batch"]:
            return dict(self._state)
        return self._state | {"world_size": self._batches.feed.order.plan.world_size}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Go on from a position that `state_dict` returned; see `loader.Batches`."""
        self._batches.load_state_dict(state)
        self._state = self._batches.state_dict()
        self._n_loads += 1

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch; see `loader.Batches.set_epoch`."""
        self._batches.set_epoch(epoch)
        self._state = self._batches.state_dict()
        self._n_loads += 1

    def _check_cuda(self) -> None:
        n_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if n_devices <= (self._device.index or 0):
            raise LoaderError(
                f"Batches not made: {self._batches.dataset.path}: no CUDA device {self._device} "
                f"(torch {torch.__version__} finds {n_devices}). Use another device, such as "
                "'cpu'; or look at what nvidia-smi and torch.version.cuda say."
            )

    def _handed_out(self, batches: Iterator[_Sent], iteration: object) -> Iterator[Tensors]:
        while self._iteration is iteration:
            sent = next(batches, None)
            if sent is None:
                return
            tensors, self._indices, self._is_padding, self._state = sent
            yield tensors
        raise LoaderError(
            f"Batch not handed out: {self._batches.dataset.path}: another iteration over these "
            "batches has begun. Iterate them once at a time."
        )

    def _plain(self) -> Iterator[_Sent]:
        for arrays in self._batches:
            images, masks = as_tensors(arrays)
            yield self._sent((images.to(self._device), masks.to(self._device)))

    def _sent(self, tensors: Tensors) -> _Sent:
        batches = self._batches
        return _Sent(tensors, batches.indices, batches.is_padding, batches.state_dict())

    def _pinned(self) -> Iterator[_Sent]:
        # One for all epochs: freed memory is used again only on the stream that it was taken on.
        copies = self._copies = self._copies or torch.cuda.Stream(self._device)
        all_sent = self._send(copies)
        coming, n_loads = next(all_sent, None), self._n_loads
        while coming is not None:
            (sent, has_arrived), coming = coming, next(all_sent, None)
            stream = torch.cuda.current_stream(copies.device)
            stream.wait_event(has_arrived)
            for tensor in sent.tensors:
                tensor.record_stream(stream)  # its memory was taken on the stream of the copies
            yield sent
            if n_loads != self._n_loads:  # the one in flight is not what comes after this state
                coming, n_loads = next(all_sent, None), self._n_loads

    def _send(self, copies: "torch.cuda.Stream") -> "Iterator[tuple[_Sent, torch.cuda.Event]]":
        """Start the copy of batch after batch to the device."""
        batches, epoch = self._batches, self._batches.epochs_completed
        slots = [(*self._pinned_memory(), torch.cuda.Event()) for _ in range(_N_SLOTS)]
        for images, masks, has_arrived in cycle(slots):
            if batches.epochs_completed != epoch:
                return
            has_arrived.synchronize()  # the copy that used these buffers before
            gathered, _ = batches.next_batch(out=(images.numpy(), masks.numpy()))
            with torch.cuda.stream(copies):
                tensors = (
                    images[: len(gathered)].to(copies.device, non_blocking=True),
                    masks[: len(gathered)].to(copies.device, non_blocking=True),
                )
                has_arrived.record(copies)
            yield self._sent(tensors), has_arrived

    def _pinned_memory(self) -> Tensors:
        batches = self._batches
        rows, columns = batches.dataset.images.shape[1:]
        shape = (batches.feed.batch_size, 1, rows, columns)
        images = torch.from_numpy(np.empty(shape, batches.feed.image_dtype))
        return images.pin_memory(), torch.empty(shape, dtype=torch.uint8).pin_memory()
