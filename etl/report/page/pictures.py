"""Rows as pictures: the image as JPEG, what is drawn on it as paths in its pixels, heat maps."""

import base64
import io
from collections.abc import Iterator, Sequence
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage

from etl.report.overlays import ignored, windowed
from loader import Dataset
from loader.format import Structure

Json: TypeAlias = dict[str, object]
Flags: TypeAlias = npt.NDArray[np.bool_]
_Floats: TypeAlias = npt.NDArray[np.float64]

_QUALITY: Final = 82  # of JPEG
_LONGEST: Final = 512  # pixels of a picture's longer side: larger images are shown smaller
_ROOM: Final = 2.0  # times what is drawn, in a picture close up
_LEAST: Final = 0.25  # of each side
_MAP_SIDE: Final = 128  # pixels of a heat map
# From nothing to always: dark violet, blue, green, yellow; apart for all eyes.
_HEAT: Final = (
    (0, (20, 10, 40)),
    (85, (50, 80, 160)),
    (170, (60, 180, 120)),
    (255, (255, 235, 60)),
)


def drawn(dataset: Dataset, row: int, structure: Structure) -> Flags:
    """Return the pixels of one structure in a row's mask, shape (rows, columns)."""
    return structure.covers(dataset.masks[row])


def picture(dataset: Dataset, row: int) -> Json:
    """Return the image as a data URI, and what is drawn on it as SVG paths in its pixels."""
    polygons: dict[int, list[_Floats]] = {}
    for label, vertices in dataset.polygons(row):
        polygons.setdefault(label, []).append(vertices)
    by_label = {one.label: one.code for one in dataset.structures}
    return {
        "image": image_uri(dataset, row),
        "contours": [
            {"code": by_label[label], "d": " ".join(map(_outline, parts))}
            for label, parts in sorted(polygons.items())
            if label in by_label
        ],
        "edges": list(edges(dataset, row)),
        "box": box(drawn_pixels(dataset, row)),
        "has_ignored": bool(ignored(dataset.masks[row], dataset.structures).any()),
    }


def box(flags: Flags) -> list[int] | None:
    """Return the part of an image to show close up: x, y, width, height; None: all of it.

    It has the image's shape, room around what is drawn, and at least a quarter of each side.
    """
    rows, columns = flags.shape
    ys, xs = (np.flatnonzero(flags.any(axis=axis)) for axis in (1, 0))
    if not len(ys):
        return None
    high, wide = (int(one[-1] - one[0] + 1) for one in (ys, xs))
    share = max(_ROOM * high / rows, _ROOM * wide / columns, _LEAST)
    if share >= 1:
        return None
    size = [round(share * columns), round(share * rows)]
    middle = [int(xs[0] + xs[-1]) // 2, int(ys[0] + ys[-1]) // 2]
    corner = [
        min(max(at - side // 2, 0), whole - side)
        for at, side, whole in zip(middle, size, (columns, rows), strict=True)
    ]
    return [*corner, *size]


def drawn_pixels(dataset: Dataset, row: int) -> Flags:
    """Return the pixels of any structure, and those that contours pass."""
    rows, columns = dataset.masks.shape[1:]
    flags = np.zeros((rows, columns), np.bool_)
    for one in dataset.structures:
        flags |= drawn(dataset, row, one)
    for _, vertices in dataset.polygons(row):
        x, y = np.clip(vertices.round(), 0, (columns - 1, rows - 1)).astype(np.int64).T
        flags[y, x] = True
    return flags


def edges(dataset: Dataset, row: int) -> Iterator[Json]:
    """Yield the border of each structure that a row's mask has."""
    for one in dataset.structures:
        if path := mask_edge(drawn(dataset, row, one)):
            yield {"code": one.code, "d": path}


def image_uri(dataset: Dataset, row: int) -> str:
    """Return a row's image as JPEG in a data URI."""
    gray = PillowImage.fromarray(windowed(dataset.images[row]))
    gray.thumbnail((_LONGEST, _LONGEST))
    return _uri(gray, "JPEG")


def heat_map(dataset: Dataset, rows: Sequence[int], structure: Structure) -> str:
    """Return in which share of rows each pixel has a structure, as PNG in a data URI."""
    total = np.zeros(dataset.masks.shape[1:], np.float32)
    for row in rows:
        total += drawn(dataset, row, structure)
    shares = total / max(len(rows), 1)
    top = float(shares.max()) or 1.0
    levels = np.asarray(shares / top * 255, np.uint8)
    heat = PillowImage.fromarray(levels, "P")
    steps = [step for step, _ in _HEAT]
    channels = np.array([colour for _, colour in _HEAT]).T
    palette = np.stack([np.interp(np.arange(256), steps, channel) for channel in channels], axis=1)
    heat.putpalette(palette.astype(np.uint8).tobytes())
    smaller = heat.convert("RGB")
    smaller.thumbnail((_MAP_SIDE, _MAP_SIDE))
    return _uri(smaller, "PNG")


def _uri(image: PillowImage.Image, kind: str) -> str:
    data = io.BytesIO()
    image.save(data, kind, quality=_QUALITY)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data.getvalue()).decode()}"


def _outline(vertices: _Floats) -> str:
    # Pixel (0, 0) covers 0 to 1 of the picture: its centre is at 0.5.
    points = " ".join(f"{x + 0.5:.2f},{y + 0.5:.2f}" for x, y in vertices.tolist())
    return f"M{points}Z"


def mask_edge(mask: Flags) -> str:
    """Return the border between the pixels inside and outside of a mask, as an SVG path."""
    padded = np.pad(mask.astype(np.int8), 1)
    parts: list[str] = []
    for axis, letter in ((0, "h"), (1, "v")):
        is_border = np.diff(padded, axis=axis) != 0
        lines = is_border if axis == 0 else is_border.T
        for place in np.flatnonzero(lines.any(axis=1)).tolist():
            steps = np.flatnonzero(np.diff(lines[place].astype(np.int8), prepend=0, append=0))
            for begin, end in zip(steps[::2].tolist(), steps[1::2].tolist(), strict=True):
                x, y = (begin - 1, place) if axis == 0 else (place, begin - 1)
                parts.append(f"M{x} {y}{letter}{end - begin}")
    return "".join(parts)
