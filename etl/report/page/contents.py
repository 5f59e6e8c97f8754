"""A built file → what its page shows, as plain data."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple, TypeAlias

import numpy as np
from tqdm import tqdm

from etl.findings import AUDIT_CODES, CODES, QUALITY_CODES, SEVERITY_ORDER, FindingRow
from etl.quality.alignment import DATA_SET
from etl.quality.diagnoses import Diagnosis
from etl.report.compare import Comparison
from etl.report.overlays import colours
from etl.report.page import measures
from etl.report.page.changes import changed_rows, changes
from etl.report.page.drift import drift
from etl.report.page.pictures import picture
from etl.report.page.places import Places, neighbours, places
from etl.report.summary import Summary, alignment_text
from etl.report.text import sources_text, tag_text
from loader import Dataset
from loader.format import NO_FOLD, NO_ROW, NO_SPLIT, SPLITS

MAX_ROWS: Final = 5000  # in lists and plots: more dots than that cover each other
MAX_MEASURED: Final = 1000  # rows whose alignment the page measures: some milliseconds each
_EXAMPLES: Final = 3  # pictures of a diagnosis
_MAX_PAIRS: Final = 30
_MAX_CHANGED: Final = 60  # rows whose old and new masks are shown
# Causes that name no row because each row of the data set, or of the patient, has it.
_OF_ALL_ROWS: Final = AUDIT_CODES
_PAIR_CODES: Final = ("near-duplicate", "identical-image")
_RANK: Final[Mapping[str, int]] = {severity: rank for rank, severity in enumerate(SEVERITY_ORDER)}

Json: TypeAlias = dict[str, object]


class _Pair(NamedTuple):
    """Two rows whose images show the same."""

    rows: list[int]
    code: str
    is_across: bool  # from one side of the split to another
    message: str


@dataclass(frozen=True, eq=False)
class Subject:
    """What a page is about.

    Attributes
    ----------
    dataset : Dataset
    summary : Summary
    findings : sequence of FindingRow
        Those to show.
    pseudonyms : bool
        P001, P002 and so on instead of ids; no text then names a patient or a path.
    older : (Dataset, Comparison), optional
        An older file, and what differs from it.
    """

    dataset: Dataset
    summary: Summary
    findings: Sequence[FindingRow]
    pseudonyms: bool = False
    older: tuple[Dataset, Comparison] | None = None

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The number of each patient, from 1 in the file's order."""
        stored = self.dataset.manifest.stored["patient_id"]
        ids, firsts = np.unique(stored, return_index=True)
        in_order = [_decoded(ids[place]) for place in np.argsort(firsts).tolist()]
        return {name: number for number, name in enumerate(in_order, 1)}

    @cached_property
    def places(self) -> Places:
        """Where each row lies in its patient."""
        return places(self.dataset)

    @cached_property
    def of_row(self) -> dict[int, list[FindingRow]]:
        """The findings of each row that has some."""
        found: dict[int, list[FindingRow]] = {}
        for one in self.findings:
            if one.row != NO_ROW:
                found.setdefault(one.row, []).append(one)
        return found

    def pseudonym(self, patient_id: str) -> str:
        """Return what a patient is called instead; patients who are not in the file come after."""
        number = self.numbers.setdefault(patient_id, len(self.numbers) + 1)
        return f"P{number:03d}"

    def name(self, patient_id: str) -> str:
        """Return what the page calls a patient."""
        return self.pseudonym(patient_id) if self.pseudonyms else patient_id

    def rows_about(self, one: Diagnosis) -> list[int]:
        """Return the rows that a cause is about: of some causes all rows, or all of a patient."""
        if one.rows or one.code not in _OF_ALL_ROWS:
            return list(one.rows)
        if one.patient_id == DATA_SET:
            return list(range(len(self.dataset)))
        stored = self.dataset.manifest.stored["patient_id"]
        return np.flatnonzero(stored == one.patient_id.encode()).tolist()

    def examples(self, one: Diagnosis) -> list[int]:
        """Return the rows to show of a cause."""
        return list(one.rows[:_EXAMPLES]) or _evenly(self.rows_about(one), _EXAMPLES)

    def worst(self) -> list[int]:
        """Return the rows with a finding, the worst first."""

        def harm(row: int) -> tuple[int, int, int]:
            found = self.of_row[row]
            return min(_RANK.get(one.severity, len(_RANK)) for one in found), -len(found), row

        return sorted(self.of_row, key=harm)


def contents(subject: Subject, n_pictures: int) -> Json:
    """Return what the page of a whole file shows.

    Parameters
    ----------
    subject : Subject
    n_pictures : int
        Rows with a picture at most: flagged ones first, then a spread over all.
    """
    dataset, summary = subject.dataset, subject.summary
    pairs = _pairs(subject)
    changed = _changed(subject)
    wanted = [row for one in summary.diagnoses for row in subject.examples(one)]
    wanted += [row for one in pairs for row in one.rows]
    first = list(dict.fromkeys([*wanted, *changed, *subject.worst()]))
    shown = spread(first, len(dataset), MAX_ROWS)
    listed = set(shown)
    first = [row for row in first if row in listed]
    drawn = spread(first, len(dataset), n_pictures, shown)
    page = _page(subject, shown, drawn)
    has_picture = set(drawn)
    page |= {
        "verdict": verdict(subject),
        "diagnoses": [_diagnosis(one, subject, listed, drawn) for one in summary.diagnoses],
        "groups": _groups(subject),
        "splits": _sides(summary),
        "drift": drift(dataset),
        "pairs": [one._asdict() for one in pairs if listed >= set(one.rows)],
        "pairs_unchecked": "near-duplicate" in summary.unchecked,
        "alignment": "" if summary.alignment is None else alignment_text(summary.alignment),
        "sources": list(sources_text(summary.sources)),
        "tags": [] if subject.pseudonyms else [tag_text(tag) for tag in summary.tags],
        "options": {} if subject.pseudonyms else summary.options,
    }
    if subject.older is not None:
        old, found = subject.older
        with_picture = [row for row in changed if row in has_picture]
        named = not subject.pseudonyms
        page["changes"] = changes(old, dataset, found, with_picture, subject.name, is_named=named)
    return page


def patient_contents(subject: Subject, rows: Sequence[int]) -> Json:
    """Return what the page of one patient shows: all of the rows, each with a picture."""
    return _page(subject, rows, rows) | {"is_patient": True}


def _page(subject: Subject, shown: Sequence[int], drawn: Sequence[int]) -> Json:
    """Return what each page has: facts, rows, pictures."""
    dataset, summary = subject.dataset, subject.summary
    where = subject.places
    around = neighbours(where, shown)
    measured = set(spread(list(drawn), len(dataset), MAX_MEASURED, shown))
    bar = tqdm(total=len(shown) + len(drawn), desc="page", unit=" rows", disable=None, leave=False)
    rows = []
    with bar:
        for row in shown:
            entry = _row(subject, row)
            entry["near"] = around[row]
            entry["place"] = [
                measures.finite(float(where.height[row])),
                measures.finite(float(where.time[row])),
            ]
            entry["values"] = measures.intensities(dataset, row)
            entry["off"] = measures.displacement(dataset, row) if row in measured else None
            rows.append(entry)
            bar.update()
        pictures = {}
        for row in drawn:
            pictures[str(row)] = picture(dataset, row)
            bar.update()
    return {
        "file": "" if subject.pseudonyms else str(dataset.path.name),
        "generator": summary.generator,
        "dataset_id": summary.dataset_id,
        "size": [summary.rows, summary.columns],
        "n_rows": summary.n_rows,
        "n_patients": summary.n_patients,
        "pseudonyms": subject.pseudonyms,
        "structures": [
            {
                "code": one.code,
                "name": one.name,
                "colour": "#{:02x}{:02x}{:02x}".format(*colours(one)[0]),
            }
            for one in dataset.structures
        ],
        "rows": rows,
        "pictures": pictures,
    }


def spread(
    first: Sequence[int], n_rows: int, n_wanted: int, among: Sequence[int] | None = None
) -> list[int]:
    """Return rows in order: some that come first, and as many others as there is room for, evenly.

    Parameters
    ----------
    first : sequence of int
        Rows to take before others, the most wanted first. A quarter of the room is for others,
        which show how rows look that are as they should be.
    among : sequence of int, optional
        Rows to choose from; None: all.
    """
    pool = np.arange(n_rows) if among is None else np.asarray(among, np.int64)
    n_others = min(len(np.setdiff1d(pool, first)), n_wanted // 4)
    taken = first[: max(n_wanted - n_others, 0)]
    rest = np.setdiff1d(pool, first).tolist()
    return sorted([*taken, *_evenly(rest, n_wanted - len(taken))])


def _evenly(rows: Sequence[int], n_wanted: int) -> list[int]:
    if len(rows) <= n_wanted:
        return list(rows)
    places = np.linspace(0, len(rows) - 1, max(n_wanted, 0)).round().astype(int)
    return [rows[place] for place in np.unique(places).tolist()]


def verdict(subject: Subject) -> str:
    """Return one sentence on whether the file is good to train on."""
    summary = subject.summary
    harmful = [one for one in summary.diagnoses if one.severity in {"error", "warning"}]
    n_rows = len({row for one in harmful for row in subject.rows_about(one)})
    if set(QUALITY_CODES) <= set(summary.unchecked) and not harmful:
        return "Nobody knows: the build left out some checks. Build with all of them."
    if not harmful:
        return "Yes, by all checks that the build made: nothing looks wrong."
    causes = "one cause" if len(harmful) == 1 else f"{len(harmful)} causes"
    rows = f", about {n_rows} of {summary.n_rows} rows" if n_rows else ""
    return f"Not yet: look at {causes} below{rows}."


def _diagnosis(
    one: Diagnosis, subject: Subject, listed: Collection[int], drawn: Sequence[int]
) -> Json:
    has_picture = set(drawn)
    rows = subject.rows_about(one)
    pictured = [row for row in subject.examples(one) if row in has_picture]
    about = set(rows)
    good = [row for row in drawn if row not in subject.of_row and row not in about]
    near = min(good, key=lambda row: abs(row - (pictured[0] if pictured else 0)), default=None)
    entry = CODES.get(one.code)
    named = not subject.pseudonyms
    return {
        "severity": one.severity,
        "code": one.code,
        "text": one.text if named else f"{one.code}: {len(one.rows)} rows.",
        "remedy": one.remedy if named else (entry.advice if entry else ""),
        "looks": entry.when if entry else "",
        "pictures": pictured,
        "rows": [row for row in rows if row in listed],
        "good": near if pictured else None,
    }


def _pairs(subject: Subject) -> list[_Pair]:
    """Return the pairs of rows whose images show the same, those across splits first."""
    split = subject.dataset.manifest["split"]
    pairs: dict[tuple[int, int], _Pair] = {}
    for one in subject.findings:
        if one.code in _PAIR_CODES and NO_ROW not in {one.row, one.other_row}:
            low, high = sorted((one.row, one.other_row))
            message = "" if subject.pseudonyms else one.message
            pair = _Pair([low, high], one.code, bool(split[low] != split[high]), message)
            pairs.setdefault((low, high), pair)
    return sorted(pairs.values(), key=lambda pair: not pair.is_across)[:_MAX_PAIRS]


def _changed(subject: Subject) -> list[int]:
    if subject.older is None:
        return []
    return changed_rows(subject.dataset, subject.older[1])[:_MAX_CHANGED]


def _groups(subject: Subject) -> list[Json]:
    return [
        {
            "severity": group.severity,
            "code": group.code,
            "n": group.n_findings,
            "advice": CODES[group.code].advice if group.code in CODES else "",
            "examples": []
            if subject.pseudonyms
            else [f"{one.path}: {one.message}" for one in group.examples],
        }
        for group in subject.summary.findings
    ]


def _row(subject: Subject, row: int) -> Json:
    dataset = subject.dataset
    manifest = dataset.manifest.stored
    patient = _decoded(manifest["patient_id"][row])
    has_series = "series" in manifest and not subject.pseudonyms
    split, fold = int(manifest["split"][row]), int(manifest["fold"][row])
    spacing = (float(manifest[f"pixel_spacing_{axis}"][row]) for axis in ("row", "column"))
    return {
        "row": row,
        "patient": subject.name(patient),
        "alias": subject.pseudonym(patient),
        "series": _decoded(manifest["series"][row]) if has_series else "",
        "slice": int(manifest["slice"][row]),
        "frame": int(manifest["frame_number"][row]) if "frame_number" in manifest else 1,
        "split": "" if split == NO_SPLIT else SPLITS[split],
        "fold": None if fold == NO_FOLD else fold,
        "areas": {
            str(one.code): measures.finite(float(manifest[f"{one.stem}_area"][row]))
            for one in dataset.structures
        },
        "spacing": [measures.finite(one) for one in spacing],
        "findings": [
            {
                "severity": one.severity,
                "code": one.code,
                "label": one.label,
                "message": "" if subject.pseudonyms else one.message,
            }
            for one in subject.of_row.get(row, ())
        ],
    }


def _sides(summary: Summary) -> list[Json]:
    return [
        {"name": f"{what} {one.name}", "patients": one.n_patients, "rows": one.n_rows}
        for what, sides in (("split", summary.splits), ("fold", summary.folds))
        for one in sides
    ]


def patients(subject: Subject) -> Iterator[tuple[str, list[int]]]:
    """Yield each patient with the rows, in the file's order."""
    stored = subject.dataset.manifest.stored["patient_id"]
    ids, numbers = np.unique(stored, return_inverse=True)
    order = np.argsort(numbers.reshape(-1), kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(numbers.reshape(-1)[order])) + 1)
    by_id: Mapping[str, list[int]] = {
        _decoded(name): part.tolist() for name, part in zip(ids, parts, strict=True)
    }
    for name in list(subject.numbers):
        if name in by_id:
            yield name, by_id[name]


def _decoded(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")
