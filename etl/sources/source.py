"""What a source is: where samples come from, as functions that the stages call."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from etl.errors import EtlError
from etl.findings import Finding
from etl.labels import LabelScheme
from etl.model import AnnotationRef, Instance, Link, Region
from etl.options import BuildOptions


@dataclass(frozen=True, slots=True)
class Discovery:
    """What an input holds: the links to build, and what cannot or need not be built.

    Attributes
    ----------
    root : Path
        The folder that all paths of links and findings are relative to.
    probe : str
        A file below `root` that every worker must see as this process does.
    scheme : LabelScheme
        The structures that the file will have.
    links : list of Link
        In the order of their keys; no key stands twice.
    findings : list of Finding
    counts : dict of str to int
        What was found, for the attribute `sources`.
    missing : str
        A sentence on what no file at all was found of; empty where there is some of everything.
    to_index : tuple of str
        Files that `Source.index` looks into, for `Source.resolve`.
    sides : mapping, optional
        patient_id → (split code, fold), where the input itself says so.
    notes : tuple of str
        What was asked for but not had, for the result of the build.
    """

    root: Path
    probe: str
    scheme: LabelScheme
    links: list[Link]
    findings: list[Finding]
    counts: dict[str, int]
    missing: str = ""
    to_index: tuple[str, ...] = ()
    sides: Mapping[str, tuple[int, int]] | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Make the root absolute: a worker may run in another folder."""
        object.__setattr__(self, "root", self.root.absolute())


_DEFAULTS: Final = {name: one.default for name, one in BuildOptions.__dataclass_fields__.items()}

Index: TypeAlias = Callable[[Path, str], object]
Resolve: TypeAlias = Callable[["Discovery", Mapping[str, object], BuildOptions], "Discovery"]
# Of the options that only some layouts have, why another one has not.
IN_TEXT: Final = "is for contours in text files"
IN_OBJECTS: Final = "is for structure sets and segmentations"
OBJECT_OPTIONS: Final = (
    "structure_sets",
    "patient_id",
    "background",
    "plane_tolerance",
    "segment_threshold",
)

ReadRegion: TypeAlias = Callable[[Path, AnnotationRef, Instance | None, BuildOptions], Region]


@dataclass(frozen=True, slots=True)
class Source:
    """One layout of input; the value of its name in `etl.sources.layouts.LAYOUTS`.

    `read_region` travels to worker processes by its name: it stands in a module.

    Attributes
    ----------
    recognises : callable
        DATA → the name of the file by which it is this layout, or an empty string. Looks at names
        and opens nothing.
    settle : callable
        Options → the options as this layout takes them, its defaults filled in. Raises EtlError for
        an option that it does not have.
    discover : callable
        (DATA, options) → Discovery. Lists folders and reads tables; opens no DICOM file.
    read_region : callable
        (root, annotation, instance, options) → Region, in pixels of the instance's frame; the
        instance is None where the image cannot be used. Runs in workers. Raises SourceError for an
        annotation that cannot be used.
    index : callable, optional
        (root, path) → what `resolve` needs of one DICOM file; whatever it is, it is pickled. Runs
        in workers. Raises SourceError for a file that cannot be read.
    resolve : callable, optional
        (discovery, path → what `index` gave of `to_index`, options) → the discovery with its final
        links. A file that could not be read has its SourceError there.
    object_classes : frozenset of str
        SOP class UIDs of the objects by which a folder is this layout, where no name tells.
    has_text_contours : bool
        Whether `read_region` reads coordinates of pixels as a program wrote them, which the options
        contour_origin and contour_transform mend.
    """

    name: str
    recognises: Callable[[Path], str]
    settle: Callable[[BuildOptions], BuildOptions]
    discover: Callable[[Path, BuildOptions], Discovery]
    read_region: ReadRegion
    index: Index | None = None
    resolve: Resolve | None = None
    object_classes: frozenset[str] = frozenset()
    has_text_contours: bool = False


def refuse(options: BuildOptions, names: tuple[str, ...], why: str) -> None:
    """Refuse options that a layout does not have.

    Raises
    ------
    EtlError
        One of them is given.
    """
    for name in names:
        if getattr(options, name) != _DEFAULTS[name]:
            raise EtlError(f"Option not usable: `{name}` {why}. Build without it.")
