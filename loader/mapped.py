"""A file mapped into memory, and whether it is still the file that was mapped."""

import contextlib
import mmap
import os
import stat
from typing import NamedTuple

import numpy as np

from loader.errors import LoaderError
from loader.structure import not_opened


class _Stamp(NamedTuple):
    """What the file system tells of a file; each write changes the time.

    The time of the last status change is not among it: a rename over the file, which leaves the
    mapped one as it was, changes that too.
    """

    device: int
    inode: int
    n_bytes: int
    modified: int  # in nanoseconds

    def __str__(self) -> str:
        """Return size and time."""
        return f"{self.n_bytes} bytes of {np.datetime64(self.modified // 1000, 'us')} UTC"


class MappedFile:
    """The memory map of a whole file, and a descriptor that tells whether the file has changed.

    The descriptor is of the mapped file, so that another file which takes its name is no change. A
    forked process has both; pickle neither.

    Parameters
    ----------
    path : str
        A regular file that is not empty.

    Attributes
    ----------
    buffer : mmap.mmap

    Raises
    ------
    LoaderError
        The file cannot be mapped.
    """

    def __init__(self, path: str) -> None:
        self._path = os.path.abspath(path)
        self._descriptor = _open(path)
        try:
            self._stamp = _stamp_of(self._descriptor)  # first: what is written later is a change
            if self._stamp.n_bytes == 0:
                raise not_opened(path, "the file is empty")
            self.buffer = mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise _refused(path, error) from error

    def __del__(self) -> None:
        """Close the descriptor; the map ends when no array needs it."""
        descriptor = getattr(self, "_descriptor", None)  # none where the file did not open
        if descriptor is not None:
            with contextlib.suppress(OSError):  # the process has closed it
                os.close(descriptor)

    def fileno(self) -> int:
        """Return the descriptor, of which reads raise an error where the disk fails."""
        return self._descriptor

    def check(self) -> None:
        """Check that nobody has written to the file or cut it short; one fstat, 2 microseconds.

        Raises
        ------
        LoaderError
            The file is no longer what was mapped.
        """
        try:
            found = _stamp_of(self._descriptor)
        except OSError as error:
            raise self._closed() from error
        if found != self._stamp:
            raise self._changed(found)

    def check_length(self) -> None:
        """Check that the file was not cut short: to touch a page that it lost kills the process.

        Before a batch is read this is enough, and takes a third of the time of `check`, which
        follows after it.

        Raises
        ------
        LoaderError
            It was.
        """
        with contextlib.suppress(OSError):
            if self.buffer.size() >= len(self.buffer):
                return
        self.check()

    def _changed(self, found: _Stamp) -> LoaderError:
        if found[:2] != self._stamp[:2]:
            return self._closed()
        if found.n_bytes < len(self.buffer):
            why = (
                f"the file was cut short while it was open (expected {len(self.buffer)} bytes, "
                f"found {found.n_bytes})"
            )
        else:
            why = (
                "the file was written to while it was open, so that samples may be wrong (expected "
                f"{self._stamp}, found {found})"
            )
        return LoaderError(
            f"Dataset not usable: {self._path}: {why}. Open the file again once it is whole; write "
            "a new file and rename it over the old one instead of writing into it."
        )

    def _closed(self) -> LoaderError:
        return LoaderError(
            f"Dataset not usable: {self._path}: this process has closed the file's descriptor, so "
            "that a change of the file would not be seen. Open the dataset after the step that "
            "closes all files, such as becoming a daemon."
        )


def _open(path: str) -> int:
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):  # opening a FIFO would wait for ever
            kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
            raise not_opened(path, kind, "Give a file that dicom-etl has built.")
        return os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except FileNotFoundError as error:
        what_to_do = "Check the path, or build the file: dicom-etl build DATA OUT."
        raise not_opened(path, "no such file", what_to_do) from error
    except PermissionError as error:
        what_to_do = "Ask for read permission on the file and its folder."
        raise not_opened(path, "no permission to read it", what_to_do) from error
    except (OSError, ValueError) as error:
        raise _refused(path, error) from error


def _refused(path: str, error: Exception) -> LoaderError:
    return not_opened(path, f"the system refused ({error})", "Check the path.")


def _stamp_of(descriptor: int) -> _Stamp:
    status = os.fstat(descriptor)
    return _Stamp(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
