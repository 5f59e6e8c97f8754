"""The command line: its commands, their errors as one message, and the exit status.

Heavy modules are imported by the command that needs them, so that --help is quick.
"""

import gc
import io
import os
import sys

import click

from etl import signals
from etl.commands.build import build
from etl.commands.check import check
from etl.commands.describe import describe
from etl.commands.phantom import phantom
from etl.commands.preview import preview
from etl.commands.report import report
from etl.commands.terminal import as_typed, print_line, reason, silence_stdout
from etl.commands.verify import verify
from etl.errors import EtlError
from loader.format import VERSION


class _Commands(click.Group):
    """Commands in the order a user runs them; our errors as one message and an exit status."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> object:
        from loader.errors import LoaderError

        try:
            return super().invoke(ctx)
        except (EtlError, LoaderError) as error:
            from etl.findings import printable

            raise click.ClickException(printable(as_typed(str(error)))) from error
        except KeyboardInterrupt as stop:
            why, status = signals.why_stopped(stop)
            print_line(f"{why}.", err=True)
            ctx.exit(status)


def main() -> None:
    """Run `dicom-etl`."""
    try:
        signals.raise_on_stop()
        status = _run()
        signals.ignore_stop()
    except (KeyboardInterrupt, click.Abort) as stop:  # while no command was running
        signals.ignore_stop()
        cause = stop.__cause__ if isinstance(stop, click.Abort) else stop  # click raises it from it
        why, status = signals.why_stopped(
            cause if isinstance(cause, KeyboardInterrupt) else KeyboardInterrupt()
        )
        print_line(f"{why}.", err=True)
    gc.freeze()  # the process ends: looking for cycles in all that is imported takes 50 ms
    sys.exit(status)


def _run() -> int:
    """Run the command that the arguments name, and return the exit status."""
    open_what_is_closed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name may have what the encoding lacks
            stream.reconfigure(errors="backslashreplace")
    try:
        return cli.main(prog_name="dicom-etl", standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except OSError:
        try:
            click.echo()  # fails again where it was this that failed
        except OSError as error:
            silence_stdout()
            print_line(f"Error: Not all was printed: stdout: {reason(error)}.", err=True)
            return 1
        raise


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="dicom-etl")
def cli() -> None:
    """Turn a folder of DICOM images and drawn contours into one HDF5 file, and look into it.

    \b
    dicom-etl check data/           what a build would take and refuse
    dicom-etl build data/ out.h5    parse every DICOM and contour once
    dicom-etl report out.h5         what is in it, and what looks wrong
    """  # noqa: D301  click wants the character itself: lines as they are


for _command in (check, build, report, describe, verify, preview, phantom):
    cli.add_command(_command)


def open_what_is_closed() -> None:
    """Give standard streams that the caller has closed a place, or our files would take theirs."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115  as long as the process
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
