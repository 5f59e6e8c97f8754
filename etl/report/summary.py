"""A built file → what a person, or a machine, wants to know about it. Needs no source file."""

import csv
import io
import os
import textwrap
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from etl.errors import EtlError
from etl.findings import AUDIT_CODES, QUALITY_CODES, SEVERITY_ORDER, located, printable
from etl.output import target
from loader import Dataset
from loader import format as file_format
from loader.format import Attribute

_N_EXAMPLES: Final = 3
_WIDTH: Final = 110  # of a line of text; a path is never broken
_SOURCE_WORDS: Final = {  # of the counts that sources make
    "patients": "patients",
    "dicoms": "DICOM files",
    "images": "images",
    "annotations": "annotations",
    "icontours": "i-contours",
    "ocontours": "o-contours",
    "ignored_files": "other files",
}
_HEADINGS: Final = {
    "error": "Errors: pairs that should have been rows and are not",
    "warning": "Warnings: written or not needed, but look at them",
    "info": "Info: nothing wrong",
}


class FindingRow(NamedTuple):
    """One finding as the file has it; row is -1 where it is about none."""

    severity: str
    code: str
    path: str
    row: int
    message: str


@dataclass(frozen=True, slots=True)
class Label:
    """One label code over all rows."""

    code: int
    meaning: str
    n_rows: int
    n_pixels: int
    median_pixels: float  # over the rows that have it


@dataclass(frozen=True, slots=True)
class Side:
    """One split or fold."""

    name: str
    n_patients: int
    n_rows: int


@dataclass(frozen=True, slots=True)
class FindingGroup:
    """All findings of one code, the first few as examples."""

    severity: str
    code: str
    n_findings: int
    examples: list[FindingRow]


@dataclass(frozen=True, slots=True)
class Summary:
    """The facts of one file."""

    path: str
    n_bytes: int
    dataset_id: str
    generator: str
    options: object
    sources: dict[str, int]
    n_rows: int
    n_patients: int
    rows: int
    columns: int
    image_dtype: str
    minimum: float
    maximum: float
    mean: float
    std: float
    pixel_spacings: list[tuple[float, float]]  # mm, between rows and between columns; known ones
    labels: list[Label]
    splits: list[Side]
    folds: list[Side]
    unchecked: list[str]  # codes of findings that the build did not look for
    alignment: dict[str, object] | None  # what the audit measured; see `etl.quality.alignment`
    findings: list[FindingGroup]

    def to_json(self) -> dict[str, object]:
        """Return plain data; findings as objects."""
        plain = asdict(self)
        for group, found in zip(plain["findings"], self.findings, strict=True):
            group["examples"] = [example._asdict() for example in found.examples]
        return plain


def summarise(dataset: Dataset) -> Summary:
    """Return the facts of an open file.

    Raises
    ------
    EtlError
        Its attributes are not what `etl.assemble` writes.
    """
    try:
        return _summarise(dataset)
    except (KeyError, TypeError, ValueError) as error:
        raise EtlError(
            f"Report not possible: {dataset.path}: its attributes are not those that dicom-etl "
            "writes. Build the file again."
        ) from error


def _summarise(dataset: Dataset) -> Summary:
    manifest, attributes = dataset.manifest, dataset.attributes
    n_rows, rows, columns = dataset.images.shape
    alignment: dict[str, object] | None = None
    if Attribute.ALIGNMENT in attributes:
        alignment = dict(_items(attributes[Attribute.ALIGNMENT]))
        _alignment_text(alignment)  # raises where a number is missing
    return Summary(
        path=str(dataset.path),
        n_bytes=dataset.path.stat().st_size,
        dataset_id=dataset.dataset_id,
        generator=str(attributes[Attribute.GENERATOR]),
        options=attributes[Attribute.OPTIONS],
        sources={key: int(str(n)) for key, n in _items(attributes[Attribute.SOURCES])},
        n_rows=n_rows,
        n_patients=len(np.unique(manifest.stored["patient_id"])),
        rows=rows,
        columns=columns,
        image_dtype=str(dataset.images.dtype),
        minimum=float(manifest["minimum"].min()),
        maximum=float(manifest["maximum"].max()),
        mean=float(str(attributes[Attribute.IMAGE_MEAN])),
        std=float(str(attributes[Attribute.IMAGE_STD])),
        pixel_spacings=_pixel_spacings(dataset),
        labels=_labels(dataset),
        splits=_splits(dataset),
        folds=_sides(dataset, "fold", {k: str(k) for k in np.unique(manifest["fold"]) if k >= 0}),
        unchecked=list(_unchecked(attributes)),
        alignment=alignment,
        findings=group_findings(read_findings(dataset)),
    )


def read_findings(dataset: Dataset) -> list[FindingRow]:
    """Return all findings in the file's order: errors first, then by code and path."""
    severity, code, path, message = (
        [value.decode() for value in dataset.findings.stored[name].tolist()]
        for name in ("severity", "code", "path", "message")
    )
    rows = dataset.findings["row"].tolist()
    return list(map(FindingRow, severity, code, path, rows, message))


def group_findings(findings: Iterable[FindingRow]) -> list[FindingGroup]:
    """Return findings in the file's order grouped by code."""
    groups = []
    for (severity, code), members in groupby(findings, key=lambda row: (row.severity, row.code)):
        rows = list(members)
        groups.append(FindingGroup(severity, code, len(rows), rows[:_N_EXAMPLES]))
    return groups


def summary_text(summary: Summary) -> Iterator[str]:
    """Yield the lines of a summary that a person reads in ten seconds; all are printable."""
    yield from map(printable, _summary_lines(summary))
    yield from findings_text(summary.findings, f"dicom-etl report {summary.path}", SEVERITY_ORDER)


def _summary_lines(summary: Summary) -> Iterator[str]:
    size = f"{summary.rows}x{summary.columns} {summary.image_dtype}"
    yield f"{summary.path}  ({summary.n_bytes / 1e6:.1f} MB, {summary.generator})"
    yield ""
    yield f"  Rows      {summary.n_rows} of {summary.n_patients} patients, {size}"
    yield (
        f"  Values    {summary.minimum:g} to {summary.maximum:g}, "
        f"mean {summary.mean:.4g}, deviation {summary.std:.4g}"
    )
    if summary.pixel_spacings:
        shown = ", ".join(f"{row:g} x {column:g}" for row, column in summary.pixel_spacings[:4])
        more = ", ..." if len(summary.pixel_spacings) > 4 else ""  # noqa: PLR2004  what fits a line
        yield f"  Spacing   {shown}{more} mm"
    width = max((len(str(label.code)) for label in summary.labels), default=1)
    for label in summary.labels:
        yield (
            f"  Label {label.code:<{width}}   {label.meaning}: in {label.n_rows} rows, "
            f"{label.n_pixels} pixels, {label.median_pixels:.0f} in the median"
        )
    for title, sides in (("Split", summary.splits), ("Folds", summary.folds)):
        if sides:
            parts = (f"{s.name} {s.n_rows} ({_count(s.n_patients, 'patient')})" for s in sides)
            yield f"  {title}     {', '.join(parts)}"
    if set(QUALITY_CODES) <= set(summary.unchecked):
        yield "  Checks    none: built with --no-qc"
    elif set(AUDIT_CODES) <= set(summary.unchecked):
        yield "  Alignment not measured: --no-audit, or no structure whose contrast is known"
    if summary.alignment is not None:
        yield f"  Alignment {_alignment_text(summary.alignment)}"
    yield f"  Sources   {', '.join(sources_text(summary.sources))}"


def sources_text(counts: Mapping[str, int]) -> Iterator[str]:
    """Yield what was found in the input, in the words of its layout."""
    for name, words in _SOURCE_WORDS.items():
        if name in counts:
            yield f"{counts[name]} {words}"
    for name in sorted(counts.keys() - _SOURCE_WORDS.keys() - {"pairs"}):
        yield f"{counts[name]} {name}"


def findings_text(
    groups: list[FindingGroup], command: str, with_examples: Container[str]
) -> Iterator[str]:
    """Yield findings by severity and code, those of some severities with examples.

    Parameters
    ----------
    command : str
        What lists all of them, with `--csv findings.csv`.
    with_examples : container of str
        Severities.
    """
    if not groups:
        yield ""
        yield "Nothing was rejected, unmatched or suspicious."
        return
    for severity in SEVERITY_ORDER:
        chosen = [group for group in groups if group.severity == severity]
        if chosen:
            yield ""
            yield _HEADINGS[severity]
        for group in chosen:
            yield printable(f"  {group.n_findings:>6}  {group.code}")
            if severity in with_examples:
                yield from _examples_text(group)
    yield ""
    yield printable(f"All findings: {command} --csv findings.csv")


def _examples_text(group: FindingGroup) -> Iterator[str]:
    for example in group.examples:
        yield from textwrap.wrap(
            located(example.path, example.message),
            width=_WIDTH,
            initial_indent=" " * 10,
            subsequent_indent=" " * 12,
            break_long_words=False,
            break_on_hyphens=False,
        )
    if n_more := group.n_findings - len(group.examples):
        yield f"          ... and {n_more} more"


def write_csv(dataset: Dataset, path: Path, *, force: bool) -> None:
    """Write all findings as a table with one line each, for a spreadsheet.

    Raises
    ------
    EtlError
        `path` exists (without `force`), is the dataset itself, or cannot be written.
    """
    if os.path.exists(path) and os.path.samefile(path, dataset.path):
        raise EtlError(f"Output not usable: {path}: is the dataset itself. Give another name.")
    path = target.check_target(path, force=force, only_hdf5=False)
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(FindingRow._fields)
    table.writerows([no_formula(cell) for cell in finding] for finding in read_findings(dataset))
    with target.replacing(path, force=force) as partial:
        partial.write_text(text.getvalue(), encoding="utf-8-sig", newline="")


def no_formula(value: str | int) -> str | int:
    """Return a printable cell that no spreadsheet runs as a formula."""
    if not isinstance(value, str):
        return value
    is_formula = value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{printable(value)}" if is_formula else printable(value)


def _pixel_spacings(dataset: Dataset) -> list[tuple[float, float]]:
    names = ("pixel_spacing_row", "pixel_spacing_column")
    both = np.stack([dataset.manifest[name] for name in names], axis=1).astype(np.float64)
    known = np.unique(both[~np.isnan(both).any(axis=1)], axis=0)
    return [(row, column) for row, column in known.tolist()]


def _alignment_text(numbers: Mapping[str, object]) -> str:
    names = ("n_contours", "n_too_little_contrast", "n_at_edge", "n_patients")
    n_contours, n_faint, n_lost, n_patients = (int(str(numbers[name])) for name in names)
    if not n_contours:
        return f"not known: none of {_count(n_faint + n_lost, 'contour')} lies by a clear edge"
    n_left_out = f", {n_faint + n_lost} left out" if n_faint + n_lost else ""
    return (
        f"contours lie ({numbers['dx']:+.2f}, {numbers['dy']:+.2f}) px off the image's edges, "
        f"{_count(n_contours, 'contour')} of {_count(n_patients, 'patient')}{n_left_out}"
    )


def _unchecked(attributes: Mapping[str, object]) -> Sequence[str]:
    """Return the codes of findings that the build did not look for."""
    if not dict(_items(attributes[Attribute.OPTIONS])).get("qc", True):
        return QUALITY_CODES
    return () if Attribute.ALIGNMENT in attributes else AUDIT_CODES


def _items(value: object) -> list[tuple[str, object]]:
    if not isinstance(value, dict):
        raise TypeError("expected a JSON object")
    return list(value.items())


def _labels(dataset: Dataset) -> list[Label]:
    labels = []
    for structure in sorted(dataset.structures, key=lambda one: one.code):
        n_pixels = dataset.manifest[f"n_pixels_{structure.code}"].astype(np.int64)
        present = n_pixels[n_pixels > 0]
        median = float(np.median(present)) if len(present) else 0.0
        total = int(n_pixels.sum())
        labels.append(Label(structure.code, structure.meaning, len(present), total, median))
    return labels


def _splits(dataset: Dataset) -> list[Side]:
    names = dict(enumerate(file_format.SPLITS)) | {file_format.NO_SPLIT: "none"}
    sides = _sides(dataset, "split", names)
    none = sides.pop()
    if none.n_rows == len(dataset):
        return []
    return [*sides, none] if none.n_rows else sides


def _sides(dataset: Dataset, column: str, names: dict[int, str]) -> list[Side]:
    """Return how many patients and rows have each code of a column."""
    codes, patients = dataset.manifest[column], dataset.manifest.stored["patient_id"]
    sides = []
    for code, name in names.items():
        chosen = codes == code
        sides.append(Side(name, len(np.unique(patients[chosen])), int(chosen.sum())))
    return sides


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
