"""The journal beside a partial file: what a later build needs to go on with its rows.

Each frame has its own digest; what follows a frame that is not whole is not read. The journal
proves no pixel: it holds the digest of each row, and `proved` compares the bytes in the partial
file with it. It holds plain values, and names no class.
"""

import contextlib
import io
import itertools
import os
import pickle
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xxhash

from etl.findings import Finding, SampleKey
from etl.output.row_writer import Plan, read_at, row_digest
from etl.output.target import journal_path
from etl.quality.rows import SHAPES
from etl.render import MARKS, Rendered
from etl.update.known import EXAMINED, RENDERED, ROW, Known, Remark, shapes_of
from etl.update.older import Older
from etl.update.sources import STAMP, Stamp
from loader import format as file_format

# Rows of another version are parsed again, so that its journals need not be read.
_MAGIC: Final = f"dicom-etl journal 2 of version {file_format.VERSION}\n".encode()
_FRAME: Final = struct.Struct("<QQ16s")  # length of the content, number of rows, digest
_SYNC_SECONDS: Final = 10.0
_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0)


@dataclass(frozen=True, eq=False)
class Begun:
    """What a journal begins with: all that is known before the first row is rendered.

    Attributes
    ----------
    plan : Plan
    basis : str
        What every row depends on besides its sources.
    key : bytes
        Of the digests of identities.
    rows : array of ROW
        One for each row of the plan.
    identities : uint64 array, shape (n, 2)
        Keyed digests of `Identity`, one for each row of the plan.
    contours : int64 array, shape (n, 3)
        (row, label, number of vertices).
    examined : sequence of Finding
        Those of the examination.
    stamps : mapping
        The states of the sources before they were read.
    """

    plan: Plan
    basis: str
    key: bytes
    rows: npt.NDArray[np.void]
    identities: npt.NDArray[np.uint64]
    contours: npt.NDArray[np.int64]
    examined: Sequence[Finding]
    stamps: Mapping[str, Stamp]


class Journal:
    """Writes the journal of a partial file; what the disk does not take ends it, not the build."""

    def __init__(self, begun: Begun) -> None:
        self.notes: list[str] = []
        self._path = journal_path(Path(begun.plan.path))
        self._has = np.zeros(begun.plan.n_rows, np.bool_)
        self._descriptor: int | None = None
        self._synced = time.monotonic()
        try:
            self._descriptor = os.open(self._path, _FLAGS, 0o600)
            self._write(_MAGIC)
        except OSError as error:
            self._give_up(error)
        self._append(begun.plan.n_rows, _plain_begun(begun))

    def add(self, first: int, part: Rendered) -> None:
        """Note the rows that are written from `first` on, unless they are noted already."""
        rows = slice(first, first + len(part.is_good))
        if self._descriptor is None or self._has[rows].all():
            return
        self._has[rows] = True
        self._append(sum(part.is_good), _plain_part(first, part))
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Wait until all that was noted is on disk."""
        if self._descriptor is not None:
            try:
                os.fsync(self._descriptor)
            except OSError as error:
                self._give_up(error)
        self._synced = time.monotonic()

    def close(self) -> None:
        """Close the file, which stays."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = None

    def _append(self, n_rows: int, plain: object) -> None:
        content = pickle.dumps(plain, pickle.HIGHEST_PROTOCOL)
        head = _FRAME.pack(len(content), n_rows, _digest(n_rows, content))
        try:
            self._write(head + content)
        except OSError as error:
            self._give_up(error)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view and self._descriptor is not None:
            view = view[os.write(self._descriptor, view) :]

    def _give_up(self, error: OSError) -> None:
        self.close()
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
        reason = (error.strerror or "input/output error").lower()
        self.notes = [
            f"{self._path.name} could not be written ({reason}): had the build been "
            "killed, --resume would have parsed everything."
        ]


def count_rows(partial: Path) -> tuple[int, int]:
    """Return how many rows the journal of a partial file has noted, and how many there will be.

    (0, 0) where this version cannot use it.
    """
    if not partial.exists():
        return 0, 0
    numbers = [n_rows for n_rows, _ in _frames(journal_path(partial))]
    return (sum(numbers[1:]), numbers[0]) if numbers else (0, 0)


def is_useful(partial: Path) -> bool:
    """Return whether a build can go on with a partial file."""
    return count_rows(partial)[0] > 0


def read_begun(partial: Path) -> Begun | None:
    """Return what the journal of a partial file begins with; None where it cannot be read."""
    for _, content in _frames(journal_path(partial)):
        plain: Any = _Plain(io.BytesIO(content)).load()
        plan, basis, key, rows, identities, contours, examined, paths, stamps = plain
        states = np.frombuffer(stamps, STAMP).tolist()
        return Begun(
            plan=Plan(str(partial), *plan),
            basis=basis,
            key=key,
            rows=np.frombuffer(rows, ROW),
            identities=np.frombuffer(identities, np.uint64).reshape(-1, 2),
            contours=np.frombuffer(contours, np.int64).reshape(-1, 3),
            examined=[_finding(one) for one in examined],
            stamps=dict(zip(paths, map(Stamp._make, states), strict=True)),
        )
    return None


def proved(partial: Path, begun: Begun, shown: Callable[[int], object]) -> tuple[Older, Known]:
    """Return the rows of a partial file whose bytes are those that its journal has noted.

    Parameters
    ----------
    shown : callable
        Told the number of rows that were compared.
    """
    plan = begun.plan
    frames = itertools.islice(_frames(journal_path(partial)), 1, None)
    parts: list[Any] = [_Plain(io.BytesIO(content)).load() for _, content in frames]
    older = _older(partial, plan, begun.contours, parts)
    is_proved = np.zeros(len(older.places), np.bool_)
    keys = _keys(older.manifest)
    with contextlib.suppress(OSError), partial.open("rb", buffering=0) as file:
        ends = np.concatenate([[0], np.cumsum(older.contours["length"])])
        for n, (place, key) in enumerate(zip(older.places.tolist(), keys, strict=True)):
            is_proved[n] = _has_row(file.fileno(), older, plan, n, key) and (
                _vertices_digest(older, place, ends) == int(begun.rows["vertices"][place])
            )
            shown(1)
    good = np.flatnonzero(is_proved)
    rows = begun.rows[older.places[good]].copy()
    rows["row"] = good
    marks = np.frombuffer(b"".join(part[3] for part in parts), MARKS)
    return older, Known(
        rows=rows,
        marks=marks[good] if len(marks) else marks,
        shapes=shapes_of(_shapes(parts), good),
        remarks=_remarks(begun, parts, [keys[n] for n in good.tolist()]),
        identities=begun.identities[older.places[good]],
        key=begun.key,
    )


def _older(
    partial: Path, plan: Plan, contours: npt.NDArray[np.int64], parts: Sequence[Any]
) -> Older:
    places = [first + np.flatnonzero(is_good) for first, is_good, *_ in parts]
    columns: dict[str, list[npt.NDArray[np.generic]]] = {}
    for _, _, manifest, *_ in parts:
        for name, (dtype, data) in manifest.items():
            columns.setdefault(name, []).append(np.frombuffer(data, dtype))
    row, label, length = contours.T
    n_pixels = plan.rows * plan.columns
    axes = {axis: np.zeros(plan.n_vertices) for axis in "xy"}
    for axis, values in axes.items():
        with contextlib.suppress(OSError), partial.open("rb", buffering=0) as file:
            data = read_at(file.fileno(), 8 * plan.n_vertices, plan.offsets[f"contours/{axis}"])
            values[:] = np.frombuffer(data)
    return Older(
        name=partial.name,
        path=partial,
        dtypes={
            file_format.IMAGES: np.dtype(plan.image_dtype),
            file_format.MASKS: np.dtype(f"<u{plan.row_bytes[file_format.MASKS] // n_pixels}"),
        },
        offsets={name: plan.offsets[name] for name in (file_format.IMAGES, file_format.MASKS)},
        places=np.concatenate([np.empty(0, np.int64), *places]),
        manifest={name: np.concatenate(arrays) for name, arrays in columns.items()},
        contours={"row": row, "label": label, "length": length, **axes},
        check_whole=lambda: None,
    )


def _has_row(descriptor: int, older: Older, plan: Plan, n: int, key: SampleKey) -> bool:
    """Return whether the bytes of a row are there."""
    pixels = []
    for name, offset in older.offsets.items():
        size = plan.row_bytes[name]
        try:
            data = read_at(descriptor, size, offset + int(older.places[n]) * size)
        except OSError:
            return False
        pixels.append(np.frombuffer(data, np.uint8))
    image, mask = pixels
    return row_digest(key, image, mask) == int(older.manifest["row_xxh3"][n])


def _vertices_digest(older: Older, place: int, ends: npt.NDArray[np.int64]) -> int:
    """Return the digest of a row's vertices, as `BASICS` has it."""
    first, stop = ends[np.searchsorted(older.contours["row"], [place, place + 1])].tolist()
    axes = [older.contours[axis][first:stop] for axis in "xy"]
    return xxhash.xxh3_64_intdigest(np.stack(axes, axis=1).data if stop > first else b"")


def _keys(manifest: Mapping[str, npt.NDArray[np.generic]]) -> list[SampleKey]:
    if not manifest:
        return []
    columns = [manifest[name].tolist() for name in SampleKey._fields]
    return [
        SampleKey(patient.decode(), series.decode(), *numbers)
        for patient, series, *numbers in zip(*columns, strict=True)
    ]


def _shapes(parts: Sequence[Any]) -> npt.NDArray[np.void]:
    """Return the shapes of all parts, their rows counted on."""
    found = [np.empty(0, SHAPES)]
    n_rows = 0
    for _, is_good, _, _, shapes, _ in parts:
        mine = np.frombuffer(shapes, SHAPES).copy()
        mine["row"] += n_rows
        found.append(mine)
        n_rows += sum(is_good)
    return np.concatenate(found)


def _remarks(begun: Begun, parts: Sequence[Any], keys: Sequence[SampleKey]) -> list[Remark]:
    places = {key: n for n, key in enumerate(keys)}
    rendered = [_finding(one) for part in parts for one in part[5]]
    return [
        Remark(places[one.key], stage, one.code, one.path, one.message, one.label)
        for stage, findings in ((EXAMINED, begun.examined), (RENDERED, rendered))
        for one in findings
        if one.key in places
    ]


def _plain_begun(begun: Begun) -> object:
    plan = begun.plan
    return (
        (
            *(plan.n_rows, plan.rows, plan.columns, plan.image_dtype, plan.n_vertices),
            dict(plan.offsets),
            {},
            plan.mask_dtype,
        ),
        begun.basis,
        begun.key,
        begun.rows.tobytes(),
        begun.identities.tobytes(),
        begun.contours.tobytes(),
        [_plain_finding(one) for one in begun.examined if one.key is not None],
        list(begun.stamps),
        np.array(list(begun.stamps.values()), STAMP).tobytes(),
    )


def _plain_part(first: int, part: Rendered) -> object:
    return (
        first,
        list(map(bool, part.is_good)),
        {name: (values.dtype.str, values.tobytes()) for name, values in part.manifest.items()},
        part.marks.tobytes(),
        part.shapes.tobytes(),
        [_plain_finding(one) for one in part.findings if one.key is not None],
    )


def _plain_finding(one: Finding) -> object:
    return one.code, one.path, one.message, tuple(one.key or ()), one.label


def _finding(plain: tuple[str, str, str, tuple[Any, ...], int]) -> Finding:
    code, path, message, key, label = plain
    return Finding(code, path, message, SampleKey(*key), label)


def _frames(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (number of rows, content) of the frames of a journal, as far as they are whole."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            return
        while len(head := file.read(_FRAME.size)) == _FRAME.size:
            length, n_rows, digest = _FRAME.unpack(head)
            content = file.read(min(length, path.stat().st_size))
            if len(content) != length or _digest(n_rows, content) != digest:
                return
            yield n_rows, content


def _digest(n_rows: int, content: bytes) -> bytes:
    return xxhash.xxh3_128_digest(n_rows.to_bytes(8, "little") + content)


class _Plain(pickle.Unpickler):
    """Reads plain values only: a journal that somebody else wrote can execute nothing."""

    def find_class(self, module_name: str, global_name: str) -> object:
        raise pickle.UnpicklingError(f"expected plain values, found {module_name}.{global_name}")
