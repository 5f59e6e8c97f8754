"""Batches of a dataset: chosen samples, in a random order that can be resumed."""

import os
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Final, Literal, Self, TypeAlias, get_args

import numpy as np

from loader.arguments import check_bool, choice, plain, whole
from loader.augment.settings import Augment
from loader.channels import MaskChannels
from loader.dataset import Dataset, open_dataset
from loader.errors import LoaderError
from loader.feed import Arrays, Drawn, Feed, Form, Layout, Order, Padding, Position, Stream
from loader.neighbours import LACKING, Neighbours, check_neighbours
from loader.normalise import Normalize
from loader.patches import Patches, check_patches, rows_without
from loader.prefetch import Prefetcher
from loader.sampler import EpochPlan, Indices, Remainder
from loader.selection import (
    Balance,
    Criteria,
    FoldRole,
    HasRows,
    Selection,
    Split,
    Weights,
    Where,
    check_apart,
    check_patients,
    digest,
    rows_of,
    select,
    weigh,
)
from loader.transform import Transform, check_transform

Values: TypeAlias = Literal["stored", "float32"]

_OF_AN_EPOCH: Final = ("batch_size", "world_size")  # another epoch may have others
_AT_THE_START: Final = (
    " At the start of an epoch, a state may have another batch_size or world_size."
)

_MAX_PREFETCH: Final = 1024
_MAX_COUNT: Final = 2**62  # of epochs
_MAX_SIZE: Final = 2**31  # of a batch, and of the world: their product is below 2**63


class Batches:
    """Endless batches of (images, masks), fresh arrays that are safe to keep.

    It may be shared by threads: each batch is handed out once. It pickles, and survives fork and
    spawn; a copy goes on from where the original was. With `prefetch`, `close` it, use it in a
    `with` statement, or drop it: each ends the thread.

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
    where : bool array of shape (n,), or callable, optional
        Only the rows of the file that are True in it, of those above. A function gets the manifest
        and returns the array: ``lambda manifest: manifest["flags"] == 0``.
    weights : array of shape (n,), or callable, optional
        How often each row of the file is drawn, in proportion. An epoch is then as many draws with
        replacement as there are rows, decided by seed and epoch only. A function gets the
        manifest.
    balance : "patient" or "label", optional
        Weights under which each patient is drawn equally often; or each set of labels, so that
        rows whose masks show only label 1 come as often as those with both labels.
    apart_from : Batches, or a data set of `loader.torch`, optional
        Refuse rows of a patient that this one draws too, of this file or another.
    allow_shared_patients : bool
        Do not refuse rows of patients that the file, or `apart_from`, also has in the other role:
        in validation or test where these are for training, and the reverse.
    seed : int
        From 0 to 2**64 - 1. The order of an epoch depends only on the seed and the epoch.
    shuffle : bool
        False keeps the order of the file.
    remainder : "sample", "keep", "pad" or "error"
        With n rows, and batch_size * world_size of them for one batch on every rank: "sample"
        leaves out a different random n mod that in each epoch; "keep" hands them out in a short
        last batch (but for n mod world_size, of which it warns); "pad" repeats rows of the epoch to
        fill it, see `is_padding`; "error" refuses.
    layout : "HWN", "NHW" or "NCHW"
        Axes of a batch: rows, columns, samples; samples, rows, columns; or with a channel axis of
        length 1. Views, at no cost.
    dtype : "stored" or "float32", optional
        Images as the file has them, or as float32. By default as stored, but float32 with
        `normalize`.
    normalize : "minmax", "percentile", "zscore" or "dataset", optional
        Scale each image by its minimum and maximum, or by its 1st and 99th percentile, clipped to
        0..1; by its mean and deviation; or by those of all rows of the file.
    augment : Augment, optional
        Random changes of images, which become float32, and masks, after `normalize`. The seed, the
        epoch and the row decide them, and nothing else.
    patches : Patches, optional
        One random part of each image and mask instead of all of it, before `augment`. The seed,
        the epoch and the row decide which.
    neighbours : int or Neighbours, optional
        So many images before and after each one as channels of it: with a number, neighbouring
        slices of the same phase. Images are then (rows, columns, channels, samples) in the layout
        "HWN", and (samples, channels, rows, columns) in the others. All channels are normalised
        with the statistics of the sample's own image, move together in `augment`, and with
        `patches` show the same place.
    transform : callable, or PerBatch, optional
        A function of your own, at last: called for each sample with the image, the mask, the row's
        manifest (column to value) and a `numpy.random.Generator`, whose seed is made of the seed,
        the epoch and the row. It returns an image and a mask, and may change those it is given. A
        state holds only whether there is one: functions cannot be compared.
    mask_channels : "bool", "uint8" or "float32", optional
        Masks of this type with a channel of each structure, in the order of `Dataset.channels`: 1
        inside of it, 0 elsewhere. They have an axis more, before rows and columns; with "HWN" after
        them. By default masks are as the file has them.
    prefetch : int
        How many batches a background thread prepares in advance.
    rank, world_size : int
        This process's share of each epoch, and how many share it.

    Attributes
    ----------
    dataset : Dataset
        The open file.
    rows : int64 array, shape (n,)
        The rows of the file that take part.
    indices, is_padding : int64 and bool array, shape (samples,)
        Which rows the batch just handed out to this thread holds, and which of them fill it up.
    epochs_completed : int
        Epochs whose last batch has been handed out.

    Raises
    ------
    TypeError, ValueError
        An argument that can never be right.
    LoaderError
        A file that cannot be opened or lacks the split or fold; rows or weights that do not fit
        it; patients in both training and validation; or no batch to hand out.

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
        where: Where | None = None,
        weights: Weights | None = None,
        balance: Balance | None = None,
        apart_from: HasRows | None = None,
        allow_shared_patients: bool = False,
        seed: int = 0,
        shuffle: bool = True,
        remainder: Remainder = "sample",
        layout: Layout = "HWN",
        dtype: Values | None = None,
        normalize: Normalize | None = None,
        augment: Augment | None = None,
        patches: Patches | None = None,
        neighbours: int | Neighbours | None = None,
        transform: Transform | None = None,
        mask_channels: MaskChannels | None = None,
        prefetch: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        split = None if split is None else choice("split", split, get_args(Split))
        fold_role = choice("fold_role", fold_role, get_args(FoldRole))
        remainder = choice("remainder", remainder, get_args(Remainder))
        check_bool("shuffle", shuffle)
        check_bool("allow_shared_patients", allow_shared_patients)
        balance = None if balance is None else choice("balance", balance, get_args(Balance))
        _check_weighting(weights, balance, shuffle=shuffle)
        batch_size = whole("batch_size", batch_size, 1, _MAX_SIZE)
        fold = None if fold is None else whole("fold", fold, 0)
        if fold is None and fold_role != "train":
            raise ValueError("fold_role: expected a fold with it, found none.")
        seed = whole("seed", seed, 0, 2**64)
        world_size = whole("world_size", world_size, 1, _MAX_SIZE)
        rank = whole("rank", rank, 0, world_size)
        form = _form(layout, dtype, normalize, augment)
        neighbours = check_neighbours(neighbours)
        form = form._replace(patches=patches, neighbours=neighbours, transform=transform)
        check_transform(transform)
        if mask_channels is not None:
            choice("mask_channels", mask_channels, get_args(MaskChannels))
            form = form._replace(mask_channels=mask_channels)
        prefetch = whole("prefetch", prefetch, 0, _MAX_PREFETCH + 1)
        self.dataset = source if isinstance(source, Dataset) else open_dataset(source)
        check_patches(patches, self.dataset)
        self._criteria = Criteria(split, fold, fold_role)
        self._has_where = where is not None
        self.dataset.check_whole()
        selection = select(self.dataset, self._criteria, where)
        others = None if apart_from is None else rows_of(apart_from)
        if not allow_shared_patients:
            check_patients(self.dataset, self._criteria, selection)
            if others is not None:
                check_apart(self.dataset, selection, *others)
        plan = EpochPlan(selection.n_samples, batch_size, world_size, remainder)
        check_plan(plan, self.dataset)
        table = weigh(self.dataset, selection, weights, balance)
        order = Order(plan, rank, seed, shuffle, selection, table)
        self._feed = Feed(self.dataset, order, form, prefetch)
        self._digests = {
            "selection": selection.digest,
            "weights": None if table is None else digest(table),
        }
        self._position: Position = (0, 0)
        self._start()
        warn_left_out(order)
        _warn_augmented(self._criteria, augment)
        if patches is not None:
            _warn_without_foreground(patches, self.dataset, self.rows)
        if neighbours is not None:
            _warn_without_place(neighbours, self.dataset, self.rows)

    def _start(self) -> None:
        """Make what a copy in another process must not share."""
        # One runtime for each process: a lock that another thread held when the process was forked
        # would never be released in the child, and the child has no prefetch thread.
        self._runtimes: dict[int, _Runtime] = {}
        self._handed_out = threading.local()

    def __getstate__(self) -> dict[str, object]:
        """Pickle the options and the position; rows chosen by the file are chosen anew from it."""
        state = self.__dict__.copy()
        for name in ("_runtimes", "_handed_out"):
            del state[name]
        selection = self._feed.order.selection
        state["_feed"] = self._feed.selecting(Selection(None, selection.n_samples))
        if self._has_where:
            state["where"] = np.packbits(selection.flags(len(self.dataset)))
        return state

    def __setstate__(self, state: dict[str, object]) -> None:
        """Go on from the position of the original."""
        packed = state.pop("where", None)
        self.__dict__.update(state)
        where = None
        if isinstance(packed, np.ndarray):
            where = np.unpackbits(packed, count=len(self.dataset)).view(np.bool_)
        self.dataset.check_whole()
        selection = select(self.dataset, self._criteria, where)
        if selection.digest != self._digests["selection"]:
            raise LoaderError(
                f"Batches not copied: {self.dataset.path}: the file was built anew with another "
                "split or other folds. Start again with the new file."
            )
        self._feed = self._feed.selecting(selection)
        self._start()

    def __len__(self) -> int:
        """Return the number of batches in an epoch, on this rank."""
        return self._feed.n_batches

    def __repr__(self) -> str:
        """Return the file, the choice of rows, and the position."""
        plan, (epoch, batch) = self._feed.order.plan, self._position
        return (
            f"<Batches of {self.description}, {len(self)} batches of {plan.batch_size}, "
            f"at batch {batch} of epoch {epoch}>"
        )

    @property
    def feed(self) -> Feed:
        """The order of the epochs and the arrays of any rows, for adapters to other frameworks."""
        return self._feed

    @property
    def description(self) -> str:
        """The file and which of its rows, in words."""
        split, fold, fold_role = self._criteria
        words = [repr(os.fspath(self.dataset.path))]
        words += [f"split={split!r}"] if split is not None else []
        words += [f"fold={fold}, fold_role={fold_role!r}"] if fold is not None else []
        words += ["where=..."] if self._has_where else []
        words += ["weighted"] if self._feed.order.table is not None else []
        return f"{', '.join(words)}: {self._feed.n_samples} rows"

    def __enter__(self) -> Self:
        """Return the object itself, to be closed where the `with` statement ends."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def __iter__(self) -> Iterator[Arrays]:
        """Hand out what is left of this epoch; all of it at its start."""
        epoch = self.epochs_completed
        while (arrays := self._next(None, epoch)) is not None:
            yield arrays

    def next_batch(self, out: Arrays | None = None) -> Arrays:
        """Return the next batch, of the next epoch where this one has ended.

        Parameters
        ----------
        out : pair of arrays, optional
            An earlier batch of full size, to be filled again instead of fresh arrays; or arrays of
            your own with the same shapes, types and memory order. With `prefetch`, the batch is
            copied there.

        Returns
        -------
        images : int16, uint16, int32 or float32 array
        masks : uint8, uint16 or uint32 array, or as `mask_channels` says
            Both (rows, columns, n), or as `layout` says. With `out`, views of its first n samples.

        Raises
        ------
        TypeError, ValueError
            `out` cannot hold a batch.
        LoaderError
            The file was written to or cut short, or lacks the statistics for `normalize`; or
            `transform` failed.
        """
        # With nothing after it that Ctrl-C could interrupt; only an epoch that ended gives none.
        return self._next(out, None)  # type: ignore[return-value]

    def close(self) -> None:
        """End the prefetch thread, if there is one; the next batch would start another."""
        self._go_to(self._position)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch, whatever was drawn before.

        Parameters
        ----------
        epoch : int
            From 0; `epochs_completed` is this number then.
        """
        self._go_to((whole("epoch", epoch, 0, _MAX_COUNT), 0))

    @property
    def epochs_completed(self) -> int:
        """Epochs whose last batch has been handed out."""
        return self._position[0]

    @property
    def rows(self) -> Indices:
        """The rows of the file that take part, ascending; int64, shape (n,)."""
        return self._feed.order.selection.chosen(len(self.dataset))

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
            "world_size": self._feed.order.plan.world_size,
            "epoch": epoch,
            "batch": batch,
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Go on from a position that `state_dict` returned, on any rank.

        Its numbers may be NumPy's, or arrays and tensors without axes.

        Raises
        ------
        LoaderError
            Not such a state; or of another dataset, seed, choice of samples, order, remainder or
            kind of values; or, in the middle of an epoch, of another batch_size or world_size.
        """
        where = f"State not loaded: {self.dataset.path}"
        own = self.state_dict()
        if not isinstance(state, Mapping):
            raise LoaderError(
                f"{where}: expected a dict, found {type(state).__name__}. Give what state_dict "
                "returned; json.loads makes it of its JSON."
            )
        # It may be of before there were these.
        added = dict.fromkeys(("augment", "patches", "neighbours", "mask_channels"))
        added |= {"transform": False}
        state = added | {name: plain(value) for name, value in state.items()}
        missing, unknown = (
            ", ".join(sorted(map(str, names))) or "nothing"
            for names in (own.keys() - state.keys(), state.keys() - own.keys())
        )
        if state.keys() != own.keys():
            raise LoaderError(
                f"{where}: not a state of this class (expected {', '.join(own)}; found {missing} "
                f"missing and {unknown} unknown). Give what state_dict of the same class returned."
            )
        epoch, batch = _count(state["epoch"]), _count(state["batch"])
        if epoch is None or batch is None:
            raise LoaderError(
                f"{where}: epoch and batch are counts (found {state['epoch']!r} and "
                f"{state['batch']!r}). Give what state_dict returned."
            )
        free = {"epoch", "batch"} if batch else {"epoch", "batch", *_OF_AN_EPOCH}
        differing = [
            name
            for name in own.keys() - free
            if (type(state[name]), state[name]) != (type(own[name]), own[name])
        ]
        if differing:
            differing.sort(key=list(own).index)
            named = (self._difference(name, own[name], state[name]) for name in differing)
            raise LoaderError(
                f"{where}: it differs in {', '.join(named)}. "
                "Make Batches with the file and the options that the state belongs to; the "
                "selection is what split, fold and where choose."
                + (_AT_THE_START if set(differing) <= set(_OF_AN_EPOCH) else "")
            )
        if batch and batch >= len(self):
            raise LoaderError(
                f"{where}: an epoch has {len(self)} batches, found batch {batch}. "
                "Give what state_dict returned."
            )
        self._go_to((epoch, batch))

    def _difference(self, name: str, own: object, found: object) -> str:
        augment = self._feed.form.augment
        if name == "augment" and augment is not None:
            return augment.difference(found if isinstance(found, str) else None)
        return f"{name} (expected {own!r}, found {found!r})"

    def _identity(self) -> dict[str, str | int | None]:
        order, criteria, augment = self._feed.order, self._criteria, self._feed.form.augment
        patches, neighbours = self._feed.form.patches, self._feed.form.neighbours
        return {
            "dataset_id": self.dataset.dataset_id,
            "seed": order.seed,
            "batch_size": order.plan.batch_size,
            "split": criteria.split,
            "fold": criteria.fold,
            "fold_role": criteria.fold_role,
            **self._digests,
            "remainder": order.plan.remainder,
            "shuffle": order.shuffle,
            "dtype": str(self._feed.image_dtype),
            "normalize": self._feed.form.normalize,
            "augment": None if augment is None else augment.to_json(),
            "patches": None if patches is None else repr(patches),
            "neighbours": None if neighbours is None else repr(neighbours),
            "transform": self._feed.form.transform is not None,
            "mask_channels": self._feed.form.mask_channels,
        }

    @property
    def _runtime(self) -> "_Runtime":
        runtime = self._runtimes.get(os.getpid())
        return runtime or self._runtimes.setdefault(os.getpid(), _Runtime())

    def _go_to(self, position: Position) -> None:
        runtime = self._runtime
        with runtime.lock:
            runtime.stop()
            self._position = position

    def _next(self, out: Arrays | None, epoch: int | None) -> Arrays | None:
        """Return the next batch; none where `epoch` is given and has ended.

        Whatever happens on the way, a batch that is not handed out is the next one again; unless
        another thread has drawn one meanwhile.
        """
        runtime, drawn = self._runtime, None
        if out is not None:
            out = self._feed.samples_of(out, self._feed.batch_size)
        try:
            with runtime.lock:
                before = self._position
                if epoch is not None and before[0] != epoch:
                    return None
                try:
                    stream, drawn, arrays = self._draw(runtime)
                except BaseException:
                    self._go_to(before)
                    raise
            if arrays is None:
                arrays = stream.gather(drawn, out)
            elif out is not None:
                arrays = self._feed.copy(arrays, out, len(drawn.rows))
            self._handed_out.rows, self._handed_out.is_padding = drawn.rows, drawn.is_padding
            return arrays
        except BaseException:
            with runtime.lock:
                if drawn is not None and self._position == drawn.after:  # no thread has gone on
                    self._go_to(before)
            raise

    def _draw(self, runtime: "_Runtime") -> tuple[Stream, Drawn, Arrays | None]:
        """Go past the next batch; return it, without its pixels where nobody has prepared them."""
        while True:
            stream = runtime.stream or self._start_stream(runtime)
            try:
                drawn, arrays = runtime.take(stream)
            except Exception:
                if runtime.stream is stream:
                    raise
                continue  # a signal's handler has closed it meanwhile
            if runtime.stream is stream:  # not so where a handler has gone elsewhere
                # In one assignment, so that a fork at any moment finds a whole position.
                self._position = drawn.after
                return stream, drawn, arrays

    def _start_stream(self, runtime: "_Runtime") -> Stream:
        stream = self._feed.stream(self._position)
        runtime.stream = stream
        if self._feed.prefetch:
            prefetcher = Prefetcher(stream.make, self._feed.prefetch)
            runtime.end = weakref.finalize(self, prefetcher.close)
            runtime.prefetcher = prefetcher
            prefetcher.start()
        return stream


class _Runtime:
    """What draws the batches in one process."""

    def __init__(self) -> None:
        # Reentrant, for the handler of a signal that closes the batches or loads a state.
        self.lock = threading.RLock()
        self.stream: Stream | None = None
        self.prefetcher: Prefetcher[tuple[Drawn, Arrays]] | None = None
        self.end: Callable[[], object] = lambda: None  # of the prefetcher; once, at exit at last

    def take(self, stream: Stream) -> tuple[Drawn, Arrays | None]:
        """Return the next batch; without its pixels where nobody has prepared them."""
        prefetcher = self.prefetcher  # a signal's handler may come in between
        return (stream.draw(), None) if prefetcher is None else prefetcher.get()

    def stop(self) -> None:
        """Forget what was prepared; the next batch is drawn from the position then."""
        prefetcher = self.prefetcher  # a signal's handler may come in between
        if prefetcher is not None:
            prefetcher.close()  # directly, for an interruption may have spent the finalizer
        self.end()  # spends it: one that is unspent would keep each old prefetcher alive
        self.stream = self.prefetcher = None


def _form(
    layout: Layout, dtype: Values | None, normalize: Normalize | None, augment: Augment | None
) -> Form:
    layout = choice("layout", layout, get_args(Layout))
    if dtype is not None:
        dtype = choice("dtype", dtype, get_args(Values))
    if normalize is not None:
        normalize = choice("normalize", normalize, get_args(Normalize))
        if dtype == "stored":
            raise ValueError(
                'dtype: normalised images are float32, found "stored". Leave dtype out, or use '
                "normalize=None."
            )
    if augment is not None:
        if not isinstance(augment, Augment):
            raise TypeError(f"augment: expected a loader.Augment or None, found {augment!r}.")
        if dtype == "stored":
            raise ValueError(
                'dtype: augmented images are float32, found "stored". Leave dtype out, or use '
                "augment=None."
            )
    is_float32 = dtype == "float32" or normalize is not None or augment is not None
    return Form(layout, is_float32, normalize, augment)


def _check_weighting(weights: Weights | None, balance: Balance | None, *, shuffle: bool) -> None:
    if balance is not None and weights is not None:
        raise ValueError("balance: expected either weights or balance, found both.")
    if (weights is not None or balance is not None) and not shuffle:
        raise ValueError("shuffle: weighted draws have no order of the file; expected True.")


def check_plan(plan: EpochPlan, dataset: Dataset) -> None:
    """Refuse a plan that hands out no batch, or leaves rows over that must not be."""
    where = f"Batches not made: {dataset.path}"
    sizes = f"batch_size {plan.batch_size} x world_size {plan.world_size}"
    if plan.remainder == "error" and plan.n_left_out:
        raise LoaderError(
            f"{where}: rows are left over after the last whole batch (expected a multiple of "
            f"{plan.n_per_step}, {sizes}; found {plan.n_samples}). Choose a batch_size that "
            'divides them, or remainder="keep", "pad" or "sample".'
        )
    if plan.n_samples == 0:
        raise LoaderError(
            f"{where}: the file has no rows. Build it of data with contours; dicom-etl report "
            "tells why it has none."
        )
    if plan.n_batches == 0:
        needed = {"keep": plan.world_size, "pad": 1}.get(plan.remainder, plan.n_per_step)
        others = '"pad"' if plan.n_samples < plan.world_size else '"keep" or "pad"'
        raise LoaderError(
            f"{where}: too few rows for one batch on every rank (expected {needed} or more for "
            f"{sizes}, found {plan.n_samples}). Choose a smaller batch_size or fewer ranks, or "
            f"remainder={others}."
        )


def warn_left_out(order: Order) -> None:
    """Tell the user once that an epoch leaves out rows."""
    plan = order.plan
    if not plan.n_left_out or order.table is not None:
        return
    counted = f"{plan.n_left_out} of {plan.n_samples} rows"
    if plan.remainder == "sample":
        _warn(
            f"{counted} fill no whole batch and are left out, other ones at random in each epoch. "
            'remainder="keep" hands them out in a short last batch, "pad" fills that batch up.'
        )
        return
    which = "other ones at random in each epoch" if order.shuffle else "the same in every epoch"
    _warn(
        f"{counted} are left out, {which}, because {plan.world_size} ranks cannot share them "
        'evenly. remainder="pad" hands out all of them; is_padding marks the rows that it repeats.'
    )


def _warn_augmented(criteria: Criteria, augment: Augment | None) -> None:
    """Tell the user once that rows which judge a model are changed at random."""
    roles = {criteria.split, criteria.fold_role} & {"validation", "test"}
    if augment is not None and roles:
        _warn(
            f"Rows for {roles.pop()} are augmented, so that a figure of them is not of the images "
            "in the file. Leave augment out; or this is test-time augmentation, and meant."
        )


def _warn_without_foreground(patches: Patches, dataset: Dataset, rows: Indices) -> None:
    """Tell the user once that some rows have nothing to centre a patch on."""
    n_without = len(rows_without(patches, dataset, rows))
    if n_without:
        _warn(
            f"{n_without} of {len(rows)} rows show no structure to centre a patch on; theirs are "
            "anywhere. Leave these rows out with where, or use foreground=0."
        )


def _warn_without_place(neighbours: Neighbours, dataset: Dataset, rows: Indices) -> None:
    """Tell the user once that some rows lack what decides their neighbours."""
    n_without = neighbours.n_without_place(dataset, rows)
    if n_without:
        _warn(
            f"{n_without} of {len(rows)} rows have no place along {neighbours.along}, so that they "
            f"have no neighbours. They lack {LACKING[neighbours.along]}. Leave these rows out with "
            "where, or use along='number'."
        )


def _warn(message: str) -> None:
    depth, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals["__name__"].partition(".")[0] == "loader":
        depth, frame = depth + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=depth)  # the caller's own line


def _count(value: object) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_COUNT:
        return value
    return None
