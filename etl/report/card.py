"""A built file and the words of its owners → a data card in Markdown.

The owners write what no program can know, such as the licence and who drew the contours, in
card.toml. Nothing of that is made up: the card says what nobody has stated.
"""

import datetime
import hashlib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from etl.errors import EtlError
from etl.findings import AUDIT_CODES, QUALITY_CODES, counted, printable, shortened
from etl.report.summary import Summary, alignment_text, number_text
from etl.report.text import sources_text
from etl.sources.files import read_named
from loader import Dataset
from loader.format import MASK_BITS, MASK_LABELS

# The keys of card.toml that are plain text, with their headings in the card.
TEXTS: Final[dict[str, str]] = {
    "name": "Name",
    "description": "Description",
    "license": "Licence",
    "url": "Web page",
    "version": "Version",
    "date_published": "Published",
    "citation": "How to cite",
    "collection": "How the images were collected",
    "annotation_protocol": "Annotation protocol",
    "intended_use": "Intended use",
    "limitations": "Limitations",
    "personal_information": "Personal information",
}
_MOST_QUOTED: Final = 500  # characters of a message's reason
_MOST: Final = 4096  # characters of one cell or paragraph
_CREATOR_KEYS: Final = ("name", "kind", "url", "email", "affiliation")
_KINDS: Final = ("person", "organization")
_PATHS: Final = {"split_file", "patients_csv", "exclude_file", "splits_from"}  # on the builder's
_CHUNK: Final = 1 << 24  # bytes between two moments at which Ctrl-C stops the digest
_NOT_STATED: Final = "Not stated"
_HEADINGS: Final = ("collection", "annotation_protocol", "intended_use", "limitations")
_REST: Final = ("url", "version", "date_published", "citation")


@dataclass(frozen=True, slots=True)
class Creator:
    """Someone who made the data set."""

    name: str
    kind: str = "person"  # or "organization"
    url: str = ""
    email: str = ""
    affiliation: str = ""


@dataclass(frozen=True, slots=True)
class Card:
    """What the owners of a data set say of it; empty where they say nothing."""

    name: str = ""
    description: str = ""
    license: str = ""
    url: str = ""
    version: str = ""
    date_published: str = ""
    citation: str = ""
    collection: str = ""
    annotation_protocol: str = ""
    intended_use: str = ""
    limitations: str = ""
    personal_information: str = ""
    keywords: tuple[str, ...] = ()
    creators: tuple[Creator, ...] = ()

    @property
    def not_stated(self) -> list[str]:
        """The keys of card.toml that are missing."""
        return [one.name for one in fields(self) if not getattr(self, one.name)]


def read_card(path: Path) -> Card:
    """Return what card.toml says.

    Raises
    ------
    EtlError
        It cannot be read, has a key that there is not, or a value of another type.
    """
    where = f"Card not usable: {path}"
    try:
        return _card(tomllib.loads(read_named(path, where).decode("utf-8")))
    except OSError as error:
        why = (error.strerror or "input/output error").lower()
        raise EtlError(f"{where}: cannot be read ({why}).") from error
    except RecursionError as error:
        raise EtlError(f"{where}: its lists and tables are nested too deeply.") from error
    except (TypeError, ValueError) as error:  # of the parser, of text that is no UTF-8, of ours
        why = shortened(str(error).rstrip("."), _MOST_QUOTED)
        raise EtlError(f'{where}: {why}. Write lines such as license = "CC-BY-4.0".') from error


def _card(content: Mapping[str, object]) -> Card:
    known = [one.name for one in fields(Card)]
    for key in content:
        if key not in known:
            raise ValueError(f"expected some of {', '.join(known)}, found {key!r}")
    texts = {key: _text(key, content[key]) for key in TEXTS if key in content}
    if date := texts.get("date_published"):
        datetime.date.fromisoformat(date)
    keywords = _listed("keywords", content.get("keywords", []))
    creators = _listed("creators", content.get("creators", []))
    return Card(
        **texts,
        keywords=tuple(_text("keywords", one) for one in keywords),
        creators=tuple(map(_creator, creators)),
    )


def _text(key: str, value: object) -> str:
    if isinstance(value, datetime.date) and key == "date_published":
        return value.isoformat()
    if not isinstance(value, str):
        raise TypeError(f"{key}: expected text, found {type(value).__name__}")
    return value.strip()


def _listed(key: str, value: object) -> Sequence[object]:
    if not isinstance(value, list):
        raise TypeError(f"{key}: expected a list, found {type(value).__name__}")
    return value


def _creator(value: object) -> Creator:
    if isinstance(value, str):
        return Creator(value)
    if not isinstance(value, dict) or not value.get("name"):
        raise ValueError("creators: expected names, or tables with a name")
    for key in value:
        if key not in _CREATOR_KEYS:
            raise ValueError(f"creators: expected {', '.join(_CREATOR_KEYS)}, found {key!r}")
    creator = Creator(**{key: _text(f"creators, {key}", one) for key, one in value.items()})
    if creator.kind not in _KINDS:
        raise ValueError(f"creators: expected a kind of {' or '.join(_KINDS)}")
    return creator


def sha256(dataset: Dataset) -> str:
    """Return the SHA-256 of the whole file that is open, in hex."""
    digest = hashlib.sha256()
    with memoryview(dataset.buffer) as content:
        for start in range(0, len(content), _CHUNK):
            digest.update(content[start : start + _CHUNK])
    return digest.hexdigest()


def public_options(summary: Summary) -> dict[str, object]:
    """Return the options of the build without patients and paths of the builder's machine."""
    options = dict(summary.options) if isinstance(summary.options, dict) else {}
    options = {name: value for name, value in options.items() if name not in _PATHS}
    flagged = options.get("exclude_flagged")
    if isinstance(flagged, list):  # "CODE:PATIENT"
        options["exclude_flagged"] = [str(one).partition(":")[0] for one in flagged]
    return options


def checks_text(summary: Summary) -> str:
    """Return which quality checks the build made."""
    unchecked = set(summary.unchecked)
    if set(QUALITY_CODES) <= unchecked:
        return "none"
    left_out = "" if not set(AUDIT_CODES) <= unchecked else ", without the audit of contours"
    return f"all that the build makes{left_out}"


def masks_text(summary: Summary) -> str:
    """Return what a pixel of a mask holds."""
    kinds = {MASK_LABELS: "the code of one structure", MASK_BITS: "a bit of each structure"}
    return f"{kinds[summary.mask_kind]} in each pixel, {summary.mask_dtype}"


def describe(summary: Summary, card: Card, digest: str) -> Iterator[str]:
    """Yield the lines of the data card, in Markdown.

    Parameters
    ----------
    summary : Summary
        Of the file. Ids and paths are not taken from it.
    card : Card
    digest : str
        SHA-256 of the file.
    """
    yield f"# {_plain(card.name or Path(summary.path).name)}"
    yield ""
    yield _stated(card, "description")
    yield from _section("The file", _facts(summary, digest))
    yield from _section("Labels", _labels(summary))
    yield from _section("Splits", _splits(summary))
    yield from _section("How the file was made", _making(summary))
    yield from _section("What the checks found", _findings(summary))
    for key in _HEADINGS:
        yield from _section(TEXTS[key], [_stated(card, key)])
    yield from _section("Licence", [_stated(card, "license")])
    yield from _section("Creators", _creators(card))
    rest = [*((TEXTS[key], _stated(card, key)) for key in _REST)]
    words = ", ".join(map(_plain, card.keywords)) or _absent("keywords")
    yield from _section("Reference", _table(("", ""), [*rest, ("Keywords", words)]))
    yield from _section(TEXTS["personal_information"], _personal(card))


def _section(heading: str, lines: Iterator[str] | Sequence[str]) -> Iterator[str]:
    yield ""
    yield f"## {heading}"
    yield ""
    yield from lines


def _facts(summary: Summary, digest: str) -> Iterator[str]:
    spacings = [
        f"{number_text(row)} x {number_text(column)}" for row, column in summary.pixel_spacings
    ]
    shown = ", ".join(spacings[:4]) + (f" and {len(spacings) - 4} more" if spacings[4:] else "")
    size = f"{summary.rows} x {summary.columns} pixels, {summary.image_dtype}"
    values = f"{number_text(summary.minimum)} to {number_text(summary.maximum)}"
    rows: list[Sequence[object]] = [
        ("Name", Path(summary.path).name),
        ("Bytes", summary.n_bytes),
        ("SHA-256", digest),
        ("Digest of the samples", summary.dataset_id),
        ("Written by", summary.generator),
        ("Rows", f"{summary.n_rows} of {counted(summary.n_patients, 'patient')}"),
        ("Images", size),
        ("Masks", masks_text(summary)),
        ("Values", f"{values}, mean {summary.mean:.4g}, deviation {summary.std:.4g}"),
        ("Pixel spacing", f"{shown} mm" if shown else "not known"),
    ]
    yield from _table(("", ""), rows)


def _labels(summary: Summary) -> Iterator[str]:
    heading = ("code", "meaning", "rows", "pixels", "median pixels of a row")
    yield from _table(
        heading,
        [
            (one.code, one.meaning, one.n_rows, one.n_pixels, f"{one.median_pixels:.0f}")
            for one in summary.labels
        ],
    )
    if summary.n_overlap_rows:
        yield ""
        yield (
            f"Structures overlap in {counted(summary.n_overlap_rows, 'row')}, by "
            f"{counted(summary.n_overlap_pixels, 'pixel')}."
        )
    if summary.n_not_drawn:
        value = "255 (ignore)" if summary.is_ignored else "0 (background)"
        yield ""
        yield (
            f"In {counted(summary.n_not_drawn, 'row')} a structure was not drawn: masks are "
            f"{value} where it may be."
        )


def _splits(summary: Summary) -> Iterator[str]:
    sides = [*summary.splits, *summary.folds]
    names = [*(one.name for one in summary.splits), *(f"fold {one.name}" for one in summary.folds)]
    if not sides:
        yield "The file has no split."
        return
    counts = [(name, s.n_patients, s.n_rows) for name, s in zip(names, sides, strict=True)]
    yield from _table(("part", "patients", "rows"), counts)
    if summary.splits:
        is_apart = sum(one.n_patients for one in summary.splits) == summary.n_patients
        yield ""
        yield f"{'No patient is' if is_apart else 'Some patients are'} in two parts of the split."


def _making(summary: Summary) -> Iterator[str]:
    sources = ", ".join(sources_text(summary.sources))
    yield f"From {sources}. Quality checks: {checks_text(summary)}."
    if summary.alignment is not None:
        yield f"By the audit, {alignment_text(summary.alignment)}."
    yield ""
    options = sorted(public_options(summary).items())
    yield from _table(("option", "value"), [(name, _value(value)) for name, value in options])


def _findings(summary: Summary) -> Iterator[str]:
    groups = [(one.severity, one.code, one.n_findings) for one in summary.findings]
    if not groups:
        yield "Nothing."
        return
    yield from _table(("severity", "code", "number"), groups)


def _creators(card: Card) -> Iterator[str]:
    if not card.creators:
        yield _absent("creators")
    for one in card.creators:
        more = ", ".join(filter(None, (one.affiliation, one.email, one.url)))
        yield f"- {_plain(one.name)}" + (f" ({_plain(more)})" if more else "")


def _personal(card: Card) -> Iterator[str]:
    yield _stated(card, "personal_information")
    yield ""
    yield (
        "The file holds pixels, the ids of patients, UIDs, positions, the paths of the sources "
        "below the input folder, and the attributes that the build was told to keep; see the "
        "columns of its manifest. dicom-etl removes none of them."
    )


def _stated(card: Card, key: str) -> str:
    return printable_lines(getattr(card, key)) or _absent(key)


def _absent(key: str) -> str:
    return f"{_NOT_STATED} (`{key}` in the card file)."


def printable_lines(text: str) -> str:
    """Return the owner's own Markdown, each line printable."""
    return "\n".join(map(printable, text.splitlines()))


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _plain(value: object) -> str:
    """Return text as Markdown that shows it as it is, on one line."""
    text = shortened(printable(" ".join(str(value).split())), _MOST)
    for letter in "\\`*_[]<>|#":
        text = text.replace(letter, f"\\{letter}")
    return text


def _table(heading: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    yield f"| {' | '.join(heading)} |"
    yield f"| {' | '.join(['---'] * len(heading))} |"
    for row in rows:
        yield f"| {' | '.join(map(_cell, row))} |"


def _cell(value: object) -> str:
    text = str(value)
    # What is not stated, and the owner's own Markdown, stay as they are, in one line.
    return text if text.startswith(_NOT_STATED) else _plain(text)
