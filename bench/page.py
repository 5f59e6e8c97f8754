"""What the page of the report costs: seconds, memory, size, and the time to its first picture.

    python bench/page.py --pairs 10000

Builds a file of --pairs different rows, reports it with and without a page, and prints the seconds
of one core, the peak of anonymous memory (mapped pages of the file are not counted), the size of
the page, and, where Playwright and Chromium are installed, how long a browser takes. BENCH_TMP
names the folder to work in.
"""

import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

sys.path.pop(0)  # this folder, whose loader.py is not the package

_ANONYMOUS = re.compile(r"^RssAnon:\s+(\d+) kB", re.MULTILINE)
_SAMPLE_SECONDS = 0.02


def make_tree(folder: Path, n_pairs: int) -> None:
    """Write the tree of bench/build.py, which takes this folder off the path as well."""
    spec = importlib.util.spec_from_file_location(
        "bench_build", Path(__file__).with_name("build.py")
    )
    if spec is None or spec.loader is None:
        raise ImportError("bench/build.py")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, "")
    spec.loader.exec_module(module)
    module.make_tree(folder, n_pairs)


def measured(command: list[str]) -> tuple[float, float]:
    """Run dicom-etl; return seconds of processor and the peak of anonymous MB."""
    before = os.times()
    process = subprocess.Popen([sys.executable, "-m", "etl", *command], stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        with contextlib.suppress(OSError, TypeError):
            status = Path(f"/proc/{process.pid}/status").read_text()
            peak = max(peak, int(_ANONYMOUS.search(status)[1]))  # type: ignore[index]
        time.sleep(_SAMPLE_SECONDS)
    if process.returncode:
        raise SystemExit(process.returncode)
    after = os.times()
    spent = after.children_user + after.children_system
    return spent - before.children_user - before.children_system, peak / 1024


def seconds_to_first_picture(page: Path) -> float | None:
    """Return how long a browser takes from asking for the page to its first picture."""
    browser = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    if browser is None:
        return None
    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        shown = started.new_page()
        began = time.perf_counter()
        shown.goto(page.as_uri(), wait_until="commit")
        shown.wait_for_selector(".picture img")
        taken = time.perf_counter() - began
        started.close()
    return taken


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--pairs", default=1000, show_default=True, help="Rows of the file.")
def main(pairs: int) -> None:
    """Make the file, and measure."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_TMP")) as name:
        folder = Path(name)
        make_tree(folder, pairs)
        out, page = folder / "out.h5", folder / "page.html"
        options = ["--split", "70/15/15", "--quiet"]
        measured(["build", str(folder / "tree"), str(out), *options])
        measured(["report", str(out)])  # the file is in the page cache from here on
        plain = measured(["report", str(out)])
        whole = measured(["report", str(out), "--html", str(page)])
        print(f"{pairs} rows, {out.stat().st_size / 1e6:.0f} MB")
        for what, (seconds, memory) in (("report", plain), ("report --html", whole)):
            print(f"{what:<14} {seconds:6.1f} s of one core, {memory:5.0f} MB of anonymous memory")
        print(f"page           {page.stat().st_size / 1e6:.1f} MB")
        if (taken := seconds_to_first_picture(page)) is not None:
            print(f"first picture  {taken:.2f} s after the page was asked for")


if __name__ == "__main__":
    main()
