"""Progress bars on stderr, where that is a terminal, and in notebooks."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from tqdm import tqdm


@contextmanager
def bar(what: str, unit: str, total: int, *, shown: bool) -> Iterator[Callable[[int], object]]:
    """Yield a function that moves the bar on by a number of units."""
    is_notebook = "ipykernel" in sys.modules  # its streams are no terminals
    if not shown or not (is_notebook or (sys.stderr is not None and sys.stderr.isatty())):
        yield lambda _: None
        return
    with _kind(is_notebook=is_notebook)(desc=what, unit=f" {unit}", total=total) as one:
        yield one.update


def _kind(*, is_notebook: bool) -> Callable[..., AbstractContextManager["tqdm[NoReturn]"]]:
    """Return the kind of bar; imported here, because that takes as long as a small build."""
    if not is_notebook:
        from tqdm import tqdm

        return tqdm
    from tqdm.auto import tqdm as of_notebook  # takes half a second

    return of_notebook
