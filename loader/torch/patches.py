# mypy: allow-untyped-calls
"""Patches of tensors, on the device that they are on."""

import torch  # type: ignore[import-not-found, unused-ignore]

from loader import grid_patches
from loader.grid_patches import Blend


def cut(
    samples: "torch.Tensor",
    corners: "torch.Tensor",
    size: tuple[int, int],
    padding: "torch.Tensor | None" = None,
    rows: "torch.Tensor | None" = None,
) -> "torch.Tensor":
    """Return a window of each sample, shape (n, *size).

    Parameters
    ----------
    samples : tensor, shape (m, rows, columns)
    corners : int64 tensor, shape (n, 2)
        First row and column of each window.
    size : (int, int)
    padding : tensor, shape (n,), optional
        The values around the samples; without it, their border's pixels go on.
    rows : int64 tensor, shape (n,), optional
        Which sample each window is of; by default, m is n and each has one.
    """
    if rows is None:
        rows = torch.arange(len(samples), device=samples.device)
    places = [
        corners[:, axis, None] + torch.arange(side, device=samples.device)
        for axis, side in enumerate(size)
    ]
    sides = samples.shape[1:]
    down, across = (place.clamp(0, n - 1) for place, n in zip(places, sides, strict=True))
    found = samples[rows[:, None, None], down[:, :, None], across[:, None, :]]
    if padding is None:
        return found
    is_inside = (places[0] == down)[:, :, None] & (places[1] == across)[:, None, :]
    return torch.where(is_inside, found, padding[:, None, None])


def framed(samples: "torch.Tensor", padding: "torch.Tensor", width: int) -> "torch.Tensor":
    """Return samples with some pixels of a value around them; padding has shape (n,)."""
    n, rows, columns = samples.shape
    frame = padding[:, None, None].expand(n, rows + 2 * width, columns + 2 * width).clone()
    frame[:, width:-width, width:-width] = samples
    return frame


class GridPatches:
    """Patches of tensors of one shape, for inference on their device; as `loader.GridPatches`.

    Parameters
    ----------
    shape, size : (int, int)
        Rows and columns of the images, and of a patch.
    overlap : int
        Pixels that neighbouring patches share.

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
    >>> patches = grid.cut(torch.zeros(8, 1, 256, 256))
    >>> patches.shape
    torch.Size([16, 8, 1, 96, 96])
    >>> grid.stitch(patches, blend="gaussian").shape
    torch.Size([8, 1, 256, 256])
    """

    def __init__(self, shape: tuple[int, int], size: tuple[int, int], overlap: int = 0) -> None:
        self._grid = grid_patches.GridPatches(shape, size, overlap)
        self.shape, self.size, self.corners = self._grid.shape, self._grid.size, self._grid.corners
        self._sent: dict[tuple[Blend, torch.device], torch.Tensor] = {}

    def __len__(self) -> int:
        """Return the number of patches of an image."""
        return len(self._grid)

    def _weights(self, blend: Blend, device: "torch.device") -> "torch.Tensor":
        """Return how much each pixel of a patch counts; sent once, for sending waits."""
        found = self._sent.get((blend, device))
        if found is None:
            weights = torch.from_numpy(self._grid.weights(blend))
            found = self._sent[blend, device] = weights.to(device)
        return found

    def __getstate__(self) -> dict[str, object]:
        """Copy and pickle without what is on a device."""
        return {**self.__dict__, "_sent": {}}

    def cut(self, images: "torch.Tensor") -> "torch.Tensor":
        """Return the patches of an image, of each channel of one, or of each image of a batch.

        Parameters
        ----------
        images : tensor, shape (..., rows, columns)

        Returns
        -------
        tensor, shape (n, ..., patch rows, patch columns)
            A copy; `flatten(0, 1)` makes one batch of the patches of a batch.

        Raises
        ------
        ValueError
            An image of another shape.
        """
        self._grid.check_image(tuple(images.shape))
        for axis, n in zip((-2, -1), self._grid.missing, strict=True):
            if n:
                last = images.narrow(axis, images.shape[axis] - 1, 1)
                shape = list(images.shape)
                shape[axis] = n
                images = torch.cat([images, last.expand(shape)], axis)
        rows, columns = self.size
        return torch.stack(
            [images[..., top : top + rows, left : left + columns] for top, left in self.corners]
        )

    def stitch(self, patches: "torch.Tensor", blend: Blend = "average") -> "torch.Tensor":
        """Return the image that patches are of, or predictions of them.

        Of float32 and float64, these are the bits of `loader.GridPatches.stitch`. Sums are in
        float64, one patch after the other, so that a device gives the same bits each time.

        Parameters
        ----------
        patches : floating-point tensor, shape (n, ..., patch rows, patch columns)
            In the order of `corners`.
        blend : "average" or "gaussian"

        Returns
        -------
        tensor, shape (..., rows, columns)

        Raises
        ------
        TypeError
            Patches that are not floating-point numbers.
        ValueError
            Another number or size of patches, or no such blend.
        """
        device = patches.device
        weights = self._weights(blend, device)
        self._grid.check_patches(tuple(patches.shape))
        if not patches.is_floating_point():
            raise TypeError(
                f"patches: expected floating-point scores, found {patches.dtype}. Give the scores "
                "of the classes, or convert with to."
            )
        stitched = torch.zeros(
            *patches.shape[1:-2], *self.shape, dtype=patches.dtype, device=device
        )
        sums = torch.zeros_like(stitched, dtype=torch.float64)
        totals = torch.zeros(self.shape, dtype=torch.float64, device=device)
        covered = torch.zeros(self.shape, dtype=torch.int64, device=device)
        for patch, place in zip(patches, self._grid.places(), strict=True):
            inside = tuple(slice(part.stop - part.start) for part in place)
            kept, weight = patch[(..., *inside)], weights[inside]
            stitched[(..., *place)] = kept
            sums[(..., *place)] += kept * weight
            totals[place] += weight
            covered[place] += 1
        # Elsewhere the value itself, which weight and division could round.
        return torch.where(covered > 1, (sums / totals).to(patches.dtype), stitched)
