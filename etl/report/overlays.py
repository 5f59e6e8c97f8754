"""One picture per row: the image, the contour as drawn and the edge of its mask."""

import colorsys
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont
from tqdm import tqdm

from etl.errors import EtlError
from etl.findings import FindingRow
from etl.model import BitMask, Image, LabelMap, Vertices
from etl.output import target
from loader import Dataset
from loader.format import IGNORE, Structure

_WIDTH: Final = 1024  # pixels a picture has at least; images are enlarged by whole numbers
_LONGEST: Final = 4096  # pixels that no side is enlarged beyond, which comes first
# Of contour and mask's edge, by label. Yellow and blue: apart for all eyes; the edge is darker.
_COLOURS: Final = {1: ((255, 225, 50), (230, 100, 0)), 2: ((70, 210, 255), (30, 90, 255))}
_HUE_STEP: Final = 0.618034  # of the circle: the golden ratio sets any number of hues apart
_CAPTION_SIZE: Final = 16
_NAME_BYTES: Final = 100  # of a patient's name in that of a file, which may have 255
_LINE_HEIGHT: Final = 22
_WHITE: Final = (255, 255, 255)
_SEVERITY_COLOURS: Final = {  # not those of contours
    "error": (255, 110, 110),
    "warning": (255, 170, 255),
    "info": (190, 255, 190),
}
MAX_TILES: Final = 200  # of a contact sheet: more than anybody looks through at one go
TILE_WIDTH: Final = 384  # pixels of a tile's longer side
_TILE_GAP: Final = 4
_TILE_COLUMNS: Final = 8
_HATCH: Final = 16  # pixels of the picture from one stripe to the next
_HATCH_COLOUR: Final = (190, 190, 190)

_Colour: TypeAlias = tuple[int, int, int]


Remarks: TypeAlias = Mapping[int, Sequence[FindingRow]]  # row → the findings to name on it


def write_overlays(
    dataset: Dataset, folder: Path, *, force: bool, rows: Sequence[int], remarks: Remarks
) -> list[str]:
    """Draw rows into `folder`; return the names there that are not of these pictures.

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
                "Give a new one, or use `force=True` to write over them."
            )
        names = file_names(dataset)
        for row in tqdm(rows, desc="overlays", unit=" pictures", disable=None):
            picture = _picture(dataset, row, names[row], remarks, _WIDTH)
            picture.save(folder / names[row], optimize=False)
        return sorted({path.name for path in folder.iterdir()} - {names[row] for row in rows})
    except OSError as error:
        reason = (error.strerror or "input/output error").lower()
        raise EtlError(f"Overlays not written: {folder}: {reason}.") from error


def write_contact_sheet(
    dataset: Dataset, path: Path, *, force: bool, rows: Sequence[int], remarks: Remarks
) -> int:
    """Draw rows, one or more, as tiles of one picture; return how many there is no room for.

    Raises
    ------
    EtlError
        `path` exists (without `force`) or cannot be written.
    """
    path = target.check_target(path, force=force, only_hdf5=False)
    names = file_names(dataset)
    shown = rows[:MAX_TILES]
    n_columns = min(_TILE_COLUMNS, math.ceil(math.sqrt(len(shown))))
    tiles = (_picture(dataset, row, names[row], remarks, TILE_WIDTH) for row in shown)
    sheet = sheet_of(tiles, len(shown), n_columns)
    with target.replacing(path, force=force) as partial:
        sheet.save(partial, "PNG", optimize=False)
    return len(rows) - len(shown)


def sheet_of(tiles: Iterable[PillowImage.Image], n_tiles: int, n_columns: int) -> PillowImage.Image:
    """Return one picture of others, row by row; they shrink to the size of a tile."""
    n_rows = -(-n_tiles // n_columns)
    step = TILE_WIDTH + _TILE_GAP
    sheet = PillowImage.new("RGB", (n_columns * step + _TILE_GAP, n_rows * step + _TILE_GAP))
    for place, tile in enumerate(tiles):
        tile.thumbnail((TILE_WIDTH, TILE_WIDTH))
        down, right = divmod(place, n_columns)
        sheet.paste(tile, (_TILE_GAP + right * step, _TILE_GAP + down * step))
    return sheet


def remarks_on(findings: Iterable[FindingRow]) -> dict[int, list[FindingRow]]:
    """Return the findings of each row, each code once."""
    remarks: dict[int, dict[str, FindingRow]] = {}
    for one in findings:
        if one.row >= 0:
            remarks.setdefault(one.row, {}).setdefault(one.code, one)
    return {row: list(by_code.values()) for row, by_code in remarks.items()}


def _picture(
    dataset: Dataset, row: int, name: str, remarks: Remarks, width: int
) -> PillowImage.Image:
    words = [(one.code, _SEVERITY_COLOURS[one.severity]) for one in remarks.get(row, ())]
    return overlay(
        *dataset[row],
        dataset.polygons(row),
        name.removesuffix(".png"),
        dataset.structures,
        remarks=words,
        width=width,
    )


def file_names(dataset: Dataset) -> list[str]:
    """Return the name of each row's picture: patient and slice, and the row where names meet.

    Letters of every script stay: with their names in underscores, patients would look alike.
    """
    names: list[str] = []
    taken: set[str] = set()
    patients = dataset.manifest["patient_id"].tolist()
    for row, (patient, number) in enumerate(
        zip(patients, dataset.manifest["slice"].tolist(), strict=True)
    ):
        plain = re.sub(r"[^\w.-]", "_", unicodedata.normalize("NFC", patient))
        plain = plain.encode()[:_NAME_BYTES].decode(errors="ignore")
        name = f"{plain}_slice{number:04d}"
        if name.casefold() in taken:
            name = f"{name}_row{row}"
        taken.add(name.casefold())
        names.append(f"{name}.png")
    return names


def overlay(
    image: Image,
    mask: LabelMap | BitMask,
    contours: list[tuple[int, Vertices]],
    caption: str,
    structures: Sequence[Structure],
    *,
    remarks: Sequence[tuple[str, _Colour]] = (),
    width: int = _WIDTH,
) -> PillowImage.Image:
    """Return the picture of one row.

    Parameters
    ----------
    image, mask : arrays, shape (rows, columns)
        Modality values; label map or bit mask.
    contours : list of (label, vertices)
        As `Dataset.polygons` gives them; vertices in pixels.
    structures : sequence of Structure
        In paint order.
    remarks : sequence of (str, colour)
        Words below the caption.
    width : int
        Pixels that the picture has at least.
    """
    scale = max(1, min(-(-width // image.shape[1]), _LONGEST // max(image.shape)))
    gray = PillowImage.fromarray(windowed(image))
    size = image.shape[1] * scale, image.shape[0] * scale
    canvas = gray.resize(size, PillowImage.Resampling.BICUBIC).convert("RGB")
    is_ignored = ignored(mask, structures)
    if is_ignored.any():
        canvas = _hatched(canvas, is_ignored)
    draw = ImageDraw.Draw(canvas)
    labels = {label for label, _ in contours}
    shown = [one for one in structures if one.label in labels or one.covers(mask).any()]
    for structure in shown:
        lines = _edges(_extent(structure, mask, structures)).reshape(-1, 2, 2) * scale
        for line in _onto(lines, size).reshape(-1, 4).tolist():
            draw.line(line, fill=colours(structure)[1])
    for structure in shown:
        for vertices in (vertices for label, vertices in contours if label == structure.label):
            # A pixel's centre is half a pixel inside its square.
            points = _onto((np.vstack([vertices, vertices[:1]]) + 0.5) * scale, size)
            draw.line(list(map(tuple, points.tolist())), fill=colours(structure)[0])
    words = [(one.name, colours(one)[0]) for one in sorted(shown, key=lambda one: one.label)]
    words += [("ignored", _HATCH_COLOUR)] * bool(is_ignored.any())
    _write_line(draw, 0, [(caption, _WHITE), *words])
    _write_line(draw, 1, remarks)
    return canvas


def _onto(points: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[Any]:
    """Return (x, y) with those on the right and the lower border on the last pixel of a picture.

    The border itself is one pixel beyond, where nobody would see a line.
    """
    last = np.array(size) - 1
    moved: npt.NDArray[Any] = np.where((points > last) & (points <= last + 1), last, points)
    return moved


def ignored(mask: LabelMap | BitMask, structures: Sequence[Structure]) -> npt.NDArray[np.bool_]:
    """Return which pixels a mask ignores: none of a bit mask."""
    is_ignored: npt.NDArray[np.bool_] = mask == IGNORE
    return is_ignored & all(structure.bit is None for structure in structures)


def _extent(
    structure: Structure, mask: LabelMap | BitMask, structures: Sequence[Structure]
) -> npt.NDArray[np.bool_]:
    """Return the pixels inside a structure.

    In a label map it ends where those that lie in it end, or outside of them: it is their union.
    """
    is_in = structure.covers(mask)
    for one in _inside(structure, structures) if structure.bit is None else ():
        is_in |= one.covers(mask)
    return is_in


def _hatched(canvas: PillowImage.Image, is_ignored: npt.NDArray[np.bool_]) -> PillowImage.Image:
    """Return a picture with stripes over the pixels that the mask ignores."""
    pixels = np.array(canvas)
    scale = canvas.height // len(is_ignored)
    enlarged = is_ignored.repeat(scale, axis=0).repeat(scale, axis=1)
    diagonal = np.add.outer(np.arange(len(enlarged)), np.arange(enlarged.shape[1]))
    is_striped = enlarged & (diagonal % _HATCH < _HATCH // 4)
    pixels[is_striped] = (pixels[is_striped] + np.array(_HATCH_COLOUR)) // 2
    return PillowImage.fromarray(pixels)


def _inside(outer: Structure, structures: Sequence[Structure]) -> list[Structure]:
    """Return the structures that lie in one, those in these ones too."""
    found = [outer]
    for one in found:
        found += [inner for inner in structures if inner.inside_of == one.name != inner.name]
        if len(found) > len(structures):  # a file in which two lie in each other
            break
    return found[1:]


def colours(structure: Structure) -> tuple[_Colour, _Colour]:
    """Return the colour of a structure's contour, and of its mask's edge."""
    if structure.label in _COLOURS:
        return _COLOURS[structure.label]
    hue = structure.label * _HUE_STEP % 1.0
    bright, dark = (colorsys.hsv_to_rgb(hue, *rest) for rest in ((0.6, 1.0), (0.9, 0.8)))
    return _bytes(bright), _bytes(dark)


def _bytes(colour: tuple[float, float, float]) -> _Colour:
    red, green, blue = (round(255 * part) for part in colour)
    return red, green, blue


def windowed(image: Image) -> npt.NDArray[np.uint8]:
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


def _write_line(
    draw: ImageDraw.ImageDraw, number: int, words: Sequence[tuple[str, _Colour]]
) -> None:
    """Write words beside each other, on the line of a number from the top."""
    font = ImageFont.load_default(_CAPTION_SIZE)
    x, y = 8.0, 8.0 + number * _LINE_HEIGHT
    for word, colour in words:
        shown = _drawable(word, font)
        draw.text((x, y), shown, fill=colour, font=font, stroke_width=2, stroke_fill=(0, 0, 0))
        x += draw.textlength(shown, font=font) + 16


def _drawable(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Return text with escapes for what the font lacks: its boxes would make all names alike."""
    if text.isascii():
        return text
    box = bytes(font.getmask("\uffff"))  # no character
    return "".join(
        one
        if one.isascii() or bytes(font.getmask(one)) != box
        else one.encode("ascii", "backslashreplace").decode()
        for one in text
    )
