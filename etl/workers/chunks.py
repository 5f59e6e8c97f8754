"""How work is cut into tasks."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, TypeVar

from etl.options import BuildOptions

MAX_PAIRS: Final = 32
MAX_BYTES: Final = 16 << 20  # of images that one worker holds
MAX_KEPT: Final = 4096  # rows that are taken over at once, with their contours in memory
_PAGE_BYTES: Final = 4096

_Item = TypeVar("_Item")
_Part = TypeVar("_Part")


def chunk_length(options: BuildOptions) -> int:
    """Return how many pairs one task has: whole pages of images and masks, where that can be.

    Then no two workers write to one page of the file, which is slow on network file systems.
    """
    n_pixels = options.rows * options.columns
    most = max(1, min(MAX_PAIRS, MAX_BYTES // (4 * n_pixels)))
    whole = _PAGE_BYTES // math.gcd(_PAGE_BYTES, n_pixels)
    return most - most % whole if whole <= most else most


def chunks(items: Sequence[_Item], options: BuildOptions) -> Iterator[Sequence[_Item]]:
    """Yield the items of one task after the other."""
    length = chunk_length(options)
    for first in range(0, len(items), length):
        yield items[first : first + length]


def n_chunks(n_items: int, options: BuildOptions) -> int:
    """Return the number of tasks that a number of items makes."""
    return -(-n_items // chunk_length(options))


def runs(flags: Iterable[bool]) -> Iterator[tuple[bool, int, int]]:
    """Yield (flag, first, stop) of each run of equal flags."""
    first = 0
    for flag, members in itertools.groupby(flags):
        stop = first + sum(1 for _ in members)
        yield flag, first, stop
        first = stop


def interleaved(
    parts: Iterable[_Part],
    length: Callable[[_Part], int],
    is_kept: Iterable[bool],
    kept: Callable[[int, int, int], _Part],
) -> Iterator[_Part]:
    """Yield the parts of what is worked on, and between them those of what is kept, in order.

    Parameters
    ----------
    parts : iterable
        In order, each of items of one run.
    length : callable
        Part → the number of its items.
    is_kept : iterable of bool
        By item.
    kept : callable
        (first, stop, place) → the part of up to `MAX_KEPT` items that follow each other: counted
        among the kept ones, and the place of the first among all.
    """
    worked = iter(parts)
    n_kept = 0
    for flag, first, stop in runs(is_kept):
        if flag:
            for place in range(first, stop, MAX_KEPT):
                n_items = min(stop - place, MAX_KEPT)
                yield kept(n_kept, n_kept + n_items, place)
                n_kept += n_items
            continue
        n_left = stop - first
        while n_left:  # a task whose worker died gives several parts
            part = next(worked)
            n_left -= length(part)
            yield part
