"""Whose an image is, as digests that tell equal values and nothing else.

A short PatientID can be guessed from its digest: digests stay in memory. Only the cache of an
update has any, keyed, in a file that its owner alone can read.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

import xxhash

from etl.dicom.elements import PATIENT_ID, STUDY_INSTANCE_UID
from etl.dicom.quick_scan import Element
from etl.model import NOBODY, Identity

_BLANKS: Final = b" \0"
_NO_ALPHANUMERIC: Final = re.compile(rb"[^a-z0-9\x80-\xff]+")
# What anonymisers and scanners write in the place of a value: XXXX, 0000, 9999, ANONYMIZED.
_PLACEHOLDER: Final = re.compile(
    rb"([a-z])\1+|x|0*|([0-9])\2{3,}|anon[a-z]*|deid[a-z]*|(?:no|not|un)(?:ne|ll|name|id|known"
    rb"|patientid|available|defined|specified|applicable)|null|nil|na|removed|deleted|redacted"
    rb"|masked|hidden|private|confidential|empty|default|dummy|test|patient|patientid|subject"
    rb"|phantom|id"
)


def identity(elements: Mapping[int, Element]) -> Identity:
    """Return the digests of PatientID and StudyInstanceUID; 0 for a value that tells nothing."""
    return Identity(*(_digest_of(elements.get(tag)) for tag in (PATIENT_ID, STUDY_INSTANCE_UID)))


def is_placeholder(value: str) -> bool:
    """Say whether a PatientID tells nothing: empty, or as anonymisers and scanners write."""
    return _digest(value.encode()) == NOBODY.patient


def _digest_of(element: Element | None) -> int:
    if element is None or not element.value:
        return NOBODY.patient
    return _digest(element.value)


@lru_cache(1024)  # most are the same for a whole series
def _digest(value: bytes) -> int:
    plain = _NO_ALPHANUMERIC.sub(b"", value.lower())
    if _PLACEHOLDER.fullmatch(plain):
        return NOBODY.patient
    return xxhash.xxh3_64_intdigest(value.strip(_BLANKS)) or 1
