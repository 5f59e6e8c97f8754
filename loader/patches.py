"""Random patches for training: which window of each image, and its pixels."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from loader.arguments import check_bool, pair
from loader.dataset import Dataset
from loader.errors import LoaderError
from loader.foreground import Foreground
from loader.format import Structure
from loader.sampler import DROP_TO_53, GOLDEN, Indices, Table, Words, keys_of, mix

_Value = TypeVar("_Value", bound=np.generic)

_KEY_NUMBER: Final = 11  # of `keys_of`


@dataclass(frozen=True)
class Patches:
    """One random patch of each sample, given to `Batches`.

    Parameters
    ----------
    size : (int, int)
        Rows and columns of a patch.
    foreground : float
        The share of patches, from 0 to 1, that are centred on a random pixel of the structures;
        without `pad`, as far as the image allows.
    structures : tuple of str, optional
        Names of structures; by default all of the file.
    pad : bool
        Allow patches beyond the border: any pixel of the image may be the centre of one. Along a
        side where the patch is as large as the image, or larger, the image is in its middle. Around
        the image, images have the minimum of their row, masks 0.

    Raises
    ------
    TypeError, ValueError
        Another type, or a share outside of 0 to 1.
    """

    size: tuple[int, int]
    foreground: float = 0.0
    structures: tuple[str, ...] | None = None
    pad: bool = False

    def __post_init__(self) -> None:
        """Check the arguments."""
        object.__setattr__(self, "size", pair("size", self.size))
        share = self.foreground
        if isinstance(share, bool) or not isinstance(share, int | float | np.number):
            raise TypeError(f"foreground: expected a number, found {share!r}.")
        if not 0 <= share <= 1:
            raise ValueError(f"foreground: expected a share from 0 to 1, found {share!r}.")
        object.__setattr__(self, "foreground", float(share))
        if self.structures is not None:
            if isinstance(self.structures, str):
                raise TypeError(f"structures: expected names, found {self.structures!r}.")
            object.__setattr__(self, "structures", tuple(self.structures))
        check_bool("pad", self.pad)


def check_patches(patches: Patches | None, dataset: Dataset) -> None:
    """Refuse patches that the images of a file cannot give."""
    if patches is None:
        return
    if not isinstance(patches, Patches):
        raise TypeError(f"patches: expected a loader.Patches or None, found {patches!r}.")
    shape = dataset.images.shape[1:]
    if not patches.pad and any(a > b for a, b in zip(patches.size, shape, strict=True)):
        raise LoaderError(
            f"Batches not made: {dataset.path}: patches are larger than the images (expected at "
            f"most {shape}, found {patches.size}). Choose a smaller size, or pad=True."
        )
    names = [structure.name for structure in dataset.structures]
    unknown = [name for name in patches.structures or () if name not in names]
    if unknown or patches.structures == ():
        raise LoaderError(
            f"Batches not made: {dataset.path}: patches of structures that the file lacks "
            f"(expected some of {', '.join(names)}; found {', '.join(unknown) or 'none'})."
            " Name structures of the file."
        )


def rows_without(patches: Patches, dataset: Dataset, rows: Indices) -> Indices:
    """Return the rows that have nothing to centre a patch on."""
    if not patches.foreground:
        return rows[:0]
    names = [f"n_pixels_{structure.code}" for structure in _wanted(patches, dataset)]
    columns = [dataset.manifest[name][rows] for name in names]
    lacking: Indices = rows[np.sum(columns, axis=0) == 0]
    return lacking


class Windows:
    """Where the patches of a dataset's samples are.

    Parameters
    ----------
    dataset : Dataset
    patches : Patches
    seed : int

    Attributes
    ----------
    n_rows : int
        Of a patch.
    """

    def __init__(self, dataset: Dataset, patches: Patches, seed: int) -> None:
        self.n_rows = patches.size[0]
        self._seed = seed
        self._share = patches.foreground
        self._size = np.array(patches.size)
        wanted = _wanted(patches, dataset)
        self._foreground = Foreground(dataset, wanted) if patches.foreground else None
        # The first and the last place along each side.
        left_over = np.array(dataset.images.shape[1:]) - self._size
        self._first = np.zeros(2, np.int64)
        self._last = left_over
        if patches.pad:
            middle = -(-left_over // 2)
            self._first = np.where(left_over > 0, -(self._size // 2), middle)
            reach = (self._size + 1) // 2 - 1  # of a patch beyond its centre
            self._last = np.where(left_over > 0, left_over + reach, middle)

    @property
    def reads_masks(self) -> bool:
        """Whether masks decide where patches are."""
        return self._foreground is not None

    def corners(self, rows: Indices, epoch: int, copies: Indices) -> Indices:
        """Return the first row and column of the patch of each sample, shape (n, 2).

        With `mix`, G and key[11] as in `loader.sampler`, and key(row, copy) and uniform(i) made of
        them as in `loader.augment.parameters`: uniform(0) decides whether a patch is centred on the
        foreground, uniform(1) on which of its pixels, in the order of the mask; otherwise
        uniform(2) and uniform(3) are its place down and across.
        """
        uniform = _uniform(self._seed, epoch, rows, copies)
        n_places = self._last - self._first + 1
        corners: Indices = self._first + (uniform[2:].T * n_places).astype(np.int64)
        if self._foreground is not None:
            chosen = np.flatnonzero(uniform[0] < self._share)
            found, centres = self._foreground.pixels(rows[chosen], uniform[1, chosen])
            around = centres - self._size // 2
            corners[chosen[found]] = np.clip(around, self._first, self._last)
        return corners


class Cutter:
    """Copies windows of the images of a file, or of its masks, into batches.

    Parameters
    ----------
    samples : array, shape (n, rows, columns)
        One after the other in memory.
    size : (int, int)
        Rows and columns of a window.
    """

    def __init__(self, samples: npt.NDArray[np.generic], size: tuple[int, int]) -> None:
        self._samples = samples
        self._size = size
        n, *sides = samples.shape
        # All windows that are inside, as a view: NumPy copies those of a batch in one call.
        n_places = (max(0, a - b + 1) for a, b in zip(sides, size, strict=True))
        strides = samples.strides + samples.strides[1:]
        self._windows = np.ndarray((n, *n_places, *size), samples.dtype, samples, strides=strides)

    def window(self, row: int, corner: tuple[int, int], padding: float) -> npt.NDArray[np.generic]:
        """Return a window of one row; see `part`."""
        return part(self._samples[row], corner, self._size, padding)

    def windows(
        self, rows: Indices, places: "Places", paddings: npt.NDArray[np.generic]
    ) -> npt.NDArray[np.generic]:
        """Return the windows of some rows in fresh memory; see `copy`."""
        if not places.crossing:
            found: npt.NDArray[np.generic] = self._windows[rows, *places.corners.T]
            return found
        out = np.empty((len(rows), *self._size), self._samples.dtype)
        self.copy(rows, places, paddings, out)
        return out

    def copy(
        self,
        rows: Indices,
        places: "Places",
        paddings: npt.NDArray[np.generic],
        out: npt.NDArray[np.generic],
    ) -> None:
        """Copy the windows of some rows to `out`.

        Parameters
        ----------
        rows : int64 array, shape (n,)
        places : Places
            Of n windows.
        paddings : array, shape (n,)
            The values around the images; of no meaning where no window crosses a border.
        out : array, shape (n, *size)
        """
        listed, windows = rows.tolist(), self._windows
        for i, top, left in places.inside:
            out[i] = windows[listed[i], top, left]
        if places.crossing:
            out[places.crossing] = paddings[places.crossing, np.newaxis, np.newaxis]
        for i, taken, placed in places.parts:
            out[i, *placed] = self._samples[listed[i], *taken]


class Places:
    """Where windows are in images of one shape.

    Parameters
    ----------
    corners : int64 array, shape (n, 2)
        First row and column of each window.
    shape : (int, int)
        Rows and columns of the images.
    size : (int, int)
        Rows and columns of a window.

    Attributes
    ----------
    corners : int64 array, shape (n, 2)
    inside : list of (int, int, int)
        Number, first row and first column of each window that is wholly in its image.
    crossing : list of int
        The numbers of the others.
    parts : list of (int, (slice, slice), (slice, slice))
        Number of each of these that shows any pixel, and where: in the image, and in the window.
    """

    inside: list[tuple[int, int, int]]
    crossing: list[int]
    parts: list[tuple[int, tuple[slice, slice], tuple[slice, slice]]]

    def __init__(self, corners: Indices, shape: tuple[int, int], size: tuple[int, int]) -> None:
        self.corners = corners
        self.inside, self.crossing, self.parts = [], [], []
        first, after = np.maximum(corners, 0), np.minimum(corners + size, shape)
        bounds = np.concatenate([first, after, first - corners, after - corners], axis=1)
        # Python is quicker than NumPy here: batches are small.
        for i, (top, left, bottom, right, up, before, down, behind) in enumerate(bounds.tolist()):
            if (bottom - top, right - left) == size:
                self.inside.append((i, top, left))
                continue
            self.crossing.append(i)
            if top < bottom and left < right:
                taken = slice(top, bottom), slice(left, right)
                self.parts.append((i, taken, (slice(up, down), slice(before, behind))))


def part(
    image: npt.NDArray[_Value], corner: tuple[int, int], size: tuple[int, int], padding: float
) -> npt.NDArray[_Value]:
    """Return a window of an image: a view, or where it is not wholly in the image, a padded copy.

    Parameters
    ----------
    image : array, shape (rows, columns)
    corner, size : (int, int)
        Its first row and column, and how many of both.
    padding : float
        The value around the image.
    """
    (top, left), (n_rows, n_columns) = corner, size
    rows, columns = image.shape
    if 0 <= top <= rows - n_rows and 0 <= left <= columns - n_columns:
        return image[top : top + n_rows, left : left + n_columns]
    padded = np.full(size, padding, image.dtype)
    inside = image[max(top, 0) : max(top + n_rows, 0), max(left, 0) : max(left + n_columns, 0)]
    up, before = max(-top, 0), max(-left, 0)
    padded[up : up + inside.shape[0], before : before + inside.shape[1]] = inside
    return padded


def _wanted(patches: Patches, dataset: Dataset) -> list[Structure]:
    names = patches.structures
    return [one for one in dataset.structures if names is None or one.name in names]


def _uniform(seed: int, epoch: int, rows: Indices, copies: Indices) -> Table:
    """Return the four numbers of each sample, in [0, 1); shape (4, n)."""
    key = _key(seed, epoch)
    for number in (rows, copies):
        key = mix(key + (number.astype(np.uint64) + np.uint64(1)) * GOLDEN)
    counters = np.arange(1, 5, dtype=np.uint64)[:, np.newaxis] * GOLDEN
    words = mix(key + counters) >> DROP_TO_53
    return words.astype(np.float64) * 2.0**-53


@lru_cache(4)  # of the epochs that are drawn from at a time
def _key(seed: int, epoch: int) -> Words:
    return keys_of(seed, epoch, np.array([_KEY_NUMBER], np.uint64))
