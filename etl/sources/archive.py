"""DICOM files in any folders → patients, series and frames in order."""

import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

import numpy as np

from etl.dicom.annotations import Point
from etl.dicom.facts import CLASS_BYTES, ImageFacts, image_facts, is_dicom, object_class
from etl.dicom.header import HEAD_BYTES
from etl.dicom.segmentation import SEGMENTATIONS
from etl.errors import SourceError, beyond, most
from etl.findings import Finding, SampleKey, counted
from etl.geometry import Floats, ImagePlane, Planes
from etl.model import FileStamp, FrameRef
from etl.options import PatientId
from etl.sources.dicom_file import with_file
from etl.sources.names import is_litter

_EXAMPLES: Final = 3
SAME_PLACE: Final = 0.01  # mm: headers round positions
# RT Dose Storage: a map of numbers on planes of its own, often in those of the images.
_DOSE: Final = "1.2.840.10008.5.1.4.1.1.481.2"


class NotUsed:
    """A file that holds no image and no annotation."""


class Frame(NamedTuple):
    """One frame of one image, in its place."""

    ref: FrameRef
    key: SampleKey
    sop_instance_uid: str
    plane: ImagePlane


@dataclass(frozen=True)
class Series:
    """The frames of one series of one patient, along its normal."""

    patient_id: str
    uid: str
    frame_of_reference_uid: str
    frames: list[Frame]

    @property
    def key(self) -> tuple[str, str]:
        """Patient and SeriesInstanceUID."""
        return self.patient_id, self.uid

    @cached_property
    def _planes(self) -> tuple[Floats, Floats]:
        """Normals, shape (n, 3), and heights along them, mm, of all frames; NaN where unknown."""
        planes = Planes.of([frame.plane for frame in self.frames])
        return planes.normals, planes.heights

    @cached_property
    def largest_gap(self) -> float:
        """The distance between the two neighbouring planes that are farthest apart, mm."""
        heights = np.unique(self._planes[1][~np.isnan(self._planes[1])])
        return float(np.diff(heights).max()) if len(heights) > 1 else 0.0

    def nearest(self, points: Sequence[Point]) -> tuple[list[Frame], float] | None:
        """Return the frames whose plane is nearest to all of some points, and how far that is, mm.

        Several frames have one plane in a cine, or where a scan was repeated.
        """
        normals, heights = self._planes
        distances = np.abs(normals @ np.array(points).T - heights[:, None]).max(axis=1)
        if np.isnan(distances).all():
            return None
        least = float(np.nanmin(distances))
        places = np.flatnonzero(distances <= least + SAME_PLACE).tolist()
        return [self.frames[place] for place in places], least


@dataclass(frozen=True)
class Archive:
    """All series of an input, and what was found on the way."""

    series: list[Series]
    by_instance: Mapping[str, tuple[Series, list[Frame]]]  # SOPInstanceUID → its frames
    findings: list[Finding]

    @cached_property
    def by_key(self) -> Mapping[tuple[str, str], Series]:
        """Patient and SeriesInstanceUID → series."""
        return {series.key: series for series in self.series}

    @cached_property
    def by_uid(self) -> Mapping[str, list[Series]]:
        """SeriesInstanceUID → series of it, one for each patient."""
        return _grouped((series.uid, series) for series in self.series)

    @cached_property
    def by_frame_of_reference(self) -> Mapping[str, list[Series]]:
        """FrameOfReferenceUID → series in it."""
        return _grouped((series.frame_of_reference_uid, series) for series in self.series)


def _grouped(pairs: Iterable[tuple[str, Series]]) -> dict[str, list[Series]]:
    groups: dict[str, list[Series]] = {}
    for key, series in pairs:
        groups.setdefault(key, []).append(series)
    return groups


def list_files(root: Path) -> list[str]:
    """Return all files below a folder, relative to it, without litter; in order."""
    found: list[str] = []
    for top, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not is_litter(name))
        where = os.path.relpath(top, root).replace(os.sep, "/")
        prefix = "" if where == "." else f"{where}/"
        found += [prefix + name for name in files if not is_litter(name)]
    return sorted(found)


def classes_in(root: Path, wanted: frozenset[str]) -> dict[str, str]:
    """Return which object classes the files of a folder have: SOP class UID → first file."""
    found: dict[str, str] = {}
    for path in list_files(root):
        try:
            one = with_file(root, path, lambda file, _: object_class(file.read(CLASS_BYTES)))
        except SourceError:  # the build says so
            continue
        if one in wanted:
            found.setdefault(one, path)
    return found


def index_file(
    root: Path, path: str, read_set: Callable[[BinaryIO, FileStamp, str], object | None]
) -> object:
    """Return what a file says: its annotations, the facts of its image, or that it has neither.

    The file is opened once, and its first bytes are read once: archives have thousands of files.

    Parameters
    ----------
    read_set : callable
        (file, stamp, SOP class UID) → what the file annotates; None where it is another object.

    Raises
    ------
    SourceError
        A DICOM file that cannot be read.
    """

    def read(file: BinaryIO, stamp: FileStamp) -> object:
        head = file.read(HEAD_BYTES)
        uid = object_class(head)
        found = read_set(file, stamp, uid)
        if found is not None:
            return found
        if not is_dicom(head) or uid in SEGMENTATIONS | {_DOSE}:
            return NotUsed()
        return image_facts(file, head) or NotUsed()

    return with_file(root, path, read)


def gather(indexed: Mapping[str, object], patient_id: PatientId) -> Archive:
    """Return the series of the images among indexed files.

    A slice is the rank of a frame along the normal of its series, from 1. Frames at one place, as
    those of a cine, follow each other by InstanceNumber; where planes are not known, all do.

    Parameters
    ----------
    indexed : mapping
        Path → `ImageFacts`, `NotUsed`, a SourceError, or what else a source has of a file.
    """
    findings: list[Finding] = []
    images: dict[str, tuple[str, ImageFacts]] = {}
    members: defaultdict[tuple[str, str], list[tuple[str, ImageFacts]]] = defaultdict(list)
    others: list[str] = []
    for path, facts in indexed.items():
        if isinstance(facts, SourceError):
            findings.append(Finding(facts.code, path, facts.message))
        elif isinstance(facts, NotUsed):
            others.append(path)
        elif isinstance(facts, ImageFacts):
            first, known = images.setdefault(facts.sop_instance_uid or path, (path, facts))
            if first != path:
                findings.append(_twice(path, facts, first, known))
            else:
                patient = patient_of(path, facts.patient_id, patient_id)
                members[patient, facts.series_instance_uid].append((path, facts))
    findings += _not_used(others)
    if patient_id == "tag":
        findings += _unusable_ids(members)
    series = [
        Series(*key, files[0][1].frame_of_reference_uid, _frames(key, files))
        for key, files in sorted(members.items())
    ]
    return Archive(series, _by_instance(series), findings)


def _by_instance(series: Iterable[Series]) -> dict[str, tuple[Series, list[Frame]]]:
    """Return SOPInstanceUID → its series and frames."""
    found: dict[str, tuple[Series, list[Frame]]] = {}
    for one in series:
        for frame in one.frames:
            if frame.sop_instance_uid:
                found.setdefault(frame.sop_instance_uid, (one, []))[1].append(frame)
    for _, frames in found.values():
        frames.sort(key=lambda frame: frame.key.frame_number)
    return found


def patient_of(path: str, tag: str, rule: PatientId) -> str:
    """Return the patient of a file: its PatientID, or the first folder below the input."""
    if rule == "tag" and tag and not _id_problem(tag):
        return tag
    folder, slash, _ = path.partition("/")
    return folder if slash else "."


def _id_problem(tag: str) -> str:
    """Return why a PatientID is no id of a patient in the file; empty where it may be one."""
    if len(tag) > most("name-characters"):
        return beyond("name-characters", len(tag))
    return "" if tag.isprintable() else "has characters that cannot be shown. Export it again."


def _unusable_ids(
    members: Mapping[tuple[str, str], Sequence[tuple[str, ImageFacts]]],
) -> Iterator[Finding]:
    """Yield a finding on the images of each patient whose PatientID is not its id."""
    images: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for (patient, _), files in members.items():
        for path, facts in files:
            if problem := _id_problem(facts.patient_id):
                images[patient, problem].append(path)
    for (patient, problem), paths in sorted(images.items()):
        n = counted(len(paths), "image")
        message = f"PatientID of {n} {problem} Here the patient is {patient!r}, the first folder."
        yield Finding("patient-id-unusable", min(paths), message)


def _frames(key: tuple[str, str], files: Sequence[tuple[str, ImageFacts]]) -> list[Frame]:
    flat = [
        (path, facts, number, plane)
        for path, facts in files
        for number, plane in enumerate(facts.planes, 1)
    ]
    planes = Planes.of([plane for *_, plane in flat])
    heights = [0.0] * len(flat)
    if planes.is_known.all():
        # Along one normal for all, so that a series with a bent table of planes has an order too.
        heights = [round(height, 3) for height in (planes.positions @ planes.normals[0]).tolist()]

    def place(number: int) -> tuple[float, float, str, int]:
        path, facts, frame_number, _ = flat[number]
        instance = facts.instance_number
        return heights[number], math.inf if math.isnan(instance) else instance, path, frame_number

    in_order = [flat[number] for number in sorted(range(len(flat)), key=place)]
    return [
        Frame(
            FrameRef(path, number if len(facts.planes) > 1 else None),
            SampleKey(*key, rank, number),
            facts.sop_instance_uid,
            plane,
        )
        for rank, (path, facts, number, plane) in enumerate(in_order, 1)
    ]


def _twice(path: str, facts: ImageFacts, first: str, known: ImageFacts) -> Finding:
    same = "the same place" if facts.planes == known.planes else "another place"
    return Finding(
        "instance-duplicate",
        path,
        f"has the SOPInstanceUID of {first}, and {same} in the patient; not read. Remove the "
        "wrong one.",
    )


def _not_used(paths: Sequence[str]) -> Iterator[Finding]:
    if paths:
        shown = ", ".join(paths[:_EXAMPLES]) + ", ..." * (len(paths) > _EXAMPLES)
        n = counted(len(paths), "file")
        message = f"{n} without image or annotation, not read: {shown}"
        yield Finding("file-not-used", os.path.dirname(paths[0]) or paths[0], message)


def without_annotation(
    archive: Archive, annotated: Iterable[tuple[str, str]], what: str
) -> Iterator[Finding]:
    """Yield one finding on each series that no annotation belongs to."""
    known = set(annotated)
    for series in archive.series:
        if series.key not in known:
            n = counted(len(series.frames), "image")
            yield Finding(
                "series-not-annotated",
                series.frames[0].ref.path,
                f"no {what} draws on this series of {n} of patient {series.patient_id}.",
            )
