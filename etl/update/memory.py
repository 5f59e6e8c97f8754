"""What a build knows of rows that are there already, and what it leaves for the next one."""

import contextlib
import itertools
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from etl.errors import EtlError, ReuseError
from etl.findings import Finding, SampleKey, counted
from etl.model import Link
from etl.options import BuildOptions
from etl.output.row_writer import Plan
from etl.output.target import Left, leftovers
from etl.quality.alignment import NOT_AUDITED
from etl.render import Rendered, kept_columns
from etl.review import Reviewed, rows_by_key
from etl.sources.csv_table import table_digest
from etl.sources.source import Discovery
from etl.spool import Spool
from etl.update.cache import (
    Cache,
    cache_path,
    fingerprint,
    read_cache,
    remove_cache,
    write_cache,
)
from etl.update.journal import Begun, Journal, count_rows, proved, read_begun
from etl.update.kept import Kept, keyed
from etl.update.known import EXAMINED, RENDERED, Known, Remark, read_known, rows_of, shapes_of
from etl.update.older import Older
from etl.update.seal import KEY_BYTES, Seal
from etl.update.sources import Stamp, Stamps, identities, paths_of, take_stamps, unchanged
from etl.workers.chunks import runs
from etl.workers.engine import Engine
from etl.workers.progress import bar
from loader import Dataset, LoaderError, open_dataset
from loader import format as file_format
from loader.format import Attribute

# Options on which no row depends: they choose rows, or divide them.
_NOT_OF_ROWS: Final = {
    *("split", "split_seed", "folds", "same_person", "exclude_flagged", "exclude_structures"),
    "stratify",
    *("audit", "audit_contours"),
}

# Those of which an update says that they have changed: it keeps the split as it was anyway.
_CHOOSE: Final = (
    *("exclude_flagged", "exclude_structures", "exclude_file_xxh3"),
    *("audit", "audit_contours"),
)

# Option → what a user types, where the name is another.
_TYPED: Final = {
    "rows": "size",
    "columns": "size",
    "limits": "limit",
    "qc": "no_qc",
    "audit": "no_audit",
    "exclude_file_xxh3": "exclude_file",
}


@dataclass
class Memory:
    """What is known of the rows of OUT and of partial files, from its reading to its writing.

    Attributes
    ----------
    out : Path
    left : Left
        The partial files of builds that were killed.
    is_update : bool
        Take over rows of OUT.
    is_resume : bool
        Take over rows of partial files.
    paranoid : bool
        Let digests decide on every source.
    leaves_cache : bool
        Write the cache of the new OUT.
    """

    out: Path
    left: Left
    is_update: bool = False
    is_resume: bool = False
    paranoid: bool = False
    leaves_cache: bool = True
    _refused: str = ""
    _stamps: dict[str, Stamp] = field(default_factory=dict)
    _basis: str = ""
    _key: bytes = b""
    _cache: Cache | None = None
    _notes: list[str] = field(default_factory=list)

    def keep(
        self,
        engine: Engine,
        found: Discovery,
        options: BuildOptions,
        *,
        is_used: bool,
        progress: bool,
    ) -> Kept | None:
        """Return which rows are there already; to be asked before any source is read.

        Of several files with such rows, the one that has most is used.

        Parameters
        ----------
        is_used : bool
            False where everything is to be parsed.

        Raises
        ------
        ReuseError
            An update can use nothing of OUT, and nothing else is there.
        """
        self._stamps = take_stamps(found.root, found.links)
        self._basis = _basis(found, options)
        self._key = secrets.token_bytes(KEY_BYTES)
        self._refused = self.out.name
        if not is_used:
            return None
        choices: list[Kept] = []
        refusal: ReuseError | None = None
        if self.is_update and self.out.exists():
            try:
                choices.append(self._of_out(engine, found, options))
            except ReuseError as error:
                refusal = error
        if self.is_resume:
            choices += self._left(engine, found, options, progress=progress)
        if not choices and refusal is not None:
            raise refusal
        best = max(choices, key=lambda one: len(one.links), default=None)
        if best is None or not (best.links or self.is_update):
            return None
        self._key, self._refused = best.known.key, best.older.name
        return best

    @property
    def n_held(self) -> int:
        """Bytes of the largest partial file that this build may go on with."""
        if not self.is_resume:
            return 0
        return max((partial.stat().st_size for partial in self.left.partials), default=0)

    def refused(self, why: ReuseError) -> str:
        """Return a note on rows that could not be taken over after all."""
        return f"every source was parsed, because {self._refused} cannot be updated: {why}."

    def journal(
        self, plan: Plan, kept: Kept | None, spool: Spool, examined: Sequence[Finding]
    ) -> Journal:
        """Begin the journal of a partial file."""
        whose = spool.identities()
        begun = Begun(
            plan,
            self._basis,
            self._key,
            rows_of(spool.basics()),
            keyed(whose, self._key) if kept is None else kept.keyed(whose, spool.is_kept()),
            spool.contours(),
            examined,
            self._stamps,
        )
        return Journal(begun)

    def adopted(self, plan: Plan, kept: Kept | None, spool: Spool, journal: Journal) -> Kept | None:
        """Let a partial file whose rows are in their places be the new one, and return its rows.

        None where there is no such file. The new journal is on disk before that: whenever the build
        is killed, one of the two journals has the rows.
        """
        if (
            kept is None
            or kept.older.path not in self.left.partials
            or not kept.fits(plan, spool.is_kept())
        ):
            return None
        here = replace(plan, path=str(kept.older.path))
        n_done = 0
        for flag, first, stop in runs(spool.is_kept().tolist()):
            if flag:
                n_next = n_done + stop - first
                journal.add(first, kept.rendered(n_done, n_next, here, first))
                n_done = n_next
        journal.sync()
        os.replace(kept.older.path, plan.path)
        return kept.moved(plan.path)

    def _of_out(self, engine: Engine, found: Discovery, options: BuildOptions) -> Kept:
        """Return what can be used of OUT.

        Raises
        ------
        ReuseError
            It is of another build, or damaged.
        """
        dataset = open_older(self.out)
        basis = _basis_of(dataset)
        if basis != self._basis:
            raise ReuseError(f"it was built {_how_else(basis, self._basis)}")
        for name in _damaged(dataset):
            raise ReuseError(f"its {name} is not what was written")
        known, groups = read_known(dataset)
        cache = self._cache_of(dataset, known)
        stamps = {} if cache is None or self.paranoid else cache.stamps
        kept = self._kept(engine, found, Older.of_dataset(dataset), known, stamps, options)
        if cache is not None:
            with contextlib.suppress(ReuseError):
                key = cache.seal.opened(found.root)
                return kept.of_people(cache.identities[kept.places], key)
        frames = [link.frame for link in kept.links]
        digests = [one.decode() for one in kept.manifest["dicom_xxh3"].tolist()]
        whose = identities(engine, found.root, frames, digests, groups[kept.places])
        return kept.of_people(keyed(whose, self._key), self._key)

    def _cache_of(self, dataset: Dataset, known: Known) -> Cache | None:
        """Return the cache of OUT; None where there is none, which is noted."""
        path = cache_path(self.out)
        try:
            cache = read_cache(path)
            digests = dataset.attributes.get(Attribute.DIGESTS)
            if cache.out != fingerprint(digests) or len(cache.identities) != len(known.rows):
                raise ReuseError(f"{path.name} belongs to another file")
        except ReuseError as why:
            if not self.paranoid:
                self._notes.append(f"every source was read to compare its digest, because {why}.")
            return None
        return cache

    def _left(
        self, engine: Engine, found: Discovery, options: BuildOptions, *, progress: bool
    ) -> Iterator[Kept]:
        """Yield what can be used of each partial file."""
        if not self.left.partials:
            self._notes.append(
                "there was nothing to resume from: no killed build has left rows of "
                f"{self.out.name}."
            )
        for partial in self.left.partials:
            begun = read_begun(partial)
            if begun is None or begun.basis != self._basis:
                how = "by another version" if begun is None else _how_else(begun.basis, self._basis)
                self._notes.append(f"no row of {partial.name} could be used: it was built {how}.")
                continue
            n_rows, _ = count_rows(partial)
            with bar("rows that are there", "rows", n_rows, shown=progress) as shown:
                older, known = proved(partial, begun, shown)
            stamps = {} if self.paranoid else begun.stamps
            with contextlib.suppress(ReuseError):  # no row is whole
                yield self._kept(engine, found, older, known, stamps, options)

    def _kept(
        self,
        engine: Engine,
        found: Discovery,
        older: Older,
        known: Known,
        before: Stamps,
        options: BuildOptions,
    ) -> Kept:
        of_link = {link: place for place, link in enumerate(known.rows["link"].tolist())}
        places = [of_link.get(link.digest().encode(), -1) for link in found.links]
        expected = _expected(older, known, found, places)
        same = unchanged(engine, found.root, expected, before, self._stamps)
        is_kept = [
            place >= 0
            and all(path in same for path in paths_of(link))
            and not (options.is_resized and _is_newly_audited(link, older, known, place))
            for link, place in zip(found.links, places, strict=True)
        ]
        links = list(itertools.compress(found.links, is_kept))
        kept = list(itertools.compress(places, is_kept))
        return Kept.of(older, known, found.scheme, is_kept, links, kept, kept_columns(options))

    def known(
        self,
        kept: Kept | None,
        spool: Spool,
        examined: Sequence[Finding],
        rendered: Rendered,
        reviewed: Reviewed,
        whose: npt.NDArray[np.uint64],
    ) -> Known:
        """Return what the next update needs of the rows, all of which are in their places now.

        Parameters
        ----------
        examined : sequence of Finding
            Those of the examination alone.
        whose : uint64 array, shape (n, 2)
            `Identity` of all samples; keyed where some rows are kept.
        """
        is_chosen = reviewed.is_good.copy()
        is_chosen[list(reviewed.lost)] = False  # their rows are not what their links give
        chosen = np.flatnonzero(is_chosen)
        rows = rows_of(spool.basics()[chosen])
        rows["row"] = (np.cumsum(reviewed.is_good) - 1)[chosen]
        order = (np.cumsum(rendered.is_good) - 1)[chosen]
        remarks = [
            (stage, one)
            for stage, findings in ((EXAMINED, examined), (RENDERED, rendered.findings))
            for one in findings
            if one.key is not None
        ]
        of_row = {row: n for n, row in enumerate(rows["row"].tolist())}
        of_key = {
            key: of_row[row]
            for key, row in rows_by_key((one.key for _, one in remarks), reviewed.manifest).items()
            if row in of_row
        }
        return Known(
            rows=rows,
            marks=rendered.marks[order] if len(rendered.marks) else rendered.marks,
            shapes=shapes_of(rendered.shapes, order),
            remarks=[
                Remark(of_key[one.key], stage, one.code, one.path, one.message, one.label)
                for stage, one in remarks
                if one.key in of_key
            ],
            identities=whose[chosen] if kept is not None else keyed(whose[chosen], self._key),
            key=self._key,
        )

    def remember(
        self,
        root: Path,
        options: BuildOptions,
        kept: Kept | None,
        spool: Spool,
        known: Known,
        reviewed: Reviewed,
        digests: Mapping[str, str],
    ) -> None:
        """Note what the cache is to have, and what was taken over.

        Parameters
        ----------
        digests : mapping of str to str
            Those of the new file's columns.
        """
        if self.is_update and self.out.exists():
            self._notes += _changes(open_older(self.out), reviewed, options)
        if kept is not None:
            is_older = kept.older.path == self.out
            source = "the older file" if is_older else kept.older.name
            n_kept = (spool.is_kept() & reviewed.is_good).sum()
            self._notes.append(
                f"{n_kept} of {reviewed.n_rows} rows were taken over from {source}; "
                f"{counted(kept.n_parsed, 'pair')} parsed."
            )
        if self.leaves_cache:
            self._cache = Cache(
                out=fingerprint(digests),
                stamps=self._stamps,
                identities=known.identities,
                seal=Seal.of(self._key, root, _frame_paths(reviewed, known.rows["row"])),
            )

    def write(self) -> list[str]:
        """Write the cache of OUT, or remove that of the older OUT; return what is worth knowing."""
        path = cache_path(self.out)
        if not self.leaves_cache:
            try:
                remove_cache(path)
            except EtlError as error:
                self._notes.append(f"{self.out} is written. {error}")
            return self._notes
        assert self._cache is not None  # noqa: S101  after `remember`
        try:
            write_cache(path, self._cache)
        except EtlError as error:
            self._notes.append(
                f"{self.out} is written, but its cache is not, so that the next update reads every "
                f"source. {error}"
            )
        return self._notes


def _frame_paths(reviewed: Reviewed, rows: npt.NDArray[np.int64]) -> list[str]:
    """Return the DICOM files of some rows of OUT."""
    return [path.decode() for path in reviewed.manifest["dicom_path"][rows].tolist()]


def _changes(older: Dataset, reviewed: Reviewed, options: BuildOptions) -> Iterator[str]:
    """Yield what an update changes that nobody may have meant."""
    before, now = (
        {name: recorded.get(name) for name in _CHOOSE}
        for recorded in (
            older.attributes["options"],
            json.loads(json.dumps(options.recorded(table_digest))),
        )
    )
    if names := _different(before, now):
        yield (
            f"the older file was built with other options ({', '.join(names)}): give the same, "
            "unless you mean to change them."
        )
    tables = (older.manifest.stored, reviewed.manifest)
    if all(name in table for name in SampleKey._fields for table in tables):
        old, new = (
            set(zip(*(table[name].tolist() for name in SampleKey._fields), strict=True))
            for table in tables
        )
        if n_gone := len(old - new):
            yield (
                f"{counted(n_gone, 'row')} of the older file {'is' if n_gone == 1 else 'are'} not "
                "in the new one: an image or drawing is gone, or is among the findings."
            )


def left_text(out: Path) -> str:
    """Return a sentence on the partial file that a resume could use; empty where there is none."""
    partials = leftovers(Path(os.path.realpath(out)))
    counts = {partial.name: count_rows(partial) for partial in partials}
    name = max(counts, key=lambda one: counts[one][0], default="")
    if not name or not counts[name][0]:
        return ""
    n_rows, n_all = counts[name]
    return f"{name}, of a build that did not end, has {n_rows} of {counted(n_all, 'row')}"


def for_update(options: BuildOptions, out: Path) -> BuildOptions:
    """Return the options with the split of the older file kept, unless the user has another one.

    Raises
    ------
    EtlError
        There is a file that is not one of dicom-etl's.
    """
    if not out.exists():
        return options
    stored = open_older(out).manifest.stored
    if options.splits_from is not None or options.split_file is not None:
        return options
    is_divided = bool((stored["split"] >= 0).any() or (stored["fold"] >= 0).any())
    if not is_divided and options.split is None and options.folds is None:
        return options
    return replace(options, splits_from=str(out))


def open_older(out: Path) -> Dataset:
    """Return the file that is to be updated.

    Raises
    ------
    EtlError
        It is not one of dicom-etl's.
    """
    try:
        return open_dataset(out)
    except LoaderError as error:
        raise EtlError(
            f"Output not usable: {out}: cannot be updated ({error}). Move it away, or replace it "
            "with `force=True`, without `update=True`."
        ) from error


def _basis(found: Discovery, options: BuildOptions) -> str:
    """Return what every row depends on besides its sources: version, options, structures."""
    return _basis_text(file_format.VERSION, options.to_json(), found.scheme.to_json(options.masks))


def _basis_of(dataset: Dataset) -> str:
    """Return the same of a built file."""
    attributes = dataset.attributes
    _, _, version = attributes[Attribute.GENERATOR].partition(" ")
    structures = attributes.get(Attribute.STRUCTURES)
    return _basis_text(version, attributes[Attribute.OPTIONS], structures)


def _basis_text(version: str, options: Mapping[str, object], structures: object) -> str:
    recorded = {
        name: value
        for name, value in options.items()
        if name not in _NOT_OF_ROWS and not name.endswith("_xxh3")
    }
    return json.dumps([version, recorded, structures], sort_keys=True)


def _how_else(before: str, now: str) -> str:
    """Return how a file of another basis was built, for messages."""
    version, options, _ = json.loads(before)
    our_version, our_options, _ = json.loads(now)
    if version != our_version:
        return f"by version {version}"
    if names := _different(options, our_options):
        return f"with other options ({', '.join(names)})"
    return "with other structures"


def _different(one: Mapping[str, object], other: Mapping[str, object]) -> list[str]:
    """Return the options that differ, as they are typed."""
    names = {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}
    return sorted({"--" + _TYPED.get(name, name).replace("_", "-") for name in names})


def _is_newly_audited(link: Link, older: Older, known: Known, place: int) -> bool:
    """Say whether the audit takes a link that it did not take: it looks at the frame's pixels.

    Of masks it takes none.
    """
    if not (link.is_audited and len(known.marks)):
        return False
    is_new = known.marks["alignment"]["outcome"][place] == NOT_AUDITED
    return bool(is_new) and older.has_contours(int(known.rows["row"][place]))


def _damaged(dataset: Dataset) -> Iterable[str]:
    """Return the small datasets that are not what was written."""
    try:
        return dataset.damaged_columns()
    except LoaderError as error:
        raise ReuseError(f"it cannot be read ({error})") from error


def _expected(
    older: Older, known: Known, found: Discovery, places: Sequence[int]
) -> dict[str, str]:
    """Return path → digest that the older file has of it, of the sources of known links."""
    stored = older.manifest
    columns = {0: stored["dicom_xxh3"].tolist()}
    columns |= {one.code: stored[f"{one.stem}_xxh3"].tolist() for one in found.scheme}
    rows = known.rows["row"].tolist()
    expected = {}
    for link, place in zip(found.links, places, strict=True):
        if place >= 0:
            row = rows[place]
            expected[link.frame.path] = columns[0][row].decode()
            for annotation in link.annotations:
                expected[annotation.path] = columns[annotation.code][row].decode()
    return expected
