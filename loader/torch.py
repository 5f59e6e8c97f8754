# mypy: allow-subclassing-any, allow-untyped-calls
"""The batches as PyTorch takes them: data sets for its `DataLoader`, and batches on a device.

Imported only where it is asked for: ``import loader.torch``.
"""

import multiprocessing
import multiprocessing.queues
import multiprocessing.util
import operator
import os
import tempfile
import uuid
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
from loader.epochs import Epochs
from loader.errors import LoaderError
from loader.normalise import Normalize
from loader.prefetch import Prefetcher
from loader.sampler import Indices, Remainder
from loader.selection import Balance, FoldRole, HasRows, Split, Weights, Where
from loader.stream import Arrays, Order, Padding, Stream

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
        self._refuse_others(options, Batching, _CHANNELS_FIRST)
        self._follows_distributed = not {"rank", "world_size"} & set(options)
        self._batches = Batches(source, layout="NCHW", **options)
        self._at = _Place(0, 0, 1)  # of the next batch that this process hands out
        self._loaded: _Place | None = None  # in a worker that has not yet begun there
        self._n_begun_here = 0
        self._pid = 0  # the process that has used it
        self._start: Mapping[str, object] | None = None  # its epochs then
        self._make_family()

    def __getstate__(self) -> dict[str, object]:
        """Pickle with the rank and the epochs that this process has."""
        self._order()
        return self.__dict__ | {"_start": self._epochs().read(), "_pickled_by": os.getpid()}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Go on from the position of the original."""
        is_own_copy = state.pop("_pickled_by") == os.getpid()  # not one for a worker or a rank
        self.__dict__.update(state)
        self._pid = 0
        if is_own_copy:
            self._make_family()

    def _make_family(self) -> None:
        name = f"dicom-etl-loader-{uuid.uuid4().hex}"
        self._folder = os.path.join(tempfile.gettempdir(), name)
        self._own_epochs()

    def _epochs(self) -> Epochs:
        """Return the epochs of this process; in a worker those of its parent.

        Not one for all copies: each of several processes, the ranks of a training say, has its own
        epochs.
        """
        is_worker = torch.utils.data.get_worker_info() is not None
        parent = multiprocessing.parent_process()
        if not is_worker or self._pid == os.getpid() or parent is None:  # or made in the worker
            return self._own_epochs()
        return self._epochs_of(int(parent.pid or 0))

    def _own_epochs(self) -> Epochs:
        pid = os.getpid()
        epochs = self._epochs_of(pid)
        self._start = epochs.read()
        if self._pid != pid:
            self._pid = pid
            # Unlike weakref.finalize, it does its work at the end of processes of multiprocessing.
            multiprocessing.util.Finalize(self, epochs.remove, exitpriority=0)
        return epochs

    def _epochs_of(self, pid: int) -> Epochs:
        """Return the epochs of a process; at first they go on from those of the original."""
        start = self._start
        if self._pid not in {0, pid}:  # a fork has brought the data set there
            start = Epochs(self._folder, self._pid, start).read()
        return Epochs(self._folder, pid, start)

    def __len__(self) -> int:
        """Return the number of batches in an epoch, on this rank."""
        return self._order().plan.n_batches

    def __iter__(self) -> Iterator[Tensors]:
        """Begin the next epoch: images and masks, each (samples, 1, rows, columns)."""
        worker = torch.utils.data.get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        epochs, token, loaded = self._epochs(), self._token(), self._loaded
        self._loaded = None
        if loaded is not None and token is not None:
            epochs.begin_loaded(token, loaded.epoch)
            # A worker's own position already counts from its first batch.
            first = loaded.batch + (0 if loaded.stride == stride > 1 else first)
            epoch = loaded.epoch
        else:
            epoch, batch = epochs.begin(token)
            first += batch
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
            record = self._epochs().read()
            if record["begun"] > record["begun_here"]:
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
            self._epochs().load(self._at[:2])
        else:
            self._loaded = self._at

    def _order(self) -> Order:
        """Return the order, of the rank that torch.distributed gives where it runs."""
        return _order_of(self._batches, follows_distributed=self._follows_distributed)

    def _token(self) -> str | None:
        """Return what the workers of one iteration have in common, and no other iteration has.

        It is the pipe by which all of them hand out batches. Their seed would not do: a program
        that seeds torch anew gives it to more than one iteration.
        """
        worker = torch.utils.data.get_worker_info()
        if worker is None:
            return None
        self._n_begun_here += 1  # a persistent worker keeps its pipe
        arguments = getattr(multiprocessing.current_process(), "_args", ())
        queues = [one for one in arguments if isinstance(one, multiprocessing.queues.Queue)]
        pipe = 0
        if len(queues) == len(("indices", "batches")):
            pipe = os.fstat(queues[1]._reader.fileno()).st_ino  # type: ignore[attr-defined]
        return f"{pipe} {worker.seed - worker.id} {self._n_begun_here}"

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
        samples = np.array([operator.index(index) for index in indices], np.int64)
        if np.any((samples < -n_samples) | (samples >= n_samples)):
            raise IndexError(f"sample out of range (there are {n_samples}): {indices}")
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
        self._follows_distributed = not {"rank", "world_size"} & set(options)
        self._batches = Batches(source, layout="NCHW", **options)
        self._device = torch.device(device)
        if self._device.type == "cuda":
            self._check_cuda()
        self._copies: torch.cuda.Stream | None = None
        self._iteration: object = None  # the one that may hand out batches
        self._n_loads = 0
        self._state: State = self._batches.state_dict()
        self._indices, self._is_padding = self._batches.indices, self._batches.is_padding
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
