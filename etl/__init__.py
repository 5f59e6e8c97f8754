"""dicom-etl: a folder of DICOM images and drawn contours → one HDF5 file."""

import importlib
from typing import TYPE_CHECKING

from loader.format import VERSION as __version__  # noqa: N811  the customary name

if TYPE_CHECKING:
    from etl.errors import EtlError
    from etl.findings import Finding
    from etl.options import BuildOptions
    from etl.pipeline import build

__all__ = ["BuildOptions", "EtlError", "Finding", "__version__", "build"]

_HOMES = {
    "BuildOptions": "etl.options",
    "EtlError": "etl.errors",
    "Finding": "etl.findings",
    "build": "etl.pipeline",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: `import etl` alone stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'etl' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
