"""OUT itself: what may be replaced, by whom, and how a new file takes its name."""

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import socket
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from etl.errors import EtlError
from etl.output.row_writer import ReadBackError, write_at
from etl.signals import stop_deferred
from loader import format as file_format

try:
    import fcntl
except ImportError:  # Windows: two builds to one OUT are not kept apart
    fcntl = None  # type: ignore[assignment]

_HDF5_SIGNATURE: Final = b"\x89HDF\r\n\x1a\n"
_STEM_CHARACTERS: Final = 40  # of OUT's name: the other names, too, have at most 255 bytes
_NO_LOCKS: Final = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EACCES}
_MAX_NAME_BYTES: Final = 255  # of a file
_OWNER_BYTES: Final = 1024  # of a lock file that are read


def check_target(out: Path, *, force: bool, only_hdf5: bool = True, other_way: str = "") -> Path:
    """Require that OUT can be written, before any work.

    Parameters
    ----------
    other_way : str
        For the message: what the user may give instead of `force`.
    only_hdf5 : bool
        With `force`, replace nothing but an HDF5 file or an empty one: another is OUT by mistake.

    Returns
    -------
    Path
        The absolute path to write: what OUT points to where it is a symbolic link.

    Raises
    ------
    EtlError
        OUT exists (without `force`), is not what may be replaced, or its folder is missing or not
        writable.
    """
    where = f"Output not usable: {out}"
    target = Path(os.path.realpath(out)) if os.path.islink(out) else out.absolute()
    folder = target.parent
    try:
        mode = _mode(target)
        if stat.S_ISDIR(mode):
            raise EtlError(f"{where}: is a folder. Give the name of a file in it.")
        if not stat.S_ISDIR(_mode(folder)):
            raise EtlError(f"{where}: no folder {folder}. Make it first.")
        if mode and not stat.S_ISREG(mode):
            raise EtlError(f"{where}: is a device or pipe, expected a file's name.")
        if mode and not force:
            raise EtlError(f"{where}: exists already. Use `force=True` to replace it{other_way}.")
        if mode and only_hdf5:
            with target.open("rb") as file:
                if file.read(len(_HDF5_SIGNATURE)) not in {b"", _HDF5_SIGNATURE}:
                    raise EtlError(
                        f"{where}: is not an HDF5 file: not replaced. Give another name."
                    )
        if not os.access(folder, os.W_OK | os.X_OK):
            raise EtlError(f"{where}: no permission to write in {folder}.")
    except OSError as error:
        raise _failed(out, error) from error
    return target


def _mode(path: Path) -> int:
    """Return the mode of what is there, 0 where there is nothing."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0


def check_space(out: Path, n_pixels: int, mask_dtype: str, n_held: int = 0) -> None:
    """Require room for that number of pixels of images and masks, before any work.

    Parameters
    ----------
    n_held : int
        Bytes that a partial file has already, which the build may go on with.

    Raises
    ------
    EtlError
        Less is free; what `hdf5_file.create` reserves later is exact.
    """
    dtypes = file_format.IMAGE_DTYPES[0], mask_dtype
    needed = n_pixels * sum(np.dtype(one).itemsize for one in dtypes)
    free = shutil.disk_usage(out.parent).free + n_held
    if free < needed:
        raise EtlError(
            f"Output not written: {out}: no space left (needs {needed / 1e6:.0f} MB, "
            f"{free / 1e6:.0f} MB free). Free some, or choose another disk."
        )


@contextlib.contextmanager
def replacing(
    out: Path,
    *,
    force: bool,
    notes: list[str] | None = None,
    left: "Left | None" = None,
) -> Iterator[Path]:
    """Yield a new file beside OUT that takes its name when it is whole and on disk.

    On any error, and on Ctrl-C, the new file is removed and OUT is as it was. Nothing that fails
    later than the change of names is an error: OUT is the new file then.

    Parameters
    ----------
    notes : list of str, optional
        What did not succeed after that is added here.
    left : Left, optional
        Which files of killed builds stay until OUT is replaced; without it they are removed now.

    Raises
    ------
    EtlError
        Another process writes OUT, or the new file cannot be written.
    """
    partial = out.with_name(f".{_stem(out)}.{secrets.token_hex(8)}.partial")
    lock = _Lock(out)
    stays = left is not None and left.stays
    try:
        with stop_deferred():
            lock.take()
        if lock.is_taken:
            kept = [] if left is None else list(filter(left.is_useful, _partials(out)))
            remove_leftovers(out, kept)
            if left is not None:
                left.partials = kept
        os.close(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666))
        yield partial
        _sync(partial)
        with stop_deferred():
            _rename(partial, out, force=force)
            stays = False
            if lock.is_taken:
                remove_leftovers(out, [])
    except OSError as error:
        raise _failed(out, error) from error
    finally:
        with stop_deferred():
            if not (stays and left is not None and left.is_useful(partial)):
                for path in (partial, journal_path(partial)):
                    with contextlib.suppress(OSError):  # it would hide what went wrong before
                        path.unlink(missing_ok=True)
            lock.release()
    try:
        _sync(out.parent)
    except OSError as error:
        if notes is not None:
            notes.append(
                f"{out} is written, but its folder could not be synchronised "
                f"({_reason(error)}): a power cut may bring back what was there before."
            )


@dataclass
class Left:
    """Partial files of builds that were killed, which a later one may go on with.

    Attributes
    ----------
    is_useful : callable
        Partial file → whether a build can.
    stays : bool
        Whether this build, too, leaves its own where it fails or is stopped.
    partials : list of Path
        Those that were found; filled by `replacing` where nobody else writes OUT.
    """

    is_useful: Callable[[Path], bool]
    stays: bool = False
    partials: list[Path] = field(default_factory=list)


def beside(out: Path, suffix: str) -> Path:
    """Return the place of a file that goes with OUT; where OUT's name is long, a shorter one."""
    name = f"{out.name}{suffix}"
    if len(os.fsencode(name)) > _MAX_NAME_BYTES:
        name = f"{_stem(out)}{suffix}"
    return out.with_name(name)


def journal_path(partial: Path) -> Path:
    """Return the place of the journal of a partial file."""
    return partial.with_suffix(".journal")


def leftovers(out: Path) -> list[Path]:
    """Return the partial files beside OUT; none while another process writes it."""
    if not _partials(out):
        return []  # and nobody who begins to write just now finds it locked
    lock = _Lock(out)
    try:
        lock.take()
    except (EtlError, OSError):
        return []
    try:
        return _partials(out) if lock.is_taken else []
    finally:
        lock.release()


class _Lock:
    """Keeps others from writing OUT: a lock on a file beside it that ends with the process.

    Where the file system has no locks, or the file is another user's, it is not taken, and two
    builds to one OUT are not kept apart: the last one to finish wins.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._path = out.with_name(f".{_stem(out)}.lock")
        self._descriptor: int | None = None

    @property
    def is_taken(self) -> bool:
        return self._descriptor is not None

    def take(self) -> None:
        """Take the lock, if there are locks.

        Raises
        ------
        EtlError
            Another process has it.
        OSError
            The name of this process cannot be written into it.
        """
        if fcntl is None:
            return
        try:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise self._refusal() from error
        except OSError as error:
            self.release()
            if error.errno not in _NO_LOCKS:
                raise
            return
        if not _is_still(self._path, self._descriptor):  # its owner removed it just now
            os.close(self._descriptor)
            self._descriptor = None
            self.take()
            return
        os.ftruncate(self._descriptor, 0)
        write_at(self._descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)

    def release(self) -> None:
        """Remove the file, and only then let go of its lock."""
        if self._descriptor is None:
            return
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            os.close(self._descriptor)
        self._descriptor = None

    def _refusal(self) -> EtlError:
        """Let go of the file of another process, and return the error that names that process."""
        assert self._descriptor is not None  # noqa: S101  it is open, but not locked
        owner = os.read(self._descriptor, _OWNER_BYTES).decode(errors="replace")
        os.close(self._descriptor)
        self._descriptor = None
        return EtlError(
            f"Output not usable: {self._out}: {owner or 'another process'} is writing it. "
            "Wait for it, or give another name."
        )


def _is_still(path: Path, descriptor: int) -> bool:
    """Return whether a path names the open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _partials(out: Path) -> list[Path]:
    """Return the partial files beside OUT."""
    return [path for path in _leftovers(out) if path.suffix == ".partial"]


def _leftovers(out: Path) -> list[Path]:
    pattern = rf"\.{re.escape(_stem(out))}\.[0-9a-f]{{16}}\.(partial(\.whole)?|journal)"
    with contextlib.suppress(OSError):
        names = [entry.name for entry in os.scandir(out.parent)]
        return [out.with_name(name) for name in sorted(names) if re.fullmatch(pattern, name)]
    return []


def remove_leftovers(out: Path, kept: Sequence[Path]) -> None:
    """Remove what killed builds have left: nobody writes it, since the lock is ours."""
    stay = {*kept, *map(journal_path, kept)}
    for path in _leftovers(out):
        if path not in stay:
            with contextlib.suppress(OSError):  # it stays, and costs room only
                path.unlink()


def _stem(out: Path) -> str:
    """Return what the names of the other files begin with: one for each OUT, not too long."""
    if len(out.name) <= _STEM_CHARACTERS:
        return out.name
    digest = hashlib.blake2b(os.fsencode(out.name), digest_size=4).hexdigest()
    return f"{out.name[:_STEM_CHARACTERS]}~{digest}"


def _sync(path: Path) -> None:
    """Wait until a file or folder is on disk; without it a power cut can lose old and new."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        return  # Windows opens no folders
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename(partial: Path, out: Path, *, force: bool) -> None:
    """Give the new file its name; without `force` never over a file that has come meanwhile."""
    if force:
        partial.replace(out)
        return
    try:
        os.link(partial, out)
    except FileExistsError as error:
        raise EtlError(
            f"Output not usable: {out}: was created while the build was running. "
            "Use `force=True` to replace it."
        ) from error
    except OSError:  # a file system without hard links
        partial.rename(out)


def _failed(out: Path, error: OSError) -> EtlError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return EtlError(f"Output not written: {out}: no space left. Free some, or choose a disk.")
    if isinstance(error, ReadBackError):
        return EtlError(
            f"Output not written: {out}: the disk returns other bytes than were written "
            f"({error.what}). Choose another disk."
        )
    return EtlError(f"Output not written: {out}: {_reason(error)}.")


def _reason(error: OSError) -> str:
    """Return why; not error.strerror, which may be a library's text with addresses."""
    return os.strerror(error.errno).lower() if error.errno else "input/output error"
