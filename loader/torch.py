# mypy: allow-subclassing-any, allow-untyped-calls
"""The batches as PyTorch takes them: data sets for its `DataLoader`, and batches on a device.

Imported only where it is asked for: ``import loader.torch``.
"""

import multiprocessing
import operator
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
from loader.stream import Arrays, Order, Position, Stream

Tensors: TypeAlias = "tuple[torch.Tensor, torch.Tensor]"

State: TypeAlias = dict[str, str | int | None]

# So few that torch does all with their words in one thread: its other threads survive no fork.
_MAX_WORKERS: Final = 1024
_MAIN: Final = _MAX_WORKERS  # the main process's place beside those of the workers
_LOADED: Final = slice(_MAIN + 1, _MAIN + 3)  # epoch and batch that were loaded
_N_WORDS: Final = _MAIN + 3
_TAG_BITS: Final = 32
_N_SLOTS: Final = 2  # pinned buffers: one on its way to the device, one being filled


class _Place(NamedTuple):
    """A batch of an epoch, and the distance to the next one of the same worker."""

    epoch: int
    batch: int
    stride: int


class _Counters:
    """How many epochs the workers of one process's DataLoaders have begun, and the process itself.

    Shared memory, so that workers agree: a word for each place, the number of epochs begun by it
    and a tag, and two words for the position that was loaded.

    Attributes
    ----------
    pid : int
        The process.
    words : int64 tensor
    """

    def __init__(self, before: "_Counters | None" = None) -> None:
        self.pid = os.getpid()
        self.words = torch.zeros(_N_WORDS, dtype=torch.int64).share_memory_()
        if before is not None:
            self.words[_MAIN] = before.n_begun << _TAG_BITS
            self.words[_LOADED] = before.words[_LOADED]

    @property
    def n_begun(self) -> int:
        """Epochs begun by anyone."""
        return int(self.words[: _MAIN + 1].max()) >> _TAG_BITS

    @property
    def loaded(self) -> Position:
        """The position that was loaded; at first the beginning."""
        epoch, batch = self.words[_LOADED].tolist()
        return epoch, batch

    def load(self, position: Position) -> None:
        """Begin the next epoch at a position."""
        self.words.zero_()
        self.words[_LOADED] = torch.tensor(position)
        self.words[_MAIN] = position[0] << _TAG_BITS


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
        self._loaded: _Place | None = None  # in a worker that has not yet begun there
        self._n_begun_here = 0
        self._counters = _Counters()  # of this process, whose workers count in them
        self._counters_before: _Counters | None = None  # of the process that this came from

    def __getstate__(self) -> dict[str, object]:
        """Pickle with the rank that this process has."""
        self._order()
        return self.__dict__ | {"_counters_before": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Go on from the position of the original."""
        self.__dict__.update(state)
        # This may be a worker, which counts where its parent does; or a process with workers.
        self._counters_before, self._counters = self._counters, _Counters(self._counters)

    def __len__(self) -> int:
        """Return the number of batches in an epoch, on this rank."""
        return self._order().plan.n_batches

    def __iter__(self) -> Iterator[Tensors]:
        """Begin the next epoch: images and masks, each (samples, 1, rows, columns)."""
        worker = torch.utils.data.get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        counters, loaded = self._counters_here(), self._loaded
        epoch, self._loaded = self._begin(counters), None
        if loaded is not None:
            # A worker's own position already counts from its first batch.
            first = loaded.batch + (0 if loaded.stride == stride > 1 else first)
        elif counters.loaded[0] == epoch:
            first += counters.loaded[1]
        self._at = _Place(epoch, first, stride)
        return self._epoch(self._at)

    def state_dict(self) -> State:
        """Return the position and what it belongs to, as plain JSON.

        Raises
        ------
        LoaderError
            Workers of a DataLoader iterate, so that their positions are not known here.
        """
        self._order()
        if torch.utils.data.get_worker_info() is None:
            counters = self._counters
            if counters.n_begun > int(counters.words[_MAIN]) >> _TAG_BITS:
                raise LoaderError(
                    "State not saved: workers of a DataLoader iterate, and how far is not known "
                    "here. Use StatefulDataLoader of torchdata, or num_workers=0 with prefetch=2."
                )
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
        where = f"State not loaded: {self._batches.dataset.path}"
        if stride is None:
            raise LoaderError(
                f"{where}: not of an IterableDataset: it has no stride. Give what state_dict "
                "returned, of the same class."
            )
        if not isinstance(stride, int) or stride not in {1, n_workers}:
            raise LoaderError(
                f"{where}: stride (expected {n_workers}, found {stride!r}). Use as many workers "
                "as when it was saved."
            )
        # A worker that has handed out its last batch stands beyond the end of the epoch.
        is_over = stride > 1 and isinstance(batch, int) and batch >= len(self)
        self._batches.load_state_dict(known | ({"batch": 0} if is_over else {}))
        epoch = self._batches.epochs_completed
        self._at = _Place(epoch, batch if isinstance(batch, int) else 0, stride)
        if worker is None:
            self._counters.load(self._at[:2])
        else:
            self._loaded = self._at

    def _order(self) -> Order:
        """Return the order, of the rank that torch.distributed gives where it runs."""
        if torch.utils.data.get_worker_info() is None:
            self._counters_here()
        return _order_of(self._batches, follows_distributed=self._follows_distributed)

    def _counters_here(self) -> _Counters:
        """Return the counters of this process, or in a worker those of its parent.

        Not one for all copies: each of several processes, the ranks of a training say, has its own
        epochs.
        """
        if torch.utils.data.get_worker_info() is None:
            if self._counters.pid != os.getpid():  # a fork has brought the data set here
                self._counters = _Counters(self._counters)
            return self._counters
        parent = multiprocessing.parent_process()
        for counters in (self._counters, self._counters_before):
            if counters is not None and parent is not None and counters.pid == parent.pid:
                return counters
        raise LoaderError(
            f"Epoch not begun: {self._batches.dataset.path}: the data set came by a fork to the "
            "process that has made this DataLoader, which has not used it yet. Make the data set "
            "there, or call len(dataset) there first."
        )

    def _begin(self, counters: _Counters) -> int:
        """Return the number of the epoch that begins, the same in all workers of a DataLoader.

        Each process notes how many epochs it has begun in one word of shared memory, with a tag
        that all workers of one iteration have. Who finds a word with its own tag joins that epoch;
        otherwise it begins the one after all that were begun. Two that look at the same time come
        to the same number.
        """
        place, tag = self._place_and_tag()
        words: list[int] = counters.words[: _MAIN + 1].tolist()
        joined = [word for word in words if tag and word & (2**_TAG_BITS - 1) == tag]
        if self._loaded is not None:
            epoch = self._loaded.epoch
            for other, word in enumerate(words):
                if word not in joined:
                    counters.words[other] = 0  # it counts on from the epoch loaded
        else:
            epoch = (joined[0] >> _TAG_BITS) - 1 if joined else max(words) >> _TAG_BITS
        counters.words[place] = (epoch + 1) << _TAG_BITS | tag
        return epoch

    def _place_and_tag(self) -> tuple[int, int]:
        """Return this process's place among the words, and what the workers of an iteration share.

        The processes that a process starts are numbered, and the workers of an iteration are
        started one after the other. Their seed would not do: a program that seeds torch anew gives
        it to more than one iteration.
        """
        worker = torch.utils.data.get_worker_info()
        if worker is None:
            return _MAIN, 0
        if worker.num_workers > _MAX_WORKERS:
            raise LoaderError(
                f"Epoch not begun: {self._batches.dataset.path}: too many workers (expected "
                f"{_MAX_WORKERS} at most, found {worker.num_workers}). Use fewer."
            )
        self._n_begun_here += 1  # a persistent worker keeps its number
        (*_, number) = multiprocessing.current_process()._identity
        shared = f"{worker.seed - worker.id} {number - worker.id} {self._n_begun_here}"
        return worker.id, zlib.crc32(shared.encode()) or 1

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
        samples = np.array([operator.index(index) for index in indices], np.int64)
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
        self._follows_distributed = not {"rank", "world_size"} & set(options)
        self._batches = Batches(source, layout="NCHW", **options)
        self._device = torch.device(device)
        if self._device.type == "cuda":
            self._check_cuda()
        self._copies: torch.cuda.Stream | None = None
        self._iteration: object = None  # the one that may hand out batches
        self._n_loads = 0
        self._state: State = self._batches.state_dict()
        self._order()

    def __len__(self) -> int:
        """Return the number of batches in an epoch, on this rank."""
        return self._order().plan.n_batches

    def __iter__(self) -> Iterator[Tensors]:
        """Hand out what is left of this epoch: images and masks, (samples, 1, rows, columns).

        Raises
        ------
        LoaderError
            In an iteration that another one has followed.
        """
        self._order()
        self._batches.load_state_dict(self._state)  # forgets a batch in flight never handed out
        self._iteration = iteration = object()
        batches = self._pinned() if self._device.type == "cuda" else self._plain()
        return self._handed_out(batches, iteration)

    def close(self) -> None:
        """End the prefetch thread, if there is one; see `loader.Batches.close`."""
        self._batches.close()

    def state_dict(self) -> State:
        """Return the position and what it belongs to, as plain JSON."""
        self._order()
        return dict(self._state)

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Go on from a position that `state_dict` returned; see `loader.Batches`."""
        self._order()
        self._batches.load_state_dict(state)
        self._state = self._batches.state_dict()
        self._n_loads += 1

    def _order(self) -> Order:
        """Return the order, of the rank that torch.distributed gives where it runs."""
        before = self._batches._order
        order = _order_of(self._batches, follows_distributed=self._follows_distributed)
        if order is not before and not self._state["batch"]:
            self._state["world_size"] = order.plan.world_size
        return order

    def _check_cuda(self) -> None:
        n_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if n_devices <= (self._device.index or 0):
            raise LoaderError(
                f"Batches not made: {self._batches.dataset.path}: no CUDA device {self._device} "
                f"(torch {torch.__version__} finds {n_devices}). Use another device, such as "
                "'cpu'; or look at what nvidia-smi and torch.version.cuda say."
            )

    def _handed_out(
        self, batches: Iterator[tuple[Tensors, State]], iteration: object
    ) -> Iterator[Tensors]:
        while self._iteration is iteration:
            with_state = next(batches, None)
            if with_state is None:
                return
            tensors, self._state = with_state
            yield tensors
        raise LoaderError(
            f"Batch not handed out: {self._batches.dataset.path}: another iteration over these "
            "batches has begun. Iterate them once at a time."
        )

    def _plain(self) -> Iterator[tuple[Tensors, State]]:
        for arrays in self._batches:
            images, masks = _as_tensors(arrays)
            yield (images.to(self._device), masks.to(self._device)), self._batches.state_dict()

    def _pinned(self) -> Iterator[tuple[Tensors, State]]:
        # One for all epochs: freed memory is used again only on the stream that it was taken on.
        copies = self._copies = self._copies or torch.cuda.Stream(self._device)
        sent = self._send(copies)
        coming, n_loads = next(sent, None), self._n_loads
        while coming is not None:
            (tensors, has_arrived, state), coming = coming, next(sent, None)
            stream = torch.cuda.current_stream(copies.device)
            stream.wait_event(has_arrived)
            for tensor in tensors:
                tensor.record_stream(stream)  # its memory was taken on the stream of the copies
            yield tensors, state
            if n_loads != self._n_loads:  # the one in flight is not what comes after this state
                coming, n_loads = next(sent, None), self._n_loads

    def _send(
        self, copies: "torch.cuda.Stream"
    ) -> "Iterator[tuple[Tensors, torch.cuda.Event, State]]":
        """Start the copy of batch after batch to the device."""
        batches, epoch = self._batches, self._batches.epochs_completed
        slots = [(*self._pinned_memory(), torch.cuda.Event()) for _ in range(_N_SLOTS)]
        for images, masks, has_arrived in cycle(slots):
            if batches.epochs_completed != epoch:
                return
            has_arrived.synchronize()  # the copy that used these buffers before
            gathered, _ = batches.next_batch(out=(images.numpy(), masks.numpy()))
            with torch.cuda.stream(copies):
                sent = (
                    images[: len(gathered)].to(copies.device, non_blocking=True),
                    masks[: len(gathered)].to(copies.device, non_blocking=True),
                )
                has_arrived.record(copies)
            yield sent, has_arrived, batches.state_dict()

    def _pinned_memory(self) -> Tensors:
        batches = self._batches
        rows, columns = batches.dataset.images.shape[1:]
        shape = (batches._order.plan.batch_size, 1, rows, columns)
        images = torch.from_numpy(np.empty(shape, batches._gatherer.image_dtype))
        return images.pin_memory(), torch.empty(shape, dtype=torch.uint8).pin_memory()


def _order_of(batches: Batches, *, follows_distributed: bool) -> Order:
    """Return the order of some batches, of the rank that torch.distributed gives where it runs."""
    order = batches._order
    rank, world_size = _rank_and_world_size()
    # It does not run in a spawned worker: there the rank is the one that was pickled.
    is_other = (rank, world_size) != (order.rank, order.plan.world_size)
    if follows_distributed and world_size > 1 and is_other:
        plan = replace(order.plan, world_size=world_size)
        check_plan(plan, batches.dataset)
        order = batches._order = replace(order, plan=plan, rank=rank)
    return order


def _rank_and_world_size() -> tuple[int, int]:
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _as_tensors(arrays: Arrays) -> Tensors:
    images, masks = arrays
    return torch.from_numpy(images), torch.from_numpy(masks)
