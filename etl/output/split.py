"""Patients → train, validation, test and folds; no patient is ever on two sides.

Patients that are one person move as one.

Patients stand in the order of a keyed hash of their id, and the line is cut where the shares of
samples come closest. A new patient shifts the cuts a little, so that few others change sides. With
`splits_from` none does: patients of an older file stay where that file has them.
"""

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from etl.errors import EtlError
from etl.findings import shortened
from etl.options import BuildOptions
from etl.output.strata import Strata
from etl.sources.csv_table import parse_side, read_csv, without_mark
from loader import LoaderError, open_dataset
from loader.format import NO_FOLD, NO_SPLIT, SPLITS, Attribute

_QUOTED: Final = 80  # characters of a cell in a message
_TEST: Final = SPLITS.index("test")


def assign(
    n_samples: Mapping[str, int],
    options: BuildOptions,
    sides: Mapping[str, tuple[int, int]] | None = None,
    people: Iterable[Sequence[str]] = (),
    strata: Strata | None = None,
) -> dict[str, tuple[int, int]]:
    """Return patient_id → (split code, fold), as the manifest has them.

    Parameters
    ----------
    n_samples : mapping
        patient_id → number of rows.
    options : BuildOptions
        `split` or `split_file`, `folds`, `split_seed`, `splits_from`.
    sides : mapping, optional
        patient_id → (split code, fold) where the input itself says so.
    people : iterable of sequence of str
        Patients that are one person, and that what is divided here keeps together. What the user
        or the input says is taken as it is.
    strata : mapping, optional
        patient_id → stratum; each part is to have its share of each.

    Raises
    ------
    EtlError
        The split file, or the file that the splits are from, is not usable.
    """
    splits = dict.fromkeys(n_samples, NO_SPLIT)
    folds = dict.fromkeys(n_samples, NO_FOLD)
    group = _Group({one: min(ids) for ids in people for one in ids}, strata, options.split_seed)
    listed = sides
    if options.split_file is not None:
        listed = read_split_file(Path(options.split_file))
    if listed is not None:
        for patient_id in listed.keys() & n_samples.keys():
            splits[patient_id], folds[patient_id] = listed[patient_id]
    old = _NO_OLD_SPLIT
    if options.splits_from is not None and listed is None:
        old = read_old_split(Path(options.splits_from))
    shares, n_folds = options.split or old.shares, options.folds or old.n_folds
    if listed is None and shares is not None:
        splits |= group.divided(n_samples, old.splits, shares, "split")
    if n_folds is not None:
        rest = {name: n for name, n in n_samples.items() if splits[name] != _TEST}
        kept = {one: n for one, n in old.folds.items() if n < n_folds}
        folds |= group.divided(rest, kept, [1.0] * n_folds, "fold")
    return {patient_id: (splits[patient_id], folds[patient_id]) for patient_id in n_samples}


def check_split_file(options: BuildOptions) -> None:
    """Read the user's own split file, so that a bad one shows before the work."""
    if options.split_file is not None:
        read_split_file(Path(options.split_file))
    if options.splits_from is not None:
        read_old_split(Path(options.splits_from))


@dataclass(frozen=True, slots=True)
class OldSplit:
    """The split of an older file.

    Attributes
    ----------
    splits, folds : dict of str to int
        patient_id → code; without patients that have none.
    shares : sequence of float, optional
        Of train, validation and test: as its options say, else as its rows are. None: no split.
    n_folds : int, optional
        None: no folds.
    """

    splits: dict[str, int]
    folds: dict[str, int]
    shares: Sequence[float] | None
    n_folds: int | None


_NO_OLD_SPLIT: Final = OldSplit({}, {}, None, None)


def read_old_split(path: Path) -> OldSplit:
    """Return the split that an older file has.

    Raises
    ------
    EtlError
        It is not a file of dicom-etl.
    """
    try:
        dataset = open_dataset(path)
    except LoaderError as error:
        raise EtlError(str(error)) from error
    patients, sides, fold_of = (
        dataset.manifest[name].tolist() for name in ("patient_id", "split", "fold")
    )
    splits = {one: side for one, side in zip(patients, sides, strict=True) if side != NO_SPLIT}
    folds = {one: fold for one, fold in zip(patients, fold_of, strict=True) if fold != NO_FOLD}
    recorded = dataset.attributes[Attribute.OPTIONS]
    n_rows = Counter(sides)
    found = [float(n_rows[code]) for code in range(len(SPLITS))] if splits else None
    n_folds = recorded.get("folds") or max(folds.values(), default=0) + 1
    return OldSplit(splits, folds, recorded.get("split") or found, n_folds if folds else None)


def notes_on_old(
    options: BuildOptions,
    n_samples: Mapping[str, int],
    sides: Mapping[str, tuple[int, int]],
) -> Iterator[str]:
    """Yield what `splits_from` kept, and what that did to the shares."""
    if options.splits_from is None:
        return
    name = Path(options.splits_from).name
    old = read_old_split(Path(options.splits_from))
    if not old.splits and not old.folds:
        yield f"no patient of {name} has a split or a fold, so that none is kept."
        return
    splits = {one: side for one, (side, _) in sides.items() if side != NO_SPLIT}
    folds = {one: fold for one, (_, fold) in sides.items() if fold != NO_FOLD}
    for what, mine, before, names in (
        ("split", splits, old.splits, SPLITS),
        (
            "fold",
            folds,
            old.folds,
            [f"fold {n}" for n in range(max(folds.values(), default=0) + 1)],
        ),
    ):
        if not mine:
            continue
        n_kept = sum(before.get(one) == part for one, part in mine.items())
        n_moved = len(mine.keys() & before.keys()) - n_kept
        moved = f", {n_moved} changed it" if n_moved else ""
        n_rows = Counter[int]()
        for one, part in mine.items():
            n_rows[part] += n_samples[one]
        parts = [f"{each} {n_rows[n] / n_rows.total():.1%}" for n, each in enumerate(names)]
        yield (
            f"{n_kept} of {len(mine)} patients keep the {what} that they have in {name}{moved}, "
            f"new: {len(mine) - n_kept - n_moved}; of the rows: {', '.join(parts)}."
        )


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
        patient_id, split, fold = (
            without_mark(row.get(name, "")) for name in ("patient_id", "split", "fold")
        )
        where = f"Split file not usable: {path.name}, line {line}"
        if not patient_id:
            raise EtlError(f"{where}: patient_id is empty. Repair the line.")
        code = parse_side(split, fold, where)
        if listed.setdefault(patient_id, code) != code:
            shown = shortened(patient_id, _QUOTED)
            raise EtlError(f"{where}: patient {shown!r} is on two sides. Keep one line.")
    return listed


@dataclass(frozen=True, slots=True)
class _Group:
    """How patients are divided, whatever the parts.

    Attributes
    ----------
    leaders : mapping
        patient_id → the patient in whose part it is; without an entry, its own.
    strata : mapping, optional
        patient_id → stratum.
    seed : int
    """

    leaders: Mapping[str, str]
    strata: Strata | None
    seed: int

    def divided(
        self,
        n_samples: Mapping[str, int],
        kept: Mapping[str, int],
        shares: Sequence[float],
        purpose: str,
    ) -> dict[str, int]:
        """Return patient_id → number of its part; `kept` are those that have one already."""
        if self.strata is not None:
            return _stratify(n_samples, self.leaders, kept, shares, self.strata, self.seed, purpose)
        if kept.keys() & n_samples.keys():
            return _add(n_samples, self.leaders, kept, shares, self.seed, purpose)
        return _cut(n_samples, self.leaders, shares, self.seed, purpose)


def _stratify(
    n_samples: Mapping[str, int],
    leaders: Mapping[str, str],
    kept: Mapping[str, int],
    shares: Sequence[float],
    strata: Strata,
    seed: int,
    purpose: str,
) -> dict[str, int]:
    """Return patient_id → number of its part, each part with its share of each stratum.

    Stratum after stratum, in the order of their hashes, each person joins the part that is most
    behind its share, in the stratum and in all so far: both stay near the shares on the way.
    """
    parts = {patient_id: kept[patient_id] for patient_id in sorted(n_samples) if patient_id in kept}
    of_leader: dict[str, int] = {}
    together = Counter[str]()
    reached: dict[str | None, Counter[int]] = {None: Counter()}  # None: in all strata
    for patient_id, n in n_samples.items():
        leader = leaders.get(patient_id, patient_id)
        mine = reached.setdefault(strata.get(leader, ""), Counter())
        if patient_id not in parts:
            together[leader] += n
            continue
        of_leader.setdefault(leader, parts[patient_id])
        for counts in (reached[None], mine):
            counts[parts[patient_id]] += n
    wanted = [part for part, share in enumerate(shares) if share > 0]
    order = sorted(together, key=lambda one: (strata.get(one, ""), _rank(one, seed, purpose)))
    for leader in order:
        both = reached[None], reached[strata.get(leader, "")]
        n = together[leader]
        if leader not in of_leader:
            of_leader[leader] = max(
                wanted,
                key=lambda one: sum(
                    shares[one] / sum(shares) * (counts.total() + n) - counts[one]
                    for counts in both
                ),
            )
        for counts in both:
            counts[of_leader[leader]] += n
    _fill(of_leader, [one for one in order if one not in kept], wanted)
    return parts | {one: of_leader[leaders.get(one, one)] for one in n_samples if one not in parts}


def _fill(parts: dict[str, int], movable: Sequence[str], wanted: Sequence[int]) -> None:
    """Give each part a patient, where there are patients enough: the last one of the largest."""
    for empty in [one for one in wanted if one not in parts.values()]:
        sizes = Counter(parts.values())
        givers = [one for one in movable if sizes[parts[one]] > 1]
        if givers:
            largest = max(sizes[parts[one]] for one in givers)
            parts[[one for one in givers if sizes[parts[one]] == largest][-1]] = empty


def _add(
    n_samples: Mapping[str, int],
    leaders: Mapping[str, str],
    kept: Mapping[str, int],
    shares: Sequence[float],
    seed: int,
    purpose: str,
) -> dict[str, int]:
    """Return patient_id → number of its part, where some have theirs already.

    Each new one, in the order of its hash, joins the part that lacks most of its share, or the part
    that another id of the same person has.
    """
    parts = {patient_id: kept[patient_id] for patient_id in sorted(n_samples) if patient_id in kept}
    of_leader: dict[str, int] = {}
    reached, together = Counter[int](), Counter[str]()
    for patient_id, part in parts.items():
        of_leader.setdefault(leaders.get(patient_id, patient_id), part)
        reached[part] += n_samples[patient_id]
    new = [patient_id for patient_id in n_samples if patient_id not in kept]
    for patient_id in new:
        together[leaders.get(patient_id, patient_id)] += n_samples[patient_id]
    unit = sum(n_samples.values()) / sum(shares)
    wanted = [part for part, share in enumerate(shares) if share > 0]
    for leader in sorted(together, key=lambda one: _rank(one, seed, purpose)):
        if leader not in of_leader:
            of_leader[leader] = max(wanted, key=lambda one: unit * shares[one] - reached[one])
        reached[of_leader[leader]] += together[leader]
    return parts | {one: of_leader[leaders.get(one, one)] for one in new}


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
