"""What every command shares: lines that steer no terminal, and options by the name one types."""

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click

_PYTHON_NAME: Final = re.compile(r"`([a-z_]+)(?:=True)?`")  # of an option, in messages
STDOUT: Final = Path("-")


def print_line(line: str, *, err: bool = False) -> None:
    """Print one line, in which a name, or a path, cannot steer the terminal.

    What stderr does not take stops nothing: there is nowhere to say so.
    """
    from etl.findings import printable

    with contextlib.suppress(OSError) if err else contextlib.nullcontext():
        click.echo(printable(line), err=err)


def as_typed(text: str) -> str:
    """Return a message with the options that one types for the names that Python has."""
    return _PYTHON_NAME.sub(lambda name: f"--{name[1].replace('_', '-')}", text)


def reason(error: OSError) -> str:
    """Return what the system says of an error, in the middle of a sentence."""
    return (error.strerror or "input/output error").lower()


def write_text(text: str, path: Path | None, *, force: bool) -> None:
    """Print a text, or write it to a file."""
    from etl.output import target

    if path == STDOUT:
        click.echo(text)
    elif path is not None:
        with target.replacing(
            target.check_target(path, force=force, only_hdf5=False), force=force
        ) as partial:
            partial.write_text(f"{text}\n", encoding="utf-8")
        print_line(f"Written: {path}.", err=True)


def given_names() -> set[str]:
    """Return the names of the parameters that were given."""
    context = click.get_current_context()
    default = click.core.ParameterSource.DEFAULT
    return {name for name in context.params if context.get_parameter_source(name) is not default}


def option_name(name: str) -> str:
    """Return the option of a parameter, as one types it."""
    command = click.get_current_context().command
    return next(one.opts[0] for one in command.params if one.name == name)


@contextmanager
def whole_whatever_fails(out: Path) -> Iterator[None]:
    """Say that OUT is written where what is told of it cannot be printed: that is no failure."""
    try:
        yield
    except OSError as error:
        silence_stdout()
        print_line(f"Note: {out} is written, but not all was printed: {reason(error)}.", err=True)


def silence_stdout() -> None:
    """Send what is left to print nowhere, so that it does not fail again at the exit."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
