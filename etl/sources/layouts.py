"""The layouts that a build knows, and the choice among them."""

import os
from pathlib import Path
from typing import Final

from etl.errors import EtlError
from etl.options import BuildOptions
from etl.sources import link_csv, rtstruct, seg, table
from etl.sources.archive import classes_in
from etl.sources.source import Source
from etl.sources.strays import find_near

AUTO: Final = "auto"

# Add a source of your own here; the documentation's page on sources has an example.
LAYOUTS: Final[dict[str, Source]] = {
    source.name: source for source in (link_csv.SOURCE, table.SOURCE, rtstruct.SOURCE, seg.SOURCE)
}


def choose(data: Path, layout: str = AUTO) -> tuple[Source, str]:
    """Return the source of DATA, and a sentence on why it is that one.

    Parameters
    ----------
    data : Path
        Input folder, or table.
    layout : str
        A key of `LAYOUTS`, or "auto": the one layout that recognises the names in DATA.

    Raises
    ------
    EtlError
        No such input; no layout recognises it, or several do.
    ValueError
        No such layout.
    """
    if layout != AUTO:
        if layout not in LAYOUTS:
            expected = ", ".join(map(repr, (AUTO, *LAYOUTS)))
            raise ValueError(f"layout: expected one of {expected}, found {layout!r}.")
        return LAYOUTS[layout], f"Layout {layout}: as given."
    if not os.path.exists(data):  # Path.exists raises for an overlong name
        raise EtlError(
            f"Input not usable: {data}: no such file or folder. Give the folder that holds "
            f"{_markers()}."
        )
    if data.name == link_csv.LINK_FILE and os.path.isfile(data):
        raise EtlError(
            f"Input not usable: {data}: is a table of links, which does not name their files. Give "
            f"the folder that holds it: {data.parent}."
        )
    found = {name: why for name, source in LAYOUTS.items() if (why := source.recognises(data))}
    if not found and os.path.isdir(data):  # no name tells, so that headers must
        found = _by_headers(data)
    if len(found) > 1:
        listed = ", ".join(f"{name} ({why})" for name, why in found.items())
        raise EtlError(
            f"Input not usable: {data}: more than one layout fits: {listed}. Choose one with "
            "`layout`."
        )
    if not found:
        raise EtlError(
            f"Input not usable: {data}: no layout fits. Give the folder that holds {_markers()}, "
            f"or the table itself.{_nearby(data)}"
        )
    ((name, why),) = found.items()
    return LAYOUTS[name], f"Layout {name}: found {why}."


def _by_headers(data: Path) -> dict[str, str]:
    """Return the layouts whose objects a folder holds, and the first file of each."""
    layouts = {
        uid: name for name, source in LAYOUTS.items() for uid in sorted(source.object_classes)
    }
    found: dict[str, str] = {}
    for uid, path in classes_in(data, frozenset(layouts)).items():
        found.setdefault(layouts[uid], path)
    return found


def _nearby(data: Path) -> str:
    """Return a sentence on the inputs above and below a folder that is none."""
    near = find_near(data, (link_csv.LINK_FILE, table.TABLE_FILE))
    if not near:
        return ""
    more = f" and {len(near) - 1} more" if near[1:] else ""
    return f" There is {near[0]}{more}: give its folder."


def settle(source: Source, options: BuildOptions) -> BuildOptions:
    """Return the options as a source takes them.

    Raises
    ------
    EtlError
        It does not have one of them.
    """
    if options.contour_transform and not source.has_text_contours:
        raise EtlError(
            f"Option not usable: --contour-transform: layout {source.name} has no text contours. "
            "Build without it."
        )
    return source.settle(options)


def _markers() -> str:
    return f"{link_csv.LINK_FILE}, {table.TABLE_FILE}, RT Structure Sets or DICOM Segmentations"
