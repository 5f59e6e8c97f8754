"""What the page shows of a comparison with an older file."""

from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from etl.findings import SampleKey, sample_keys
from etl.report.compare import ChangedRow, Comparison
from etl.report.page.pictures import box, drawn_pixels, edges
from loader import Dataset

Json: TypeAlias = dict[str, object]

_N_LISTED: Final = 200  # rows that one list names


def changed_rows(new: Dataset, found: Comparison) -> list[int]:
    """Return the rows of the new file whose image or mask has changed, the worst first."""
    row_of = {key: row for row, key in enumerate(sample_keys(new.manifest))}
    return [row_of[one.key] for one in _worst_first(found)]


def changes(
    old: Dataset,
    new: Dataset,
    found: Comparison,
    shown: Sequence[int],
    name: Callable[[str], str],
    *,
    is_named: bool,
) -> Json:
    """Return what differs, and the edges that the older masks had.

    Parameters
    ----------
    shown : sequence of int
        Rows of the new file that have changed and have a picture.
    name : function
        Patient id → what the page calls the patient.
    is_named : bool
        Whether ids, paths and options may be told.
    """
    row_of = {key: row for row, key in enumerate(sample_keys(old.manifest))}
    codes = {one.code: one.name for one in old.structures}
    is_same_size = old.masks.shape[1:] == new.masks.shape[1:]  # else edges do not fit

    def line(key: SampleKey) -> Json:
        return {
            "patient": name(key.patient_id),
            "series": key.series if is_named else "",
            "slice": key.slice,
            "frame": key.frame_number,
        }

    changed = []
    of_key = {one.key: one for one in found.rows_changed}
    keys = sample_keys(new.manifest)
    for row in shown:
        one = of_key[keys[row]]
        flags = drawn_pixels(new, row)
        if is_same_size:
            flags |= drawn_pixels(old, row_of[one.key])
        before = [
            {"structure": codes[int(str(edge["code"]))], "d": edge["d"]}
            for edge in (edges(old, row_of[one.key]) if is_same_size else ())
        ]
        changed.append(
            {"row": row, "image_changed": one.image_changed, "dice": one.dice}
            | {"ignored_changed": one.ignored_changed, "before": before, "box": box(flags)}
        )
    return {
        "old": found.old if is_named else "an older file",
        "is_equal": found.is_equal,
        "n_added": len(found.rows_added),
        "n_gone": len(found.rows_gone),
        "n_changed": len(found.rows_changed),
        "n_equal": found.n_rows_equal,
        "added": [line(key) for key in found.rows_added[:_N_LISTED]],
        "gone": [line(key) for key in found.rows_gone[:_N_LISTED]],
        "changed": changed,
        "findings_new": found.findings_new,
        "findings_solved": found.findings_solved,
        "attributes": [
            [key, str(before), str(now)] for key, (before, now) in found.attributes.items()
        ]
        if is_named
        else [],
        "moves": [
            [name(one.patient_id), one.what, one.before, one.now] for one in found.moves[:_N_LISTED]
        ],
        "n_moves": len(found.moves),
    }


def _worst_first(found: Comparison) -> list[ChangedRow]:
    """Return the changed rows by their lowest Dice; those whose image differs only come last."""
    return sorted(found.rows_changed, key=lambda one: min(one.dice.values(), default=1.0))
