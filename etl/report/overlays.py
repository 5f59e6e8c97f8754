"""One picture per row: the image, the contour as drawn and the edge of its mask."""

import re
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont
from tqdm import tqdm

from etl.errors import EtlError
from etl.model import Image, LabelMap, Vertices
from loader import Dataset

_WIDTH: Final = 1024  # pixels a picture has at least; images are enlarged by whole numbers
_LONGEST: Final = 4096  # pixels that no side is enlarged beyond, which comes first
# Yellow and blue: apart for all eyes. The mask's edge is the darker of each.
_COLOURS: Final = {1: (255, 225, 50), 2: (70, 210, 255)}
_EDGE_COLOURS: Final = {1: (230, 100, 0), 2: (30, 90, 255)}
_CAPTION_SIZE: Final = 16
_WORDS: Final = {1: "i-contour", 2: "o-contour"}


def write_overlays(dataset: Dataset, folder: Path, *, force: bool) -> list[str]:
    """Draw every row into `folder`; return the names there that are not of these pictures.

    Raises
    ------
    EtlError
        The folder has files in it (without `force`) or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and not force:
            raise EtlError(
                f"Overlays not written: {folder}: the folder has files in it. "
                "Give a new one, or use --force to write over them."
            )
        names = file_names(dataset)
        for row, name in enumerate(tqdm(names, desc="overlays", unit=" pictures", disable=None)):
            picture = overlay(*dataset[row], dataset.polygons(row), name.removesuffix(".png"))
            picture.save(folder / name, optimize=False)
        return sorted({path.name for path in folder.iterdir()} - set(names))
    except OSError as error:
        reason = (error.strerror or "input/output error").lower()
        raise EtlError(f"Overlays not written: {folder}: {reason}.") from error


def file_names(dataset: Dataset) -> list[str]:
    """Return the name of each row's picture: patient and slice, and the row where names meet."""
    names: list[str] = []
    taken: set[str] = set()
    patients = dataset.manifest["patient_id"].tolist()
    for row, (patient, number) in enumerate(
        zip(patients, dataset.manifest["slice"].tolist(), strict=True)
    ):
        plain = re.sub(r"[^A-Za-z0-9._-]", "_", patient)[:100]
        name = f"{plain}_slice{number:04d}"
        if name.casefold() in taken:
            name = f"{name}_row{row}"
        taken.add(name.casefold())
        names.append(f"{name}.png")
    return names


def overlay(
    image: Image, mask: LabelMap, contours: list[tuple[int, Vertices]], caption: str
) -> PillowImage.Image:
    """Return the picture of one row.

    Parameters
    ----------
    image, mask : arrays, shape (rows, columns)
        Modality values; label map.
    contours : list of (label, vertices)
        Label 1 for the i-contour, 2 for the o-contour; vertices in pixels.
    """
    scale = max(1, min(-(-_WIDTH // image.shape[1]), _LONGEST // max(image.shape)))
    gray = PillowImage.fromarray(_windowed(image))
    size = image.shape[1] * scale, image.shape[0] * scale
    canvas = gray.resize(size, PillowImage.Resampling.BICUBIC).convert("RGB")
    draw = ImageDraw.Draw(canvas)
    labels = [label for label, _ in contours]
    for code in (2, 1):
        # Label 2 ends where label 1 does, or outside it: its outer edge is that of both together.
        edges = _edges(mask == code if code == 1 else mask > 0) * scale
        if code in mask:
            for line in edges.tolist():
                draw.line(line, fill=_EDGE_COLOURS[2 if labels == [2] else code])
    for label, vertices in contours:
        # A pixel's centre lies half a pixel inside its square.
        points = (np.vstack([vertices, vertices[:1]]) + 0.5) * scale
        draw.line(list(map(tuple, points.tolist())), fill=_COLOURS[label])
    _write_caption(draw, caption, labels)
    return canvas


def _windowed(image: Image) -> npt.NDArray[np.uint8]:
    """Return an image as gray values, from its 1st to its 99.5th percentile."""
    low, high = np.percentile(image, (1, 99.5))
    scaled = (image.astype(np.float64) - low) / max(high - low, 1e-9)
    gray: npt.NDArray[np.uint8] = (np.clip(scaled, 0, 1) * 255).astype(np.uint8)
    return gray


def _edges(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Return the sides between pixels in and out as lines (x0, y0, x1, y1) of pixel corners."""
    padded = np.pad(mask, 1)
    row, column = np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1])
    upright = np.stack([column, row, column, row + 1], axis=1)
    row, column = np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1])
    level = np.stack([column, row, column + 1, row], axis=1)
    return np.concatenate([upright, level])


def _write_caption(draw: ImageDraw.ImageDraw, caption: str, labels: list[int]) -> None:
    font = ImageFont.load_default(_CAPTION_SIZE)
    words = [(caption, (255, 255, 255))] + [(_WORDS[label], _COLOURS[label]) for label in labels]
    x = 8.0
    for word, colour in words:
        draw.text((x, 8), word, fill=colour, font=font, stroke_width=2, stroke_fill=(0, 0, 0))
        x += draw.textlength(word, font=font) + 16
