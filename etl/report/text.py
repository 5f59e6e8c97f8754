"""Summaries, diagnoses and findings → lines for people, as wide as their terminal."""

import itertools
import os
import re
import shutil
import textwrap
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TextIO

from etl.findings import (
    AUDIT_CODES,
    QUALITY_CODES,
    SEVERITY_ORDER,
    counted,
    located,
    printable,
    shortened,
)
from etl.quality.diagnoses import Diagnosis
from etl.report.findings import FindingGroup
from etl.report.predictions import Agreement
from etl.report.summary import (
    Label,
    Summary,
    Tag,
    alignment_text,
    number_text,
    resizing_text,
)
from loader.format import MASK_BITS

_ENDLESS: Final = re.compile(r"\S{4097,}")
_SHOWN: Final = 80  # characters of such a word
_WIDTH: Final = 110  # of a line where no terminal shows it; a path is never broken
_NARROWEST: Final = 40
_N_DIAGNOSES: Final = 10  # that a text shows
_SOURCE_WORDS: Final = {  # of the counts that sources make
    "patients": "patient",
    "dicoms": "DICOM file",
    "series": "series",
    "images": "image",
    "structure_sets": "structure set",
    "annotations": "annotation",
    "icontours": "i-contour",
    "ocontours": "o-contour",
    "ignored_files": "other file",
}
_HEADINGS: Final = {
    "error": "Errors: pairs that should have been rows and are not",
    "warning": "Warnings: written or not needed, but look at them",
    "info": "Info: nothing wrong",
}
_COLOURS: Final = {"error": "31", "warning": "33", "info": "36"}  # ANSI: red, yellow, cyan


@dataclass(frozen=True, slots=True)
class Terminal:
    """Where lines are shown.

    Parameters
    ----------
    width : int
        Characters of a line.
    has_colour : bool
    """

    width: int = _WIDTH
    has_colour: bool = False

    @classmethod
    def of(cls, stream: TextIO) -> "Terminal":
        """Return what a stream is; colour is for terminals where NO_COLOR is not set."""
        if not stream.isatty():
            return cls()
        width = max(_NARROWEST, shutil.get_terminal_size((_WIDTH, 24)).columns)
        is_plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        return cls(width, has_colour=not is_plain)

    def painted(self, text: str, severity: str) -> str:
        """Return text in the colour of a severity."""
        if not self.has_colour or severity not in _COLOURS:
            return text
        return f"\x1b[{_COLOURS[severity]}m{text}\x1b[0m"

    def wrapped(self, text: str, first: str = "", following: str = "") -> list[str]:
        """Return printable text as lines that fit, each after its indent.

        A word longer than any path is cut: the file may be another program's.
        """
        return textwrap.wrap(
            printable(_ENDLESS.sub(lambda word: shortened(word[0], _SHOWN), text)),
            width=self.width,
            initial_indent=first,
            subsequent_indent=following,
            break_long_words=False,
            break_on_hyphens=False,
        )


_PLAIN: Final = Terminal()


def summary_text(summary: Summary, terminal: Terminal = _PLAIN) -> Iterator[str]:
    """Yield the lines of a summary that a person reads in ten seconds; all are printable."""
    n_bytes = f"{summary.n_bytes / 1e6:.1f} MB"
    yield printable(f"{summary.path}  ({n_bytes}, {summary.generator})")
    yield from diagnoses_text(summary.diagnoses, terminal)
    yield ""
    for title, text in _facts(summary):
        yield from terminal.wrapped(text, f"  {title:<9} ", " " * 12)
    if summary.selection and not summary.findings:
        yield ""
        yield "No such finding."
        return
    yield from findings_text(
        summary.findings, f"dicom-etl report {summary.path}", SEVERITY_ORDER, terminal
    )


def _facts(summary: Summary) -> Iterator[tuple[str, str]]:
    """Yield a title and what it is about."""
    size = f"{summary.rows}x{summary.columns} {summary.image_dtype}"
    yield "Rows", f"{summary.n_rows} of {counted(summary.n_patients, 'patient')}, {size}"
    yield from _resizing(summary)
    values = f"{number_text(summary.minimum)} to {number_text(summary.maximum)}"
    yield "Values", f"{values}, mean {summary.mean:.4g}, deviation {summary.std:.4g}"
    if summary.pixel_spacings:
        first = summary.pixel_spacings[:4]
        shown = ", ".join(f"{number_text(row)} x {number_text(column)}" for row, column in first)
        more = ", ..." if len(summary.pixel_spacings) > 4 else ""  # noqa: PLR2004  what fits a line
        yield "Spacing", f"{shown}{more} mm"
    width = max((len(str(label.code)) for label in summary.labels), default=1)
    for label in summary.labels:
        in_rows, n_pixels = counted(label.n_rows, "row"), counted(label.n_pixels, "pixel")
        median = f"{label.median_pixels:.0f} in the median"
        yield f"Label {label.code:<{width}}", f"{label.meaning}: in {in_rows}, {n_pixels}, {median}"
    yield from _mask_facts(summary)
    yield from zip(itertools.repeat("Tag"), map(tag_text, summary.tags))
    for title, sides in (("Split", summary.splits), ("Folds", summary.folds)):
        if sides:
            parts = (f"{s.name} {s.n_rows} ({counted(s.n_patients, 'patient')})" for s in sides)
            yield title, ", ".join(parts)
    yield from _checks(summary)
    yield "Sources", ", ".join(sources_text(summary.sources))
    if summary.selection:
        yield "Shown", f"findings of {summary.selection}"


def _checks(summary: Summary) -> Iterator[tuple[str, str]]:
    """Yield what checks measured over all rows, and which were left out."""
    if set(QUALITY_CODES) <= set(summary.unchecked):
        yield "Checks", "none: built with --no-qc"
    elif set(AUDIT_CODES) <= set(summary.unchecked):
        yield "Alignment", "not measured: --no-audit, or all structures are masks"
    if summary.alignment is not None:
        yield "Alignment", alignment_text(summary.alignment)
    if summary.predictions is not None:
        yield "Model", _agreement_text(summary.predictions, summary.labels)


def _agreement_text(found: Agreement, labels: Sequence[Label]) -> str:
    """Return how well predictions agree with the masks."""
    meanings = {one.code: one.meaning for one in labels}
    medians = ", ".join(f"{meanings[label]} {dice:.2f}" for label, dice in found.medians.items())
    text = f"{found.path}: Dice with the masks of {counted(found.n_rows, 'row')}, in the median: "
    weak = "; a model this weak tells little about the masks" if found.is_weak else ""
    return f"{text}{medians or 'no structure is drawn'}{weak}"


def _resizing(summary: Summary) -> Iterator[tuple[str, str]]:
    if summary.source_sizes:
        yield "Images", resizing_text(summary)


def tag_text(tag: Tag) -> str:
    """Return the values of a kept attribute in one line."""
    if not tag.values:
        return f"{tag.keyword}: no row has a value"
    if tag.minimum is not None and tag.maximum is not None and tag.n_values > len(tag.values):
        ends = number_text(tag.minimum), number_text(tag.maximum)
        text = f"{' to '.join(ends)}, {tag.n_values} values"
    else:
        text = ", ".join(f"{value} in {counted(n, 'row')}" for value, n in tag.values)
        if (n_more := tag.n_values - len(tag.values)) > 0:
            text += f", and {counted(n_more, 'other value')}"
    unknown = f", none in {counted(tag.n_unknown, 'row')}" if tag.n_unknown else ""
    return f"{tag.keyword}: {text}{unknown}"


def _mask_facts(summary: Summary) -> Iterator[tuple[str, str]]:
    """Yield what masks are, and what they do not tell."""
    if summary.mask_kind == MASK_BITS:
        yield "Masks", f"bits: {summary.mask_dtype}, one for each structure"
    if summary.n_not_drawn:
        value = "255 (ignore)" if summary.is_ignored else "0 (background)"
        rows = counted(summary.n_not_drawn, "row")
        yield (
            "Partial",
            f"a structure is not drawn in {rows}: there masks are {value} where it may be",
        )
    if summary.n_overlap_rows:
        shown = "all of them" if summary.mask_kind == MASK_BITS else "the one painted last"
        pixels, rows = (
            counted(summary.n_overlap_pixels, "pixel"),
            counted(summary.n_overlap_rows, "row"),
        )
        yield (
            "Overlap",
            f"structures share {pixels} in {rows}: there masks show {shown}",
        )


def sources_text(counts: Mapping[str, int]) -> Iterator[str]:
    """Yield what was found in the input, in the words of its layout."""
    for name, word in _SOURCE_WORDS.items():
        if name in counts:
            yield f"{counts[name]} {word}" if word == "series" else counted(counts[name], word)
    for name in sorted(counts.keys() - _SOURCE_WORDS.keys() - {"pairs"}):
        yield f"{counts[name]} {name}"


def diagnoses_text(diagnoses: Sequence[Diagnosis], terminal: Terminal = _PLAIN) -> Iterator[str]:
    """Yield what is wrong and what mends it, in the order given; nothing where nothing is."""
    if not diagnoses:
        return
    yield ""
    yield "What is wrong, most harmful first"
    for number, one in enumerate(diagnoses[:_N_DIAGNOSES], 1):
        lines = terminal.wrapped(f"{one.text} {one.remedy}".strip(), f"{number:>3}. ", " " * 5)
        for line in lines:
            yield terminal.painted(line, one.severity)
    if (n_more := len(diagnoses) - _N_DIAGNOSES) > 0:
        yield f"     ... and {n_more} more: see them with dicom-etl report --json"


def findings_text(
    groups: Iterable[FindingGroup],
    command: str,
    with_examples: Container[str],
    terminal: Terminal = _PLAIN,
) -> Iterator[str]:
    """Yield findings by severity and code, those of some severities with examples.

    Parameters
    ----------
    groups : iterable of FindingGroup
    command : str
        What lists all of them, with `--csv findings.csv`.
    with_examples : container of str
        Severities.
    terminal : Terminal
    """
    groups = list(groups)
    if not groups:
        yield ""
        yield "Nothing was rejected, unmatched or suspicious."
        return
    for severity in SEVERITY_ORDER:
        chosen = [group for group in groups if group.severity == severity]
        if chosen:
            yield ""
            yield terminal.painted(_HEADINGS[severity], severity)
        for group in chosen:
            yield printable(f"  {group.n_findings:>6}  {group.code}")
            if severity in with_examples:
                yield from _examples_text(group, terminal)
    yield ""
    yield printable(f"All findings: {command} --csv findings.csv")


def _examples_text(group: FindingGroup, terminal: Terminal) -> Iterator[str]:
    for example in group.examples:
        text = located(example.path, example.message)
        yield from terminal.wrapped(text, " " * 10, " " * 12)
    if n_more := group.n_findings - len(group.examples):
        yield f"          ... and {n_more} more"
