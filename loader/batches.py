"""Batches of a dataset: the samples of a split or fold, in a random order that can be resumed."""

import os
import threading
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, TypeVar, get_args

import numpy as np
import numpy.typing as npt

from loader.dataset import Dataset, Images, Masks, open_dataset
from loader.errors import LoaderError
from loader.layout import SPLITS
from loader.sampler import EpochPlan, Indices, Remainder, draw

Split: TypeAlias = Literal["train", "validation", "test"]
FoldRole: TypeAlias = Literal["train", "validation"]
Layout: TypeAlias = Literal["HWN", "NHW", "NCHW"]
Padding: TypeAlias = npt.NDArray[np.bool_]

_Value = TypeVar("_Value", bound=np.generic)
_Selected: TypeAlias = npt.NDArray[np.uint32] | npt.NDArray[np.uint64]

# Positions drawn at a time: many enough that the cost of NumPy's calls is spread thin.
_BLOCK: Final = 4096
_UINT32_ROWS: Final = 2**32


@dataclass(frozen=True)
class _Block:
    """Rows and padding of some consecutive batches of one epoch."""

    epoch: int
    batches: range
    rows: Indices
    is_padding: Padding


class Batches:
    """Endless batches of (images, masks), fresh arrays that are safe to keep.

    It may be shared by threads: each batch is handed out once. It pickles, and survives fork and
    spawn; a copy goes on from where the original was.

    Parameters
    ----------
    source : str, path-like or Dataset
        The file that dicom-etl built, or what `open_dataset` returned for it.
    batch_size : int
        Samples per batch on this rank.
    split : "train", "validation" or "test", optional
        Only the rows of this split.
    fold : int, optional
        Only rows that take part in cross-validation, chosen by `fold_role`.
    fold_role : "train" or "validation"
        The rows outside of the fold, or the rows in it.
    seed : int
        From 0 to 2**64 - 1. The order of an epoch depends on the seed and the epoch alone.
    shuffle : bool
        False keeps the order of the file.
    remainder : "sample", "keep", "pad" or "error"
        With n rows, and batch_size * world_size of them for one batch on every rank: "sample"
        leaves out a different random n mod that in each epoch; "keep" hands them out in a short
        last batch (but for n mod world_size); "pad" repeats rows of the epoch to fill it, see
        `is_padding`; "error" refuses.
    layout : "HWN", "NHW" or "NCHW"
        Axes of a batch: rows, columns, samples; samples, rows, columns; or with a channel axis of
        length 1. Views, at no cost.
    rank, world_size : int
        This process's share of each epoch, and how many share it.

    Raises
    ------
    TypeError, ValueError
        An argument that can never be right.
    LoaderError
        A file that cannot be opened or lacks the split or fold, or no batch to hand out.

    Examples
    --------
    >>> batches = Batches("out.h5", batch_size=8, split="train", seed=7)    # doctest: +SKIP
    >>> images, masks = batches.next_batch()                                # doctest: +SKIP
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | Dataset,
        *,
        batch_size: int,
        split: Split | None = None,
        fold: int | None = None,
        fold_role: FoldRole = "train",
        seed: int = 0,
        shuffle: bool = True,
        remainder: Remainder = "sample",
        layout: Layout = "HWN",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if split is not None:
            _check_choice("split", split, SPLITS)
        _check_choice("fold_role", fold_role, get_args(FoldRole))
        _check_choice("remainder", remainder, get_args(Remainder))
        _check_choice("layout", layout, get_args(Layout))
        if not isinstance(shuffle, bool):
            raise TypeError(f"shuffle: expected True or False, found {shuffle!r}.")
        self._batch_size = _whole("batch_size", batch_size, 1)
        self._split = split
        self._fold = None if fold is None else _whole("fold", fold, 0)
        self._fold_role = fold_role
        self._seed = _whole("seed", seed, 0, 2**64)
        self._shuffle = shuffle
        self._layout = layout
        world_size = _whole("world_size", world_size, 1)
        self._rank = _whole("rank", rank, 0, world_size)
        self.dataset = source if isinstance(source, Dataset) else open_dataset(source)
        self._selected = _select(self.dataset, split, self._fold, fold_role)
        n_samples = len(self.dataset) if self._selected is None else len(self._selected)
        self._plan = EpochPlan(n_samples, self._batch_size, world_size, remainder)
        _check_plan(self._plan, self.dataset)
        self._position = (0, 0)
        self._start()
        if remainder == "sample" and self._plan.n_left_out:
            _warn_left_out(self._plan)

    def _start(self) -> None:
        """Make what a copy in another process must not share."""
        # One lock for each process: a lock that another thread held when the process was forked
        # would never be released in the child.
        self._locks: dict[int, threading.Lock] = {}
        self._block: _Block | None = None
        self._handed_out = threading.local()

    def __getstate__(self) -> dict[str, object]:
        """Pickle the options and the position; the selection is made anew from the file."""
        left_behind = {"_locks", "_block", "_handed_out", "_selected"}
        return {name: value for name, value in self.__dict__.items() if name not in left_behind}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Go on from the position of the original."""
        self.__dict__.update(state)
        self._selected = _select(self.dataset, self._split, self._fold, self._fold_role)
        self._start()

    def __len__(self) -> int:
        """Return the number of batches in an epoch, on this rank."""
        return self._plan.n_batches

    def __iter__(self) -> Iterator[tuple[Images, Masks]]:
        """Hand out what is left of this epoch; all of it at its start."""
        epoch = self.epochs_completed
        while True:
            with self._lock:
                if self.epochs_completed != epoch:
                    return
                rows, is_padding = self._advance()
            yield self._gather(rows, is_padding)

    def next_batch(self) -> tuple[Images, Masks]:
        """Return the next batch, of the next epoch where this one has ended.

        Returns
        -------
        images : int16, uint16, int32 or float32 array
        masks : uint8 array
            Both (rows, columns, n), or as `layout` says.
        """
        with self._lock:
            rows, is_padding = self._advance()
        return self._gather(rows, is_padding)

    @property
    def epochs_completed(self) -> int:
        """Epochs whose last batch has been handed out."""
        return self._position[0]

    @property
    def indices(self) -> Indices:
        """Rows of the file in the batch just handed out to this thread; int64, shape (n,)."""
        rows: Indices = getattr(self._handed_out, "rows", np.empty(0, np.int64))
        return rows

    @property
    def is_padding(self) -> Padding:
        """Which samples of that batch repeat others to fill it; bool, shape (n,)."""
        is_padding: Padding = getattr(self._handed_out, "is_padding", np.empty(0, np.bool_))
        return is_padding

    def state_dict(self) -> dict[str, str | int | None]:
        """Return the position and what it belongs to, as plain JSON."""
        epoch, batch = self._position
        return {
            **self._identity(),
            "world_size": self._plan.world_size,
            "epoch": epoch,
            "batch": batch,
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Go on from a position that `state_dict` returned, on any rank.

        Raises
        ------
        LoaderError
            Not such a state; or of another dataset, seed, batch_size, selection, order or
            remainder; or, in the middle of an epoch, of another world_size.
        """
        where = f"State not loaded: {self.dataset.path}"
        own = self.state_dict()
        if not isinstance(state, Mapping) or set(state) != set(own):
            raise LoaderError(f"{where}: expected {', '.join(own)}. Give what state_dict returned.")
        epoch, batch = _count(state["epoch"]), _count(state["batch"])
        if epoch is None or batch is None:
            raise LoaderError(
                f"{where}: epoch and batch are counts (found {state['epoch']!r} and "
                f"{state['batch']!r}). Give what state_dict returned."
            )
        binding = [*self._identity(), *(["world_size"] if batch else [])]
        differing = [
            f"{name} (expected {own[name]!r}, found {state[name]!r})"
            for name in binding
            if (type(state[name]), state[name]) != (type(own[name]), own[name])
        ]
        if differing:
            raise LoaderError(
                f"{where}: it differs in {', '.join(differing)}. "
                "Make Batches with the file and the options that the state belongs to."
            )
        if batch and batch >= len(self):
            raise LoaderError(
                f"{where}: an epoch has {len(self)} batches, found batch {batch}. "
                "Give what state_dict returned."
            )
        with self._lock:
            self._position = (epoch, batch)

    def _identity(self) -> dict[str, str | int | None]:
        return {
            "dataset_id": self.dataset.dataset_id,
            "seed": self._seed,
            "batch_size": self._batch_size,
            "split": self._split,
            "fold": self._fold,
            "fold_role": self._fold_role,
            "remainder": self._plan.remainder,
            "shuffle": self._shuffle,
        }

    @property
    def _lock(self) -> threading.Lock:
        return self._locks.setdefault(os.getpid(), threading.Lock())

    def _advance(self) -> tuple[Indices, Padding]:
        """Return rows and padding of the next batch, and move on; only while holding the lock."""
        epoch, batch = self._position
        block = self._block
        if block is None or block.epoch != epoch or batch not in block.batches:
            block = self._block = self._draw_block(epoch, batch)
        start = (batch - block.batches.start) * self._batch_size
        taken = slice(start, start + self._batch_size)
        # In one assignment, so that a fork at any moment finds a whole position.
        self._position = (epoch, batch + 1) if batch + 1 < len(self) else (epoch + 1, 0)
        return block.rows[taken].copy(), block.is_padding[taken].copy()

    def _draw_block(self, epoch: int, first: int) -> _Block:
        batches = range(first, min(len(self), first + max(1, _BLOCK // self._batch_size)))
        positions = self._plan.positions(self._rank, batches.start, batches.stop)
        rows = draw(self._plan, positions, seed=self._seed, epoch=epoch, shuffle=self._shuffle)
        if self._selected is not None:
            rows = self._selected[rows].astype(np.int64)
        return _Block(epoch, batches, rows, positions >= self._plan.n_samples)

    def _gather(self, rows: Indices, is_padding: Padding) -> tuple[Images, Masks]:
        images = self._arrange(_take(self.dataset.images, rows))
        masks = self._arrange(_take(self.dataset.masks, rows))
        self._handed_out.rows, self._handed_out.is_padding = rows, is_padding
        return images, masks

    def _arrange(self, samples: npt.NDArray[_Value]) -> npt.NDArray[_Value]:
        if self._layout == "HWN":
            return samples.transpose(1, 2, 0)
        return samples[:, np.newaxis] if self._layout == "NCHW" else samples


def _take(samples: npt.NDArray[_Value], rows: Indices) -> npt.NDArray[_Value]:
    """Copy some samples into a fresh array."""
    taken = np.empty((len(rows), *samples.shape[1:]), samples.dtype)
    # As bytes, because np.take would first copy the whole of an array that lies unaligned in the
    # file. Every row is valid; "clip" spares the buffer that "raise" needs.
    np.take(_as_bytes(samples), rows, axis=0, out=_as_bytes(taken), mode="clip")
    return taken


def _as_bytes(samples: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    return samples.reshape(len(samples), -1).view(np.uint8)


def _select(
    dataset: Dataset, split: Split | None, fold: int | None, fold_role: FoldRole
) -> _Selected | None:
    """Return the rows of a split, of a fold, or of both; None for all rows."""
    if split is None and fold is None:
        return None
    where = f"Rows not selected: {dataset.path}"
    splits, folds = (dataset.manifest[name].astype(np.int16) for name in ("split", "fold"))
    is_chosen = np.ones(len(dataset), np.bool_)
    if split is not None:
        if not np.any(splits >= 0):
            raise LoaderError(f"{where}: it has no splits. Build it again with --split.")
        is_chosen &= splits == SPLITS.index(split)
    if fold is not None:
        if not np.any(folds >= 0):
            raise LoaderError(f"{where}: it has no folds. Build it again with --folds.")
        is_chosen &= (
            (folds == fold) if fold_role == "validation" else (folds >= 0) & (folds != fold)
        )
    if not is_chosen.any():
        sizes = [f"{name} {np.sum(splits == code)}" for code, name in enumerate(SPLITS)]
        raise LoaderError(
            f"{where}: no row has split={split!r}, fold={fold!r}, fold_role={fold_role!r} "
            f"(found rows: {', '.join(sizes)}; found {np.max(folds) + 1} folds). "
            "Choose another selection."
        )
    rows = np.flatnonzero(is_chosen)
    return rows.astype(np.uint32) if len(dataset) <= _UINT32_ROWS else rows.astype(np.uint64)


def _check_plan(plan: EpochPlan, dataset: Dataset) -> None:
    """Refuse a plan that hands out no batch, or leaves rows over that must not be."""
    where = f"Batches not made: {dataset.path}"
    sizes = f"batch_size {plan.batch_size} x world_size {plan.world_size}"
    if plan.remainder == "error" and plan.n_left_out:
        raise LoaderError(
            f"{where}: rows are left over after the last whole batch (expected a multiple of "
            f"{plan.n_per_step}, {sizes}; found {plan.n_samples}). Choose a batch_size that "
            'divides them, or remainder="keep", "pad" or "sample".'
        )
    if plan.n_batches == 0:
        needed = {"keep": plan.world_size, "pad": 1}.get(plan.remainder, plan.n_per_step)
        raise LoaderError(
            f"{where}: too few rows for one batch on every rank (expected {needed} or more for "
            f"{sizes}, found {plan.n_samples}). Choose a smaller batch_size or fewer ranks, or "
            'remainder="pad".'
        )


def _warn_left_out(plan: EpochPlan) -> None:
    warnings.warn(
        f"{plan.n_left_out} of {plan.n_samples} rows fill no whole batch and are left out, other "
        'ones at random in each epoch. remainder="keep" hands them out in a short last batch, '
        '"pad" fills that batch up.',
        UserWarning,
        stacklevel=3,  # the line that makes the Batches
    )


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, found {value!r}.")


def _whole(name: str, value: int, lowest: int, stop: int | None = None) -> int:
    """Return an integer argument as a plain int, checked against lowest <= value < stop."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}: expected an integer, found {value!r}.")
    whole = int(value)
    if whole < lowest or (stop is not None and whole >= stop):
        bounds = f"at least {lowest}" if stop is None else f"from {lowest} to {stop - 1}"
        raise ValueError(f"{name}: expected an integer {bounds}, found {whole}.")
    return whole


def _count(value: object) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    return None
