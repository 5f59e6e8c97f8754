"""What the journal costs a build that is not killed, and what a resume saves.

    python bench/resume.py --pairs 4000 --rounds 7

Makes a tree of --pairs different pairs. Each round builds it by turns with its journal and without
one, and then goes on with a build that was killed when half of its rows were noted. Prints medians.
BENCH_TMP names the folder to work in.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

sys.path.pop(0)  # this folder, whose loader.py is not the package

COMMAND = Path(sys.executable).with_name("dicom-etl")
RUN = "import etl.cli; etl.cli.main()"
WITHOUT = """
import etl.update.memory as memory
class Nothing:
    notes = []
    def __init__(self, begun): pass
    def add(self, first, part): pass
    def close(self): pass
memory.Journal = Nothing
"""


def make_tree(folder: Path, n_pairs: int) -> None:
    """Write the tree that `bench/build.py` writes."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import build; from pathlib import Path; "
    code += "build.make_tree(Path(sys.argv[2]), int(sys.argv[3]))"
    here = Path(__file__).parent
    subprocess.run([sys.executable, "-c", code, here, folder, str(n_pairs)], check=True)


def seconds_of_build(tree: Path, out: Path, code: str) -> tuple[float, float]:
    """Return the time from start to end of a build, and the processor time of its main process.

    Workers are no children of the process that waits, and write no journal.
    """
    before = os.times()
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, "build", tree, out, "--quiet"], check=True)
    seconds = time.perf_counter() - started
    after = os.times()
    out.unlink()
    worked = after.children_user + after.children_system
    return seconds, worked - before.children_user - before.children_system


def seconds_of_resume(tree: Path, out: Path, n_pairs: int) -> float:
    """Kill a build when half of its rows are noted; return how long the resume takes."""
    from etl.update.journal import count_rows

    with subprocess.Popen([COMMAND, "build", tree, out, "--quiet"]) as process:
        while process.poll() is None:
            partials = list(out.parent.glob(f".{out.name}.*.partial"))
            if partials and count_rows(partials[0])[0] >= n_pairs // 2:
                process.kill()
                break
            time.sleep(0.05)
    started = time.perf_counter()
    subprocess.run([COMMAND, "build", tree, out, "--quiet", "--resume"], check=True)
    seconds = time.perf_counter() - started
    out.unlink()
    return seconds


@click.command()
@click.option("--pairs", default=4000, show_default=True)
@click.option("--rounds", default=7, show_default=True)
def main(pairs: int, rounds: int) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_TMP")) as name:
        folder = Path(name)
        make_tree(folder, pairs)
        tree, out = folder / "tree", folder / "out.h5"
        time.sleep(3)  # so that the stamps of the sources are settled
        kinds = {"with journal": RUN, "without": WITHOUT + RUN}
        walls: dict[str, list[float]] = {kind: [] for kind in kinds}
        worked: dict[str, list[float]] = {kind: [] for kind in kinds}
        resumes = []
        for number in range(rounds):
            for kind in sorted(kinds, reverse=bool(number % 2)):
                os.sync()
                wall, processor = seconds_of_build(tree, out, kinds[kind])
                walls[kind].append(wall)
                worked[kind].append(processor)
            resumes.append(seconds_of_resume(tree, out, pairs))
        for kind in kinds:
            wall, processor = statistics.median(walls[kind]), statistics.median(worked[kind])
            print(f"{kind:13s} {wall:6.2f} s   processor {processor:6.2f} s")
        for what, found in (("wall", walls), ("processor", worked)):
            ratio = statistics.median(found["with journal"]) / statistics.median(found["without"])
            print(f"{what:13s} {100 * (ratio - 1):+6.1f} %")
        print(f"resume of half {statistics.median(resumes):5.2f} s")


if __name__ == "__main__":
    main()
