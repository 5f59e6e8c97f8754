"""Which sources are as they were: by their stamps, else by the digests that OUT has of them."""

import functools
import os
import stat
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

import xxhash

from etl.errors import SourceError
from etl.model import Link
from etl.sources.files import open_source, read_all
from etl.workers.engine import Engine, Work

# A file system's clock may tick as rarely as this: a file that was changed twice within a tick has
# one stamp for both contents.
SETTLED_NS: Final = 2_000_000_000

_FILES_PER_TASK: Final = 64


class Stamp(NamedTuple):
    """What changes when a file does."""

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


Stamps: TypeAlias = Mapping[str, Stamp]


def paths_of(link: Link) -> tuple[str, ...]:
    """Return the files that a link's row is made of."""
    return link.frame.path, *(annotation.path for annotation in link.annotations)


def take_stamps(root: Path, links: Iterable[Link]) -> dict[str, Stamp]:
    """Return the stamps of the links' files, before they are read.

    Without files that are no plain ones, or that changed so lately that a stamp cannot tell the
    next change; digests decide on these.
    """
    now, folder = time.time_ns(), os.fspath(root)
    stamps: dict[str, Stamp] = {}
    for path in dict.fromkeys(path for link in links for path in paths_of(link)):
        try:
            found = os.lstat(os.path.join(folder, path))
        except (OSError, ValueError):  # it becomes a finding when it is opened
            continue
        stamp = Stamp(found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        if stat.S_ISREG(found.st_mode) and max(stamp[2:]) < now - SETTLED_NS:
            stamps[path] = stamp
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
    work: Work[Sequence[str], list[str]] = Work(
        run=functools.partial(digests, root),
        divide=lambda paths: [[path] for path in paths],
        give_up=lambda paths, _why: [""] * len(paths),
        names=list,
    )
    tasks = (
        doubtful[first : first + _FILES_PER_TASK]
        for first in range(0, len(doubtful), _FILES_PER_TASK)
    )
    found = [digest for part in engine.run(work, tasks) for digest in part]
    return same | {
        path for path, digest in zip(doubtful, found, strict=True) if digest == expected[path]
    }


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
