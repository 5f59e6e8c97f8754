"""The stages of a build: discover → examine → reserve → render → diagnose → review → assemble.

The main process holds the columns of each pair; its pixels go from the worker that made them
straight into the file.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Final

import numpy as np

from etl.assemble import BuildResult, assemble
from etl.diagnose import choose_audited, diagnose
from etl.dicom.kept_tags import columns, kept_tags, notes_on
from etl.errors import ReuseError, limited
from etl.examine import choose_size, examine_links, index_headers
from etl.findings import counted
from etl.options import BuildOptions
from etl.output import sidecar, target
from etl.output.row_reader import WrittenRows
from etl.output.split import check_split_file
from etl.output.strata import check_stratify
from etl.render import render_again, render_samples
from etl.review import can_go_on, keep_good, require_rows, review
from etl.sources import layouts
from etl.sources.row_list import check_row_list, exclude_listed
from etl.sources.source import Discovery, Source
from etl.spool import Spool
from etl.update.journal import is_useful
from etl.update.memory import Memory, for_update
from etl.workers import watchdog
from etl.workers.chunks import n_chunks
from etl.workers.engine import Engine, engine_for, in_process

# That an update parses sooner in its own process than others have started.
_FEW_PAIRS: Final = 64


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
    update: bool = False,
    paranoid: bool = False,
    resume: bool = False,
    cache: bool = True,
    on_layout: Callable[[str], object] | None = None,
    sha256: bool = False,
    file_seconds: float = watchdog.DEFAULT_SECONDS,
) -> BuildResult:
    """Parse every DICOM and annotation once and write one HDF5 file.

    Parameters
    ----------
    data : path
        Input folder, or table; the documentation tells the layouts.
    out : path
        The file to write; the documentation's page on the file tells its datasets.
    options : BuildOptions, optional
        What the file's content depends on besides its sources.
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
    update : bool
        Take over the rows of an existing `out` whose sources, options and version are unchanged,
        parse only the rest, and replace `out`. Patients keep their split, as with
        `BuildOptions.splits_from`. The file is the one that a full build would write.
    paranoid : bool
        With `update`, read every source to tell by its digest whether it is unchanged.
    resume : bool
        Go on with the rows that a killed build to the same `out` has left beside it, and parse only
        the rest. If this build fails or is stopped, its rows stay for the next one. The file is the
        one that a full build would write.
    cache : bool
        Leave `out`.cache, by which the next `update` tells unchanged sources without reading them;
        False: leave none.
    on_layout : callable, optional
        Called with a sentence that says which layout is built, and why.
    sha256 : bool
        Also write `out`.sha256, which `sha256sum -c` reads.
    file_seconds : float
        Time that one file may take a worker process of this machine, seconds; 0: any. A pair that
        takes longer is left out, with a finding, and a note says so.

    Returns
    -------
    BuildResult

    Raises
    ------
    EtlError
        Nothing was written, and `out` is as it was.
    TypeError, ValueError
        An argument is not what it should be; no file was opened.
    """
    options = _checked(options, workers)
    other_way = ", or `update=True` to take over its rows"
    other_way += ", together with `resume=True`" * resume
    with limited(options.limits):
        out = target.check_target(Path(out), force=force or update, other_way=other_way)
        left = target.Left(is_useful, stays=resume)
        memory = Memory(
            out, left, is_update=update, is_resume=resume, paranoid=paranoid, leaves_cache=cache
        )
        if update:
            force = force or out.exists()
            options = for_update(options, out)
        kept = kept_tags(options.keep_tags, anyway=options.keep_tags_anyway)
        check_split_file(options)
        check_row_list(options)
        source, why = layouts.choose(Path(data), options.layout)
        if on_layout is not None:
            on_layout(why)
        options = layouts.settle(source, options)
        found = source.discover(Path(data), options)
        check_stratify(options, found.scheme, columns(kept))
        n_tasks = n_chunks(max(len(found.links), len(found.to_index)), options)
        notes = notes_on(kept)  # and on what did not succeed once OUT was replaced
        with (
            target.replacing(out, force=force, notes=notes, left=left) as path,
            engine_for(
                executor, workers, n_tasks, found.root / found.probe, path, file_seconds
            ) as engine,
        ):
            make = functools.partial(
                _make, engine, source, options, out, path, memory, strict=strict, progress=progress
            )
            try:
                result = make(found, is_reused=True)
            except ReuseError as why:
                notes.append(memory.refused(why))
                result = make(source.discover(Path(data), options), is_reused=False)
            digest = sidecar.sha256(path) if sha256 else None  # so long as Ctrl-C ends the build
        notes += memory.write() + sidecar.write_sidecar(out, digest)
        if engine.n_timed_out:
            notes.append(
                f"{counted(engine.n_timed_out, 'pair')} took longer than {file_seconds:g} s: this "
                "build is not reproducible, because another machine may be quicker. Look at their "
                "findings."
            )
        return dataclasses.replace(result, notes=[*result.notes, *notes])


def _make(
    engine: Engine,
    source: Source,
    options: BuildOptions,
    out: Path,
    path: Path,
    memory: Memory,
    found: Discovery,
    *,
    is_reused: bool,
    strict: bool,
    progress: bool,
) -> BuildResult:
    """Make the new file at `path`, by all stages after the discovery."""
    with contextlib.closing(Spool()) as spool:
        found = index_headers(engine, source, found, options, progress=progress)
        found = exclude_listed(found, options)
        spool.findings += found.findings
        options = choose_size(engine, source, found, options, progress=progress)
        mask_dtype = found.scheme.mask_dtype(options.masks)
        n_pixels = len(found.links) * options.rows * options.columns
        target.check_space(out, n_pixels, mask_dtype, memory.n_held)
        chosen = choose_audited(source, found, options)
        kept = memory.keep(engine, found, options, is_used=is_reused, progress=progress)
        if kept is not None and kept.n_parsed <= _FEW_PAIRS:
            engine = in_process()
        n_before = len(spool.findings)
        examine_links(engine, source, found, options, spool, progress=progress, kept=kept)
        examined = spool.findings[n_before:]
        look = functools.partial(diagnose, engine, source, found, options, chosen)
        if not can_go_on(len(spool), spool.findings, strict=strict):
            spool.findings += look(spool.findings).findings
        require_rows(len(spool), spool.findings, found.missing, strict=strict)
        plan = spool.plan(path, options, mask_dtype)
        with contextlib.closing(memory.journal(plan, kept, spool, examined)) as journal:
            adopted = memory.adopted(plan, kept, spool, journal)
            kept = adopted or kept
            plan = spool.reserve(plan, is_adopted=adopted is not None)
            rendered = render_samples(
                engine, spool, found, options, plan, progress=progress, kept=kept, note=journal.add
            )
        contours = spool.contours()
        written = WrittenRows(plan, np.flatnonzero(rendered.is_good), contours)
        again = functools.partial(render_again, engine, spool, found, options, plan)
        diagnosis = look(spool.findings, rendered)
        reviewed = review(
            rendered, spool.findings, diagnosis, found.scheme, options, written, again
        )
        require_rows(reviewed.n_rows, reviewed.findings, found.missing, strict=strict)
        plan = keep_good(plan, reviewed, contours)
        identities = spool.identities()
        if kept is not None:
            identities = kept.keyed(identities, spool.is_kept())
        known = memory.known(kept, spool, examined, rendered, reviewed, identities)
        reuse = known.columns()
        result, digests = assemble(plan, reviewed, contours, found, options, identities, reuse)
        memory.remember(found.root, options, kept, spool, known, reviewed, digests)
    return dataclasses.replace(result, notes=[*result.notes, *journal.notes])


def _checked(options: BuildOptions | None, workers: int) -> BuildOptions:
    options = BuildOptions() if options is None else options
    if not isinstance(options, BuildOptions):
        raise TypeError(f"options: expected BuildOptions, found {type(options).__name__}.")
    if not isinstance(workers, int) or workers < 1:
        raise ValueError(f"workers: expected a whole number from 1 on, found {workers!r}.")
    return options
