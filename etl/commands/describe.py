"""`dicom-etl describe`."""

from pathlib import Path

import click

from etl.commands.terminal import STDOUT, print_line, write_text


@click.command()
@click.argument("file", type=click.Path(path_type=Path), default="out.h5")
@click.option(
    "--card",
    "card_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="card.toml",
    help="What only you know: licence, creators, annotation protocol, and so on.",
)
@click.option(
    "--markdown",
    "markdown_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE|-",
    help="Write the card as Markdown.  [default: to stdout]",
)
@click.option(
    "--json-ld",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE|-",
    help="Write Croissant 1.1, which search engines for data sets read; - is stdout.",
)
@click.option("--force", is_flag=True, help="Replace files that are there.")
def describe(
    file: Path,
    card_file: Path | None,
    markdown_file: Path | None,
    json_file: Path | None,
    force: bool,
) -> None:
    """Describe FILE for its publication: a data card, and Croissant metadata.

    The facts come from FILE, the rest from card.toml. What nobody has stated is said to be missing.
    """
    import json

    from etl.report.card import Card, read_card, sha256
    from etl.report.card import describe as card_lines
    from etl.report.croissant import croissant
    from etl.report.summary import summarise
    from loader import open_dataset

    outputs = {"--markdown": markdown_file, "--json-ld": json_file}
    if all(path == STDOUT for path in outputs.values()):
        raise click.UsageError("--markdown - and --json-ld - both go to stdout: give one of them.")
    if markdown_file is None and json_file != STDOUT:
        outputs["--markdown"] = STDOUT
    card = read_card(card_file) if card_file is not None else Card()
    dataset = open_dataset(file)
    summary, digest = summarise(dataset), sha256(dataset)
    texts = {
        "--markdown": "\n".join(card_lines(summary, card, digest)),
        "--json-ld": json.dumps(croissant(summary, card, digest), indent=2, ensure_ascii=False),
    }
    for option, path in outputs.items():
        write_text(texts[option], path, force=force)
    if card.not_stated:
        print_line(
            f"Note: not stated: {', '.join(card.not_stated)}. Write them in --card.", err=True
        )
