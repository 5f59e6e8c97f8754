"""Every example of the documentation runs, and prints what the page says.

The blocks of one page run in order in one empty folder. In a ```console block each `$ command` is
run by bash, and its output, stderr included, must be the lines below it; `...` matches anything. A
```python block is executed, all blocks of a page in one namespace; with `>>>` prompts its output is
compared too. A comment before a block says why that block is not run. A block inside of a comment
is run and not shown.
"""

import doctest
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from etl.sources import layouts

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page.relative_to(ROOT).as_posix()
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    if "_build" not in page.parts
)
BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>not run|needs): (?P<reason>.+?) -->\n+)?"
    r"^```(?P<language>console|python)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
COMMAND = re.compile(
    r"^\$ (?P<command>(?:[^\\\n]|\\.|\\\n)*)\n(?P<output>(?:(?!\$ ).*\n)*)", re.MULTILINE
)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Block:
    """One example, and the line of its page at which it begins."""

    language: str
    text: str
    line: int


def blocks_of(text):
    """Return the blocks of a page that run, and the modules that they need."""
    blocks, modules = [], set()
    for found in BLOCK.finditer(text):
        if found["mark"] == "not run":
            continue
        if found["mark"] == "needs":
            modules.add(found["reason"])
        line = text.count("\n", 0, found.start("text")) + 1
        blocks.append(Block(found["language"], found["text"], line))
    return blocks, sorted(modules)


def require_same(expected, found, where):
    """Compare outputs line by line, where `...` stands for any text."""
    if not doctest.OutputChecker().check_output(expected, found, FLAGS):
        raise AssertionError(f"{where}: expected\n{expected}\nfound\n{found}")


def run_console(block, folder, where):
    commands = list(COMMAND.finditer(block.text))
    assert commands, f"{where}: a console block without a `$ command`"
    assert block.text.startswith("$ "), f"{where}: a console block begins with `$ `"
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for command in commands:
        run = subprocess.run(
            ["bash", "-c", command["command"]],
            cwd=folder,
            env=os.environ | {"PATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
            check=False,
        )
        require_same(command["output"], run.stdout, f"{where}, `{command['command']}`")


def run_python(block, namespace, where):
    if not block.text.startswith(">>> "):
        padded = "\n" * (block.line - 1) + block.text  # a traceback then names the page's line
        exec(compile(padded, where, "exec"), namespace)  # noqa: S102  the page is ours
        return
    test = doctest.DocTestParser().get_doctest(block.text, {}, where, where, block.line)
    test.globs = namespace
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    report = []
    runner.run(test, out=report.append, clear_globs=False)
    assert runner.failures == 0, "".join(report)


@pytest.mark.filterwarnings("default:.* rows fill no whole batch:UserWarning")  # as a reader sees
@pytest.mark.parametrize("page", PAGES)
def test_the_examples_of_a_page_run(page, tmp_path, monkeypatch):
    blocks, modules = blocks_of((ROOT / page).read_text())
    for module in modules:
        pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(layouts, "LAYOUTS", dict(layouts.LAYOUTS))  # a page adds one of its own
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    namespace = {"__name__": "__main__"}
    for block in blocks:
        where = f"{page}, line {block.line}"
        if block.language == "console":
            run_console(block, tmp_path, where)
        else:
            run_python(block, namespace, where)


# ------------------------------------------------------------------------- the mechanism itself


def test_blocks_are_found_and_marked_ones_are_left_out():
    text = (
        "# Page\n\n```console\n$ true\n```\n\n<!-- not run: needs a cluster -->\n"
        "```console\n$ false\n```\n\n<!--\n```python\nhidden = 1\n```\n-->\n\n"
        "<!-- needs: torch -->\n```python\nx = 1\n```\n\n```sh\nfalse\n```\n"
    )
    blocks, modules = blocks_of(text)
    assert [(block.language, block.text) for block in blocks] == [
        ("console", "$ true\n"),
        ("python", "hidden = 1\n"),
        ("python", "x = 1\n"),
    ]
    assert [block.line for block in blocks] == [4, 14, 20]
    assert modules == ["torch"]


@pytest.mark.parametrize(
    "text", ["$ echo found\nexpected\n", "$ echo one; echo two\none\n", "$ true\nsome output\n"]
)
def test_another_output_than_the_page_has_fails(text, tmp_path):
    with pytest.raises(AssertionError):
        run_console(Block("console", text, 1), tmp_path, "page")


def test_dots_match_anything_and_commands_may_have_several_lines(tmp_path):
    text = "$ echo one two \\\n    three\none ... three\n$ echo four >&2\nfour\n"
    run_console(Block("console", text, 1), tmp_path, "page")


@pytest.mark.parametrize("text", [">>> 1 + 1\n3\n", "raise ValueError\n"])
def test_python_that_is_wrong_fails(text):
    with pytest.raises((AssertionError, ValueError)):
        run_python(Block("python", text, 1), {}, "page")


def test_python_blocks_share_their_names():
    namespace = {}
    run_python(Block("python", "x = 2\n", 1), namespace, "page")
    run_python(Block("python", ">>> x * 2\n4\n>>> y = 3\n", 3), namespace, "page")
    assert namespace["y"] == 3
