"""Functions that worker processes of the tests run; they must be importable there."""

import os
import signal
import threading
import time
from pathlib import Path

from etl import render
from etl.workers import watchdog


def square(numbers):
    return [number * number for number in numbers]


def square_or_die(numbers):
    """Die of a task that has a negative number in it."""
    if min(numbers) < 0:
        time.sleep(0.02)  # the others of this moment are under way as well, mostly
        os.kill(os.getpid(), signal.SIGKILL)
    return square(numbers)


def square_or_die_once(marker, numbers):
    """Die once in all, where `marker` names a file that does not exist yet."""
    try:
        Path(marker).touch(exist_ok=False)
    except FileExistsError:
        return square(numbers)
    os.kill(os.getpid(), signal.SIGKILL)
    return []


def fail(numbers):
    raise ZeroDivisionError(str(numbers))


def square_or_die_answering(numbers):
    """Die in the middle of a large answer, where a number is negative."""
    if min(numbers) < 0:
        threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return bytes(1 << 28)  # takes longer to send than that
    return square(numbers)


def square_or_hang(numbers):
    """Hang at a number that is negative; each is a file."""
    for number in numbers:
        watchdog.next_file()
        if number < 0:
            hang()
    return square(numbers)


def seconds_left(numbers):
    """Return how long the first file of a task, and each of its files once begun, may take."""
    left = [signal.getitimer(signal.ITIMER_REAL)[0]]
    for _ in numbers:
        signal.setitimer(signal.ITIMER_REAL, 10**6)  # of the file before
        watchdog.next_file()
        left.append(signal.getitimer(signal.ITIMER_REAL)[0])
    return left


def render_or_hang(run, path, task):
    """Run a task of `render`, and hang at the pixels of one image."""
    read, hangs = render.read_frame, Path(path).read_bytes()

    def read_or_hang(data, *arguments):
        if data == hangs:
            hang()
        return read(data, *arguments)

    render.read_frame = read_or_hang
    try:
        return run(task)
    finally:
        render.read_frame = read


def hang():
    """Do nothing for a minute, in which a limit that is set strikes.

    It strikes within half a second, whatever it is: tests need not wait for one, and set one that
    no other file exceeds, however busy the machine is.
    """
    left = signal.getitimer(signal.ITIMER_REAL)[0]
    signal.setitimer(signal.ITIMER_REAL, left / (2 * left or 1))
    time.sleep(60)
