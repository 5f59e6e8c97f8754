"""The page: one HTML file that asks nothing of the network.

All that comes from the data is JSON in an element that no browser runs; the page's script puts it
into the document as text, never as markup.
"""

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from etl.findings import FindingRow
from etl.output import target
from etl.report.page.contents import contents
from etl.report.summary import Summary
from loader import Dataset

_PARTS = {"STYLE": "page.css", "SCRIPT": "page.js"}


def write_page(
    dataset: Dataset,
    summary: Summary,
    findings: Sequence[FindingRow],
    path: Path,
    *,
    n_pictures: int,
    pseudonyms: bool = False,
    force: bool = False,
) -> None:
    """Write the report as one HTML file.

    Parameters
    ----------
    n_pictures : int
        Rows with a picture at most.
    pseudonyms : bool
        See `contents`.
    force : bool
        Replace an existing file.

    Raises
    ------
    EtlError
        `path` exists (without `force`) or cannot be written.
    """
    path = target.check_target(path, force=force, only_hdf5=False)
    shown = contents(dataset, summary, findings, n_pictures, pseudonyms=pseudonyms)
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
    return page.replace("DATA", data, 1)
