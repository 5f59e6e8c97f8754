"""A Sphinx directive whose content is written from the code: `generated NAME [argument ...]`.

Each entry of `GENERATORS` is a function from the directive's arguments to Markdown.
"""

import inspect
import json
import logging
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import click
import defects
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from etl.cli import cli
from etl.dicom.codecs import CODECS
from etl.dicom.header import NATIVE
from etl.dicom.kept_tags import SAFE
from etl.errors import LIMITS
from etl.findings import CODES, FLAG_CODES

_HERE: Final = Path(__file__).parent
_EXAMPLES: Final = _HERE / "_generated"
_SECTION: Final = re.compile(r"^```{generated} finding ([a-z-]+)$", re.MULTILINE)
_OPTION: Final = re.compile(r"--[a-z-]+")
_BEFORE_AND_AFTER: Final = "Left: as it should be. Right: with the defect."
_TWO_IMAGES: Final = "The two images of the finding."

logging.getLogger("pydicom").setLevel(logging.ERROR)  # planted defects make it warn


def command(name: str) -> str:
    """Return a command's usage, what it does, its arguments and its options."""
    chosen = cli.commands[name]
    context = click.Context(chosen, info_name=f"dicom-etl {name}")
    usage = chosen.get_usage(context).removeprefix("Usage: ")
    lines = ["```text", usage, "```", "", inspect.cleandoc(chosen.help or ""), ""]
    lines += _table("option", "default", "meaning", rows=map(_option, options(name)))
    return "\n".join(lines)


def options(name: str) -> list[click.Option]:
    """Return the options of a command in the order of its help."""
    return [one for one in cli.commands[name].params if isinstance(one, click.Option)]


def _option(option: click.Option) -> tuple[str, str, str]:
    names = ", ".join(f"`{name}`" for name in option.opts)
    if isinstance(option.type, click.IntRange):
        names += " `N`"
    elif not option.is_flag:
        metavar = option.make_metavar(click.Context(click.Command("")))
        names += f" `{metavar.strip('[]')}`"
    default = f"`{option.default}`" if option.show_default else ""
    return names, default, _OPTION.sub(r"`\g<0>`", option.help or "")


def codes(*severities: str) -> str:
    """Return the table of all finding codes, or of those of some severities."""
    pages = finding_pages()
    rows = (
        (f"[{code}]({pages[code]}#{code})", entry.severity, entry.when, entry.advice)
        for code, entry in CODES.items()
        if entry.severity in (severities or (entry.severity,))
    )
    return "\n".join(_table("code", "severity", "when", "what to do", rows=rows))


def flags() -> str:
    """Return the table of the bits of /manifest/flags."""
    pages = finding_pages()
    rows = ((str(CODES[code].flag), f"[{code}]({pages[code]}#{code})") for code in FLAG_CODES)
    return "\n".join(_table("bit", "code", rows=rows))


def encodings() -> str:
    """Return the table of transfer syntaxes that a build reads."""
    native = ((name, uid, "") for uid, name in NATIVE.items())
    encoded = (
        (codec.name, uid, "`codecs`" if codec.modules else "") for uid, codec in CODECS.items()
    )
    rows = ((name, f"`{uid}`", extra) for name, uid, extra in (*native, *encoded))
    return "\n".join(_table("encoding", "transfer syntax", "extra", rows=rows))


def kept_tags() -> str:
    """Return the attributes that `--keep-tags` takes, in alphabetical order."""
    return ", ".join(f"`{keyword}`" for keyword in sorted(SAFE, key=str.lower)) + "."


def limits() -> str:
    """Return the table of the limits that `--limit` changes."""
    rows = (
        (f"`{name}`", _amount(one.value, name), f"{one.what} of {one.of}")
        for name, one in LIMITS.items()
    )
    return "\n".join(_table("name", "default", "counts", rows=rows))


def _amount(value: int, name: str) -> str:
    """Return a limit's value, and that of bytes with its unit as well."""
    if not name.endswith("-bytes"):
        return f"{value:,}"
    unit, size = next(
        (unit, size)
        for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))
        if value >= size
    )
    return f"{value:,} ({value // size} {unit})"


def finding_pages() -> dict[str, str]:
    """Return the page that has a section on each code: code → path from the root of the pages."""
    return {
        code: f"/{path.relative_to(_HERE).as_posix()}"
        for path in sorted(_HERE.glob("findings/*.md"))
        for code in _SECTION.findall(path.read_text())
    }


def finding(code: str) -> str:
    """Return what the table of codes says of one, and its example in the phantom."""
    entry = CODES[code]
    example = json.loads((_EXAMPLES / defects.EXAMPLES).read_text())[code]
    lines = [f"**{entry.severity.capitalize()}**: {entry.when}.", ""]
    if example["has_picture"]:
        halves = _TWO_IMAGES if example["n_pairs"] > 1 else _BEFORE_AND_AFTER
        lines += [
            f":::{{figure}} /{_EXAMPLES.name}/{code}.png",
            f":alt: {code} in the phantom. {halves}",
            halves,
            ":::",
            "",
        ]
    if example["text"]:
        lines += ["In the phantom, with the defect:", "", *_verbatim(example["text"])]
    where = f"{example['path']}: " if example["path"] else ""
    lines += ["The build says:", "", *_verbatim(f"{where}{example['message']}")]
    return "\n".join(lines)


def _verbatim(text: str) -> list[str]:
    return ["```text", *text.splitlines(), "```", ""]


GENERATORS: Final[dict[str, Callable[..., str]]] = {
    "command": command,
    "encodings": encodings,
    "codes": codes,
    "finding": finding,
    "flags": flags,
    "kept-tags": kept_tags,
    "limits": limits,
}


class Generated(SphinxDirective):
    """Parse what a generator returns as part of the page."""

    required_arguments = 1
    optional_arguments = 9

    def run(self) -> list[nodes.Node]:
        """Return the nodes."""
        name, *arguments = self.arguments
        return self.parse_text_to_nodes(GENERATORS[name](*arguments))


def setup(app: Sphinx) -> dict[str, bool]:
    """Tell Sphinx of the directive."""
    app.add_directive("generated", Generated)
    app.connect("builder-inited", lambda _: defects.write_examples(_EXAMPLES))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _table(*headings: str, rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Return a Markdown table as lines."""
    table = [headings, ("---",) * len(headings), *rows]
    return ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in table]
