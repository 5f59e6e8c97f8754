"""What `dicom-etl check` found, for people and machines."""

import csv
import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from etl.errors import EtlError
from etl.findings import CODES, SEVERITY_ORDER, Finding, FindingRow, printable
from etl.output import target
from etl.quality.diagnoses import Diagnosis
from etl.report.findings import group_findings
from etl.report.summary import Tag
from etl.report.table import COLUMNS, no_formula
from etl.report.text import diagnoses_text, findings_text, sources_text, tag_text

_SHOWN: Final = 6  # sizes, encodings or patients that one line lists


class StructureCount(NamedTuple):
    """One structure: how many pairs have an annotation of it, and how many rows."""

    code: int
    name: str
    n_pairs: int
    n_rows: int


class Patient(NamedTuple):
    """One patient: how many pairs there are, and how many of them become rows."""

    patient_id: str
    original_id: str  # empty where the layout has none
    n_pairs: int
    n_rows: int


@dataclass(frozen=True, slots=True)
class Summary:
    """The facts of one input.

    A pair is an image with the annotations that the options choose; findings tell of images and
    annotations that make none.
    """

    sources: dict[str, int]
    missing: str  # what no file at all was found of; empty where there is some of everything
    size: tuple[int, int]  # that the build would have
    takes_all_sizes: bool  # by `--fit`, or whichever is the commonest
    image_dtype: str
    n_pairs: int
    n_unread: int  # pairs whose header cannot be read
    n_rows: int
    n_bytes: int  # of images and masks in the file
    n_series: int
    sizes: list[tuple[tuple[int, int], int]]  # (rows, columns) and number, the commonest first
    encodings: list[tuple[str, int]]
    structures: list[StructureCount]
    patients: list[Patient]

    @property
    def size_option(self) -> str:
        """The value of `--size` that takes most images, where it is not the one given; or empty."""
        if not self.sizes or self.takes_all_sizes or self.sizes[0][0] == self.size:
            return ""
        (rows, columns), n_most = self.sizes[0]
        return f"{rows}x{columns}" if n_most > dict(self.sizes).get(self.size, 0) else ""


@dataclass(frozen=True, slots=True)
class Checked:
    """What a build of one input would take and refuse, and why."""

    path: str
    layout: str  # which it is and why, as a sentence
    is_full: bool  # whether pixels were looked at
    summary: Summary
    findings: list[Finding]
    diagnoses: list[Diagnosis] = field(default_factory=list)  # their causes; only where `is_full`
    tags: list[Tag] = field(default_factory=list)  # of `--keep-tags`, over the rows
    notes: list[str] = field(default_factory=list)  # on what was asked for but not had

    def require_rows(self) -> None:
        """Raise where a build would have nothing to write.

        Raises
        ------
        EtlError
            With what the input lacks wholly.
        """
        if not self.summary.n_rows:
            missing = f" {self.summary.missing}" if self.summary.missing else ""
            raise EtlError(f"Nothing to build: no usable pair of image and contour.{missing}")

    def to_json(self) -> dict[str, object]:
        """Return plain data; of the findings the number of each code, and the first few."""
        summary = asdict(self.summary)
        for name, fields in (("structures", StructureCount), ("patients", Patient)):
            summary[name] = [dict(zip(fields._fields, one, strict=True)) for one in summary[name]]
        summary["sizes"] = [
            {"rows": rows, "columns": columns, "n_pairs": n}
            for (rows, columns), n in self.summary.sizes
        ]
        summary["encodings"] = [
            {"transfer_syntax": name, "n_pairs": n} for name, n in self.summary.encodings
        ]
        groups = [
            {
                "severity": group.severity,
                "code": group.code,
                "n_findings": group.n_findings,
                "examples": [{"path": one.path, "message": one.message} for one in group.examples],
            }
            for group in group_findings(self._rows())
        ]
        return {
            "path": self.path,
            "layout": self.layout,
            "is_full": self.is_full,
            **summary,
            "size_option": self.summary.size_option,
            "diagnoses": [one.to_json() for one in self.diagnoses],
            **({"tags": [asdict(one) for one in self.tags]} if self.tags else {}),
            **({"notes": self.notes} if self.notes else {}),
            "findings": groups,
        }

    def text(self) -> Iterator[str]:
        """Yield the lines that a person reads; all are printable."""
        head, *lines = map(printable, self._lines())
        yield head
        yield from diagnoses_text(self.diagnoses)
        yield from lines
        groups = group_findings(self._rows())
        yield from findings_text(groups, f"dicom-etl check {self.path}", SEVERITY_ORDER)

    def _lines(self) -> Iterator[str]:
        summary = self.summary
        looked_at = "headers, annotations and pixels" if self.is_full else "headers and annotations"
        yield f"{self.path}  ({looked_at} read, nothing written)"
        yield ""
        yield f"  Layout      {self.layout.removeprefix('Layout ')}"
        yield f"  Sources     {', '.join(sources_text(summary.sources))}"
        unread = f"; {_count(summary.n_unread, 'header')} not readable" if summary.n_unread else ""
        yield f"  Pairs       {summary.n_pairs} in {summary.n_series} series{unread}"
        yield f"  Sizes       {_listed([(f'{r}x{c}', n) for (r, c), n in summary.sizes])}"
        yield f"  Encodings   {_listed(summary.encodings)}"
        for one in summary.structures:
            in_pairs, in_rows = _count(one.n_pairs, "pair"), _count(one.n_rows, "row")
            yield f"  Label {one.code:<5} {one.name}: in {in_pairs}, {in_rows}"
        for tag in self.tags:
            same = "" if tag.n_values != 1 or tag.n_unknown else ", the same in all"
            yield f"  Tag         {tag_text(tag)}{same}"
        yield ""
        yield from self._outcome()
        yield from (f"Note: {note}" for note in self.notes)

    def _outcome(self) -> Iterator[str]:
        """Yield what a build would write and leave out."""
        summary = self.summary
        rows, columns = summary.size
        patients = _count(sum(one.n_rows > 0 for one in summary.patients), "patient")
        yield (
            f"A build would write {summary.n_rows} of {_count(summary.n_pairs, 'pair')}, of "
            f"{patients}: {rows}x{columns} {summary.image_dtype}, {summary.n_bytes / 1e6:.1f} MB."
        )
        if without := [one.patient_id for one in summary.patients if not one.n_rows]:
            shown = ", ".join([*without[:_SHOWN], *["..."] * (len(without) > _SHOWN)])
            yield f"No row for {_count(len(without), 'patient')}: {shown}."
        if option := summary.size_option:
            n_most, n_given = summary.sizes[0][1], dict(summary.sizes).get(summary.size, 0)
            yield (
                f"The commonest size is {option}: --size {option} takes {_count(n_most, 'pair')}, "
                f"--size {rows}x{columns} takes {n_given}."
            )
        if len(summary.sizes) > 1 and not summary.takes_all_sizes:
            n = len(summary.sizes)
            yield f"The images have {n} sizes: --fit ROWSxCOLUMNS takes all of them."

    def _rows(self) -> list[FindingRow]:
        return [FindingRow(f.severity, f.code, f.path, -1, f.message) for f in self.findings]

    def write_csv(self, path: Path, *, force: bool) -> None:
        """Write all findings as a table with one line each, for a spreadsheet.

        Raises
        ------
        EtlError
            `path` exists (without `force`), or cannot be written.
        """
        path = target.check_target(path, force=force, only_hdf5=False)
        names = {one.code: one.name for one in self.summary.structures}
        originals = {one.patient_id: one.original_id for one in self.summary.patients}
        text = io.StringIO(newline="")
        table = csv.writer(text)
        table.writerow(COLUMNS)
        for finding in self.findings:
            key = finding.key or ("", "", "", "")
            said = finding.severity, finding.code, finding.message, CODES[finding.code].advice
            place = finding.path, originals.get(key[0], "")
            cells = (*key, names.get(finding.label, ""), "", "", *said, *place)
            table.writerow(map(no_formula, cells))
        with target.replacing(path, force=force) as partial:
            partial.write_text(text.getvalue(), encoding="utf-8-sig", newline="")


def _listed(counts: list[tuple[str, int]]) -> str:
    """Return what is counted in one line, the commonest first."""
    if not counts:
        return "none"
    shown = ", ".join(f"{name} ({n})" for name, n in counts[:_SHOWN])
    return f"{shown} and {len(counts) - _SHOWN} more" if counts[_SHOWN:] else shown


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
