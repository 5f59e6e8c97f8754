"""What `--stratify` keeps alike in all parts of a split: one value of each patient."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from etl.errors import EtlError
from etl.findings import shortened
from etl.options import BuildOptions
from etl.sources.csv_table import read_csv, without_mark
from loader.format import NO_SPLIT, SPLITS, Structure, manifest_columns

_UNKNOWN: Final = ""  # of a patient without a value
_OF_SPLIT: Final = ("split", "fold", "flags")  # columns that are not known before it
_MOST_VALUES: Final = 8  # of a number; more are cut into quarters
_QUOTED: Final = 80  # characters of a cell in a message
_SHOWN: Final = 4

Strata = Mapping[str, str]  # patient_id → its stratum


def check_stratify(
    options: BuildOptions, structures: Iterable[Structure], more: Iterable[str] = ()
) -> None:
    """Require the column, before the work.

    Parameters
    ----------
    options : BuildOptions
    structures : iterable of Structure
        Those that the file will have.
    more : iterable of str
        Columns of the manifest that only this file has.

    Raises
    ------
    EtlError
        There is no such column, or the table contradicts itself.
    """
    if options.stratify is None:
        return
    if options.patients_csv is not None:
        read_patients(Path(options.patients_csv), options.stratify)
        return
    known = [name for name in (*manifest_columns(structures), *more) if name not in _OF_SPLIT]
    if options.stratify not in known:
        raise EtlError(
            f"Option not usable: `stratify`: expected a column of the manifest or, with "
            f"`patients_csv`, of that table, found {options.stratify!r}. The manifest has "
            f"{', '.join(known)}."
        )


def read_patients(path: Path, column: str) -> dict[str, str]:
    """Return patient_id → value of a table's column.

    Raises
    ------
    EtlError
        The table lacks a column, or gives a patient two values.
    """
    column = column.casefold()
    values: dict[str, str] = {}
    for line, row in read_csv(path, required=("patient_id", column)):
        patient_id, value = (without_mark(row.get(name, "")) for name in ("patient_id", column))
        if values.setdefault(patient_id, value) != value:
            shown = shortened(patient_id, _QUOTED)
            raise EtlError(
                f"Table not usable: {path}, line {line}: patient {shown!r} has two values of "
                f"{shortened(column, _QUOTED)}. Keep one line."
            )
    return values


def strata(options: BuildOptions, manifest: Mapping[str, npt.NDArray[np.generic]]) -> Strata | None:
    """Return the stratum of each patient; None where none are wanted.

    A patient's value is the mean of its rows for numbers, and the most frequent one for text.
    Numbers of which there are many are cut into quarters of the patients.
    """
    if options.stratify is None:
        return None
    patients = [bytes(value).decode() for value in manifest["patient_id"].tolist()]
    if options.patients_csv is not None:
        listed = read_patients(Path(options.patients_csv), options.stratify)
        values = {one: listed.get(one, _UNKNOWN) for one in patients}
    else:
        values = _of_rows(patients, manifest[options.stratify])
    return _quartered(values)


def notes_on_strata(
    options: BuildOptions,
    strata: Strata | None,
    n_samples: Mapping[str, int],
    sides: Mapping[str, tuple[int, int]],
) -> Iterator[str]:
    """Yield the share of each stratum in all parts of the split."""
    if strata is None:
        return
    if n_unknown := sum(strata[one] == _UNKNOWN for one in n_samples):
        yield f"patients without a value of {options.stratify}, one more group: {n_unknown}."
    n_rows: defaultdict[int, Counter[str]] = defaultdict(Counter)
    for patient_id, n in n_samples.items():
        side = sides[patient_id][0]
        n_rows[NO_SPLIT][strata[patient_id]] += n
        if side != NO_SPLIT:
            n_rows[side][strata[patient_id]] += n
    named = [(code, name) for code, name in enumerate(SPLITS) if code in n_rows]
    for stratum, _ in n_rows[NO_SPLIT].most_common(_SHOWN) if named else ():
        parts = [
            f"{n_rows[code][stratum] / n_rows[code].total():.1%} of {name}" for code, name in named
        ]
        share = n_rows[NO_SPLIT][stratum] / n_rows[NO_SPLIT].total()
        what = f"{options.stratify} {stratum or 'unknown'}"
        yield f"{what} is {share:.1%} of all rows: {', '.join(parts)}."


def _of_rows(patients: list[str], column: npt.NDArray[np.generic]) -> dict[str, str]:
    """Return the value of each patient."""
    rows: defaultdict[str, list[object]] = defaultdict(list)
    for patient_id, value in zip(patients, column.tolist(), strict=True):
        rows[patient_id].append(value)
    if column.dtype.kind == "S":
        texts = {one: Counter(map(bytes, mine)) for one, mine in rows.items()}  # type: ignore[arg-type]
        return {
            one: min(found, key=lambda text, found=found: (-found[text], text)).decode()  # type: ignore[misc]
            for one, found in texts.items()
        }
    means = {one: float(np.mean(np.array(mine, np.float64))) for one, mine in rows.items()}
    return {one: _UNKNOWN if math.isnan(mean) else repr(mean) for one, mean in means.items()}


def _quartered(values: Mapping[str, str]) -> dict[str, str]:
    """Return the values, or the quarters in which they lie where they are many numbers."""
    known = {one: value for one, value in values.items() if value != _UNKNOWN}
    numbers = {one: _number(value) for one, value in known.items()}
    if len(set(known.values())) <= _MOST_VALUES or any(map(math.isnan, numbers.values())):
        return dict(values)
    borders = np.quantile(list(numbers.values()), [0.25, 0.5, 0.75])
    quarters = {
        one: f"quarter {1 + int(np.searchsorted(borders, number))}"
        for one, number in numbers.items()
    }
    return {one: quarters.get(one, _UNKNOWN) for one in values}


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan
