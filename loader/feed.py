"""Rows of a file → batches of arrays, in the order of an epoch. The adapters' door."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple, TypeAlias, TypeVar, cast

import numpy as np
import numpy.typing as npt

from loader.augment.parameters import draw_parameters
from loader.augment.settings import Augment
from loader.channels import Channels, HandedOut, MaskChannels, Unpacker
from loader.dataset import Dataset, Images, Masks
from loader.lookahead import LookAhead
from loader.neighbours import NONE, Neighbours
from loader.normalise import Floats, Normalize, Scaler, convert, scale, scaler
from loader.patches import Cutter, Patches, Places, Windows, part
from loader.sampler import EpochPlan, Indices, Table, draw, draw_weighted
from loader.selection import Selection
from loader.transform import Transform, transform_samples

Layout: TypeAlias = Literal["HWN", "NHW", "NCHW"]
Padding: TypeAlias = npt.NDArray[np.bool_]
Position: TypeAlias = tuple[int, int]  # epoch, batch of it
Arrays: TypeAlias = tuple[Images, HandedOut]
Samples: TypeAlias = tuple[Images, Masks]  # as stored

_Value = TypeVar("_Value", bound=np.generic)

# Positions drawn at a time: enough that NumPy's calls cost little for each.
_BLOCK: Final = 4096
# Patches whose places are looked up at a time, for the same reason.
_WINDOWS: Final = 256


@dataclass(frozen=True, eq=False)
class Order:
    """Which rows of the file each batch of this rank has; pure.

    Attributes
    ----------
    plan : EpochPlan
    rank : int
    seed : int
    shuffle : bool
    selection : Selection
    table : float64 array, optional
        Cumulative weights of the selected rows.
    """

    plan: EpochPlan
    rank: int
    seed: int
    shuffle: bool
    selection: Selection
    table: Table | None

    def rows(self, epoch: int, batches: range) -> tuple[Indices, Padding]:
        """Return the rows of some consecutive batches of an epoch, and which of them pad."""
        positions = self.plan.positions(self.rank, batches.start, batches.stop)
        if self.table is None:
            drawn = draw(self.plan, positions, seed=self.seed, epoch=epoch, shuffle=self.shuffle)
        else:
            drawn = draw_weighted(self.plan, positions, self.table, seed=self.seed, epoch=epoch)
        return self.selection.take(drawn), positions >= self.plan.n_samples

    def copies(self, batches: range) -> Indices:
        """Return the copy of each sample of some batches, which tells augmentations apart.

        Draws with replacement have their position in the epoch. Otherwise it is 0, as an epoch has
        each row once; a row that pads is the same sample again.
        """
        positions = self.plan.positions(self.rank, batches.start, batches.stop)
        return positions % (1 if self.table is None else self.plan.n_samples)


class Drawn(NamedTuple):
    """One batch's rows and padding, the position after it, and what decides its pixels."""

    rows: Indices
    is_padding: Padding
    after: Position
    epoch: int
    copies: Indices
    corners: Indices | None = None  # of patches

    def part(self, samples: slice) -> "Drawn":
        """Return some samples of it."""
        corners = None if self.corners is None else self.corners[samples]
        return self._replace(
            rows=self.rows[samples],
            is_padding=self.is_padding[samples],
            copies=self.copies[samples],
            corners=corners,
        )


def join(draws: Sequence[Drawn]) -> Drawn:
    """Return consecutive batches of an epoch as one."""
    corners = [drawn.corners for drawn in draws if drawn.corners is not None]
    return Drawn(
        rows=np.concatenate([drawn.rows for drawn in draws]),
        is_padding=np.concatenate([drawn.is_padding for drawn in draws]),
        after=draws[-1].after,
        epoch=draws[0].epoch,
        copies=np.concatenate([drawn.copies for drawn in draws]),
        corners=np.concatenate(corners) if corners else None,
    )


class _Block(NamedTuple):
    """Rows and padding of some consecutive batches of one epoch."""

    epoch: int
    batches: range
    rows: Indices
    is_padding: Padding
    copies: Indices


class Walk:
    """The rows of batch after batch, from a position on; for one thread at a time.

    With a stride of k it takes every k-th batch of the epoch that it starts in.
    """

    def __init__(self, order: Order, position: Position, stride: int = 1) -> None:
        self._order = order
        self._stride = stride
        self._position = position
        self._block: _Block | None = None

    def __next__(self) -> Drawn:
        """Return the next batch's rows, of the next epoch where this one has ended."""
        epoch, batch = self._position
        block, plan = self._block, self._order.plan
        if block is None or block.epoch != epoch or batch not in block.batches:
            block = self._block = self._draw_block(epoch, batch)
        start = (batch - block.batches.start) * plan.batch_size
        taken = slice(start, start + plan.batch_size)
        following = batch + self._stride
        self._position = (epoch, following) if following < plan.n_batches else (epoch + 1, 0)
        rows, is_padding = block.rows[taken], block.is_padding[taken]
        return Drawn(rows, is_padding, self._position, epoch, block.copies[taken])

    def _draw_block(self, epoch: int, first: int) -> _Block:
        plan = self._order.plan
        stop = min(plan.n_batches, first + max(1, _BLOCK // plan.batch_size))
        batches = range(first, stop)
        order = self._order
        return _Block(epoch, batches, *order.rows(epoch, batches), order.copies(batches))


class Form(NamedTuple):
    """How the arrays of a batch are laid out.

    Attributes
    ----------
    layout : "HWN", "NHW" or "NCHW"
    is_float32 : bool
        Images as float32 rather than as stored.
    normalize : str, optional
        A kind of `scale`.
    augment : Augment, optional
    patches : Patches, optional
    transform : callable or PerBatch, optional
    neighbours : Neighbours, optional
    mask_channels : str, optional
        The type of masks that have a channel of each structure.
    """

    layout: Layout
    is_float32: bool
    normalize: Normalize | None
    augment: Augment | None = None
    patches: Patches | None = None
    transform: Transform | None = None
    neighbours: Neighbours | None = None
    mask_channels: MaskChannels | None = None

    @property
    def is_random(self) -> bool:
        """Whether the epoch may decide what a sample looks like."""
        return any(one is not None for one in (self.augment, self.patches, self.transform))

    @property
    def takes_whole(self) -> bool:
        """Whether a sample may show pixels from beyond its patch, because it is resampled."""
        return self.augment is not None and self.augment.resamples

    @property
    def needs_host(self) -> bool:
        """Whether no device can make the batches."""
        return self.transform is not None or self.neighbours is not None


class Gatherer:
    """Copies rows of a dataset into batches; any thread may use it.

    Parameters
    ----------
    dataset : Dataset
    form : Form
    seed : int
        Of the augmentation.

    Attributes
    ----------
    image_dtype, mask_dtype : numpy.dtype
        Of the images and masks handed out.
    shape : (int, int)
        Rows and columns of the samples handed out.
    windows : Windows, optional
        Where patches are.
    """

    def __init__(self, dataset: Dataset, form: Form, seed: int) -> None:
        self._dataset = dataset
        self._form = form
        self._seed = seed
        self.image_dtype = np.dtype(np.float32) if form.is_float32 else dataset.images.dtype
        self.mask_dtype = np.dtype(form.mask_channels or dataset.masks.dtype)
        self.shape = dataset.images.shape[1:] if form.patches is None else form.patches.size
        # Which row each channel of a row shows.
        self._shown = None if form.neighbours is None else form.neighbours.shown(dataset)
        self._channels = () if self._shown is None else self._shown.shape[1:]
        self._has_channels = form.mask_channels is not None
        n_channels = (len(dataset.structures),) if self._has_channels else ()
        self._mask_sides = (*n_channels, *self.shape)
        self._is_copied = self.image_dtype == dataset.images.dtype and form.normalize is None
        # As bytes, because np.take would first copy the whole of an array that is not aligned in
        # the file.
        self._image_bytes = _memory_of(dataset.images)
        self._mask_bytes = _memory_of(dataset.masks)
        patches = form.patches
        self.windows = None if patches is None else Windows(dataset, patches, seed)
        self._is_padded = patches is not None and patches.pad
        self._minima = dataset.manifest["minimum"] if self._is_padded else None
        self._cutters = tuple(
            Cutter(samples, self.shape)
            for samples in (dataset.images, dataset.masks)
            if patches is not None
        )
        self.takes_whole = form.takes_whole

    def gather(
        self,
        rows: Indices,
        out: Arrays | None,
        epoch: int = 0,
        copies: Indices | None = None,
        corners: Indices | None = None,
    ) -> Arrays:
        """Return the images and masks of some rows, all of the file that was opened.

        Parameters
        ----------
        rows : int64 array, shape (n,)
        out : pair of arrays, optional
            What `samples_of` returned, n samples or more of it; otherwise fresh arrays are filled.
        epoch : int
        copies : int64 array, shape (n,), optional
            What augmentation depends on, see `draw_parameters`.
        corners : int64 array, shape (n, 2), optional
            What `windows` has for these rows, where it has been asked.

        Raises
        ------
        LoaderError
            The file was written to or cut short, before or meanwhile; or the transform failed.
        ValueError
            `out` has another shape than what the transform returned.
        """
        copies = np.zeros_like(rows) if copies is None else copies
        if self._form.transform is None:
            images, masks = self._samples(rows, out, epoch, copies, corners)
            return self._arrange(images), self._arrange(masks)
        # Where the transform keeps the sides, it works in the caller's buffers.
        sides = (*self._channels, *self.shape), self._mask_sides
        fits = out is not None and (out[0].shape[1:], out[1].shape[1:]) == sides
        samples = self._samples(rows, out if fits else None, epoch, copies, corners)
        arrays = transform_samples(
            self._form.transform,
            self._dataset,
            *samples,
            seed=self._seed,
            epoch=epoch,
            rows=rows,
            copies=copies,
        )
        changed = self._arrange(arrays[0]), self._arrange(arrays[1])
        is_there = fits and arrays[0] is samples[0] and arrays[1] is samples[1]
        return changed if out is None or is_there else self.copy(changed, out, len(rows))

    def _samples(
        self,
        rows: Indices,
        out: Arrays | None,
        epoch: int,
        copies: Indices,
        corners: Indices | None,
    ) -> Arrays:
        """Return the samples, one after the other in memory, before a transform."""
        self._dataset.file.check_length()
        n, augment = len(rows), self._form.augment
        if corners is None and self.windows is not None:
            corners = self.windows.corners(rows, epoch, copies)
        images, masks = (None, None) if out is None else (out[0][:n], out[1][:n])
        # Masks as stored go where the caller wants them, but for those that are to be unpacked.
        words = None if self._has_channels else cast("Masks | None", masks)
        if augment is None and corners is not None:
            places = Places(corners, self._dataset.images.shape[1:], self.shape)
            images = self._cut_images(rows, places, images)
            words = self._cut_masks(rows, places, words)
        else:
            if images is None:
                images = self._room(n)
            if augment is None:
                self._fill_images(rows, images)
                words = None
            else:
                if words is None:
                    words = np.empty((n, *self.shape), self._dataset.masks.dtype)
                self._fill_augmented(augment, rows, epoch, copies, images, words, corners)
        if words is None or self._has_channels:
            if masks is None:
                masks = np.empty((n, *self._mask_sides), self.mask_dtype)
            self._fill_masks(rows, words, masks)
        else:
            masks = words
        self._dataset.check_whole()
        return images, masks

    def _room(self, n_samples: int) -> Images:
        return np.empty((n_samples, *self._channels, *self.shape), self.image_dtype)

    def samples_of(self, out: Arrays, n_samples: int) -> Arrays:
        """Return the caller's buffers as (samples, rows, columns), once they have been checked.

        Raises
        ------
        TypeError, ValueError
            They are not of the type, shape or memory order of a batch.
        """
        if not isinstance(out, tuple | list) or len(out) != len(("images", "masks")):
            raise TypeError("out: expected a pair of arrays, images and masks.")
        images = self._samples_of(out[0], self.image_dtype, n_samples, self._channels)
        masks = self._samples_of(out[1], self.mask_dtype, n_samples, self._mask_sides[:-2])
        if np.may_share_memory(images, masks):
            raise ValueError("out: images and masks overlap in memory; give each an array.")
        return images, masks

    def copy(self, arrays: Arrays, out: Arrays, n_samples: int) -> Arrays:
        """Return a batch that was gathered before as views of the caller's buffers."""
        images, masks = self._arrange(out[0][:n_samples]), self._arrange(out[1][:n_samples])
        for array, found in zip(arrays, (images, masks), strict=True):
            if array.shape != found.shape:  # only a transform decides the shape so late
                raise ValueError(f"out: expected {array.shape}, found {found.shape}.")
        np.copyto(images, arrays[0])
        np.copyto(masks, arrays[1])
        return images, masks

    def shown(self, rows: Indices) -> Indices:
        """Return the rows whose images some rows show, by sample and channel; NONE for zeros."""
        return rows if self._shown is None else self._shown[rows].reshape(-1)

    @property
    def n_channels(self) -> int:
        """Images that each sample shows."""
        return math.prod(self._channels)

    def _read(self, rows: Indices) -> tuple[Indices, Indices]:
        """Return the rows whose images are read, and those whose statistics they take.

        All channels are normalised as the sample's own image, so that they stay comparable. For a
        channel of zeros this image is read once more, and no other.
        """
        if not self._channels:
            return rows, rows
        shown, own = self.shown(rows), np.repeat(rows, self.n_channels)
        return np.where(shown == NONE, own, shown), own

    def _blank(self, rows: Indices, images: Images) -> None:
        """Write the channels of zeros."""
        if self._channels:
            images.reshape(-1, *self.shape)[self.shown(rows) == NONE] = 0

    def _fill_images(self, rows: Indices, images: Images) -> None:
        read, like = self._read(rows)
        flat = images.reshape(-1, *self.shape)  # a view: samples lie one after the other
        if self._is_copied:
            self._image_bytes.take(read, 0, _memory_of(flat), "clip")
        elif self._form.normalize is None:
            convert(self._dataset.images, read, cast("Floats", flat))
        else:
            scale(self._dataset, self._form.normalize, read, cast("Floats", flat), like)
        self._blank(rows, images)

    def _fill_masks(self, rows: Indices, words: Masks | None, masks: HandedOut) -> None:
        """Write masks from those as stored: given ones, or without them the file's."""
        if self._form.mask_channels is not None:
            stored = map(self._dataset.masks.__getitem__, rows.tolist()) if words is None else words
            unpacker = Unpacker(
                self._dataset.structures,
                self._form.mask_channels,
                self.shape,
                self._dataset.masks.dtype,
            )
            for mask, channels in zip(stored, masks, strict=True):
                unpacker.write(mask, cast("Channels", channels))
        else:
            # Every row is valid; "clip" spares the buffer that "raise" needs.
            self._mask_bytes.take(rows, 0, _memory_of(masks), "clip")

    def _cut_images(self, rows: Indices, places: Places, out: Images | None) -> Images:
        """Return the patches of images: in fresh memory, or in that given."""
        cutter, (read, like) = self._cutters[0], self._read(rows)
        paddings = self._paddings(read)
        if self._channels:
            corners = np.repeat(places.corners, self.n_channels, axis=0)
            places = Places(corners, self._dataset.images.shape[1:], self.shape)
        if out is None and self._is_copied:
            found = cutter.windows(read, places, paddings)
            images = cast("Images", found.reshape(len(rows), *self._channels, *self.shape))
        else:
            images = self._room(len(rows)) if out is None else out
            flat = images.reshape(-1, *self.shape)
            if self._is_copied:
                cutter.copy(read, places, paddings, flat)
            else:
                write, corners = self._writer(like), places.corners.tolist()
                each = zip(read.tolist(), like.tolist(), corners, paddings.tolist(), strict=True)
                for i, (row, own, corner, padding) in enumerate(each):
                    stored = cast("Images", cutter.window(row, corner, padding))
                    write(i, stored, cast("Floats", flat[i]), is_own=row == own)
        self._blank(rows, images)
        return images

    def _cut_masks(self, rows: Indices, places: Places, out: Masks | None) -> Masks:
        """Return the patches of masks as stored: in fresh memory, or in that given."""
        paddings = np.zeros(len(rows), self._dataset.masks.dtype)
        if out is None:
            return cast("Masks", self._cutters[1].windows(rows, places, paddings))
        self._cutters[1].copy(rows, places, paddings, out)
        return out

    def _fill_augmented(
        self,
        augment: Augment,
        rows: Indices,
        epoch: int,
        copies: Indices,
        images: Images,
        masks: Masks,
        corners: Indices | None,
    ) -> None:
        """Fill in sample by sample, each while it is in the processor's cache."""
        from loader.augment.arrays import SampleAugmenter
        from loader.augment.arrays import Windows as Places

        dataset = self._dataset
        parameters = draw_parameters(
            augment, self.shape, seed=self._seed, epoch=epoch, rows=rows, copies=copies
        )
        places = None
        if corners is not None:
            places = Places(corners, dataset.images.shape[1:], self._is_padded)
        augmenter = SampleAugmenter(parameters, places)
        buffer = np.empty(max(n * m for _, (n, m) in augmenter.regions), np.float32)
        write, read = self._writer(rows), self._read(rows)[0]
        channels = cast("Floats", images).reshape(len(rows), self.n_channels, *self.shape)
        middle = self.n_channels // 2
        shown = self.shown(rows).reshape(len(rows), -1).tolist()
        paddings = self._paddings(read).reshape(len(rows), -1).tolist()
        for i, (sample, mask) in enumerate(zip(channels, masks, strict=True)):
            corner, size = augmenter.regions[i]
            augmenter.move_mask(i, part(dataset.masks[rows[i]], corner, size, 0), mask)
            each = zip(sample, shown[i], paddings[i], strict=True)
            for channel, (image, row, padding) in enumerate(each, -middle):
                if row == NONE:
                    image[...] = 0
                    continue
                stored, is_own = part(dataset.images[row], corner, size, padding), row == rows[i]
                if augmenter.is_resampled[i]:
                    plain = buffer[: stored.size].reshape(size)
                    write(i, stored, plain, is_own=is_own)
                    augmenter.resample(i, plain, image)
                else:  # stored values are turned, because they may be half as large
                    write(i, augmenter.turned(i, stored), image, is_own=is_own)
                augmenter.shade(i, image, channel)

    def _writer(self, rows: Indices) -> Scaler:
        """Return what writes the pixels of the i-th row as the form says."""
        normalize = self._form.normalize
        return _convert if normalize is None else scaler(self._dataset, normalize, rows)

    def _paddings(self, rows: Indices) -> Images:
        """Return the value around each image."""
        stored = self._dataset.images.dtype
        if self._minima is None:
            return np.zeros(len(rows), stored)  # of no pixel
        minima: Images = self._minima[rows].astype(stored)
        return minima

    def _arrange(self, samples: npt.NDArray[_Value]) -> npt.NDArray[_Value]:
        has_channels = samples.ndim == len("NCHW")
        if self._form.layout == "HWN":
            return samples.transpose((2, 3, 1, 0) if has_channels else (1, 2, 0))
        if has_channels or self._form.layout == "NHW":
            return samples
        return samples[:, np.newaxis]

    def _samples_of(
        self,
        array: npt.NDArray[_Value],
        dtype: np.dtype[np.generic],
        n_samples: int,
        channels: tuple[int, ...],
    ) -> npt.NDArray[_Value]:
        layout: str = self._form.layout
        if channels:
            layout = "HWCN" if layout == "HWN" else "NCHW"
        if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != len(layout):
            found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array)
            raise TypeError(f"out: expected {dtype} arrays with the axes {layout}, found {found}.")
        samples = array
        if self._form.layout == "HWN":
            samples = array.transpose((3, 2, 0, 1) if channels else (2, 0, 1))
        elif layout == "NCHW" and not channels:
            samples = array.reshape(len(array), *array.shape[2:]) if array.shape[1] == 1 else array
        # A transform may change the sides; `copy` then compares them with what it returned.
        sides = (*channels, *self.shape)
        sides = sides if self._form.transform is None else samples.shape[1:]
        if samples.shape[1:] != sides or len(samples) < n_samples:
            raise ValueError(
                f"out: expected room for {n_samples} samples of {sides}, found {array.shape}."
            )
        if not (samples.flags.c_contiguous and samples.flags.writeable):
            raise ValueError(
                "out: expected writable arrays whose samples lie one after the other in memory. "
                "Reuse what next_batch returned."
            )
        return samples


class Stream:
    """Batch after batch from a position on, as `Walk` has them.

    `draw` is for one thread at a time, `gather` for any.
    """

    def __init__(
        self,
        dataset: Dataset,
        order: Order,
        gatherer: Gatherer,
        start: Position,
        stride: int = 1,
    ) -> None:
        self._gatherer = gatherer
        self._walk = Walk(order, start, stride)
        self._coming: deque[Drawn] = deque()
        self._look_ahead = LookAhead(dataset, order.plan.batch_size)
        has_patches = gatherer.windows is not None
        self._n_together = max(1, _WINDOWS // order.plan.batch_size) if has_patches else 1

    def draw(self) -> Drawn:
        """Return the next batch's rows, and have the kernel read those of the ones after it."""
        while len(self._coming) < max(1, self._look_ahead.n_batches):
            self._coming.extend(self._draw_some())
        return self._coming.popleft()

    def _draw_some(self) -> list[Drawn]:
        """Return the next batches of an epoch: of patches several, whose places cost less then."""
        draws = [next(self._walk)]
        while len(draws) < self._n_together and draws[-1].after[0] == draws[0].epoch:
            draws.append(next(self._walk))
        windows, look_ahead = self._gatherer.windows, self._look_ahead
        is_cold = look_ahead.n_batches > 0
        if windows is None or self._gatherer.takes_whole:
            if is_cold:
                for drawn in draws:
                    self._ask(drawn.rows)
            if windows is None:
                return draws
        joined = join(draws)
        if is_cold and windows.reads_masks:
            look_ahead.ask_masks(joined.rows)
        corners = windows.corners(joined.rows, joined.epoch, joined.copies)
        if is_cold and not self._gatherer.takes_whole:
            self._ask(joined.rows, corners[:, 0], windows.n_rows)
        ends = np.cumsum([len(drawn.rows) for drawn in draws])
        parts = np.split(corners, ends[:-1])
        return [drawn._replace(corners=one) for drawn, one in zip(draws, parts, strict=True)]

    def _ask(self, rows: Indices, tops: Indices | None = None, n_lines: int = 0) -> None:
        """Have the kernel read some rows, or so many lines of each, and what they show besides."""
        n_channels = self._gatherer.n_channels
        if n_channels == 1:
            self._look_ahead.ask(rows, tops, n_lines)
            return
        shown = self._gatherer.shown(rows)
        tops_of_shown = None if tops is None else np.repeat(tops, n_channels)[shown != NONE]
        self._look_ahead.ask_images(shown[shown != NONE], tops_of_shown, n_lines)
        self._look_ahead.ask_masks(rows, tops, n_lines)

    def gather(self, drawn: Drawn, out: Arrays | None = None) -> Arrays:
        """Return the pixels of a batch."""
        arrays = self._gatherer.gather(drawn.rows, out, drawn.epoch, drawn.copies, drawn.corners)
        self._look_ahead.note()
        return arrays

    def make(self) -> tuple[Drawn, Arrays]:
        """Return the next batch, rows and pixels."""
        drawn = self.draw()
        return drawn, self.gather(drawn)


class Feed:
    """The rows of a file that take part, the order of their epochs, and their arrays.

    Everything here is a function of its arguments; the position in an epoch is its user's. It
    pickles without the arrays of its selection where `Selection` allows it, see `Batches`.

    Parameters
    ----------
    dataset : Dataset
    order : Order
    form : Form
    prefetch : int
        How many batches a thread should prepare in advance.

    Attributes
    ----------
    ranks : callable, optional
        Returns the rank and the number of ranks of this process now; asked for with every order.
    """

    def __init__(self, dataset: Dataset, order: Order, form: Form, prefetch: int) -> None:
        self.dataset = dataset
        self.form = form
        self.prefetch = prefetch
        self.ranks: Callable[[], tuple[int, int]] | None = None
        self.on_new_ranks: Callable[[Order], None] | None = None
        self._order = order
        self._gatherer = Gatherer(dataset, form, order.seed)

    def __getstate__(self) -> dict[str, object]:
        """Pickle without what the dataset holds."""
        return {name: value for name, value in self.__dict__.items() if name != "_gatherer"}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Gather from the dataset of this process."""
        self.__dict__.update(state)
        self._gatherer = Gatherer(self.dataset, self.form, self._order.seed)

    @property
    def order(self) -> Order:
        """Which rows each batch of this rank has."""
        if self.ranks is not None:
            order, (rank, world_size) = self._order, self.ranks()
            # It does not run in a spawned worker: there the rank is the one that was pickled.
            if world_size > 1 and (rank, world_size) != (order.rank, order.plan.world_size):
                plan = replace(order.plan, world_size=world_size)
                self._order = replace(order, plan=plan, rank=rank)
                if self.on_new_ranks is not None:
                    self.on_new_ranks(self._order)
        return self._order

    def as_stored(self) -> "Feed":
        """Return the same feed of images as the file has them, for who changes them elsewhere.

        Its patches are cut out; but where they are resampled, images are whole.
        """
        patches = None if self.form.takes_whole else self.form.patches
        form = Form("NHW", is_float32=False, normalize=None, patches=patches)
        feed = Feed(self.dataset, self._order, form, self.prefetch)
        feed.ranks, feed.on_new_ranks = self.ranks, self.on_new_ranks
        return feed

    def selecting(self, selection: Selection) -> "Feed":
        """Return the same feed of another selection of as many rows."""
        feed = Feed(
            self.dataset, replace(self._order, selection=selection), self.form, self.prefetch
        )
        feed.ranks, feed.on_new_ranks = self.ranks, self.on_new_ranks
        return feed

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the samples handed out."""
        return self._gatherer.shape

    @property
    def stored_shape(self) -> tuple[int, int]:
        """Rows and columns of the samples of `as_stored`."""
        return self.dataset.images.shape[1:] if self.form.takes_whole else self.shape

    @property
    def windows(self) -> Windows | None:
        """Where patches are; none where images are whole."""
        return self._gatherer.windows

    @property
    def n_batches(self) -> int:
        """Batches in an epoch, on this rank."""
        return self.order.plan.n_batches

    @property
    def batch_size(self) -> int:
        """Samples in a batch, on this rank."""
        return self.order.plan.batch_size

    @property
    def n_samples(self) -> int:
        """Rows that take part."""
        return self._order.selection.n_samples

    @property
    def image_dtype(self) -> np.dtype[np.generic]:
        """Type of the images handed out."""
        return self._gatherer.image_dtype

    def rows(self, samples: Indices) -> Indices:
        """Return the rows of the file that some samples of the selection are."""
        return self._order.selection.take(samples)

    def arrays(self, rows: Indices, out: Arrays | None = None, epoch: int = 0) -> Arrays:
        """Return images and masks of some rows of the file; see `Gatherer.gather`."""
        return self._gatherer.gather(rows, out, epoch)

    def samples_of(self, out: Arrays, n_samples: int) -> Arrays:
        """Check the caller's buffers; see `Gatherer.samples_of`."""
        return self._gatherer.samples_of(out, n_samples)

    def copy(self, arrays: Arrays, out: Arrays, n_samples: int) -> Arrays:
        """Copy a batch into the caller's buffers; see `Gatherer.copy`."""
        return self._gatherer.copy(arrays, out, n_samples)

    def stream(self, start: Position, stride: int = 1) -> Stream:
        """Return batch after batch from a position on, or every `stride`-th of them."""
        return Stream(self.dataset, self.order, self._gatherer, start, stride)


def _convert(i: int, stored: Images, scaled: Floats, *, is_own: bool = True) -> None:  # noqa: ARG001
    np.copyto(scaled, stored, casting="same_kind")


def _memory_of(samples: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    return samples.reshape(len(samples), -1).view(np.uint8)
