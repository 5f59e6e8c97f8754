# mypy: allow-subclassing-any, allow-untyped-calls
"""Data sets for PyTorch's `DataLoader`: whole batches, or samples one by one."""

import atexit
import copy
import operator
import os
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple, Unpack

import numpy as np
import torch  # type: ignore[import-not-found, unused-ignore]
import torch.utils.data  # type: ignore[import-not-found, unused-ignore]

import loader
from loader.arguments import check_bool, plain
from loader.batches import Batches
from loader.errors import LoaderError
from loader.prefetch import Prefetcher
from loader.torch.options import (
    CHANNELS_FIRST,
    Batch,
    Batching,
    OfFile,
    Selecting,
    State,
    Tensors,
    Whole,
    as_tensors,
    ranked_batches,
    refuse_batches_of_batches,
)
from loader.torch.passes import Passes, SharedEpoch

_SINGLE_SAMPLES: Final = (
    "Give batch_size, shuffle, or a sampler such as torch's WeightedRandomSampler, to the "
    "DataLoader."
)


class _Place(NamedTuple):
    """A batch of an epoch, and the distance to the next one of the same worker."""

    epoch: int
    batch: int
    stride: int


class IterableDataset(OfFile, torch.utils.data.IterableDataset[Batch]):
    """The batches of one epoch after the other, for ``DataLoader(dataset, batch_size=None)``.

    With the first batch of each pass an epoch begins: the first, the second, and so on, or the one
    that `set_epoch` names; in the workers of a DataLoader, when they begin the pass. They share an
    epoch out, so that its batches come in the same order for any number of them. One DataLoader at
    a time takes an IterableDataset; give another one a data set of its own.

    After `load_state_dict`, the first epoch is what was left of the saved one. A StatefulDataLoader
    saves and restores the state inside its workers. With the workers of a plain DataLoader, the
    state is not known; without workers it is that of the batches handed out.

    Parameters
    ----------
    source : str, path-like or loader.Dataset
        The file.
    with_padding : bool
        Hand out a third tensor, `is_padding`: bool, shape (samples,), which samples of the batch
        repeat others under ``remainder="pad"``.
    **options
        As for `loader.Batches`: batch_size, split, seed, normalize, and so on.

    Examples
    --------
    >>> dataset = IterableDataset("out.h5", batch_size=8, split="train")    # doctest: +SKIP
    >>> for images, masks in DataLoader(dataset, batch_size=None): ...      # doctest: +SKIP
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | loader.Dataset,
        *,
        with_padding: bool = False,
        **options: Unpack[Batching],
    ) -> None:
        super().__init__()
        self._refuse_others(options, Batching, CHANNELS_FIRST)
        check_bool("with_padding", with_padding)
        self._with_padding = with_padding
        self._batches = ranked_batches(source, options)
        self._passes = Passes()
        self._at: _Place | None = None  # of the next batch; none before a pass's first
        self._loaded: _Place | None = None  # in a worker that has not yet begun there

    def __getstate__(self) -> dict[str, object]:
        """Pickle with the rank that this process has; a copy counts its epochs on its own."""
        _ = self._batches.feed.order
        return self.__dict__ | {"_passes": copy.copy(self._passes)}

    def __len__(self) -> int:
        """Return the number of batches in an epoch, on this rank."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        """Begin the next epoch: images and masks, each (samples, 1, rows, columns); is_padding."""
        if torch.utils.data.get_worker_info() is None:
            self._at = None
            return self._lazily()
        return self._epoch(self._begin())

    def _lazily(self) -> Iterator[Batch]:
        # The epoch begins with its first batch: of an iteration that has ended, StatefulDataLoader
        # makes another one, which it never asks for a batch.
        yield from self._epoch(self._begin())

    def _begin(self) -> _Place:
        worker = torch.utils.data.get_worker_info()
        if worker is None:
            # Before it begins too, for a signal's handler that saves the state in between.
            self._at = _Place(*self._passes.coming(), 1)
            self._at = _Place(*self._passes.begin(), 1)
            return self._at
        stride, loaded, self._loaded = worker.num_workers, self._loaded, None
        position = None if loaded is None else (loaded.epoch, loaded.batch)
        epoch, first = self._passes.begin_in_worker(worker.id, stride, position)
        # A worker's own position already counts from its first batch.
        is_own = loaded is not None and loaded.stride == stride > 1
        self._at = _Place(epoch, first + (0 if is_own else worker.id), stride)
        return self._at

    def set_epoch(self, epoch: int) -> None:
        """Have the next pass be an epoch from its start, in workers of a DataLoader as well.

        Parameters
        ----------
        epoch : int
            From 0.
        """
        self._batches.set_epoch(epoch)
        self._at = None
        self._passes.go_to((epoch, 0))

    def state_dict(self) -> State:
        """Return the position and what it belongs to, as plain JSON.

        Raises
        ------
        LoaderError
            Workers of a DataLoader iterate, so that their positions are not known here.
        """
        epoch, batch, stride = self._at or (*self._passes.coming(), 1)
        if torch.utils.data.get_worker_info() is None:
            if self._passes.is_ahead:
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
        is_one = isinstance(state, Mapping)
        known = {name: plain(value) for name, value in state.items()} if is_one else {}
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
        own, n_batches = self._batches.state_dict(), len(self._batches)
        is_over = (
            worker is not None
            and isinstance(batch, int)
            and batch >= n_batches
            and all(known.get(name) == own[name] for name in ("batch_size", "world_size"))
        )
        self._batches.load_state_dict(known | ({"batch": 0} if is_over else {}))
        epoch = self._batches.epochs_completed
        self._at = _Place(epoch, batch if isinstance(batch, int) else 0, stride)
        if worker is None:
            self._passes.go_to(self._at[:2])
        else:
            self._loaded = self._at

    def _epoch(self, start: _Place) -> Iterator[Batch]:
        feed = self._batches.feed
        todo = range(start.batch, feed.n_batches, start.stride)
        if not todo:
            return
        refuse_batches_of_batches()
        stream = feed.stream((start.epoch, start.batch), start.stride)
        made = (stream.make() for _ in todo)  # none beyond the epoch
        prefetcher = Prefetcher(made.__next__, feed.prefetch) if feed.prefetch else None
        try:
            if prefetcher:
                # So that no thread runs on while a spawned worker ends.
                atexit.register(prefetcher.close)
                prefetcher.start()
            for batch in todo:
                drawn, arrays = prefetcher.get() if prefetcher else next(made)
                self._at = start._replace(batch=batch + start.stride)
                images, masks = as_tensors(arrays)
                if self._with_padding:
                    yield Whole((images, masks, torch.tensor(drawn.is_padding)))
                else:
                    yield Whole((images, masks))
        finally:
            if prefetcher:
                prefetcher.close()
                atexit.unregister(prefetcher.close)


class Dataset(OfFile, torch.utils.data.Dataset[Tensors]):
    """The samples of a file one by one, for a DataLoader that draws and batches them itself.

    Sample i is row ``rows[i]`` of the file.

    Parameters
    ----------
    source : str, path-like or loader.Dataset
        The file.
    **options
        As for `loader.Batches`: split, fold, fold_role, where, apart_from, allow_shared_patients,
        dtype, normalize, neighbours, augment, patches, mask_channels, transform, and the seed of
        `augment`, `patches` and `transform`.

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
        decisive = ("augment", "patches", "transform")
        if "seed" in options and all(options.get(name) is None for name in decisive):
            raise TypeError(
                "loader.torch.Dataset: seed: it decides augment, patches and transform only, and "
                f"there is none of them. {_SINGLE_SAMPLES}"
            )
        self._batches = Batches(source, batch_size=1, layout="NCHW", **options)
        self._epoch = SharedEpoch()

    def __len__(self) -> int:
        """Return the number of samples."""
        return self._batches.feed.n_samples

    def set_epoch(self, epoch: int) -> None:
        """Have samples augmented, cut and transformed as in an epoch, in workers as well.

        Parameters
        ----------
        epoch : int
            From 0. With `augment`, `patches` or `transform`, name each epoch before it begins: a
            sample is the same until then. Where they draw nothing, any number will do, once.
        """
        self._batches.set_epoch(epoch)  # checks it
        self._epoch.set(epoch)

    def __getitem__(self, index: int) -> Tensors:
        """Return one image and its mask, (channels, rows, columns) and (1, rows, columns)."""
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
        feed = self._batches.feed
        epoch = self._epoch.get()
        if epoch < 0 and feed.form.is_random:
            raise LoaderError(
                f"Sample not made: {feed.dataset.path}: the epoch decides how it is changed, "
                "and is not known. Call set_epoch of the data set before each epoch."
            )
        images, masks = as_tensors(feed.arrays(feed.rows(samples % n_samples), epoch=epoch))
        return list(zip(images, masks, strict=True))
