"""Prove a built file: rows and columns against their digests, on demand against the sources."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from etl.verify import processes
from etl.verify.problem import Problem
from etl.verify.reading import begin_to_read, tasks
from etl.verify.rows import check_rows, forget, give_up
from etl.verify.tables import check_tables
from etl.workers.engine import Work, local_engine
from etl.workers.progress import bar
from loader import open_dataset


@dataclass(frozen=True, slots=True)
class Verification:
    """How many rows were checked, and everything that differs.

    Attributes
    ----------
    n_rows : int
    problems : list of Problem
    n_in_file : int
        How many of the problems are damage of the file itself: without them it is as it was built,
        and its sources are not.
    """

    n_rows: int
    problems: list[Problem]
    n_in_file: int

    def to_json(self) -> dict[str, object]:
        """Return the content as plain values."""
        return {
            "n_rows": self.n_rows,
            "n_differences": len(self.problems),
            "n_in_file": self.n_in_file,
            "differences": [problem._asdict() for problem in self.problems],
        }


def verify(
    path: str | Path,
    *,
    source: str | Path | None = None,
    rebuild: bool = False,
    workers: int = 1,
    progress: bool = False,
) -> Verification:
    """Check all that a built file holds.

    Parameters
    ----------
    path : path
        The file.
    source : path, optional
        The input that it was built from: also say which sources are missing, changed or new.
    rebuild : bool
        Also parse every source again, by other and plainer code, and compare pixel by pixel.
        Needs `source`; for sources whose annotations are text contours.
    workers : int
        Processes on this machine; for small files it takes no other than this one.
    progress : bool
        Show a progress bar on stderr where that is a terminal.

    Raises
    ------
    LoaderError
        The file cannot be opened at all: its metadata are damaged, or it is cut short.
    EtlError
        No such input.
    ValueError
        `rebuild` without `source`.
    """
    if rebuild and source is None:
        raise ValueError("rebuild: expected a source to build from, found none.")
    workers = processes.start(Path(path), workers, with_sources=source is not None)
    dataset = open_dataset(path)
    path = dataset.path
    begin_to_read(dataset)
    problems = list(check_tables(dataset))
    n_in_file = len(problems)
    runs: list[tuple[str, Callable[[tuple[int, int]], list[Problem]]]] = [
        ("rows", functools.partial(check_rows, path))
    ]
    if source is not None:
        # Not needed for anything else, and its parsers take longer to import than all the rest.
        from etl.verify.sources import changed_links, compare_rows, find_sources, rebuild_rows

        found = find_sources(dataset, Path(source))
        problems += changed_links(dataset, found)
        runs.append(("sources", functools.partial(compare_rows, path, found.root)))
        if rebuild:
            runs.append(("rebuild", functools.partial(rebuild_rows, path, found.root)))
    stretches = tasks(dataset)
    with local_engine(min(workers, len(stretches))) as engine:
        for what, run in runs:
            work: Work[tuple[int, int], list[Problem]] = Work(
                run=run, divide=_divided, give_up=give_up, names=lambda one: [f"row {one[0]}"]
            )
            with bar(what, "rows", len(dataset), shown=progress) as shown:
                for (first, stop), part in zip(stretches, engine.run(work, stretches), strict=True):
                    problems += part
                    n_in_file += len(part) if run is runs[0][1] else 0
                    shown(stop - first)
    forget()
    return Verification(len(dataset), problems, n_in_file)


def _divided(stretch: tuple[int, int]) -> list[tuple[int, int]]:
    return [(row, row + 1) for row in range(*stretch)]
