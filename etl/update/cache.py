"""The cache beside OUT: what an update needs of each row and OUT does not hold.

Every build leaves it, unless the user wants none. It is written after OUT and belongs to exactly
one OUT. No byte of OUT depends on it: without it an update parses everything.
"""

import io
import json
import zipfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from etl.errors import EtlError, ReuseError
from etl.findings import Finding, SampleKey
from etl.model import BASICS
from etl.output import target
from etl.quality.rows import SHAPES
from etl.render import MARKS
from etl.update.seal import Seal
from loader import Dataset

_MAGIC: Final = b"dicom-etl cache 4\n"  # another content gets another number
_OURS: Final = b"dicom-etl cache "  # what every version begins with
_DIGEST_BYTES: Final = 16

ROW: Final = np.dtype(
    [
        *BASICS.descr,
        ("row", "<i8"),  # of OUT
        ("patient", "<u8"),  # keyed digests of `Identity`
        ("study", "<u8"),
    ]
)
STAMP: Final = np.dtype(
    [("inode", "<u8"), ("size", "<i8"), ("mtime_ns", "<i8"), ("ctime_ns", "<i8")]
)
EXAMINED, RENDERED = "examined", "rendered"  # the stages that have findings on single rows


class Remark(NamedTuple):
    """A finding on one row, without its key."""

    place: int  # of the row, in the cache
    stage: str
    code: str
    path: str
    message: str
    label: int

    def about(self, key: SampleKey) -> Finding:
        """Return the finding."""
        return Finding(self.code, self.path, self.message, key, self.label)


@dataclass(frozen=True, eq=False)
class Cache:
    """What is known of the rows of one OUT.

    Attributes
    ----------
    out : str
        Fingerprint of the OUT that it belongs to.
    basis : str
        What every row depends on besides its sources: version, options, structures.
    key : bytes
        Of the digests of identities. Never in the file: empty after `read_cache`.
    seal : Seal or None
        The key, for those who have the sources; None before the cache is written.
    rows : array of ROW
        Rows that an update may take over.
    marks : array of MARKS
        One for each row; empty where the build made no checks.
    shapes : array of SHAPES
        `row` is the place in `rows`.
    remarks : list of Remark
    paths, stamps : list of str, array of STAMP
        The states of the sources before they were read.
    """

    out: str
    basis: str
    key: bytes
    rows: npt.NDArray[np.void]
    marks: npt.NDArray[np.void]
    shapes: npt.NDArray[np.void]
    remarks: list[Remark]
    paths: list[str]
    stamps: npt.NDArray[np.void]
    seal: Seal | None = None

    def opened(self, root: Path) -> "Cache":
        """Return the cache with its key.

        Raises
        ------
        ReuseError
            No source opens the seal.
        """
        if self.seal is None:
            raise ReuseError("its cache has no seal")
        return replace(self, key=self.seal.opened(root))


def cache_path(out: Path) -> Path:
    """Return the place of the cache."""
    return target.beside(out, ".cache")


def fingerprint(dataset: Dataset) -> str:
    """Return a digest of a file's attributes, which hold the digests of all that it has."""
    text = json.dumps(dataset.attributes, sort_keys=True, default=str)
    return xxhash.xxh3_128_hexdigest(text.encode())


def write_cache(path: Path, cache: Cache) -> None:
    """Write a cache that only its owner can read.

    Raises
    ------
    EtlError
        It cannot be written, or a file of that name is not dicom-etl's.
    """
    _require_ours(path)
    assert cache.seal is not None  # noqa: S101  it is sealed when all rows are known
    texts = [cache.out, cache.basis, asdict(cache.seal), cache.paths, cache.remarks]
    content = io.BytesIO()
    np.savez(
        content,
        texts=np.frombuffer(json.dumps(texts).encode(), np.uint8),
        rows=cache.rows,
        marks=cache.marks,
        shapes=cache.shapes,
        stamps=cache.stamps,
    )
    payload = content.getvalue()
    digest = xxhash.xxh3_128_digest(payload)
    with target.replacing(path, force=True) as partial:
        partial.chmod(0o600)
        partial.write_bytes(_MAGIC + digest + payload)


def remove_cache(path: Path) -> None:
    """Remove a cache, and what a killed build has left of one.

    Raises
    ------
    EtlError
        It cannot be removed, or a file of that name is not dicom-etl's.
    """
    try:
        _require_ours(path)
        path.unlink(missing_ok=True)
        target.remove_leftovers(path, [])
    except OSError as error:
        reason = (error.strerror or "input/output error").lower()
        raise EtlError(f"Not removed: {path}: {reason}. Delete it.") from error


def _require_ours(path: Path) -> None:
    """Require that there is nothing at the place of the cache but a cache.

    Raises
    ------
    EtlError
        A file of that name is not dicom-etl's.
    """
    try:
        with path.open("rb") as file:
            begin = file.read(len(_OURS))
    except FileNotFoundError:
        return
    except OSError as error:
        reason = (error.strerror or "input/output error").lower()
        raise EtlError(
            f"Not replaced: {path}: cannot be read ({reason}). Delete it, or build as its owner."
        ) from error
    if begin not in {b"", _OURS}:
        raise EtlError(
            f"Not replaced: {path}: is not a cache of dicom-etl. Give that file another name."
        )


def read_cache(path: Path) -> Cache:
    """Return the cache of a file.

    Raises
    ------
    ReuseError
        There is none, or it is damaged.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ReuseError(f"there is no {path.name}") from error
    except OSError as error:
        reason = (error.strerror or "input/output error").lower()
        raise ReuseError(f"{path.name} cannot be read ({reason})") from error
    start = len(_MAGIC) + _DIGEST_BYTES
    payload = data[start:]
    if data[:start] != _MAGIC + xxhash.xxh3_128_digest(payload):
        raise ReuseError(f"{path.name} is damaged, or of another version")
    try:
        arrays = np.load(io.BytesIO(payload), allow_pickle=False)
        out, basis, seal, paths, remarks = json.loads(arrays["texts"].tobytes())
        cache = Cache(
            out=out,
            basis=basis,
            key=b"",
            rows=arrays["rows"],
            marks=arrays["marks"],
            shapes=arrays["shapes"],
            remarks=[Remark(*remark) for remark in remarks],
            paths=paths,
            stamps=arrays["stamps"],
            seal=Seal(**seal),
        )
    except (ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise ReuseError(f"{path.name} is damaged, or of another version") from error
    kinds = [(cache.rows, ROW), (cache.marks, MARKS), (cache.shapes, SHAPES), (cache.stamps, STAMP)]
    if any(array.dtype != kind for array, kind in kinds):
        raise ReuseError(f"{path.name} is of another version")
    return cache


def rows_of(
    basics: npt.NDArray[np.void], identities: npt.NDArray[np.uint64]
) -> npt.NDArray[np.void]:
    """Return a ROW of each sample, by its basics and keyed identity; `row` is still 0."""
    rows = np.zeros(len(basics), ROW)
    for name in BASICS.names or ():
        rows[name] = basics[name]
    rows["patient"], rows["study"] = identities.T
    return rows


def shapes_of(shapes: npt.NDArray[np.void], rows: npt.NDArray[np.int64]) -> npt.NDArray[np.void]:
    """Return the shapes of some rows, counted anew."""
    places = np.full(int(shapes["row"].max(initial=-1)) + 1, -1, np.int64)
    inside = rows[rows < len(places)]
    places[inside] = np.arange(len(inside))
    mine = shapes[places[shapes["row"]] >= 0].astype(SHAPES)
    mine["row"] = places[mine["row"]]
    order = np.argsort(mine["row"], kind="stable")
    ordered: npt.NDArray[np.void] = mine[order]
    return ordered


def trimmed(texts: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Return stored text no longer than its longest value, as `strings` gives it."""
    longest = max((len(value) for value in texts.tolist()), default=0)
    return texts.astype(f"S{max(1, longest)}")
