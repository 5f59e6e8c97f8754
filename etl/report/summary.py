"""A built file → what a person, or a machine, wants to know about it. Needs no source file."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from etl.errors import EtlError
from etl.findings import (
    AUDIT_CODES,
    FLAG_CODES,
    LABEL_MAP_CODES,
    QUALITY_CODES,
    FindingRow,
    counted,
)
from etl.quality.diagnoses import Diagnosis, diagnose
from etl.report.findings import FindingGroup, Selection, group_findings, read_findings
from etl.report.predictions import Agreement
from loader import Dataset
from loader import format as file_format
from loader.format import Attribute

_N_SIZES: Final = 6  # that one line lists
_COMMON_VALUES: Final = 5  # of a kept attribute


@dataclass(frozen=True, slots=True)
class Label:
    """One label code over all rows."""

    code: int
    meaning: str
    n_rows: int
    n_pixels: int
    median_pixels: float  # over the rows that have it


@dataclass(frozen=True, slots=True)
class Tag:
    """One DICOM attribute that the file keeps, over all rows."""

    keyword: str
    values: list[tuple[str, int]]  # the most frequent ones, and the number of rows that have each
    n_values: int  # different ones
    n_unknown: int  # rows without a value
    minimum: float | None  # of numbers
    maximum: float | None


@dataclass(frozen=True, slots=True)
class Side:
    """One split or fold."""

    name: str
    n_patients: int
    n_rows: int


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
    tags: list[Tag]
    labels: list[Label]
    n_not_drawn: int  # rows in which a structure was not drawn
    is_ignored: bool  # whether masks are 255 where it may be, else 0
    mask_kind: str  # "labels": one code a pixel; "bits": a bit of each structure
    mask_dtype: str
    n_overlap_rows: int  # rows in which structures overlap of which neither lies in the other
    n_overlap_pixels: int  # that they share, over all rows
    splits: list[Side]
    folds: list[Side]
    unchecked: list[str]  # codes of findings that the build did not look for
    alignment: dict[str, object] | None  # what the audit measured; see `etl.quality.alignment`
    diagnoses: list[Diagnosis]
    findings: list[FindingGroup]
    selection: Selection  # of findings and diagnoses; the other facts are of the whole file
    # Of the images before they were resampled, padded or cropped: (rows, columns) and number, the
    # commonest first; none where they were not.
    source_sizes: list[tuple[tuple[int, int], int]]
    predictions: Agreement | None = None  # of a model, where the user has some

    def to_json(self) -> dict[str, object]:
        """Return plain data; findings as objects."""
        plain = asdict(self)
        for group, found in zip(plain["findings"], self.findings, strict=True):
            group["examples"] = [example._asdict() for example in found.examples]
        plain["diagnoses"] = [diagnosis.to_json() for diagnosis in self.diagnoses]
        if self.predictions is not None:
            plain["predictions"]["scores"] = [one._asdict() for one in self.predictions.scores]
        return plain


def summarise(
    dataset: Dataset,
    findings: Sequence[FindingRow] | None = None,
    selection: Selection = Selection(),  # noqa: B008  frozen
) -> Summary:
    """Return the facts of an open file.

    Parameters
    ----------
    dataset : Dataset
    findings : sequence of FindingRow, optional
        All of the file, where they are read already.
    selection : Selection
        Which findings and diagnoses to take.

    Raises
    ------
    EtlError
        Its attributes are not what `etl.assemble` writes.
    """
    try:
        found = read_findings(dataset) if findings is None else findings
        return _summarise(dataset, found, selection)
    except (KeyError, TypeError, ValueError) as error:
        raise EtlError(
            f"Report not possible: {dataset.path}: its attributes are not those that dicom-etl "
            "writes. Build the file again."
        ) from error


def _summarise(dataset: Dataset, findings: Sequence[FindingRow], selection: Selection) -> Summary:
    manifest, attributes = dataset.manifest, dataset.attributes
    n_rows, rows, columns = dataset.images.shape
    overlaps = _overlaps(dataset)
    alignment: dict[str, object] | None = None
    if Attribute.ALIGNMENT in attributes:
        alignment = dict(_items(attributes[Attribute.ALIGNMENT]))
        alignment_text(alignment)  # raises where a number is missing
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
        tags=_tags(dataset),
        labels=_labels(dataset),
        n_not_drawn=_n_not_drawn(dataset),
        is_ignored=attributes[Attribute.OPTIONS].get("not_drawn") == "ignore",
        mask_kind=file_format.MASK_BITS if dataset.has_bits else file_format.MASK_LABELS,
        mask_dtype=str(dataset.masks.dtype),
        n_overlap_rows=int(np.count_nonzero(overlaps)),
        n_overlap_pixels=int(overlaps.sum()),
        splits=_splits(dataset),
        folds=_sides(dataset, "fold", {k: str(k) for k in np.unique(manifest["fold"]) if k >= 0}),
        unchecked=list(_unchecked(attributes)),
        alignment=alignment,
        diagnoses=[
            one
            for one in diagnose(findings, manifest.stored, dataset.structures)
            if selection.has(one.severity, one.code)
            and selection.has_patient(one.patient_id, one.original_id)
        ],
        findings=group_findings(selection.chosen(findings)),
        selection=selection,
        source_sizes=_source_sizes(dataset),
    )


def _source_sizes(dataset: Dataset) -> list[tuple[tuple[int, int], int]]:
    manifest = dataset.manifest
    if "source_rows" not in manifest:
        return []
    names = ("source_rows", "source_columns")
    sizes = Counter(zip(*(manifest[name].tolist() for name in names), strict=True))
    return sorted(sizes.items(), key=lambda one: (-one[1], one[0]))


def resizing_text(summary: Summary) -> str:
    """Return in words what was done to images of which sizes."""
    shown = ", ".join(f"{r}x{c} ({n})" for (r, c), n in summary.source_sizes[:_N_SIZES])
    if n_more := len(summary.source_sizes[_N_SIZES:]):
        shown += f" and {n_more} more"
    options = dict(_items(summary.options))
    done = []
    if (spacing := options.get("resample")) is not None:
        between_rows, between_columns = spacing if isinstance(spacing, list) else ("?", "?")
        done.append(f"resampled to {between_rows:g} x {between_columns:g} mm")
    if options.get("size") == "fit":
        about = options.get("fit_about", "image")
        done.append(f"fitted about the {'centre' if about == 'image' else about}")
    return f"{shown}; {', '.join(done)}"


def alignment_text(numbers: Mapping[str, object]) -> str:
    """Return in words what the audit measured.

    Raises
    ------
    KeyError, TypeError, ValueError
        A number is missing or is none.
    """
    names = ("n_contours", "n_too_little_contrast", "n_at_edge", "n_patients")
    n_contours, n_faint, n_lost, n_patients = (int(str(numbers[name])) for name in names)
    if not n_contours:
        return f"not known: none of {counted(n_faint + n_lost, 'contour')} lies by a clear edge"
    n_left_out = f", {n_faint + n_lost} left out" if n_faint + n_lost else ""
    return (
        f"contours lie ({numbers['dx']:+.2f}, {numbers['dy']:+.2f}) px off the image's edges, "
        f"{counted(n_contours, 'contour')} of {counted(n_patients, 'patient')}{n_left_out}"
    )


def _pixel_spacings(dataset: Dataset) -> list[tuple[float, float]]:
    names = ("pixel_spacing_row", "pixel_spacing_column")
    both = np.stack([dataset.manifest[name] for name in names], axis=1).astype(np.float64)
    known = np.unique(both[~np.isnan(both).any(axis=1)], axis=0)
    return [(row, column) for row, column in known.tolist()]


def _tags(dataset: Dataset) -> list[Tag]:
    return [
        tag_of(name.removeprefix(file_format.TAG_PREFIX), values)
        for name, values in dataset.manifest.items()
        if name.startswith(file_format.TAG_PREFIX)
    ]


def tag_of(keyword: str, column: npt.NDArray[np.generic]) -> Tag:
    """Return what the values of an attribute are, over all rows."""
    is_number = column.dtype.kind == "f"
    known = column[~np.isnan(column.astype(np.float64))] if is_number else column[column != ""]
    counts = Counter(known.tolist())
    common = sorted(counts.items(), key=lambda one: (-one[1], one[0]))[:_COMMON_VALUES]
    return Tag(
        keyword,
        values=[(number_text(value) if is_number else value, n) for value, n in common],
        n_values=len(counts),
        n_unknown=len(column) - len(known),
        minimum=min(counts) if is_number and counts else None,
        maximum=max(counts) if is_number and counts else None,
    )


def number_text(value: float) -> str:
    """Return a number with as few digits as tell it from all others of its type."""
    short = np.float32(value)
    text = str(short if float(short) == value else float(value))
    return text.removesuffix(".0")


def _unchecked(attributes: Mapping[str, Any]) -> Sequence[str]:
    """Return the codes of findings that the build did not look for."""
    options = dict(_items(attributes[Attribute.OPTIONS]))
    if not options.get("qc", True):
        return QUALITY_CODES
    known = attributes[Attribute.FLAG_CODES]  # to the version that built the file
    unchecked = [code for code in FLAG_CODES if code in QUALITY_CODES and code not in known]
    if attributes.get(Attribute.MASK_KIND) == file_format.MASK_BITS:
        unchecked += [code for code in LABEL_MAP_CODES if code not in unchecked]
    return [*unchecked, *(() if Attribute.ALIGNMENT in attributes else AUDIT_CODES)]


def _items(value: object) -> list[tuple[str, object]]:
    if not isinstance(value, dict):
        raise TypeError("expected a JSON object")
    return list(value.items())


def _n_not_drawn(dataset: Dataset) -> int:
    """Return the number of rows that lack a structure; version 1 files have no pixels of it."""
    manifest = dataset.manifest
    names = [f"drawn_{structure.code}" for structure in dataset.structures]
    columns = [manifest[name] == 0 for name in names if name in manifest.stored]
    return int(np.any(columns, axis=0).sum()) if columns else 0


def _overlaps(dataset: Dataset) -> npt.NDArray[np.int64]:
    """Return the pixels of each row that structures share; none where the file does not tell."""
    if "n_overlapping" not in dataset.manifest.stored:
        return np.zeros(0, np.int64)
    return dataset.manifest["n_overlapping"].astype(np.int64)


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
