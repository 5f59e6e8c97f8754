# mypy: allow-untyped-calls
"""Batches on a device, each gathered and copied there while the ones before are in use."""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import cycle, islice
from typing import Final, NamedTuple, Unpack

import numpy as np
import torch  # type: ignore[import-not-found, unused-ignore]

import loader
from loader.arguments import whole
from loader.feed import Arrays, Drawn, Feed, Position, Stream, join
from loader.prefetch import Prefetcher
from loader.torch.on_device import Made, Maker, OnDevice, numbered
from loader.torch.options import Batching, Tensors, as_tensors
from loader.torch.transform import Scale, Transform, batch_bytes, batches_together, bits_of

_MOST_THREADS: Final = 8
_BYTES_A_THREAD: Final = 1 << 20  # to gather less costs more to hand over than to do


class DeviceBatches(OnDevice):
    """Batches on a device, each gathered and copied there while the ones before are in use.

    To a CUDA device, rows travel as they are stored, from pinned memory that several threads fill,
    on a stream of their own; they are normalised and augmented there. With `transform` or
    `neighbours`, and on any other device, the host makes them as `loader.Batches` does.
    `state_dict` is that of the batches handed out.

    Parameters
    ----------
    source : str, path-like or loader.Dataset
        The file.
    device : torch.device or str
        Where the tensors are to be.
    gather_threads : int, optional
        Threads that copy rows into pinned memory. None: as the cores and the size of a batch allow.
    compiled : bool
        Fuse the operations of augmentation with torch.compile, anew for each shape of a batch.
    **options
        As for `loader.Batches`; `prefetch` is the number of batches gathered in advance, at least
        one.

    Raises
    ------
    LoaderError
        No CUDA device where one is asked for; or as `loader.Batches`.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | loader.Dataset,
        device: "torch.device | str",
        *,
        gather_threads: int | None = None,
        compiled: bool = False,
        **options: Unpack[Batching],
    ) -> None:
        super().__init__(source, device, options)
        if gather_threads is not None:
            gather_threads = whole("gather_threads", gather_threads, 1, 1 << 10)
        self._gather_threads = gather_threads
        self._compiled = compiled

    def _make_maker(self) -> Maker:
        feed, device = self._batches.feed, numbered(self._device)
        if device.type != "cuda" or feed.form.needs_host:
            return _Plain(feed, device)
        threads = self._gather_threads or _n_threads(feed)
        return Pinned(feed, device, threads, compiled=self._compiled)


def _n_threads(feed: Feed) -> int:
    """Return how many threads fill a batch: as many as have enough of it, half of the cores."""
    n_bytes = batch_bytes(feed)
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return int(max(1, min(_MOST_THREADS, (n_cores or 1) // 2, n_bytes // _BYTES_A_THREAD)))


def grouped(draws: Iterator[Drawn], n_together: int, first: int) -> Iterator[list[Drawn]]:
    """Yield batches in groups: the first of `first`, the others of `n_together`."""
    group = list(islice(draws, first))
    while group:
        yield group
        group = list(islice(draws, n_together))


def drawn_of(stream: Stream, epoch: int) -> Iterator[Drawn]:
    """Yield the rows of batch after batch to the end of an epoch."""
    is_over = False
    while not is_over:
        drawn = stream.draw()
        is_over = drawn.after[0] != epoch
        yield drawn


class _Plain:
    """Batches as the host makes them, then moved to the device."""

    def __init__(self, feed: Feed, device: "torch.device") -> None:
        self._feed = feed
        self._device = device
        self._is_cuda = device.type == "cuda"
        self._prefetcher: Prefetcher[tuple[Drawn, Tensors]] | None = None

    def made(self, position: Position) -> Iterator[Made]:
        """Yield batch after batch to the end of the epoch."""
        todo = range(position[1], self._feed.n_batches)
        made = self._on_host(self._feed.stream(position), todo)
        # The step before runs on the GPU meanwhile; elsewhere a thread is the user's choice.
        depth = max(self._feed.prefetch, int(self._is_cuda))
        self.close()
        prefetcher = self._prefetcher = Prefetcher(made.__next__, depth) if depth else None
        try:
            if prefetcher:
                prefetcher.start()
            for _ in todo:
                drawn, tensors = prefetcher.get() if prefetcher else next(made)
                images, masks = (
                    one.to(self._device, non_blocking=self._is_cuda) for one in tensors
                )
                yield Made(drawn, (images, masks))
        finally:
            if prefetcher:
                prefetcher.close()

    def close(self) -> None:
        """End the thread, if there is one."""
        if self._prefetcher is not None:
            self._prefetcher.close()

    def _on_host(self, stream: Stream, todo: range) -> Iterator[tuple[Drawn, Tensors]]:
        for _ in todo:
            drawn, arrays = stream.make()
            images, masks = as_tensors(arrays)
            if self._is_cuda:
                images, masks = images.pin_memory(), masks.pin_memory()
            yield drawn, (images, masks)


class _Slot(NamedTuple):
    """Pinned memory for one batch, and what has to be over before it is free again."""

    images: "torch.Tensor"
    masks: "torch.Tensor"
    scale: Scale
    has_arrived: "torch.cuda.Event"
    parts: "list[Future[Arrays]]"  # that threads copy into it


class _Gathering(NamedTuple):
    """Batches that threads copy into a slot."""

    batches: list[Drawn]
    slot: _Slot

    def is_done(self) -> bool:
        return all(part.done() for part in self.slot.parts)


class Pinned:
    """Batches through pinned memory, on a stream of their own.

    Parameters
    ----------
    feed : Feed
    device : torch.device
        A CUDA device.
    n_threads : int
        That fill pinned memory.
    compiled : bool
        See `Transform`.
    """

    def __init__(
        self, feed: Feed, device: "torch.device", n_threads: int, *, compiled: bool
    ) -> None:
        self._feed = feed
        self._stored = feed.as_stored()
        self._device = device
        self._n_threads = n_threads
        self._transform = Transform(feed, compiled=compiled)
        self._n_together = batches_together(feed)
        # One for all epochs: freed memory is used again only on the stream that it was taken on.
        self._copies = torch.cuda.Stream(device)
        self._pool = ThreadPoolExecutor(n_threads, "gather")
        # For all epochs: to pin memory takes longer than to send it, the more batches the longer.
        self._slots: list[_Slot] = []

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def made(self, position: Position) -> Iterator[Made]:
        """Yield batch after batch to the end of the epoch."""
        n_ahead = max(1, -(-self._feed.prefetch // self._n_together)) + 1
        # One more than are gathered at a time, so that none is filled that is still to be sent.
        self._slots += [self._slot() for _ in range(n_ahead + 1 - len(self._slots))]
        slots = cycle(self._slots)
        stream = self._stored.stream(position)
        # The first batch alone, so that it comes soon.
        groups = grouped(drawn_of(stream, position[0]), self._n_together, first=1)
        gathering: deque[_Gathering] = deque()
        sent: deque[tuple[_Gathering, tuple[torch.Tensor, ...], torch.cuda.Event]] = deque()
        while True:
            # Those that were sent count too: with a slow training step, more and more of the epoch
            # would be on the device, and a slot would be sent again before its batch was taken.
            while len(gathering) + len(sent) < n_ahead:
                if (group := next(groups, None)) is None:
                    break
                gathering.append(self._gather(stream, group, next(slots)))
            while gathering and (not sent or gathering[0].is_done()):
                sent.append(self._send(gathering.popleft()))
            if not sent:
                return
            yield from self._arrived(*sent.popleft())

    def _gather(self, stream: Stream, batches: list[Drawn], slot: _Slot) -> _Gathering:
        """Start to copy the rows of some batches into a slot."""
        # What used these buffers before; an iteration that was left may still be filling them.
        wait(slot.parts)
        slot.has_arrived.synchronize()
        joined = join(batches)
        scale = self._transform.scale_of(joined.rows)
        if scale is not None:
            for buffer, values in zip(slot.scale, scale, strict=True):
                buffer[: len(joined.rows)] = values
        # The arrays of the file's own types: as bits_of, the buffer of uint16 is int16.
        images = slot.images.numpy().view(self._stored.image_dtype)
        masks = slot.masks.numpy().view(self._feed.dataset.masks.dtype)
        step = -(-len(joined.rows) // self._n_threads)
        slot.parts[:] = [
            self._pool.submit(
                stream.gather,
                joined.part(slice(first, first + step)),
                (images[first : first + step], masks[first : first + step]),
            )
            for first in range(0, len(joined.rows), step)
        ]
        return _Gathering(batches, slot)

    def _send(
        self, gathering: _Gathering
    ) -> "tuple[_Gathering, tuple[torch.Tensor, ...], torch.cuda.Event]":
        """Start the copy of batches to the device, once they are gathered."""
        for part in gathering.slot.parts:
            part.result()
        n, slot = sum(len(drawn.rows) for drawn in gathering.batches), gathering.slot
        has_scale = self._feed.form.normalize is not None
        buffers = (slot.images, slot.masks, *(slot.scale if has_scale else ()))
        with torch.cuda.stream(self._copies):
            tensors = tuple(one[:n].to(self._device, non_blocking=True) for one in buffers)
            slot.has_arrived.record(self._copies)
        return gathering, tensors, slot.has_arrived

    def _arrived(
        self,
        gathering: _Gathering,
        tensors: "tuple[torch.Tensor, ...]",
        has_arrived: "torch.cuda.Event",
    ) -> Iterator[Made]:
        """Yield batches that the current stream waits for."""
        current = torch.cuda.current_stream(self._copies.device)
        current.wait_event(has_arrived)
        for tensor in tensors:
            tensor.record_stream(current)  # its memory was taken on the stream of the copies
        images, masks, *scale = tensors
        draws = gathering.batches
        joined = join(draws)
        key = joined.rows, joined.epoch, joined.copies
        parameters = self._transform.parameters_of(*key)
        places = self._transform.places_of(*key) if self._feed.form.takes_whole else None
        places = places and places.to(self._device)
        found = Scale(*scale) if scale else None
        yield from self._transform.batches(draws, images, masks, found, parameters, places)

    def _slot(self) -> _Slot:
        rows, columns = self._feed.stored_shape
        n, order = self._feed.batch_size * self._n_together, self._feed.order
        if order.plan.remainder != "pad":  # a batch may be larger than all rows together
            n = min(n, self._feed.n_samples)
        images = bits_of(np.empty((n, rows, columns), self._stored.image_dtype))
        masks = bits_of(np.empty((n, rows, columns), self._feed.dataset.masks.dtype))
        return _Slot(
            images.pin_memory(),
            masks.pin_memory(),
            Scale(
                torch.empty(n, dtype=torch.float64).pin_memory(),
                torch.empty(n, dtype=torch.float32).pin_memory(),
            ),
            torch.cuda.Event(),
            [],
        )
