"""The table layout: a CSV with one row for each annotation → links and findings.

table.csv    patient_id,image,label,contour and, where wanted, frame,split,fold

Paths are relative to the table's folder; a contour is a text file, a label is a structure's name.
A row without label and contour lists an image on which nothing is drawn.
"""

import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

from etl.errors import EtlError, beyond, most
from etl.findings import Finding, SampleKey
from etl.model import AnnotationRef, FrameRef, Link
from etl.options import BuildOptions
from etl.sources import structures
from etl.sources.contour_file import read_region
from etl.sources.csv_table import parse_side, read_csv
from etl.sources.dicom_file import read_header
from etl.sources.source import IN_OBJECTS, OBJECT_OPTIONS, Discovery, Source, refuse
from loader.format import NO_FOLD, NO_SPLIT

TABLE_FILE: Final = "table.csv"

_COLUMNS: Final = ("patient_id", "image", "label", "contour")
_MAX_DIGITS: Final = 9  # of a frame number
_MAX_PATH: Final = 4096  # characters; the operating systems have less room


class Header(NamedTuple):
    """What orders the images of a series."""

    series_instance_uid: str
    instance_number: float  # NaN where the file has none


class _Line(NamedTuple):
    """A usable line of the table."""

    number: int
    patient_id: str
    frame: FrameRef
    label: str  # empty, like the contour, where nothing is drawn
    contour: str


@dataclass(slots=True)
class _Tally:
    """What is gathered while the table is read."""

    name: str  # of the table
    findings: list[Finding] = field(default_factory=list)
    sides: dict[str, tuple[int, int]] = field(default_factory=dict)

    def add(self, code: str, line: int, message: str) -> None:
        self.findings.append(Finding(code, self.name, f"line {line}: {message}"))


def discover(data: Path, options: BuildOptions) -> Discovery:
    """Return the links of a table; their order is final when `resolve` has seen the headers.

    Parameters
    ----------
    data : Path
        The table, or the folder that holds `table.csv`.
    options : BuildOptions
        `structures`: the labels to take, in the order of their codes, later ones on top where two
        overlap. None: all labels of the table, in alphabetical order.

    Raises
    ------
    EtlError
        No usable table; none of the labels asked for; more labels than a label map has codes; a
        patient on two sides of the split.
    """
    path = data / TABLE_FILE if os.path.isdir(data) else data
    tally = _Tally(path.name)
    lines = _read_lines(path, tally)
    if tally.sides and (options.split is not None or options.split_file is not None):
        raise EtlError(
            f"Table not usable: {path.name}: has a split, and so have the options. Leave out "
            "`split` and `split_file`, or the table's column."
        )
    n_of_label = Counter(line.label for line in lines if line.label)
    chosen = structures.choose(n_of_label, options.structures, path.name)
    tally.findings += structures.say_what_is_left(n_of_label, chosen, path.name)
    links = _links(lines, chosen.codes, tally)
    counts = {
        "patients": len({line.patient_id for line in lines}),
        "images": len({line.frame for line in lines}),
        "annotations": n_of_label.total(),
        "pairs": len(links),
    }
    return Discovery(
        root=path.parent,
        probe=path.name,
        scheme=chosen.scheme,
        links=links,
        findings=tally.findings,
        counts=counts,
        missing="" if n_of_label else f"{path.name} has no annotation.",
        to_index=tuple(sorted({link.frame.path for link in links})),
        sides=tally.sides or None,
    )


def index(root: Path, path: str) -> Header:
    """Return what orders the images of a series.

    Raises
    ------
    SourceError
        The file cannot be read; that becomes a finding when its links are examined.
    """
    instance, _ = read_header(root, FrameRef(path, 1))
    return Header(instance.series_instance_uid, instance.instance_number)


def resolve(found: Discovery, indexed: Mapping[str, object], _options: BuildOptions) -> Discovery:
    """Return the discovery with links ordered by series and slice.

    A slice is the image's InstanceNumber where that tells the images of its series apart; else, for
    the whole series, its place among the series' images in the table.
    """
    unknown = Header("", math.nan)
    series: defaultdict[tuple[str, str], list[tuple[Link, Header]]] = defaultdict(list)
    for link in found.links:
        known = indexed.get(link.frame.path)
        header = known if isinstance(known, Header) else unknown
        series[link.key.patient_id, header.series_instance_uid].append((link, header))
    links = []
    for (_, uid), members in series.items():
        numbers = _slices(members)
        for (link, _), number in zip(members, numbers, strict=True):
            links.append(link._replace(key=link.key._replace(series=uid, slice=number)))
    return replace(found, links=sorted(links, key=lambda link: link.key))


def _slices(members: Sequence[tuple[Link, Header]]) -> list[int]:
    """Return the numbers of the images of one series."""
    numbers = [header.instance_number for _, header in members]
    if all(map(float.is_integer, numbers)):  # not so for NaN
        keys = {(n, link.key.frame_number) for n, (link, _) in zip(numbers, members, strict=True)}
        if len(keys) == len(members):
            return list(map(int, numbers))
    places = {path: n for n, path in enumerate(dict.fromkeys(m.frame.path for m, _ in members), 1)}
    return [places[link.frame.path] for link, _ in members]


def _read_lines(path: Path, tally: _Tally) -> list[_Line]:
    """Return the usable lines; an image that two patients have is nobody's."""
    lines = []
    for number, row in read_csv(path, required=_COLUMNS):
        line = _read_line(number, row, tally)
        if line is not None:
            _take_side(line.patient_id, number, row, path, tally)
            lines.append(line)
    patients: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for line in lines:
        patients[line.frame.path].setdefault(line.patient_id, line.number)
    for image, owners in patients.items():
        if len(owners) > 1:
            shown = " and ".join(map(repr, sorted(owners)[:3]))
            message = f"image {image!r} has the patients {shown}; all of its lines are rejected."
            tally.add("link-duplicate", max(owners.values()), f"{message} Keep the right ones.")
    return [line for line in lines if len(patients[line.frame.path]) == 1]


def _read_line(number: int, row: Mapping[str, str], tally: _Tally) -> _Line | None:
    patient_id, image, label, contour, frame = (
        row.get(column, "") for column in (*_COLUMNS, "frame")
    )
    problem = (
        _text_problem("patient_id", patient_id)
        or _path_problem("image", image)
        or _annotation_problem(label, contour)
        or _frame_problem(frame)
    )
    if problem:
        tally.add("link-invalid", number, f"{problem}. Repair the line.")
        return None
    ref = FrameRef(_normal(image), int(frame) if frame else None)
    return _Line(number, patient_id, ref, label, _normal(contour) if contour else "")


def _text_problem(column: str, value: str) -> str:
    if len(value) > most("name-characters"):
        return f"{column} {value[:80]!r} {beyond('name-characters', len(value)).rstrip('.')}"
    return _unseen_problem(column, value)


def _unseen_problem(column: str, value: str) -> str:
    if not value:
        return f"{column} is empty"
    if not value.isprintable():
        return f"{column} {value[:80]!r} has a character that cannot be seen"
    return ""


def _path_problem(column: str, value: str) -> str:
    if len(value) > _MAX_PATH:
        return f"{column} {value[:80]!r} has {len(value)} characters, more than any path"
    if problem := _unseen_problem(column, value):
        return problem
    parts = value.replace("\\", "/").split("/")
    if parts[0] == "" or ":" in parts[0]:
        return f"{column} {value[:80]!r} is absolute, expected a path relative to the table"
    if ".." in parts:
        return f"{column} {value[:80]!r} leads out of the table's folder"
    return ""


def _annotation_problem(label: str, contour: str) -> str:
    if not label and not contour:
        return ""
    return _text_problem("label", label) or _path_problem("contour", contour)


def _frame_problem(frame: str) -> str:
    is_number = frame.isascii() and frame.isdecimal() and len(frame) <= _MAX_DIGITS
    if not frame or (is_number and int(frame) > 0):
        return ""
    return f"frame {frame[:80]!r} is not a whole number from 1"


def _normal(path: str) -> str:
    """Return a relative path as findings and the manifest have it: `/` between its parts."""
    return "/".join(part for part in path.replace("\\", "/").split("/") if part not in {"", "."})


def _take_side(
    patient_id: str, number: int, row: Mapping[str, str], path: Path, tally: _Tally
) -> None:
    """Note the patient's split and fold where the line has one."""
    split, fold = row.get("split", ""), row.get("fold", "")
    if not split and not fold:
        return
    where = f"Table not usable: {path.name}, line {number}"
    side = parse_side(split, fold, where) if split else (NO_SPLIT, NO_FOLD)
    if fold and not split:
        raise EtlError(f"{where}: has a fold but no split. Write train, validation or test.")
    if tally.sides.setdefault(patient_id, side) != side:
        raise EtlError(f"{where}: patient {patient_id!r} is on two sides. Keep one.")


def _links(lines: Iterable[_Line], codes: Mapping[str, int], tally: _Tally) -> list[Link]:
    """Return a link for each frame that has an annotation; its key's slice is provisional."""
    frames: dict[tuple[str, str, int], list[_Line]] = {}
    for line in lines:
        # Without a number the image must have one frame, which is number 1.
        where = line.patient_id, line.frame.path, line.frame.frame_number or 1
        frames.setdefault(where, []).append(line)
    links = []
    for place, ((patient_id, _, _), drawn) in enumerate(frames.items(), 1):
        frame = min((line.frame for line in drawn), key=lambda ref: ref.frame_number or 0)
        key = SampleKey(patient_id, "", place, frame.frame_number or 1)
        chosen = sorted((codes[line.label], line) for line in drawn if line.label in codes)
        if not chosen:
            why = "no annotation with a chosen label for this image."
            tally.findings.append(Finding("image-no-contour", frame.path, why, key))
        elif twice := [b for a, b in pairwise(chosen) if a[0] == b[0]]:
            code, line = twice[0]
            message = (
                f"line {line.number}: a second contour of {line.label!r} on {frame.path}; the "
                "image is left out. Put both into one file with a blank line between them, or keep "
                "one."
            )
            found = Finding("annotation-duplicate", tally.name, message, key, code)
            tally.findings.append(found)
        else:
            annotations = tuple(AnnotationRef(code, line.contour) for code, line in chosen)
            links.append(Link(key, "", frame, annotations))
    return links


def _recognises(data: Path) -> str:
    if os.path.isfile(data):
        return data.name if data.suffix.lower() == ".csv" else ""
    return TABLE_FILE if os.path.isfile(os.path.join(data, TABLE_FILE)) else ""


def _settle(options: BuildOptions) -> BuildOptions:
    why = "is for folders with link.csv: a table names its labels, which `structures` chooses"
    refuse(options, ("contours", "partial"), why)
    refuse(options, OBJECT_OPTIONS, IN_OBJECTS)
    return options


SOURCE: Final = Source(
    name="table",
    recognises=_recognises,
    settle=_settle,
    discover=discover,
    read_region=read_region,
    has_text_contours=True,
    index=index,
    resolve=resolve,
)
