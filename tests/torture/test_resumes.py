"""Kills at any moment of a build: the next one goes on with what is there, to the same bytes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from builders import instance, write_dicom, write_tree

import etl
from etl.options import BuildOptions

COMMAND = Path(sys.executable).with_name("dicom-etl")
OPTIONS = BuildOptions(rows=64, columns=64)
SLICES = range(1, 401)

pytestmark = pytest.mark.skipif(not hasattr(os, "killpg"), reason="signals are POSIX's")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_build_is_resumed_to_the_same_bytes(tmp_path, is_thorough, workers):
    rng = np.random.default_rng(workers)
    data, out = write_tree(tmp_path / "data", slices=SLICES), tmp_path / "out.h5"
    for n in SLICES:
        image = instance(rng.integers(0, 4000, (64, 64)).astype(np.uint16), uid=f"1.{n}")
        write_dicom(data, "P1", f"{n}.dcm", image)
    time.sleep(2.1)  # so that the stamps of the sources tell
    begin = time.monotonic()
    command = [COMMAND, "build", data, out, "--size", "64x64", "--workers", str(workers)]
    subprocess.run(command, check=True, capture_output=True)
    seconds = time.monotonic() - begin
    full = out.read_bytes()
    n_parsed = []
    for _ in range(30 if is_thorough else 3):
        out.unlink()
        for _ in range(rng.integers(1, 4)):  # kills one after the other
            with subprocess.Popen(
                [*command, "--resume"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            ) as process:
                time.sleep(seconds * rng.uniform(0.4, 1.0))
                process.kill()
            out.unlink(missing_ok=True)
        result = etl.build(data, out, OPTIONS, resume=True)
        assert out.read_bytes() == full
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            *("data", "out.h5", "out.h5.cache")
        ]
        taken = [note for note in result.notes if "were taken over" in note]
        n_parsed += [int(note.split("; ")[1].split()[0]) for note in taken]
    if is_thorough:
        assert min(n_parsed) < len(SLICES)
