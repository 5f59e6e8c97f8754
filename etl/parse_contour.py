"""One contour file → the vertices of a polygon.

The format is one vertex a line, "x y" in pixels: two plain ASCII decimal numbers. float() alone
would also take "1_0" and other scripts' digits.
"""

import re
from typing import Final

import numpy as np

from etl.errors import ContourError
from etl.model import Vertices

MAX_VERTICES: Final = 1_000_000
MAX_BYTES: Final = 64 << 20

_PLAIN: Final = b"0123456789.+-eE \t\r\n"
_NUMBER: Final = re.compile(rb"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_NOT_FINITE: Final = re.compile(rb"[+-]?(?:nan|inf|infinity)", re.IGNORECASE)
_MEND: Final = "Repair the line or remove the file."
_COLUMNS: Final = 2  # x and y


def parse_contour(data: bytes) -> Vertices:
    """Return the vertices that a contour file holds.

    Parameters
    ----------
    data : bytes
        The whole file; blank lines are skipped.

    Returns
    -------
    float64 array, shape (n_vertices, 2)
        (x, y) in pixels as they stand in the file, all finite; may be empty.

    Raises
    ------
    ContourError
        A line that is not two numbers, a number that is not finite, or too many lines.
    """
    if len(data) > MAX_BYTES:
        raise too_large(len(data))
    lines = [cells for line in data.splitlines() if (cells := line.split())]
    if len(lines) > MAX_VERTICES:
        raise ContourError(
            "contour-too-large", f"has {len(lines)} points, expected at most {MAX_VERTICES}."
        )
    is_plain = not data.translate(None, _PLAIN)
    if is_plain and all(len(cells) == _COLUMNS for cells in lines):
        try:
            vertices = np.array(lines, dtype=np.float64).reshape(-1, _COLUMNS)
        except ValueError:
            pass  # "1-2", "1e": found again below, with its line
        else:
            if np.isfinite(vertices).all():
                return vertices
    raise _first_problem(data)


def too_large(n_bytes: int) -> ContourError:
    """Return the error for a file of `n_bytes`, more than MAX_BYTES."""
    return ContourError(
        "contour-too-large", f"has {n_bytes} bytes, expected at most {MAX_BYTES}: no contour."
    )


def _first_problem(data: bytes) -> ContourError:
    """Return the error of the first line that is not two finite plain numbers."""
    for number, line in enumerate(data.splitlines(), 1):
        cells = line.split()
        shown = line.strip()[:40].decode("ascii", "backslashreplace")
        if len(cells) == _COLUMNS and all(map(_NUMBER.fullmatch, cells)):
            if np.isfinite([float(cell) for cell in cells]).all():
                continue
        elif not cells:
            continue
        elif len(cells) != _COLUMNS or not all(
            _NUMBER.fullmatch(cell) or _NOT_FINITE.fullmatch(cell) for cell in cells
        ):
            return ContourError(
                "contour-unreadable",
                f'line {number}: expected two numbers, found "{shown}". {_MEND}',
            )
        return ContourError(
            "contour-not-finite",
            f'line {number}: expected finite numbers, found "{shown}". {_MEND}',
        )
    return ContourError("contour-unreadable", f"expected two numbers on each line. {_MEND}")
