"""DICOM files of an input: opened with care, read by `etl.dicom`."""

from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import BinaryIO, Final, TypeVar, cast

from etl.dicom.instance import read_instance
from etl.dicom.kept_tags import KeptTag
from etl.errors import SourceError, beyond, most
from etl.model import FileStamp, FrameRef, Instance
from etl.sources.files import cannot_read, open_source

_CODE: Final = "image-unreadable"

_T = TypeVar("_T")


def read_header(
    root: Path, frame: FrameRef, kept: tuple[KeptTag, ...] = ()
) -> tuple[Instance, FileStamp]:
    """Return one frame's attributes, and the state of its file.

    Parameters
    ----------
    root : Path
        The input's folder.
    frame : FrameRef
        The frame.
    kept : tuple of KeptTag
        Further attributes to read.

    Raises
    ------
    SourceError
        The file cannot be read, or is not usable.
    """

    def read(file: BinaryIO, stamp: FileStamp) -> tuple[Instance, FileStamp]:
        place = root, frame.path, stamp
        return read_instance(file, frame.frame_number, place, kept), stamp

    return with_file(root, frame.path, read)


def with_file(root: Path, path: str, read: Callable[[BinaryIO, FileStamp], _T]) -> _T:
    """Return what a function reads of a DICOM file.

    Raises
    ------
    SourceError
        The file cannot be read, or whatever the function raises.
    """
    with open_source(root, path, _CODE) as (descriptor, stamp):
        if stamp.size > most("image-bytes"):
            raise SourceError(_CODE, beyond("image-bytes", stamp.size))
        try:
            # As open() does without a buffer, at half its time.
            with FileIO(descriptor, closefd=False) as file:
                return read(cast("BinaryIO", file), stamp)
        except OSError as error:
            raise cannot_read(error, _CODE) from error
