"""What the code has, the documentation has, and the reverse."""

import ast
import inspect
import itertools
import re
import sys
import tomllib
from pathlib import Path

import pytest

import etl
import loader
from etl.cli import cli
from etl.errors import LIMITS
from etl.findings import CODES
from loader.format import (
    CONTOURS,
    CORE,
    FINDINGS,
    FINDINGS_VERSION_2,
    REUSE,
    SOURCE_GRID,
    VERSION_2,
    Attribute,
    Structure,
)

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [
    page
    for page in [*sorted(ROOT.glob("*.md")), *sorted(DOCS.glob("**/*.md"))]
    if "_build" not in page.parts
]
HAND_WRITTEN = [page for page in PAGES if page.name != "CHANGELOG.md"]
CODE_IN_TEXT = re.compile(r"`([^`\n]+)`")


def section(page, heading):
    """Return the text below a heading, up to the next one of the same level."""
    found = re.search(rf"^{re.escape(heading)}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert found, f"no heading {heading!r}"
    return found[1]


def first_cells(text):
    """Return what stands as code in the first cells of a table's rows."""
    cells = re.findall(r"^\| (.*?) \|", text, re.MULTILINE)
    return [name for cell in cells for name in CODE_IN_TEXT.findall(cell)]


def require_same(documented, existing):
    """Compare as sets, and refuse a name that is documented twice."""
    documented = list(documented)
    twice = {name for name in documented if documented.count(name) > 1}
    assert not twice, f"documented twice: {sorted(twice)}"
    missing, unknown = set(existing) - set(documented), set(documented) - set(existing)
    assert not missing, f"not in the documentation: {sorted(missing)}"
    assert not unknown, f"in the documentation only: {sorted(unknown)}"


def read(path):
    return (ROOT / path).read_text()


# ---------------------------------------------------------------------------------------- findings


def test_each_finding_code_has_one_section_with_an_example_of_the_same_code():
    pages = [page.read_text() for page in DOCS.glob("findings/*.md")]
    headed = r"^## ([a-z-]+)\n\n```{generated} finding ([a-z-]+)\n```\n\n[^#]"  # and says something
    sections = [found for page in pages for found in re.findall(headed, page, re.MULTILINE)]
    assert [heading for heading, code in sections if heading != code] == []
    require_same([code for _, code in sections], CODES)


def test_no_page_names_a_finding_code_that_does_not_exist():
    first_words = "|".join(sorted({code.partition("-")[0] for code in CODES}))
    alike = re.compile(rf"(?<![\w-])(?:{first_words})(?:-[a-z]+)+(?![\w-]|\.md)")
    named = {
        (page.name, word)
        for page in HAND_WRITTEN
        for code in CODE_IN_TEXT.findall(page.read_text())
        for word in alike.findall(code)
    }
    assert [pair for pair in sorted(named) if pair[1] not in CODES.keys() | LIMITS.keys()] == []
    assert named  # the pattern finds those that do


def test_each_finding_code_is_planted_in_the_phantom(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    monkeypatch.syspath_prepend(DOCS)
    import defects

    try:
        require_same(defects.PLANTS, CODES)
    finally:
        del sys.modules["defects"]


# ------------------------------------------------------------------------------------ command line


def test_each_command_has_its_section_and_its_generated_table():
    page = read("docs/command-line.md")
    generated = re.findall(
        r"^## dicom-etl ([a-z-]+)\n\n```{generated} command ([a-z-]+)$", page, re.MULTILINE
    )
    assert [heading for heading, command in generated if heading != command] == []
    require_same([command for _, command in generated], cli.commands)


@pytest.mark.parametrize("command", cli.commands)
def test_each_option_says_what_it_means(command):
    options = [one for one in cli.commands[command].params if one.param_type_name == "option"]
    assert [option.name for option in options if not getattr(option, "help", None)] == []


def test_each_option_of_a_build_is_one_of_the_check_or_has_a_reason():
    text = section(read("docs/command-line.md"), "## dicom-etl check")
    has = {
        command: {name for one in cli.commands[command].params for name in one.opts}
        for command in ("check", "build")
    }
    require_same(
        first_cells(text), {name for name in has["build"] - has["check"] if name.startswith("--")}
    )


# Options of other programs that the pages name.
OTHERS = {
    "--help",
    "--version",
    "--raw",  # gdcmconv
    *("--files", "--series"),  # bench/
    *("--epochs", "--fold", "--patch"),  # examples/train_unet.py
    *("--shm-size", "--ipc"),  # docker
    *("--pairs", "--rounds", "--rows", "--cold-rows", "--minutes", "--seconds"),  # bench/
}


def test_no_page_names_an_option_that_does_not_exist():
    existing = {
        name for one in cli.commands.values() for param in one.params for name in param.opts
    } | OTHERS
    named = {
        (page.name, name)
        for page in HAND_WRITTEN
        for name in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", page.read_text())
    }
    assert [pair for pair in sorted(named) if pair[1] not in existing] == []
    assert {name for _, name in named} >= OTHERS


def test_each_message_that_ends_a_command_or_a_call_is_documented():
    files = [path for package in ("etl", "loader") for path in (ROOT / package).rglob("*.py")]
    begins = re.compile(r"f?\"((?:[A-Z][a-z]+)(?: [a-z]+){0,2} not [a-z]+):")
    existing = {name for path in files for name in begins.findall(path.read_text())}
    documented = first_cells(read("docs/messages.md"))
    others = {"Nothing to build", "Build stopped by --strict"}
    others |= {"Not as it was built", "File and sources differ"}
    require_same(documented, existing | others)


# ------------------------------------------------------------------------------------- file format


def test_each_dataset_is_documented():
    documented = first_cells(section(read("docs/file-format.md"), "## Datasets"))
    columns = {"contours": CONTOURS, "findings": FINDINGS | FINDINGS_VERSION_2, "reuse": REUSE}
    groups = {f"/{group}/{name}" for group, names in columns.items() for name in names}
    require_same(documented, {"/images", "/masks", "/manifest/<column>"} | groups)


def test_each_column_of_the_manifest_is_documented():
    documented = first_cells(section(read("docs/file-format.md"), "## Manifest columns"))
    example = Structure("", 7, "", stem="<stem>")
    of_structures = [name.replace("7", "<code>") for name in example.columns]
    require_same(documented, [*CORE, *VERSION_2, *SOURCE_GRID, *of_structures])


def test_each_attribute_is_documented():
    documented = first_cells(section(read("docs/file-format.md"), "## Attributes"))
    require_same(documented, [v for k, v in vars(Attribute).items() if k.isupper()])


# ---------------------------------------------------------------------------------------- the rest


def test_each_public_name_of_python_is_documented():
    documented = re.findall(r"^\.\. auto\w+:: ((?:etl|loader)\.\w+)", read("docs/python.md"), re.M)
    public = [f"{package.__name__}.{name}" for package in (etl, loader) for name in package.__all__]
    require_same(
        [name for name in documented if name != "loader.torch"],
        [name for name in public if not name.endswith("__version__")],
    )


@pytest.mark.parametrize(
    "documented",
    [
        etl.build,
        etl.BuildOptions,
        etl.Finding,
        loader.open_dataset,
        loader.Batches,
        loader.Augment,
    ],
)
def test_each_parameter_of_the_python_interface_is_documented(documented):
    text = inspect.getdoc(documented)
    section = re.search(r"^(?:Parameters|Attributes)\n-+\n(.*?)(?=^\w+\n---|\Z)", text, re.M | re.S)
    names = re.findall(r"^(\w[\w, ]*?) : ", section[1], re.MULTILINE)
    parameters = inspect.signature(documented).parameters
    require_same([name for one in names for name in one.split(", ")], parameters)


def test_each_class_of_the_pytorch_adapters_is_documented():
    documented = re.findall(r"^\.\. autoclass:: loader\.torch\.(\w+)", read("docs/python.md"), re.M)
    listed = re.search(r"^__all__ = (\[.*?\])$", read("loader/torch/__init__.py"), re.M | re.S)
    require_same(documented, ast.literal_eval(listed[1]))  # not imported: torch may be absent


def test_each_environment_variable_is_documented():
    folders = ("etl", "loader", "tests", "bench", "examples", "docs")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    used = r"(?:environ(?:\.get\(|\[)|getenv\()\"([A-Z_]+)\""
    existing = {name for path in files for name in re.findall(used, path.read_text())}
    documented = first_cells(section(read("CONTRIBUTING.md"), "## Environment variables"))
    require_same(documented, existing - {"PATH"})  # the system's


def test_each_target_of_the_makefile_is_documented():
    targets = re.search(r"^\.PHONY: (.*)$", read("Makefile"), re.MULTILINE)[1].split()
    documented = first_cells(section(read("CONTRIBUTING.md"), "## Commands"))
    require_same(documented, [f"make {target}" for target in targets])


def test_each_dependency_has_a_reason():
    project = tomllib.loads(read("pyproject.toml"))["project"]
    extras = project["optional-dependencies"]
    required = [*project["dependencies"], *itertools.chain(*extras.values())]
    existing = {re.match(r"[\w-]+", one)[0].lower() for one in required} - {"dicom-etl"}
    text = section(read("docs/decisions.md"), "## 10. Dependencies (2026-11)")
    rows = re.findall(r"^\| (\w[^|]*?) \| \w", text, re.MULTILINE)
    documented = [
        re.sub(r" \(.*\)", "", name).lower() for row in rows[1:] for name in row.split(", ")
    ]
    require_same(documented, existing)


@pytest.mark.parametrize("page", HAND_WRITTEN, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_files_that_a_page_names_exist(page):
    text = page.read_text()
    paths = re.findall(r"`((?:etl|loader|tests|docs|bench|examples)/[\w./-]*)`", text)
    assert [
        path for path in paths if path != "docs/_build/html" if not (ROOT / path).exists()
    ] == []
    assert "[](" not in text  # a link without text cannot be seen in plain Markdown
    links = re.findall(r"\]\(([\w./-]+)(?:#[\w-]+)?\)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []
