"""The key of a cache's digests, sealed with the content of sources: a cache alone has no key.

Who has none of these sources cannot try which PatientIDs the digests are of.
"""

import contextlib
import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from etl.errors import ReuseError, SourceError
from etl.output.row_writer import read_at
from etl.sources.files import open_source

KEY_BYTES: Final = 16
_SALT_BYTES: Final = 16
_N_SOURCES: Final = 8  # each opens the seal, so that it outlives those that change
_MAX_BYTES: Final = 1 << 20  # of a source: the header and more


@dataclass(frozen=True)
class Seal:
    """A key that the content of any of some sources opens.

    Attributes
    ----------
    salt : str
        Hexadecimal, as the other texts.
    check : str
        A digest of the key.
    sealed : dict of str to str
        Path of a source → the key, exclusive-or a digest of the source's content.
    """

    salt: str
    check: str
    sealed: dict[str, str]

    @classmethod
    def of(cls, key: bytes, root: Path, paths: Sequence[str]) -> "Seal":
        """Seal a key with some of the sources, evenly spread."""
        salt = secrets.token_bytes(_SALT_BYTES)
        names = list(dict.fromkeys(paths))
        chosen = names[:: max(1, -(-len(names) // _N_SOURCES))]
        sealed = {}
        for path in chosen:
            with contextlib.suppress(SourceError, OSError):  # the others open it
                sealed[path] = _either(key, _pad(root, path, salt)).hex()
        return cls(salt.hex(), _check(key), sealed)

    def opened(self, root: Path) -> bytes:
        """Return the key.

        Raises
        ------
        ReuseError
            None of the sources is as it was.
        """
        salt = bytes.fromhex(self.salt)
        for path, sealed in self.sealed.items():
            with contextlib.suppress(SourceError, OSError):
                key = _either(bytes.fromhex(sealed), _pad(root, path, salt))
                if _check(key) == self.check:
                    return key
        raise ReuseError("the sources that its cache was sealed with are gone or changed")


def _pad(root: Path, path: str, salt: bytes) -> bytes:
    """Return a digest of what a source begins with.

    Raises
    ------
    SourceError, OSError
        It cannot be read.
    """
    with open_source(root, path, "image-unreadable") as (descriptor, stamp):
        content = read_at(descriptor, min(stamp.size, _MAX_BYTES), 0)
    return hashlib.blake2b(content, digest_size=KEY_BYTES, salt=salt).digest()


def _either(one: bytes, other: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(one, other, strict=True))


def _check(key: bytes) -> str:
    return hashlib.blake2b(key, digest_size=KEY_BYTES, person=b"dicom-etl key").hexdigest()
