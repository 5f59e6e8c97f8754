"""Reading source files without being stalled, led astray or fooled by a change.

Files that the user names, such as tables and settings, must not stall a run or fill its memory.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import xxhash

from etl.errors import MAX_SETTINGS_BYTES, EtlError, SourceError, beyond, most
from etl.model import FileStamp


def open_source(root: Path, path: str, code: str) -> "OpenSource":
    """Open a regular file below `root`; a context that yields its descriptor and stamp.

    Parameters
    ----------
    root : Path
        The input folder DATA.
    path : str
        Relative to `root`, `/`-separated.
    code : str
        The finding's code where the file cannot be opened.

    Raises
    ------
    SourceError
        Not a regular file, a link that leads out of `root`, or not readable. A FIFO would block a
        reader for ever, so the kind of file is asked before and after it is opened.
    """
    return OpenSource(root, path, code)


class OpenSource:
    """What `open_source` returns: a class, because a generator takes a quarter of the time."""

    __slots__ = ("_code", "_descriptor", "_path", "_root")

    def __init__(self, root: Path, path: str, code: str) -> None:
        self._root = root
        self._path = path
        self._code = code

    def __enter__(self) -> tuple[int, FileStamp]:
        """Open the file."""
        root, code = self._root, self._code
        full = f"{root}/{self._path}"
        try:
            before = os.lstat(full)
            if stat.S_ISLNK(before.st_mode):
                before = _follow(root, full, code)
            _require_regular(before, code)
            descriptor = os.open(full, os.O_RDONLY | _NONBLOCK | _BINARY)
        except OSError as error:
            raise SourceError(code, f"cannot be opened ({_reason(error)}).") from error
        try:
            opened = os.fstat(descriptor)
            _require_regular(opened, code)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return descriptor, _stamp(opened)

    def __exit__(self, *_: object) -> None:
        """Close it."""
        os.close(self._descriptor)


class FileBytes:
    """The bytes of a source file, read as slices of them are asked for.

    A reader that needs parts of a large file holds no more than these. All come from one state of
    the file. Without a descriptor it is opened for each slice, so that none is kept.

    Parameters
    ----------
    root, path
        As for `open_source`.
    stamp : FileStamp
        The state of the file.
    code : str
        The finding's code where it cannot be read, or has changed.
    descriptor : int, optional
        Of the file, open as long as parts are asked for.
    """

    def __init__(
        self, root: Path, path: str, stamp: FileStamp, code: str, descriptor: int | None = None
    ) -> None:
        self._root = root
        self._path = path
        self._stamp = stamp
        self._code = code
        self._descriptor = descriptor

    def __len__(self) -> int:
        """Return the size of the file."""
        return self._stamp.size

    def __getitem__(self, part: slice) -> bytes:
        """Return the bytes of a slice without a step.

        Raises
        ------
        SourceError
            The file cannot be read, or is not what it was.
        """
        start, stop, _ = part.indices(len(self))
        with self._opened() as descriptor:
            data = _read(descriptor, max(stop - start, 0), self._code, start)
            if not unchanged_since(descriptor, self._stamp):
                raise _changed(self._code)
        return data

    @contextmanager
    def _opened(self) -> Iterator[int]:
        if self._descriptor is not None:
            yield self._descriptor
        else:
            with open_source(self._root, self._path, self._code) as (descriptor, _):
                yield descriptor

    def digest(self) -> str:
        """Return the XXH3-128 of all bytes, hexadecimal."""
        found = xxhash.xxh3_128()
        for start in range(0, len(self), _BLOCK_BYTES):
            found.update(self[start : start + _BLOCK_BYTES])
        return found.hexdigest()


def read_all(descriptor: int, stamp: FileStamp, code: str) -> bytes:
    """Return the whole content of an open source file.

    Raises
    ------
    SourceError
        The file cannot be read, or `unchanged_since` no longer holds afterwards.
    """
    data = _read(descriptor, stamp.size, code)
    if len(data) != stamp.size or not unchanged_since(descriptor, stamp):
        raise _changed(code)
    return data


def _changed(code: str) -> SourceError:
    return SourceError(code, "changed while it was read. Build again when nothing writes to it.")


def _read(descriptor: int, length: int, code: str, start: int = 0) -> bytes:
    """Return `length` bytes, fewer only where the file ends."""
    parts: list[bytes] = []
    try:
        os.lseek(descriptor, start, os.SEEK_SET)
        while length > 0 and (part := os.read(descriptor, length)):
            parts.append(part)
            length -= len(part)
    except OSError as error:
        raise cannot_read(error, code) from error
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_named(path: Path, where: str, *, limit: str | None = None, expected: str = "") -> bytes:
    """Return the whole content of a file that the user names, such as a table or settings.

    Parameters
    ----------
    path : Path
    where : str
        What failed and where, the beginning of messages: "Card not usable: card.toml".
    limit : str, optional
        The name of the limit that the file must keep; None: MAX_SETTINGS_BYTES.
    expected : str
        What the file should have, for the message on one that is not regular: "the columns a,b".

    Raises
    ------
    OSError
        There is no such file, or the system does not let us read it.
    EtlError
        It is not a regular file, or has more bytes than it may have. Pipes and devices may have
        no end, so that none is read.
    """
    _require_named(path.stat(), where, expected)
    descriptor = os.open(path, os.O_RDONLY | _NONBLOCK | _BINARY)
    try:
        status = os.fstat(descriptor)
        _require_named(status, where, expected)
        allowed = MAX_SETTINGS_BYTES if limit is None else most(limit)
        if status.st_size > allowed:
            raise _too_large(where, limit, status.st_size)
        parts: list[bytes] = []
        n_read = 0
        # A file may have more than the system says of it: those in /proc are said to be empty.
        while part := os.read(descriptor, min(_BLOCK_BYTES, allowed + 1 - n_read)):
            parts.append(part)
            n_read += len(part)
            if n_read > allowed:
                raise _too_large(where, limit, None)
        return b"".join(parts)
    finally:
        os.close(descriptor)


def irregular(status: os.stat_result) -> str:
    """Return what a file is that is not regular, such as "a folder"; empty for a regular one."""
    if stat.S_ISREG(status.st_mode):
        return ""
    return "a folder" if stat.S_ISDIR(status.st_mode) else "a device, pipe or socket"


def _require_named(status: os.stat_result, where: str, expected: str) -> None:
    if kind := irregular(status):
        wanted = f"a file with {expected}" if expected else "a regular file"
        raise EtlError(f"{where}: is {kind}, expected {wanted}. Give the name of a file.")


def _too_large(where: str, limit: str | None, found: int | None) -> EtlError:
    """Return the error on a file with too many bytes; `found` is None where nobody counted them."""
    if limit is not None:
        return EtlError(f"{where}: {beyond(limit, found)}")
    has = f"more than {MAX_SETTINGS_BYTES}" if found is None else str(found)
    return EtlError(
        f"{where}: has {has} bytes, expected {MAX_SETTINGS_BYTES} at most. Give a file that has "
        "nothing but the settings."
    )


def cannot_read(error: OSError, code: str) -> SourceError:
    """Return the error for a source file that the system does not let us read."""
    return SourceError(code, f"cannot be read ({_reason(error)}).")


def unchanged_since(descriptor: int, stamp: FileStamp) -> bool:
    """Say whether the open file is still in the state that `stamp` describes."""
    return _stamp(os.fstat(descriptor)) == stamp


_BLOCK_BYTES: Final = 1 << 20
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)
_BINARY = getattr(os, "O_BINARY", 0)


def _stamp(status: os.stat_result) -> FileStamp:
    return FileStamp(status.st_ino, status.st_size, status.st_mtime_ns)


def _follow(root: Path, link: str, code: str) -> os.stat_result:
    """Return the status of a link's target, which must be inside `root`."""
    target = Path(os.path.realpath(link, strict=True))
    if not target.is_relative_to(os.path.realpath(root)):
        raise SourceError(code, "is a link that leads out of the input folder. Copy the file in.")
    return target.stat()


def _require_regular(status: os.stat_result, code: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise SourceError(code, f"is {irregular(status)}, expected a regular file.")


def _reason(error: OSError) -> str:
    return (error.strerror or "input/output error").lower()
