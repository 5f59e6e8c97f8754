"""A model's predictions against the masks of a file: agreement by row and structure, worst first.

The predictions must come from models that did not train on the row: a model that did repeats the
mistake in its mask.
"""

import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import h5py
import numpy as np
import numpy.typing as npt

from etl.errors import EtlError
from etl.findings import SEVERITY_ORDER, FindingRow, counted, printable, shortened
from etl.report.overlays import ignored
from etl.sources.files import irregular
from loader import Dataset
from loader.format import IGNORE

CODE: Final = "disagrees-with-model"

# Dice under the median by this many robust deviations is a finding, whatever the model.
_SHOWN: Final = 80  # characters of another program's text in a message
_N_DEVIATIONS: Final = 5
_LEAST_DEVIATION: Final = 0.02  # where nearly all rows have the same Dice
# Of a model whose median Dice is at least _FAIR, Dice under _POOR is a finding as well.
_FAIR: Final = 0.7
_POOR: Final = 0.5
_ROBUST: Final = 1.4826  # median absolute deviation → standard deviation of a normal distribution

_LABELS: Final = "predictions"
_CHANCES: Final = "probabilities"
_ROWS: Final = "rows"
_DATASET_ID: Final = "dataset_id"
_NAMES: Final = (_LABELS, _CHANCES, _ROWS, _DATASET_ID)
_WIDEST: Final = 16  # bytes of one number, of the largest dtype that an array may have
_NPY_HEADER_BYTES: Final = 1 << 16

# A header may claim an array that no memory holds.
_NO_SUCH_FILE: Final = (
    EOFError,
    OSError,
    ValueError,
    KeyError,
    MemoryError,
    RuntimeError,  # of an archive with a password, or of another version
    zipfile.BadZipFile,
    zlib.error,
)

_Array: TypeAlias = npt.NDArray[Any]  # of h5py too: read row by row
_File: TypeAlias = Mapping[str, Any]
_Bools: TypeAlias = npt.NDArray[np.bool_]
_Floats: TypeAlias = npt.NDArray[np.float64]


class Score(NamedTuple):
    """How well a prediction agrees with one structure of one row.

    Attributes
    ----------
    row, label : int
        The row, and the code of the structure.
    n_drawn, n_predicted : int
        Pixels of the structure in the mask and in the prediction.
    dice : float
        2 x (pixels in both) / (n_drawn + n_predicted); 1 where both are empty.
    quality : float
        The mean probability that the model gives to the mask, over the pixels that are the
        structure in the mask or in the prediction; of a label map the Jaccard index. 1 where both
        are empty.
    """

    row: int
    label: int
    n_drawn: int
    n_predicted: int
    dice: float
    quality: float


@dataclass(frozen=True, slots=True)
class Agreement:
    """All scores of one file of predictions.

    Attributes
    ----------
    path : str
    n_rows : int
        Rows that have a prediction.
    medians : dict of int to float
        The median Dice of each structure, by code.
    scores : list of Score
        The lowest quality first.
    """

    path: str
    n_rows: int
    medians: dict[int, float]
    scores: list[Score]

    @property
    def is_weak(self) -> bool:
        """Whether the model is too weak for its disagreement to say much."""
        return any(median < _FAIR for median in self.medians.values())


def agreement(dataset: Dataset, path: Path) -> Agreement:
    """Score the predictions in a file against the masks.

    Parameters
    ----------
    dataset : Dataset
    path : Path
        An HDF5 file or a .npz file with one of two arrays. `predictions`: label maps, whole
        numbers, (k, rows, columns), with the codes of the masks. `probabilities`: (k, channels,
        rows, columns) with a channel for each structure by ascending code, and the background's
        before them or not; (k, rows, columns) where there is one structure. And `rows`: (k,), the
        row of each; all rows in order where it is absent. Where it has `dataset_id` (an attribute
        in HDF5), that must be the data set's.

    Raises
    ------
    EtlError
        The file cannot be read, or is not that.
    """
    try:
        with _opened(path, dataset) as file:
            predictions = _Predictions.of(path, file, dataset)
            scores = [score for row in predictions for score in _scores(dataset, *row)]
    except _NO_SUCH_FILE as error:
        raise _unusable(
            path,
            f"it cannot be read as HDF5 or .npz ({type(error).__name__}). Write it with h5py or "
            "numpy.savez.",
        ) from error
    by_label: dict[int, list[float]] = {}
    for score in scores:
        by_label.setdefault(score.label, []).append(score.dice)
    medians = {label: float(np.median(dice)) for label, dice in sorted(by_label.items())}
    n_rows = len(predictions.rows)
    scores.sort(key=lambda one: (one.quality, one.dice, one.row, one.label))
    return Agreement(str(path), n_rows, medians, scores)


def disagreements(dataset: Dataset, found: Agreement) -> list[FindingRow]:
    """Return a finding for each structure and row that agrees far less than the others.

    Parameters
    ----------
    dataset : Dataset
    found : Agreement
        Of this data set.
    """
    limits = _limits(found)
    manifest, named = dataset.manifest, {one.code: one for one in dataset.structures}
    findings = []
    for score in found.scores:
        if score.dice >= limits[score.label]:
            continue
        structure = named[score.label]
        own = str(manifest[f"{structure.stem}_path"][score.row])
        message = (
            f"{printable(structure.name)!r} has Dice {score.dice:.2f} with the prediction "
            f"({counted(score.n_drawn, 'pixel')} in the mask, {score.n_predicted} predicted); the "
            f"median is {found.medians[score.label]:.2f}. Look at it: the mask or the model is "
            "wrong."
        )
        findings.append(
            FindingRow(
                "warning",
                CODE,
                own or str(manifest["dicom_path"][score.row]),
                score.row,
                message,
                score.label,
                patient_id=str(manifest["patient_id"][score.row]),
                original_id=str(manifest["original_id"][score.row]),
            )
        )
    return findings


def merged(findings: Iterable[FindingRow], more: Iterable[FindingRow]) -> list[FindingRow]:
    """Return both in the order of a file: errors first, then by code."""
    order = {str(severity): place for place, severity in enumerate(SEVERITY_ORDER)}
    return sorted(
        [*findings, *more], key=lambda one: (order.get(one.severity, len(order)), one.code)
    )


def _limits(found: Agreement) -> dict[int, float]:
    """Return the Dice under which a structure is a finding, by code."""
    limits = {}
    for label, median in found.medians.items():
        dice = np.array([score.dice for score in found.scores if score.label == label])
        deviation = _ROBUST * float(np.median(np.abs(dice - median)))
        limit = median - _N_DEVIATIONS * max(deviation, _LEAST_DEVIATION)
        limits[label] = max(limit, _POOR) if median >= _FAIR else limit
    return limits


class _Predicted(NamedTuple):
    """One row of predictions; first axis: structures by code."""

    row: int
    is_inside: _Bools
    chances: _Floats


@dataclass(frozen=True)
class _Predictions:
    """The arrays of an open file of predictions, checked."""

    path: Path
    rows: list[int]
    codes: list[int]
    array: _Array
    is_labels: bool

    @classmethod
    def of(cls, path: Path, file: _File, dataset: Dataset) -> "_Predictions":
        """Check what an open file has."""
        _check_identity(path, file, dataset)
        names = [name for name in (_LABELS, _CHANCES) if name in file]
        if len(names) != 1:
            raise _unusable(
                path,
                f"expected an array {_LABELS!r} or {_CHANCES!r}, found "
                f"{'both' if names else _listed(file)}. Write one of them.",
            )
        array, is_labels = file[names[0]], names == [_LABELS]
        rows = file[_ROWS] if _ROWS in file else np.arange(len(dataset))
        for name, one in ((names[0], array), (_ROWS, rows)):
            if not hasattr(one, "shape"):  # a group of HDF5, or bytes of a .npz file
                raise _unusable(path, f"{name!r} is no array, but a group or bytes. Write it anew.")
        codes = sorted(structure.code for structure in dataset.structures)
        rows = _checked_rows(path, rows, array, len(dataset))
        _check_array(path, names[0], array, dataset.masks.shape[1:], len(codes))
        return cls(path, [int(row) for row in rows], codes, array, is_labels)

    def __iter__(self) -> Iterator[_Predicted]:
        for place, row in enumerate(self.rows):
            values = np.asarray(self.array[place])
            yield _Predicted(row, *(self._labels if self.is_labels else self._chances)(row, values))

    def _labels(self, row: int, values: _Array) -> tuple[_Bools, _Floats]:
        is_inside = values == np.array(self.codes)[:, None, None]
        is_known = is_inside.any(0) | (values == 0) | (values == IGNORE)
        if not is_known.all():
            raise _unusable(
                self.path,
                f"row {row} has the label {values[~is_known][0]}; expected 0 or a code of the file "
                f"({', '.join(map(str, self.codes))}). Write the codes that the masks have.",
            )
        return is_inside, is_inside.astype(np.float64)

    def _chances(self, row: int, values: _Array) -> tuple[_Bools, _Floats]:
        chances = values.astype(np.float64).reshape(-1, *values.shape[-2:])
        if not (np.isfinite(chances).all() and chances.min() >= 0 and chances.max() <= 1):
            raise _unusable(
                self.path,
                f"row {row} has a probability that is not between 0 and 1. Write the model's "
                "output after softmax or sigmoid.",
            )
        if len(chances) == len(self.codes):
            return chances >= 0.5, chances  # noqa: PLR2004
        best = chances.argmax(0)
        return best == np.arange(1, len(chances))[:, None, None], chances[1:]


def _check_identity(path: Path, file: _File, dataset: Dataset) -> None:
    """Refuse predictions that say that they are of another file."""
    attributes = getattr(file, "attrs", file)
    if _DATASET_ID not in attributes:
        return
    value = attributes[_DATASET_ID]
    text = value.decode() if isinstance(value, bytes) else str(value)
    if text != dataset.dataset_id:
        raise _unusable(
            path,
            f"its dataset_id is {shortened(printable(text), _SHOWN)}, that of {dataset.path} is "
            f"{dataset.dataset_id}: they are predictions of another file. Predict again.",
        )


def _checked_rows(path: Path, rows: _Array, array: _Array, n_rows: int) -> _Array:
    """Return `rows` in memory, once their number is known to be right."""
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise _unusable(path, f"rows: expected (k,) whole numbers, found {_form(rows)}.")
    if not array.shape or len(rows) != array.shape[0]:
        raise _unusable(
            path,
            f"expected a prediction for each of {counted(len(rows), 'row')}, found "
            f"{array.shape[0] if array.shape else 'one number'}. Write an array 'rows': the row of "
            "each.",
        )
    if not len(rows):
        raise _unusable(path, "it has no row. Predict some.")
    if len(rows) > n_rows:
        raise _unusable(path, f"rows: expected {n_rows} at most, found {len(rows)}.")
    rows = np.asarray(rows)
    if rows.min() < 0 or rows.max() >= n_rows:
        raise _unusable(
            path, f"rows: expected 0 to {n_rows - 1}, found {rows.min()} to {rows.max()}."
        )
    if len(np.unique(rows)) != len(rows):
        raise _unusable(path, "rows: expected each row once, found one twice.")
    return rows


def _check_array(
    path: Path, name: str, array: _Array, shape: Sequence[int], n_structures: int
) -> None:
    """Refuse an array of another dtype or shape."""
    is_labels = name == _LABELS
    k, size = array.shape[0], tuple(shape)
    expected = [(k, *size)] if is_labels or n_structures == 1 else []
    if not is_labels:
        expected += [(k, n_structures, *size), (k, n_structures + 1, *size)]
    kinds = "iu" if is_labels else "f"
    if array.dtype.kind not in kinds or array.shape not in expected:
        wanted = " or ".join(map(str, expected))
        raise _unusable(
            path,
            f"{name}: expected {'whole' if is_labels else 'floating-point'} numbers of shape "
            f"{wanted}, found {_form(array)}.",
        )


def _scores(dataset: Dataset, row: int, is_inside: _Bools, chances: _Floats) -> Iterator[Score]:
    """Yield the score of each structure that was drawn in a row, ignored pixels left out."""
    mask, manifest = dataset.masks[row], dataset.manifest
    is_known = ~ignored(mask, dataset.structures)
    for place, structure in enumerate(sorted(dataset.structures, key=lambda one: one.code)):
        label = structure.code
        drawn = "drawn_" if f"drawn_{label}" in manifest.stored else "n_pixels_"
        if not manifest[f"{drawn}{label}"][row]:
            continue
        is_drawn, is_predicted = structure.covers(mask), is_inside[place] & is_known
        n_drawn, n_predicted = int(is_drawn.sum()), int(is_predicted.sum())
        either = is_drawn | is_predicted
        n_either = int(either.sum())
        if not n_either:
            yield Score(row, label, 0, 0, 1.0, 1.0)
            continue
        n_both = n_drawn + n_predicted - n_either
        agreed = np.where(is_drawn[either], chances[place][either], 1 - chances[place][either])
        dice = 2 * n_both / (n_drawn + n_predicted)
        yield Score(row, label, n_drawn, n_predicted, dice, float(agreed.mean()))


def _opened(path: Path, dataset: Dataset) -> AbstractContextManager[_File]:
    """Open a file by its content: .npz files are zip archives.

    An HDF5 file is read row by row. A .npz file is read whole, so that its arrays may have no more
    bytes than predictions of all rows have.
    """
    if kind := irregular(path.stat()):
        raise _unusable(path, f"is {kind}, expected an HDF5 or .npz file. Give its name.")
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    if is_zip:
        allowed = dataset.masks.size * (len(dataset.structures) + 1) * _WIDEST + _NPY_HEADER_BYTES
        # From an open file: NumPy leaves one that it has opened itself open on some errors.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            names = [name for name in _NAMES if name in arrays.files]
            for entry in arrays.zip.infolist():
                name = entry.filename.removesuffix(".npy")
                if name in names and entry.file_size > allowed:
                    raise _unusable(
                        path,
                        f"{name} has {entry.file_size} bytes, expected {allowed} at most for the "
                        f"{len(dataset)} rows of {dataset.path}. Write predictions of this file.",
                    )
            others = dict.fromkeys(arrays.files)  # named in messages, never read
            return nullcontext(others | {name: arrays[name] for name in names})
    opened: AbstractContextManager[_File] = h5py.File(path, "r")
    return opened


def _listed(file: _File) -> str:
    return ", ".join(printable(repr(str(name))) for name in sorted(file)) or "nothing"


def _form(array: _Array) -> str:
    return f"{array.dtype} {tuple(array.shape)}"


def _unusable(path: Path, why: str) -> EtlError:
    return EtlError(f"Predictions not usable: {printable(str(path))}: {why}")
