"""Two built files → what the newer one has that the older one had not, and the reverse."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from etl.findings import SampleKey, printable, sample_keys
from etl.report.overlays import ignored
from loader import Dataset
from loader.format import NO_FOLD, NO_SPLIT, SPLITS, Attribute, Structure

_N_SHOWN: Final = 5
_SPLIT_NAMES: Final = dict(enumerate(SPLITS)) | {NO_SPLIT: "none"}
_FOLD_NAMES: Final = {NO_FOLD: "none"}


@dataclass(frozen=True, slots=True)
class ChangedRow:
    """A row of both files whose image or mask differs."""

    key: SampleKey
    image_changed: bool
    dice: dict[str, float]  # structure → Dice of the two masks; of those that differ
    ignored_changed: bool = False  # whether other pixels are to be ignored


@dataclass(frozen=True, slots=True)
class Move:
    """A patient who is on another side than before."""

    patient_id: str
    what: str  # "split" or "fold"
    before: str
    now: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """What differs between two files."""

    old: str
    new: str
    rows_added: list[SampleKey]
    rows_gone: list[SampleKey]
    rows_changed: list[ChangedRow]
    n_rows_equal: int
    findings_new: dict[str, int]  # code → number
    findings_solved: dict[str, int]
    # Of options, generator, format, and types and size of images and masks, those that differ.
    attributes: dict[str, tuple[object, object]]
    moves: list[Move]

    @property
    def is_equal(self) -> bool:
        """Whether nothing differs."""
        return not any(
            (
                self.rows_added,
                self.rows_gone,
                self.rows_changed,
                self.findings_new,
                self.findings_solved,
                self.attributes,
                self.moves,
            )
        )

    def to_json(self) -> dict[str, object]:
        """Return plain data."""
        return {
            "old": self.old,
            "new": self.new,
            "rows_added": [key._asdict() for key in self.rows_added],
            "rows_gone": [key._asdict() for key in self.rows_gone],
            "rows_changed": [
                row.key._asdict()
                | {"image_changed": row.image_changed, "dice": row.dice}
                | {"ignored_changed": row.ignored_changed}
                for row in self.rows_changed
            ],
            "rows_equal": self.n_rows_equal,
            "findings_new": self.findings_new,
            "findings_solved": self.findings_solved,
            "attributes": {
                name: {"old": old, "new": new} for name, (old, new) in self.attributes.items()
            },
            "patients_moved": [
                {"patient_id": m.patient_id, "what": m.what, "old": m.before, "new": m.now}
                for m in self.moves
            ],
        }


def compare(old: Dataset, new: Dataset) -> Comparison:
    """Return what differs between two open files.

    A row is the same in both where its key is: patient_id, series, slice and frame number. Where
    its digests differ its pixels are compared: the digest also covers their type, which is no
    change of the row.
    """
    before, now = _rows(old), _rows(new)
    common = [key for key in now if key in before]
    old_digests, new_digests = old.manifest["row_xxh3"], new.manifest["row_xxh3"]
    doubtful = [key for key in common if old_digests[before[key]] != new_digests[now[key]]]
    compared = (_changed(key, old, before[key], new, now[key]) for key in doubtful)
    changed = [row for row in compared if row is not None]
    old_findings, new_findings = _findings(old), _findings(new)
    return Comparison(
        old=str(old.path),
        new=str(new.path),
        rows_added=[key for key in now if key not in before],
        rows_gone=[key for key in before if key not in now],
        rows_changed=changed,
        n_rows_equal=len(common) - len(changed),
        findings_new=_by_code(new_findings - old_findings),
        findings_solved=_by_code(old_findings - new_findings),
        attributes=dict(_attributes(old, new)),
        moves=list(_moves(old, new)),
    )


def comparison_text(found: Comparison) -> Iterator[str]:
    """Yield the lines of a comparison, all printable."""
    yield printable(f"{found.new}, compared with {found.old}")
    yield ""
    if found.is_equal:
        yield "  Nothing differs."
        return
    yield (
        f"  Rows      {len(found.rows_added)} added, {len(found.rows_gone)} gone, "
        f"{len(found.rows_changed)} changed, {found.n_rows_equal} equal"
    )
    for word, keys in (("added", found.rows_added), ("gone", found.rows_gone)):
        yield from map(printable, _listed(f"{word}:", list(map(_key_text, keys))))
    yield from map(printable, _listed("changed:", list(map(_row_text, found.rows_changed))))
    for title, counts in (("New", found.findings_new), ("Solved", found.findings_solved)):
        if counts:
            shown = ", ".join(f"{n} {code}" for code, n in counts.items())
            yield f"  {title:<9} {shown}"
    for name, (before, now) in found.attributes.items():
        yield printable(f"  Differs   {name}: {before!r}, now {now!r}")
    moves = [f"{m.patient_id}: {m.what} {m.before}, now {m.now}" for m in found.moves]
    yield from map(printable, _listed("moved:", moves))


def _listed(word: str, lines: Sequence[str]) -> Iterator[str]:
    for line in lines[:_N_SHOWN]:
        yield f"    {word:<9} {line}"
    if len(lines) > _N_SHOWN:
        yield f"    {word:<9} and {len(lines) - _N_SHOWN} more"


def _key_text(key: SampleKey) -> str:
    series = f", series {key.series}" if key.series else ""
    frame = f", frame {key.frame_number}" if key.frame_number != 1 else ""
    return f"patient {key.patient_id}{series}, slice {key.slice}{frame}"


def _row_text(row: ChangedRow) -> str:
    parts = ["image"] * row.image_changed
    parts += [f"{name} (Dice {dice:.3f})" for name, dice in row.dice.items()]
    parts += ["ignored pixels"] * row.ignored_changed
    return f"{_key_text(row.key)}: {', '.join(parts)}"


def _rows(dataset: Dataset) -> dict[SampleKey, int]:
    """Return the row of each key."""
    return {key: row for row, key in enumerate(sample_keys(dataset.manifest))}


def _changed(
    key: SampleKey, old: Dataset, before: int, new: Dataset, now: int
) -> ChangedRow | None:
    """Return what differs in a row; None where each pixel shows the same."""
    (old_image, old_mask), (new_image, new_mask) = old[before], new[now]
    image_changed = not np.array_equal(old_image, new_image)
    if old_mask.shape != new_mask.shape:
        return ChangedRow(key, image_changed, {})
    dice = {}
    masks = (old.structures, old_mask), (new.structures, new_mask)
    # A structure that only one of the files has is nowhere in the other.
    names = dict.fromkeys(one.name for one in (*new.structures, *old.structures))
    for name in names:
        a, b = (_extent(name, *one) for one in masks)
        if not np.array_equal(a, b):
            dice[name] = _dice(a, b)
    before_ignored, now_ignored = (ignored(mask, structures) for structures, mask in masks)
    ignored_changed = not np.array_equal(before_ignored, now_ignored)
    found = ChangedRow(key, image_changed, dice, ignored_changed)
    return found if image_changed or dice or ignored_changed else None


def _extent(
    name: str, structures: Sequence[Structure], mask: npt.NDArray[Any]
) -> npt.NDArray[np.bool_]:
    """Return the pixels of a structure by its name."""
    found = np.zeros(mask.shape, np.bool_)
    for structure in structures:
        if structure.name == name:
            found |= structure.covers(mask)
    return found


def _dice(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> float:
    """Return twice the common pixels over the pixels of both; one of the two has some."""
    return 2 * int((a & b).sum()) / (int(a.sum()) + int(b.sum()))


def _findings(dataset: Dataset) -> Counter[tuple[str, str, str]]:
    """Return findings as (code, path, message), which stay equal where rows are counted anew."""
    columns = [dataset.findings[name].tolist() for name in ("code", "path", "message")]
    return Counter(zip(*columns, strict=True))


def _by_code(findings: Counter[tuple[str, str, str]]) -> dict[str, int]:
    codes = Counter(code for code, _, _ in findings.elements())
    return dict(sorted(codes.items()))


def _attributes(old: Dataset, new: Dataset) -> Iterator[tuple[str, tuple[object, object]]]:
    for name in (Attribute.GENERATOR, Attribute.FORMAT_VERSION, Attribute.LABELS):
        if old.attributes[name] != new.attributes[name]:
            yield name, (old.attributes[name], new.attributes[name])
    yield from _forms(old, new)
    before, now = (one.attributes[Attribute.OPTIONS] for one in (old, new))
    for option in sorted(before.keys() | now.keys()):
        if before.get(option) != now.get(option):
            yield f"option {option}", (before.get(option), now.get(option))


def _forms(old: Dataset, new: Dataset) -> Iterator[tuple[str, tuple[object, object]]]:
    """Yield types and sizes that differ: a single row may decide them for all."""
    forms = [
        {
            "image_dtype": str(one.images.dtype),
            "mask_dtype": str(one.masks.dtype),
            "image_size": "x".join(map(str, one.images.shape[1:])),
        }
        for one in (old, new)
    ]
    for name, before in forms[0].items():
        if before != forms[1][name]:
            yield name, (before, forms[1][name])


def _moves(old: Dataset, new: Dataset) -> Iterator[Move]:
    """Yield the patients of both files that are on another side."""
    for what, names in (("split", _SPLIT_NAMES), ("fold", _FOLD_NAMES)):
        before, now = _sides(old, what), _sides(new, what)
        for patient_id, code in now.items():
            if patient_id in before and before[patient_id] != code:
                yield Move(
                    patient_id,
                    what,
                    names.get(before[patient_id], str(before[patient_id])),
                    names.get(code, str(code)),
                )


def _sides(dataset: Dataset, what: str) -> dict[str, int]:
    patients = dataset.manifest["patient_id"].tolist()
    return dict(zip(patients, dataset.manifest[what].tolist(), strict=True))
