"""Small datasets of a built file → what differs from their digests or contradicts itself."""

import math
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import xxhash

from etl.findings import CODES, sample_keys
from etl.quality.statistics import pooled_moments
from etl.verify.problem import Problem
from loader import Dataset
from loader.format import NO_FOLD, NO_ROW, NO_SPLIT, SPLITS, Attribute


def check_tables(dataset: Dataset) -> Iterator[Problem]:
    """Yield the problems of manifest, contours, findings and attributes."""
    yield from _attributes(dataset)
    yield from _digests(dataset)
    yield from _manifest(dataset)
    yield from _sides(dataset)
    yield from _contours(dataset)
    yield from _findings(dataset)
    yield from _reuse(dataset)


def _attributes(dataset: Dataset) -> Iterator[Problem]:
    """Compare the two attributes that say what the codes in masks mean; version 1 has but one."""
    meanings = {str(one.code): one.meaning for one in dataset.structures}
    labels = dataset.attributes[Attribute.LABELS]
    if labels != meanings:
        message = f"is {labels}, but the attribute structures has {meanings}."
        yield Problem(f"attribute {Attribute.LABELS}", message)


def _digests(dataset: Dataset) -> Iterator[Problem]:
    for place, why in dataset.damaged_columns().items():
        yield Problem(place, why)


def _manifest(dataset: Dataset) -> Iterator[Problem]:
    manifest, attributes = dataset.manifest.stored, dataset.attributes
    digest = xxhash.xxh3_128_hexdigest(np.ascontiguousarray(manifest["row_xxh3"]).data)
    if digest != dataset.dataset_id:
        yield Problem("attribute dataset_id", "differs from the digest over all rows' digests.")
    keys = sample_keys(dataset.manifest)
    for row, (before, key) in enumerate(pairwise(keys), 1):
        if not before < key:
            yield Problem("manifest", f"row {row} is out of order, or a second one of its key.")
    mean, std = _pooled(manifest["mean"].astype(np.float64), manifest["std"].astype(np.float64))
    for name, value in ((Attribute.IMAGE_MEAN, mean), (Attribute.IMAGE_STD, std)):
        if attributes[name] != value:
            message = f"is {attributes[name]!r}, but mean and std in the manifest give {value!r}."
            yield Problem(f"attribute {name}", message)
    n_flags = len(attributes[Attribute.FLAG_CODES])
    if n_flags < 64 and (manifest["flags"] >> np.uint64(n_flags)).any():  # noqa: PLR2004  its bits
        yield Problem("manifest/flags", "has a bit that flag_codes does not name.")


def _pooled(means: npt.NDArray[np.float64], stds: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Return mean and deviation over all rows; NaN where damage has made the columns too large."""
    try:
        with np.errstate(all="ignore"):
            return pooled_moments(means, stds)
    except (OverflowError, ValueError):
        return math.nan, math.nan


def _sides(dataset: Dataset) -> Iterator[Problem]:
    """Check that no patient is on two sides, and that the codes are known ones."""
    manifest = dataset.manifest.stored
    for name, low, high in (
        ("split", NO_SPLIT, len(SPLITS) - 1),
        ("fold", NO_FOLD, np.iinfo(np.int16).max),
    ):
        values = manifest[name]
        if ((values < low) | (values > high)).any():
            yield Problem(f"manifest/{name}", f"has a code that is not {low} to {high}.")
        sides: defaultdict[str, set[int]] = defaultdict(set)
        patients = dataset.manifest["patient_id"].tolist()
        for patient_id, value in zip(patients, values.tolist(), strict=True):
            sides[patient_id].add(value)
        for patient_id, found in sides.items():
            if len(found) > 1:
                yield Problem(f"manifest/{name}", f"patient {patient_id} is on {len(found)} sides.")


def _contours(dataset: Dataset) -> Iterator[Problem]:
    table = dataset.contours.stored
    row, label, start, length = (table[name] for name in ("row", "label", "start", "length"))
    if ((row < 0) | (row >= len(dataset))).any():
        yield Problem("contours/row", "has a row that the file does not have.")
    if (np.diff(row) < 0).any():
        yield Problem("contours/row", "is not in ascending order.")
    known = [structure.label for structure in dataset.structures]
    if not np.isin(label, known).all():
        yield Problem("contours/label", "has a label of no structure.")
    if (start != np.cumsum(length) - length).any() or length.sum() != len(table["x"]):
        yield Problem("contours/start", "start and length do not cover the vertices one by one.")
    for axis in ("x", "y"):
        if not np.isfinite(table[axis]).all():
            yield Problem(f"contours/{axis}", "has a vertex that is not finite.")


def _findings(dataset: Dataset) -> Iterator[Problem]:
    table = dataset.findings.stored
    texts = (dataset.findings[name].tolist() for name in ("code", "severity"))
    for number, (code, severity) in enumerate(zip(*texts, strict=True)):
        known = CODES.get(code)
        if known is not None and known.severity != severity:
            message = f"is {severity}, but {code} is {known.severity}."
            yield Problem(f"finding {number}", message)
    for name in ("row", "other_row"):
        values = table.get(name, np.empty(0, np.int64))
        if ((values < NO_ROW) | (values >= len(dataset))).any():
            yield Problem(f"findings/{name}", "has a row that the file does not have.")


def _reuse(dataset: Dataset) -> Iterator[Problem]:
    """Check what the next update is told, where the file has it."""
    table = dataset.reuse.stored
    if not table:
        return
    row = table.get("row", np.empty(0, np.int64))
    if (np.diff([-1, *row.tolist(), len(dataset)]) <= 0).any():
        yield Problem("reuse/row", "has a row that the file does not have, or is out of order.")
    for name in ("same_patient", "same_study", "region_row", "remark_row"):
        other = table.get(name, np.empty(0, np.int64))
        may_lack = name.startswith("same")
        if not (np.isin(other, row) | (may_lack & (other == NO_ROW))).all():
            yield Problem(f"reuse/{name}", "has a row that reuse/row does not have.")
