"""The link.csv layout: a folder → sorted links and findings. Lists folders, opens only link.csv.

link.csv                                   patient_id,original_id
dicoms/<patient_id>/<n>.dcm
contourfiles/<original_id>/{i,o}-contours/IM-0001-<nnnn>-{i,o}contour-manual.txt
"""

import contextlib
import csv
import errno
import os
import re
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from etl.errors import EtlError
from etl.findings import Finding
from etl.model import Link
from etl.options import KINDS, Kind

LINK_FILE: Final = "link.csv"
DICOM_FOLDER: Final = "dicoms"
CONTOUR_FOLDER: Final = "contourfiles"

# ASCII digits only: int() would take "1_0" and other scripts' digits, and two names mean one slice.
_DICOM_NAME: Final = re.compile(r"0*([0-9]{1,18})\.dcm", re.ASCII | re.IGNORECASE)
_CONTOUR_NAME: Final = {
    kind: re.compile(rf"IM-[0-9]+-0*([0-9]{{1,18}})-{kind}contour-manual\.txt", re.ASCII)
    for kind in ("i", "o")
}
_KIND_NAMES: Final = {"i": "i-contour (inner)", "o": "o-contour (outer)"}


@dataclass(frozen=True, slots=True)
class Discovery:
    """What an input folder holds: the pairs to build, and what cannot or need not be built."""

    links: list[Link]
    findings: list[Finding]
    counts: dict[str, int]


class _Patient(NamedTuple):
    """A usable line of link.csv."""

    patient_id: str
    original_id: str
    line: int


@dataclass(slots=True)
class _Tally:
    """Findings and counts gathered while the folders are walked."""

    findings: list[Finding] = field(default_factory=list)
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            ("patients", "dicoms", "icontours", "ocontours", "ignored_files"), 0
        )
    )

    def add(self, code: str, path: str, message: str) -> None:
        self.findings.append(Finding(code, path, message))


def discover(root: Path, kinds: tuple[Kind, ...], *, partial: bool) -> Discovery:
    """Return the links of an input folder, ordered by (patient_id, slice).

    Parameters
    ----------
    root : Path
        The input folder DATA.
    kinds : tuple of {"i", "o"}
        Contour kinds to pair; the other kind's files are counted and left alone.
    partial : bool
        With two kinds, keep pairs that have only one of the two.

    Raises
    ------
    EtlError
        No such folder, or no usable link.csv.
    """
    if not os.path.isdir(root):  # as everywhere here: Path.is_dir raises for an overlong name
        why = "is a file" if os.path.exists(root) else "no such folder"
        raise EtlError(
            f"Input folder not usable: {root}: {why}. Give the folder that holds {LINK_FILE}."
        )
    tally = _Tally()
    patients = _read_links(root, tally)
    tally.counts["patients"] = len(patients)
    links = [
        link
        for patient in sorted(patients)
        for link in _link_patient(root, patient, kinds, partial, tally)
    ]
    _list_unlinked(root, patients, kinds, tally)
    tally.counts["pairs"] = len(links)
    return Discovery(links, tally.findings, tally.counts)


def _read_links(root: Path, tally: _Tally) -> list[_Patient]:
    """Return the patients of the usable lines of link.csv."""
    wanted = ("patient_id", "original_id")
    rows = read_csv(root / LINK_FILE, required=wanted)
    pairs: dict[tuple[str, str], int] = {}
    for line, row in rows:
        ids = tuple(row.get(column, "") for column in wanted)
        if problem := next(filter(None, map(_id_problem, wanted, ids)), None):
            tally.add("link-invalid", LINK_FILE, f"line {line}: {problem}. Repair the line.")
        else:
            pairs.setdefault((ids[0], ids[1]), line)  # the same line twice means the same once
    by_patient, by_original = defaultdict(set), defaultdict(set)
    for patient_id, original_id in pairs:
        by_patient[patient_id].add(original_id)
        by_original[original_id].add(patient_id)
    patients = []
    for (patient_id, original_id), line in pairs.items():
        if len(by_patient[patient_id]) > 1:
            problem = _two_others("patient_id", patient_id, by_patient[patient_id])
        elif len(by_original[original_id]) > 1:
            problem = _two_others("original_id", original_id, by_original[original_id])
        else:
            patients.append(_Patient(patient_id, original_id, line))
            continue
        message = f"line {line}: {problem}; all of its pairs are rejected. Keep the right line."
        tally.add("link-duplicate", LINK_FILE, message)
    return patients


def read_csv(path: Path, required: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, column → value) of a table as people write it.

    A byte order mark, CRLF, blank lines, blanks around values, columns in any order and further
    columns are all fine; names of columns are compared without case.

    Raises
    ------
    EtlError
        The file is missing, not text, or lacks a required column.
    """
    expected = ",".join(required)
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            found = "folder" if stat.S_ISDIR(mode) else "device or pipe"
            raise EtlError(
                f"Table not usable: {path}: is a {found}, expected a file with the columns "
                f"{expected}."
            )
        text = path.read_bytes().decode("utf-8-sig")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise EtlError(
            f"Table not usable: {path}: no such file. Write one with the columns {expected}."
        ) from error
    except UnicodeDecodeError as error:
        raise EtlError(
            f"Table not usable: {path}: not text, expected UTF-8. Save it as CSV (UTF-8)."
        ) from error
    except OSError as error:
        reason = (error.strerror or "input/output error").lower()
        raise EtlError(f"Table not usable: {path}: {reason}.") from error
    if "\0" in text:
        raise EtlError(f"Table not usable: {path}: not text (NUL bytes). Save it as CSV (UTF-8).")
    lines = ((i, line) for i, line in enumerate(re.split(r"\r\n|\r|\n", text), 1) if line.strip())
    _, header = next(lines, (1, ""))
    columns = [column.casefold() for column in _cells(header)]
    if missing := [column for column in required if columns.count(column) != 1]:
        raise EtlError(
            f"Table not usable: {path}, line 1: expected each of the columns {expected} once, "
            f"separated by commas, found {header.strip()[:80]!r} (look at: {', '.join(missing)})."
        )
    for number, line in lines:
        cells = _cells(line)
        if any(cells):  # spreadsheets write empty rows as lone commas
            yield number, dict(zip(columns, cells, strict=False))


def _cells(line: str) -> list[str]:
    """Split one line; each stands alone, so that a stray quote spoils no other."""
    try:
        cells = next(csv.reader([line.strip()]), [])
    except csv.Error:  # a field beyond the module's limit
        cells = line.split(",")
    return [cell.strip() for cell in cells]


def _id_problem(column: str, value: str) -> str | None:
    if not value:
        return f"{column} is empty"
    if value in {".", ".."} or any(character in value for character in "/\\"):
        return f"{column} {value[:80]!r} is not the name of a folder"
    if not value.isprintable():
        return f"{column} {value[:80]!r} has a character that cannot be seen"
    return None


def _two_others(column: str, value: str, others: set[str]) -> str:
    shown = " and ".join(repr(other) for other in sorted(others)[:3])
    return f"{column} {value!r} is linked to {shown}"


def _link_patient(
    root: Path, patient: _Patient, kinds: tuple[Kind, ...], partial: bool, tally: _Tally
) -> Iterator[Link]:
    """Yield the links of one patient by slice; say what does not pair."""
    dicom_folder = f"{DICOM_FOLDER}/{patient.patient_id}"
    contour_folder = f"{CONTOUR_FOLDER}/{patient.original_id}"
    for folder in (dicom_folder, contour_folder):
        if not os.path.isdir(root / folder):
            who = f"line {patient.line}: patient {patient.patient_id!r}"
            message = f"{who} has no folder {folder}. Add it or remove the line."
            tally.add("link-unknown-patient", LINK_FILE, message)
    dicoms = _list_dicoms(root, dicom_folder, tally)
    contours = {kind: _list_contours(root, contour_folder, kind, tally) for kind in kinds}
    _count_other_kinds(root, contour_folder, kinds, tally)
    if len(kinds) > 1 and os.path.isdir(root / contour_folder):
        for kind in kinds:
            folder = f"{contour_folder}/{kind}-contours"
            if not os.path.isdir(root / folder):
                tally.add("contour-missing", folder, f"the patient has no folder {kind}-contours.")
    for number in sorted(dicoms.keys() | {n for found in contours.values() for n in found}):
        paths = {kind: contours[kind].get(number, []) for kind in kinds}
        link = _link_slice(number, dicoms.get(number, []), paths, tally)
        if link is None:
            continue
        if missing := [kind for kind in kinds if kind not in link]:
            kept = "written with the other alone" if partial else "not written (see --partial)"
            message = f"no {_KIND_NAMES[missing[0]]}; the pair is {kept}."
            tally.add("contour-missing", link["dicom"], message)
            if not partial:
                continue
        ids = patient.patient_id, patient.original_id
        yield Link(*ids, number, link["dicom"], link.get("i", ""), link.get("o", ""))


def _link_slice(
    number: int, dicoms: list[str], contours: dict[Kind, list[str]], tally: _Tally
) -> dict[str, str] | None:
    """Return "dicom", "i", "o" → path of one slice, or None with findings that say why."""
    found = [path for paths in contours.values() for path in paths]
    if not found:
        wanted = " or ".join(_KIND_NAMES[kind] for kind in contours)
        for path in dicoms:
            tally.add("image-no-contour", path, f"no {wanted} for this image.")
        return None
    if not dicoms:
        for path in found:
            tally.add("contour-no-image", path, f"no DICOM file for slice {number}.")
        return None
    groups = [dicoms, *contours.values()]
    if any(len(paths) > 1 for paths in groups):
        for path in (path for paths in groups for path in paths if len(paths) > 1):
            message = f"more than one file means slice {number}; none is taken. Keep one of them."
            tally.add("slice-ambiguous", path, message)
        return None
    return {"dicom": dicoms[0]} | {kind: paths[0] for kind, paths in contours.items() if paths}


def _list_dicoms(root: Path, folder: str, tally: _Tally) -> dict[int, list[str]]:
    """Return slice number → paths of the DICOM files of one patient."""
    found = _by_slice(root, folder, _DICOM_NAME, tally)
    tally.counts["dicoms"] += sum(map(len, found.values()))
    return found


def _list_contours(
    root: Path, contour_folder: str, kind: Kind, tally: _Tally
) -> dict[int, list[str]]:
    """Return slice number → paths of the contour files of one patient and kind."""
    found = _by_slice(root, f"{contour_folder}/{kind}-contours", _CONTOUR_NAME[kind], tally)
    tally.counts[f"{kind}contours"] += sum(map(len, found.values()))
    return found


def _count_other_kinds(
    root: Path, contour_folder: str, kinds: tuple[Kind, ...], tally: _Tally
) -> None:
    """Count the contours of a kind that is not paired; nothing else of it matters."""
    for kind in set(KINDS) - set(kinds):
        with contextlib.suppress(OSError):
            names = os.listdir(root / contour_folder / f"{kind}-contours")
            is_contour = _CONTOUR_NAME[kind].fullmatch
            tally.counts[f"{kind}contours"] += sum(is_contour(name) is not None for name in names)


def _by_slice(
    root: Path, folder: str, name: re.Pattern[str], tally: _Tally
) -> dict[int, list[str]]:
    slices: dict[int, list[str]] = defaultdict(list)
    for entry in _names(root, folder, tally):
        if match := name.fullmatch(entry):
            slices[int(match[1])].append(f"{folder}/{entry}")
        else:
            tally.counts["ignored_files"] += 1
    return slices


def _list_unlinked(
    root: Path, patients: Sequence[_Patient], kinds: tuple[Kind, ...], tally: _Tally
) -> None:
    """Say what lies in folders that no usable line of link.csv names: nothing is lost silently."""
    why = f"no usable line of {LINK_FILE} links its folder."
    for patient_id in _folders(root, DICOM_FOLDER, (p.patient_id for p in patients), tally):
        for paths in _list_dicoms(root, f"{DICOM_FOLDER}/{patient_id}", tally).values():
            for path in paths:
                tally.add("image-no-contour", path, why)
    for original_id in _folders(root, CONTOUR_FOLDER, (p.original_id for p in patients), tally):
        folder = f"{CONTOUR_FOLDER}/{original_id}"
        _count_other_kinds(root, folder, kinds, tally)
        for kind in kinds:
            for paths in _list_contours(root, folder, kind, tally).values():
                for path in paths:
                    tally.add("contour-no-image", path, why)


def _names(root: Path, folder: str, tally: _Tally) -> list[str]:
    """Return the sorted names in a folder, none where there is no such folder."""
    try:
        return sorted(os.listdir(root / folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # there can be no such folder
            return []
        why = (error.strerror or "input/output error").lower()
        tally.add("link-unknown-patient", folder, f"the folder cannot be listed ({why}).")
        return []


def _folders(root: Path, folder: str, except_for: Iterable[str], tally: _Tally) -> list[str]:
    known = set(except_for)
    names = _names(root, folder, tally)
    return [name for name in names if name not in known and os.path.isdir(root / folder / name)]
