"""Small DICOM instances, contours and input folders, made in memory; no patient data."""

import io
import os
import pickle
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
)

SYNTAXES = {
    "implicit": ImplicitVRLittleEndian,
    "explicit": ExplicitVRLittleEndian,
    "big": ExplicitVRBigEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
}
SQUARE = "2 2\n9 2\n9 9\n2 9\n"
OUTER_SQUARE = "1 1\n11 1\n11 10\n1 10\n"
ROWS, COLUMNS = 12, 14  # not square, so that a swap of axes shows


def gradient(rows=ROWS, columns=COLUMNS, dtype="<i2", seed=0):
    """Return an image whose every pixel is told from its neighbours.

    It has no edges, so that no contour fits it: a build with the audit would spend most of its time
    on finding out why. Tests that want none of that build without it.
    """
    limits = np.iinfo(dtype)
    noise = np.random.default_rng(seed).integers(limits.min, limits.max, (rows, columns), dtype)
    return np.asarray(noise)


def instance(pixels=None, *, bits_stored=None, uid="1.2.3", **attributes):
    """Return a valid MR instance; attributes given as None are left out."""
    pixels = gradient() if pixels is None else pixels
    bits = pixels.dtype.itemsize * 8
    dataset = Dataset()
    dataset.SOPClassUID = MRImageStorage
    values = {
        "SOPInstanceUID": uid,
        "SeriesInstanceUID": "1.2.3.4",
        "InstanceNumber": 7,
        "ImagePositionPatient": [1.5, -2.25, 3],
        "ImageOrientationPatient": [1, 0, 0, 0, 0.6, -0.8],
        "SliceLocation": -16.634,
        "TriggerTime": 18.75,
        "PixelSpacing": [1.25, 1.5],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "BitsAllocated": bits,
        "BitsStored": bits_stored or bits,
        "HighBit": (bits_stored or bits) - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "PixelData": pixels.tobytes() + b"\0" * (pixels.nbytes % 2),
    } | attributes
    for keyword, value in values.items():
        if value is not None:
            setattr(dataset, keyword, value)
    if "PixelData" in dataset:
        dataset["PixelData"].VR = "OW"
    return dataset


def group(**attributes):
    """Return a sequence of one item with these attributes."""
    item = Dataset()
    for keyword, value in attributes.items():
        setattr(item, keyword, value)
    return Sequence([item])


def groups(**macros):
    item = Dataset()
    for keyword, sequence in macros.items():
        setattr(item, keyword, sequence)
    return item


BARE = {
    "PixelSpacing": None,
    "ImagePositionPatient": None,
    "ImageOrientationPatient": None,
    "TriggerTime": None,
}


def enhanced(n_frames, shared=None, per_frame=None, **attributes):
    """Return a multi-frame instance with functional groups."""
    pixels = [gradient(seed=number) for number in range(n_frames)]
    dataset = instance(pixels[0], **(BARE | {"NumberOfFrames": n_frames} | attributes))
    dataset.PixelData = np.stack(pixels).tobytes()
    if shared is not None:
        dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    if per_frame is not None:
        dataset.PerFrameFunctionalGroupsSequence = Sequence(per_frame)
    return dataset


def dicom_bytes(dataset=None, syntax="explicit"):
    """Return a dataset as the bytes of a DICOM file."""
    dataset = instance() if dataset is None else dataset
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.file_meta.TransferSyntaxUID = SYNTAXES.get(syntax, syntax)
    file = io.BytesIO()
    if syntax == "big" and "PixelData" in dataset:
        words = np.frombuffer(dataset.PixelData, "<u2").astype(">u2")
        dataset.PixelData = words.tobytes()
    known = SYNTAXES.get(syntax, ExplicitVRLittleEndian)
    dataset.save_as(
        file,
        implicit_vr=known.is_implicit_VR,
        little_endian=known.is_little_endian,
        enforce_file_format=True,
    )
    return file.getvalue()


def write_tree(root, patients=(("P1", "A1"),), slices=(1, 2, 3), *, outer=True, **attributes):
    """Write an input folder of small valid pairs and return it."""
    root = Path(root)
    lines = ["patient_id,original_id", *(",".join(pair) for pair in patients)]
    root.mkdir(parents=True, exist_ok=True)
    (root / "link.csv").write_text("\n".join(lines) + "\n")
    for seed, (patient_id, original_id) in enumerate(patients):
        for number in slices:
            pixels = gradient(seed=1000 * seed + number)
            uid = f"1.2.3.{seed + 1}.{number}"
            write_dicom(root, patient_id, f"{number}.dcm", _file(pixels, uid, attributes))
            # The same squares, but no two drawings alike: a point of its own on each left side.
            y = 3 + (100 * seed + number) / 100
            write_contour(root, original_id, number, text=f"{SQUARE}2 {y}\n")
            if outer:
                write_contour(root, original_id, number, "o", f"{OUTER_SQUARE}1 {y}\n")
    return root


def _file(pixels, uid, attributes):
    """Return an instance as the bytes of a file: made once, since many tests want the same."""
    key = (pixels.tobytes(), pixels.shape, pixels.dtype, uid, pickle.dumps(attributes))
    if key not in _FILES:
        _FILES[key] = dicom_bytes(instance(pixels, uid=uid, **attributes))
    return _FILES[key]


_FILES = {}


def write_dicom(root, patient_id, name, content=None):
    """Write one DICOM file; `content` is a dataset or bytes."""
    path = Path(root) / "dicoms" / patient_id / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else dicom_bytes(content))
    return path


def contour_path(original_id, number, kind="i"):
    """Return where a contour belongs, relative to the input folder."""
    name = f"IM-0001-{number:04d}-{kind}contour-manual.txt"
    return f"contourfiles/{original_id}/{kind}-contours/{name}"


def write_contour(root, original_id, number, kind="i", text=SQUARE):
    """Write one contour file; `text` is str or bytes."""
    path = Path(root) / contour_path(original_id, number, kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def copy_tree(source, target):
    """Copy an input folder that may be read-only."""
    shutil.copytree(source, target, copy_function=shutil.copyfile)
    for folder, _, _ in os.walk(target):
        Path(folder).chmod(0o755)  # files are new, folders have the mode of the source
    return Path(target)


def link_tree(source, target):
    """Copy an input folder, but share its images: tests replace them, and never write into them."""
    shutil.copytree(source, target, copy_function=_link_image)
    return Path(target)


def _link_image(source, target):
    if str(source).endswith(".dcm"):
        os.link(source, target)
    else:
        shutil.copyfile(source, target)


@contextmanager
def images_unchanged(root):
    """Require that nobody writes into the images of a folder meanwhile."""

    def stamps():
        images = sorted(Path(root).rglob("*.dcm"))
        return [(path, path.stat().st_mtime_ns, path.stat().st_size) for path in images]

    before = stamps()
    yield
    assert stamps() == before


def points_of(contour):
    """Return the points of a contour of a structure set as (n, 3).

    From the file's text, where nobody has asked pydicom for the numbers yet: it would make a
    decimal of each, in fifty times the time.
    """
    value = contour.get_item("ContourData").value
    texts = value.split(b"\\") if isinstance(value, bytes) else value
    return np.array(texts, float).reshape(-1, 3)


def set_points(contour, points):
    """Give a contour of a structure set other points, to a ten-thousandth of a millimetre."""
    texts = [f"{value:.4f}" for value in np.ravel(points).tolist()]
    contour.add(DataElement(0x30060050, "DS", texts, already_converted=True))
