"""A built file and the words of its owners → Croissant 1.1, the JSON-LD by which data are found.

It describes the file as a whole: Croissant has no words for datasets inside of HDF5. Properties
that nobody has stated are left out.

References
----------
MLCommons Croissant Format Specification 1.1; Croissant RAI Vocabulary 1.0.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from etl.report.card import Card, Creator, checks_text, masks_text, public_options
from etl.report.summary import Summary
from etl.report.text import sources_text
from loader.format import SPLITS

Json: TypeAlias = dict[str, object]

_VERSIONS: Final = ["http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0"]
_TERMS: Final = (  # of Croissant itself; readers expect all of them, used or not
    *("arrayShape", "citeAs", "column", "containedIn", "equivalentProperty", "extract", "field"),
    *("fileObject", "fileProperty", "fileSet", "format", "includes", "isArray", "isLiveDataset"),
    *("jsonPath", "key", "md5", "parentField", "path", "recordSet", "references", "regex"),
    *("repeated", "replace", "samplingRate", "separator", "source", "subField", "transform"),
)
_CONTEXT: Final[Json] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "sc": "https://schema.org/",
    **{name: f"cr:{name}" for name in _TERMS},
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "name": {"@container": "@language"},
    "description": {"@container": "@language"},
}
# Of the vocabulary: what each key of card.toml is there.
_PROPERTIES: Final = {
    "url": "url",
    "version": "version",
    "license": "license",
    "citation": "citeAs",
    "date_published": "datePublished",
    "collection": "rai:dataCollection",
    "annotation_protocol": "rai:dataAnnotationProtocol",
    "intended_use": "rai:dataUseCases",
    "limitations": "rai:dataLimitations",
    "personal_information": "rai:personalSensitiveInformation",
}
_SPLIT_KINDS: Final = {
    "train": "cr:TrainingSplit",
    "validation": "cr:ValidationSplit",
    "test": "cr:TestSplit",
}
_FILE_ID: Final = "file"
_TEXT: Final = "sc:Text"
_INTEGER: Final = "sc:Integer"


def croissant(summary: Summary, card: Card, digest: str) -> Json:
    """Return the description of a file as Croissant 1.1.

    Parameters
    ----------
    summary : Summary
        Of the file. Ids and paths are not taken from it.
    card : Card
    digest : str
        SHA-256 of the file.
    """
    stated = {word: getattr(card, key) for key, word in _PROPERTIES.items() if getattr(card, key)}
    name = Path(summary.path).name
    about: Json = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": _VERSIONS,
        "name": card.name or Path(name).stem,
        "description": card.description or _description(summary),
        **stated,
    }
    if card.keywords:
        about["keywords"] = list(card.keywords)
    if card.creators:
        about["creator"] = list(map(_creator, card.creators))
    about["rai:dataPreprocessingProtocol"] = _protocol(summary)
    about["distribution"] = [
        {
            "@type": "cr:FileObject",
            "@id": _FILE_ID,
            "name": name,
            "description": _description(summary),
            "contentUrl": name,
            "contentSize": f"{summary.n_bytes} B",
            "encodingFormat": "application/x-hdf5",
            "sha256": digest,
        }
    ]
    about["recordSet"] = _record_sets(summary)
    return about


def _description(summary: Summary) -> str:
    labels = ", ".join(f"{one.code}: {one.meaning}" for one in summary.labels)
    return (
        f"{summary.n_rows} images of {summary.n_patients} patients with masks ({labels}; "
        f"{masks_text(summary)}), {summary.rows} x {summary.columns} pixels, "
        f"{summary.image_dtype}, in one HDF5 file."
    )


def _protocol(summary: Summary) -> str:
    options = json.dumps(public_options(summary), sort_keys=True)
    return (
        f"Built by {summary.generator} from {', '.join(sources_text(summary.sources))}. "
        f"Quality checks: {checks_text(summary)}. Options: {options}"
    )


def _creator(one: Creator) -> Json:
    about: Json = {"@type": f"sc:{one.kind.capitalize()}", "name": one.name}
    about |= {key: value for key, value in (("url", one.url), ("email", one.email)) if value}
    if one.affiliation:
        about["affiliation"] = {"@type": "sc:Organization", "name": one.affiliation}
    return about


def _record_sets(summary: Summary) -> list[Json]:
    """Return the tables that are short enough to be in the description itself."""
    labels = [
        {"code": one.code, "meaning": one.meaning, "n_rows": one.n_rows, "n_pixels": one.n_pixels}
        for one in summary.labels
    ]
    sides = [
        {
            "name": one.name,
            "url": _SPLIT_KINDS[one.name],
            "n_patients": one.n_patients,
            "n_rows": one.n_rows,
        }
        for one in summary.splits
        if one.name in SPLITS
    ]
    folds = [
        {"fold": one.name, "n_patients": one.n_patients, "n_rows": one.n_rows}
        for one in summary.folds
    ]
    found: list[Json] = []
    if labels:
        found.append(_record_set("labels", "sc:Enumeration", "The codes of the masks.", labels))
    if sides:
        found.append(_record_set("splits", "cr:Split", "The parts, by patient.", sides))
    if folds:
        found.append(_record_set("folds", None, "Cross-validation folds, by patient.", folds))
    return found


def _record_set(
    name: str, kind: str | None, description: str, rows: Sequence[Mapping[str, object]]
) -> Json:
    fields = [
        {
            "@type": "cr:Field",
            "@id": f"{name}/{column}",
            "name": column,
            "dataType": _INTEGER if isinstance(value, int) else _TEXT,
        }
        for column, value in rows[0].items()
    ]
    for field in fields:
        if field["name"] == "url":
            field["dataType"] = "sc:URL"
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "description": description,
        **({"dataType": kind} if kind else {}),
        "key": {"@id": fields[0]["@id"]},
        "field": fields,
        "data": [{f"{name}/{column}": value for column, value in row.items()} for row in rows],
    }
