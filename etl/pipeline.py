"""The stages of a build, in order: discover → examine → plan → render → assemble.

The coordinator holds one line per pair: pixels and vertices go from the worker that made them
straight into the file.
"""

import functools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from tqdm import tqdm

from etl import engine, split, write
from etl.assemble import BuildResult, assemble
from etl.errors import EtlError
from etl.examine import Examined, examine
from etl.link_csv import discover
from etl.model import EMPTY_RANGE, BuildOptions, Finding, ValueRange
from etl.parse_dicom import image_dtype
from etl.render import Rendered, render

_CHUNK_PAIRS: Final = 32
_CHUNK_BYTES: Final = 16 << 20  # of images that one worker holds
_SPOOL_BYTES: Final = 8 << 20  # of examined samples kept in memory; the rest waits in a file
_EXAMPLES: Final = 3


class RejectedError(EtlError):
    """No row can be written, or with `strict` none may; `findings` tell why."""

    def __init__(self, message: str, findings: list[Finding]) -> None:
        super().__init__(message, findings)
        self.findings = findings

    def __str__(self) -> str:
        """Return the message alone."""
        return str(self.args[0])


@dataclass(slots=True)
class _Stock:
    """Examined samples, waiting in a spool file for their turn."""

    spool: IO[bytes]
    findings: list[Finding]
    values: ValueRange = EMPTY_RANGE
    chunks: list[tuple[int, int, int]] = field(default_factory=list)  # samples, vertices, bytes

    def add(self, examined: Examined) -> None:
        self.findings += examined.findings
        self.values |= examined.values
        if examined.n_samples:
            n_bytes = self.spool.write(examined.samples)
            self.chunks.append((examined.n_samples, examined.n_vertices, n_bytes))

    @property
    def n_samples(self) -> int:
        return sum(n_samples for n_samples, _, _ in self.chunks)

    @property
    def n_vertices(self) -> int:
        return sum(n_vertices for _, n_vertices, _ in self.chunks)

    def tasks(self) -> Iterator[tuple[bytes, int, int]]:
        """Yield (pickled samples, first row, first vertex) of each chunk."""
        self.spool.seek(0)
        first_row = first_vertex = 0
        for n_samples, n_vertices, n_bytes in self.chunks:
            yield self.spool.read(n_bytes), first_row, first_vertex
            first_row, first_vertex = first_row + n_samples, first_vertex + n_vertices


def build(
    data: str | Path,
    out: str | Path,
    options: BuildOptions | None = None,
    *,
    workers: int = 1,
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
        Processes; 1 works in this one. The file is the same whatever their number.
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
    """
    options = options or BuildOptions()
    root, out = Path(data), Path(out)
    out = out.resolve() if out.is_symlink() else out
    write.check_target(out, force=force)
    if options.split_file is not None:
        split.read_split_file(Path(options.split_file))  # a bad one shows before the work
    found = discover(root, options.contours, partial=options.partial)
    links = found.links
    size = max(1, min(_CHUNK_PAIRS, _CHUNK_BYTES // (options.rows * options.columns * 4)))
    chunks = [links[start : start + size] for start in range(0, len(links), size)]
    bar = functools.partial(tqdm, unit=" pairs", disable=None if progress else True)
    with (
        engine.local_executor(min(workers, len(chunks))) as executor,
        tempfile.SpooledTemporaryFile(_SPOOL_BYTES) as spool,
        write.replacing(out, force=force) as path,
    ):
        run = functools.partial(engine.in_order, executor, workers)
        stock = _Stock(spool, found.findings)
        with bar(desc="1/2 headers and contours", total=len(links)) as shown:
            examined = run(functools.partial(examine, root, options), chunks)
            for chunk, result in zip(chunks, examined, strict=True):
                stock.add(result)
                shown.update(len(chunk))
        _require_rows(stock.n_samples, stock.findings, strict=strict)
        plan = write.create(
            path,
            stock.n_samples,
            options.rows,
            options.columns,
            image_dtype(stock.values),
            stock.n_vertices,
        )
        parts: list[Rendered] = []
        with bar(desc="2/2 pixels and masks", total=stock.n_samples) as shown:
            for part in run(functools.partial(render, root, options, plan), stock.tasks()):
                parts.append(part)
                shown.update(len(part.is_good))
        findings = stock.findings + [finding for part in parts for finding in part.findings]
        is_good = [good for part in parts for good in part.is_good]
        _require_rows(sum(is_good), findings, strict=strict)
        if not all(is_good):
            plan = write.keep_rows(plan, *_kept(parts))
        return assemble(plan, parts, found.counts, findings, options)


def _require_rows(n_rows: int, findings: list[Finding], *, strict: bool) -> None:
    """Stop where there is nothing to write, or where `strict` forbids it."""
    errors = [finding for finding in findings if finding.severity == "error"]
    if n_rows and not (strict and errors):
        return
    examples = "".join(f"\n  {finding}" for finding in (errors or findings)[:_EXAMPLES])
    if not n_rows:
        n_findings = f"{len(findings)} finding{'s' * (len(findings) != 1)}"
        raise RejectedError(
            f"Nothing to build: no usable pair of image and contour, {n_findings}.{examples}\n"
            "See all with --verbose or --log-file FILE.",
            findings,
        )
    raise RejectedError(
        f"Build stopped by --strict: {len(errors)} finding{'s' * (len(errors) != 1)} of severity "
        f"error.{examples}\nMend them, or build without --strict to leave these pairs out.",
        findings,
    )


def _kept(parts: list[Rendered]) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the good rows, and the stretches of vertices that are theirs."""
    rows: list[int] = []
    stretches: list[tuple[int, int]] = []
    row = vertex = 0
    for part in parts:
        for is_good, contours in zip(part.is_good, part.contours, strict=True):
            n_vertices = sum(length for _, length in contours)
            if is_good:
                rows.append(row)
                stretches.append((vertex, vertex + n_vertices))
            row, vertex = row + 1, vertex + n_vertices
    return rows, stretches
