"""Functions that worker processes of the tests run; they must be importable there."""

import os
import signal
import threading
import time
from pathlib import Path

from etl.workers import watchdog


def square(numbers):
    return [number * number for number in numbers]


def square_or_die(numbers):
    """Die of a task that has a negative number in it."""
    if min(numbers) < 0:
        time.sleep(0.02)  # the others of this moment are under way as well
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


def square_or_hang(n_seconds, numbers):
    """Take that long for each number that is negative; each is a file."""
    for number in numbers:
        watchdog.next_file()
        if number < 0:
            time.sleep(n_seconds)
    return square(numbers)
