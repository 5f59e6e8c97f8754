"""How many processes check a file, and their start while this one imports what it needs."""

from pathlib import Path
from typing import Final

from etl.workers import local_pool

_LEAST_BYTES: Final = 256 << 20  # that one process checks as soon as others have started


def start(path: Path, workers: int, *, with_sources: bool) -> int:
    """Return how many of `workers` are worth their start, and start the server of more than one.

    Parameters
    ----------
    path : Path
        The file to check.
    with_sources : bool
        Whether its sources are parsed too, which takes much longer.
    """
    try:
        n_bytes = path.stat().st_size
    except OSError:  # opening it tells why
        return 1
    n_workers = workers if with_sources or n_bytes >= _LEAST_BYTES else 1
    local_pool.start_early(n_workers, preloaded(with_sources=with_sources))
    return n_workers


def preloaded(*, with_sources: bool) -> str:
    """Return the module that all workers need; it is not imported here."""
    return f"{__package__}.{'sources' if with_sources else 'rows'}"
