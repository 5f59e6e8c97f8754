"""The stages of a build, in order: discover → examine → plan → render → judge → assemble.

The coordinator holds one line per pair: pixels go from the worker that made them straight into the
file.
"""

import contextlib
import functools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from etl import examine, render
from etl.assemble import BuildResult, assemble
from etl.dicom.pixels import image_dtype
from etl.errors import EtlError
from etl.findings import Finding
from etl.model import Link
from etl.options import BuildOptions, Kind
from etl.output import hdf5_file, split
from etl.output.row_writer import Plan
from etl.quality import alignment
from etl.review import gather, judge
from etl.sources.link_csv import discover
from etl.spool import Stock
from etl.workers.engine import Work, foreign_engine, local_engine

_CHUNK_PAIRS: Final = 32
_CHUNK_BYTES: Final = 16 << 20  # of images that one worker holds
_PAGE_BYTES: Final = 4096
_EXAMPLES: Final = 3


class RejectedError(EtlError):
    """No row can be written, or with `strict` none may; `findings` tell why."""

    def __init__(self, message: str, findings: list[Finding]) -> None:
        super().__init__(message, findings)
        self.findings = findings

    def __str__(self) -> str:
        """Return the message alone."""
        return str(self.args[0])


def build(
    data: str | Path,
    out: str | Path,
    options: BuildOptions | None = None,
    *,
    workers: int = 1,
    executor: Executor | None = None,
    force: bool = False,
    strict: bool = False,
    progress: bool = False,
) -> BuildResult:
    """Parse every linked DICOM and contour once and write one HDF5 file.

    Parameters
    ----------
    data : path
        Input folder in the link.csv layout.
    out : path
        The file to write; the README's section "The file" tells its datasets.
    options : BuildOptions, optional
        What the file's content depends on.
    workers : int
        Processes on this machine; 1 works in this one. The file is the same whatever their number.
    executor : concurrent.futures.Executor, optional
        Where to work instead; its workers must see `data` and the folder of `out` under the same
        paths. `workers` then says how many tasks it does at a time.
    force : bool
        Replace an existing `out`.
    strict : bool
        Fail on any finding of severity error.
    progress : bool
        Show a progress bar on stderr where that is a terminal.

    Returns
    -------
    BuildResult

    Raises
    ------
    EtlError
        Nothing was written, and `out` is as it was.
    TypeError, ValueError
        An argument is not what it should be; nothing was looked at.
    """
    options = BuildOptions() if options is None else options
    if not isinstance(options, BuildOptions):
        raise TypeError(f"options: expected BuildOptions, found {type(options).__name__}.")
    if not isinstance(workers, int) or workers < 1:
        raise ValueError(f"workers: expected a whole number from 1 on, found {workers!r}.")
    root = Path(data).absolute()
    out = hdf5_file.check_target(Path(out), force=force)
    if options.split_file is not None:
        split.read_split_file(Path(options.split_file))  # a bad one shows before the work
    found = discover(Path(data), options.contours, partial=options.partial)
    hdf5_file.check_space(out, len(found.links) * options.rows * options.columns)
    links = found.links
    _mark_audited(links, options)
    size = _chunk_pairs(options)
    starts = range(0, len(links), size)
    bar = functools.partial(tqdm, unit=" pairs", disable=None if progress else True)
    with (
        contextlib.closing(Stock(found.findings)) as stock,
        hdf5_file.replacing(out, force=force) as path,
        foreign_engine(executor, workers, root, path)
        if executor
        else local_engine(min(workers, len(starts))) as engine,
    ):
        with bar(desc="1/2 headers and contours", total=len(links)) as shown:
            chunks = (links[first : first + size] for first in starts)
            for examined in engine.run(_examining(root, options), chunks):
                stock.add(examined)
                shown.update(examined.n_links)
        links.clear()  # what is needed of them is in the stock
        _require_rows(len(stock), stock.findings, found.counts, options, strict=strict)
        plan = hdf5_file.create(
            path,
            len(stock),
            options.rows,
            options.columns,
            image_dtype(stock.values),
            stock.n_vertices,
        )
        stock.write_vertices(plan)
        with bar(desc="2/2 pixels and masks", total=len(stock)) as shown:
            parts = engine.run(_rendering(root, options, plan), stock.tasks(size))
            rendered = gather(_counted(parts, shown.update))
        judged = judge(rendered, stock.findings, options)
        n_rows = int(judged.is_good.sum())
        _require_rows(n_rows, judged.findings, found.counts, options, strict=strict)
        contours = stock.contours()
        if not judged.is_good.all():
            plan = hdf5_file.keep_rows(plan, *_kept(judged.is_good, contours))
        return assemble(plan, judged, contours, found.counts, options)


def _mark_audited(links: list[Link], options: BuildOptions) -> None:
    """Mark the links whose contours the audit is to measure."""
    if options.has_audit:
        for place in np.flatnonzero(alignment.choose(links, options.audit_contours)):
            links[place] = links[place]._replace(is_audited=True)


def _examining(root: Path, options: BuildOptions) -> Work[Sequence[Link], examine.Examined]:
    return Work(
        run=functools.partial(examine.examine, root, options),
        divide=lambda links: [[link] for link in links],
        give_up=examine.lost,
        names=lambda links: [link.dicom_path for link in links],
    )


def _rendering(
    root: Path, options: BuildOptions, plan: Plan
) -> Work[tuple[list[bytes], int], render.Rendered]:
    return Work(
        run=functools.partial(render.render, root, options, plan),
        divide=lambda task: [([one], task[1] + place) for place, one in enumerate(task[0])],
        give_up=render.lost,
        names=render.names,
    )


def _counted(
    parts: Iterator[render.Rendered], update: Callable[[int], object]
) -> Iterator[render.Rendered]:
    """Yield the parts, telling `update` the number of rows of each."""
    for part in parts:
        update(len(part.is_good))
        yield part


def _chunk_pairs(options: BuildOptions) -> int:
    """Return how many pairs one task has: whole pages of images and masks, where that can be.

    Then no two workers write to one page of the file, which network file systems do not love.
    """
    n_pixels = options.rows * options.columns
    most = max(1, min(_CHUNK_PAIRS, _CHUNK_BYTES // (4 * n_pixels)))
    whole = _PAGE_BYTES // math.gcd(_PAGE_BYTES, n_pixels)
    return most - most % whole if whole <= most else most


def _require_rows(
    n_rows: int,
    findings: list[Finding],
    counts: Mapping[str, int],
    options: BuildOptions,
    *,
    strict: bool,
) -> None:
    """Stop where there is nothing to write, or where `strict` forbids it."""
    errors = [finding for finding in findings if finding.severity == "error"]
    if n_rows and not (strict and errors):
        return
    examples = "".join(f"\n  {finding}" for finding in (errors or findings)[:_EXAMPLES])
    see_all = "See all with --verbose or --log-file FILE."
    if not n_rows:
        codes = Counter(finding.code for finding in findings)
        listed = "".join(f", {n} {code}" for code, n in sorted(codes.items()))
        raise RejectedError(
            f"Nothing to build: no usable pair of image and contour{listed}."
            f"{_what_is_missing(counts, options.contours)}{examples}\n{see_all}",
            findings,
        )
    raise RejectedError(
        f"Build stopped by --strict: {len(errors)} finding{'s' * (len(errors) != 1)} of severity "
        f"error.{examples}\nMend them, or build without --strict to leave these pairs out. "
        f"{see_all}",
        findings,
    )


def _what_is_missing(counts: Mapping[str, int], kinds: Sequence[Kind]) -> str:
    """Return a sentence on what no file at all was found of."""
    if not counts["patients"]:
        return " link.csv links no patient to contours."
    missing = [f"{kind}-contour" for kind in kinds if not counts[f"{kind}contours"]]
    missing += ["DICOM"] * (not counts["dicoms"])
    if not missing:
        return ""
    return f" No {' and no '.join(missing)} file was found; the README's Input has their names."


def _kept(
    is_good: npt.NDArray[np.bool_], contours: npt.NDArray[np.int64]
) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the good rows, and the stretches of vertices that are theirs."""
    ends = np.cumsum(contours[:, 2])
    stretches = np.stack([ends - contours[:, 2], ends], axis=1)[is_good[contours[:, 0]]]
    return np.flatnonzero(is_good).tolist(), [(start, stop) for start, stop in stretches.tolist()]
