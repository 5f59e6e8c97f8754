# mypy: allow-subclassing-any, allow-untyped-calls
"""The batches as PyTorch takes them: data sets for its `DataLoader`, and batches on a device.

Imported only where it is asked for: ``import loader.torch``.
"""

import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import cycle
from typing import Final, NamedTuple, NotRequired, TypeAlias, TypedDict, Unpack

import numpy as np
import torch  # type: ignore[import-not-found, unused-ignore]
import torch.utils.data  # type: ignore[import-not-found, unused-ignore]
from torch import distributed  # type: ignore[import-not-found, unused-ignore]

import loader
from loader.batches import Batches, Values, check_plan
from loader.errors import LoaderError
from loader.normalise import Normalize
from loader.prefetch import Prefetcher
from loader.sampler import Remainder
from loader.selection import Balance, FoldRole, Split, Weights, Where
from loader.stream import Arrays, Order, Stream

Tensors: TypeAlias = "tuple[torch.Tensor, torch.Tensor]"

State: TypeAlias = dict[str, str | int | None]

_MAX_WORKERS: Final = 4096
_MAIN: Final = _MAX_WORKERS  # the main process's place beside those of the workers
_TAG_BITS: Final = 32
_N_SLOTS: Final = 2  # pinned buffers: one on its way to the device, one being filled


class _Place(NamedTuple):
    """A batch of an epoch, and the distance to the next one of the same worker."""

    epoch: int
    batch: int
    stride: int


class Selecting(TypedDict):
    """Options of `loader.Batches` that choose samples and say what an image is."""

    split: NotRequired[Split | None]
    fold: NotRequired[int | None]
    fold_role: NotRequired[FoldRole]
    where: NotRequired[Where | None]
    apart_from: NotRequired[Batches | None]
    allow_shared_patients: NotRequired[bool]
    dtype: NotRequired[Values | None]
    normalize: NotRequired[Normalize | None]


class Batching(Selecting):
    """Options of `loader.Batches`; but for the layout, which is NCHW, all of them.

    Without rank and world_size, they are those of `torch.distributed` where it runs.
    """

    batch_size: int
    weights: NotRequired[Weights | None]
    balance: NotRequired[Balance | None]
    seed: NotRequired[int]
    shuffle: NotRequired[bool]
    remainder: NotRequired[Remainder]
    prefetch: NotRequired[int]
    rank: NotRequired[int]
    world_size: NotRequired[int]


class IterableDataset(torch.utils.data.IterableDataset[Tensors]):
    """The batches of one epoch after the other, for ``DataLoader(dataset, batch_size=None)``.

    Each time it is iterated, an epoch begins: the first, the second, and so on. The workers of a
    DataLoader share an epoch out, so that its batches come in the same order for any number of
    them.

    After `load_state_dict`, the first epoch is what was left of the saved one. A StatefulDataLoader
    saves and restores the state inside its workers. With the workers of a plain DataLoader, the
    state is not known; without workers it is that of the batches handed out.

    Parameters
    ----------
    source : str, path-like or loader.Dataset
        The file.
    **options
        As for `loader.Batches`: batch_size, split, seed, normalize, and so on.

    Examples
    --------
    >>> dataset = IterableDataset("out.h5", batch_size=8, split="train")    # doctest: +SKIP
    >>> for images, masks in DataLoader(dataset, batch_size=None): ...      # doctest: +SKIP
    """

    def __init__(
        self, source: str | os.PathLike[str] | loader.Dataset, **options: Unpack[Batching]
    ) -> None:
        super().__init__()
        self._follows_distributed = not {"rank", "world_size"} & set(options)
        self._batches = Batches(source, layout="NCHW", **options)
        self._at = _Place(0, 0, 1)  # of the next batch that this process hands out
        self._loaded: _Place | None = None
        self._loaded_by = 0  # the process that has loaded it and not yet begun
        self._n_begun_here = 0
        # For each worker and the main process, how many epochs it has begun; see _begin.
        self._begun = torch.zeros(_MAX_WORKERS + 1, dtype=torch.int64).share_memory_()

    def __getstate__(self) -> dict[str, object]:
        """Pickle with the rank that this process has."""
        self._order()
        return self.__dict__.copy()

    def __setstate__(self, state: dict[str, object]) -> None:
        """Go on from the position of the original."""
        self.__dict__.update(state)
        if not self._begun.is_shared():
            self._begun.share_memory_()

    def __len__(self) -> int:
        """Return the number of batches in an epoch, on this rank."""
        return self._order().plan.n_batches

    def __iter__(self) -> Iterator[Tensors]:
        """Begin the next epoch: images and masks, each (samples, 1, rows, columns)."""
        worker = torch.utils.data.get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        epoch = self._begin()
        if self._loaded is not None and self._loaded.epoch == epoch:
            # A worker's own position already counts from its first batch.
            is_own = self._loaded.stride == stride > 1
            first = self._loaded.batch + (0 if is_own else first)
        self._at = _Place(epoch, first, stride)
        return self._epoch(self._at)

    def state_dict(self) -> State:
        """Return the position and what it belongs to, as plain JSON.

        Raises
        ------
        LoaderError
            Workers of a DataLoader iterate, so that their positions are not known here.
        """
        if torch.utils.data.get_worker_info() is None:
            n_begun = self._begun >> _TAG_BITS
            if n_begun[:_MAIN].max() > n_begun[_MAIN]:
                raise LoaderError(
                    "State not saved: workers of a DataLoader iterate, and how far is not known "
                    "here. Use StatefulDataLoader of torchdata, or num_workers=0 with prefetch=2."
                )
        self._order()
        epoch, batch, stride = self._at
        if stride == 1 and batch >= len(self):
            epoch, batch = epoch + 1, 0
        own = self._batches.state_dict()
        return {**own, "epoch": epoch, "batch": batch, "stride": stride}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Begin the next epoch at a position that `state_dict` returned.

        Raises
        ------
        LoaderError
            As `loader.Batches.load_state_dict`; or it was saved in a worker, and there is another
            number of workers here.
        """
        self._order()
        worker = torch.utils.data.get_worker_info()
        n_workers = worker.num_workers if worker else 1
        known = dict(state) if isinstance(state, Mapping) else {}
        stride, batch = known.pop("stride", None), known.get("batch")
        if not isinstance(stride, int) or stride not in {1, n_workers}:
            raise LoaderError(
                f"State not loaded: {self._batches.dataset.path}: stride (expected {n_workers}, "
                f"found {stride!r}). Use as many workers as when it was saved."
            )
        # A worker that has handed out its last batch stands beyond the end of the epoch.
        is_over = stride > 1 and isinstance(batch, int) and batch >= len(self)
        self._batches.load_state_dict(known | ({"batch": 0} if is_over else {}))
        epoch = self._batches.epochs_completed
        self._at = self._loaded = _Place(epoch, batch if isinstance(batch, int) else 0, stride)
        self._loaded_by = os.getpid()
        if worker is None:
            self._begun.zero_()
            self._begun[_MAIN] = epoch << _TAG_BITS

    def _order(self) -> Order:
        """Return the order, of the rank that torch.distributed gives where it runs."""
        batches = self._batches
        order = batches._order
        rank, world_size = _rank_and_world_size()
        # It does not run in a spawned worker: there the rank is the one that was pickled.
        if self._follows_distributed and world_size > 1 and _rank_of(order) != (rank, world_size):
            plan = replace(order.plan, world_size=world_size)
            check_plan(plan, batches.dataset)
            order = batches._order = replace(order, plan=plan, rank=rank)
        return order

    def _begin(self) -> int:
        """Return the number of the epoch that begins, the same in all workers of a DataLoader.

        Each process notes how many epochs it has begun in one word of shared memory, with a tag
        that all workers of one iteration have. Who finds a word with its own tag joins that epoch;
        otherwise it begins the one after all that were begun. Two that look at the same time come
        to the same number.
        """
        worker = torch.utils.data.get_worker_info()
        place, tag = _MAIN, 0
        if worker is not None:
            self._n_begun_here += 1  # a persistent worker keeps its seed
            tag = zlib.crc32(f"{worker.seed - worker.id} {self._n_begun_here}".encode()) or 1
            place = worker.id
        words: list[int] = self._begun.tolist()
        joined = [word for word in words if tag and word & (2**_TAG_BITS - 1) == tag]
        if self._loaded is not None and self._loaded_by == os.getpid():
            epoch, self._loaded_by = self._loaded.epoch, 0
            for other, word in enumerate(words):
                if word not in joined:
                    self._begun[other] = 0  # it counts on from the epoch loaded
        else:
            epoch = (joined[0] >> _TAG_BITS) - 1 if joined else max(words) >> _TAG_BITS
        self._begun[place] = (epoch + 1) << _TAG_BITS | tag
        return epoch

    def _epoch(self, start: _Place) -> Iterator[Tensors]:
        order, batches = self._order(), self._batches
        todo = range(start.batch, order.plan.n_batches, start.stride)
        if not todo:
            return
        position = start.epoch, start.batch
        stream = Stream(batches.dataset, order, batches._gatherer, position, start.stride)
        prefetcher = None
        if batches._prefetch:
            prefetcher = Prefetcher(stream.make, batches._prefetch)
        try:
            if prefetcher:
                prefetcher.start()
            for batch in todo:
                _, arrays = prefetcher.get() if prefetcher else stream.make()
                self._at = start._replace(batch=batch + start.stride)
                yield _as_tensors(arrays)
        finally:
            if prefetcher:
                prefetcher.close()


class Dataset(torch.utils.data.Dataset[Tensors]):
    """The samples of a file one by one, for a DataLoader that draws and batches them itself.

    Parameters
    ----------
    source : str, path-like or loader.Dataset
        The file.
    **options
        As for `loader.Batches`: split, fold, where, dtype, normalize, and so on.
    """

    def __init__(
        self, source: str | os.PathLike[str] | loader.Dataset, **options: Unpack[Selecting]
    ) -> None:
        super().__init__()
        self._batches = Batches(source, batch_size=1, layout="NCHW", **options)

    def __len__(self) -> int:
        """Return the number of samples."""
        return self._batches._order.selection.n_samples

    def __getitem__(self, index: int) -> Tensors:
        """Return one image and its mask, each (1, rows, columns)."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Tensors]:
        """Return some samples, gathered together; DataLoader asks so for a batch."""
        n_samples = len(self)
        samples = np.array(indices, np.int64)
        if np.any((samples < -n_samples) | (samples >= n_samples)):
            raise IndexError(f"sample out of range (there are {n_samples}): {indices}")
        batches = self._batches
        batches.dataset.check_whole()
        rows = batches._order.selection.take(samples % n_samples)
        images, masks = _as_tensors(batches._gatherer.gather(rows, None))
        return list(zip(images, masks, strict=True))


class DeviceBatches:
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
        if not {"rank", "world_size"} & set(options):
            options["rank"], options["world_size"] = _rank_and_world_size()
        self._batches = Batches(source, layout="NCHW", **options)
        self._device = torch.device(device)
        if self._device.type == "cuda" and not torch.cuda.is_available():
            raise LoaderError(
                f"Batches not made: {self._batches.dataset.path}: torch {torch.__version__} finds "
                "no CUDA device (driver, or a build of torch for CPUs?). Use device='cpu', or look "
                "at what `nvidia-smi` and torch.version.cuda say."
            )
        self._state: State = self._batches.state_dict()

    def __len__(self) -> int:
        """Return the number of batches in an epoch, on this rank."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Tensors]:
        """Hand out what is left of this epoch: images and masks, (samples, 1, rows, columns)."""
        self._batches.load_state_dict(self._state)  # forgets a batch in flight never handed out
        return self._pinned() if self._device.type == "cuda" else self._plain()

    def close(self) -> None:
        """End the prefetch thread, if there is one; see `loader.Batches.close`."""
        self._batches.close()

    def state_dict(self) -> State:
        """Return the position and what it belongs to, as plain JSON."""
        return dict(self._state)

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Go on from a position that `state_dict` returned; see `loader.Batches`."""
        self._batches.load_state_dict(state)
        self._state = self._batches.state_dict()

    def _plain(self) -> Iterator[Tensors]:
        for arrays in self._batches:
            self._state = self._batches.state_dict()
            images, masks = _as_tensors(arrays)
            yield images.to(self._device), masks.to(self._device)

    def _pinned(self) -> Iterator[Tensors]:
        sent = self._send()
        coming = next(sent, None)
        while coming is not None:
            (tensors, has_arrived, state), coming = coming, next(sent, None)
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(has_arrived)
            for tensor in tensors:
                tensor.record_stream(stream)  # its memory was taken on the stream of the copies
            self._state = state
            yield tensors

    def _send(self) -> "Iterator[tuple[Tensors, torch.cuda.Event, State]]":
        """Start the copy of batch after batch to the device."""
        batches, epoch = self._batches, self._batches.epochs_completed
        copies = torch.cuda.Stream(self._device)
        slots = [(*self._pinned_memory(), torch.cuda.Event()) for _ in range(_N_SLOTS)]
        for images, masks, has_arrived in cycle(slots):
            if batches.epochs_completed != epoch:
                return
            has_arrived.synchronize()  # the copy that used these buffers before
            gathered, _ = batches.next_batch(out=(images.numpy(), masks.numpy()))
            with torch.cuda.stream(copies):
                sent = (
                    images[: len(gathered)].to(self._device, non_blocking=True),
                    masks[: len(gathered)].to(self._device, non_blocking=True),
                )
                has_arrived.record(copies)
            yield sent, has_arrived, batches.state_dict()

    def _pinned_memory(self) -> Tensors:
        batches = self._batches
        rows, columns = batches.dataset.images.shape[1:]
        shape = (batches._order.plan.batch_size, 1, rows, columns)
        images = torch.from_numpy(np.empty(shape, batches._gatherer.image_dtype))
        return images.pin_memory(), torch.empty(shape, dtype=torch.uint8).pin_memory()


def _rank_of(order: Order) -> tuple[int, int]:
    return order.rank, order.plan.world_size


def _rank_and_world_size() -> tuple[int, int]:
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _as_tensors(arrays: Arrays) -> Tensors:
    images, masks = arrays
    return torch.from_numpy(images), torch.from_numpy(masks)
