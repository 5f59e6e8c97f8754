"""One contour file → the vertices of its polygons.

The format is one vertex a line, "x y" in pixels: two plain ASCII decimal numbers. float() by itself
would also take "1_0" and other scripts' digits. A blank line between two polygons separates them.
"""

import math
import re
from itertools import pairwise
from typing import Final

import numpy as np

from etl.errors import ContourError, beyond, most
from etl.model import Vertices

# No possessive quantifiers: Python 3.11.2, which Debian 12 has, gets them wrong.
_NUMBER: Final = re.compile(rb"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_LINE: Final = re.compile(rb"[^\r\n]+")
_LINE_END: Final = re.compile(rb"\r\n|\r|\n")
_ONE_LINE_END: Final = (b"\n", b"\r\n", b"\r")
_NOT_FINITE: Final = re.compile(rb"[+-]?(?:nan|inf|infinity)", re.IGNORECASE)
_MEND: Final = "Repair the line or remove the file."
_COLUMNS: Final = 2  # x and y
_MIN_PART: Final = 3  # lines between blank ones that are a polygon of their own
_NUMBER_CHARACTERS: Final = b"0123456789+-.eE"
_BLANKS: Final = b" \t"
_FIXED: Final = re.compile(rb"[+-]?[0-9]*\.[0-9]+")
_MIN_TELLING: Final = 7  # numbers before the last one: of fewer, equal decimals may be chance


def parse_contour(data: bytes) -> list[Vertices]:
    """Return the polygons that a contour file holds.

    Blank lines separate polygons of one region. They are skipped at the start and the end, where
    several follow each other, and beside a part of fewer than 3 lines, which is joined to its
    neighbour: double spacing separates nothing.

    Parameters
    ----------
    data : bytes
        The whole file.

    Returns
    -------
    list of float64 arrays, shape (n_vertices, 2)
        At least one; (x, y) in pixels as they stand in the file, all finite. A file without a
        number gives one empty array.

    Raises
    ------
    ContourError
        A line that is not two numbers, a number that is not finite, too many lines, or a file that
        is cut off in its last number.
    """
    if len(data) > most("contour-bytes"):
        raise too_large(len(data))
    vertices = _plain(data)
    polygons = _line_by_line(data) if vertices is None else [vertices]
    _require_end(data)
    return polygons


def _plain(data: bytes) -> Vertices | None:
    """Return the vertices of a file whose every line is "x y", as most are; else None.

    That the characters of numbers are all there is, but for one blank and one line end in turn,
    leaves to float() only what it judges as `_NUMBER` does.
    """
    # Blank lines at the end say nothing.
    data = data.rstrip(b"\r\n") + (b"\r\n" if data.endswith(b"\r\n") else b"\n")
    between = data.translate(None, _NUMBER_CHARACTERS)
    n_lines = between.count(b"\n")
    if n_lines > most("contour-points") or between not in (b" \n" * n_lines, b" \r\n" * n_lines):
        return None
    if b"\r" in between and data.count(b"\r\n") != n_lines:  # a number between the two
        return None
    numbers = data.split()
    if len(numbers) != _COLUMNS * n_lines:  # a blank without its number
        return None
    try:
        vertices = np.array(numbers, np.float64).reshape(-1, _COLUMNS)
    except ValueError:
        return None
    return vertices if np.isfinite(vertices).all() else None


def _line_by_line(data: bytes) -> list[Vertices]:
    """Return the polygons of any file, or raise for the first line that is not two numbers."""
    vertices: list[tuple[float, float]] = []
    most_points = most("contour-points")
    starts: list[int] = []  # of the parts but the first
    end = 0  # of the last line that is not blank
    for line in _LINE.finditer(data):
        stripped = line[0].strip(_BLANKS)
        if not stripped:
            continue
        if vertices and data[end : line.start()] not in _ONE_LINE_END:
            starts.append(len(vertices))
        end = line.end()
        cells = re.split(rb"[ \t]+", stripped, maxsplit=_COLUMNS)
        # Escaped: no control character of a file reaches a terminal.
        shown = stripped[:40].decode("latin-1").encode("unicode_escape").decode("ascii")
        if len(cells) != _COLUMNS or not all(
            _NUMBER.fullmatch(cell) or _NOT_FINITE.fullmatch(cell) for cell in cells
        ):
            number = _line_number(data, line.start())
            raise ContourError(
                "contour-unreadable",
                f'line {number}: expected two numbers, found "{shown}". {_MEND}',
            )
        x, y = map(float, cells)
        if not (math.isfinite(x) and math.isfinite(y)):
            number = _line_number(data, line.start())
            raise ContourError(
                "contour-not-finite",
                f'line {number}: expected finite numbers, found "{shown}". {_MEND}',
            )
        vertices.append((x, y))
        if len(vertices) > most_points:
            n_lines = sum(1 for one in _LINE.finditer(data) if one[0].strip(_BLANKS))
            raise ContourError("contour-too-large", beyond("contour-points", n_lines))
    points = np.array(vertices, np.float64).reshape(-1, _COLUMNS)
    borders = _borders(starts, len(points))
    if len(borders) >= most("polygons"):  # blank lines separate them
        raise ContourError("contour-too-large", beyond("polygons", len(borders) + 1))
    return np.split(points, borders)


def _require_end(data: bytes) -> None:
    """Require a whole last number, where the file has no last line end.

    A file that is cut off in a number has another number there. The decimals tell where all others
    have equally many.

    Raises
    ------
    ContourError
        The last number has fewer decimals than each of the others.
    """
    if data.endswith((b"\n", b"\r")) or data.count(b".") < _MIN_TELLING:
        return
    *others, last = data.split()
    decimals = {len(number.partition(b".")[2]) for number in others if _FIXED.fullmatch(number)}
    if len(others) < _MIN_TELLING or not all(map(_FIXED.fullmatch, others)) or len(decimals) != 1:
        return
    n_decimals = len(last.partition(b".")[2])
    if n_decimals < min(decimals):
        number = _line_number(data, len(data))
        raise ContourError(
            "contour-unreadable",
            f'line {number}: ends with "{last.decode("ascii")}", all other numbers have '
            f"{min(decimals)} decimals, and there is no line end: the file seems to be cut off. "
            "Copy it again.",
        )


def _borders(starts: list[int], n_points: int) -> list[int]:
    """Return the starts of parts that have enough points on both sides to be polygons."""
    borders: list[int] = []
    for start, stop in pairwise([*starts, n_points]):
        n_before = start - (borders[-1] if borders else 0)
        if min(n_before, stop - start) >= _MIN_PART:
            borders.append(start)
    return borders


def _line_number(data: bytes, start: int) -> int:
    """Return the number of the line that begins at `start`, from 1."""
    return 1 + sum(1 for _ in _LINE_END.finditer(data, 0, start))


def too_large(n_bytes: int) -> ContourError:
    """Return the error for a file of more bytes than a contour may have."""
    return ContourError("contour-too-large", beyond("contour-bytes", n_bytes))
