"""The page: HTML that asks nothing of the network, as one file or as a folder of them.

All that comes from the data is JSON in an element that no browser runs; the page's script puts it
into the document as text, never as markup.
"""

import json
from importlib import resources
from pathlib import Path
from typing import Final

from etl.errors import EtlError
from etl.output import target
from etl.report.page.contents import Subject, contents, patient_contents, patients

_PARTS: Final = {"STYLE": "page.css", "SCRIPT": "page.js"}
INDEX: Final = "index.html"


def write_page(subject: Subject, path: Path, *, n_pictures: int, force: bool = False) -> None:
    """Write the report as one HTML file.

    Parameters
    ----------
    n_pictures : int
        Rows with a picture at most.
    force : bool
        Replace an existing file.

    Raises
    ------
    EtlError
        `path` exists (without `force`) or cannot be written.
    """
    path = target.check_target(path, force=force, only_hdf5=False)
    _write(contents(subject, n_pictures), path, force=force)


def write_pages(
    subject: Subject, folder: Path, *, n_pictures: int, force: bool = False
) -> list[str]:
    """Write the report as a folder: index.html, and a page for each patient with all rows.

    Returns
    -------
    list of str
        The names in the folder that are not of these pages, such as pages of more patients that
        an earlier report has left.

    Raises
    ------
    EtlError
        The folder has files in it (without `force`), or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and not force:
            raise EtlError(
                f"Output not usable: {folder}: the folder has files in it. Give a new one, or use "
                "`force=True` to write over them."
            )
    except OSError as error:
        reason = (error.strerror or "input/output error").lower()
        raise EtlError(f"Output not written: {folder}: {reason}.") from error
    index = contents(subject, n_pictures)
    listed, own = [], {INDEX}
    for number, (name, rows) in enumerate(patients(subject), 1):
        file = f"patient-{number:04d}.html"  # an id may be no name of a file
        shown = patient_contents(subject, rows) | {"index": INDEX, "title": subject.name(name)}
        _write(shown, folder / file, force=force)
        n_flagged = sum(row in subject.of_row for row in rows)
        listed.append([subject.name(name), file, len(rows), n_flagged])
        own.add(file)
    _write(index | {"patients": listed}, folder / INDEX, force=force)
    return sorted({path.name for path in folder.iterdir()} - own)


def _write(shown: dict[str, object], path: Path, *, force: bool) -> None:
    page = html(shown).encode()
    with target.replacing(path, force=force) as partial:
        partial.write_bytes(page)


def html(shown: dict[str, object]) -> str:
    """Return the page that shows what `contents` gave."""
    folder = resources.files(__package__)
    page = (folder / "page.html").read_text(encoding="utf-8")
    for name, file in _PARTS.items():
        page = page.replace(f"/* {name} */", (folder / file).read_text(encoding="utf-8"))
    # Nothing in it ends the element that holds it, or begins a comment.
    data = json.dumps(shown, allow_nan=False).replace("<", "\\u003c")
    before, _, after = page.partition(">DATA<")
    return f"{before}>{data}<{after}"
