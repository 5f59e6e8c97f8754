"""Names that annotations have → the structures of a file, as `--structures` says."""

import json
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, NamedTuple

from etl.errors import EtlError
from etl.findings import Finding, counted, shortened
from etl.labels import LabelScheme
from etl.options import StructureChoice, structure_choices
from etl.sources.files import read_named
from loader.format import MAX_CODE, Structure

_GLOB: Final = frozenset("*?[")
_MOST_QUOTED: Final = 500  # characters of a message's reason
_LISTED: Final = 20  # names in a message


class Chosen(NamedTuple):
    """The structures of a file, and which of them each name means."""

    scheme: LabelScheme
    codes: dict[str, int]  # by name, of the names that are taken


def choose(
    n_of_name: Mapping[str, int],
    wanted: tuple[str | StructureChoice, ...] | None,
    where: str,
) -> Chosen:
    """Return the structures that some names mean.

    Parameters
    ----------
    n_of_name : mapping of str to int
        How many annotations have each name.
    wanted : tuple, optional
        As `BuildOptions.structures`; None takes all names, in alphabetical order.
    where : str
        What has these names, for messages.

    Raises
    ------
    EtlError
        None of the names is wanted, or more structures than a label map has codes.
    """
    choices = list(_choices(n_of_name, wanted))
    if n_of_name and not any(choice.names for choice in choices):
        listed = ", ".join(f"{name} ({n})" for name, n in sorted(n_of_name.items())[:_LISTED])
        raise EtlError(
            f"Input not usable: {where}: no annotation has a name that `structures` gives; its "
            f"names are {listed}."
        )
    if len(choices) > MAX_CODE:
        raise EtlError(
            f"Input not usable: {where}: has {len(choices)} structures, expected at most "
            f"{MAX_CODE}. Choose some with `structures`."
        )
    structures = tuple(
        Structure(
            choice.name,
            choice.code or place,
            meaning=choice.name,
            stem=f"label{choice.code or place}",
            source_codes=choice.names or (choice.name,),
            inside_of=choice.inside_of,
        )
        for place, choice in enumerate(choices, 1)
    )
    codes: dict[str, int] = {}
    for structure, choice in zip(structures, choices, strict=True):
        for name in choice.names:
            codes.setdefault(name, structure.code)
    return Chosen(LabelScheme(structures or (_NOTHING,)), codes)


def wanted_of(names: Iterable[str], wanted: tuple[str | StructureChoice, ...] | None) -> set[str]:
    """Return those of some names that `BuildOptions.structures` takes."""
    n_of_name = dict.fromkeys(names, 1)
    return {name for choice in _choices(n_of_name, wanted) for name in choice.names}


def say_what_is_left(n_of_name: Mapping[str, int], chosen: Chosen, path: str) -> Iterator[Finding]:
    """Yield findings on names that are not taken, and on structures that no annotation has."""
    for name in sorted(n_of_name.keys() - chosen.codes.keys()):
        n = counted(n_of_name[name], "annotation")
        message = f"label {name!r} of {n} is not among --structures."
        yield Finding("structure-not-chosen", path, message)
    found = set(chosen.codes.values())
    if n_of_name:
        for structure in chosen.scheme:
            if structure.code not in found:
                message = f"no annotation has the label {structure.name!r} that --structures names."
                yield Finding("structure-missing", path, message, label=structure.code)


def read_choices(path: Path) -> tuple[StructureChoice, ...]:
    """Return what a mapping file says: structure → patterns, or a table of patterns and code.

    Parameters
    ----------
    path : Path
        TOML or JSON, by its suffix.

    Raises
    ------
    EtlError
        It cannot be read, or is not of that form.
    """
    import tomllib

    where = f"Structures not usable: {path}"
    try:
        text = read_named(path, where, expected="structures").decode("utf-8")
        content = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
        if not isinstance(content, dict):
            raise TypeError(f"expected names with patterns, found a {type(content).__name__}")
        return structure_choices(content)
    except OSError as error:
        why = (error.strerror or "input/output error").lower()
        raise EtlError(f"{where}: cannot be read ({why}).") from error
    except RecursionError as error:
        raise EtlError(f"{where}: its lists and tables are nested too deeply.") from error
    except (TypeError, ValueError) as error:  # of either parser, of text that is no UTF-8, of ours
        why = shortened(str(error).removeprefix("structures: ").rstrip("."), _MOST_QUOTED)
        raise EtlError(
            f'{where}: {why}. Write lines such as liver = ["liver*", "hepar"].'
        ) from error


class _Choice(NamedTuple):
    """One structure, and the names that mean it."""

    name: str
    code: int | None  # None: its place
    names: tuple[str, ...]
    inside_of: str = ""


_NOTHING: Final = Structure("none", 1, meaning="none", stem="label1", source_codes=("none",))


def _choices(
    n_of_name: Mapping[str, int], wanted: tuple[str | StructureChoice, ...] | None
) -> Iterator[_Choice]:
    """Yield the structures in paint order; each name belongs to the first that it fits."""
    left = sorted(n_of_name)
    if wanted is None:
        yield from (_Choice(name, None, (name,)) for name in left)
        return
    for one in wanted:
        is_plain = isinstance(one, str)
        patterns = (one,) if isinstance(one, str) else one.patterns
        names = tuple(name for name in left if _fits(name, patterns))
        left = [name for name in left if name not in names]
        if is_plain and _GLOB & set(one):
            # Every name that a pattern finds is a structure of its own.
            yield from (_Choice(name, None, (name,)) for name in names)
        elif isinstance(one, str):
            yield _Choice(one, None, names)
        else:
            yield _Choice(one.name, one.code, names, one.inside_of)


def _fits(name: str, patterns: tuple[str, ...]) -> bool:
    """Say whether a name is one of the patterns, whatever its case."""
    lower = name.lower()
    return any(name == one or fnmatchcase(lower, one.lower()) for one in patterns)
