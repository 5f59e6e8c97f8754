"""Findings → causes: what is wrong with which patient, why, and what mends it.

A report shows them before any count. They come from the findings and the manifest that a file has,
so that files of earlier versions have them too.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from shlex import quote
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from etl.findings import CODES, FLAG_CODES, SEVERITY_ORDER, FindingRow, counted
from etl.quality.patients import NOBODY, Patient
from loader.format import NO_ROW, Structure

_Columns: TypeAlias = Mapping[str, npt.NDArray[np.generic]]  # text as UTF-8 bytes

_MAX_PATIENTS: Final = 3  # that a code is told of one by one; of more it is told once
_MAX_SLICES: Final = 6  # that a sentence lists
_ASKED_FOR: Final = ("row-excluded",)  # errors that the user wanted
# What a contour that was drawn on another image brings with it.
_OF_COPIES: Final = ("inner-outside-outer", "area-jump", "centroid-jump", "area-outlier")

_ALIKE: Final = {  # findings about two images, as one image and several are said to be alike
    "identical-image": ("has the same pixels as", "have the same pixels as"),
    "near-duplicate": ("shows the same as", "show the same as"),
}

# What the messages of findings say and measure; see `etl.quality.rows` and `drawing`.
_SAME: Final = re.compile(r"(?:has the same (?:points|pixels) as|is a copy of) (.*)")
_LEAK: Final = re.compile(r"They are (?:on two sides of the split|in two folds): .*?\.(?= [A-Z])")
_IS_COPY: Final = re.compile(r"(?:^|: )is a copy of ")
_LOOKS: Final = re.compile(r"looks like .*")
_OUTSIDE: Final = re.compile(r"([0-9.]+)%[^.%]* lies? outside")
_SIZE: Final = re.compile(r"is ([0-9]+x[0-9]+) \(rows x columns\), expected")
_QUESTION: Final = re.compile(r" [A-Z][^.?]*\?[^?]*$")  # the last question, and what to do then
_SENTENCE: Final = re.compile(r"(?<=[.?!]) (?=[A-Z])")


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One cause of findings.

    Attributes
    ----------
    severity, code : str
        Of the findings.
    patient_id, original_id : str
        Whose data it is about; empty where it is about more than one patient's.
    text : str
        Who, how much and by which evidence: a sentence.
    remedy : str
        The command or step that mends it; may be empty.
    n_findings : int
    rows : tuple of int
        The rows that it is about.
    """

    severity: str
    code: str
    patient_id: str
    original_id: str
    text: str
    remedy: str
    n_findings: int
    rows: tuple[int, ...]

    def __str__(self) -> str:
        """Return all of it as one line."""
        return f"{self.text} {self.remedy}".rstrip()

    def to_json(self) -> dict[str, object]:
        """Return plain data."""
        return {**asdict(self), "rows": list(self.rows)}


def diagnose(
    findings: Iterable[FindingRow], manifest: _Columns, structures: Sequence[Structure]
) -> list[Diagnosis]:
    """Return the causes of all errors and warnings, the most harmful first.

    Wrong labels in all rows come before those of one patient, these before pairs that are missing,
    and these before rows that look wrong.

    Parameters
    ----------
    findings : iterable of FindingRow
        With the ids of their patients.
    manifest : mapping of column to array
        Text as UTF-8 bytes.
    structures : sequence of Structure
    """
    table = _Table(manifest, structures)
    left = [one for one in findings if one.severity != "info" and one.code not in _ASKED_FOR]
    found: list[Diagnosis] = []
    for rule in _RULES if left else ():
        diagnoses, left = rule(left, table)
        found += sorted(diagnoses, key=lambda one: -one.n_findings)
    return found


class _Table:
    """The manifest, as the rules ask it."""

    def __init__(self, manifest: _Columns, structures: Sequence[Structure]) -> None:
        self._manifest = manifest
        self._by_code = {structure.code: structure for structure in structures}

    @cached_property
    def patients(self) -> list[Patient]:
        """The patient of each row."""
        return list(map(Patient, self._texts("patient_id"), self._texts("original_id")))

    @cached_property
    def _rows(self) -> dict[str, int]:
        """The row of each file that has one only."""
        stems = [f"{structure.stem}_path" for structure in self._by_code.values()]
        rows: dict[str, int] = {}
        for name in ("dicom_path", *stems):
            paths = self._texts(name)
            n_rows = Counter(paths)
            rows |= {path: row for row, path in enumerate(paths) if path and n_rows[path] == 1}
        return rows

    @cached_property
    def innermost(self) -> int:
        """The code of the structure that the audit of alignment measures first."""
        return min(self._by_code, default=0)

    def name(self, label: int) -> str:
        """Return what one drawing of a structure is called."""
        if label not in self._by_code:
            return "contour"
        name = self._by_code[label].name
        return name if name.endswith("contour") else f"{name!r} contour"

    def structure(self, label: int) -> str:
        """Return the name of a structure; empty where the file has none of that code."""
        return self._by_code[label].name if label in self._by_code else ""

    def n_drawn(self, patient: Patient, label: int) -> int:
        """Return how many rows of a patient have a structure."""
        if label not in self._by_code:
            return 0
        is_drawn = self._manifest[f"{self._by_code[label].stem}_path"] != b""
        mine = self._manifest["patient_id"] == patient.patient_id.encode()
        return int((is_drawn & mine).sum())

    def slices(self, rows: Iterable[int]) -> str:
        """Return the slice numbers of rows, the first few of them."""
        numbers = sorted({int(self._manifest["slice"][row]) for row in rows})
        shown = ", ".join(map(str, numbers[:_MAX_SLICES]))
        more = f" and {len(numbers) - _MAX_SLICES} more" if len(numbers) > _MAX_SLICES else ""
        return f"slice{'s' * (len(numbers) > 1)} {shown}{more}"

    def partner(self, finding: FindingRow) -> int:
        """Return the other row of a finding about two; -1 where it is not in the file."""
        if finding.other_row >= 0:
            return finding.other_row
        match = _SAME.search(finding.message)
        text = match[1] if match else ""
        # A path may have commas itself: the first stretch that is a path of the file.
        ends = [found.start() for found in re.finditer(r",|\.| and ", text)]
        return next((self._rows[text[:end]] for end in ends if text[:end] in self._rows), NO_ROW)

    def _texts(self, column: str) -> list[str]:
        values = self._manifest[column].tolist()
        return [bytes(value).decode("utf-8", "backslashreplace") for value in values]


_Rule: TypeAlias = Callable[[list[FindingRow], _Table], tuple[list[Diagnosis], list[FindingRow]]]


def _of_the_data_set(
    findings: list[FindingRow], _table: _Table
) -> tuple[list[Diagnosis], list[FindingRow]]:
    """Take the warnings that are about all of the data."""
    mine = [one for one in findings if one.severity == "warning" and not one.path]
    diagnoses = []
    for one in mine:
        text, remedy = _parted(one.message)
        diagnoses.append(_diagnosis([one], NOBODY, f"The data set: {text}", remedy))
    return diagnoses, _without(findings, mine)


def _copied_contours(
    findings: list[FindingRow], table: _Table
) -> tuple[list[Diagnosis], list[FindingRow]]:
    """Take the contours that two patients share, and what a foreign contour brings with it."""
    shared: defaultdict[tuple[int, int, int], list[FindingRow]] = defaultdict(list)
    owners = {one: number for number, one in enumerate(dict.fromkeys(table.patients))}
    for one in findings:
        other = table.partner(one) if one.code == "identical-contour" and one.row >= 0 else NO_ROW
        if other >= 0 and table.patients[other] != table.patients[one.row]:
            pair = owners[table.patients[one.row]], owners[table.patients[other]]
            shared[*pair, one.label].append(one)
    names = list(owners)
    bad = {
        one.row: one
        for one in findings
        if one.code == "inner-outside-outer" or _IS_COPY.search(one.message)
    }
    diagnoses: list[Diagnosis] = []
    used: list[FindingRow] = []
    for (mine, other, label), members in shared.items():
        twins = shared.get((other, mine, label), [])
        n_bad, n_bad_twins = (sum(one.row in bad for one in part) for part in (members, twins))
        if twins and n_bad_twins and not n_bad:
            continue  # told with the other patient, whose contours these are
        is_told = not twins or (n_bad > 0 and not n_bad_twins)
        if not is_told and other < mine:
            continue  # told once
        patients = names[mine], names[other]
        evidence = [bad[one.row] for one in members if one.row in bad]
        if is_told:
            diagnoses.append(_copies(members, patients, label, evidence, table))
            used += _consequences(findings, members, is_inner=label == table.innermost)
        else:
            diagnoses.append(_equal(members, twins, patients, label, table))
        used += members + twins
    return diagnoses, _without(findings, used)


def _copies(
    members: list[FindingRow],
    patients: tuple[Patient, Patient],
    label: int,
    evidence: list[FindingRow],
    table: _Table,
) -> Diagnosis:
    """Return the diagnosis of contours that were another patient's."""
    mine, other = patients
    n, n_all = len(members), table.n_drawn(mine, label)
    extent = f"all {n}" if n == n_all > 1 else f"{n} of {n_all}"
    shares = [float(found) for one in evidence for found in _OUTSIDE.findall(one.message)[:1]]
    measured = f" ({_range(shares)} of the inner contour lies outside)" if shares else ""
    text = (
        f"{mine}: {extent} {table.name(label)}s are copies of {other}'s and do not fit these "
        f"images{measured}; they fit {other.patient_id}'s."
    )
    return _diagnosis(members, mine, text, _exclude("identical-contour", mine))


def _equal(
    members: list[FindingRow],
    twins: list[FindingRow],
    patients: tuple[Patient, Patient],
    label: int,
    table: _Table,
) -> Diagnosis:
    """Return the diagnosis of contours of which nothing tells whose they are."""
    mine, other = patients
    n = counted(len(members), table.name(label))
    text = f"{mine} and {other}: {n} of one have the same points as the other's"
    if len(members) == 1:
        text = text.replace(" have ", " has ")
    remedy = (
        f"Nothing tells which is the copy. Look at them: {_look('identical-contour')}; then "
        f"exclude one with --exclude-flagged identical-contour:{mine.patient_id}."
    )
    return _diagnosis(
        [*members, *twins], NOBODY, f"{text} ({table.slices(_rows(members))}).", remedy
    )


def _consequences(
    findings: list[FindingRow], members: list[FindingRow], *, is_inner: bool
) -> list[FindingRow]:
    """Return what copies bring with them; where all are measured, an alignment off as well."""
    rows = {one.row for one in members}
    patient = members[0].patient_id
    return [
        one
        for one in findings
        if (one.row in rows and one.code in _OF_COPIES)
        or (is_inner and one.code == "alignment-patient" and one.patient_id == patient)
    ]


def _shared_images(
    findings: list[FindingRow], table: _Table
) -> tuple[list[Diagnosis], list[FindingRow]]:
    """Take the images that two patients share, with the same pixels or nearly."""
    shared: defaultdict[tuple[str, Patient, Patient], list[FindingRow]] = defaultdict(list)
    for one in findings:
        other = table.partner(one) if one.code in _ALIKE and one.row >= 0 else NO_ROW
        if other >= 0 and table.patients[other] != table.patients[one.row]:
            first, second = sorted((table.patients[one.row], table.patients[other]))
            shared[one.code, first, second].append(one)
    diagnoses = []
    for (code, owner, twin), members in shared.items():
        n = len({one.row for one in members if table.patients[one.row] == owner}) or len(members)
        leaks = [found[0] for one in members if (found := _LEAK.search(one.message))]
        text = (
            f"{owner} and {twin}: {counted(n, 'image')} of one "
            f"{_ALIKE[code][n != 1]} the other's; both may be one person."
        )
        text = " ".join([text, *leaks[:1]])
        diagnoses.append(_diagnosis(members, NOBODY, text, _exclude(code, owner)))
    used = [one for members in shared.values() for one in members]
    return diagnoses, _without(findings, used)


def _exchanged_structures(
    findings: list[FindingRow], table: _Table
) -> tuple[list[Diagnosis], list[FindingRow]]:
    """Take the structures of a patient that look like others: one cause of all of its findings."""
    mine = [one for one in findings if one.code == "structures-exchanged"]
    by_patient: defaultdict[Patient, list[FindingRow]] = defaultdict(list)
    for one in mine:
        by_patient[Patient(one.patient_id, one.original_id)].append(one)
    diagnoses = []
    for patient, members in by_patient.items():
        parts: list[str] = []
        first = {one.label: one for one in reversed(members)}
        for one in (first[label] for label in sorted(first)):
            looks = _LOOKS.search(one.message)
            text = _QUESTION.sub("", looks[0] if looks else one.message)
            name = repr(table.structure(one.label))
            # Of two that are exchanged the first one tells of both.
            if not any(f"and the {name} like their" in told for told in parts):
                parts.append(f"the {name} {text.rstrip('.')}")
        remedy = f"Give them the right names, or leave them out: {_exclude(mine[0].code, patient)}"
        told = f"{patient}: {'; '.join(parts)} ({table.slices(_rows(members))})."
        diagnoses.append(_diagnosis(members, patient, told, remedy))
    return diagnoses, _without(findings, mine)


def _of_whole_patients(
    findings: list[FindingRow], _table: _Table
) -> tuple[list[Diagnosis], list[FindingRow]]:
    """Take the warnings about all of one patient's contours."""
    mine = [one for one in findings if one.code == "alignment-patient"]
    diagnoses = []
    for one in mine:
        patient = Patient(one.patient_id, one.original_id)
        text, remedy = _parted(re.sub(r"^patient '.*?': ", "", one.message))
        diagnoses.append(_diagnosis([one], patient, f"{str(patient) or one.path}: {text}", remedy))
    return diagnoses, _without(findings, mine)


def _errors(findings: list[FindingRow], table: _Table) -> tuple[list[Diagnosis], list[FindingRow]]:
    """Take the pairs that are missing, by code."""
    mine = [one for one in findings if one.severity == "error"]
    return _by_code(mine, table), _without(findings, mine)


def _warnings(
    findings: list[FindingRow], table: _Table
) -> tuple[list[Diagnosis], list[FindingRow]]:
    """Take all that is left, by code."""
    return _by_code(findings, table), []


def _by_code(findings: list[FindingRow], table: _Table) -> list[Diagnosis]:
    """Return a diagnosis of each code, or of each patient where these are few."""
    by_code: defaultdict[str, defaultdict[Patient, list[FindingRow]]]
    by_code = defaultdict(lambda: defaultdict(list))
    for one in findings:
        by_code[one.code][Patient(one.patient_id, one.original_id)].append(one)
    diagnoses = []
    for by_patient in by_code.values():
        if len(by_patient) <= _MAX_PATIENTS:
            diagnoses += [_of_one(members, who, table) for who, members in by_patient.items()]
        else:
            diagnoses.append(_of_many(list(by_patient.values())))
    return diagnoses


def _of_one(members: list[FindingRow], patient: Patient, table: _Table) -> Diagnosis:
    who = str(patient) or "The data set"
    rows = _rows(members)
    where = f" ({table.slices(rows)})" if rows else ""
    example = _example(members)
    text = f"{who}: {members[0].code}{_times(members)}{where}: {example}"
    return _diagnosis(members, patient, text, _remedy(members, patient))


def _of_many(by_patient: list[list[FindingRow]]) -> Diagnosis:
    members = [one for part in by_patient for one in part]
    text = (
        f"{len(by_patient)} patients: {members[0].code}{_times(members)}, such as "
        f"{_example(members)}"
    )
    return _diagnosis(members, NOBODY, text, _remedy(members, NOBODY))


def _times(members: list[FindingRow]) -> str:
    return "" if len(members) == 1 else f", {len(members)} times"


def _example(members: list[FindingRow]) -> str:
    one = members[0]
    text, _ = _parted(one.message)
    return f"{one.path} {text}" if one.path else text


def _remedy(members: list[FindingRow], patient: Patient) -> str:
    """Return what mends findings of one code."""
    code = members[0].code
    sizes = {match[1] if (match := _SIZE.search(one.message)) else "" for one in members}
    if code == "image-size" and len(sizes) == 1 and "" not in sizes:
        return f"Take all sizes with --fit, or build such images apart: --size {sizes.pop()}."
    if code in FLAG_CODES and any(one.row >= 0 for one in members):
        return f"Look at {'it' if len(members) == 1 else 'them'}: {_look(code, patient)}."
    _, remedy = _parted(members[0].message)
    advice = CODES[code].advice.replace("`", "") if code in CODES else ""
    return remedy or (f"{advice[:1].upper()}{advice[1:]}." if advice else "").replace("?.", "?")


def _look(code: str, patient: Patient = NOBODY) -> str:
    of_patient = f" --patient {quote(patient.patient_id)}" if patient.patient_id else ""
    return f"dicom-etl report FILE --overlays DIR --code {code}{of_patient}"


def _exclude(code: str, patient: Patient) -> str:
    return f"Exclude with --exclude-flagged {quote(f'{code}:{patient.patient_id}')}."


def _range(shares: list[float]) -> str:
    low, high = f"{min(shares):.0f}", f"{max(shares):.0f}"
    return f"{low} %" if low == high else f"{low} to {high} %"


def _parted(message: str) -> tuple[str, str]:
    """Return a message without its last sentence, and that: what to do."""
    *text, remedy = _SENTENCE.split(message)
    return (" ".join(text), remedy) if text else (message, "")


def _rows(findings: Iterable[FindingRow]) -> tuple[int, ...]:
    return tuple(sorted({one.row for one in findings} - {NO_ROW}))


def _diagnosis(
    findings: Sequence[FindingRow], patient: Patient, text: str, remedy: str
) -> Diagnosis:
    found = {one.severity for one in findings}
    # A damaged file may have a severity that is none of them.
    severity = next((one for one in SEVERITY_ORDER if one in found), findings[0].severity)
    code = findings[0].code
    return Diagnosis(severity, code, *patient, text, remedy, len(findings), _rows(findings))


def _without(findings: list[FindingRow], used: Iterable[FindingRow]) -> list[FindingRow]:
    gone = set(map(id, used))
    return [one for one in findings if id(one) not in gone]


_RULES: Final[tuple[_Rule, ...]] = (
    _of_the_data_set,
    _copied_contours,
    _shared_images,
    _exchanged_structures,
    _of_whole_patients,
    _errors,
    _warnings,
)
