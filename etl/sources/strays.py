"""Files and folders that a build does not read, as findings; nothing is lost silently."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, TypeAlias

from etl.findings import Finding
from etl.sources.names import is_litter

_NAMED: Final = 20  # of the findings of one code in one folder; those beyond are counted in one

Expect: TypeAlias = Callable[[str], str]  # a name → the path that was expected; may be empty


def strays(root: Path, folder: str, names: Iterable[str], expect: Expect) -> Iterator[Finding]:
    """Yield findings on the entries of a folder that are not read, in the order of their names.

    Parameters
    ----------
    names : iterable of str
        Sorted, of files and folders, without litter.
    expect : callable
        As `Home.expected`.
    """
    names = list(names)
    if not names:
        return
    subfolders = _subfolders(root, folder)
    named: dict[str, list[Finding]] = {"file-misnamed": [], "file-not-used": []}
    others: dict[str, list[str]] = {code: [] for code in named}
    for name in names:
        if name in subfolders:
            finding = _on_subfolder(root, folder, name, expect)
            if finding is None:
                continue
            code = finding.code
        else:
            expected = expect(name)
            code = "file-misnamed" if expected else "file-not-used"
            finding = None
        if len(named[code]) < _NAMED:
            named[code].append(finding or _on_file(f"{folder}/{name}", expected, root))
        else:
            others[code].append(name)
    for code, findings in named.items():
        yield from findings
        if rest := others[code]:
            message = (
                f"{len(rest)} more in this folder besides the {_NAMED} that are named, from "
                f"{rest[0]!r} to {rest[-1]!r}; not read."
            )
            yield Finding(code, folder, message)


def first_file(folder: Path) -> str:
    """Return the path of the first file in a folder or below it, relative to the folder."""
    for top, subfolders, files in os.walk(folder):
        subfolders[:] = sorted(one for one in subfolders if not is_litter(one))
        if wanted := [one for one in files if not is_litter(one)]:
            return os.path.relpath(os.path.join(top, min(wanted)), folder).replace(os.sep, "/")
    return ""


def find_near(folder: Path, names: Iterable[str]) -> list[str]:
    """Return which of some files stand up to two folders above a folder, or one below it."""
    where = os.path.normpath(folder)
    nearby = [os.path.normpath(os.path.join(where, *[".."] * n)) for n in (1, 2)]
    with contextlib.suppress(OSError):  # no such folder, or a file
        nearby += [os.path.normpath(os.path.join(where, one)) for one in sorted(os.listdir(where))]
    paths = (os.path.join(one, name) for one in nearby for name in names)
    return [path for path in paths if os.path.isfile(path)]


def _subfolders(root: Path, folder: str) -> set[str]:
    """Return the names of folders in a folder; listed anew, which asks for no status of files."""
    try:
        with os.scandir(root / folder) as entries:
            return {entry.name for entry in entries if entry.is_dir()}
    except OSError:
        return set()


def _on_file(path: str, expected: str, root: Path) -> Finding:
    if not expected:
        return Finding("file-not-used", path, "is no image or contour by its name; not read.")
    if os.path.exists(root / expected):
        message = f"not read: looks like a copy of {expected}. Keep the right one there."
    else:
        message = f"not read: expected {expected}. Rename or move it if it is that."
    return Finding("file-misnamed", path, message)


def _on_subfolder(root: Path, folder: str, name: str, expect: Expect) -> Finding | None:
    """Return a finding on all files in a folder that is not looked into; none where it is empty."""
    path = f"{folder}/{name}"
    n_files, example, expected, is_whole = 0, "", "", True

    def unread(_error: OSError) -> None:
        nonlocal is_whole
        is_whole = False

    for top, subfolders, files in os.walk(root / path, onerror=unread):
        subfolders[:] = sorted(one for one in subfolders if not is_litter(one))
        wanted = sorted(one for one in files if not is_litter(one))
        n_files += len(wanted)
        for one in () if expected else wanted:
            if not example or expect(one):
                example = os.path.relpath(os.path.join(top, one), root / path).replace(os.sep, "/")
                expected = expect(one)
            if expected:
                break
    if not n_files and is_whole:
        return None
    held = f"holds {n_files} file{'s' * (n_files != 1)}{f', such as {example}' * bool(example)}"
    message = f"the build does not look into this folder; it {held}."
    if not is_whole:
        message = f"{message[:-1]}, and a folder that cannot be listed."
    if not expected:
        return Finding("file-not-used", path, message)
    return Finding("file-misnamed", path, f"{message} Expected {expected}: move them there.")
