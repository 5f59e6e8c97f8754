"""What the values of options are: text as typed → values, or a message that shows the form."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, TypeVar

import click

from etl.errors import LIMITS

_Value = TypeVar("_Value")

_MOST: Final = "most"
_UNITS: Final = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


class _Parsed(click.ParamType[_Value]):
    """Text → value by `_parse`, whose ValueError is the message; other values are as they are."""

    def convert(
        self, value: str | _Value, param: click.Parameter | None, ctx: click.Context | None
    ) -> _Value:
        """Return the value of a parameter."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)

    def _parse(self, text: str) -> _Value:
        raise NotImplementedError


class Size(_Parsed[tuple[int, int] | str]):
    """ROWSxCOLUMNS → (rows, columns); the word "most" as it is, where it may stand."""

    name = "ROWSxCOLUMNS"

    def __init__(self, *, most: bool = False) -> None:
        self._has_most = most

    def _parse(self, text: str) -> tuple[int, int] | str:
        if self._has_most and text == _MOST:
            return text
        parts = text.lower().split("x")
        if len(parts) != 2 or not all(p.isascii() and p.isdecimal() for p in parts):  # noqa: PLR2004
            raise ValueError(f"expected ROWSxCOLUMNS such as 256x256, found {text!r}")
        rows, columns = map(int, parts)
        if not (1 <= rows <= 65535 and 1 <= columns <= 65535):  # noqa: PLR2004  DICOM's limit
            raise ValueError(f"rows and columns are 1 to 65535, found {text!r}")
        return rows, columns


class Spacing(_Parsed[tuple[float, float]]):
    """MM or MMxMM → the distances between rows and between columns."""

    name = "MM[xMM]"

    def _parse(self, text: str) -> tuple[float, float]:
        try:
            steps = [float(part) for part in text.lower().split("x")]
        except ValueError:
            steps = []
        if len(steps) not in {1, 2} or not all(0 < step < math.inf for step in steps):
            raise ValueError(f"expected millimetres such as 1.25 or 1.25x1.5, found {text!r}")
        return steps[0], steps[-1]


class Split(_Parsed[tuple[float, ...]]):
    """TRAIN/VALIDATION/TEST in percent → three shares."""

    name = "TRAIN/VALIDATION/TEST"

    def _parse(self, text: str) -> tuple[float, ...]:
        from etl.options import shares

        try:
            return shares(text.split("/"))
        except ValueError as error:
            raise ValueError(
                f"expected three shares that sum to 100, such as 70/15/15, found {text!r}"
            ) from error


class Names(_Parsed[tuple[str, ...]]):
    """NAME,... → the names."""

    name = "NAME,..."

    def _parse(self, text: str) -> tuple[str, ...]:
        return tuple(name.strip() for name in text.split(","))


class Codes(_Parsed[tuple[str, ...]]):
    """CODE,... → finding codes in the order in which they are listed."""

    name = "CODE,..."

    def __init__(self, listed: Callable[[], Iterable[str]]) -> None:
        self._listed = listed

    def _parse(self, text: str) -> tuple[str, ...]:
        known = tuple(self._listed())
        given = [code.strip() for code in text.split(",")]
        if unknown := [code for code in given if code not in known]:
            raise ValueError(f"expected some of {', '.join(known)}, found {unknown[0]!r}")
        return tuple(code for code in known if code in given)


class Flags(_Parsed[tuple[str, ...]]):
    """CODE[:PATIENT],... → as given; the code must flag rows."""

    name = "CODE[:PATIENT],..."

    def _parse(self, text: str) -> tuple[str, ...]:
        from etl.findings import FLAG_CODES

        given = [entry.strip() for entry in text.split(",")]
        for entry in given:
            code, separator, patient = entry.partition(":")
            if code not in FLAG_CODES:
                raise ValueError(f"expected some of {', '.join(FLAG_CODES)}, found {code!r}")
            if separator and not patient:
                raise ValueError(f"expected a patient after {entry!r}")
        return tuple(given)


class Limit(_Parsed[tuple[str, int]]):
    """NAME=VALUE → a limit and its value; bytes may have a unit, as 4GiB."""

    name = "NAME=VALUE"

    def _parse(self, text: str) -> tuple[str, int]:
        from etl.options import MOST_OF_A_LIMIT

        limit, _, number = text.partition("=")
        if limit not in LIMITS:
            raise ValueError(f"expected some of {', '.join(LIMITS)}, found {limit!r}")
        units = _UNITS if limit.endswith("-bytes") else {}
        unit = next((one for one in units if number.endswith(one)), "")
        digits = number.removesuffix(unit)
        if not (digits.isascii() and digits.isdecimal() and len(digits) <= len(str(1 << 53))):
            known = f", with {', '.join(units)} or without" if units else ""
            raise ValueError(f"expected a whole number after {limit}={known}, found {number!r}")
        found = int(digits) * units.get(unit, 1)
        if not 1 <= found <= MOST_OF_A_LIMIT:
            raise ValueError(f"{limit} is 1 to {MOST_OF_A_LIMIT}, found {number!r}")
        return limit, found


class Structures(_Parsed[object]):
    """NAME,... or FILE → names and patterns, or what a mapping file says."""

    name = "NAME,...|FILE"

    def _parse(self, text: str) -> object:
        if Path(text).suffix.lower() in {".toml", ".json"}:
            from etl.sources.structures import read_choices

            return read_choices(Path(text))
        names = tuple(name.strip() for name in text.split(","))
        if not all(names) or len(set(names)) < len(names):
            raise ValueError(f"expected names, each once, found {text!r}")
        return names


class Steps(_Parsed[tuple[str, ...]]):
    """STEP,... → the steps of a contour transform."""

    name = "STEP,..."

    def _parse(self, text: str) -> tuple[str, ...]:
        from etl.options import transform_steps

        try:
            return transform_steps([step.strip() for step in text.split(",")])
        except ValueError as error:
            raise ValueError(str(error).removeprefix("contour_transform: ")) from error


class Count(_Parsed[int | None]):
    """N or all → a number from 1, or None."""

    name = "N|all"

    def _parse(self, text: str) -> int | None:
        return None if text == "all" else click.IntRange(min=1)(text)


def all_codes() -> Iterable[str]:
    """Return the codes of findings."""
    from etl.findings import CODES

    return CODES


def severities() -> Iterable[str]:
    """Return the severities, the worst first."""
    from etl.findings import SEVERITY_ORDER

    return SEVERITY_ORDER
