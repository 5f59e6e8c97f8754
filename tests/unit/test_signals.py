import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from etl import cli, signals


@pytest.fixture(autouse=True)
def _restored(monkeypatch):
    before = {number: signal.getsignal(number) for number in signals.STOPPING}
    for number in signals.STOPPING:  # nohup and shells in the background ignore some
        signal.signal(number, signal.SIG_DFL)
    # However long this machine pauses between two signals of a test, they come at once.
    monkeypatch.setattr(signals, "_GRACE_SECONDS", 1e9)
    monkeypatch.setattr(signals, "_last_stop", -1e9)
    monkeypatch.setattr(signals, "_is_done", None)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def deliver(number):
    """Send a signal to this process, and give Python the chance to run its handler."""
    os.kill(os.getpid(), number)
    time.sleep(0)


@pytest.mark.parametrize("number", signals.STOPPING)
def test_each_request_to_stop_raises_with_its_number(number):
    signals.raise_on_stop()
    with pytest.raises(KeyboardInterrupt) as stop:
        deliver(number)
    assert stop.value.args == (number,)


def test_a_second_one_does_not_break_off_the_cleaning_but_a_later_one_does(monkeypatch):
    signals.raise_on_stop()
    with pytest.raises(KeyboardInterrupt):
        deliver(signal.SIGINT)
    deliver(signal.SIGINT)
    deliver(signal.SIGTERM)
    monkeypatch.setattr(signals, "_GRACE_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        deliver(signal.SIGTERM)


def test_one_that_was_ignored_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    signals.raise_on_stop()
    deliver(signal.SIGHUP)
    with signals.stop_deferred():
        deliver(signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_nothing_stops_what_is_done():
    signals.raise_on_stop()
    done = []
    signals.ignore_stop_once(lambda: bool(done))
    with pytest.raises(KeyboardInterrupt), signals.stop_deferred():
        deliver(signal.SIGTERM)
    signals._last_stop = -signals._GRACE_SECONDS
    with signals.stop_deferred():
        deliver(signal.SIGTERM)
        done.append(True)
    deliver(signal.SIGINT)
    signals.ignore_stop()
    signals.ignore_stop_once(lambda: False)
    deliver(signal.SIGINT)


def test_a_deferred_one_comes_when_the_block_is_done_whatever_ends_it():
    signals.raise_on_stop()
    steps = []

    def work():
        deliver(signal.SIGINT)
        steps.append("done")
        raise ZeroDivisionError

    with pytest.raises(KeyboardInterrupt), signals.stop_deferred():
        work()
    assert steps == ["done"]
    assert signal.getsignal(signal.SIGINT) == signals.stop


def test_in_another_thread_nothing_is_deferred_since_nothing_comes():
    before = [signal.getsignal(number) for number in signals.STOPPING]
    seen = []

    def enter():
        with signals.stop_deferred():
            seen.append([signal.getsignal(number) for number in signals.STOPPING])

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_handler_that_python_does_not_know_is_left_alone(monkeypatch):
    known = signal.getsignal
    monkeypatch.setattr(signal, "getsignal", lambda n: None if n == signal.SIGHUP else known(n))
    with signals.stop_deferred():
        assert known(signal.SIGHUP) == signal.SIG_DFL
        assert known(signal.SIGTERM) != signal.SIG_DFL


def test_the_exit_status_is_the_shells():
    assert signals.why_stopped(KeyboardInterrupt()) == ("Interrupted", 130)
    assert signals.why_stopped(KeyboardInterrupt(signal.SIGINT)) == ("Interrupted", 130)
    assert signals.why_stopped(KeyboardInterrupt(signal.SIGTERM)) == ("Stopped by SIGTERM", 143)


def test_ctrl_c_during_the_imports_ends_the_process_without_a_word():
    code = (
        "import os, signal, sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'click': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "from etl.__main__ import main\n"
        "main()\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (-signal.SIGINT, b"", b"")


@pytest.mark.parametrize("number", signals.STOPPING)
def test_one_that_comes_before_a_command_runs_has_its_own_status(number, monkeypatch, capsys):
    """Click raises an Abort from what it meets while it reads the arguments."""
    monkeypatch.setattr(cli.cli, "make_context", lambda *_, **__: deliver(number))
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 128 + number
    why = "Interrupted" if number == signal.SIGINT else f"Stopped by {signal.Signals(number).name}"
    assert capsys.readouterr().err.strip() == f"{why}."
