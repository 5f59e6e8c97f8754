"""The command `dicom-etl`, and `python -m etl`."""

import os
import signal


def main() -> None:
    """Run `dicom-etl`."""
    # Until it handles signals itself, Ctrl-C ends it at once: no import breaks off in a traceback.
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # NumPy's OpenBLAS would start a thread for each core, which spin for a tenth of a second. The
    # matrices here are small, and processes share the work.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from etl.cli import main as run

    run()


if __name__ == "__main__":
    main()
