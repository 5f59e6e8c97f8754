"""Names of the link.csv layout: those that are read, and what others look like.

Nothing here is guessed into a build: a name that is nearly right becomes a finding that says which
name was expected.
"""

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from etl.labels import plain_name
from etl.options import KINDS, Kind

DICOM_FOLDER: Final = "dicoms"
CONTOUR_FOLDER: Final = "contourfiles"

# ASCII digits only: int() would take "1_0" and other scripts' digits, and two names mean one slice.
DICOM_NAME: Final = re.compile(r"0*([0-9]{1,18})\.dcm", re.ASCII | re.IGNORECASE)
CONTOUR_NAME: Final = {
    kind: re.compile(
        rf"IM-[0-9]+-0*([0-9]{{1,18}})-{kind}contour-manual\.txt", re.ASCII | re.IGNORECASE
    )
    for kind in KINDS
}

# Written by file browsers, editors and archives of their own accord. Other hidden files, too.
_LITTER: Final = re.compile(
    r"\..*|thumbs\.db|ehthumbs\.db|desktop\.ini|icon\r|__macosx|@eadir|.*\.sw[a-z]|.*~|#.*#",
    re.IGNORECASE | re.DOTALL,
)
_COPY_MARK: Final = re.compile(
    r"[ _-]*(?:\([0-9]+\)|copy(?: ?\([0-9]+\)| [0-9]+)?)(?=\.|$)|^copy of ", re.IGNORECASE
)
_WRAPPED: Final = r"(?:\.(?:gz|zip|bz2|xz|part|crdownload|download|bak|old|orig|tmp))?"
_IMAGE_LIKE: Final = re.compile(rf"(.*?)(?:\.(?:dcm|dicom|dic|ima))+{_WRAPPED}", re.IGNORECASE)
# Without a suffix, as scanners and archives export: 3, IM0003, I10, IM-0001-0003, MR.1.2.840.1.
_BARE_IMAGE: Final = re.compile(
    r"(?:im|img|image|i|mr|ct|slice)?[-_ ]?[0-9]+(?:[-_][0-9]+)?"
    r"|(?:[a-z]{2}\.)?[0-9]+(?:\.[0-9]+){4,}",
    re.IGNORECASE | re.ASCII,
)
_CONTOUR_LIKE: Final = re.compile(
    rf"([0-9]+|im[-_ ]?[0-9]+(?:[-_][0-9]+)?[-_a-z]*|.*(?<!p[0-9])(?<!p[0-9][-_])contour.*?)"
    rf"(?:\.(?:txt|text))*{_WRAPPED}",
    re.IGNORECASE | re.ASCII,
)
_KIND_IN_NAME: Final = re.compile(r"(?<![a-z])([io])[-_ ]?contour", re.IGNORECASE)
_DIGITS: Final = re.compile(r"[0-9]+", re.ASCII)
_UID_DOTS: Final = 4  # a name with that many dots is a UID, which has no slice number


def is_litter(name: str) -> bool:
    """Say whether a file is no user's: counted, and no finding."""
    return _LITTER.fullmatch(name) is not None


class Home(NamedTuple):
    """The folders of one patient, relative to DATA, and which of them is looked at."""

    dicoms: str
    contours: str
    kind: Kind | None  # of the contours in the folder; None: it is the images' folder

    def expected(self, name: str) -> str:
        """Return the path under which a build would read what a name looks like; may be empty.

        `<n>` and `<nnnn>` are written where the name does not say which slice it is.
        """
        guesses = [self._as_image, self._as_contour]
        for guess in guesses if self.kind is None else guesses[::-1]:
            if path := guess(name):
                return path
        return ""

    def _as_image(self, name: str) -> str:
        plain = _COPY_MARK.sub("", name)
        found = _IMAGE_LIKE.fullmatch(plain)
        if found is None and not _BARE_IMAGE.fullmatch(plain):
            return ""
        return f"{self.dicoms}/{_slice(found[1] if found else plain) or '<n>'}.dcm"

    def _as_contour(self, name: str) -> str:
        plain = _COPY_MARK.sub("", name)
        found = _CONTOUR_LIKE.fullmatch(plain)
        if found is None or _IMAGE_LIKE.fullmatch(plain):
            return ""
        said = _KIND_IN_NAME.search(plain)
        kind = said[1].lower() if said else (self.kind or KINDS[0])
        numbers = _DIGITS.findall(found[1])
        series, number = (["0001", *numbers][-2:]) if numbers else ("0001", "")
        shown = f"{int(number):04d}" if number else "<nnnn>"
        return f"{self.contours}/{kind}-contours/IM-{series}-{shown}-{kind}contour-manual.txt"


def home(patient_id: str, original_id: str, kind: Kind | None = None) -> Home:
    """Return the folders of a linked patient."""
    return Home(f"{DICOM_FOLDER}/{patient_id}", f"{CONTOUR_FOLDER}/{original_id}", kind)


def alike(name: str, others: Iterable[str]) -> str:
    """Return the first of some names that differs in case, leading zeros or punctuation only."""
    wanted = plain_name(name)
    return next((other for other in sorted(others) if plain_name(other) == wanted), "")


def _slice(stem: str) -> str:
    """Return the slice number that the stem of an image's name has, without leading zeros."""
    numbers = _DIGITS.findall(stem)
    is_series_and_number = re.fullmatch(r"[A-Za-z]+[-_ ]?[0-9]+[-_][0-9]+", stem, re.ASCII)
    if stem.count(".") >= _UID_DOTS or not numbers or (numbers[1:] and not is_series_and_number):
        return ""
    return str(int(numbers[-1])) if len(numbers[-1]) <= 18 else ""  # noqa: PLR2004  as DICOM_NAME
