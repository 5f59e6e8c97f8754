"""Patches that cover an image, and their predictions as one again."""

import itertools
from typing import Final, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from loader.arguments import choice, pair, whole

Blend: TypeAlias = Literal["average", "gaussian"]
_Array: TypeAlias = npt.NDArray[np.generic]

_SIDES_PER_SIGMA: Final = 8  # the Gaussian has fallen to exp(-8) at the middle of a side


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
        self.shape = pair("shape", shape)
        self.size = pair("size", size)
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
        self.check_image(image.shape)
        widths = [(0, 0)] * (image.ndim - 2) + [(0, n) for n in self.missing]
        padded = np.pad(image, widths, mode="edge") if any(self.missing) else image
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
        weights = self.weights(blend)
        self.check_patches(patches.shape)
        if patches.dtype.kind != "f":
            raise TypeError(
                f"patches: expected floating-point scores, found {patches.dtype}. Give the scores "
                "of the classes, or convert with astype."
            )
        stitched = np.zeros((*patches.shape[1:-2], *self.shape), patches.dtype)
        sums = np.zeros(stitched.shape, np.float64)
        totals, covered = np.zeros(self.shape), np.zeros(self.shape, np.int64)
        for patch, place in zip(patches, self.places(), strict=True):
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
    def missing(self) -> tuple[int, int]:
        """How many rows and columns an image lacks for a patch."""
        (rows, columns), (n_rows, n_columns) = self.size, self.shape
        return max(0, rows - n_rows), max(0, columns - n_columns)

    def check_image(self, shape: tuple[int, ...]) -> None:
        """Refuse an image of another shape."""
        if tuple(shape[-2:]) != self.shape:
            raise ValueError(f"image: expected (..., *{self.shape}), found {tuple(shape)}.")

    def check_patches(self, shape: tuple[int, ...]) -> None:
        """Refuse another number or size of patches."""
        if len(shape) < 3 or (shape[0], *shape[-2:]) != (len(self), *self.size):  # noqa: PLR2004 axes
            raise ValueError(
                f"patches: expected ({len(self)}, ..., {self.size[0]}, {self.size[1]}), found "
                f"{tuple(shape)}."
            )

    def places(self) -> list[tuple[slice, slice]]:
        """Return the rows and columns of the image that each patch has."""
        (rows, columns), (n_rows, n_columns) = self.size, self.shape
        return [
            (slice(top, min(top + rows, n_rows)), slice(left, min(left + columns, n_columns)))
            for top, left in self.corners
        ]

    def weights(self, blend: Blend) -> npt.NDArray[np.float64]:
        """Return how much each pixel of a patch counts."""
        if choice("blend", blend, get_args(Blend)) == "average":
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
