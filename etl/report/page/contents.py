"""A built file → what its page shows, as plain data."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage

from etl.findings import ASKED_FOR_CODES, AUDIT_CODES, CODES, FindingRow
from etl.model import LabelMap
from etl.quality.diagnoses import Diagnosis
from etl.report.overlays import colours, ignored, windowed
from etl.report.summary import Side, Summary
from etl.report.text import sources_text
from loader import Dataset
from loader.format import NO_FOLD, NO_ROW, NO_SPLIT, SPLITS

MAX_ROWS: Final = 5000  # in lists and plots: more dots than that cover each other
_QUALITY: Final = 82  # of JPEG
_EXAMPLES: Final = 3  # pictures of a diagnosis

Json: TypeAlias = dict[str, object]


def contents(
    dataset: Dataset,
    summary: Summary,
    findings: Sequence[FindingRow],
    n_pictures: int,
    *,
    pseudonyms: bool = False,
) -> Json:
    """Return what the page shows.

    Parameters
    ----------
    n_pictures : int
        Rows with a picture at most: flagged ones first, then a spread over all.
    pseudonyms : bool
        P001, P002 and so on instead of ids; no text then names a patient or a path.
    """
    of_row: dict[int, list[FindingRow]] = {}
    for one in findings:
        if one.row != NO_ROW:
            of_row.setdefault(one.row, []).append(one)
    shown = spread(list(of_row), len(dataset), MAX_ROWS)
    listed = set(shown)
    drawn = spread([row for row in of_row if row in listed], len(dataset), n_pictures, shown)
    names = _names(dataset, pseudonyms=pseudonyms)
    return {
        "file": "" if pseudonyms else str(dataset.path.name),
        "generator": summary.generator,
        "dataset_id": summary.dataset_id,
        "size": [summary.rows, summary.columns],
        "n_rows": summary.n_rows,
        "n_patients": summary.n_patients,
        "n_shown": len(shown),
        "verdict": verdict(summary),
        "diagnoses": [
            _diagnosis(one, drawn, of_row, is_named=not pseudonyms) for one in summary.diagnoses
        ],
        "structures": [
            {
                "code": one.code,
                "name": one.name,
                "colour": "#{:02x}{:02x}{:02x}".format(*colours(one)[0]),
            }
            for one in dataset.structures
        ],
        "rows": [_row(dataset, row, names, of_row.get(row, ()), pseudonyms) for row in shown],
        "pictures": {str(row): _picture(dataset, row) for row in drawn},
        "groups": [
            {
                "severity": group.severity,
                "code": group.code,
                "n": group.n_findings,
                "advice": CODES[group.code].advice if group.code in CODES else "",
                "examples": []
                if pseudonyms
                else [f"{one.path}: {one.message}" for one in group.examples],
            }
            for group in summary.findings
        ],
        "splits": [*_sides(summary.splits, "split"), *_sides(summary.folds, "fold")],
        "sources": list(sources_text(summary.sources)),
        "options": summary.options if not pseudonyms else {},
        "pseudonyms": pseudonyms,
    }


def spread(
    first: Sequence[int], n_rows: int, n_wanted: int, among: Sequence[int] | None = None
) -> list[int]:
    """Return rows in order: some that come first, and as many others as there is room for, evenly.

    Parameters
    ----------
    first : sequence of int
        Rows to take before others; where they are too many, an even spread of them.
    among : sequence of int, optional
        Rows to choose from; None: all.
    """
    pool = list(range(n_rows)) if among is None else list(among)
    taken = _evenly(sorted(first), n_wanted)
    rest = sorted(set(pool) - set(taken)) if len(taken) < n_wanted else []
    return sorted([*taken, *_evenly(rest, n_wanted - len(taken))])


def _evenly(rows: Sequence[int], n_wanted: int) -> list[int]:
    if len(rows) <= n_wanted:
        return list(rows)
    places = np.linspace(0, len(rows) - 1, max(n_wanted, 0)).round().astype(int)
    return [rows[place] for place in np.unique(places).tolist()]


def verdict(summary: Summary) -> str:
    """Return one sentence on whether the file is good to train on."""
    harmful = [one for one in summary.diagnoses if one.severity in {"error", "warning"}]
    n_rows = len({row for one in harmful for row in one.rows})
    if set(summary.unchecked) - set(ASKED_FOR_CODES) - set(AUDIT_CODES) and not harmful:
        return "Nobody knows: the build left out some checks. Build with all of them."
    if not harmful:
        return "Yes, by all checks that the build made: nothing looks wrong."
    causes = "one cause" if len(harmful) == 1 else f"{len(harmful)} causes"
    rows = f", about {n_rows} of {summary.n_rows} rows" if n_rows else ""
    return f"Not yet: look at {causes} below{rows}."


def _diagnosis(
    one: Diagnosis,
    drawn: Sequence[int],
    of_row: Mapping[int, Sequence[FindingRow]],
    *,
    is_named: bool,
) -> Json:
    has_picture = set(drawn)
    pictured = [row for row in one.rows if row in has_picture][:_EXAMPLES]
    good = [row for row in drawn if row not in of_row]
    near = min(good, key=lambda row: abs(row - (pictured[0] if pictured else 0)), default=None)
    entry = CODES.get(one.code)
    return {
        "severity": one.severity,
        "code": one.code,
        "text": one.text if is_named else f"{one.code}: {len(one.rows)} rows.",
        "remedy": one.remedy if is_named else (entry.advice if entry else ""),
        "looks": entry.when if entry else "",
        "rows": pictured,
        "n_rows": len(one.rows),
        "good": near if pictured else None,
    }


def _names(dataset: Dataset, *, pseudonyms: bool) -> dict[str, str]:
    ids = dict.fromkeys(dataset.manifest["patient_id"].tolist())
    if not pseudonyms:
        return {name: name for name in ids}
    return {name: f"P{number:03d}" for number, name in enumerate(ids, 1)}


def _row(
    dataset: Dataset,
    row: int,
    names: Mapping[str, str],
    findings: Iterable[FindingRow],
    pseudonyms: bool,
) -> Json:
    manifest = dataset.manifest

    def value(column: str) -> object:
        return manifest[column][row].item() if column in manifest else None

    split, fold = int(manifest["split"][row]), int(manifest["fold"][row])
    areas = {}
    for one in dataset.structures:
        area = float(manifest[f"{one.stem}_area"][row])
        areas[str(one.code)] = round(area, 2) if np.isfinite(area) else None
    return {
        "row": row,
        "patient": names[str(manifest["patient_id"][row])],
        "series": "" if pseudonyms or "series" not in manifest else str(manifest["series"][row]),
        "slice": value("slice"),
        "frame": value("frame_number") or 1,
        "split": "" if split == NO_SPLIT else SPLITS[split],
        "fold": None if fold == NO_FOLD else fold,
        "areas": areas,
        "findings": [
            {
                "severity": one.severity,
                "code": one.code,
                "label": one.label,
                "message": "" if pseudonyms else one.message,
            }
            for one in findings
        ],
    }


def _sides(sides: Iterable[Side], what: str) -> list[Json]:
    return [
        {"name": f"{what} {one.name}", "patients": one.n_patients, "rows": one.n_rows}
        for one in sides
    ]


def _picture(dataset: Dataset, row: int) -> Json:
    """Return the image as a data URI, and what is drawn on it as SVG paths in its pixels."""
    image, mask = dataset[row]
    data = io.BytesIO()
    PillowImage.fromarray(windowed(image)).save(data, "JPEG", quality=_QUALITY)
    polygons: dict[int, list[npt.NDArray[np.float64]]] = {}
    for label, vertices in dataset.polygons(row):
        polygons.setdefault(label, []).append(vertices)
    by_label = {one.label: one.code for one in dataset.structures}
    return {
        "image": "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode(),
        "contours": [
            {"code": by_label[label], "d": " ".join(map(_outline, parts))}
            for label, parts in sorted(polygons.items())
            if label in by_label
        ],
        "edges": [
            {"code": one.code, "d": mask_edge(one.covers(mask))}
            for one in dataset.structures
            if one.covers(mask).any()
        ],
        "has_ignored": bool(ignored(mask, dataset.structures).any()),
    }


def _outline(vertices: npt.NDArray[np.float64]) -> str:
    # Pixel (0, 0) covers 0 to 1 of the picture: its centre is at 0.5.
    points = " ".join(f"{x + 0.5:.2f},{y + 0.5:.2f}" for x, y in vertices.tolist())
    return f"M{points}Z"


def mask_edge(mask: LabelMap | npt.NDArray[np.bool_]) -> str:
    """Return the border between the pixels inside and outside of a mask, as an SVG path."""
    padded = np.pad(mask.astype(np.int8), 1)
    parts: list[str] = []
    for axis, letter in ((0, "h"), (1, "v")):
        is_border = np.diff(padded, axis=axis) != 0
        lines = is_border if axis == 0 else is_border.T
        for place in np.flatnonzero(lines.any(axis=1)).tolist():
            steps = np.flatnonzero(np.diff(lines[place].astype(np.int8), prepend=0, append=0))
            for begin, end in zip(steps[::2].tolist(), steps[1::2].tolist(), strict=True):
                x, y = (begin - 1, place) if axis == 0 else (place, begin - 1)
                parts.append(f"M{x} {y}{letter}{end - begin}")
    return "".join(parts)
