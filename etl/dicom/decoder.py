"""A process beside each worker that runs the decoders of others.

On a damaged frame such a decoder may abort its process or never come back. So it has a process of
its own, which is started when the first frame needs it: what happens to it costs one image.
"""

import atexit
import contextlib
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

from etl.errors import ImageError, most

# A frame gets the limit "decoder-seconds" of processor time, and a second more for each so many
# pixels: a fiftieth of what the slowest decoder does.
PIXELS_A_SECOND: Final = 100_000

_LENGTH: Final = struct.Struct("<Q")
_ANSWER: Final = struct.Struct("<?Q")
# Nothing is imported from the current folder (-P), whose modules may have our names.
_COMMAND: Final = (
    "import sys; sys.path.insert(0, sys.argv[1]); from etl.dicom import decoder; decoder.serve()"
)


class Request(NamedTuple):
    """One encoded frame, and what pydicom's decoders want to know of it."""

    frame: bytes
    transfer_syntax_uid: str
    plugin: str
    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    is_signed: bool


class Decoder:
    """Has frames decoded by a process of its own."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._lock = threading.Lock()

    def decode(self, request: Request) -> bytes:
        """Return the pixel cells of a frame, little-endian.

        Raises
        ------
        ImageError
            The decoder does not understand the frame, crashes on it, or takes too long; the message
            goes on from the frame's name.
        """
        with self._lock:
            process = self._running()
            try:
                is_decoded, cells = _ask(process, request)
            except (OSError, EOFError) as error:
                status = self._buried()
                raise ImageError("image-unreadable", _death(status)) from error
        if not is_decoded:
            raise ImageError("image-unreadable", "cannot be decoded. Export it again.")
        return cells

    def close(self) -> None:
        """End the process, if there is one."""
        with self._lock:
            if self._process is not None and self._owner == os.getpid():
                self._buried()

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._process is None or self._owner != os.getpid():  # a fork has no process of its own
            root = str(Path(__file__).parents[2])
            self._process = subprocess.Popen(  # noqa: S603  our own code
                [sys.executable, "-P", "-c", _COMMAND, root],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # decoders write there as they like
            )
            self._owner = os.getpid()
        return self._process

    def _buried(self) -> int:
        """Return the exit status of the process, which is no more."""
        process, self._process = self._process, None
        if process is None:
            return 0
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        return process.wait()


def _death(status: int) -> str:
    """Return what a frame does to a decoder that ended with this status."""
    if status != -getattr(signal, "SIGPROF", 0):
        return "makes its decoder crash. Export it again."
    seconds = most("decoder-seconds")
    return (
        f"keeps its decoder busy for over {seconds} s. Export it again, or allow more: --limit "
        f"decoder-seconds={2 * seconds}."
    )


def _ask(process: "subprocess.Popen[bytes]", request: Request) -> tuple[bool, bytes]:
    if process.stdin is None or process.stdout is None:
        raise EOFError
    question = pickle.dumps((most("decoder-seconds"), *request), pickle.HIGHEST_PROTOCOL)
    process.stdin.write(_LENGTH.pack(len(question)) + question)
    process.stdin.flush()
    is_decoded, length = _ANSWER.unpack(_read(process.stdout, _ANSWER.size))
    return is_decoded, _read(process.stdout, length)


def _read(stream: IO[bytes], length: int) -> bytes:
    data = stream.read(length)
    if len(data) != length:
        raise EOFError
    return data


def serve() -> None:
    """Answer requests on standard input until it ends: the whole of the other process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the worker ends it, by closing the pipe
    import pydicom.pixels.decoders.base  # noqa: F401  before the clock runs

    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # decoders print, and not only errors
        while header := sys.stdin.buffer.read(_LENGTH.size):
            question = _read(sys.stdin.buffer, *_LENGTH.unpack(header))
            seconds, *values = pickle.loads(question)  # noqa: S301  the worker's
            request = Request(*values)
            with _limited(seconds + request.rows * request.columns // PIXELS_A_SECOND):
                try:
                    cells = decode_by_pydicom(request)
                except Exception:  # noqa: BLE001  decoders raise whatever their parsing meets
                    cells = None
            answers.write(_ANSWER.pack(cells is not None, len(cells or b"")) + (cells or b""))
            answers.flush()


@contextlib.contextmanager
def _limited(seconds: int) -> Iterator[None]:
    """Let the system end this process after so much processor time, wherever it is then."""
    if not hasattr(signal, "setitimer"):
        yield
        return
    signal.setitimer(signal.ITIMER_PROF, seconds)
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)


def decode_by_pydicom(request: Request) -> bytes:
    """Return the pixel cells of a frame, little-endian, by a decoder that pydicom knows."""
    import numpy as np
    from pydicom.pixels.decoders.base import get_decoder

    frame = request.frame + b"\0" * (len(request.frame) % 2)
    buffer = b"\xfe\xff\0\xe0\0\0\0\0\xfe\xff\0\xe0" + struct.pack("<I", len(frame)) + frame
    decoder = get_decoder(request.transfer_syntax_uid)
    cells, _ = decoder.as_array(
        buffer, raw=True, decoding_plugin=request.plugin, **_options(request)
    )
    kind, n_bytes = ("i" if request.is_signed else "u"), request.bits_allocated // 8
    return np.asarray(cells).astype(f"<{kind}{n_bytes}").tobytes()


def _options(request: Request) -> dict[str, Any]:  # pydicom types each option as all of them
    return {
        "rows": request.rows,
        "columns": request.columns,
        "samples_per_pixel": 1,
        "photometric_interpretation": "MONOCHROME2",
        "number_of_frames": 1,
        "pixel_representation": int(request.is_signed),
        "bits_allocated": request.bits_allocated,
        "bits_stored": request.bits_stored,
        "pixel_keyword": "PixelData",
    }


SHARED: Final = Decoder()
atexit.register(SHARED.close)
