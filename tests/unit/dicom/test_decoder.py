import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from etl.dicom import decoder
from etl.dicom.decoder import Decoder, Request
from etl.errors import ImageError, limited

REQUEST = Request(b"frame", "1.2.840.10008.1.2.4.80", "pyjpegls", 2, 3, 16, 12, False)
FAKES = {
    "abort": "import os; decoder.decode_by_pydicom = lambda request: os.abort()",
    "hang": "decoder.decode_by_pydicom = lambda request: [None for _ in iter(int, 1)]",
    "raise": "decoder.decode_by_pydicom = lambda request: {}[request.frame]",
    "print": "decoder.decode_by_pydicom = lambda request: print('x' * 99) or request.frame",
}


@pytest.fixture
def decoding(monkeypatch):
    """Return a decoder whose process does something else than to decode."""
    made = []

    def make(fake):
        head, tail = decoder._COMMAND.split("decoder.serve()")
        monkeypatch.setattr(decoder, "_COMMAND", f"{head}\n{FAKES[fake]}\ndecoder.serve(){tail}")
        made.append(Decoder())
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_a_decoder_that_crashes_costs_one_frame(decoding, monkeypatch):
    broken = decoding("abort")
    with pytest.raises(ImageError, match="makes its decoder crash") as caught:
        broken.decode(REQUEST)
    assert caught.value.code == "image-unreadable"
    monkeypatch.undo()
    with pytest.raises(ImageError, match="cannot be decoded"):  # by a new process
        broken.decode(REQUEST)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timer")
def test_a_decoder_that_never_comes_back_is_ended(decoding):
    told = r"busy for over 1 s\. .* --limit decoder-seconds=2\."
    with limited((("decoder-seconds", 1),)), pytest.raises(ImageError, match=told):
        decoding("hang").decode(REQUEST)  # or this test never ends


def test_a_decoder_that_raises_goes_on(decoding):
    broken = decoding("raise")
    for _ in range(3):
        with pytest.raises(ImageError, match="cannot be decoded"):
            broken.decode(REQUEST)


def test_what_a_decoder_prints_is_no_answer(decoding, capfd):
    assert decoding("print").decode(REQUEST) == b"frame"
    assert capfd.readouterr() == ("", "")


def test_threads_take_turns(decoding):
    chatty = decoding("print")
    frames = [bytes([n]) * 100_000 for n in range(20)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda frame: chatty.decode(REQUEST._replace(frame=frame)), frames))
    assert found == frames


def test_a_process_that_died_in_between_is_an_error_and_replaced(decoding):
    chatty = decoding("print")
    chatty.decode(REQUEST)
    chatty._process.kill()
    chatty._process.wait()
    with pytest.raises(ImageError, match="crash"):
        chatty.decode(REQUEST)
    assert chatty.decode(REQUEST) == b"frame"


def test_the_process_ends_with_its_decoder(decoding):
    chatty = decoding("print")
    chatty.decode(REQUEST)
    process = chatty._process
    chatty.close()
    assert process.returncode == 0
    chatty.close()


SCRIPT = """
import os, sys
import numpy as np
from pydicom.pixels.encoders.base import get_encoder
from etl.dicom.decoder import SHARED, Request
syntax = "1.2.840.10008.1.2.4.80"
frame = get_encoder(syntax).encode(
    np.arange(256, dtype="<u2").reshape(16, 16), rows=16, columns=16, samples_per_pixel=1,
    bits_allocated=16, bits_stored=12, pixel_representation=0,
    photometric_interpretation="MONOCHROME2", number_of_frames=1,
)
cells = SHARED.decode(Request(bytes(frame), syntax, "pyjpegls", 16, 16, 16, 12, False))
print(SHARED._process.pid, *np.frombuffer(cells, "<u2"))
if "kill" in sys.argv:
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("ending", ["", "kill"])
def test_no_process_is_left_and_no_stranger_is_imported(ending, tmp_path):
    (tmp_path / "etl.py").write_text("raise SystemExit('a stranger')")
    (tmp_path / "pydicom.py").write_text("raise SystemExit('a stranger')")
    run = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT, ending],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    pid, *values = map(int, run.stdout.split())
    assert values == list(range(256))
    assert run.returncode == (-9 if ending else 0)
    deadline = time.monotonic() + 300
    while is_running(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
