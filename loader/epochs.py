"""How many epochs have begun, where no process knows it alone: the workers of a DataLoader."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, Final

from loader.errors import LoaderError
from loader.stream import Position

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_BEGINNING: Final = {"begun": 0, "begun_here": 0, "loaded": (0, 0)}
_N_JOINED: Final = 64  # iterations that are remembered, in which a worker may still begin


class Epochs:
    """How many epochs a process and the workers of its DataLoaders have begun, in a small file.

    Workers have nothing else in common that lasts from one iteration to the next, for fork and
    spawn alike. Each change is made under a lock, which ends with the process that holds it.

    Parameters
    ----------
    folder : str
        Of the data set and of all that other processes have of it.
    pid : int
        The process.
    start : mapping, optional
        What `read` returned of whom it goes on from.
    """

    def __init__(self, folder: str, pid: int, start: "Mapping[str, object] | None" = None) -> None:
        self._folder = folder
        self._path = os.path.join(folder, str(pid))
        self._start = dict(start or _BEGINNING) | {"joined": {}}

    def read(self) -> dict[str, Any]:
        """Return the record: epochs begun by anyone and by the process itself, what was loaded."""
        with self._changed() as record:
            return record

    def begin(self, token: str | None) -> Position:
        """Return where the epoch begins that an iteration is to have, new or begun by others of it.

        Parameters
        ----------
        token : str, optional
            What the workers of the iteration have in common; none for the process itself.
        """
        if fcntl is None and token is not None:
            raise LoaderError(
                "Epoch not begun: this system has no fcntl.flock, by which the workers of a "
                "DataLoader agree on it. Use num_workers=0 with prefetch=2."
            )
        with self._changed() as record:
            epoch: int = record["begun"]
            if token is None:
                record["begun"] = record["begun_here"] = epoch + 1
            elif token in record["joined"]:
                epoch = record["joined"][token]
            else:
                record["begun"] = epoch + 1
                self._join(record, token, epoch)
            loaded_epoch, loaded_batch = record["loaded"]
            return epoch, loaded_batch if epoch == loaded_epoch else 0

    def begin_loaded(self, token: str, epoch: int) -> None:
        """Begin an epoch that the workers of an iteration have loaded, and count on from there."""
        with self._changed() as record:
            record["begun"], record["begun_here"] = epoch + 1, 0
            self._join(record, token, epoch)

    def load(self, position: Position) -> None:
        """Have the next iteration begin at a position."""
        with self._changed() as record:
            record["begun"] = record["begun_here"] = position[0]
            record["loaded"] = position

    def remove(self) -> None:
        """Remove the file, and the folder with the last one."""
        with contextlib.suppress(OSError):
            os.unlink(self._path)
            os.rmdir(self._folder)

    @staticmethod
    def _join(record: dict[str, Any], token: str, epoch: int) -> None:
        joined = {**record["joined"], token: epoch}
        record["joined"] = dict(list(joined.items())[-_N_JOINED:])

    @contextlib.contextmanager
    def _changed(self) -> Iterator[dict[str, Any]]:
        """Hand out the record, and write it when it has changed.

        Raises
        ------
        LoaderError
            The file cannot be written.
        """
        try:
            file = self._opened()
            try:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX)
                text = os.read(file, os.fstat(file).st_size)
                record = json.loads(text) if text else dict(self._start)
                yield record
                # In one piece, never shorter than before: whoever is killed leaves it whole.
                changed = json.dumps(record).encode().ljust(len(text))
                if changed != text:
                    os.lseek(file, 0, os.SEEK_SET)
                    os.write(file, changed)
            finally:
                os.close(file)
        except OSError as error:
            raise LoaderError(
                f"Epoch not begun: {self._path}: the file that counts epochs cannot be written "
                f"({error.strerror}). Make room there, or set TMPDIR to another folder."
            ) from error

    def _opened(self) -> int:
        while True:
            os.makedirs(self._folder, 0o700, exist_ok=True)
            # Another process may just have removed the folder.
            with contextlib.suppress(FileNotFoundError):
                return os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
