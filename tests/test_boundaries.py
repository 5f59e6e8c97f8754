"""The rooms of the house: which may import which, and what importing costs."""

import ast
import functools
import graphlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from etl.verify import processes
from etl.workers import local_pool

PROJECT = Path(__file__).parents[1]
MOST_MODULES_ON_TOP = 18

# The room of each module is that of the longest name here that it begins with.
ROOMS = {
    "etl": "command",
    "etl.__main__": "command",
    "etl.check": "command",
    "etl.cli": "command",
    "etl.commands": "command",
    "etl.pipeline": "command",
    "etl.errors": "records",
    "etl.findings": "records",
    "etl.geometry": "records",
    "etl.labels": "records",
    "etl.model": "records",
    "etl.options": "records",
    "etl.assemble": "stages",
    "etl.diagnose": "stages",
    "etl.examine": "stages",
    "etl.render": "stages",
    "etl.review": "stages",
    "etl.spool": "stages",
    "etl.contours": "contours",
    "etl.dicom": "dicom",
    "etl.output": "output",
    "etl.phantom": "phantom",
    "etl.quality": "quality",
    "etl.report": "report",
    "etl.resampling": "resampling",
    "etl.signals": "signals",
    "etl.sources": "sources",
    "etl.update": "update",
    "etl.verify": "verify",
    "etl.workers": "workers",
    "etl.workers.preload": "preload",
    "loader": "loader",
    "loader.errors": "loader",
    "loader.format": "format",
}

# Which rooms each room may import, besides itself.
MAY_IMPORT = {
    "format": set(),
    "signals": set(),
    "loader": {"format"},
    "records": {"format"},
    "contours": {"format", "records"},
    "resampling": {"contours", "format", "records"},
    "dicom": {"format", "records"},
    "sources": {"contours", "dicom", "format", "records"},
    "quality": {"contours", "format", "records"},
    "workers": {"format", "records", "signals", "sources"},
    "output": {"format", "loader", "records", "signals", "sources"},
    "stages": {
        "contours",
        "dicom",
        "format",
        "output",
        "quality",
        "records",
        "resampling",
        "sources",
        "workers",
    },
    "preload": {"stages"},
    "phantom": {"dicom", "records", "sources"},
    "update": {
        "dicom",
        "format",
        "loader",
        "output",
        "quality",
        "records",
        "sources",
        "stages",
        "workers",
    },
    "verify": {"format", "loader", "output", "quality", "records", "sources", "workers"},
    "report": {"format", "loader", "output", "quality", "records", "sources"},
    "command": {
        "dicom",
        "format",
        "loader",
        "output",
        "phantom",
        "quality",
        "records",
        "report",
        "signals",
        "sources",
        "stages",
        "update",
        "verify",
        "workers",
    },
}


def sources():
    """Return module name → path of every module of both packages."""
    found = {}
    for package in ("etl", "loader"):
        for path in sorted((PROJECT / package).rglob("*.py")):
            parts = path.relative_to(PROJECT).with_suffix("").parts
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


MODULES = sources()


def room(module):
    parts = module.split(".")
    names = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    return next(ROOMS[name] for name in names if name in ROOMS)


@functools.cache
def nodes(path):
    """Return all nodes of a module's syntax tree; several tests ask for them."""
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def imported(module):
    """Yield the modules of the project that a module imports anywhere, functions included."""
    path = MODULES[module]
    for node in nodes(path):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".")
            package = package if path.name == "__init__.py" else package[:-1]
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, *filter(None, [node.module])])
            members = [f"{base}.{alias.name}" for alias in node.names]
            names = [member if member in MODULES else base for member in members]
        else:
            continue
        yield from (name for name in names if name.partition(".")[0] in {"etl", "loader"})


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_the_rooms_that_its_room_may(module):
    own = room(module)
    strange = {
        name: room(name)
        for name in imported(module)
        if room(name) != own and room(name) not in MAY_IMPORT[own]
    }
    assert not strange, f"{module} is of {own}, which may import {sorted(MAY_IMPORT[own])}"


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("etl")])
def test_of_the_loader_the_etl_imports_the_format_and_public_names_only(module):
    public = {"loader", "loader.errors", "loader.format"}
    assert {name for name in imported(module) if name.startswith("loader")} <= public


def test_the_arrows_between_rooms_go_one_way():
    assert set(MAY_IMPORT) == set(ROOMS.values())
    graphlib.TopologicalSorter(MAY_IMPORT).prepare()  # raises on a circle


def test_modules_directly_in_etl_are_few_and_each_has_a_room():
    on_top = {name for name in MODULES if name.startswith("etl") and name.count(".") <= 1}
    packages = {name for name in on_top if MODULES[name].name == "__init__.py"}
    assert on_top <= set(ROOMS), "name the room of the new module in ROOMS"
    assert len(on_top - packages | {"etl"}) <= MOST_MODULES_ON_TOP


def test_imports_are_found_wherever_and_however_they_are_written(tmp_path, monkeypatch):
    path = tmp_path / "engine.py"
    path.write_text(
        "import etl.render as a, numpy\n"
        "def f():\n    from etl import cli, build\n    from ..output import split\n"
        "    from . import local_pool\n    from .local_pool import LocalPool\n"
    )
    monkeypatch.setitem(MODULES, "etl.workers.engine", path)
    assert list(imported("etl.workers.engine")) == [
        "etl.render",
        "etl.cli",
        "etl",
        "etl.output.split",
        "etl.workers.local_pool",
        "etl.workers.local_pool",
    ]


def test_no_string_names_a_module_of_ours():
    """Such a string goes stale in silence when the module moves."""
    dotted = {name for name in MODULES if "." in name}
    found = [
        (module, node.value)
        for module, path in MODULES.items()
        for node in nodes(path)
        if isinstance(node, ast.Constant) and node.value in dotted
    ]
    assert found == []


@pytest.mark.parametrize(
    "name",
    [local_pool._PRELOAD, *(processes.preloaded(with_sources=one) for one in (False, True))],
)
def test_what_workers_preload_is_there(name):
    """The server that they fork from passes over a module that it does not find."""
    assert name in MODULES
    assert importlib.util.find_spec(name) is not None


PROBE = """
import sys
import loader
forbidden = {"etl", "pydicom", "click", "PIL", "tqdm", "xxhash", "torch", "dask", "distributed"}
print(sorted(forbidden & {name.partition(".")[0] for name in sys.modules}))
print(sorted({"numpy", "h5py"} & set(sys.modules)))
print(loader.__all__)
"""


def test_importing_loader_loads_nothing_of_the_build_and_nothing_heavy():
    run = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    loaded, heavy, public = run.stdout.splitlines()
    assert (loaded, heavy) == ("[]", "[]")
    names = [
        "Augment",
        "Batches",
        "Dataset",
        "GridPatches",
        "LoaderError",
        "Neighbours",
        "Patches",
        "PerBatch",
        "__version__",
    ]
    assert public == str([*names, "open_dataset"])


@pytest.mark.parametrize("package", ["etl", "loader"])
def test_every_public_name_is_imported_when_it_is_used(package):
    code = (
        f"import {package} as p; print([n for n in p.__all__ if getattr(p, n) is None]); "
        "print(getattr(p, 'no_such_name', 'none'))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["[]", "none"]


def test_the_help_loads_nothing_that_a_build_needs():
    code = (
        "import sys\nfrom etl.cli import cli\ncli(['--help'], standalone_mode=False)\n"
        "heavy = {'numpy', 'h5py', 'pydicom', 'PIL', 'tqdm', 'xxhash', 'multiprocessing'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stderr == "[]\n"


def test_a_build_by_one_process_does_not_wait_for_what_only_others_import():
    code = (
        "import sys, etl.pipeline\n"
        "others = {'PIL', 'difflib', 'multiprocessing', 'pydicom', 'tomllib', 'tqdm'}\n"
        "print(sorted(others & set(sys.modules)))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs Linux's list of threads")
@pytest.mark.parametrize("given", ["", "2"])
def test_a_command_starts_no_threads_of_blas_unless_they_are_asked_for(given, monkeypatch):
    """Each would spin for a tenth of a second, in each process."""
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OPENBLAS_NUM_THREADS", given)
    code = (
        "import os, etl.cli, etl.__main__\n"
        "def run():\n"
        "    import numpy\n"
        "    print(len(os.listdir('/proc/self/task')))\n"
        "etl.cli.main = run\n"
        "etl.__main__.main()\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    n_cores = len(os.sched_getaffinity(0))
    assert int(run.stdout) == (min(2, n_cores) if given else 1)


@pytest.mark.parametrize("before", ["", "import numpy"])
def test_the_collector_does_not_look_at_what_a_command_imports(before):
    """Nor is it touched in a process that another program's objects are in."""
    code = (
        f"{before}\n"
        "import gc\n"
        "from etl.commands.imports import importing\n"
        "with importing():\n"
        "    inside = gc.isenabled()\n"
        "    import etl.pipeline\n"
        "print(inside, gc.isenabled(), gc.get_freeze_count() > 10_000)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == ("True True False\n" if before else "False True True\n")
