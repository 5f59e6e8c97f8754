"""How work is cut into tasks."""

import math
from collections.abc import Iterator, Sequence
from typing import Final, TypeVar

from etl.options import BuildOptions

MAX_PAIRS: Final = 32
MAX_BYTES: Final = 16 << 20  # of images that one worker holds
_PAGE_BYTES: Final = 4096

_Item = TypeVar("_Item")


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
