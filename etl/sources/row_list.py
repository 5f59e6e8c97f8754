"""The row list: a table of rows with a decision on each, as annotators and reports write it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple

from etl.errors import EtlError
from etl.findings import Finding, SampleKey, counted
from etl.model import Link
from etl.options import BuildOptions
from etl.sources.csv_table import read_csv, without_mark
from etl.sources.source import Discovery

COLUMNS: Final = (
    "patient_id",
    "series",
    "slice",
    "frame_number",
    "structure",
    "decision",
    "comment",
)

_REQUIRED: Final = ("patient_id", "slice")
_DECISIONS: Final = ("accept", "exclude", "redraw")
_MAX_DIGITS: Final = 19  # of an int64
_N_NAMED: Final = 3  # rows that a note names


class Line(NamedTuple):
    """One line that leaves something out."""

    number: int  # in the file, for messages
    patient_id: str
    series: str  # empty: any
    slice: int
    frame_number: int  # 0: any
    structure: str  # empty: the whole row
    decision: str  # exclude or redraw
    comment: str

    def __str__(self) -> str:
        """Return the row that it is about."""
        series = f", series {self.series}" if self.series else ""
        frame = f", frame {self.frame_number}" if self.frame_number > 1 else ""
        return f"patient {self.patient_id!r}{series}, slice {self.slice}{frame}"

    @property
    def why(self) -> str:
        """What a finding says of a row that the line leaves out."""
        comment = f": {self.comment}" if self.comment else ""
        return f"left out by --exclude-file, line {self.number} ({self.decision}{comment})."


def check_row_list(options: BuildOptions) -> None:
    """Read the user's own row list, so that a bad one shows before the work."""
    if options.exclude_file is not None:
        read_row_list(Path(options.exclude_file))


@dataclass(frozen=True, slots=True)
class RowList:
    """What a row list leaves out.

    Attributes
    ----------
    lines : list of Line
        Those whose decision is exclude or redraw, or that have none.
    n_without_slice : int
        Lines that name no row.
    """

    lines: list[Line]
    n_without_slice: int


def read_row_list(path: Path) -> RowList:
    """Return what a row list leaves out.

    Raises
    ------
    EtlError
        The file is missing, not text, lacks a column, or has a line with a slice, frame or
        decision that is none.
    """
    lines: list[Line] = []
    n_without_slice = 0
    for number, cells in read_csv(path, required=_REQUIRED):
        texts = {name: without_mark(cells.get(name, "")) for name in COLUMNS}
        where = f"Row list not usable: {path}, line {number}"
        decision = texts["decision"].casefold() or "exclude"
        if decision not in _DECISIONS:
            raise EtlError(
                f"{where}: expected a decision of {', '.join(_DECISIONS)} or none, found "
                f"{texts['decision'][:40]!r}."
            )
        if not texts["slice"]:
            n_without_slice += 1
        elif decision != "accept":
            lines.append(
                Line(
                    number,
                    texts["patient_id"],
                    texts["series"],
                    _whole(texts["slice"], "slice", where),
                    _whole(texts["frame_number"] or "0", "frame_number", where),
                    texts["structure"],
                    decision,
                    texts["comment"],
                )
            )
    return RowList(lines, n_without_slice)


def exclude_listed(found: Discovery, options: BuildOptions) -> Discovery:
    """Return a discovery without the rows, or structures of rows, that `exclude_file` lists.

    What is left out becomes a finding; lines that leave out nothing become notes.

    Raises
    ------
    EtlError
        As `read_row_list` says.
    """
    if options.exclude_file is None:
        return found
    row_list = read_row_list(Path(options.exclude_file))
    by_structure = options.exclude_structures
    index = _Index(row_list.lines)
    used: set[int] = set()
    kept: list[Link] = []
    names = {one.code: one.name for one in found.scheme}
    for link in found.links:
        about = list(index.about(link.key))
        whole = next((line for line in about if not (by_structure and line.structure)), None)
        wanted = {line.structure: line for line in about}
        gone = [one for one in link.annotations if names[one.code] in wanted]
        if whole is not None:
            used.add(whole.number)
            found.findings.append(Finding("row-excluded", link.frame.path, whole.why, link.key))
            continue
        for one in gone:
            line = wanted[names[one.code]]
            used.add(line.number)
            found.findings.append(
                Finding("structure-excluded", one.path, line.why, link.key, one.code)
            )
        left = tuple(one for one in link.annotations if one not in gone)
        if left or not gone:  # without either it is an image on which nothing is drawn
            kept.append(link._replace(annotations=left))
        else:
            message = f"{line.why[:-1]}; it was the row's last structure."
            found.findings.append(Finding("row-excluded", link.frame.path, message, link.key))
    unknown = [line for line in row_list.lines if line.number not in used]
    notes = _notes(unknown, row_list, names.values(), by_structure=by_structure)
    return replace(found, links=kept, notes=(*found.notes, *notes))


class _Index:
    """Lines by patient and slice."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self._lines: dict[tuple[str, int], list[Line]] = {}
        for line in lines:
            self._lines.setdefault((line.patient_id, line.slice), []).append(line)

    def about(self, key: SampleKey) -> Iterator[Line]:
        """Yield the lines that mean a sample."""
        for line in self._lines.get((key.patient_id, key.slice), ()):
            if line.series in {"", key.series} and line.frame_number in {0, key.frame_number}:
                yield line


def _notes(
    unknown: Sequence[Line], row_list: RowList, names: Iterable[str], *, by_structure: bool
) -> Iterator[str]:
    if n := row_list.n_without_slice:
        yield f"--exclude-file: {counted(n, 'line')} without slice skipped."
    if unknown:
        shown = [f"line {line.number}: {line}" for line in unknown[:_N_NAMED]]
        more = ", ..." if len(unknown) > _N_NAMED else ""
        yield (
            f"--exclude-file: {counted(len(unknown), 'line')} name no row of the build: "
            f"{', '.join(shown)}{more}."
        )
    known = {"", *names}
    strange = sorted({line.structure for line in row_list.lines} - known) if by_structure else []
    if strange:
        yield (
            f"--exclude-file: unknown structures: {', '.join(map(repr, strange))}; "
            f"the structures are {', '.join(map(repr, sorted(known - {''})))}."
        )


def _whole(text: str, column: str, where: str) -> int:
    """Return a whole number, also as spreadsheets and pandas write it: 12.0."""
    digits = text.removesuffix(".0")
    sign, plain = (-1, digits[1:]) if digits.startswith("-") else (1, digits)
    if plain.isascii() and plain.isdecimal() and len(plain) < _MAX_DIGITS:
        return sign * int(plain)
    raise EtlError(f"{where}: expected a whole number as {column}, found {text[:40]!r}.")
