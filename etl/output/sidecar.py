"""OUT.sha256: the digest of OUT in the form that `sha256sum -c` reads."""

import hashlib
import os
from pathlib import Path

from etl.errors import EtlError
from etl.output import target


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal.

    Raises
    ------
    OSError
        It cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, hashlib.sha256).hexdigest()


def sidecar_path(out: Path) -> Path:
    """Return the place of OUT's sidecar."""
    return out.with_name(f"{out.name}.sha256")


def write_sidecar(out: Path, digest: str | None) -> list[str]:
    """Write the sidecar of the OUT that is in its place now; return what is worth knowing.

    Parameters
    ----------
    digest : str or None
        OUT's SHA-256; None where no sidecar is wanted.
    """
    path = sidecar_path(out)
    if digest is None:
        if os.path.exists(path):  # not so for a name that would be too long
            return [f"{path.name} is that of an older file. Give --sha256 to write it anew."]
        return []
    try:
        with target.replacing(path, force=True) as partial:
            partial.write_bytes(_line(digest, out.name))
    except EtlError as error:
        return [f"{out} is written, but {path.name} is not. {error}"]
    return []


def _line(digest: str, name: str) -> bytes:
    """Return the line of one file; coreutils marks a line whose name has what would break it."""
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    mark = "\\" * (escaped != name)
    return f"{mark}{digest}  {escaped}\n".encode("utf-8", "surrogateescape")
