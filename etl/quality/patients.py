"""Whose a finding is: the patient of its row, or the one that its path names."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from etl.findings import FindingRow


class Patient(NamedTuple):
    """Both ids of a patient; empty where they are not known."""

    patient_id: str = ""
    original_id: str = ""

    def __str__(self) -> str:
        """Return both ids as messages have them."""
        if self.original_id in {"", self.patient_id}:
            return self.patient_id
        return f"{self.patient_id} ({self.original_id})"


NOBODY = Patient()


class Patients:
    """The patients that have rows.

    Parameters
    ----------
    patient_ids, original_ids : sequence of str
        Of each row.
    """

    def __init__(self, patient_ids: Sequence[str], original_ids: Sequence[str]) -> None:
        self.of_rows = list(map(Patient, patient_ids, original_ids))
        self.by_patient_id = {one.patient_id: one for one in self.of_rows}
        named: defaultdict[str, set[Patient]] = defaultdict(set)
        for one in self.by_patient_id.values():
            named[one.patient_id].add(one)
            named[one.original_id].add(one)
        # An id that one patient has in one column and another one in the other tells neither.
        self._named = {name: min(found) for name, found in named.items() if len(found) == 1}

    def named(self, patient_id: str) -> Patient:
        """Return the patient of an id, who may have no row; nobody where it is empty."""
        return self.by_patient_id.get(patient_id, Patient(patient_id))

    def of(self, row: int, path: str) -> Patient:
        """Return the patient of a row, or where there is none, the one that a path names."""
        if row >= 0:
            return self.of_rows[row]
        found = {self._named[part] for part in path.split("/") if part in self._named}
        return found.pop() if len(found) == 1 else NOBODY

    def assigned(self, findings: Iterable[FindingRow]) -> list[FindingRow]:
        """Return findings with the ids of the patient that each is about."""
        return [
            found
            if found.patient_id
            else found._replace(**self.of(found.row, found.path)._asdict())
            for found in findings
        ]
