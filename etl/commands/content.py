"""Options that decide what a file contains, of the commands that look at an input."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from etl.commands.param_types import Count, Flags, Limit, Names, Size, Spacing, Steps, Structures
from etl.commands.terminal import given_names

if TYPE_CHECKING:
    from etl.options import BuildOptions
    from etl.options import Size as SizeRule

_Command = TypeVar("_Command", bound=Callable[..., object])

_INPUT: Final = (
    click.option(
        "--layout",
        type=click.Choice(["auto", "link", "table", "rtstruct", "seg"]),
        default="auto",
        show_default=True,
        help="How DATA is laid out: a folder with link.csv, a table of annotations, DICOM images "
        "with structure sets or segmentations, or whichever it is.",
    ),
    click.option(
        "--contours",
        type=click.Choice(["i", "o", "i,o", "o,i"]),
        help="With link.csv: i inner (blood pool), o outer (heart muscle), or both.  [default: i]",
    ),
    click.option(
        "--structures",
        type=Structures(),
        help="Without link.csv: structures to take, codes from 1 in this order, later ones on top; "
        "patterns such as 'kidney*'; or a TOML or JSON file of names with their patterns.  "
        "[default: all]",
    ),
    click.option(
        "--structure-sets",
        metavar="newest|all|UID",
        default="newest",
        show_default=True,
        help="Which structure sets or segmentations of a series to take; UID is the SOPInstanceUID "
        "of one.",
    ),
    click.option(
        "--patient-id",
        type=click.Choice(["tag", "folder"]),
        default="tag",
        show_default=True,
        help="Patients of structure sets and segmentations: by PatientID, or by the first folder "
        "below DATA.",
    ),
    click.option(
        "--background",
        is_flag=True,
        help="With structure sets or segmentations: also write the images of their series on which "
        "nothing is drawn.",
    ),
    click.option(
        "--plane-tolerance",
        type=click.FloatRange(min=0, min_open=True),
        metavar="MM",
        default=0.25,
        show_default=True,
        help="How far a contour or segment may lie off the plane of its image.",
    ),
    click.option(
        "--segment-threshold",
        type=click.FloatRange(0, 1, min_open=True),
        default=0.5,
        show_default=True,
        help="With fractional segmentations: the share from which a pixel belongs to a segment.",
    ),
    click.option(
        "--size",
        type=Size(most=True),
        metavar="ROWSxCOLUMNS|most",
        default="256x256",
        show_default=True,
        help="The size every image must have, or that of most; others are rejected and named.",
    ),
    click.option(
        "--fit",
        type=Size(),
        metavar="ROWSxCOLUMNS",
        help="Instead of --size: pad and crop all images to this size.",
    ),
    click.option(
        "--fit-about",
        type=click.Choice(["image", "structures"]),
        default="image",
        show_default=True,
        help="What of a larger image --fit keeps in the middle: its centre, or what is drawn on "
        "it.",
    ),
    click.option(
        "--resample",
        type=Spacing(),
        metavar="MM[xMM]",
        help="Give all images this distance between rows and columns, before --size or --fit.",
    ),
    click.option(
        "--contour-origin",
        type=click.Choice(["0", "1"]),
        default="0",
        show_default=True,
        help="1 for contour files that count pixels from 1.",
    ),
    click.option(
        "--contour-transform",
        type=Steps(),
        default=(),
        help="Mend contours in other coordinates, left to right, after the origin: swap, flip-x, "
        "flip-y, rotate-90, scale=F, mm.",
    ),
    click.option(
        "--partial", is_flag=True, help="With i,o: also write pairs that lack one of the two."
    ),
    click.option(
        "--masks",
        type=click.Choice(["labels", "bits"]),
        default="labels",
        show_default=True,
        help="One code a pixel, of the structure painted last; or a bit of each structure, so that "
        "none covers another.",
    ),
    click.option(
        "--rasterizer",
        type=click.Choice(["center", "pillow"]),
        default="center",
        show_default=True,
        help="Pixels whose centre is inside, or Pillow's polygon bit for bit.",
    ),
    click.option(
        "--keep-tags",
        type=Names(),
        default=(),
        metavar="KEYWORD,...",
        help="DICOM attributes to keep as columns tag_<keyword>, such as Manufacturer,EchoTime; "
        "only those that describe equipment and acquisition.",
    ),
    click.option(
        "--keep-tags-anyway",
        is_flag=True,
        help="With --keep-tags: also keep attributes by which patients may be found.",
    ),
    click.option(
        "--limit",
        "limits",
        type=Limit(),
        multiple=True,
        metavar="NAME=VALUE",
        help="What one source file may have at most, such as contour-points=2000000 or "
        "image-bytes=4GiB; may be given several times. The message of a file that was left out "
        "names its limit.",
    ),
)
_QUALITY: Final = (
    click.option("--no-qc", is_flag=True, help="Leave out the quality checks, and the audit."),
    click.option("--no-audit", is_flag=True, help="Do not measure whether contours are on edges."),
    click.option(
        "--audit-contours",
        type=Count(),
        metavar="N|all",
        default="6",
        show_default=True,
        help="How many contours of each patient the audit measures.",
    ),
    click.option(
        "--exclude-flagged",
        type=Flags(),
        default=(),
        help="Leave out rows with such a warning, of all patients or of one: area-jump,"
        "identical-contour:P1.",
    ),
    click.option(
        "--exclude-file",
        type=click.Path(dir_okay=False, path_type=str),
        metavar="CSV",
        help="Leave out the rows that a row list excludes or wants redrawn.",
    ),
    click.option(
        "--exclude-structures",
        is_flag=True,
        help="With the two above: leave out only the structure that is named, not its row.",
    ),
)
WORKERS: Final = click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Processes.  [default: the cores this process may use]",
)
_EXCLUSIVE: Final = (
    ("size", "fit"),
    ("split", "split_file"),
    ("splits_from", "split_file"),
    ("no_qc", "exclude_flagged"),
    ("no_qc", "audit_contours"),
    ("no_audit", "audit_contours"),
    ("workers", "scheduler"),
    ("quiet", "verbose"),
)
_DIVIDES: Final = {"split", "folds", "splits_from", "update"}
_NEEDS: Final = (  # option, options of which it needs one, why
    (
        "resample",
        {"size", "fit"},
        "--resample gives images of one spacing, not of one size: give --fit ROWSxCOLUMNS, "
        "--size most or --size ROWSxCOLUMNS.",
    ),
    ("fit_about", {"fit"}, "--fit-about is about --fit: give its ROWSxCOLUMNS."),
    (
        "same_person",
        _DIVIDES,
        "--same-person needs --split or --folds.",
    ),
    ("split_seed", _DIVIDES, "--split-seed needs --split or --folds."),
    ("stratify", _DIVIDES, "--stratify needs --split or --folds."),
    ("patients_csv", {"stratify"}, "--patients-csv needs --stratify with the name of its column."),
    ("keep_tags_anyway", {"keep_tags"}, "--keep-tags-anyway needs --keep-tags."),
    ("paranoid", {"update"}, "--paranoid needs --update."),
    (
        "exclude_structures",
        {"exclude_flagged", "exclude_file"},
        "--exclude-structures needs --exclude-flagged or --exclude-file.",
    ),
)


def input_options(command: _Command) -> _Command:
    """Give a command the options that say how DATA is read, and what of it."""
    return _with(_INPUT, command)


def quality_options(command: _Command) -> _Command:
    """Give a command the options that say what is checked, and which rows that leaves out."""
    return _with(_QUALITY, command)


def _with(options: tuple[Callable[[_Command], _Command], ...], command: _Command) -> _Command:
    for option in reversed(options):
        command = option(command)
    return command


def build_options(params: dict[str, Any]) -> "BuildOptions":
    """Return what the content of a file depends on.

    Parameters
    ----------
    params : dict
        Of `input_options` and `quality_options`, and others by the names of `BuildOptions`.
    """
    from etl.options import BuildOptions

    others = dict(params)
    rows, columns, rule = _file_size(others.pop("size"), others.pop("fit"))
    contours = others.pop("contours")
    return BuildOptions(
        contours=tuple(contours.split(",")) if contours else None,
        contour_origin=int(others.pop("contour_origin")),
        rows=rows,
        columns=columns,
        size=rule,
        qc=not others.pop("no_qc"),
        audit=not others.pop("no_audit"),
        **others,
    )


def check_build_options() -> None:
    """Refuse options that contradict each other, or that would do nothing."""
    context = click.get_current_context()
    given = given_names()
    for pair in _EXCLUSIVE:
        if given >= set(pair):
            options = " and ".join(f"--{name.replace('_', '-')}" for name in pair)
            raise click.UsageError(f"{options} exclude each other: give one of them.")
    if "partial" in given and "," not in (context.params["contours"] or "i"):
        raise click.UsageError("--partial needs two contours: use --contours i,o.")
    names = [name for name, _ in context.params["limits"]]
    if twice := [name for name in names if names.count(name) > 1]:
        raise click.UsageError(f"--limit {twice[0]} is given twice: give it once.")
    for name, others, why in _NEEDS:
        if name in given and not given & others:
            raise click.UsageError(why)
    if context.params["masks"] == "bits" and context.params.get("not_drawn") == "ignore":
        raise click.UsageError(
            "--not-drawn ignore has no value in bit masks, of which the columns drawn_<code> tell "
            "what was not drawn: leave it out, or --masks bits."
        )
    has_two = "," in (context.params["contours"] or "i")
    if has_two and "exclude_structures" in given and "partial" not in given:
        raise click.UsageError(
            "--exclude-structures keeps pairs that lack a contour: give --partial as well."
        )


def _file_size(
    size: tuple[int, int] | str, fit: tuple[int, int] | None
) -> tuple[int, int, "SizeRule"]:
    """Return the size of the file's images, and what becomes of others."""
    if fit is not None:
        return *fit, "fit"
    if isinstance(size, str):
        return 256, 256, "most"  # replaced as soon as the sizes are known
    return *size, "exact"
