"""dicom-etl: a folder of DICOM images and drawn contours → one HDF5 file."""

import importlib.util
import os

TYPE_CHECKING = False  # typing's, without importing it: see __getattr__
if TYPE_CHECKING:
    from etl.errors import EtlError
    from etl.findings import Finding
    from etl.options import BuildOptions
    from etl.pipeline import build
    from loader.format import VERSION as __version__  # noqa: N811  the customary name

__all__ = ["BuildOptions", "EtlError", "Finding", "__version__", "build"]


def _require_own_loader() -> None:
    """Require that `loader` is the package beside this one; another is not imported.

    Raises
    ------
    ImportError
        Python finds another module or folder of this name first.
    """
    spec = importlib.util.find_spec("loader")
    if spec is None:
        return  # Python's own error says so
    found = spec.origin or next(iter(spec.submodule_search_locations or ()), "")
    folder = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    expected = os.path.join(folder, "loader")
    if os.path.dirname(os.path.realpath(found)) != expected:
        raise ImportError(
            f"Package loader not usable: {found}: is not dicom-etl's own, which is {expected}. "
            "Rename the other one, or take its folder out of PYTHONPATH and sys.path.",
            name="loader",
            path=found,
        )


def __getattr__(name: str) -> object:
    """Import a public name when it is first used, so that `import etl` stays quick.

    It is also the stretch of the command's start in which Ctrl-C ends in a traceback.
    """
    match name:
        case "__version__":
            from loader.format import VERSION

            return VERSION
        case "BuildOptions":
            from etl.options import BuildOptions

            return BuildOptions
        case "EtlError":
            from etl.errors import EtlError

            return EtlError
        case "Finding":
            from etl.findings import Finding

            return Finding
        case "build":
            from etl.pipeline import build

            return build
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names, for completion."""
    return __all__


_require_own_loader()
