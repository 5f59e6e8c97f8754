"""One difference between what a file holds and what it should hold."""

from typing import NamedTuple

from etl.findings import printable


class Problem(NamedTuple):
    """Where something differs, and how."""

    place: str  # a row, a dataset, an attribute, or a source file
    message: str

    def __str__(self) -> str:
        """Return one printable line."""
        return printable(f"{self.place}: {self.message}")
