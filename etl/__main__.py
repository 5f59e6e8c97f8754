"""The command `dicom-etl`, and `python -m etl`."""

import signal


def main() -> None:
    """Run `dicom-etl`."""
    # Until it handles signals itself, Ctrl-C ends it at once: no import breaks off in a traceback.
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from etl.cli import main as run

    run()


if __name__ == "__main__":
    main()
