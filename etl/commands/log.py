"""The log file of a build."""

import datetime
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TextIO

import click

from etl.commands.terminal import as_typed, print_line, reason
from etl.errors import EtlError
from loader.format import VERSION

_LOG_WORD: Final = b"dicom-etl "  # what a log begins with


class Log:
    """The log file, or none; what it cannot take is told once and stops nothing."""

    def __init__(self, file: TextIO | None) -> None:
        self._file = file
        self._started = time.monotonic()

    def begin(self, command: str, options: dict[str, object]) -> None:
        """Write what is run, when, and with which options."""
        import json

        self.add(f"dicom-etl {VERSION} {command}")
        self.add(f"started {datetime.datetime.now().astimezone():%Y-%m-%d %H:%M:%S %z}")
        self.add(f"options {json.dumps(options)}")

    def end(self, outcome: str) -> None:
        """Write how it ended, and after how long."""
        self.add(f"{as_typed(outcome)} (after {time.monotonic() - self._started:.1f} s)")

    def add(self, text: str) -> None:
        """Write one line."""
        from etl.findings import printable

        if self._file is not None:
            self._try(self._file.write, f"{printable(text)}\n")

    def close(self) -> None:
        """Close the file, if there is one."""
        if self._file is not None:
            self._try(self._file.close)

    def _try(self, action: Callable[..., object], *arguments: str) -> None:
        try:
            action(*arguments)
        except OSError as error:
            self._file = None
            print_line(f"Note: the log file is not whole: {reason(error)}.", err=True)


@contextmanager
def opened_log(path: Path | None, out: Path) -> Iterator[Log]:
    """Yield the log, which is appended to."""
    if path is not None and os.path.realpath(path) == os.path.realpath(out):
        raise click.UsageError("--log-file is OUT itself: give another file.")
    log = Log(None if path is None else _open_log(path))
    try:
        yield log
    finally:
        log.close()


def _open_log(path: Path) -> TextIO:
    where, advice = f"Log file not usable: {path}", "Give another --log-file."
    try:
        if os.path.exists(path):
            if not os.path.isfile(path):  # to open a pipe may last for ever
                raise EtlError(f"{where}: is a folder, device or pipe. {advice}")
            with path.open("rb") as file:
                head = file.read(len(_LOG_WORD))
            if head not in {b"", _LOG_WORD}:
                raise EtlError(f"{where}: is no log of dicom-etl, left as it is. {advice}")
        return path.open("a", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise EtlError(f"{where}: {reason(error)}. {advice}") from error
