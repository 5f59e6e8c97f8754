"""Rows of an older OUT that the new one takes over, in the form in which the stages give them."""

import hashlib
import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from etl.errors import ReuseError
from etl.findings import Finding
from etl.labels import LabelScheme
from etl.model import BASICS, Examined, Link, Region, ValueRange, Vertices
from etl.output.row_writer import (
    Plan,
    begin_writeback,
    forget,
    open_rows,
    read_into,
    row_digest,
    write_rows,
)
from etl.quality.alignment import NOT_AUDITED, audited, measure
from etl.render import ManifestTable, Rendered
from etl.update.known import EXAMINED, RENDERED, Known, Remark, trimmed
from etl.update.older import Older
from loader import format as file_format

_BLOCK_BYTES: Final = (
    1 << 20
)  # of images that are copied at a time: they stay in the processor's cache
_LATER_COLUMNS: Final = ("split", "fold", "flags")  # that depend on the other rows


@dataclass(frozen=True, eq=False)
class Kept:
    """The links that need no parsing, and their rows in the older file.

    Attributes
    ----------
    is_kept : list of bool
        By link.
    links : list of Link
        Those that are kept, in order.
    places : int64 array
        The place of each in `known`.
    """

    older: Older
    known: Known
    scheme: LabelScheme
    is_kept: Sequence[bool]
    links: Sequence[Link]
    places: npt.NDArray[np.int64]
    remarks: dict[tuple[int, str], list[Remark]]
    manifest: ManifestTable  # of the kept rows

    @property
    def n_parsed(self) -> int:
        """The number of the other links."""
        return len(self.is_kept) - len(self.links)

    @classmethod
    def of(
        cls,
        older: Older,
        known: Known,
        scheme: LabelScheme,
        is_kept: Sequence[bool],
        links: Sequence[Link],
        places: Sequence[int],
        more: Mapping[str, str],
    ) -> "Kept":
        """Return the rows that belong to some links, by their places in `known`.

        `more` has the columns of attributes that the options keep, with their types.
        """
        taken = np.array(places, np.int64)
        remarks: defaultdict[tuple[int, str], list[Remark]] = defaultdict(list)
        for remark in known.remarks:
            remarks[remark.place, remark.stage].append(remark)
        rows = known.rows["row"][taken]
        stored = older.manifest
        manifest: ManifestTable = {}
        columns = file_format.manifest_columns(scheme, has_source_grid="source_rows" in stored)
        columns |= more
        for name in _LATER_COLUMNS:
            del columns[name]
        if missing := sorted(columns.keys() - stored.keys()):
            raise ReuseError(f"it lacks the column {missing[0]}")
        for name, kind in columns.items():
            values = stored[name][rows]
            manifest[name] = trimmed(values) if kind == file_format.STRING else values
        return cls(older, known, scheme, is_kept, links, taken, dict(remarks), manifest)

    def of_people(self, identities: npt.NDArray[np.uint64], key: bytes) -> "Kept":
        """Return the same rows with an identity each, keyed; shape (n, 2)."""
        everyone = np.zeros((len(self.known.rows), 2), np.uint64)
        everyone[self.places] = identities
        return replace(self, known=replace(self.known, identities=everyone, key=key))

    def fits(self, plan: Plan, is_kept: npt.NDArray[np.bool_]) -> bool:
        """Return whether each kept row has its place in the older file that the new one gives it.

        Parameters
        ----------
        is_kept : bool array
            By row of the plan.
        """
        before = self.older.places[self.known.rows["row"][self.places]]
        return (
            self.older.dtypes[file_format.IMAGES] == np.dtype(plan.image_dtype)
            and all(plan.offsets[name] == offset for name, offset in self.older.offsets.items())
            and np.array_equal(before, np.flatnonzero(is_kept))
        )

    def moved(self, path: str) -> "Kept":
        """Return the same rows in a file that has another name by now."""
        return replace(self, older=replace(self.older, path=Path(path)))

    def examined(self, first: int, stop: int) -> Examined:
        """Return what `examine` gave of some kept links."""
        mine = self.known.rows[self.places[first:stop]]
        contours = self.older.contours
        places = self.older.places[mine["row"]]
        starts, stops = (
            np.searchsorted(contours["row"], places, side) for side in ("left", "right")
        )
        counts = stops - starts
        chosen = np.concatenate([np.empty(0, np.int64), *map(np.arange, starts, stops)])
        lengths = contours["length"][chosen]
        ends = np.concatenate([[0], np.cumsum(contours["length"])])
        stretches = [np.empty((0, 2))]
        for begin, end in _joined(zip(ends[starts].tolist(), ends[stops].tolist(), strict=True)):
            axes = [contours[axis][begin:end] for axis in "xy"]
            stretches.append(np.stack(axes, axis=1))
        return Examined(
            n_links=stop - first,
            samples=[b""] * (stop - first),
            contours=np.stack(
                [np.repeat(np.arange(stop - first), counts), contours["label"][chosen], lengths],
                axis=1,
            ).astype(np.int64),
            vertices=np.concatenate(stretches),
            values=ValueRange(
                float(mine["lowest"].min()),
                float(mine["highest"].max()),
                is_whole=bool(mine["is_whole"].all()),
            ),
            identities=self.known.identities[self.places[first:stop]],
            basics=mine[list(BASICS.names or ())].astype(BASICS),
            findings=self._findings(first, stop, EXAMINED),
        )

    def rendered(self, first: int, stop: int, plan: Plan, place: int) -> Rendered:
        """Copy some kept rows unless they are in place, and return what `render` gave of them.

        Parameters
        ----------
        place : int
            The row of the first in the new file.

        Raises
        ------
        ReuseError
            The older file has other values, or the rows are not what was written.
        """
        if np.dtype(plan.image_dtype) != self.older.dtypes[file_format.IMAGES]:
            raise ReuseError("the images need another type of values now")
        places = self.places[first:stop]
        marks = self.known.marks[places].copy() if len(self.known.marks) else self.known.marks[:0]
        if str(self.older.path) != plan.path:
            self._copy(first, stop, plan, place)
        for n in range(len(marks)):
            row = int(self.known.rows["row"][places[n]])
            self._align(marks["alignment"], n, self.links[first + n], row, plan)
        return Rendered(
            is_good=[True] * (stop - first),
            manifest={name: values[first:stop] for name, values in self.manifest.items()},
            marks=marks,
            shapes=self._shapes(places),
            findings=self._findings(first, stop, RENDERED),
        )

    def keyed(
        self, identities: npt.NDArray[np.uint64], is_kept: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.uint64]:
        """Return identities of all rows with the key that those of kept rows have."""
        identities = identities.copy()
        identities[~is_kept] = keyed(identities[~is_kept], self.known.key)
        return identities

    def _copy(self, first: int, stop: int, plan: Plan, place: int) -> None:
        """Copy rows, requiring the digest of each."""
        self.older.check_whole()
        rows = self.older.places[self.known.rows["row"][self.places[first:stop]]].tolist()
        digests = self.manifest["row_xxh3"][first:stop].tolist()
        links = self.links[first:stop]
        size = plan.rows, plan.columns
        dtypes = self.older.dtypes
        most = max(1, _BLOCK_BYTES // plan.row_bytes[file_format.IMAGES])
        # One is read and compared with its digests while the other one is written.
        both = [
            {name: memoryview(bytearray(most * plan.row_bytes[name])) for name in dtypes}
            for _ in range(2)
        ]
        n_done = 0
        writing: Future[None] | None = None
        with (
            open_rows(plan) as target,
            open(self.older.path, "rb", buffering=0) as source,
            ThreadPoolExecutor(1) as writer,
        ):
            for (row, n_rows), buffers in zip(_runs(rows, most), itertools.cycle(both)):
                blocks = {}
                for name, dtype in dtypes.items():
                    n_bytes = plan.row_bytes[name]
                    view = buffers[name][: n_rows * n_bytes]
                    begin = self.older.offsets[name] + row * n_bytes
                    read_into(source.fileno(), view, begin)
                    # Else it takes a second to drop 4 GB when the older file is replaced.
                    forget(source.fileno(), begin, len(view))
                    blocks[name] = np.frombuffer(view, dtype).reshape(n_rows, *size)
                images, masks = blocks.values()
                for n in range(n_rows):
                    found = row_digest(links[n_done + n].key, images[n], masks[n])
                    if found != digests[n_done + n]:
                        raise ReuseError(f"its row {row + n} is not what was written")
                if writing is not None:
                    writing.result()
                writing = writer.submit(_write, target, plan, place + n_done, blocks)
                n_done += n_rows
            if writing is not None:
                writing.result()

    def _align(
        self,
        alignment: npt.NDArray[np.void],
        n: int,
        link: Link,
        row: int,
        plan: Plan,
    ) -> None:
        """Let the audit see what it sees in a full build: which rows it takes may have changed."""
        if not link.is_audited:
            alignment[n] = (math.nan, math.nan, NOT_AUDITED, 0)
        elif alignment["outcome"][n] == NOT_AUDITED:
            codes = {structure.label: structure.code for structure in self.scheme}
            polygons: defaultdict[int, list[Vertices]] = defaultdict(list)
            for label, vertices in self.older.polygons(row):
                polygons[codes[label]].append(vertices)
            regions = [Region(code, tuple(drawn), "") for code, drawn in polygons.items()]
            if (chosen := audited(regions, self.scheme, link.key)) is not None:
                image = self.older.image(row, plan)
                alignment[n] = tuple(measure(image, *chosen))  # type: ignore[arg-type]

    def _shapes(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.void]:
        shapes = self.known.shapes
        starts, stops = (np.searchsorted(shapes["row"], places, side) for side in ("left", "right"))
        chosen = np.concatenate([np.empty(0, np.int64), *map(np.arange, starts, stops)])
        mine: npt.NDArray[np.void] = shapes[chosen].copy()
        mine["row"] = np.repeat(np.arange(len(places)), stops - starts)
        return mine

    def _findings(self, first: int, stop: int, stage: str) -> list[Finding]:
        return [
            remark.about(link)
            for link, place in zip(
                self.links[first:stop], self.places[first:stop].tolist(), strict=True
            )
            for remark in self.remarks.get((place, stage), ())
        ]


def keyed(identities: npt.NDArray[np.uint64], key: bytes) -> npt.NDArray[np.uint64]:
    """Return keyed digests of identities; 0 stays 0. Without the key, nobody can try ids."""
    known = {0: 0}
    for value in set(identities.ravel().tolist()):
        if value:
            digest = hashlib.blake2b(value.to_bytes(8, "little"), key=key, digest_size=8).digest()
            known[value] = int.from_bytes(digest, "little") or 1
    flat = [known[value] for value in identities.ravel().tolist()]
    return np.array(flat, np.uint64).reshape(identities.shape)


def _joined(stretches: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Return stretches with those that follow each other put together."""
    joined: list[list[int]] = []
    for begin, end in stretches:
        if joined and joined[-1][1] == begin:
            joined[-1][1] = end
        else:
            joined.append([begin, end])
    return joined


def _write(
    file: FileIO, plan: Plan, first: int, blocks: Mapping[str, npt.NDArray[np.generic]]
) -> None:
    for name, block in blocks.items():
        write_rows(file, plan, name, first, block)
        begin_writeback(file, plan, name, first, len(block))


def _runs(rows: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Yield (first row, number of rows) of rows that follow each other, cut at `most`."""
    start = 0
    for n in itertools.count(1):
        if n == len(rows) or rows[n] != rows[n - 1] + 1 or n - start == most:
            yield rows[start], n - start
            start = n
        if n >= len(rows):
            return
