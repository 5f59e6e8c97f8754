"""Patients → train, validation, test and folds; no patient is ever on two sides.

Patients that are one person move as one.

Patients stand in the order of a keyed hash of their id, and the line is cut where the shares of
samples come closest. A new patient shifts the cuts a little, so that few others change sides.
"""

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from etl.errors import EtlError
from etl.options import BuildOptions
from etl.sources.csv_table import parse_side, read_csv
from loader.format import NO_FOLD, NO_SPLIT, SPLITS

_TEST: Final = SPLITS.index("test")


def assign(
    n_samples: Mapping[str, int],
    options: BuildOptions,
    sides: Mapping[str, tuple[int, int]] | None = None,
    people: Iterable[Sequence[str]] = (),
) -> dict[str, tuple[int, int]]:
    """Return patient_id → (split code, fold), as the manifest has them.

    Parameters
    ----------
    n_samples : mapping
        patient_id → number of rows.
    options : BuildOptions
        `split` or `split_file`, `folds`, `split_seed`.
    sides : mapping, optional
        patient_id → (split code, fold) where the input itself says so.
    people : iterable of sequence of str
        Patients that are one person, and that what is divided here keeps together. What the user
        or the input says is taken as it is.

    Raises
    ------
    EtlError
        The split file is not usable.
    """
    splits = dict.fromkeys(n_samples, NO_SPLIT)
    folds = dict.fromkeys(n_samples, NO_FOLD)
    leaders = {one: min(ids) for ids in people for one in ids}
    listed = sides
    if options.split_file is not None:
        listed = read_split_file(Path(options.split_file))
    if listed is not None:
        for patient_id in listed.keys() & n_samples.keys():
            splits[patient_id], folds[patient_id] = listed[patient_id]
    elif options.split is not None:
        splits |= _cut(n_samples, leaders, options.split, options.split_seed, "split")
    if options.folds is not None:
        rest = {name: n for name, n in n_samples.items() if splits[name] != _TEST}
        folds |= _cut(rest, leaders, [1.0] * options.folds, options.split_seed, "fold")
    return {patient_id: (splits[patient_id], folds[patient_id]) for patient_id in n_samples}


def check_split_file(options: BuildOptions) -> None:
    """Read the user's own split file, so that a bad one shows before the work."""
    if options.split_file is not None:
        read_split_file(Path(options.split_file))


def read_split_file(path: Path) -> dict[str, tuple[int, int]]:
    """Return patient_id → (split code, fold) of the user's own split file.

    Raises
    ------
    EtlError
        Not a table with patient_id and split; a value that is not train, validation or test; a
        fold that is not a whole number from 0; a patient on two sides.
    """
    listed: dict[str, tuple[int, int]] = {}
    for line, row in read_csv(path, required=("patient_id", "split")):
        patient_id, split, fold = (row.get(name, "") for name in ("patient_id", "split", "fold"))
        where = f"Split file not usable: {path.name}, line {line}"
        if not patient_id:
            raise EtlError(f"{where}: patient_id is empty. Repair the line.")
        code = parse_side(split, fold, where)
        if listed.setdefault(patient_id, code) != code:
            raise EtlError(f"{where}: patient {patient_id!r} is on two sides. Keep one line.")
    return listed


def _cut(
    n_samples: Mapping[str, int],
    leaders: Mapping[str, str],
    shares: Sequence[float],
    seed: int,
    purpose: str,
) -> dict[str, int]:
    """Return patient_id → number of its part, the parts' samples being near their shares.

    Where there are patients enough, each part with a share has one at least.

    Parameters
    ----------
    leaders : mapping
        patient_id → the patient in whose part it is; without an entry, its own.
    """
    together: Counter[str] = Counter()
    for patient_id, n in n_samples.items():
        together[leaders.get(patient_id, patient_id)] += n
    parts = _cut_apart(together, shares, seed, purpose)
    return {patient_id: parts[leaders.get(patient_id, patient_id)] for patient_id in n_samples}


def _cut_apart(
    n_samples: Mapping[str, int], shares: Sequence[float], seed: int, purpose: str
) -> dict[str, int]:
    """Return patient_id → number of its part, each patient by itself."""
    patients = sorted(n_samples, key=lambda patient_id: _rank(patient_id, seed, purpose))
    reached = [0, *itertools.accumulate(n_samples[patient_id] for patient_id in patients)]
    wanted = [share > 0 for share in shares]
    is_enough = len(patients) >= sum(wanted)
    borders = [0]
    for part in range(1, len(shares)):
        target = reached[-1] * sum(shares[:part]) / sum(shares)
        lowest = borders[-1] + (wanted[part - 1] and is_enough)
        highest = len(patients) - (sum(wanted[part:]) if is_enough else 0)
        candidates = range(min(lowest, highest), highest + 1)
        borders.append(min(candidates, key=lambda cut: (abs(reached[cut] - target), cut)))
    borders.append(len(patients))
    return {
        patient_id: part
        for part, (start, stop) in enumerate(itertools.pairwise(borders))
        for patient_id in patients[start:stop]
    }


def _rank(patient_id: str, seed: int, purpose: str) -> tuple[bytes, str]:
    key = f"{purpose} {seed}".encode()
    digest = hashlib.blake2b(patient_id.encode(), key=key, digest_size=16).digest()
    return digest, patient_id
