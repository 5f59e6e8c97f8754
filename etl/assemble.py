"""Reviewed rows → the small datasets and attributes of the file."""

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import xxhash

from etl.findings import (
    FLAG_CODES,
    SEVERITY_ORDER,
    Finding,
    FindingRow,
    SampleKey,
    counted,
    printable,
)
from etl.labels import LabelScheme, names_alike
from etl.options import BuildOptions
from etl.output import hdf5_file, split, strata
from etl.output.row_writer import Plan, strings
from etl.quality.diagnoses import Diagnosis, diagnose
from etl.quality.patients import Patients
from etl.quality.people import (
    Person,
    identifiers,
    mixed_people,
    repeated_instances,
    same_people,
    with_leak,
)
from etl.quality.people import finding as same_person
from etl.quality.statistics import pooled_moments
from etl.render import ManifestTable, kept_columns
from etl.review import Reviewed, rows_by_key
from etl.sources.csv_table import table_digest
from etl.sources.source import Discovery
from loader import format as file_format
from loader.format import Attribute

_EXAMPLES: Final = 3  # of patients that a note names
_MAX_SHOWN: Final = 10  # diagnoses that a result's text has


@dataclass(frozen=True, slots=True, repr=False)
class BuildResult:
    """What a build made, everything it found, and notes on what was asked for but not had.

    Attributes
    ----------
    n_rows : int
    findings : list of Finding
    counts : dict of str to int
        What was found in the input.
    notes : list of str
    diagnoses : list of Diagnosis
        The causes of errors and warnings, the most harmful first.
    """

    n_rows: int
    findings: list[Finding]
    counts: dict[str, int]
    notes: list[str]
    diagnoses: list[Diagnosis] = field(default_factory=list)

    def __str__(self) -> str:
        """Return a summary in some lines: rows, diagnoses, numbers of findings, and notes."""
        lines = [f"{counted(self.n_rows, 'row')} written."]
        lines += [printable(str(one)) for one in self.diagnoses[:_MAX_SHOWN]]
        if (n_more := len(self.diagnoses) - _MAX_SHOWN) > 0:
            lines.append(f"... and {n_more} more in diagnoses.")
        codes = Counter((finding.severity, finding.code) for finding in self.findings)
        for severity in SEVERITY_ORDER:
            mine = [f"{n} {code}" for (one, code), n in sorted(codes.items()) if one == severity]
            lines += [f"{severity}: {', '.join(mine)}"] * bool(mine)
        return "\n".join([*lines, *(f"Note: {printable(note)}" for note in self.notes)])

    __repr__ = __str__  # what a notebook shows


def assemble(
    plan: Plan,
    reviewed: Reviewed,
    contours: npt.NDArray[np.int64],
    found: Discovery,
    options: BuildOptions,
    identities: npt.NDArray[np.uint64],
    reuse: ManifestTable,
) -> tuple[BuildResult, dict[str, str]]:
    """Write everything but pixels and vertices, which are in the file already.

    Returns the result, and the digests of the columns.

    Parameters
    ----------
    contours : int64 array, shape (n, 3)
        (row, label, number of vertices), the rows counted before bad ones were taken out.
    identities : uint64 array, shape (n, 2)
        `Identity` of the same rows.
    reuse : mapping of str to array
        The columns of /reuse.
    """
    manifest, scheme = reviewed.manifest, found.scheme
    patients = [value.decode() for value in manifest["patient_id"].tolist()]
    mine = identities[reviewed.is_good]
    paths = [value.decode() for value in manifest["dicom_path"].tolist()]
    people = _people(patients, paths, manifest, mine)
    mixed = _mixed(patients, paths, manifest, mine)
    together = people if options.same_person == "keep" else []
    ids = [person.patient_ids for person in together]
    alike = strata.strata(options, manifest)
    sides = split.assign(Counter(patients), options, found.sides, ids, alike)
    same = [same_person(person, sides, options) for person in people]
    told = [with_leak(finding, sides) for finding in reviewed.findings]
    findings = sorted([*told, *same, *mixed, *names_alike(patients, scheme)], key=finding_order)
    rows, other_rows = _rows(findings, manifest)
    manifest["split"] = np.array([sides[patient_id][0] for patient_id in patients])
    manifest["fold"] = np.array([sides[patient_id][1] for patient_id in patients])
    manifest["flags"] = _flags(findings, rows, plan.n_rows)
    mean, std = pooled_moments(*(manifest[name].astype(np.float64) for name in ("mean", "std")))
    columns = file_format.manifest_columns(
        scheme, has_source_grid=options.is_resized
    ) | kept_columns(options)
    min_reader_version = file_format.min_reader_version(
        scheme, has_ignored=options.not_drawn == "ignore", mask_kind=options.masks
    )
    if min_reader_version == 1:
        columns |= file_format.VERSION_1_COLUMNS
        manifest |= _neutral(file_format.VERSION_1_COLUMNS.keys() - manifest.keys(), plan.n_rows)
    digests = hdf5_file.finish(
        plan,
        {
            "manifest": columns,
            "contours": file_format.CONTOURS,
            "findings": file_format.FINDINGS | file_format.FINDINGS_VERSION_2,
            file_format.REUSE_GROUP: file_format.REUSE,
        },
        {
            "manifest": manifest,
            "contours": _contours(contours[reviewed.keeps(contours)], reviewed.is_good),
            "findings": {
                "severity": strings([finding.severity for finding in findings]),
                "code": strings([finding.code for finding in findings]),
                "path": strings([finding.path for finding in findings]),
                "row": np.array(rows),
                "message": strings([finding.message for finding in findings]),
                "label": np.array([finding.label for finding in findings]),
                "other_row": np.array(other_rows),
                "patient_id": strings([finding.patient_id for finding in findings]),
            },
            file_format.REUSE_GROUP: reuse,
        },
        {
            Attribute.FORMAT: file_format.FORMAT,
            Attribute.FORMAT_VERSION: file_format.FORMAT_VERSION,
            Attribute.MIN_READER_VERSION: min_reader_version,
            Attribute.REQUIRED_FEATURES: json.dumps(_features(options)),
            Attribute.GENERATOR: f"dicom-etl {file_format.VERSION}",
            Attribute.OPTIONS: json.dumps(options.recorded(table_digest)),
            Attribute.LABELS: json.dumps({str(one.code): one.meaning for one in scheme}),
            Attribute.STRUCTURES: json.dumps(scheme.to_json(options.masks)),
            Attribute.MASK_KIND: options.masks,
            Attribute.SOURCES: json.dumps(found.counts),
            Attribute.FLAG_CODES: json.dumps(FLAG_CODES),
            Attribute.IMAGE_MEAN: mean,
            Attribute.IMAGE_STD: std,
            Attribute.DATASET_ID: xxhash.xxh3_128_hexdigest(manifest["row_xxh3"].tobytes()),
            **({Attribute.ALIGNMENT: json.dumps(reviewed.alignment)} if reviewed.alignment else {}),
        },
    )
    n_samples = Counter(patients)
    old = split.notes_on_old(options, n_samples, sides) if found.sides is None else ()
    notes = [*found.notes, *reviewed.notes, *_notes(options, found, sides), *old]
    notes += strata.notes_on_strata(options, alike, n_samples, sides)
    by_patient = _with_patients(findings, rows, other_rows, manifest)
    diagnoses = diagnose(by_patient, manifest, scheme.structures)
    return BuildResult(plan.n_rows, findings, found.counts, notes, diagnoses), digests


def diagnosed(
    findings: Sequence[Finding], manifest: ManifestTable, scheme: LabelScheme
) -> list[Diagnosis]:
    """Return the causes of findings; the manifest of no row is one with empty columns."""
    by_patient = _with_patients(findings, *_rows(findings, manifest), manifest)
    return diagnose(by_patient, manifest, scheme.structures)


def finding_order(finding: Finding) -> tuple[object, ...]:
    """Return the key that sorts findings: errors first, numbers in paths by value."""
    pieces = re.findall(r"([0-9]+)|([^0-9]+)", finding.path)
    path = [(int(digits or 0), text) for digits, text in pieces]
    severity, key = SEVERITY_ORDER.index(finding.severity), finding.key
    return severity, finding.code, path, key[1:] if key else (), finding.message


def _flags(findings: list[Finding], rows: list[int], n_rows: int) -> npt.NDArray[np.uint64]:
    flags = np.zeros(n_rows, np.uint64)
    for finding, row in zip(findings, rows, strict=True):
        if row >= 0 and finding.code in FLAG_CODES:
            flags[row] |= np.uint64(1 << FLAG_CODES.index(finding.code))
    return flags


def _mixed(
    patients: Sequence[str],
    paths: Sequence[str],
    manifest: ManifestTable,
    identities: npt.NDArray[np.uint64],
) -> list[Finding]:
    """Return warnings of patients that seem to be several people, or have one image twice."""
    mixed = mixed_people(patients, paths, identities[:, 0].tolist())
    series = [value.decode() for value in manifest["series"].tolist()]
    numbers = (manifest[name].tolist() for name in ("slice", "frame_number"))
    keys = list(map(SampleKey, patients, series, *numbers))
    return mixed + repeated_instances(keys, paths, manifest["sop_instance_uid"].tolist())


def _people(
    patients: Sequence[str],
    paths: Sequence[str],
    manifest: ManifestTable,
    identities: npt.NDArray[np.uint64],
) -> list[Person]:
    """Return the people that stand under several ids."""
    patient, study = identities.T.tolist()
    series, instance = (
        manifest[name].tolist() for name in ("series_instance_uid", "sop_instance_uid")
    )
    return same_people(patients, paths, identifiers(patient, study, series, instance))


def _contours(contours: npt.NDArray[np.int64], is_good: npt.NDArray[np.bool_]) -> ManifestTable:
    """Return the index of the vertices that were kept: which row and label, where and how many."""
    row, label, length = contours.T
    return {
        "row": (np.cumsum(is_good) - 1)[row],
        "label": label,
        "start": np.cumsum(length) - length,
        "length": length,
    }


def _neutral(names: Iterable[str], n_rows: int) -> ManifestTable:
    """Return columns that a version 1 reader expects, of structures that the file lacks."""
    neutral: dict[str, object] = {"S": b"", "<f8": math.nan, "<i8": 0}
    kinds = {name: file_format.VERSION_1_COLUMNS[name] for name in names}
    return {name: np.full(n_rows, neutral[kind]) for name, kind in kinds.items()}


def _rows(findings: Sequence[Finding], manifest: ManifestTable) -> tuple[list[int], list[int]]:
    """Return the row of each finding, and its partner's; -1 where there is none."""
    keys = [key for finding in findings for key in (finding.key, finding.other_key)]
    rows: dict[SampleKey | None, int] = dict(rows_by_key(keys, manifest).items())
    found = [rows.get(key, file_format.NO_ROW) for key in keys]
    return found[::2], found[1::2]


def _with_patients(
    findings: Sequence[Finding],
    rows: Sequence[int],
    other_rows: Sequence[int],
    manifest: ManifestTable,
) -> list[FindingRow]:
    """Return the errors and warnings as the file has them, with their patients."""
    ids = (
        [bytes(value).decode() for value in manifest[name].tolist()]
        for name in ("patient_id", "original_id")
    )
    patients = Patients(*ids)
    told = []
    for one, row, other in zip(findings, rows, other_rows, strict=True):
        if one.severity != "info":
            found = one.severity, one.code, one.path, row, one.message, one.label, other
            told.append(FindingRow(*found, *patients.named(one.patient_id)))
    return patients.assigned(told)


def _features(options: BuildOptions) -> list[str]:
    """Return what a reader of the file must know."""
    return [file_format.BIT_MASKS] if options.masks == file_format.MASK_BITS else []


def _notes(
    options: BuildOptions, found: Discovery, sides: Mapping[str, tuple[int, int]]
) -> list[str]:
    """Return what was asked of the split but cannot be had with these patients."""
    used, folds = Counter(code for code, _ in sides.values()), {fold for _, fold in sides.values()}
    notes: list[str] = []
    if found.sides is not None and (n_unlisted := used[file_format.NO_SPLIT]):
        notes.append(
            f"patients without a split, because the table has none for them: {n_unlisted}."
        )
    if options.split_file is not None:
        notes += _notes_on_split_file(Path(options.split_file), used, sides.keys())
    if options.split is not None:
        for name, code, share in zip(file_format.SPLITS, range(3), options.split, strict=True):
            if share and not used[code]:
                notes.append(f"split {name} has no patient: there are only {len(sides)}.")
    if options.folds is not None and (empty := set(range(options.folds)) - folds):
        notes.append(f"{len(empty)} of {options.folds} folds have no patient.")
    return notes


def _notes_on_split_file(
    path: Path, used: Mapping[int, int], patients: Collection[str]
) -> Iterator[str]:
    """Yield where the user's own split file and the patients with rows do not fit together."""
    if used[file_format.NO_SPLIT]:
        n_unlisted = used[file_format.NO_SPLIT]
        yield f"patients without a split, because the split file does not list them: {n_unlisted}."
    if others := sorted(split.read_split_file(path).keys() - patients):
        examples = ", ".join([*map(repr, others[:_EXAMPLES]), *["..."] * (len(others) > _EXAMPLES)])
        yield f"patients of the split file that have no row: {len(others)} ({examples})."
    if len(sides := {code for code in used if code != file_format.NO_SPLIT}) == 1:
        yield f"the split file puts all patients in {file_format.SPLITS[min(sides)]}."
