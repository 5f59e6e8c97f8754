"""The cache beside OUT: the states of its sources, and keyed digests of whose they are.

Every build leaves it, unless the user wants none. It is written after OUT and belongs to exactly
one OUT. No byte of OUT depends on it: without it an update reads every source, and compares
digests.
"""

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import xxhash

from etl.errors import EtlError, ReuseError
from etl.output import target
from etl.update.seal import Seal
from etl.update.sources import STAMP, Stamp

_MAGIC: Final = b"dicom-etl cache 6\n"  # another content gets another number
_OURS: Final = b"dicom-etl cache "  # what every version begins with
_DIGEST_BYTES: Final = 16


@dataclass(frozen=True, eq=False)
class Cache:
    """What is known of the sources of one OUT.

    Attributes
    ----------
    out : str
        Fingerprint of the OUT that it belongs to.
    stamps : mapping of str to Stamp
        The states of the sources before they were read.
    identities : uint64 array, shape (n, 2)
        Keyed digests of `Identity`, one for each row of OUT's `Known`.
    seal : Seal
        The key of these digests, for those who have the sources.
    """

    out: str
    stamps: Mapping[str, Stamp]
    identities: npt.NDArray[np.uint64]
    seal: Seal


def cache_path(out: Path) -> Path:
    """Return the place of the cache."""
    return target.beside(out, ".cache")


def fingerprint(digests: object) -> str:
    """Return one digest of those in a file's attribute `digests`, which are of all that it has."""
    return xxhash.xxh3_128_hexdigest(json.dumps(digests, sort_keys=True).encode())


def write_cache(path: Path, cache: Cache) -> None:
    """Write a cache that only its owner can read.

    Raises
    ------
    EtlError
        It cannot be written, or a file of that name is not dicom-etl's.
    """
    _require_ours(path)
    texts = [cache.out, asdict(cache.seal), list(cache.stamps)]
    content = io.BytesIO()
    np.savez(
        content,
        texts=np.frombuffer(json.dumps(texts).encode(), np.uint8),
        identities=cache.identities,
        stamps=np.array(list(cache.stamps.values()), STAMP),
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
        out, seal, paths = json.loads(arrays["texts"].tobytes())
        stamps = map(Stamp._make, arrays["stamps"].astype(STAMP).tolist())
        return Cache(
            out=out,
            stamps=dict(zip(paths, stamps, strict=True)),
            identities=arrays["identities"].astype(np.uint64).reshape(-1, 2),
            seal=Seal(**seal),
        )
    except (ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise ReuseError(f"{path.name} is damaged, or of another version") from error
