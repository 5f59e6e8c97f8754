"""Compare two built files row by row: what version 1 had must be in a later file, unchanged.

python tests/version_1/compare.py OLD.h5 NEW.h5

Images, masks, contours, every column of the old manifest and every finding are compared; text of
messages that differs is counted and shown, and is not a difference.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np


def differences(old: Path, new: Path) -> Iterator[str]:
    """Yield a line for each difference."""
    with h5py.File(old) as a, h5py.File(new) as b:
        for name in ("images", "masks"):
            if not np.array_equal(a[name][:], b[name][:]):
                yield name
        for group in ("manifest", "contours"):
            for column in a[group]:
                if not _is_equal(a[group][column][:], b[group][column][:]):
                    yield f"{group}/{column}"
        old_findings, new_findings = _findings(a), _findings(b)
        for finding in sorted(set(old_findings) ^ set(new_findings)):
            yield f"finding {finding}"
        for key in ("image_mean", "image_std", "dataset_id", "labels"):
            if a.attrs[key] != b.attrs[key]:
                yield f"attribute {key}"


def changed_messages(old: Path, new: Path) -> list[tuple[str, str]]:
    """Return (old, new) of messages that differ, of equal findings."""
    with h5py.File(old) as a, h5py.File(new) as b:
        before, now = _findings(a), _findings(b)
        return [(before[key], now[key]) for key in before.keys() & now if before[key] != now[key]]


def _findings(file: h5py.File) -> dict[tuple[object, ...], str]:
    """Return (severity, code, path, row) → message of all findings."""
    columns = [file["findings"][name][:].tolist() for name in ("severity", "code", "path", "row")]
    keys = list(zip(*columns, strict=True))
    messages = [message.decode() for message in file["findings/message"][:].tolist()]
    merged: dict[tuple[object, ...], str] = {}
    for key, message in zip(keys, messages, strict=True):
        merged[key] = "\n".join(sorted(filter(None, (merged.get(key), message))))
    return merged


def _is_equal(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


if __name__ == "__main__":
    found = list(differences(Path(sys.argv[1]), Path(sys.argv[2])))
    print("\n".join(found) or "equal")
    for before, now in changed_messages(Path(sys.argv[1]), Path(sys.argv[2]))[:5]:
        print(f"- {before}\n+ {now}")
    sys.exit(bool(found))
