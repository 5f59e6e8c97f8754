"""Which rows of a dataset take part, which patients they show, and how often each is drawn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, Protocol, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from loader.columns import Column, Columns
from loader.dataset import Dataset
from loader.errors import LoaderError
from loader.format import SPLITS
from loader.sampler import Indices, Table

Split: TypeAlias = Literal["train", "validation", "test"]
FoldRole: TypeAlias = Literal["train", "validation"]
Balance: TypeAlias = Literal["patient", "label"]
Flags: TypeAlias = npt.NDArray[np.bool_]
Where: TypeAlias = Flags | Callable[[Columns], Flags]
Numbers: TypeAlias = npt.NDArray[np.number] | Sequence[float]
Weights: TypeAlias = Numbers | Callable[[Columns], Numbers]

_Rows: TypeAlias = npt.NDArray[np.uint32] | npt.NDArray[np.uint64]
_Codes: TypeAlias = npt.NDArray[np.uint32]

_UINT32_ROWS: Final = 2**32
_DIGEST_BYTES: Final = 16


class Criteria(NamedTuple):
    """The options that choose rows by what the file says about them; see `Batches`."""

    split: Split | None = None
    fold: int | None = None
    fold_role: FoldRole = "train"


class HasRows(Protocol):
    """`Batches` and the data sets of `loader.torch`: rows of a file."""

    @property
    def dataset(self) -> Dataset: ...  # noqa: D102

    @property
    def rows(self) -> Indices: ...  # noqa: D102


@dataclass(frozen=True, eq=False)
class Selection:
    """The rows that take part.

    Attributes
    ----------
    rows : uint32 array, shape (n_samples,), optional
        Ascending; uint64 in a file of more than 2**32 rows. None means all rows.
    n_samples : int
        How many there are.
    """

    rows: _Rows | None
    n_samples: int

    @property
    def digest(self) -> str | None:
        """Digest of the rows, hexadecimal; None for all rows."""
        return None if self.rows is None else digest(self.rows)

    def take(self, samples: Indices) -> Indices:
        """Return the rows of the file that stand at some places of the selection."""
        return samples if self.rows is None else self.rows[samples].astype(np.int64)

    def of(self, column: Column) -> Column:
        """Return the selected values of a manifest column."""
        return column if self.rows is None else column[self.rows]

    def chosen(self, n_rows: int) -> Indices:
        """Return the rows of the file that are selected, ascending."""
        return np.arange(n_rows) if self.rows is None else self.rows.astype(np.int64)

    def flags(self, n_rows: int) -> Flags:
        """Return which rows of the file are selected."""
        flags = np.zeros(n_rows, np.bool_)
        flags[slice(None) if self.rows is None else self.rows] = True
        return flags


def digest(values: npt.NDArray[np.generic]) -> str:
    """Return a digest of an array's bytes, hexadecimal."""
    import hashlib  # loads OpenSSL, which opening a whole file can do without

    content = np.ascontiguousarray(values).view(np.uint8).data
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).hexdigest()


def select(dataset: Dataset, criteria: Criteria, where: Where | None = None) -> Selection:
    """Return the rows that meet all criteria.

    Raises
    ------
    TypeError
        `where` does not give booleans.
    LoaderError
        The file lacks the split or fold, `where` does not fit the file, or no row is left.
    """
    if criteria == Criteria(fold_role=criteria.fold_role) and where is None:
        return Selection(None, len(dataset))
    is_chosen = np.ones(len(dataset), np.bool_)
    if criteria.split is not None:
        is_chosen &= _codes(dataset, "split") == SPLITS.index(criteria.split)
    if criteria.fold is not None:
        is_chosen &= _is_in_role(dataset, criteria.fold, criteria.fold_role)
    if where is not None:
        is_chosen &= _flags_of(dataset, where)
    if not is_chosen.any():
        raise _nothing_selected(dataset, criteria, where)
    rows = np.flatnonzero(is_chosen)
    is_small = len(dataset) <= _UINT32_ROWS
    return Selection(rows.astype(np.uint32) if is_small else rows.astype(np.uint64), len(rows))


def check_patients(dataset: Dataset, criteria: Criteria, selection: Selection) -> None:
    """Refuse a training selection that shares a patient with its validation rows, and the reverse.

    The validation rows of split "train" are those of "validation" and "test"; the training rows of
    these two are those of "train". The validation rows of a fold's training rows are the fold.
    """
    if criteria.split is None and criteria.fold is None:
        return
    patients = _patient_codes(dataset)
    selected = np.zeros(len(dataset), np.bool_)
    selected[patients[selection.rows]] = True
    opposite = np.zeros(len(dataset), np.bool_)
    opposite[patients[_counterpart(dataset, criteria)]] = True
    _check_none_shared(dataset, int(np.sum(selected & opposite)), "the rows of the other role")


def rows_of(apart_from: HasRows) -> tuple[Dataset, Indices]:
    """Return the file and rows of what a selection is to be apart from."""
    dataset = getattr(apart_from, "dataset", None)
    if not isinstance(dataset, Dataset):
        raise TypeError(
            "apart_from: expected Batches or a data set of loader.torch, those of the other role, "
            f"found {type(apart_from).__name__}."
        )
    return dataset, apart_from.rows


def check_apart(dataset: Dataset, selection: Selection, other: Dataset, rows: Indices) -> None:
    """Refuse a selection that shares a patient with rows of this file or another."""
    own = selection.chosen(len(dataset))
    shared = np.intersect1d(_patients(dataset, own), _patients(other, rows))
    _check_none_shared(dataset, len(shared), "the rows of apart_from")


def weigh(
    dataset: Dataset, selection: Selection, weights: Weights | None, balance: Balance | None
) -> Table | None:
    """Return the table that weighted draws look samples up in, or None for draws without weights.

    Returns
    -------
    float64 array, shape (selection.n_samples,)
        Cumulative share of the weights, the last one 1.

    Raises
    ------
    TypeError
        The weights are not numbers.
    LoaderError
        They do not fit the file; or one is negative, NaN or infinite; or all are zero.
    """
    if balance == "patient":
        return _cumulative(_rarity(selection.of(_patient_codes(dataset))))
    if balance == "label":
        names = [f"n_pixels_{structure.code}" for structure in dataset.structures]
        present = [selection.of(dataset.manifest[name]).astype(np.bool_) for name in names]
        # One opaque value a row, with a bit for each label: it sorts and compares.
        bits = np.ascontiguousarray(np.packbits(np.stack(present), axis=0).T)
        return _cumulative(_rarity(bits.view(f"V{bits.shape[1]}").ravel()))
    if weights is None:
        return None
    values = weights(dataset.manifest.copy()) if callable(weights) else weights
    return _cumulative(_checked_weights(dataset, selection, values).astype(np.float64))


def _codes(dataset: Dataset, column: Literal["split", "fold"]) -> npt.NDArray[np.int16]:
    codes = dataset.manifest[column].astype(np.int16)
    if not np.any(codes >= 0):
        raise LoaderError(
            f"Rows not selected: {dataset.path}: it has no {column}s. "
            f"Build it again with --{column}{'s' if column == 'fold' else ''}."
        )
    return codes


def _is_in_role(dataset: Dataset, fold: int, fold_role: FoldRole) -> Flags:
    folds = _codes(dataset, "fold")
    n_folds = np.max(folds) + 1
    if fold >= n_folds:
        raise LoaderError(
            f"Rows not selected: {dataset.path}: no such fold (expected 0 to {n_folds - 1}, found "
            f"{fold}). Choose one of these, or build it again with more --folds."
        )
    is_in_fold: Flags = folds == fold
    return is_in_fold if fold_role == "validation" else (folds >= 0) & ~is_in_fold


def _flags_of(dataset: Dataset, where: Where) -> Flags:
    # A copy of the manifest, so that text which the function decodes does not stay in memory.
    given = where(dataset.manifest.copy()) if callable(where) else where
    _check_order("where", given)
    flags = np.ma.filled(given, fill_value=False)  # what a mask hides is not chosen
    if flags.dtype != np.bool_:
        found = type(given).__name__ if flags.dtype == object else flags.dtype
        raise TypeError(
            "where: expected an array of booleans, one for each row of the file, or a function of "
            f"the manifest that returns one, found {found}. Of row numbers, make it with "
            "np.isin(np.arange(len(dataset)), row_numbers)."
        )
    _check_length(dataset, "Rows not selected", "where", flags)
    return flags


def _check_order(name: str, values: object) -> None:
    """Refuse a column of pandas that was sorted: values are taken in the order of the file."""
    index = getattr(values, "index", None)
    if index is None or callable(index):  # as that of a list is
        return
    rows, in_order = np.asarray(index), np.arange(len(index))
    if np.array_equal(rows, in_order) or rows.dtype.kind not in "iu":
        return
    if np.array_equal(np.sort(rows), in_order):
        raise TypeError(
            f"{name}: expected the order of the file, found a column in another one. Give it with "
            ".sort_index()."
        )


def _check_length(dataset: Dataset, what: str, name: str, values: npt.NDArray[np.generic]) -> None:
    if values.shape != (len(dataset),):
        raise LoaderError(
            f"{what}: {dataset.path}: {name} does not fit the file (expected the shape "
            f"({len(dataset)},), found {values.shape}). Give one value for each row of the file."
        )


def _nothing_selected(dataset: Dataset, criteria: Criteria, where: Where | None) -> LoaderError:
    splits, folds = (dataset.manifest[name].astype(np.int16) for name in ("split", "fold"))
    sizes = [f"{name} {np.sum(splits == code)}" for code, name in enumerate(SPLITS)]
    wanted = [] if criteria.split is None else [f"split={criteria.split!r}"]
    if criteria.fold is not None:
        wanted.append(f"fold={criteria.fold!r}, fold_role={criteria.fold_role!r}")
    if where is not None:
        wanted.append("True in where")
    return LoaderError(
        f"Rows not selected: {dataset.path}: no row has {' and '.join(wanted)} "
        f"(found rows: {', '.join(sizes)}; found {np.max(folds, initial=-1) + 1} folds). "
        "Choose another selection."
    )


def _counterpart(dataset: Dataset, criteria: Criteria) -> Flags:
    """Return the rows that the selected ones must not share a patient with."""
    opposite = np.zeros(len(dataset), np.bool_)
    if criteria.split is not None:
        splits = _codes(dataset, "split")
        is_train = splits == SPLITS.index("train")
        opposite |= (splits >= 0) & ~is_train if criteria.split == "train" else is_train
    if criteria.fold is not None:
        role: FoldRole = "train" if criteria.fold_role == "validation" else "validation"
        opposite |= _is_in_role(dataset, criteria.fold, role)
    return opposite


def _check_none_shared(dataset: Dataset, n_shared: int, others: str) -> None:
    if n_shared:
        raise LoaderError(
            f"Rows not selected: {dataset.path}: training and validation would share patients "
            f"(expected none, found {n_shared} of this selection among {others}). Choose rows by "
            "patient, or allow it with allow_shared_patients=True."
        )


def _patient_codes(dataset: Dataset) -> _Codes:
    """Return a number for the patient of each row; equal where the patient is."""
    ids = dataset.manifest.stored["patient_id"]
    # Rows are ordered by patient, so that only the first of each run needs sorting.
    starts = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]]))
    _, codes = np.unique(ids[starts], return_inverse=True)
    return np.repeat(codes.astype(np.uint32), np.diff(starts, append=len(ids)))


def _patients(dataset: Dataset, rows: Indices) -> npt.NDArray[np.bytes_]:
    _, first = np.unique(_patient_codes(dataset)[rows], return_index=True)
    ids = dataset.manifest.stored["patient_id"][rows[first]]
    return cast("npt.NDArray[np.bytes_]", ids)


def _rarity(groups: npt.NDArray[np.generic]) -> Table:
    """Return weights that draw each group equally often, and each sample of a group."""
    _, codes, counts = np.unique(groups, return_inverse=True, return_counts=True)
    weights: Table = 1.0 / counts[codes]
    return weights


def _checked_weights(
    dataset: Dataset, selection: Selection, values: Numbers
) -> npt.NDArray[np.number]:
    """Return the weights of the selected rows; what the others have does not matter."""
    _check_order("weights", values)
    weights = np.ma.filled(values, 0)  # what a mask hides is never drawn
    if weights.dtype.kind == "f":
        with np.errstate(over="ignore"):  # beyond its range: infinite
            weights = weights.astype(np.float64, copy=False)
    if weights.dtype.kind not in "iuf":
        raise TypeError(
            "weights: expected an array of numbers, or a function of the manifest that returns "
            f"one, found {weights.dtype}."
        )
    _check_length(dataset, "Weights not usable", "weights", weights)
    weights = selection.of(weights)
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(bad):
        raise LoaderError(
            f"Weights not usable: {dataset.path}: row {selection.take(bad)[0]} and {len(bad) - 1} "
            f"others (expected numbers from 0 up, found {weights[bad[0]]}). Give 0 to those "
            "that are never drawn."
        )
    return weights


def _cumulative(weights: Table) -> Table:
    largest = weights.max()
    if largest == 0:
        raise LoaderError(
            "Weights not usable: all of the selected rows have weight 0 (expected at least one "
            "above 0). Give a weight to the rows that are to be drawn, or no weights at all."
        )
    table: Table = np.cumsum(weights / largest)  # one after the other: the same on every machine
    table /= table[-1]
    return table
