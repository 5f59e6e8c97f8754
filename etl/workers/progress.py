"""Progress bars on stderr, where that is a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def bar(what: str, unit: str, total: int, *, shown: bool) -> Iterator[Callable[[int], object]]:
    """Yield a function that moves the bar on by a number of units."""
    with tqdm(desc=what, unit=f" {unit}", total=total, disable=None if shown else True) as one:
        yield one.update
