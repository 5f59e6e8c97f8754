"""Progress bars on stderr, where that is a terminal, and in notebooks."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NoReturn

from tqdm import tqdm


@contextmanager
def bar(what: str, unit: str, total: int, *, shown: bool) -> Iterator[Callable[[int], object]]:
    """Yield a function that moves the bar on by a number of units."""
    kind, is_notebook = _kind()
    disable = not shown if is_notebook else None if shown else True
    with kind(desc=what, unit=f" {unit}", total=total, disable=disable) as one:
        yield one.update


def _kind() -> tuple[Callable[..., AbstractContextManager["tqdm[NoReturn]"]], bool]:
    """Return the kind of bar, and whether a notebook shows it, whose streams are no terminals."""
    if "ipykernel" not in sys.modules:
        return tqdm, False
    from tqdm.auto import tqdm as of_notebook  # takes half a second to import

    return of_notebook, True
