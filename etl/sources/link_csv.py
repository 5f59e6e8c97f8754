"""The link.csv layout: a folder → sorted links and findings. Lists folders, opens only link.csv.

link.csv                                   patient_id,original_id
dicoms/<patient_id>/<n>.dcm                n = slice; or one file whose frames the contours number
contourfiles/<original_id>/{i,o}-contours/IM-0001-<nnnn>-{i,o}contour-manual.txt
"""

import errno
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, NamedTuple

from etl.dicom.facts import count_frames
from etl.errors import EtlError, beyond, most
from etl.findings import Finding, SampleKey
from etl.labels import cardiac_scheme
from etl.model import AnnotationRef, FrameRef, Link
from etl.options import KINDS, BuildOptions, Kind
from etl.sources.contour_file import read_region
from etl.sources.csv_table import read_csv
from etl.sources.dicom_file import with_file
from etl.sources.names import (
    CONTOUR_FOLDER,
    CONTOUR_NAME,
    DICOM_FOLDER,
    DICOM_NAME,
    Home,
    alike,
    home,
    is_litter,
)
from etl.sources.source import IN_OBJECTS, OBJECT_OPTIONS, Discovery, Source, refuse
from etl.sources.strays import Expect, first_file, strays

LINK_FILE: Final = "link.csv"
_KIND_NAMES: Final = {"i": "i-contour (inner)", "o": "o-contour (outer)"}


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

    n_frames: Mapping[str, int] = field(default_factory=dict)  # of files that were looked into
    to_index: list[str] = field(default_factory=list)  # files that may have several frames

    def add(
        self, code: str, path: str, message: str, key: SampleKey | None = None, label: int = 0
    ) -> None:
        self.findings.append(Finding(code, path, message, key, label))


def discover(data: Path, options: BuildOptions) -> Discovery:
    """Return the links of an input folder, ordered by (patient_id, slice).

    Where a patient has one DICOM file and contours of several numbers, `resolve` says whether they
    count its frames.

    Parameters
    ----------
    data : Path
        The input folder DATA.
    options : BuildOptions
        `contours`: kinds to pair; the other kind's files are counted and left as they are.
        `partial`: with two kinds, keep pairs that have only one of the two.

    Raises
    ------
    EtlError
        No such folder, or no usable link.csv.
    """
    return _discover(data, options, {})


def resolve(found: Discovery, indexed: Mapping[str, object], options: BuildOptions) -> Discovery:
    """Return the discovery with a link for each frame that a contour's number names."""
    n_frames = {path: n for path, n in indexed.items() if isinstance(n, int) and n > 1}
    return _discover(found.root, options, n_frames) if n_frames else found


def index(root: Path, path: str) -> int:
    """Return how many frames a DICOM file has.

    Raises
    ------
    SourceError
        It cannot be read.
    """
    return with_file(root, path, lambda file, _: count_frames(file))


def _discover(data: Path, options: BuildOptions, n_frames: Mapping[str, int]) -> Discovery:
    if not os.path.isdir(data):  # as everywhere here: Path.is_dir raises for an overlong name
        why = "is a file" if os.path.exists(data) else "no such folder"
        raise EtlError(f"Input not usable: {data}: {why}. Give the folder that holds {LINK_FILE}.")
    kinds = _kinds(options)
    tally = _Tally(n_frames=n_frames)
    patients = _read_links(data, tally)
    tally.counts["patients"] = len(patients)
    links = [
        link
        for patient in sorted(patients)
        for link in _link_patient(data, patient, kinds, options.partial, tally)
    ]
    _list_unlinked(data, patients, kinds, tally)
    tally.counts["pairs"] = len(links)
    return Discovery(
        root=data,
        probe=LINK_FILE,
        scheme=cardiac_scheme(kinds, options.masks),
        links=links,
        findings=tally.findings,
        counts=tally.counts,
        missing=_what_is_missing(data, tally.counts, kinds),
        to_index=tuple(tally.to_index),
    )


def _recognises(data: Path) -> str:
    return LINK_FILE if os.path.isfile(os.path.join(data, LINK_FILE)) else ""


def _settle(options: BuildOptions) -> BuildOptions:
    """Return the options with the kinds of contours filled in."""
    why = "is for named structures: a folder with link.csv has inner and outer contours"
    refuse(options, ("structures",), f"{why}, which `contours` chooses")
    refuse(options, OBJECT_OPTIONS, IN_OBJECTS)
    return replace(options, contours=_kinds(options))


def _kinds(options: BuildOptions) -> tuple[Kind, ...]:
    return options.contours or KINDS[:1]


def _what_is_missing(data: Path, counts: dict[str, int], kinds: Sequence[Kind]) -> str:
    """Return what no file at all was found of: the pattern, and an example of what is there."""
    if not counts["patients"]:
        return f"{LINK_FILE} links no patient to contours."
    missing = [
        (f"{kind}-contour", CONTOUR_FOLDER, home("", "<original_id>", kind).expected("contour"))
        for kind in kinds
        if not counts[f"{kind}contours"]
    ]
    if not counts["dicoms"]:
        missing.append(("DICOM", DICOM_FOLDER, home("<patient_id>", "").expected(".dcm")))
    return " ".join(
        f"No {what} file was found: expected {pattern}, found {_what_is_there(data, folder)}."
        for what, folder, pattern in missing
    )


def _what_is_there(data: Path, folder: str) -> str:
    """Return an example of the files below a folder of DATA, or of those beside it."""
    if example := first_file(data / folder):
        return f"such as {folder}/{example}"
    folders = [one for one in sorted(os.listdir(data)) if os.path.isdir(data / one)]
    for other in folders:
        if other not in {DICOM_FOLDER, CONTOUR_FOLDER} and (example := first_file(data / other)):
            return f"none below {folder}, but {other}/{example}"
    return f"none below {folder}"


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


def _id_problem(column: str, value: str) -> str | None:
    if not value:
        return f"{column} is empty"
    if len(value) > most("name-characters"):
        return f"{column} {value[:80]!r} {beyond('name-characters', len(value)).rstrip('.')}"
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
    _look_for_folders(root, patient, (dicom_folder, contour_folder), tally)
    place = home(patient.patient_id, patient.original_id)
    dicoms = _list_dicoms(root, dicom_folder, tally, place.expected)
    listed = {
        kind: _list_contours(root, contour_folder, kind, tally, place._replace(kind=kind).expected)
        for kind in KINDS
    }
    contours = {kind: listed[kind] for kind in kinds}
    _list_beside_contours(root, place, tally)
    frames = _frames(dicoms, {n for found in listed.values() for n in found}, tally)
    if frames is None:
        _leave_out(dicoms, contours, tally)
        return
    dicoms = frames or dicoms
    if len(kinds) > 1 and os.path.isdir(root / contour_folder):
        for kind in kinds:
            folder = f"{contour_folder}/{kind}-contours"
            if not os.path.isdir(root / folder):
                tally.add("contour-missing", folder, f"the patient has no folder {kind}-contours.")
    for number in sorted(dicoms.keys() | {n for found in contours.values() for n in found}):
        frame_number = number if frames else None
        key = SampleKey(patient.patient_id, "", number, frame_number or 1)
        paths = {kind: contours[kind].get(number, []) for kind in kinds}
        link = _link_slice(key, dicoms.get(number, []), paths, tally)
        if link is None:
            continue
        if missing := [kind for kind in kinds if kind not in link]:
            kept = "written with the other alone" if partial else "not written (see --partial)"
            message = f"no {_KIND_NAMES[missing[0]]}; the pair is {kept}."
            tally.add("contour-missing", link["dicom"], message, key, _code(missing[0], kinds))
            if not partial:
                continue
        annotations = tuple(
            AnnotationRef(_code(kind, kinds), link[kind]) for kind in kinds if kind in link
        )
        yield Link(key, patient.original_id, FrameRef(link["dicom"], frame_number), annotations)


def _frames(
    dicoms: dict[int, list[str]], numbers: set[int], tally: _Tally
) -> dict[int, list[str]] | None:
    """Return frame number → path of the one file whose frames the contours number.

    Empty where they number slices; None where the file has frames and the numbers do not tell.
    """
    if len(dicoms) != 1 or not numbers or dicoms.keys() == numbers:
        return {}
    ((own, paths),) = dicoms.items()
    if len(paths) > 1:
        return {}
    tally.to_index.append(paths[0])
    n_frames = tally.n_frames.get(paths[0], 1)
    if n_frames == 1:
        return {}
    # A file 7.dcm with a contour 7 may be slice 7, of which nobody knows the frame.
    if not 1 <= min(numbers) <= max(numbers) <= n_frames or (own != 1 and own in numbers):
        return None
    return dict.fromkeys(range(1, n_frames + 1), paths)


def _leave_out(
    dicoms: dict[int, list[str]], contours: dict[Kind, dict[int, list[str]]], tally: _Tally
) -> None:
    """Say that nobody knows which frames of a file the contours are drawn on."""
    ((path,),) = dicoms.values()
    numbers = {number for found in contours.values() for number in found}
    shown = f"{min(numbers)} to {max(numbers)}" if numbers else "of the other kind"
    message = (
        f"has {tally.n_frames[path]} frames, and the numbers of the contours, {shown}, do not say "
        "which: frames count from 1, and the number of the file itself must not be one of them, "
        "but for 1.dcm. Number the contours by frames, or name the frames in a table."
    )
    tally.add("image-multiframe", path, message)
    kinds = tuple(contours)
    for kind, found in contours.items():
        for contour in (one for paths in found.values() for one in paths):
            why = f"its frame is not clear: {path} has {tally.n_frames[path]}."
            tally.add("contour-no-image", contour, why, None, _code(kind, kinds))


def _look_for_folders(root: Path, patient: _Patient, folders: Iterable[str], tally: _Tally) -> None:
    for folder in folders:
        if not os.path.isdir(root / folder):
            who = f"line {patient.line}: patient {patient.patient_id!r}"
            message = f"{who} has no folder {folder}. {_what_to_do(root, folder)}"
            tally.add("link-unknown-patient", LINK_FILE, message)


def _what_to_do(root: Path, folder: str) -> str:
    """Return the advice for a folder that is not there; names one that differs a little."""
    above, name = os.path.split(folder)
    try:
        others = os.listdir(root / above)
    except OSError:
        others = []
    other = alike(name, others)
    if other and os.path.isdir(root / above / other):
        if other != other.strip() or not unicodedata.is_normalized("NFC", other):
            # A cell loses its blanks, and an editor or file system may change the letters' form.
            return f"There is a folder {other!a}: give it the name that {LINK_FILE} has."
        return (
            f'There is {above}/{other}: write its name, as ="{other}" where a spreadsheet drops '
            "leading zeros."
        )
    return "Add it or remove the line."


def _code(kind: Kind, kinds: Sequence[Kind]) -> int:
    """Return the code of a kind's structure; see `cardiac_scheme`."""
    return 1 + kinds.index(kind)


def _link_slice(
    key: SampleKey, dicoms: list[str], contours: dict[Kind, list[str]], tally: _Tally
) -> dict[str, str] | None:
    """Return "dicom", "i", "o" → path of one slice, or None with findings that say why."""
    found = [(path, kind) for kind, paths in contours.items() for path in paths]
    kinds = tuple(contours)
    if not found:
        wanted = " or ".join(_KIND_NAMES[kind] for kind in contours)
        for path in dicoms:
            tally.add("image-no-contour", path, f"no {wanted} for this image.", key)
        return None
    if not dicoms:
        for path, kind in found:
            message = f"no DICOM file for slice {key.slice}."
            tally.add("contour-no-image", path, message, key, _code(kind, kinds))
        return None
    groups = [dicoms, *contours.values()]
    if any(len(paths) > 1 for paths in groups):
        for path in (path for paths in groups for path in paths if len(paths) > 1):
            message = (
                f"more than one file means slice {key.slice}; none is taken. Keep one of them."
            )
            tally.add("slice-ambiguous", path, message, key)
        return None
    return {"dicom": dicoms[0]} | {kind: paths[0] for kind, paths in contours.items() if paths}


def _list_dicoms(
    root: Path, folder: str, tally: _Tally, expect: Expect | None = None
) -> dict[int, list[str]]:
    """Return slice number → paths of the DICOM files of one patient.

    Parameters
    ----------
    expect : callable, optional
        As `strays` takes it; without it, other files are only counted.
    """
    found = _by_slice(root, folder, DICOM_NAME, tally, expect)
    tally.counts["dicoms"] += sum(map(len, found.values()))
    return found


def _list_contours(
    root: Path, contour_folder: str, kind: Kind, tally: _Tally, expect: Expect | None = None
) -> dict[int, list[str]]:
    """Return slice number → paths of the contour files of one patient and kind."""
    found = _by_slice(root, f"{contour_folder}/{kind}-contours", CONTOUR_NAME[kind], tally, expect)
    tally.counts[f"{kind}contours"] += sum(map(len, found.values()))
    return found


def _list_beside_contours(root: Path, place: Home, tally: _Tally) -> None:
    """List the entries beside the folders of a patient's contours."""
    folders = {f"{kind}-contours" for kind in KINDS}
    names = [name for name in _names(root, place.contours, tally) if name not in folders]
    tally.counts["ignored_files"] += len(names)
    others = [name for name in names if not is_litter(name)]
    tally.findings += strays(root, place.contours, others, place._replace(kind=KINDS[0]).expected)


def _by_slice(
    root: Path, folder: str, name: re.Pattern[str], tally: _Tally, expect: Expect | None
) -> dict[int, list[str]]:
    slices: dict[int, list[str]] = defaultdict(list)
    others: list[str] = []
    for entry in _names(root, folder, tally):
        if match := name.fullmatch(entry):
            slices[int(match[1])].append(f"{folder}/{entry}")
        else:
            others.append(entry)
    tally.counts["ignored_files"] += len(others)
    if expect is not None:
        named = [entry for entry in others if not is_litter(entry)]
        tally.findings += strays(root, folder, named, expect)
    return slices


def _list_unlinked(
    root: Path, patients: Sequence[_Patient], kinds: tuple[Kind, ...], tally: _Tally
) -> None:
    """List the files in folders that no usable line of link.csv names: nothing is lost silently."""
    why = f"no usable line of {LINK_FILE} links its folder."
    for patient_id in _folders(root, DICOM_FOLDER, (p.patient_id for p in patients), tally):
        for paths in _list_dicoms(root, f"{DICOM_FOLDER}/{patient_id}", tally).values():
            for path in paths:
                tally.add("image-no-contour", path, why)
    for original_id in _folders(root, CONTOUR_FOLDER, (p.original_id for p in patients), tally):
        folder = f"{CONTOUR_FOLDER}/{original_id}"
        for kind in KINDS:
            for paths in _list_contours(root, folder, kind, tally).values():
                for path in paths if kind in kinds else ():
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


SOURCE: Final = Source(
    name="link",
    recognises=_recognises,
    settle=_settle,
    discover=discover,
    read_region=read_region,
    has_text_contours=True,
    index=index,
    resolve=resolve,
)
