"""Checks of arguments that can never be right, whatever the file holds."""

import numpy as np


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a string that is not one of the choices."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, found {value!r}.")


def check_bool(name: str, value: bool) -> None:
    """Refuse what is not True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, found {value!r}.")


def whole(name: str, value: int, lowest: int, stop: int | None = None) -> int:
    """Return an integer argument as a plain int, checked against lowest <= value < stop."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}: expected an integer, found {value!r}.")
    number = int(value)
    if number < lowest or (stop is not None and number >= stop):
        bounds = f"at least {lowest}" if stop is None else f"from {lowest} to {stop - 1}"
        raise ValueError(f"{name}: expected an integer {bounds}, found {number}.")
    return number
