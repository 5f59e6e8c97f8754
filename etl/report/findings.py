"""The findings of a file: read, chosen, grouped."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

import numpy as np

from etl.errors import EtlError
from etl.findings import FindingRow
from etl.quality.patients import Patients
from loader import Dataset
from loader.format import NO_ROW

_N_EXAMPLES: Final = 3


@dataclass(frozen=True, slots=True)
class FindingGroup:
    """All findings of one code, the first few as examples."""

    severity: str
    code: str
    n_findings: int
    examples: list[FindingRow]


@dataclass(frozen=True, slots=True)
class Selection:
    """Which findings to show; what is empty chooses all.

    Parameters
    ----------
    severities, codes : tuple of str
    patients : tuple of str
        Either id of each.
    """

    severities: tuple[str, ...] = ()
    codes: tuple[str, ...] = ()
    patients: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether it leaves anything out."""
        return bool(self.severities or self.codes or self.patients)

    def __str__(self) -> str:
        """Return what is chosen, for people."""
        parts = [
            f"{name} {', '.join(values)}"
            for name, values in (
                ("severity", self.severities),
                ("code", self.codes),
                ("patient", self.patients),
            )
            if values
        ]
        return "; ".join(parts)

    def has(self, severity: str, code: str) -> bool:
        """Return whether findings of a severity and code are chosen."""
        return (not self.severities or severity in self.severities) and (
            not self.codes or code in self.codes
        )

    def has_patient(self, *names: str) -> bool:
        """Return whether the patient is chosen that has one of these ids."""
        return not self.patients or any(name in self.patients for name in names if name)

    def chosen(self, findings: Iterable[FindingRow]) -> list[FindingRow]:
        """Return the findings that are chosen."""
        return [
            found
            for found in findings
            if self.has(found.severity, found.code) and self._is_of_patient(found)
        ]

    def rows(self, dataset: Dataset, findings: Iterable[FindingRow]) -> list[int]:
        """Return the rows to draw: those with a chosen finding, or all of the chosen patients.

        Parameters
        ----------
        findings : iterable of FindingRow
            Those that are chosen.
        """
        if self.severities or self.codes:
            return sorted({found.row for found in findings} - {NO_ROW})
        both = (dataset.manifest[f"{kind}_id"].tolist() for kind in ("patient", "original"))
        ids = enumerate(zip(*both, strict=True))
        return [row for row, names in ids if self.has_patient(*names)]

    def unknown_patients(self, dataset: Dataset, findings: Sequence[FindingRow]) -> list[str]:
        """Return the chosen patients of whom the file has no row and no finding.

        Parameters
        ----------
        findings : sequence of FindingRow
            All of the file.
        """
        known = {
            name
            for kind in ("patient", "original")
            for name in np.unique(dataset.manifest.stored[f"{kind}_id"]).tolist()
        }
        absent = [name for name in dict.fromkeys(self.patients) if name.encode() not in known]
        return [name for name in absent if not any(Selection(patients=(name,)).chosen(findings))]

    def _is_of_patient(self, found: FindingRow) -> bool:
        # The path too: of a patient without any row, the file knows no original id.
        return self.has_patient(found.patient_id, found.original_id) or (
            not found.original_id and self.has_patient(*found.path.split("/"))
        )


def read_findings(dataset: Dataset) -> list[FindingRow]:
    """Return all findings in the file's order: errors first, then by code and path.

    Raises
    ------
    EtlError
        The file is damaged: a finding is about a row that it does not have.
    """
    severity, code, path, message = (
        [value.decode() for value in dataset.findings.stored[name].tolist()]
        for name in ("severity", "code", "path", "message")
    )
    rows = dataset.findings["row"].tolist()
    if "label" in dataset.findings:
        labels, others = (dataset.findings[name].tolist() for name in ("label", "other_row"))
    else:
        labels, others = _labels(dataset, path, rows), [NO_ROW] * len(rows)
    for name, places in (("row", rows), ("other_row", others)):
        if not all(NO_ROW <= place < len(dataset) for place in places):
            raise EtlError(
                f"Dataset not opened: {dataset.path}: it is damaged: findings/{name} has a row "
                "that the file lacks. See the rest with dicom-etl verify, and build it again."
            )
    ids = (dataset.manifest[f"{kind}_id"].tolist() for kind in ("patient", "original"))
    patients = Patients(*ids)
    stored = dataset.findings.stored.get("patient_id")  # of older files the paths tell
    names = [b""] * len(rows) if stored is None else stored.tolist()
    whose = zip(*(patients.named(name.decode()) for name in names), strict=True)
    found = map(FindingRow, severity, code, path, rows, message, labels, others, *whose)
    return patients.assigned(found)


def group_findings(findings: Iterable[FindingRow]) -> list[FindingGroup]:
    """Return findings in the file's order grouped by code."""
    groups = []
    for (severity, code), members in groupby(findings, key=lambda row: (row.severity, row.code)):
        rows = list(members)
        groups.append(FindingGroup(severity, code, len(rows), rows[:_N_EXAMPLES]))
    return groups


def _labels(dataset: Dataset, paths: Sequence[str], rows: Sequence[int]) -> list[int]:
    """Return the structure of each finding of a version 1 file: the one whose path it has."""
    labels = np.zeros(len(rows), np.int64)
    for structure in dataset.structures:
        own = dataset.manifest.stored[f"{structure.stem}_path"]
        for place, (path, row) in enumerate(zip(paths, rows, strict=True)):
            if row >= 0 and path and own[row].decode() == path:
                labels[place] = structure.code
    return labels.tolist()
