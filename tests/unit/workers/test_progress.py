import io
import subprocess
import sys
import types

import pytest
from tqdm import auto

from etl.workers import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "shown", "is_drawn"),
    [(Terminal, True, True), (Terminal, False, False), (io.StringIO, True, False)],
)
def test_a_bar_is_for_terminals(monkeypatch, stream, shown, is_drawn):
    monkeypatch.setattr(sys, "stderr", stream())
    with progress.bar("rows", "pairs", 3, shown=shown) as step:
        step(3)
    assert ("rows" in sys.stderr.getvalue()) == is_drawn


@pytest.mark.parametrize("shown", [True, False])
def test_a_notebook_has_its_own_bar_although_its_streams_are_no_terminals(monkeypatch, shown):
    names = []

    class Bar(auto.tqdm):
        def __init__(self, **options):
            names.append(options["desc"])
            super().__init__(**options, file=io.StringIO())

    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    monkeypatch.setattr(auto, "tqdm", Bar)
    with progress.bar("rows", "pairs", 3, shown=shown) as step:
        step(3)
    assert names == ["rows"] * shown


def test_nothing_is_imported_for_a_bar_that_is_not_shown():
    code = (
        "import sys\nfrom etl.workers import progress\n"
        "with progress.bar('rows', 'pairs', 3, shown=True) as step:\n    step(3)\n"
        "print('tqdm' in sys.modules)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("False\n", "")
