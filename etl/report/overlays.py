"""One picture per row: the image, the contour as drawn and the edge of its mask."""

import colorsys
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont
from tqdm import tqdm

from etl.errors import EtlError
from etl.model import Image, LabelMap, Vertices
from loader import Dataset
from loader.format import Structure

_WIDTH: Final = 1024  # pixels a picture has at least; images are enlarged by whole numbers
_LONGEST: Final = 4096  # pixels that no side is enlarged beyond, which comes first
# Of contour and mask's edge, by label. Yellow and blue: apart for all eyes; the edge is darker.
_COLOURS: Final = {1: ((255, 225, 50), (230, 100, 0)), 2: ((70, 210, 255), (30, 90, 255))}
_HUE_STEP: Final = 0.618034  # of the circle: the golden ratio sets any number of hues apart
_CAPTION_SIZE: Final = 16

_Colour: TypeAlias = tuple[int, int, int]


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
            caption = name.removesuffix(".png")
            contours = dataset.polygons(row)
            picture = overlay(*dataset[row], contours, caption, dataset.structures)
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
    image: Image,
    mask: LabelMap,
    contours: list[tuple[int, Vertices]],
    caption: str,
    structures: Sequence[Structure],
) -> PillowImage.Image:
    """Return the picture of one row.

    Parameters
    ----------
    image, mask : arrays, shape (rows, columns)
        Modality values; label map.
    contours : list of (label, vertices)
        As `Dataset.polygons` gives them; vertices in pixels.
    structures : sequence of Structure
        In paint order.
    """
    scale = max(1, min(-(-_WIDTH // image.shape[1]), _LONGEST // max(image.shape)))
    gray = PillowImage.fromarray(_windowed(image))
    size = image.shape[1] * scale, image.shape[0] * scale
    canvas = gray.resize(size, PillowImage.Resampling.BICUBIC).convert("RGB")
    draw = ImageDraw.Draw(canvas)
    labels = {label for label, _ in contours}
    shown = [one for one in structures if one.label in labels or one.code in mask]
    for structure in shown:
        # A structure ends where those that lie in it end, or outside of them: their union's edge.
        codes = [structure.code, *_inside(structure, structures)]
        for line in (_edges(np.isin(mask, codes)) * scale).tolist():
            draw.line(line, fill=_colours(structure)[1])
    for structure in shown:
        for vertices in (vertices for label, vertices in contours if label == structure.label):
            # A pixel's centre is half a pixel inside its square.
            points = (np.vstack([vertices, vertices[:1]]) + 0.5) * scale
            draw.line(list(map(tuple, points.tolist())), fill=_colours(structure)[0])
    words = [(one.name, _colours(one)[0]) for one in sorted(shown, key=lambda one: one.label)]
    _write_caption(draw, caption, words)
    return canvas


def _inside(outer: Structure, structures: Sequence[Structure]) -> list[int]:
    """Return the codes of the structures that lie in one, those in these ones too."""
    found = [outer]
    for one in found:
        found += [inner for inner in structures if inner.inside_of == one.name != inner.name]
        if len(found) > len(structures):  # a file in which two lie in each other
            break
    return [structure.code for structure in found[1:]]


def _colours(structure: Structure) -> tuple[_Colour, _Colour]:
    """Return the colour of a structure's contour, and of its mask's edge."""
    if structure.label in _COLOURS:
        return _COLOURS[structure.label]
    hue = structure.label * _HUE_STEP % 1.0
    bright, dark = (colorsys.hsv_to_rgb(hue, *rest) for rest in ((0.6, 1.0), (0.9, 0.8)))
    return _bytes(bright), _bytes(dark)


def _bytes(colour: tuple[float, float, float]) -> _Colour:
    red, green, blue = (round(255 * part) for part in colour)
    return red, green, blue


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


def _write_caption(
    draw: ImageDraw.ImageDraw, caption: str, names: list[tuple[str, _Colour]]
) -> None:
    font = ImageFont.load_default(_CAPTION_SIZE)
    x = 8.0
    for word, colour in [(caption, (255, 255, 255)), *names]:
        draw.text((x, 8), word, fill=colour, font=font, stroke_width=2, stroke_fill=(0, 0, 0))
        x += draw.textlength(word, font=font) + 16
