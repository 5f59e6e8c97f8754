"""The small datasets of a file, all but images and masks, against the digests in it."""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from loader.errors import LoaderError


def damaged(
    tables: Mapping[str, Mapping[str, npt.NDArray[np.generic]]],
    digests: Mapping[str, str],
    path: str,
) -> dict[str, str]:
    """Return what differs: dataset → why, in the order of the file.

    Parameters
    ----------
    tables : mapping of str to mapping of str to array
        Group → column → values as stored.
    digests : mapping of str to str
        Dataset → XXH3-128 of its bytes, 32 hexadecimal digits.
    path : str
        For messages.

    Raises
    ------
    LoaderError
        The package xxhash is not installed.
    """
    digest_of = _xxh3_128(path)
    found: dict[str, str] = {}
    left = dict(digests)
    for group, columns in tables.items():
        for column, values in columns.items():
            name = f"{group}/{column}"
            expected = left.pop(name, None)
            if expected is None:
                found[name] = "has no digest in the file."
            elif digest_of(np.ascontiguousarray(values).data) != expected:
                found[name] = "differs from its digest."
    return found | dict.fromkeys(sorted(left), "is missing, but has a digest.")


def _xxh3_128(path: str) -> Callable[[memoryview], str]:
    try:
        from xxhash import xxh3_128_hexdigest  # not needed for anything else here
    except ImportError as error:
        raise LoaderError(
            f"Columns not verified: {path}: their digests are XXH3-128, for which the package "
            "xxhash is needed, and it is not installed. Install it: pip install xxhash; or run "
            "dicom-etl verify where the file was built."
        ) from error
    return xxh3_128_hexdigest
