"""Random patches for training; patches that cover an image, and their predictions as one again."""

import itertools
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from loader.arguments import check_bool, choice, whole
from loader.dataset import Dataset, Images, Masks
from loader.errors import LoaderError
from loader.format import MAX_CODE, Structure
from loader.sampler import DROP_TO_53, GOLDEN, Indices, keys_of, mix

Blend: TypeAlias = Literal["average", "gaussian"]
_Array: TypeAlias = npt.NDArray[np.generic]

_KEY_NUMBER: Final = 11  # of `keys_of`
_MAX_SIDE: Final = 2**31
_SIDES_PER_SIGMA: Final = 8  # the Gaussian has fallen to exp(-8) at the middle of a side


@dataclass(frozen=True)
class Patches:
    """One random patch of each sample, given to `Batches`.

    Parameters
    ----------
    size : (int, int)
        Rows and columns of a patch.
    foreground : float
        The share of patches, from 0 to 1, that are centred on a random pixel of the structures, as
        far as the image allows.
    structures : tuple of str, optional
        Names of structures; by default all of the file.
    pad : bool
        Allow patches larger than the image, which is then in their middle: around it images have
        the minimum of their row, masks 0.

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
        object.__setattr__(self, "size", _pair("size", self.size))
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


def cut_patches(
    dataset: Dataset, patches: Patches, seed: int, epoch: int, rows: Indices, copies: Indices
) -> tuple[Images, Masks]:
    """Return the patches of some rows in an epoch, as stored; only their pixels are read.

    With `mix`, G and key[11] as in `loader.sampler`, and key(row, copy) and uniform(i) made of them
    as in `loader.augment.parameters`: uniform(0) decides whether a patch is centred on the
    foreground, uniform(1) on which of its pixels, in the order of the mask; otherwise uniform(2)
    and uniform(3) are its place down and across.
    """
    uniform = _uniform(seed, epoch, rows, copies)
    structures = _wanted(patches, dataset)
    images = np.empty((len(rows), *patches.size), dataset.images.dtype)
    masks = np.empty(images.shape, dataset.masks.dtype)
    minima = dataset.manifest["minimum"][rows]
    for i, row in enumerate(rows.tolist()):
        image, mask = dataset[row]
        corner = None
        if uniform[0, i] < patches.foreground:
            corner = _around_foreground(mask, structures, uniform[1, i], patches.size)
        if corner is None:
            corner = tuple(
                _from_middle(n, side) if side > n else int(place * (n - side + 1))
                for n, side, place in zip(image.shape, patches.size, uniform[2:, i], strict=True)
            )
        _copy_part(image, corner, images[i], minima[i])
        _copy_part(mask, corner, masks[i], 0)
    return images, masks


def _wanted(patches: Patches, dataset: Dataset) -> list[Structure]:
    names = patches.structures
    return [one for one in dataset.structures if names is None or one.name in names]


def _uniform(seed: int, epoch: int, rows: Indices, copies: Indices) -> npt.NDArray[np.float64]:
    """Return the four numbers of each sample, in [0, 1); shape (4, n)."""
    key = keys_of(seed, epoch, np.array([_KEY_NUMBER], np.uint64))
    for number in (rows, copies):
        key = mix(key + (number.astype(np.uint64) + np.uint64(1)) * GOLDEN)
    counters = np.arange(1, 5, dtype=np.uint64)[:, np.newaxis] * GOLDEN
    words = mix(key + counters) >> DROP_TO_53
    return words.astype(np.float64) * 2.0**-53


def _around_foreground(
    mask: Masks, structures: list[Structure], place: float, size: tuple[int, int]
) -> tuple[int, ...] | None:
    pixels = np.flatnonzero(_is_any_of(mask, structures))
    if not len(pixels):
        return None
    centre = divmod(int(pixels[int(place * len(pixels))]), mask.shape[1])
    return tuple(
        _from_middle(n, side) if side > n else min(max(middle - side // 2, 0), n - side)
        for n, side, middle in zip(mask.shape, size, centre, strict=True)
    )


def _is_any_of(mask: Masks, structures: list[Structure]) -> npt.NDArray[np.bool_]:
    """Return which pixels of a mask show one structure or more of some."""
    bits = [structure.bit for structure in structures if structure.bit is not None]
    if bits:
        is_shown: npt.NDArray[np.bool_] = mask & sum(1 << bit for bit in bits) != 0
        return is_shown
    wanted = np.zeros(MAX_CODE + 2, np.bool_)
    wanted[[structure.code for structure in structures]] = True
    return wanted[mask]


def _from_middle(length: int, side: int) -> int:
    """Return where a patch begins, before the image, that has the image in its middle."""
    return -((side - length) // 2)


def _copy_part(source: _Array, corner: tuple[int, ...], out: _Array, padding: float) -> None:
    places = [
        (max(first, 0), min(first + side, n))
        for first, side, n in zip(corner, out.shape, source.shape, strict=True)
    ]
    inside = tuple(
        slice(start - first, stop - first)
        for (start, stop), first in zip(places, corner, strict=True)
    )
    if out[inside].shape != out.shape:
        out[...] = padding
    out[inside] = source[tuple(slice(*place) for place in places)]


class GridPatches:
    """Patches of one size that cover images of one shape, for inference.

    Along each axis they begin `size - overlap` pixels apart. The last one ends with the image, so
    that it may overlap more. An image that is smaller than a patch is padded after its last row or
    column with the values there, and `stitch` leaves the padding out.

    Parameters
    ----------
    shape : (int, int)
        Rows and columns of the images.
    size : (int, int)
        Rows and columns of a patch.
    overlap : int
        Pixels that neighbouring patches share, below both numbers of size.

    Attributes
    ----------
    shape, size : (int, int)
    corners : tuple of (int, int)
        First row and column of each patch, row by row.

    Raises
    ------
    TypeError, ValueError
        Not such numbers.

    Examples
    --------
    >>> grid = GridPatches((256, 256), (96, 96), overlap=32)
    >>> len(grid)
    16
    >>> patches = grid.cut(np.zeros((256, 256)))
    >>> patches.shape
    (16, 96, 96)
    >>> grid.stitch(patches, blend="gaussian").shape
    (256, 256)
    """

    def __init__(self, shape: tuple[int, int], size: tuple[int, int], overlap: int = 0) -> None:
        self.shape = _pair("shape", shape)
        self.size = _pair("size", size)
        overlap = whole("overlap", overlap, 0, min(self.size))
        starts = (
            _starts(length, side, side - overlap)
            for length, side in zip(self.shape, self.size, strict=True)
        )
        self.corners = tuple(itertools.product(*starts))

    def __len__(self) -> int:
        """Return the number of patches of an image."""
        return len(self.corners)

    def cut(self, image: _Array) -> _Array:
        """Return the patches of an image, or of each channel of one.

        Parameters
        ----------
        image : array, shape (..., rows, columns)

        Returns
        -------
        array, shape (n, ..., patch rows, patch columns)
            A copy, of the image's type.

        Raises
        ------
        ValueError
            An image of another shape.
        """
        image = np.asarray(image)
        if image.shape[-2:] != self.shape:
            raise ValueError(f"image: expected (..., *{self.shape}), found {image.shape}.")
        missing = (max(0, side - n) for side, n in zip(self.size, self.shape, strict=True))
        widths = [(0, 0)] * (image.ndim - 2) + [(0, n) for n in missing]
        padded = np.pad(image, widths, mode="edge") if self._is_padded else image
        rows, columns = self.size
        return np.stack(
            [padded[..., top : top + rows, left : left + columns] for top, left in self.corners]
        )

    def stitch(self, patches: _Array, blend: Blend = "average") -> _Array:
        """Return the image that patches are of, or predictions of them.

        Where patches overlap, their values are averaged. Sums are in float64, so that the patches
        that `cut` made of a float32 image give this image back, bit by bit. So do patches of any
        floating-point type where none overlap. Stitch scores or probabilities of classes, and take
        the class afterwards: an average of class numbers means nothing.

        Parameters
        ----------
        patches : float array, shape (n, ..., patch rows, patch columns)
            In the order of `corners`; with any axes in between, such as channels.
        blend : "average" or "gaussian"
            All values count the same; or those near the middle of a patch count more, by a
            Gaussian with a deviation of an eighth of its side.

        Returns
        -------
        array, shape (..., rows, columns)
            Of the type of the patches.

        Raises
        ------
        TypeError
            Patches that are not floating-point numbers.
        ValueError
            Another number or size of patches, or no such blend.
        """
        patches = np.asarray(patches)
        blend = choice("blend", blend, get_args(Blend))
        if patches.ndim < 3 or (len(patches), *patches.shape[-2:]) != (len(self), *self.size):  # noqa: PLR2004 axes
            raise ValueError(
                f"patches: expected ({len(self)}, ..., {self.size[0]}, {self.size[1]}), found "
                f"{patches.shape}."
            )
        if patches.dtype.kind != "f":
            raise TypeError(
                f"patches: expected floating-point scores, found {patches.dtype}. Give the scores "
                "of the classes, or convert with astype."
            )
        weights = self._weights(blend)
        stitched = np.zeros((*patches.shape[1:-2], *self.shape), patches.dtype)
        sums = np.zeros(stitched.shape, np.float64)
        totals, covered = np.zeros(self.shape), np.zeros(self.shape, np.int64)
        for patch, place in zip(patches, self._places(), strict=True):
            inside = tuple(slice(part.stop - part.start) for part in place)
            kept, weight = patch[(..., *inside)], weights[inside]
            stitched[(..., *place)] = kept
            sums[(..., *place)] += kept * weight
            totals[place] += weight
            covered[place] += 1
        shared = covered > 1  # elsewhere the value itself, which weight and division could round
        stitched[..., shared] = sums[..., shared] / totals[shared]
        return stitched

    @property
    def _is_padded(self) -> bool:
        return any(side > length for side, length in zip(self.size, self.shape, strict=True))

    def _places(self) -> list[tuple[slice, slice]]:
        (rows, columns), (n_rows, n_columns) = self.size, self.shape
        return [
            (slice(top, min(top + rows, n_rows)), slice(left, min(left + columns, n_columns)))
            for top, left in self.corners
        ]

    def _weights(self, blend: Blend) -> npt.NDArray[np.float64]:
        if blend == "average":
            return np.ones(self.size)
        along = []
        for side in self.size:
            distance = (np.arange(side) - (side - 1) / 2) * _SIDES_PER_SIGMA / side
            along.append(np.exp(-(distance**2) / 2))
        return np.multiply.outer(*along)


def _starts(length: int, side: int, step: int) -> list[int]:
    """Return where patches along an axis begin, so that the last one ends with the image."""
    last = max(0, length - side)
    return [*range(0, last, step), last]


def _pair(name: str, value: tuple[int, int]) -> tuple[int, int]:
    if not isinstance(value, tuple | list) or len(value) != 2:  # noqa: PLR2004 rows, columns
        raise TypeError(f"{name}: expected (rows, columns), found {value!r}.")
    rows, columns = (whole(name, number, 1, _MAX_SIDE) for number in value)
    return rows, columns
