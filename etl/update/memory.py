"""What an update knows of the older OUT, and what it leaves for the next one."""

import itertools
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import xxhash

from etl.dicom.pixels import modality_range
from etl.errors import EtlError, ReuseError
from etl.findings import Finding, SampleKey, counted
from etl.model import Sample
from etl.options import BuildOptions
from etl.quality.rows import SHAPES
from etl.render import Rendered, kept_columns
from etl.review import Reviewed
from etl.sources.source import Discovery
from etl.spool import Spool
from etl.update.cache import (
    EXAMINED,
    RENDERED,
    ROW,
    STAMP,
    Cache,
    Remark,
    cache_path,
    fingerprint,
    read_cache,
    write_cache,
)
from etl.update.kept import Kept, keyed
from etl.update.sources import Stamp, link_digest, paths_of, take_stamps, unchanged
from etl.workers.engine import Engine
from loader import Dataset, LoaderError, open_dataset
from loader.format import VERSION

_KEY_BYTES: Final = 16

# Options on which no row depends: they choose rows, or divide them.
_NOT_OF_ROWS: Final = {
    *("split", "split_seed", "folds", "same_person", "exclude_flagged", "exclude_structures"),
    "stratify",
    *("audit", "audit_contours"),
}


@dataclass
class Memory:
    """The cache of an update, from its reading to its writing.

    Attributes
    ----------
    out : Path
    paranoid : bool
        Let digests decide on every source.
    """

    out: Path
    paranoid: bool
    _stamps: dict[str, Stamp] = field(default_factory=dict)
    _basis: str = ""
    _key: bytes = b""
    _cache: Cache | None = None
    _notes: list[str] = field(default_factory=list)

    def keep(
        self, engine: Engine, found: Discovery, options: BuildOptions, *, is_used: bool
    ) -> Kept | None:
        """Return what of the older file stays; to be asked before any source is read.

        Parameters
        ----------
        is_used : bool
            False where everything is to be parsed.

        Raises
        ------
        ReuseError
            Nothing of it can be used.
        """
        self._stamps = take_stamps(found.root, found.links)
        self._basis = _basis(found, options)
        self._key = secrets.token_bytes(_KEY_BYTES)
        if not is_used or not self.out.exists():
            return None
        cache = read_cache(cache_path(self.out))
        dataset = open_older(self.out)
        if cache.out != fingerprint(dataset):
            raise ReuseError(f"{cache_path(self.out).name} belongs to another file")
        if cache.basis != self._basis:
            raise ReuseError("it was built by another version or with other options")
        _require_columns(dataset)
        self._key = cache.key
        return self._kept(engine, found, dataset, cache, kept_columns(options))

    def _kept(
        self,
        engine: Engine,
        found: Discovery,
        dataset: Dataset,
        cache: Cache,
        more: Mapping[str, str],
    ) -> Kept:
        known = {link.decode(): place for place, link in enumerate(cache.rows["link"].tolist())}
        places = [known.get(link_digest(link), -1) for link in found.links]
        stamps = map(Stamp._make, cache.stamps.tolist())
        before = {} if self.paranoid else dict(zip(cache.paths, stamps, strict=True))
        expected = _expected(dataset, cache, found, places)
        same = unchanged(engine, found.root, expected, before, self._stamps)
        is_kept = [
            place >= 0 and all(path in same for path in paths_of(link))
            for link, place in zip(found.links, places, strict=True)
        ]
        links = list(itertools.compress(found.links, is_kept))
        kept = list(itertools.compress(places, is_kept))
        return Kept.of(dataset, cache, found.scheme, is_kept, links, kept, more)

    def remember(
        self,
        kept: Kept | None,
        spool: Spool,
        examined: Sequence[Finding],
        rendered: Rendered,
        reviewed: Reviewed,
        identities: npt.NDArray[np.uint64],
    ) -> None:
        """Note what the next update needs of the rows, all of which are in their places now.

        Parameters
        ----------
        examined : sequence of Finding
            Those of the examination alone.
        identities : uint64 array, shape (n, 2)
            Of all samples; keyed where some rows are kept.
        """
        is_chosen = reviewed.is_good.copy()
        is_chosen[list(reviewed.lost)] = False  # their rows are not what their links give
        chosen, is_kept = np.flatnonzero(is_chosen), spool.is_kept()[is_chosen]
        rows = np.zeros(len(chosen), ROW)
        of_key: dict[SampleKey, int] = {}
        if kept is not None:
            mine = is_chosen[spool.is_kept()]
            rows[is_kept] = kept.cache.rows[kept.places[mine]]
            links = itertools.compress(kept.links, mine)
            of_key |= {
                link.key: n for link, n in zip(links, np.flatnonzero(is_kept).tolist(), strict=True)
            }
        fresh = np.flatnonzero(~is_kept)
        for n, packed in zip(fresh.tolist(), spool.samples(chosen[fresh].tolist()), strict=True):
            sample = Sample.unpacked(packed)
            values = modality_range(sample.instance.pixel_format)
            digest = link_digest(sample.link).encode()
            rows[n] = (digest, 0, values.lowest, values.highest, values.is_whole, 0, 0)
            of_key[sample.link.key] = n
        rows["row"] = (np.cumsum(reviewed.is_good) - 1)[chosen]
        known = identities[chosen] if kept is not None else keyed(identities[chosen], self._key)
        rows["patient"], rows["study"] = known.T
        order = (np.cumsum(rendered.is_good) - 1)[chosen]
        if kept is not None:
            self._notes = [
                f"{is_kept.sum()} of {reviewed.n_rows} rows were taken over from the older file; "
                f"{counted(kept.n_parsed, 'pair')} parsed."
            ]
        self._cache = Cache(
            out="",
            basis=self._basis,
            key=self._key,
            rows=rows,
            marks=rendered.marks[order] if len(rendered.marks) else rendered.marks,
            shapes=_shapes(rendered.shapes, order),
            remarks=[
                Remark(of_key[one.key], stage, one.code, one.path, one.message, one.label)
                for stage, findings in ((EXAMINED, examined), (RENDERED, rendered.findings))
                for one in findings
                if one.key is not None and one.key in of_key
            ],
            paths=list(self._stamps),
            stamps=np.array(list(self._stamps.values()), STAMP),
        )

    def write(self) -> list[str]:
        """Write the cache of the OUT that is in its place now; return what is worth knowing."""
        assert self._cache is not None  # noqa: S101  after `remember`
        try:
            out = fingerprint(open_dataset(self.out))
            values = {**vars(self._cache), "out": out}
            write_cache(cache_path(self.out), Cache(**values))
        except (EtlError, LoaderError) as error:
            return [
                *self._notes,
                f"{self.out} is written, but its cache is not, so that the next update parses "
                f"everything. {error}",
            ]
        return self._notes


def for_update(options: BuildOptions, out: Path) -> BuildOptions:
    """Return the options with the split of the older file kept, unless the user has another one.

    Raises
    ------
    EtlError
        There is a file that is not one of dicom-etl's.
    """
    if not out.exists():
        return options
    open_older(out)
    if options.splits_from is not None or options.split_file is not None:
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
    recorded = {k: v for k, v in options.to_json().items() if k not in _NOT_OF_ROWS}
    return json.dumps([VERSION, recorded, found.scheme.to_json()], sort_keys=True)


def _require_columns(dataset: Dataset) -> None:
    """Require that what is taken over of the small datasets is what was written."""
    digests = dataset.attributes["digests"]
    for group, table in (("manifest", dataset.manifest), ("contours", dataset.contours)):
        for name, values in table.stored.items():
            data = np.ascontiguousarray(values)
            found = xxhash.xxh3_128_hexdigest(data.data.cast("B") if data.size else b"")
            if digests.get(f"{group}/{name}") != found:
                raise ReuseError(f"its {group}/{name} is not what was written")


def _expected(
    dataset: Dataset, cache: Cache, found: Discovery, places: Sequence[int]
) -> dict[str, str]:
    """Return path → digest that the older file has of it, of the sources of known links."""
    stored = dataset.manifest.stored
    columns = {0: stored["dicom_xxh3"].tolist()}
    columns |= {one.code: stored[f"{one.stem}_xxh3"].tolist() for one in found.scheme}
    rows = cache.rows["row"].tolist()
    expected = {}
    for link, place in zip(found.links, places, strict=True):
        if place >= 0:
            row = rows[place]
            expected[link.frame.path] = columns[0][row].decode()
            for annotation in link.annotations:
                expected[annotation.path] = columns[annotation.code][row].decode()
    return expected


def _shapes(shapes: npt.NDArray[np.void], order: npt.NDArray[np.int64]) -> npt.NDArray[np.void]:
    """Return the shapes of some rows, counted anew."""
    places = np.full(int(shapes["row"].max(initial=-1)) + 1, -1, np.int64)
    inside = order[order < len(places)]
    places[inside] = np.arange(len(inside))
    mine = shapes[places[shapes["row"]] >= 0].astype(SHAPES)
    mine["row"] = places[mine["row"]]
    order = np.argsort(mine["row"], kind="stable")
    ordered: npt.NDArray[np.void] = mine[order]
    return ordered
