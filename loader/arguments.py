"""Checks of arguments that can never be right, whatever the file holds."""

from typing import Final, TypeVar

import numpy as np

_Choice = TypeVar("_Choice", bound=str)

_MAX_SIDE: Final = 2**31


def choice(name: str, value: _Choice, choices: tuple[_Choice, ...]) -> _Choice:
    """Return the one of the choices that a string equals, as a plain string."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, found {value!r}.")
    return choices[choices.index(value)]


def check_bool(name: str, value: bool) -> None:
    """Refuse what is not True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, found {value!r}.")


def plain(value: object) -> object:
    """Return a number or text that NumPy or a framework holds without axes as Python has it.

    A checkpoint may have made NumPy's integers, 0-d arrays or 0-d tensors of the numbers in a
    state. Anything else is returned as it is.
    """
    item = getattr(value, "item", None)
    return item() if callable(item) and getattr(value, "ndim", None) == 0 else value


def whole(name: str, value: int, lowest: int, stop: int | None = None) -> int:
    """Return an integer argument as a plain int, checked against lowest <= value < stop."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}: expected an integer, found {value!r}.")
    number = int(value)
    if number < lowest or (stop is not None and number >= stop):
        bounds = f"at least {lowest}" if stop is None else f"from {lowest} to {stop - 1}"
        raise ValueError(f"{name}: expected an integer {bounds}, found {number}.")
    return number


def pair(name: str, value: tuple[int, int]) -> tuple[int, int]:
    """Return (rows, columns) as plain integers of at least 1."""
    if not isinstance(value, tuple | list) or len(value) != len(("rows", "columns")):
        raise TypeError(f"{name}: expected (rows, columns), found {value!r}.")
    rows, columns = (whole(name, number, 1, _MAX_SIDE) for number in value)
    return rows, columns
