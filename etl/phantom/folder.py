"""A phantom's folder: written beside what is there, moved into its place when it is whole."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from etl.errors import EtlError

TRUTH_FILE: Final = "truth.csv"

_PARTIAL_FOLDER: Final = ".phantom-partial"


@contextmanager
def replacing(folder: Path, own: re.Pattern[str], header: bytes, *, force: bool) -> Iterator[Path]:
    """Yield an empty folder inside `folder`, whose content moves up once the block is through.

    It lies inside, so that it is on the same disk and `folder` may be the current one. The new
    phantom takes the old one's place only when it is whole.

    Parameters
    ----------
    own : pattern
        Paths of a phantom's files, relative to its folder.
    header : bytes
        What a phantom's `truth.csv` begins with, by which it is known.

    Raises
    ------
    EtlError
        `folder` holds something else.
    """
    is_new = not folder.exists()
    _require_replaceable(folder, own, header, force=force)
    partial = folder / _PARTIAL_FOLDER
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for old in sorted(folder.iterdir()):
            if old.is_dir() and old != partial:
                shutil.rmtree(old)
            elif old.is_file() and old.name != TRUTH_FILE:
                old.unlink()
        # Last the file by which the folder is known as a phantom, should the run be cut short.
        for new in sorted(partial.iterdir(), key=lambda path: (path.name == TRUTH_FILE, path)):
            new.replace(folder / new.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if is_new and not any(folder.iterdir()):
            folder.rmdir()


def _require_replaceable(folder: Path, own: re.Pattern[str], header: bytes, *, force: bool) -> None:
    """Refuse what is not a folder, not empty, or with `force` not a phantom and nothing else."""
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise EtlError(
            f"Phantom not written: {folder}: expected a folder, found something else. "
            "Give another folder."
        )
    if not any(folder.iterdir()):
        return
    if not force:
        raise EtlError(
            f"Phantom not written: {folder}: expected an empty folder or none, found files. "
            "Give another folder, or `force=True` where it holds an older phantom."
        )
    foreign = _foreign_file(folder, own, header)
    if foreign is not None:
        raise EtlError(
            f"Phantom not written: {folder}: expected only an older phantom's files, "
            f"found {foreign}. Give another folder, or move that away."
        )


def _foreign_file(folder: Path, own: re.Pattern[str], header: bytes) -> str | None:
    """Return something in `folder` that no phantom has, None where all is its.

    Without a table of truths to be known by, anything is foreign.
    """
    tables = (folder / TRUTH_FILE, folder / _PARTIAL_FOLDER / TRUTH_FILE)
    is_phantom = any(_starts_with(table, header) for table in tables)
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        for name in sorted(files + links):
            path = (Path(parent) / name).relative_to(folder).as_posix()
            if not is_phantom or not own.fullmatch(path.removeprefix(f"{_PARTIAL_FOLDER}/")):
                return path
    return None if is_phantom else "empty folders"


def _starts_with(path: Path, header: bytes) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(header)) == header
