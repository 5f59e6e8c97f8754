"""Speed of sources of DICOM objects: the index of headers, and masks beside other libraries.

    python bench/sources.py --files 20000 --series 200 --patients 3 --slices 60 --rounds 3

The index: a tree of header copies of one phantom image, a series in each folder and a structure set
for each, is indexed as a build does it, in one process; the time is that of a file.

The masks: the phantom's structure sets and segmentations, as `dicom-etl build` writes them with one
worker and as the libraries make them that people use. rt-utils, dcmrtstruct2nii, highdicom and
pydicom-seg are no dependencies: install those that you want to compare; the others are left out
with a message. Each contender runs in a process of its own, one after the other, --rounds times.
BENCH_TMP names the folder to work in.
"""

import importlib.util
import io
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

sys.path.pop(0)  # this folder, whose loader.py is not the package

_SIZE = 16  # rows and columns of the images of the index: their pixels are not read
_UID = "1.2.826.0.1.3680043.8.498.1{:019d}"


# ----------------------------------------------------------------------------------- the index


def make_series(root: Path, n_files: int, n_series: int) -> None:
    """Write header copies of one image in series, with a structure set for each series."""
    from etl.phantom import objects

    one = objects.Patient(0, _SIZE, _SIZE, 8, 0)
    image, drawn = objects.image(one, 0), objects.structure_set(one)
    uids = [_UID.format(number) for number in range(3)]
    image.SOPInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = uids
    image.file_meta.MediaStorageSOPInstanceUID = uids[0]
    image.InstanceNumber = "9999"
    image.ImagePositionPatient = ["0", "0", "999.9"]
    image.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    content = _bytes(image)
    contour = next(r.ContourSequence[0] for r in drawn.ROIContourSequence if r.ContourSequence)
    contour.ContourData = [str(v) for v in (1, 1, 0, 9, 1, 0, 9, 9, 0, 1, 9, 0)]
    contour.NumberOfContourPoints = 4
    contour.ContourImageSequence[0].ReferencedSOPInstanceUID = uids[0]
    for roi in drawn.ROIContourSequence:
        roi.ContourSequence = [contour]
    drawing = _bytes(drawn)
    n_slices = n_files // n_series
    for series in range(n_series):
        folder = root / f"P{series:04d}"
        folder.mkdir(parents=True)
        for place in range(n_slices):
            mine = [3 * (1 + series * n_slices + place), 3 * series + 1, 3 * series + 2]
            copy = content
            for uid, number in zip(uids, mine, strict=True):
                copy = copy.replace(uid.encode(), _UID.format(number + 1000).encode())
            copy = copy.replace(b"999.9", f"{place:05.1f}".encode())
            copy = copy.replace(b"9999", f"{place + 1:04d}".encode())
            copy = copy.replace(b"SHAPES001", f"SHAPE{series:04d}".encode())
            (folder / f"{place + 1}.dcm").write_bytes(copy)
        first = _UID.format(3 * (1 + series * n_slices) + 1000)
        (folder / "set.dcm").write_bytes(drawing.replace(uids[0].encode(), first.encode()))


def _bytes(dataset: "Dataset") -> bytes:
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def index(root: Path) -> dict[str, float]:
    """Return the processor time of each step until the links of a tree are known, seconds."""
    from etl.examine import index_headers
    from etl.options import BuildOptions
    from etl.sources import layouts
    from etl.workers.engine import in_process

    times = [time.process_time()]
    source, _ = layouts.choose(root)
    times.append(time.process_time())
    options = layouts.settle(source, BuildOptions())
    found = source.discover(root, options)
    times.append(time.process_time())
    found = index_headers(in_process(), source, found, options, progress=False)
    times.append(time.process_time())
    if not found.links:
        raise click.ClickException("the index found no link.")
    steps = ("find the layout", "list the files", "read headers and link")
    return dict(zip(steps, np.diff(times).tolist(), strict=True))


# ----------------------------------------------------------------------------------- the masks


def patients_of(root: Path) -> list[tuple[Path, Path]]:
    """Return (folder of images, annotating file) of each patient of a phantom."""
    drawn = sorted((root / "annotations").glob("*.dcm"))
    return [(root / "images" / path.stem, path) for path in drawn]


def read_images(folder: Path) -> list["Dataset"]:
    """Return the images of a series along z, as a user's script reads them."""
    import pydicom

    images = [pydicom.dcmread(path) for path in folder.iterdir()]
    return sorted(images, key=lambda one: int(one.InstanceNumber))


def values_of(images: list["Dataset"]) -> np.ndarray:
    """Return modality values of a series."""
    slopes = [(float(one.RescaleSlope), float(one.RescaleIntercept)) for one in images]
    stacked = [
        one.pixel_array * slope + intercept
        for one, (slope, intercept) in zip(images, slopes, strict=True)
    ]
    return np.stack(stacked).astype(np.int16)


def dicom_etl(root: Path, out: Path) -> int:
    """Build the file, with all checks, in one process."""
    import etl
    import loader

    etl.build(root, out / "out.h5", etl.BuildOptions(background=True))
    data = loader.open_dataset(out / "out.h5")
    return sum(n for code, n in data.label_counts().items() if code)


def dicom_etl_no_qc(root: Path, out: Path) -> int:
    """Build the file without checks: images, masks and manifest."""
    import etl
    import loader

    etl.build(root, out / "out.h5", etl.BuildOptions(background=True, qc=False))
    data = loader.open_dataset(out / "out.h5")
    return sum(n for code, n in data.label_counts().items() if code)


def rt_utils(root: Path, out: Path) -> int:
    """Let rt-utils rasterise each structure; save images and masks."""
    from rt_utils import RTStructBuilder

    n_pixels = 0
    for folder, drawn in patients_of(root):
        found = RTStructBuilder.create_from(str(folder), str(drawn))
        masks = [found.get_roi_mask_by_name(name) for name in found.get_roi_names()]
        values = values_of(found.series_data)
        np.savez(out / folder.name, images=values, masks=np.stack(masks))
        n_pixels += int(np.any(masks, axis=0).sum())
    return n_pixels


def dcmrtstruct2nii(root: Path, out: Path) -> int:
    """Let dcmrtstruct2nii write the image and a mask of each structure."""
    import pydicom
    import SimpleITK

    pydicom.read_file = pydicom.dcmread  # the name that it had before pydicom 3
    from dcmrtstruct2nii import dcmrtstruct2nii as convert

    n_pixels = 0
    for folder, drawn in patients_of(root):
        to = out / folder.name
        convert(str(drawn), str(folder), str(to), gzip=False, convert_original_dicom=True)
        masks = [
            SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path)) > 0
            for path in to.glob("mask_*.nii")
        ]
        n_pixels += int(np.any(masks, axis=0).sum())
    return n_pixels


def highdicom(root: Path, out: Path) -> int:
    """Let highdicom arrange the segments by their images; save images and masks."""
    import highdicom as hd

    n_pixels = 0
    for folder, drawn in patients_of(root):
        images = read_images(folder)
        masks = hd.seg.segread(drawn).get_pixels_by_source_instance(
            [one.SOPInstanceUID for one in images], assert_missing_frames_are_empty=True
        )
        np.savez(out / folder.name, images=values_of(images), masks=masks)
        n_pixels += int(np.any(masks, axis=-1).sum())
    return n_pixels


def pydicom_seg(root: Path, out: Path) -> int:
    """Let pydicom-seg read the segments; save images and masks."""
    import pydicom
    import pydicom_seg

    n_pixels = 0
    for folder, drawn in patients_of(root):
        found = pydicom_seg.SegmentReader().read(pydicom.dcmread(drawn))
        masks = [found.segment_data(number) for number in found.available_segments]
        np.savez(out / folder.name, images=values_of(read_images(folder)), masks=np.stack(masks))
        n_pixels += int(np.any(masks, axis=0).sum())
    return n_pixels


def pydicom_alone(root: Path, out: Path) -> int:
    """Do as a user's script does: frames by their references; save images and masks."""
    import pydicom

    n_pixels = 0
    for folder, drawn in patients_of(root):
        images, found = read_images(folder), pydicom.dcmread(drawn)
        places = {one.SOPInstanceUID: place for place, one in enumerate(images)}
        n_segments = len(found.SegmentSequence)
        masks = np.zeros((n_segments, len(images), found.Rows, found.Columns), np.uint8)
        groups = found.PerFrameFunctionalGroupsSequence
        for group, frame in zip(groups, found.pixel_array, strict=True):
            number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
            derived = group.DerivationImageSequence[0].SourceImageSequence[0]
            masks[number - 1, places[derived.ReferencedSOPInstanceUID]] |= frame
        np.savez(out / folder.name, images=values_of(images), masks=masks)
        n_pixels += int(np.any(masks, axis=0).sum())
    return n_pixels


# Kind of the phantom → contenders, and the module that each needs.
CONTENDERS: dict[str, list[tuple[Callable[[Path, Path], int], str]]] = {
    "rtstruct": [
        (dicom_etl, "etl"),
        (dicom_etl_no_qc, "etl"),
        (rt_utils, "rt_utils"),
        (dcmrtstruct2nii, "dcmrtstruct2nii"),
    ],
    "seg": [
        (dicom_etl, "etl"),
        (dicom_etl_no_qc, "etl"),
        (pydicom_alone, "pydicom"),
        (highdicom, "highdicom"),
        (pydicom_seg, "pydicom_seg"),
    ],
}


def run_one(kind: str, name: str, root: Path) -> None:
    """Run one contender in this process; print its times, once warm, and the pixels it marks."""
    contender = {one.__name__: one for one, _ in CONTENDERS[kind]}[name]
    with tempfile.TemporaryDirectory(dir=root.parent) as out:
        (Path(out) / "first").mkdir()
        (Path(out) / "second").mkdir()
        contender(root, Path(out) / "first")  # imports, and what it keeps for the next call
        wall, cpu = time.perf_counter(), time.process_time()
        n_pixels = contender(root, Path(out) / "second")
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    click.echo(f"{wall} {cpu} {n_pixels}")


def race(kind: str, root: Path, rounds: int) -> None:
    """Run all contenders in turn, and print medians."""
    times: dict[str, list[tuple[float, float, int]]] = {}
    chosen = []
    for contender, module in CONTENDERS[kind]:
        if importlib.util.find_spec(module) is None:
            click.echo(f"  {contender.__name__:<18} left out: {module} is not installed")
        else:
            chosen.append(contender.__name__)
    for _ in range(rounds):
        for name in chosen:
            command = [sys.executable, __file__, "--run", kind, name, str(root)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                click.echo(f"  {name:<18} failed: {last}")
                continue
            wall, cpu, n_pixels = done.stdout.split()[-3:]
            times.setdefault(name, []).append((float(wall), float(cpu), int(n_pixels)))
    n_images = sum(1 for _ in (root / "images").rglob("*.dcm"))
    for name, found in times.items():
        wall, cpu = (statistics.median(column) for column in list(zip(*found, strict=True))[:2])
        per_image = (
            f"{wall / n_images * 1e3:.2f} ms an image, {cpu / n_images * 1e3:.2f} of the processor"
        )
        click.echo(f"  {name:<18} {per_image}, {found[0][2]} pixels marked")


@click.command()
@click.option("--files", default=20_000, help="Images of the index.")
@click.option("--series", default=200, help="Series of the index.")
@click.option("--patients", default=3, help="Patients of the masks.")
@click.option("--slices", default=60, help="Images of each of them.")
@click.option("--rounds", default=3)
@click.option("--run", nargs=3, hidden=True)
def main(
    files: int,
    series: int,
    patients: int,
    slices: int,
    rounds: int,
    run: tuple[str, str, str] | None,
) -> None:
    """Measure, and print."""
    if run is not None:
        run_one(run[0], run[1], Path(run[2]))
        return
    from etl.phantom.objects import write_shapes

    folder = Path(tempfile.mkdtemp(dir=os.environ.get("BENCH_TMP")))
    try:
        make_series(folder / "index", files, series)
        found = [index(folder / "index") for _ in range(rounds)]
        click.echo(f"index of {files} files in {series} series, processor time of a file:")
        for step in found[0]:
            seconds = statistics.median(one[step] for one in found)
            click.echo(f"  {step:<22} {seconds / files * 1e3:.3f} ms")
        for kind in CONTENDERS:
            write_shapes(folder / kind, kind, patients=patients, slices=slices)
            click.echo(f"{kind}: {patients} patients of {slices} images:")
            race(kind, folder / kind, rounds)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
