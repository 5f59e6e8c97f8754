"""Identifiers in headers: one person under several ids, several in one, one UID of two images.

A patient on both sides of a split makes its scores too good, under whatever ids.
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from etl.findings import Finding, SampleKey, counted
from etl.options import BuildOptions
from loader.format import NO_FOLD, NO_SPLIT, SPLITS

INSTANCE_UID: Final = "SOPInstanceUID"

# More ids than any person has: such a value is a scanner's, or an anonymiser's.
_MOST_IDS: Final = 10
_SHOWN: Final = 4  # patients that a message names
_FEW_FILES: Final = 2  # of a patient; more that all differ are an anonymiser's

_OF_TWO_IMAGES: Final = ("identical-image", "near-duplicate")
_TOO_GOOD: Final = "Scores will be too good: give them one side in your split."

Sides = Mapping[str, tuple[int, int]]  # patient_id → (split code, fold)


def identifiers(
    patient: Sequence[int],
    study: Sequence[int],
    series: Sequence[Hashable],
    instance: Sequence[Hashable],
) -> dict[str, Sequence[Hashable]]:
    """Return what `same_people` compares: DICOM keyword → value by row."""
    return {
        "PatientID": patient,
        "StudyInstanceUID": study,
        "SeriesInstanceUID": series,
        INSTANCE_UID: instance,
    }


class Person(NamedTuple):
    """Patients that seem to be one person.

    Attributes
    ----------
    patient_ids : tuple of str
        Two at least, sorted.
    attributes : tuple of str
        DICOM keywords of what they share.
    path : str
        Of an image of the first.
    """

    patient_ids: tuple[str, ...]
    attributes: tuple[str, ...]
    path: str


def same_people(
    patients: Sequence[str],
    paths: Sequence[str],
    identifiers: Mapping[str, Sequence[Hashable]],
) -> list[Person]:
    """Return the people that stand under several ids, in the order of their first ids.

    A value is no evidence where all patients share it, or more than 10; nor is an SOPInstanceUID
    that two files of one patient share.

    Parameters
    ----------
    patients, paths : sequence of str
        patient_id and path of the DICOM file, by row.
    identifiers : mapping
        DICOM keyword → value by row; a false one (0, empty) is none.
    """
    n_patients = len(set(patients))
    shared: list[tuple[str, set[str]]] = []
    for keyword, values in identifiers.items():
        of_several = _of_several(patients, values)
        holders: defaultdict[Hashable, dict[str, set[str]]] = defaultdict(dict)
        for patient, path, value in zip(patients, paths, values, strict=True):
            if value in of_several:
                holders[value].setdefault(patient, set()).add(path)
        for files in holders.values():
            is_some = 1 < len(files) < n_patients and len(files) <= _MOST_IDS
            if is_some and (keyword != INSTANCE_UID or max(map(len, files.values())) == 1):
                shared.append((keyword, set(files)))
    first_paths = dict(zip(reversed(patients), reversed(paths), strict=True))
    people = []
    for ids in _joined(group for _, group in shared):
        keywords = {keyword for keyword, group in shared if group <= ids}
        listed = tuple(keyword for keyword in identifiers if keyword in keywords)
        patient_ids = tuple(sorted(ids))
        people.append(Person(patient_ids, listed, first_paths[patient_ids[0]]))
    return sorted(people)


def _of_several(patients: Sequence[str], values: Sequence[Hashable]) -> set[Hashable]:
    """Return the values that several patients have; most data have none, which is soon seen."""
    first: dict[Hashable, str] = {}
    return {
        value
        for patient, value in zip(patients, values, strict=True)
        if value and first.setdefault(value, patient) != patient
    }


def mixed_people(
    patients: Sequence[str], paths: Sequence[str], identities: Sequence[int]
) -> list[Finding]:
    """Return a warning for each patient whose images have several PatientIDs.

    Where each of several files has a PatientID of its own, an anonymiser wrote them.

    Parameters
    ----------
    patients, paths : sequence of str
        patient_id and path of the DICOM file, by row.
    identities : sequence of int
        Digest of the PatientID by row; 0 is none.
    """
    files: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for patient, path, value in zip(patients, paths, identities, strict=True):
        if value:
            files[patient][path] = value
    findings = []
    for patient, known in sorted(files.items()):
        counts = Counter(known.values())
        if len(counts) < 2 or (len(counts) == len(known) > _FEW_FILES):  # noqa: PLR2004
            continue
        (usual, n_usual), *_ = counts.most_common()
        other = min(path for path, value in known.items() if value != usual)
        message = (
            f"the images of patient {patient!r} have {len(counts)} PatientIDs: "
            f"{n_usual} of {len(known)} files share one, {other} has another. Are they of two "
            "people? Give each a patient_id of its own."
        )
        findings.append(Finding("patient-id-differs", other, message))
    return findings


def repeated_instances(
    keys: Sequence[SampleKey], paths: Sequence[str], instances: Sequence[str | bytes]
) -> list[Finding]:
    """Return a warning for each patient with several files of one SOPInstanceUID.

    Parameters
    ----------
    keys : sequence of SampleKey
        Of the rows.
    paths : sequence of str
        Path of the DICOM file, by row.
    instances : sequence of str or bytes
        SOPInstanceUID by row; an empty one is none.
    """
    if len(set(zip(paths, instances, strict=True))) == len({*instances}):  # each of one file
        return []
    first: dict[tuple[str, str | bytes], tuple[SampleKey, str]] = {}
    repeated: defaultdict[str, dict[str, tuple[SampleKey, SampleKey, str]]] = defaultdict(dict)
    for key, path, value in sorted(zip(keys, paths, instances, strict=True)):
        known = first.setdefault((key.patient_id, value), (key, path))
        if value and known[1] != path:
            repeated[key.patient_id].setdefault(path, (key, *known))
    findings = []
    for patient, files in sorted(repeated.items()):
        path, (key, other_key, other) = next(iter(files.items()))
        n_more = len(files) - 1
        more = f" So it is with {counted(n_more, 'more file')} of the patient." * bool(n_more)
        message = (
            f"has the SOPInstanceUID of {other}, also of patient {patient!r}; both are rows.{more} "
            "If one is a copy, remove it and its contours; else export the images again."
        )
        findings.append(Finding("instance-duplicate", path, message, key=key, other_key=other_key))
    return findings


def finding(person: Person, sides: Sides, options: BuildOptions) -> Finding:
    """Return the warning, which tells what the split makes of the person.

    Parameters
    ----------
    sides : mapping
        Split and fold of each patient; empty where there is no split.
    """
    ids = person.patient_ids
    more = [f"{len(ids) - _SHOWN} more"] * (len(ids) > _SHOWN)
    shown = " and ".join([*map(repr, ids[:_SHOWN]), *more])
    same = " and ".join(person.attributes)
    message = f"patients {shown} have the same {same}: one person under {len(ids)} ids?"
    return Finding("same-person", person.path, f"{message} {_on_sides(ids, sides, options)}")


def with_leak(finding: Finding, sides: Sides) -> Finding:
    """Return a finding about equal images of two patients, which says where these are apart."""
    if finding.code not in _OF_TWO_IMAGES or finding.key is None or finding.other_key is None:
        return finding
    ids = finding.key.patient_id, finding.other_key.patient_id
    leaking = leak(ids, sides) if ids[0] != ids[1] else ""
    if not leaking:
        return finding
    return replace(finding, message=f"{finding.message} {leaking} {_TOO_GOOD}")


def leak(ids: Sequence[str], sides: Sides) -> str:
    """Return a sentence that says on which sides patients are; empty where it is one side."""
    splits, folds = _splits(ids, sides), _folds(ids, sides)
    if len(set(splits.values())) > 1:
        where = ", ".join(f"{one!r} {SPLITS[code]}" for one, code in list(splits.items())[:_SHOWN])
        return f"They are on two sides of the split: {where}."
    if len(set(folds.values())) > 1:
        where = ", ".join(f"{one!r} {fold}" for one, fold in list(folds.items())[:_SHOWN])
        return f"They are in two folds: {where}."
    return ""


def _splits(ids: Sequence[str], sides: Sides) -> dict[str, int]:
    return {one: sides[one][0] for one in ids if sides.get(one, (NO_SPLIT,))[0] != NO_SPLIT}


def _folds(ids: Sequence[str], sides: Sides) -> dict[str, int]:
    return {one: sides[one][1] for one in ids if sides.get(one, (0, NO_FOLD))[1] != NO_FOLD}


def _on_sides(ids: Sequence[str], sides: Sides, options: BuildOptions) -> str:
    if leaking := leak(ids, sides):
        return f"{leaking} {_remedy(options)}"
    splits, folds = _splits(ids, sides), _folds(ids, sides)
    if splits or folds:
        where = " and ".join(["one side of the split"] * bool(splits) + ["one fold"] * bool(folds))
        return f"They are on {where}."
    return "A split keeps them together."


def _remedy(options: BuildOptions) -> str:
    if options.same_person == "separate":
        return "You asked for that with --same-person separate."
    return _TOO_GOOD


def _joined(groups: Iterable[set[str]]) -> list[set[str]]:
    """Return the groups with those that have a patient in common put together."""
    joined: list[set[str]] = []
    place: dict[str, int] = {}
    for group in groups:
        mine = set(group)
        for other in {place[one] for one in group if one in place}:
            mine |= joined[other]
            joined[other] = set()
        place |= dict.fromkeys(mine, len(joined))
        joined.append(mine)
    return [group for group in joined if group]
