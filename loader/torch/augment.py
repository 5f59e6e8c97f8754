# mypy: allow-untyped-calls
"""Augmentation of tensors, on the device that they are on; with torch alone."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TypeAlias

import torch  # type: ignore[import-not-found, unused-ignore]

from loader.augment.parameters import (
    N_NORMALS,
    Layout,
    Parameters,
    kept_pixels,
    normals,
    power_basis,
    spline_basis,
    split,
)
from loader.augment.settings import Interpolation
from loader.torch.patches import cut

Parts: TypeAlias = "Mapping[str, torch.Tensor]"

# The process's first exp is by one thread: where several make it at once, MKL can give one of them
# a kernel of half the digits, for that call alone (PyTorch's issue 188792).
torch.zeros(1).exp()


def augment_batch(
    images: "torch.Tensor",
    masks: "torch.Tensor",
    parameters: Parameters,
    *,
    corners: "torch.Tensor | None" = None,
    compiled: bool = False,
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Return augmented copies of a batch, as `loader.augment.arrays.augment_batch` makes them.

    Every sample takes every part that can happen, where its parameters may change nothing: so the
    shapes and the operations are the same in each batch. All operations are deterministic.

    Parameters
    ----------
    images : float32 tensor, shape (n, rows, columns)
    masks : integer tensor, shape (n, rows, columns)
        On the same device.
    parameters : Parameters
        Of as many samples.
    corners : int64 tensor, shape (n, 2), optional
        First row and column of a patch of each image, of the parameters' shape: the patch is
        augmented, and what comes from beyond its border comes from the image.
    compiled : bool
        Fuse the operations with torch.compile, anew for each shape of a batch.

    Raises
    ------
    TypeError, ValueError
        Another type, shape or device.
    """
    shape = parameters.shape if corners is None else images.shape[1:]
    expected = (len(parameters), *shape)
    if tuple(images.shape) != expected or tuple(masks.shape) != expected:
        raise ValueError(
            f"images, masks: expected {expected}, found {tuple(images.shape)} and "
            f"{tuple(masks.shape)}."
        )
    if images.dtype != torch.float32 or masks.is_floating_point() or masks.is_complex():
        raise TypeError(
            f"images, masks: expected float32 and integers, found {images.dtype} and {masks.dtype}."
        )
    if images.device != masks.device:
        raise ValueError(
            f"images, masks: expected one device, found {images.device} and {masks.device}."
        )
    device = images.device
    table = torch.from_numpy(parameters.table)
    if device.type == "cuda":
        table = table.pin_memory().to(device, non_blocking=True)
    change = _compiled() if compiled else _change
    bases = _bases(parameters.shape, device)
    noise = _normals(device) if any(name == "noise" for name, _ in parameters.layout) else None
    settings = parameters.layout, parameters.interpolation, parameters.shape
    return change(images, masks, table, settings, bases, noise, corners)


def _change(
    images: "torch.Tensor",
    masks: "torch.Tensor",
    table: "torch.Tensor",
    settings: tuple[Layout, Interpolation, tuple[int, int]],
    bases: "tuple[torch.Tensor, ...]",
    noise: "torch.Tensor | None",
    corners: "torch.Tensor | None",
) -> "tuple[torch.Tensor, torch.Tensor]":
    layout, interpolation, shape = settings
    parts: Parts = split(table, layout)
    whole = images, masks
    if corners is not None:
        images, masks = cut(images, corners, shape), cut(masks, corners, shape)
    if "turn" in parts:
        images, masks = _turned(images, parts["turn"]), _turned(masks, parts["turn"])
    if "affine" in parts:
        if corners is None:
            whole = images, masks
        else:  # there the image around the patch does not turn, so that the places do
            parts = _with_turns(parts)
        places = _sources(parts, shape, bases[:2], corners)
        moved = _resampled(*whole, *places, interpolation)
        is_resampled = parts["is_resampled"][:, None, None] > 0
        images = torch.where(is_resampled, moved[0], images)
        masks = torch.where(is_resampled, moved[1], masks)
    return _shaded(images, parts, bases[2:], noise), masks


def _turned(samples: "torch.Tensor", turn: "torch.Tensor") -> "torch.Tensor":
    turn = turn[:, :, None, None]
    samples = torch.where(turn[:, 0] > 0, samples.flip(1), samples)
    samples = torch.where(turn[:, 1] > 0, samples.flip(2), samples)
    n_turns = turn[:, 2]
    samples = torch.where(n_turns >= 2, samples.flip(1, 2), samples)  # noqa: PLR2004 of four
    if samples.shape[1] != samples.shape[2]:
        return samples
    return torch.where(n_turns % 2 == 1, torch.rot90(samples, 1, (1, 2)), samples)


def _with_turns(parts: Parts) -> Parts:
    """Return the parts with flips and turns as steps of affine and elastic."""
    if "turn" not in parts:
        return parts
    turn = parts["turn"]
    is_turned = [(turn[:, 2] == n).to(turn.dtype) for n in range(4)]
    cosine, sine = is_turned[0] - is_turned[2], is_turned[1] - is_turned[3]
    back = torch.stack([cosine, -sine, sine, cosine], 1).reshape(-1, 2, 2)
    back = back * (1 - 2 * turn[:, :2].flip(1))[:, :, None]
    composed = {"affine": back @ parts["affine"]}
    if "elastic" in parts:
        composed["elastic"] = torch.einsum("nij,njkl->nikl", back, parts["elastic"])
    return {**parts, **composed}


def _resampled(
    images: "torch.Tensor",
    masks: "torch.Tensor",
    across: "torch.Tensor",
    down: "torch.Tensor",
    interpolation: Interpolation,
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Return the values at some columns and rows, each (n, rows, columns)."""
    n, rows, columns = images.shape
    # From -1 to 1 between the centres of the first and the last pixel.
    grid = torch.stack(
        [across * (2 / max(1, columns - 1)) - 1, down * (2 / max(1, rows - 1)) - 1], -1
    )
    mode = "bicubic" if interpolation == "cubic" else "bilinear"
    moved = torch.nn.functional.grid_sample(
        images[:, None], grid, mode=mode, padding_mode="border", align_corners=True
    )[:, 0]
    nearest = down.round().clamp(0, rows - 1) * columns + across.round().clamp(0, columns - 1)
    moved_masks = masks.reshape(n, -1).gather(1, nearest.long().reshape(n, -1))
    return moved, moved_masks.reshape(nearest.shape)


def _sources(
    parts: Parts,
    shape: tuple[int, int],
    bases: "tuple[torch.Tensor, ...]",
    corners: "torch.Tensor | None",
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Return the columns and the rows that the pixels come from, each (n, rows, columns)."""
    affine = parts["affine"]
    centre = [(side - 1) / 2 for side in shape]
    down, across = (
        torch.arange(side, dtype=affine.dtype, device=affine.device) - middle
        for side, middle in zip(shape, centre, strict=True)
    )
    coordinates = []
    for axis, middle in enumerate(reversed(centre)):
        line = affine[:, axis, :, None]
        begin = middle if corners is None else middle + corners[:, 1 - axis, None]
        of_columns = (line[:, 0] * across + (line[:, 2] + begin)).float()
        of_rows = (line[:, 1] * down).float()
        if "elastic" in parts:
            bent = (bases[0] @ parts["elastic"][:, axis] @ bases[1].T).float()
            coordinates.append(bent + of_columns[:, None, :] + of_rows[:, :, None])
        else:
            coordinates.append(of_columns[:, None, :] + of_rows[:, :, None])
    return coordinates[0], coordinates[1]


def _shaded(
    images: "torch.Tensor",
    parts: Parts,
    bases: "tuple[torch.Tensor, ...]",
    noise: "torch.Tensor | None",
) -> "torch.Tensor":
    before = images
    if "bias_field" in parts:
        coefficients = parts["bias_field"]
        field = (bases[0] @ coefficients @ bases[1].T).float().exp()
        lowest = before.amin((1, 2), keepdim=True)
        shown = (images - lowest) * field + lowest
        images = torch.where(coefficients.any(2).any(1)[:, None, None], shown, images)
    if "blur" in parts:
        images = _blurred(images, parts["blur"].float()[:, :, None, None])
    if "low_resolution" in parts:
        for axis in (1, 2):
            images = _with_kept_pixels(images, parts["low_resolution"][:, axis - 1, None], axis)
    return _with_values(images, before, parts, noise)


def _with_values(
    images: "torch.Tensor", before: "torch.Tensor", parts: Parts, noise: "torch.Tensor | None"
) -> "torch.Tensor":
    """Return images after gamma, contrast, brightness and noise; statistics are of `before`."""
    one = {
        name: parts[name].float()[:, None, None]
        for name in ("gamma", "contrast", "brightness")
        if name in parts
    }
    if {"brightness", "noise"} & parts.keys():
        std = before.std((1, 2), correction=0, keepdim=True)
    if "gamma" in one:
        lowest = before.amin((1, 2), keepdim=True)
        extent = before.amax((1, 2), keepdim=True) - lowest
        inverse = torch.where(extent > 0, 1 / extent, 1)
        powered = ((images - lowest) * inverse).clamp(min=0) ** one["gamma"] * extent + lowest
        images = torch.where(one["gamma"] != 1, powered, images)
    if "contrast" in one:
        mean = before.mean((1, 2), keepdim=True)
        images = images * one["contrast"] + mean * (1 - one["contrast"])
    if "brightness" in one:
        images = images + one["brightness"] * std
    if noise is not None:
        images = images + _noise(parts["noise"], noise, images.shape) * std
    return images


def _blurred(images: "torch.Tensor", half: "torch.Tensor") -> "torch.Tensor":
    radius = half.shape[1] - 1
    for axis in (1, 2):
        side = images.shape[axis]
        sides = (0, 0, radius, radius) if axis == 1 else (radius, radius, 0, 0)
        padded = torch.nn.functional.pad(images[:, None], sides, mode="replicate")[:, 0]
        images = images * half[:, 0]
        for distance in range(1, radius + 1):
            before = padded.narrow(axis, radius - distance, side)
            after = padded.narrow(axis, radius + distance, side)
            images = images + (before + after) * half[:, distance]
    return images


def _with_kept_pixels(images: "torch.Tensor", n_kept: "torch.Tensor", axis: int) -> "torch.Tensor":
    side = torch.arange(images.shape[axis], dtype=n_kept.dtype, device=n_kept.device)
    places: Sequence[torch.Tensor] = kept_pixels(side, n_kept)  # type: ignore[arg-type, assignment, unused-ignore]
    low, high, share = (place.unsqueeze(3 - axis) for place in places)
    first = images.gather(axis, low.long().expand(images.shape))
    second = images.gather(axis, high.long().expand(images.shape))
    between: torch.Tensor = first + (second - first) * share.float()
    return between


def _noise(drawn: "torch.Tensor", table: "torch.Tensor", shape: "torch.Size") -> "torch.Tensor":
    start, stride = drawn[:, 1:].long().unsqueeze(-1).unsqueeze(-1).unbind(1)
    rows = torch.arange(shape[1], device=table.device)[:, None]
    columns = torch.arange(shape[2], device=table.device)
    numbers = table[(start + rows * stride + columns) % N_NORMALS]
    return numbers * drawn[:, :1, None].float()


@lru_cache(8)
def _bases(shape: tuple[int, int], device: "torch.device") -> "tuple[torch.Tensor, ...]":
    """Return the splines of rows and columns, and the powers of both, on a device.

    In float64: products of float32 matrices are rounded to 10 bits under TensorFloat-32, and to 8
    under autocast, which the training loop may have set.
    """
    bases = [basis(side) for basis in (spline_basis, power_basis) for side in shape]
    return tuple(torch.from_numpy(one).to(device) for one in bases)


@lru_cache(8)
def _normals(device: "torch.device") -> "torch.Tensor":
    return torch.from_numpy(normals()).to(device)


@lru_cache(1)
def _compiled() -> "Callable[..., tuple[torch.Tensor, torch.Tensor]]":
    fused: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    fused = torch.compile(_change, dynamic=False)
    return fused
