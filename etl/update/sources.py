"""Which sources are as they were: by their stamps, else by the digests that OUT has of them."""

import functools
import os
import stat
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import xxhash

from etl.errors import ReuseError, SourceError
from etl.model import FrameRef, Identity, Link
from etl.sources.dicom_file import read_header
from etl.sources.files import open_source, read_all
from etl.workers.engine import Engine, Work
from loader.format import NO_ROW

# A file system's clock may tick as rarely as this: a file that was changed twice within a tick has
# one stamp for both contents.
SETTLED_NS: Final = 2_000_000_000

_FILES_PER_TASK: Final = 64

_File = TypeVar("_File", str, FrameRef)
_Found = TypeVar("_Found")


class Stamp(NamedTuple):
    """What changes when a file does."""

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


STAMP: Final = np.dtype(
    [("inode", "<u8"), ("size", "<i8"), ("mtime_ns", "<i8"), ("ctime_ns", "<i8")]
)

Stamps: TypeAlias = Mapping[str, Stamp]


def paths_of(link: Link) -> tuple[str, ...]:
    """Return the files that a link's row is made of."""
    return link.frame.path, *(annotation.path for annotation in link.annotations)


def take_stamps(root: Path, links: Iterable[Link]) -> dict[str, Stamp]:
    """Return the stamps of the links' files, before they are read.

    Without files that are no plain ones, or that changed so lately that a stamp cannot tell the
    next change; digests decide on these.
    """
    settled, folder = time.time_ns() - SETTLED_NS, os.fspath(root)
    stamps: dict[str, Stamp] = {}
    for path in dict.fromkeys(path for link in links for path in paths_of(link)):
        try:
            found = os.lstat(f"{folder}/{path}")
        except (OSError, ValueError):  # it becomes a finding when it is opened
            continue
        mtime, ctime = found.st_mtime_ns, found.st_ctime_ns
        if mtime < settled and ctime < settled and stat.S_ISREG(found.st_mode):
            stamps[path] = Stamp(found.st_ino, found.st_size, mtime, ctime)
    return stamps


def unchanged(
    engine: Engine, root: Path, expected: Mapping[str, str], before: Stamps, now: Stamps
) -> set[str]:
    """Return the files that are as they were.

    Parameters
    ----------
    expected : mapping
        path → XXH3-128 that OUT has of the file.
    before, now : mapping
        path → stamp; a file that either lacks is read, and its digest decides.
    """
    same = {path for path in expected if path in now and now[path] == before.get(path)}
    doubtful = sorted(expected.keys() - same)
    found = _of_files(engine, functools.partial(digests, root), doubtful, "")
    return same | {
        path for path, digest in zip(doubtful, found, strict=True) if digest == expected[path]
    }


def identities(
    engine: Engine,
    root: Path,
    frames: Sequence[FrameRef],
    expected: Sequence[str],
    groups: npt.NDArray[np.int64],
) -> npt.NDArray[np.uint64]:
    """Return the `Identity` of rows by the header of one row of each group.

    Parameters
    ----------
    frames : sequence of FrameRef
        One for each row.
    expected : sequence of str
        The XXH3-128 that OUT has of each frame's file.
    groups : int64 array, shape (n, 2)
        Of PatientID and StudyInstanceUID: rows with the same number have the same value; -1: none.

    Raises
    ------
    ReuseError
        A file whose header was read has changed; a moment ago it was as it had been.
    """
    known = np.zeros(groups.shape, np.uint64)
    chosen = sorted({int(n) for mine in groups.T for n in np.unique(mine, return_index=True)[1]})
    found = _of_files(engine, functools.partial(_whose, root), [frames[n] for n in chosen], None)
    # Else a header that was written meanwhile would give its identity to all rows of the group.
    files = {frames[n].path: expected[n] for n in chosen}
    same = unchanged(engine, root, files, {}, {})
    for column, mine in enumerate(groups.T):
        of_group = {NO_ROW: 0}
        for n, identity in zip(chosen, found, strict=True):
            if identity is None or frames[n].path not in same:
                raise ReuseError(f"{frames[n].path} changed meanwhile")
            of_group.setdefault(int(mine[n]), identity[column])
        known[:, column] = [of_group[group] for group in mine.tolist()]
    return known


def _whose(root: Path, frames: Sequence[FrameRef]) -> list[Identity | None]:
    """Return whose some images are; None where a header cannot be read. Runs in workers."""
    found: list[Identity | None] = []
    for frame in frames:
        try:
            found.append(read_header(root, frame)[0].identity)
        except SourceError:
            found.append(None)
    return found


def _of_files(
    engine: Engine,
    run: Callable[[Sequence[_File]], list[_Found]],
    files: Sequence[_File],
    unknown: _Found,
) -> list[_Found]:
    """Return what a function finds of some files, in the workers."""
    work: Work[Sequence[_File], list[_Found]] = Work(
        run=run,
        divide=lambda some: [[one] for one in some],
        give_up=lambda some, _why: [unknown] * len(some),
        names=lambda some: [one if isinstance(one, str) else one.path for one in some],
    )
    tasks = (
        files[first : first + _FILES_PER_TASK] for first in range(0, len(files), _FILES_PER_TASK)
    )
    return [one for part in engine.run(work, tasks) for one in part]


def digests(root: Path, paths: Sequence[str]) -> list[str]:
    """Return the XXH3-128 of some files; empty where one cannot be read. Runs in workers."""
    code = "image-unreadable"  # nobody sees it: the file is parsed, which tells more
    found = []
    for path in paths:
        try:
            with open_source(root, path, code) as (descriptor, stamp):
                found.append(xxhash.xxh3_128_hexdigest(read_all(descriptor, stamp, code)))
        except SourceError:
            found.append("")
    return found
