"""Images in any folders, and the files that annotate them → links and findings.

What a file draws on one plane, a contour or a frame of a segmentation, is a drawing. It belongs to
the image that it refers to. Where it refers to none, to one that is not there, or to one in another
plane, it belongs to the image of the series in whose plane it lies.
"""

import functools
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, Final, Generic, Literal, NamedTuple, TypeVar, get_args

import numpy as np

from etl.dicom.annotations import (
    CLOSED,
    FEW_POINTS,
    POINT,
    SEGMENTATION,
    AnnotationSet,
    Drawing,
)
from etl.dicom.identity import is_placeholder
from etl.errors import EtlError, Limits, SourceError, beyond, changed_limits, most
from etl.findings import Finding, SampleKey, counted, shortened
from etl.model import AnnotationRef, FileStamp, Link
from etl.options import ALL, NEWEST, BuildOptions
from etl.sources import archive, structures
from etl.sources.archive import (
    SAME_PLACE,
    Archive,
    Frame,
    Series,
    gather,
    list_files,
    patient_of,
    without_annotation,
)
from etl.sources.files import FileBytes, open_source
from etl.sources.source import IN_TEXT, Discovery, Resolve, refuse

_MAX_KEPT: Final = 2
_EXAMPLES: Final = 3
_SHOWN: Final = 80  # characters of a header's text in a message; a number or UID has 64 at most

T = TypeVar("T")


class _Set(NamedTuple):
    """A file that annotates, and the series that it belongs to."""

    path: str
    content: AnnotationSet
    series: tuple[Series, ...]  # the main one first

    def __str__(self) -> str:
        """Return what people know it by."""
        label = f" {shortened(self.content.label, _SHOWN)!r}" if self.content.label else ""
        return f"{self.content.what}{label}"


class _Placed(NamedTuple):
    """A drawing on a frame."""

    frame: Frame
    name: str  # of its structure
    place: int  # among the drawings of its file


class _Drawn(NamedTuple):
    """What one file draws."""

    of: _Set
    placed: list[_Placed]
    findings: list[Finding]


def discover(data: Path, _options: BuildOptions) -> Discovery:
    """Return the files of a folder; their links are known when `resolve` has seen the headers.

    Raises
    ------
    EtlError
        DATA is no folder, or has no file.
    """
    if not os.path.isdir(data):
        raise EtlError(f"Input not usable: {data}: expected a folder with images and annotations.")
    paths = list_files(data)
    if not paths:
        raise EtlError(f"Input not usable: {data}: holds no file.")
    return Discovery(
        root=data,
        probe=paths[0],
        scheme=structures.choose({}, None, "").scheme,
        links=[],
        findings=[],
        counts={},
        to_index=tuple(paths),
    )


def index_file(
    root: Path,
    path: str,
    classes: frozenset[str],
    read_set: Callable[[FileBytes], AnnotationSet],
    code: str,
) -> object:
    """Return what a file says: an image's facts, its annotations, or that it is neither.

    Parameters
    ----------
    classes : frozenset of str
        SOP class UIDs of the files that annotate.
    read_set : callable
        Content of such a file → what it draws.
    code : str
        The finding's code where it cannot be read.

    Raises
    ------
    SourceError
        It cannot be read.
    """

    def read(file: BinaryIO, stamp: FileStamp, uid: str) -> AnnotationSet | None:
        if uid not in classes:
            return None
        _require_size(stamp.size, code)
        return read_set(FileBytes(root, path, stamp, code, file.fileno()))

    return archive.index_file(root, path, read)


def _require_size(n_bytes: int, code: str) -> None:
    if n_bytes > most("annotation-bytes"):
        raise SourceError(code, beyond("annotation-bytes", n_bytes))


class Latest(Generic[T]):
    """Files that annotate, parsed; the last few are kept, for the rows of a series come together.

    Parameters
    ----------
    code : str
        The finding's code where a file cannot be read.
    parse : callable
        Content of a file → what it says.
    """

    def __init__(self, code: str, parse: Callable[[FileBytes], T]) -> None:
        self._code = code
        self._parse = parse
        self._kept: dict[tuple[Path, str, FileStamp, Limits], tuple[T, str]] = {}

    def read(self, root: Path, path: str) -> tuple[T, str]:
        """Return what a file says, and the digest of its content.

        Raises
        ------
        SourceError
            It cannot be read, or is too large.
        """
        with open_source(root, path, self._code) as (_, stamp):
            pass
        key = root, path, stamp, changed_limits()
        if (known := self._kept.get(key)) is not None:
            return known
        _require_size(stamp.size, self._code)
        content = FileBytes(root, path, stamp, self._code)
        found = self._parse(content), content.digest()
        while len(self._kept) >= _MAX_KEPT:
            self._kept.pop(next(iter(self._kept)), None)
        self._kept[key] = found
        return found


def resolver(what: str, drawing: str) -> Resolve:
    """Return the `Source.resolve` of files that annotate, by what they and their parts are called.

    Parameters
    ----------
    what, drawing : str
        As "RT Structure Set" and "contour", for messages.
    """
    return functools.partial(_resolve, what=what, drawing=drawing)


def _resolve(
    found: Discovery,
    indexed: Mapping[str, object],
    options: BuildOptions,
    *,
    what: str,
    drawing: str,
) -> Discovery:
    """Return the discovery with a link for each frame on which a chosen structure is drawn."""
    archive = gather(indexed, options.patient_id)
    findings = list(archive.findings)
    sets = [
        _Set(path, content, _series_of(path, content, archive, options))
        for path, content in indexed.items()
        if isinstance(content, AnnotationSet)
    ]
    chosen_sets, left = _choose_sets(sets, options)
    findings += left
    drawn = [_drawn_by(one, archive, options, drawing) for one in chosen_sets]
    findings += (finding for one in drawn for finding in one.findings)
    n_of_name = Counter(placed.name for one in drawn for placed in one.placed)
    chosen = structures.choose(n_of_name, options.structures, found.root.name)
    findings += structures.say_what_is_left(n_of_name, chosen, "")
    links = _links(drawn, chosen, options, findings)
    annotated = {placed.frame.key[:2] for one in drawn for placed in one.placed}
    findings += without_annotation(archive, annotated, what)
    counts = {
        "patients": len({series.patient_id for series in archive.series}),
        "series": len(archive.series),
        "images": sum(len(series.frames) for series in archive.series),
        sets[0].content.what.replace(" ", "_") + "s" if sets else "annotation_sets": len(sets),
        "annotations": n_of_name.total(),
        "pairs": len(links),
    }
    missing = ""
    if not sets:
        missing = f"No file is a {what}."
    elif not archive.series:
        missing = "No file is an image."
    return replace(
        found,
        scheme=chosen.scheme,
        links=links,
        findings=found.findings + findings,
        counts=counts,
        missing=missing,
    )


# ----------------------------------------------------------------------- structure sets and series


def _series_of(
    path: str, content: AnnotationSet, archive: Archive, options: BuildOptions
) -> tuple[Series, ...]:
    """Return the series of a set: of the images that it refers to, else of its own references."""
    n_times: Counter[tuple[str, str]] = Counter()
    for contour in content.drawings:
        if contour.sop_instance_uid in archive.by_instance:
            n_times[archive.by_instance[contour.sop_instance_uid][0].key] += 1
    if n_times:
        return tuple(archive.by_key[key] for key, _ in n_times.most_common())
    patient = patient_of(path, content.patient_id, options.patient_id)
    named = [one for uid in set(content.series) for one in archive.by_uid.get(uid, ())]
    if not named:
        frames = {one.frame_of_reference_uid for one in content.structures}
        frames |= {content.frame_of_reference_uid}
        known = archive.by_frame_of_reference
        named = [one for uid in frames - {""} for one in known.get(uid, ())]
    return tuple(sorted(named, key=lambda one: (one.patient_id != patient, one.key)))


def _choose_sets(
    sets: Sequence[_Set], options: BuildOptions
) -> tuple[list[_Set], Iterable[Finding]]:
    """Return the sets to take, and findings on the others."""
    rule = options.structure_sets
    if rule == ALL:
        return list(sets), []
    if rule != NEWEST:
        taken = [one for one in sets if one.content.sop_instance_uid == rule]
        if not taken and sets:
            uids = [one.content.sop_instance_uid for one in sets[:_EXAMPLES]]
            known = ", ".join(shortened(uid, _SHOWN) for uid in uids)
            raise EtlError(
                f"Option not usable: --structure-sets {rule}: no structure set has that "
                f"SOPInstanceUID. There are {known}{', ...' * (len(sets) > _EXAMPLES)}."
            )
        return taken, [_not_chosen(one, taken[0]) for one in sets if one not in taken]
    ranks = {one.path: _rank(one) for one in sets}
    newest: dict[tuple[str, str], _Set] = {}
    for one in sets:
        key = one.series[0].key if one.series else ("", one.path)
        if key not in newest or ranks[newest[key].path] < ranks[one.path]:
            newest[key] = one
    paths = {one.path for one in newest.values()}
    taken = [one for one in sets if one.path in paths]
    left = [one for one in sets if one.path not in paths]
    return taken, [_older(one, newest[one.series[0].key], options) for one in left]


def _age(one: _Set) -> tuple[str, str, str]:
    return one.content.when, one.content.sop_instance_uid, one.path


def _rank(one: _Set) -> tuple[bool, tuple[str, str, str]]:
    """Return what orders the sets of a series: a newer one that draws nothing hides none."""
    return bool(_drawn_names(one)), _age(one)


def _drawn_names(one: _Set) -> set[str]:
    """Return the names of the structures that a set draws."""
    drawn = {
        drawing.number
        for drawing in one.content.drawings
        if drawing.kind in CLOSED and drawing.strength > 0
    }
    names, _ = _names(one)
    return {name for number, name in names.items() if number in drawn}


def _not_chosen(one: _Set, instead: _Set) -> Finding:
    nothing = "" if _drawn_names(one) else "draws nothing and "
    message = (
        f"{one} {nothing}is left out; {instead.path} is taken. Choose with --structure-sets: "
        "newest, all or a SOPInstanceUID."
    )
    return Finding("structure-set-not-chosen", one.path, message)


def _older(one: _Set, newest: _Set, options: BuildOptions) -> Finding:
    """Return the finding on a set that has a newer one: a warning where drawings are lost."""
    lost = structures.wanted_of(_drawn_names(one) - _drawn_names(newest), options.structures)
    if not lost:
        return _not_chosen(one, newest)
    names = sorted(lost)
    shown = ", ".join(map(repr, names[:_EXAMPLES])) + ", ..." * (len(names) > _EXAMPLES)
    message = (
        f"{one} draws {shown} and is left out; {newest.path}, which is newer, does not draw "
        f"{'it' if len(names) == 1 else 'them'}. Take both with --structure-sets all."
    )
    return Finding("drawings-not-taken", one.path, message)


# ------------------------------------------------------------------------------ contours and frames


_Why = Literal["between", "beyond", "several"]


class _Spot(NamedTuple):
    """Where a drawing belongs: on a frame, or on none, and why."""

    frame: Frame | None
    distance: float | None = None  # of the nearest plane, mm; None where a reference is right
    why: _Why = "beyond"  # without a frame


class _Left(NamedTuple):
    """A drawing that belongs to no frame."""

    name: str
    place: int  # among the drawings of its file
    distance: float  # of the nearest plane, mm
    why: _Why


def _drawn_by(one: _Set, archive: Archive, options: BuildOptions, drawing: str) -> _Drawn:
    """Place the drawings of a file on frames."""
    names, findings = _names(one)
    placed: list[_Placed] = []
    left: list[_Left] = []
    kinds: Counter[tuple[str, str]] = Counter()
    unread: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    weak: defaultdict[str, list[float]] = defaultdict(list)
    moved: list[float] = []
    for place, contour in enumerate(one.content.drawings):
        name = names.get(contour.number)
        if name is None or contour.strength == 0:
            continue
        if contour.strength < options.segment_threshold:
            weak[name].append(contour.strength)
        elif contour.kind not in CLOSED:
            kinds[name, contour.kind] += 1
        elif contour.problem:
            if (referred := _referred(contour, archive)) is not None:
                placed.append(_Placed(referred, name, place))  # its row says what is wrong
            else:
                unread[name, contour.problem].append(place)
        else:
            spot = _spot_of(contour, one.series, archive, options.plane_tolerance)
            if spot.frame is not None:
                placed.append(_Placed(spot.frame, name, place))
                if spot.distance is not None:
                    moved.append(spot.distance)
            else:
                left.append(_Left(name, place, spot.distance or 0.0, spot.why))
    placed += _missing(one, placed, left, archive)
    lost = {contour.place for contour in placed}
    left = [contour for contour in left if contour.place not in lost]
    for (name, problem), places in unread.items():
        n = counted(len(places), drawing)
        message = f"{name!r}: {n} cannot be read: the first {problem}. Export it again."
        findings.append(Finding("contour-unreadable", one.path, message))
    findings += _too_weak(one, weak, {contour.name for contour in placed}, options)
    findings += _other_kinds(one, kinds)
    findings += _left_over(one, left, drawing)
    findings += _by_place(one, moved, drawing)
    findings += _other_frame_of_reference(one, placed, archive)
    findings += _other_patient(one, placed, options)
    return _Drawn(one, placed, findings)


def _names(one: _Set) -> tuple[dict[str, str], list[Finding]]:
    """Return number → name of the structures, and findings on those that cannot be used.

    A number may name none or two, and a name may be too long.
    """
    names: dict[str, str] = {}
    twice: set[str] = set()
    for structure in one.content.structures:
        if structure.number in names:
            twice.add(structure.number)
        names[structure.number] = structure.name or f"ROI {structure.number}"
    too_long = {n: name for n, name in names.items() if len(name) > most("name-characters")}
    findings = [
        Finding(
            "structure-name-too-long",
            one.path,
            f"the name of structure {shortened(number, _SHOWN)!r}, "
            f"{shortened(name, _SHOWN)!r}, {beyond('name-characters', len(name))}",
        )
        for number, name in too_long.items()
    ]
    n_contours = Counter(contour.number for contour in one.content.drawings)
    for number, n_times in n_contours.items():
        if number in twice or number not in names:
            what = "two structures" if number in twice else "no structure"
            n, of = counted(n_times, "contour"), "ROINumber"
            if one.content.what == SEGMENTATION:
                what = what.replace("structure", "segment")
                n, of = counted(n_times, "frame"), "segment number"
            shown = shortened(number, _SHOWN)
            message = f"{n} of {of} {shown!r}, which {what} of the file has; not read."
            findings.append(Finding("structure-number-invalid", one.path, message))
    unusable = twice | too_long.keys()
    return {number: name for number, name in names.items() if number not in unusable}, findings


def _missing(
    one: _Set, placed: Sequence[_Placed], left: Sequence[_Left], archive: Archive
) -> Iterator[_Placed]:
    """Yield drawings that lie in no plane on the frames that they refer to, if nothing else is.

    Such a frame would show background where its structure was drawn: its row is left out instead,
    because the points are off its plane.
    """
    drawn = {(contour.frame.key, contour.name) for contour in placed}
    for contour in left:
        referred = _referred(one.content.drawings[contour.place], archive)
        if referred is not None and (referred.key, contour.name) not in drawn:
            yield _Placed(referred, contour.name, contour.place)


def _referred(contour: Drawing, archive: Archive) -> Frame | None:
    """Return the frame that a drawing refers to, if it is there."""
    if contour.sop_instance_uid not in archive.by_instance:
        return None
    _, frames = archive.by_instance[contour.sop_instance_uid]
    if contour.frame_number == 0 and len(frames) > 1:
        return None  # of several frames none is named
    number = contour.frame_number or 1
    return frames[number - 1] if number <= len(frames) else None


def _spot_of(
    contour: Drawing, series: tuple[Series, ...], archive: Archive, tolerance: float
) -> _Spot:
    """Return where a drawing belongs: where it refers to, else where its place is."""
    referred = _referred(contour, archive)
    if referred is not None and _is_in_plane(referred, contour, tolerance):
        return _Spot(referred)
    places = contour.spread or (contour.centre,)
    near = [(one, *found) for one in series if (found := one.nearest(places)) is not None]
    if not near:
        return _Spot(None)
    nearest, _, distance = min(near, key=lambda found: found[2])
    if distance > tolerance:
        return _Spot(None, distance, "between" if distance < nearest.largest_gap else "beyond")
    here = [frame for _, frames, off in near if off <= distance + SAME_PLACE for frame in frames]
    # Phases of a cine, or two scans of one place: nobody knows which of them it was drawn on.
    return _Spot(here[0], distance) if len(here) == 1 else _Spot(None, distance, "several")


def _is_in_plane(frame: Frame, contour: Drawing, tolerance: float) -> bool:
    """Say whether a contour may be where it says; of an image without place nothing tells."""
    centre = np.array([contour.centre])
    return not frame.plane.is_known or bool(abs(frame.plane.distances(centre)[0]) <= tolerance)


def _too_weak(
    one: _Set, weak: Mapping[str, Sequence[float]], found: Container[str], options: BuildOptions
) -> Iterator[Finding]:
    """Say which fractional segments reach the threshold nowhere, so that no mask shows them."""
    for name, strengths in sorted(weak.items()):
        if name not in found:
            n = counted(len(strengths), "frame")
            message = (
                f"{name!r}: its {n} reach {max(strengths):.1%} of MaximumFractionalValue at most, "
                f"and --segment-threshold is {options.segment_threshold:g}; not read. Lower it, or "
                "export the segmentation again."
            )
            yield Finding("mask-empty", one.path, message)


def _other_kinds(one: _Set, kinds: Mapping[tuple[str, str], int]) -> Iterator[Finding]:
    for (name, kind), n_times in sorted(kinds.items()):
        if kind == POINT:
            message = f"{name!r}: {counted(n_times, 'point')}, which no mask shows."
            yield Finding("contour-point", one.path, message)
        elif kind == FEW_POINTS:
            n = counted(n_times, "contour")
            message = f"{name!r}: {n} of fewer than 3 distinct points, which enclose nothing."
            yield Finding("contour-not-closed", one.path, message)
        else:
            is_word = kind.isascii() and kind.isprintable() and len(kind) <= _SHOWN
            shown = kind if is_word else "unknown"
            n = counted(n_times, "contour")
            message = f"{name!r}: {n} of type {shown or 'unknown'}, expected CLOSED_PLANAR."
            yield Finding("contour-not-closed", one.path, message)


def _left_over(one: _Set, left: Sequence[_Left], drawing: str) -> Iterator[Finding]:
    """Say which contours lie on no image: one finding of each kind."""
    for why in get_args(_Why):
        some = [contour for contour in left if contour.why == why]
        if not some:
            continue
        n = counted(len(some), drawing)
        names = ", ".join(sorted({contour.name for contour in some})[:_EXAMPLES])
        if why == "several":
            message = (
                f"{n} of {names} refer to no image that is in their plane, and several images are "
                "in it; none is guessed. Export them with their references, or leave one image "
                "of each plane."
            )
            yield Finding("slice-ambiguous", one.path, message)
        elif why == "between":
            nearest = min(contour.distance for contour in some)
            message = (
                f"{n} of {names} between the planes of the images, {nearest:.3g} mm or more from "
                "the nearest. Draw them on the images."
            )
            yield Finding("contour-off-plane", one.path, message)
        else:
            message = f"{n} of {names} belong to images that are not there. Copy the series."
            yield Finding("contour-no-image", one.path, message)


def _by_place(one: _Set, moved: Sequence[float], drawing: str) -> Iterator[Finding]:
    if moved:
        n = counted(len(moved), drawing)
        message = (
            f"{n} refer to no image, to one that is not there, or to one in another plane; placed "
            f"on the images in whose plane they lie, {max(moved):.2f} mm off at most."
        )
        yield Finding("contour-by-position", one.path, message)


def _other_frame_of_reference(
    one: _Set, placed: Sequence[_Placed], archive: Archive
) -> Iterator[Finding]:
    """Warn where structures are in another frame of reference than their images."""
    of_name = {s.name: s.frame_of_reference_uid for s in one.content.structures}
    differ = {
        contour.name
        for contour in placed
        if (mine := of_name.get(contour.name))
        and (theirs := archive.by_key[contour.frame.key[:2]].frame_of_reference_uid)
        and mine != theirs
    }
    if differ:
        names = ", ".join(sorted(differ)[:_EXAMPLES])
        message = (
            f"{names}: drawn in another frame of reference than that of the images. Look at the "
            "overlays: is it another scan's?"
        )
        yield Finding("frame-of-reference-differs", one.path, message)


def _other_patient(
    one: _Set, placed: Sequence[_Placed], options: BuildOptions
) -> Iterator[Finding]:
    """Warn where a file draws on images of another PatientID than its own."""
    if options.patient_id != "tag" or is_placeholder(one.content.patient_id):
        return
    drawn_on = {contour.frame.key.patient_id for contour in placed}
    others = sorted(drawn_on - {patient_of(one.path, one.content.patient_id, "tag")})
    if others:
        shown = ", ".join(map(repr, others[:_EXAMPLES]))
        message = (
            f"has another PatientID than images that it draws on, of patient {shown}. Is it "
            "another person's? Look at the overlays."
        )
        yield Finding("patient-id-differs", one.path, message)


# -------------------------------------------------------------------------------------------- links


def _links(
    drawn: Sequence[_Drawn],
    chosen: structures.Chosen,
    options: BuildOptions,
    findings: list[Finding],
) -> list[Link]:
    """Return the links of all sets, in order; append findings on what becomes none."""
    book = _Book()
    # The newest first: where two sets draw one structure on one frame, its drawings are taken.
    for one in sorted(drawn, key=lambda one: _age(one.of), reverse=True):
        twice = _ambiguous(one, chosen)
        findings += twice.values()
        taken = [
            (placed, code)
            for placed in one.placed
            if (code := chosen.codes.get(placed.name)) is not None
            and (placed.frame.key[:2], code) not in twice
        ]
        again = book.enter(one.of, taken)
        findings += _drawn_twice(one.of, {chosen.scheme[code].name: n for code, n in again.items()})
    links, bare = book.links()
    if options.background:
        links += bare
    else:
        why = "no structure is drawn on this image."
        findings += (Finding("image-no-contour", one.frame.path, why, one.key) for one in bare)
    return sorted(links, key=lambda link: link.key)


class _Book:
    """What is drawn on which frame, over all structure sets."""

    def __init__(self) -> None:
        self._annotations: dict[SampleKey, dict[int, AnnotationRef]] = {}
        self._codes: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
        self._frames: dict[SampleKey, Frame] = {}  # of all series that a set has drawn in

    def enter(self, one: _Set, taken: Iterable[tuple[_Placed, int]]) -> Counter[int]:
        """Add the contours of a set; return on how many frames a structure was drawn already."""
        places: defaultdict[tuple[SampleKey, int], list[int]] = defaultdict(list)
        for placed, code in taken:
            places[placed.frame.key, code].append(placed.place)
            self._frames[placed.frame.key] = placed.frame
        for series in one.series:
            self._frames |= {frame.key: frame for frame in series.frames}
        again: Counter[int] = Counter()
        for (key, code), numbers in places.items():
            mine = self._annotations.setdefault(key, {})
            self._codes[key[:2]].add(code)
            if code in mine:
                again[code] += 1
            else:
                mine[code] = AnnotationRef(code, one.path, " ".join(map(str, numbers)))
        return again

    def links(self) -> tuple[list[Link], list[Link]]:
        """Return the links of frames with annotations, and of the others of their series."""
        links: list[Link] = []
        bare: list[Link] = []
        for key, frame in self._frames.items():
            if not (codes := self._codes[key[:2]]):
                continue
            mine = self._annotations.get(key, {})
            annotations = tuple(mine[code] for code in sorted(mine))
            link = Link(key, "", frame.ref, annotations, looked_for=tuple(sorted(codes)))
            (links if mine else bare).append(link)
        return links, bare


def _ambiguous(
    one: _Drawn, chosen: structures.Chosen
) -> dict[tuple[tuple[str, str], int], Finding]:
    """Return what two structures of a set mean, by series and code, and a finding on each."""
    drawings, is_mask = one.of.content.drawings, one.of.content.what == SEGMENTATION
    found: defaultdict[tuple[tuple[str, str], int], set[tuple[str, str]]] = defaultdict(set)
    for placed in one.placed:
        if (code := chosen.codes.get(placed.name)) is not None:
            # Masks of one name add up. Contours would cut holes into each other.
            number = "" if is_mask else drawings[placed.place].number
            found[placed.frame.key[:2], code].add((placed.name, number))
    return {
        key: Finding(
            "structure-ambiguous",
            one.of.path,
            _both_mean(sorted(some), chosen.scheme[key[1]].name),
            label=key[1],
        )
        for key, some in found.items()
        if len(some) > 1
    }


def _both_mean(some: Sequence[tuple[str, str]], meant: str) -> str:
    names = sorted({name for name, _ in some})
    if len(names) > 1:
        which = " and ".join(map(repr, names))
        return f"{which} both mean {meant!r}; neither is taken. Name one of them in --structures."
    numbers = " and ".join(number for _, number in some)
    return (
        f"{len(some)} structures have the name {names[0]!r} (ROINumber {numbers}); none of them is "
        "taken. Give them names of their own."
    )


def _drawn_twice(one: _Set, others: Mapping[str, int]) -> Iterator[Finding]:
    for name, n_times in sorted(others.items()):
        n = counted(n_times, "image")
        message = (
            f"{name!r}: a newer {one.content.what} draws it on {n} too; that one is taken. Are "
            "both right? Then give them names of their own."
        )
        yield Finding("drawings-not-taken", one.path, message)


def settle(options: BuildOptions) -> BuildOptions:
    """Refuse the options of other layouts.

    Raises
    ------
    EtlError
        One of them is given.
    """
    refuse(options, ("contours", "partial", "contour_origin"), IN_TEXT)
    return options


def unnamed(_data: Path) -> str:
    """Return nothing: no name tells this layout."""
    return ""
