"""What the values of options are: text as typed → values, or a message that shows the form."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import click

from etl.errors import LIMITS

_MOST: Final = "most"
_UNITS: Final = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


class Size(click.ParamType[tuple[int, int] | str]):
    """ROWSxCOLUMNS → (rows, columns); the word "most" as it is, where it may stand."""

    name = "ROWSxCOLUMNS"

    def __init__(self, *, most: bool = False) -> None:
        self._has_most = most

    def convert(
        self, value: str | tuple[int, int], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int] | str:
        if isinstance(value, tuple) or (self._has_most and value == _MOST):
            return value
        parts = value.lower().split("x")
        if len(parts) != 2 or not all(p.isascii() and p.isdecimal() for p in parts):  # noqa: PLR2004
            self.fail(f"expected ROWSxCOLUMNS such as 256x256, found {value!r}", param, ctx)
        rows, columns = map(int, parts)
        if not (1 <= rows <= 65535 and 1 <= columns <= 65535):  # noqa: PLR2004  DICOM's limit
            self.fail(f"rows and columns are 1 to 65535, found {value!r}", param, ctx)
        return rows, columns


class Spacing(click.ParamType[tuple[float, float]]):
    """MM or MMxMM → the distances between rows and between columns."""

    name = "MM[xMM]"

    def convert(
        self,
        value: str | tuple[float, float],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[float, float]:
        if isinstance(value, tuple):
            return value
        try:
            steps = [float(part) for part in value.lower().split("x")]
        except ValueError:
            steps = []
        if len(steps) not in {1, 2} or not all(0 < step < math.inf for step in steps):
            self.fail(f"expected millimetres such as 1.25 or 1.25x1.5, found {value!r}", param, ctx)
        return steps[0], steps[-1]


class Split(click.ParamType[tuple[float, ...]]):
    """TRAIN/VALIDATION/TEST in percent → three shares."""

    name = "TRAIN/VALIDATION/TEST"

    def convert(
        self,
        value: str | tuple[float, ...],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        from etl.options import shares

        try:
            return shares(value.split("/"))
        except ValueError:
            self.fail(
                f"expected three shares that sum to 100, such as 70/15/15, found {value!r}",
                param,
                ctx,
            )


class Names(click.ParamType[tuple[str, ...]]):
    """NAME,... → the names."""

    name = "NAME,..."

    def convert(
        self,
        value: str | tuple[str, ...],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[str, ...]:
        del param, ctx
        return value if isinstance(value, tuple) else tuple(n.strip() for n in value.split(","))


class Codes(click.ParamType[tuple[str, ...]]):
    """CODE,... → finding codes in the order in which they are listed."""

    name = "CODE,..."

    def __init__(self, listed: Callable[[], Iterable[str]]) -> None:
        self._listed = listed

    def convert(
        self,
        value: str | tuple[str, ...],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        known = tuple(self._listed())
        given = [code.strip() for code in value.split(",")]
        if unknown := [code for code in given if code not in known]:
            self.fail(f"expected some of {', '.join(known)}, found {unknown[0]!r}", param, ctx)
        return tuple(code for code in known if code in given)


class Flags(click.ParamType[tuple[str, ...]]):
    """CODE[:PATIENT],... → as given; the code must flag rows."""

    name = "CODE[:PATIENT],..."

    def convert(
        self,
        value: str | tuple[str, ...],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[str, ...]:
        from etl.findings import FLAG_CODES

        if isinstance(value, tuple):
            return value
        given = [entry.strip() for entry in value.split(",")]
        for entry in given:
            code, separator, patient = entry.partition(":")
            if code not in FLAG_CODES:
                known = ", ".join(FLAG_CODES)
                self.fail(f"expected some of {known}, found {code!r}", param, ctx)
            if separator and not patient:
                self.fail(f"expected a patient after {entry!r}", param, ctx)
        return tuple(given)


class Limit(click.ParamType[tuple[str, int]]):
    """NAME=VALUE → a limit and its value; bytes may have a unit, as 4GiB."""

    name = "NAME=VALUE"

    def convert(
        self,
        value: str | tuple[str, int],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[str, int]:
        from etl.options import MOST_OF_A_LIMIT

        if isinstance(value, tuple):
            return value
        limit, _, number = value.partition("=")
        if limit not in LIMITS:
            self.fail(f"expected some of {', '.join(LIMITS)}, found {limit!r}", param, ctx)
        units = _UNITS if limit.endswith("-bytes") else {}
        unit = next((one for one in units if number.endswith(one)), "")
        digits = number.removesuffix(unit)
        if not (digits.isascii() and digits.isdecimal() and len(digits) <= len(str(1 << 53))):
            known = f", with {', '.join(units)} or without" if units else ""
            self.fail(
                f"expected a whole number after {limit}={known}, found {number!r}", param, ctx
            )
        found = int(digits) * units.get(unit, 1)
        if not 1 <= found <= MOST_OF_A_LIMIT:
            self.fail(f"{limit} is 1 to {MOST_OF_A_LIMIT}, found {number!r}", param, ctx)
        return limit, found


class Structures(click.ParamType[object]):
    """NAME,... or FILE → names and patterns, or what a mapping file says."""

    name = "NAME,...|FILE"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> object:
        if not isinstance(value, str):
            return value
        if Path(value).suffix.lower() in {".toml", ".json"}:
            from etl.sources.structures import read_choices

            return read_choices(Path(value))
        names = tuple(name.strip() for name in value.split(","))
        if not all(names) or len(set(names)) < len(names):
            self.fail(f"expected names, each once, found {value!r}", param, ctx)
        return names


class Steps(click.ParamType[tuple[str, ...]]):
    """STEP,... → the steps of a contour transform."""

    name = "STEP,..."

    def convert(
        self,
        value: str | tuple[str, ...],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        from etl.options import transform_steps

        try:
            return transform_steps([step.strip() for step in value.split(",")])
        except ValueError as error:
            self.fail(str(error).removeprefix("contour_transform: "), param, ctx)


class Count(click.ParamType[int | None]):
    """N or all → a number from 1, or None."""

    name = "N|all"

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | None:
        return None if value == "all" else click.IntRange(min=1)(value, param, ctx)


def all_codes() -> Iterable[str]:
    """Return the codes of findings."""
    from etl.findings import CODES

    return CODES


def severities() -> Iterable[str]:
    """Return the severities, the worst first."""
    from etl.findings import SEVERITY_ORDER

    return SEVERITY_ORDER
