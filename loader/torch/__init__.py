# mypy: allow-subclassing-any, allow-untyped-calls
"""The batches as PyTorch takes them: data sets for its `DataLoader`, and batches on a device.

Imported only where it is asked for: ``import loader.torch``.
"""

import atexit
import copy
import multiprocessing.context
import multiprocessing.queues
import multiprocessing.reduction
import operator
import os
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import cycle
from typing import Any, Final, NamedTuple, NotRequired, Self, TypeAlias, TypedDict, Unpack

import numpy as np
import torch  # type: ignore[import-not-found, unused-ignore]
import torch.utils.data  # type: ignore[import-not-found, unused-ignore]
from torch import distributed  # type: ignore[import-not-found, unused-ignore]

import loader
from loader.batches import Batches, Values, check_plan, warn_left_out
from loader.epochs import Counts, Epochs
from loader.errors import LoaderError
from loader.normalise import Normalize
from loader.prefetch import Prefetcher
from loader.sampler import Indices, Remainder
from loader.selection import Balance, FoldRole, HasRows, Split, Weights, Where
from loader.stream import Arrays, Order, Padding, Stream

__all__ = ["Dataset", "DeviceBatches", "IterableDataset"]

Tensors: TypeAlias = "tuple[torch.Tensor, torch.Tensor]"

State: TypeAlias = dict[str, str | int | None]

_CHANNELS_FIRST: Final = "Tensors have their channels first, always."
_SINGLE_SAMPLES: Final = (
    "Give batch_size, shuffle, or a sampler such as torch's WeightedRandomSampler, to the "
    "DataLoader."
)
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
    apart_from: NotRequired[HasRows | None]
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


class _RankedBatches(Batches):
    """Batches of the rank that torch.distributed gives where it runs, unless one was given."""

    def __init__(
        self,
        source: str | os.PathLike[str] | loader.Dataset,
        **options: Any,  # noqa: ANN401
    ) -> None:
        self._follows_distributed = not {"rank", "world_size"} & set(options)
        super().__init__(source, **options)

    @property
    def _order(self) -> Order:
        order: Order = self.__dict__["_order"]
        rank, world_size = _rank_and_world_size()
        # It does not run in a spawned worker: there the rank is the one that was pickled.
        is_other = (rank, world_size) != (order.rank, order.plan.world_size)
        if self._follows_distributed and world_size > 1 and is_other:
            plan = replace(order.plan, world_size=world_size)
            check_plan(plan, self.dataset)
            order = self.__dict__["_order"] = replace(order, plan=plan, rank=rank)
            if torch.utils.data.get_worker_info() is None:
                warn_left_out(order)
        return order

    @_order.setter
    def _order(self, order: Order) -> None:
        self.__dict__["_order"] = order


class _OfFile:
    """Rows of a file, chosen by the options of `loader.Batches`."""

    _batches: Batches

    def _refuse_others(self, options: Mapping[str, object], known: type, hint: str) -> None:
        """Refuse options that the class does not have."""
        unknown = ", ".join(sorted(options.keys() - known.__annotations__.keys()))
        if unknown:
            raise TypeError(
                f"loader.torch.{type(self).__name__}: {unknown}: no option of this class (expected "
                f"{', '.join(known.__annotations__)}). {hint}"
            )

    @property
    def dataset(self) -> loader.Dataset:
        """The open file."""
        return self._batches.dataset

    @property
    def rows(self) -> Indices:
        """The rows of the file that take part, ascending; int64, shape (n,)."""
        return self._batches.rows

    def __repr__(self) -> str:
        """Return the file and the choice of rows."""
        return f"<{type(self).__name__} of {self._batches._chosen()}>"


class IterableDataset(_OfFile, torch.utils.data.IterableDataset[Tensors]):
    """The batches of one epoch after the other, for ``DataLoader(dataset, batch_size=None)``.

    With the first batch of each iteration, an epoch begins: the first, the second, and so on; with
    the workers of a DataLoader, when they start. They share an epoch out, so that its batches come
    in the same order for any number of them.

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
        self._refuse_others(options, Batching, _CHANNELS_FIRST)
        self._batches = _RankedBatches(source, layout="NCHW", **options)
        self._at: _Place | None = None  # of the next batch; none before an iteration's first
        self._loaded: _Place | None = None  # in a worker that has not yet begun there
        self._n_begun_here = 0
        self._own: Epochs | None = None  # made when they are first asked for
        self._parents: Epochs | None = None
        self._at_start = Counts()  # what had begun where these go on from
        _living[id(self)] = self

    def __getstate__(self) -> dict[str, object]:
        """Pickle with the rank and the epochs that this process has."""
        len(self._batches)  # takes up the rank
        own = self._own_epochs
        state = self.__dict__ | {"_own": None, "_at_start": own.counts(), "_parents": None}
        child: Any = multiprocessing.context.get_spawning_popen()
        if child is not None and hasattr(multiprocessing.reduction, "DupFd"):
            # It is sent later, when this may be a copy that was dropped meanwhile.
            child.kept_by_loader = [*getattr(child, "kept_by_loader", ()), own]
            state["_parents"] = os.getpid(), multiprocessing.reduction.DupFd(own.file)
        return state

    def __setstate__(self, state: dict[str, object]) -> None:
        """Go on from the position of the original."""
        parents: Any = state.pop("_parents")
        self.__dict__.update(state)
        self._parents = None
        if parents is not None and parents[0] != os.getpid():  # a child's, not a copy
            self._parents = Epochs(file=parents[1].detach())
        _living[id(self)] = self

    @property
    def _own_epochs(self) -> Epochs:
        """The epochs of this process, which count on from those of whom it comes from."""
        if self._own is None:
            self._own = Epochs(self._at_start)
        return self._own

    def _prepare_fork(self) -> None:
        """Note what has begun: the parent may soon have gone on."""
        self._at_start = self._own_epochs.counts()

    def _leave_parent(self) -> None:
        """Have epochs of its own in a process that was just forked."""
        self._parents, self._own = self._own, None

    @property
    def _epochs(self) -> Epochs:
        """The epochs of this process; in a worker those of its parent, unless it was made there.

        Not those of one process for all: the ranks of a training, say, have epochs of their own.
        """
        is_worker = torch.utils.data.get_worker_info() is not None
        return self._parents if is_worker and self._parents is not None else self._own_epochs

    def __len__(self) -> int:
        """Return the number of batches in an epoch, on this rank."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Tensors]:
        """Begin the next epoch: images and masks, each (samples, 1, rows, columns)."""
        if torch.utils.data.get_worker_info() is None:
            self._at = None
            return self._lazily()
        return self._epoch(self._begin())

    def _lazily(self) -> Iterator[Tensors]:
        # The epoch begins with its first batch: of an iteration that has ended, StatefulDataLoader
        # makes another one, which it never asks for a batch.
        yield from self._epoch(self._begin())

    def _begin(self) -> _Place:
        worker = torch.utils.data.get_worker_info()
        if worker is None:
            # Before it begins too, for a signal's handler that saves the state in between.
            self._at = _Place(*self._epochs.coming(), 1)
            self._at = _Place(*self._epochs.begin(), 1)
            return self._at
        stride, loaded, self._loaded = worker.num_workers, self._loaded, None
        epoch = None if loaded is None else loaded.epoch
        begun, first = self._epochs.join(self._token(worker), stride, epoch)
        if loaded is not None:
            begun, first = loaded.epoch, loaded.batch
        # A worker's own position already counts from its first batch.
        is_own = loaded is not None and loaded.stride == stride > 1
        self._at = _Place(begun, first + (0 if is_own else worker.id), stride)
        return self._at

    def state_dict(self) -> State:
        """Return the position and what it belongs to, as plain JSON.

        Raises
        ------
        LoaderError
            Workers of a DataLoader iterate, so that their positions are not known here.
        """
        epoch, batch, stride = self._at or (*self._epochs.coming(), 1)
        if torch.utils.data.get_worker_info() is None:
            counts = self._epochs.counts()
            if counts.begun > counts.begun_here:
                raise LoaderError(
                    "State not saved: workers of a DataLoader iterate, and how far is not known "
                    "here. Use StatefulDataLoader of torchdata, or num_workers=0 with prefetch=2."
                )
            if batch >= len(self._batches):
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
        n_batches = len(self._batches)
        is_over = worker is not None and isinstance(batch, int) and batch >= n_batches
        self._batches.load_state_dict(known | ({"batch": 0} if is_over else {}))
        epoch = self._batches.epochs_completed
        self._at = _Place(epoch, batch if isinstance(batch, int) else 0, stride)
        if worker is None:
            self._epochs.load(self._at[:2])
        else:
            self._loaded = self._at

    def _token(self, worker: Any) -> int:  # noqa: ANN401  torch has no name for its type
        """Return what the workers of one iteration have in common, and no other iteration has.

        It is the pipe by which all of them hand out batches. Their seed would not do: a program
        that seeds torch anew gives it to more than one iteration.
        """
        self._n_begun_here += 1  # a persistent worker keeps its pipe
        arguments = getattr(multiprocessing.current_process(), "_args", ())
        queues = [one for one in arguments if isinstance(one, multiprocessing.queues.Queue)]
        pipe = 0
        if len(queues) == len(("indices", "batches")):
            pipe = os.fstat(queues[1]._reader.fileno()).st_ino  # type: ignore[attr-defined]
        return hash((pipe, worker.seed - worker.id, self._n_begun_here))

    def _epoch(self, start: _Place) -> Iterator[Tensors]:
        batches, order = self._batches, self._batches._order
        todo = range(start.batch, order.plan.n_batches, start.stride)
        if not todo:
            return
        position = start.epoch, start.batch
        stream = Stream(batches.dataset, order, batches._gatherer, position, start.stride)
        made = (stream.make()[1] for _ in todo)  # none beyond the epoch
        prefetcher = Prefetcher(made.__next__, batches._prefetch) if batches._prefetch else None
        try:
            if prefetcher:
                # So that no thread runs on while a spawned worker ends.
                atexit.register(prefetcher.close)
                prefetcher.start()
            for batch in todo:
                arrays = prefetcher.get() if prefetcher else next(made)
                self._at = start._replace(batch=batch + start.stride)
                yield _as_tensors(arrays)
        finally:
            if prefetcher:
                prefetcher.close()
                atexit.unregister(prefetcher.close)


class Dataset(_OfFile, torch.utils.data.Dataset[Tensors]):
    """The samples of a file one by one, for a DataLoader that draws and batches them itself.

    Sample i is row ``rows[i]`` of the file.

    Parameters
    ----------
    source : str, path-like or loader.Dataset
        The file.
    **options
        As for `loader.Batches`: split, fold, fold_role, where, apart_from, allow_shared_patients,
        dtype and normalize.

    Raises
    ------
    TypeError
        An option about batches or their order: these are the DataLoader's.
    """

    def __init__(
        self, source: str | os.PathLike[str] | loader.Dataset, **options: Unpack[Selecting]
    ) -> None:
        super().__init__()
        self._refuse_others(options, Selecting, _SINGLE_SAMPLES)
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
        whole = [operator.index(index) for index in indices]
        if not all(-n_samples <= index < n_samples for index in whole):
            raise IndexError(f"sample out of range (there are {n_samples}): {indices}")
        if not whole:
            return []
        samples = np.array(whole, np.int64)
        batches = self._batches
        batches.dataset.check_whole()
        rows = batches._order.selection.take(samples % n_samples)
        images, masks = _as_tensors(batches._gatherer.gather(rows, None))
        return list(zip(images, masks, strict=True))


class _Sent(NamedTuple):
    """A batch on the device, and what belongs to it."""

    tensors: Tensors
    rows: Indices
    is_padding: Padding
    state: State


class DeviceBatches(_OfFile):
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
        self._refuse_others(options, Batching, _CHANNELS_FIRST)
        self._batches = _RankedBatches(source, layout="NCHW", **options)
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
        return self._state | {"world_size": self._batches._order.plan.world_size}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Go on from a position that `state_dict` returned; see `loader.Batches`."""
        self._batches.load_state_dict(state)
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
            images, masks = _as_tensors(arrays)
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
        shape = (batches._order.plan.batch_size, 1, rows, columns)
        images = torch.from_numpy(np.empty(shape, batches._gatherer.image_dtype))
        return images.pin_memory(), torch.empty(shape, dtype=torch.uint8).pin_memory()


def _rank_and_world_size() -> tuple[int, int]:
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _as_tensors(arrays: Arrays) -> Tensors:
    images, masks = arrays
    return torch.from_numpy(images), torch.from_numpy(masks)


# Those that a fork would bring into another process; by identity, whatever a subclass says of
# equality.
_living: "weakref.WeakValueDictionary[int, IterableDataset]" = weakref.WeakValueDictionary()


def _each(do: Callable[[IterableDataset], None]) -> None:
    for reference in _living.valuerefs():  # in one piece, whatever other threads make
        dataset = reference()
        if dataset is not None:
            do(dataset)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=partial(_each, IterableDataset._prepare_fork),
        after_in_child=partial(_each, IterableDataset._leave_parent),
    )
