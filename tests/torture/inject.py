"""Runs a small build once for each call that can fail, with that call failing; prints what broke.

    LD_PRELOAD=faults.so python inject.py DATA FOLDER replace|new thorough|quick ROWSxCOLUMNS

Each build is a fork of this process, which has everything imported, and must end in one of two
ways: status 0 and the new file, or status 1, a message, and the old one. Prints one JSON object.
"""

import contextlib
import ctypes
import errno
import json
import os
import resource
import sys
from pathlib import Path

from etl import cli, pipeline, spool  # noqa: F401  the pipeline: imported once, before the forks
from etl.report import summary  # noqa: F401  as above

KINDS = ("write", "fsync", "truncate", "allocate", "rename", "close", "create")
LIMIT = "limit"  # of a file's size, in bytes
N_LIMITS = 20
NO_FAULT = ("", 0, 0, 0)
SHORT = 0
ERRORS = {
    "write": (errno.ENOSPC, errno.EIO, errno.EDQUOT, SHORT),
    "fsync": (errno.EIO, errno.ENOSPC, errno.EDQUOT),
    "truncate": (errno.EIO, errno.ENOSPC, errno.EFBIG),
    "allocate": (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EOPNOTSUPP),
    "rename": (errno.ENOSPC, errno.EIO, errno.EDQUOT),
    "close": (errno.EIO, errno.ENOSPC, errno.EDQUOT),
    "create": (errno.ENOSPC, errno.EIO, errno.EDQUOT),
}
# What succeeds all the same: a short write is followed by another one.
HARMLESS = {("write", SHORT), ("allocate", errno.EOPNOTSUPP)}


class Injector:
    """Builds one command's OUT again and again."""

    def __init__(self, data, folder, options, *, is_there):
        self.faults = ctypes.CDLL(None)
        self.out = folder / "out.h5"
        self.folder = folder
        self.command = ["dicom-etl", "build", str(data), str(self.out), "--workers", "1", *options]
        self.is_there = is_there
        self.old = None
        self.new = None
        self.n_failed = 0

    def prepare(self):
        """Learn the bytes of both files, and how many calls of each kind there are."""
        folder = self.folder
        folder.mkdir()
        status, text, counts = self.build(None)
        assert status == 0, text
        self.new = self.out.read_bytes()
        self.old = b"\x89HDF\r\n\x1a\n the old file" if self.is_there else None
        return counts

    def restore(self):
        """Put the folder in the state before a build."""
        for path in self.folder.iterdir():
            path.unlink()
        if self.old is not None:
            self.out.write_bytes(self.old)

    def build(self, fault):
        """Build in a fork; return its status, what it printed, and its counts of calls."""
        reading, writing = os.pipe()
        counted, counting = os.pipe()
        child = os.fork()
        if not child:
            os.dup2(writing, 1)
            os.dup2(writing, 2)
            status = 70
            with contextlib.suppress(BaseException):
                status = self.run(fault)
                counts = [self.faults.fault_count(kind) for kind in range(len(KINDS))]
                self.faults.fault_arm(-1, 0, 0, 0)
                os.write(counting, json.dumps(counts).encode())
            os._exit(status)
        os.close(writing)
        os.close(counting)
        with open(reading, "rb") as output, open(counted, "rb") as counts:
            text = output.read().decode(errors="replace")
            found = counts.read()
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status), text, json.loads(found or "[]")

    def run(self, fault):
        """Run the command line, in the fork; return its status."""
        sys.argv = self.command
        sys.stdout, sys.stderr = (
            open(descriptor, "w", closefd=False)  # noqa: SIM115  as long as the process
            for descriptor in (1, 2)
        )
        kind, at, error, lasts = fault or NO_FAULT
        if kind == LIMIT:
            resource.setrlimit(resource.RLIMIT_FSIZE, (at, resource.RLIM_INFINITY))
        else:
            self.faults.fault_arm(KINDS.index(kind) if kind else -1, at, error, lasts)
        try:
            cli.main()
        except SystemExit as end:
            return end.code
        except BaseException:  # noqa: BLE001  as Python does with what nobody catches
            sys.excepthook(*sys.exc_info())
        return 1

    def judge(self, fault):
        """Return what is wrong after a build with this fault, or an empty string."""
        self.restore()
        kind, _, error, _ = fault
        status, text, _ = self.build(fault)
        self.n_failed += status == 1
        found = self.out.read_bytes() if self.out.exists() else None
        wrong = []
        names = {path.name for path in self.folder.iterdir()} - {"out.h5", "build.log"}
        if status == 0:
            is_told = "its cache is not" in text
            if is_told == ("out.h5.cache" in names):
                wrong.append("a cache that is told to be missing, or misses and is not told")
            names -= {"out.h5.cache"}
        if status not in {0, 1}:
            wrong.append(f"status {status}")
        if status == 0 and found != self.new:
            wrong.append("status 0, but not the new file")
        if status == 1 and found != self.old:
            wrong.append("status 1, but not the old file")
        if status == 1 and "Error: " not in text:
            wrong.append("no message")
        if status == 1 and (kind, error) in HARMLESS:
            wrong.append("failed of what is harmless")
        if "Traceback" in text or "Exception ignored" in text:
            wrong.append("a traceback")
        if names:
            wrong.append(f"left {sorted(names)}")
        return f"{', '.join(wrong)}: {text[-1500:]}" if wrong else ""


def faults(counts, size, *, thorough, every):
    """Yield every call with every error, or with one error after the other; and limits of size."""
    turn = 0
    for kind, n in zip(KINDS, counts, strict=True):
        for at in range(1, n + 1, every if kind == "write" and not thorough else 1):
            variants = [(error, lasts) for error in ERRORS[kind] for lasts in (0, 1)]
            for error, lasts in variants if thorough else [variants[turn % len(variants)]]:
                yield kind, at, error, lasts
            turn += 1
    for part in range(N_LIMITS):
        yield LIMIT, size * part // (N_LIMITS - 1), 0, 0


def main():
    data, folder, what, depth, size = sys.argv[1:]
    spool._SPOOL_BYTES = 1  # so that small builds, too, have spool files
    folder = Path(folder)
    options = ["--size", size]
    if what == "replace":  # rows that are left out, so that the others are copied
        log = ["--log-file", str(folder / "build.log")]
        options += ["--force", "--exclude-flagged", "contour-partly-outside", *log]
    injector = Injector(Path(data), folder, options, is_there=what == "replace")
    counts = injector.prepare()
    wrong, n_builds = {}, 0
    every = 1 if what == "replace" else 5  # the same writes, mostly
    for fault in faults(counts, len(injector.new), thorough=depth == "thorough", every=every):
        n_builds += 1
        if found := injector.judge(fault):
            wrong[str(fault)] = found
    result = {"calls": dict(zip(KINDS, counts, strict=True)), "builds": n_builds, "wrong": wrong}
    sys.stdout.write(json.dumps(result | {"failed": injector.n_failed}))


if __name__ == "__main__":
    main()
