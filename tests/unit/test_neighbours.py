"""Neighbouring images as channels, held equal to slow and obvious versions."""

import itertools
import json
import math
import pickle
import warnings

import h5py
import numpy as np
import pytest
from dataset_builder import write_dataset
from hypothesis import given
from hypothesis import strategies as st

import loader
from loader import Augment, Neighbours, lookahead
from loader.augment import draw_parameters

NAN = float("nan")
AXES = {"row": (1.0, 0.0, 0.0), "column": (0.0, 0.8, -0.6)}
NORMAL = np.cross(*AXES.values())
OPTIONS = {"batch_size": 3, "seed": 7, "layout": "NCHW"}


def manifest_of(rows):
    """Return manifest columns of rows (patient, series, height, trigger time, slice, position).

    The last one is the temporal position, which may be left out.
    """
    rows = [row if len(row) > 5 else (*row, NAN) for row in rows]
    patient, series, height, time, number, temporal = zip(*rows, strict=True)
    columns = {"patient_id": [f"P{one}".encode() for one in patient]}
    columns["series"] = [str(one).encode() for one in series]
    columns |= {"trigger_time": time, "slice": number, "slice_location": np.full(len(rows), NAN)}
    columns["temporal_position"] = temporal
    columns["frame_number"] = columns["instance_number"] = np.ones(len(rows))
    positions = np.array([10.0, -20.0, 30.0]) + np.outer(height, NORMAL)
    for axis, values in zip("xyz", positions.T, strict=True):
        columns[f"image_position_{axis}"] = values
    for name, direction in AXES.items():
        for axis, value in zip("xyz", direction, strict=True):
            columns[f"image_orientation_{name}_{axis}"] = np.full(len(rows), value)
    return columns


# A patient with two slices of three phases, drawn at 0 and 300 ms; one slice in between at 0 only.
# The heart rate differs a little from slice to slice. The second patient has CT without times.
ROWS = [
    (1, "a", 0.0, 0.0, 1),
    (1, "a", 0.0, 300.0, 4),
    (1, "a", 8.0, 20.0, 11),
    (1, "a", 16.0, 10.0, 21),
    (1, "a", 16.0, 320.0, 24),
    (1, "b", 0.0, 0.0, 1),
    (2, "a", 5.0, NAN, 3),
    (2, "a", 2.0, NAN, 2),
    (2, "a", -1.0, NAN, 1),
]


def write(path, rows=ROWS, **options):
    manifest = manifest_of(rows) | options.pop("manifest", {})
    return write_dataset(path, n=len(rows), rows=6, columns=6, manifest=manifest, **options)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("neighbours") / "out.h5"
    write(path, split=[0] * 6 + [1] * 3)
    return path


def test_along_slices_the_same_phase_at_other_positions(path):
    table = Neighbours(1).rows_of(loader.open_dataset(path))
    assert table.tolist() == [
        [-1, 0, 2],
        [-1, 1, 4],  # the slice in between has no image at 300 ms
        [0, 2, 3],
        [2, 3, -1],
        [1, 4, -1],
        [-1, 5, -1],  # a series of its own
        [7, 6, -1],
        [8, 7, 6],
        [-1, 8, 7],
    ]


def test_along_phases_other_times_at_the_same_position(path):
    with pytest.warns(UserWarning, match="3 of 9 rows have no place along phase, .* trigger time"):
        loader.Batches(path, **OPTIONS, neighbours=Neighbours(along="phase"))
    table = Neighbours(1, along="phase").rows_of(loader.open_dataset(path))
    alone = [[-1, row, -1] for row in (5, 6, 7, 8)]
    assert table.tolist() == [[-1, 0, 1], [0, 1, -1], [-1, 2, -1], [-1, 3, 4], [3, 4, -1], *alone]


def test_along_numbers_whatever_they_count(path):
    table = Neighbours(2, along="number").rows_of(loader.open_dataset(path))
    assert table[:5].tolist() == [
        [-1, -1, 0, 1, 2],
        [-1, 0, 1, 2, 3],
        [0, 1, 2, 3, 4],
        [1, 2, 3, 4, -1],
        [2, 3, 4, -1, -1],
    ]
    assert table[5:].tolist() == [
        [-1, -1, 5, -1, -1],
        [8, 7, 6, -1, -1],
        [-1, 8, 7, 6, -1],
        [-1, -1, 8, 7, 6],
    ]


def test_frames_follow_each_other_where_numbers_are_equal(tmp_path):
    rows = [(1, "a", 0.0, NAN, 5)] * 3
    write(tmp_path / "out.h5", rows, manifest={"frame_number": [3, 1, 2]})
    table = Neighbours(1, along="number").rows_of(loader.open_dataset(tmp_path / "out.h5"))
    assert table.tolist() == [[2, 0, -1], [-1, 1, 2], [1, 2, 0]]


@pytest.mark.parametrize(
    ("along", "within", "expected"),
    [
        ("slice", 8.0, [[-1, 0, 2], [-1, 1, -1], [0, 2, 3]]),
        ("slice", 7.9, [[-1, 0, -1], [-1, 1, -1], [-1, 2, -1]]),
        ("phase", 299, [[-1, 0, -1], [-1, 1, -1], [-1, 2, -1]]),
        ("number", 6, [[-1, 0, 1], [0, 1, -1], [-1, 2, -1]]),
    ],
)
def test_a_step_that_is_too_wide_is_an_edge(path, along, within, expected):
    table = Neighbours(1, along, within=within).rows_of(loader.open_dataset(path))
    assert table[:3].tolist() == expected


@pytest.mark.parametrize("step", [0.7, 4.0, 8.0, 9.6, 12.0])
def test_a_step_as_wide_as_within_is_none_that_is_too_wide(tmp_path, step):
    """Products of rounded positions and cosines differ by 8.000000000000002 mm, and by less."""
    heights = [number * step for number in range(-9, 10)]
    write(tmp_path / "out.h5", [(1, "a", height, NAN, 1) for height in heights])
    dataset = loader.open_dataset(tmp_path / "out.h5")
    every = Neighbours(1).rows_of(dataset)
    assert Neighbours(1, within=step).rows_of(dataset).tolist() == every.tolist()
    assert (Neighbours(1, within=step - 0.2).rows_of(dataset)[:, [0, 2]] == -1).all()


@pytest.mark.parametrize("step", [0.1, 33.3, 40.0])
def test_a_step_in_time_may_be_as_wide_as_within(tmp_path, step):
    times = [round(number * step, 1) for number in range(20)]
    write(tmp_path / "out.h5", [(1, "a", 0.0, time, 1) for time in times])
    dataset = loader.open_dataset(tmp_path / "out.h5")
    every = Neighbours(1, "phase").rows_of(dataset)
    assert Neighbours(1, "phase", within=step).rows_of(dataset).tolist() == every.tolist()
    assert (Neighbours(1, "phase", within=0.99 * step).rows_of(dataset)[:, [0, 2]] == -1).all()


def test_behind_a_wide_step_there_is_nothing(tmp_path):
    write(tmp_path / "out.h5", [(1, "a", height, NAN, 1) for height in (0, 8, 30, 38)])
    table = Neighbours(3, within=10).rows_of(loader.open_dataset(tmp_path / "out.h5"))
    none = [-1, -1]
    assert table[:2].tolist() == [[-1, *none, 0, 1, *none], [*none, 0, 1, -1, *none]]


def test_slice_location_helps_where_position_is_missing(tmp_path):
    rows = [(1, "a", NAN, NAN, 1)] * 3
    write(tmp_path / "out.h5", rows, manifest={"slice_location": [4.0, -4.0, 0.0]})
    table = Neighbours(1).rows_of(loader.open_dataset(tmp_path / "out.h5"))
    assert table.tolist() == [[2, 0, -1], [-1, 1, 2], [1, 2, 0]]


def test_stacks_of_other_orientations_are_apart(tmp_path):
    rows = [(1, "a", height, NAN, 1) for height in (0.0, 1.0, 2.0, 3.0)]
    tilted = {
        "image_orientation_column_y": [0.8, 0.6, 0.8 + 1e-6, 0.6],
        "image_orientation_column_z": [-0.6, -0.8, -0.6, -0.8],
    }
    write(tmp_path / "out.h5", rows, manifest=tilted)
    table = Neighbours(1).rows_of(loader.open_dataset(tmp_path / "out.h5"))
    assert table.tolist() == [[-1, 0, 2], [-1, 1, 3], [0, 2, -1], [1, 3, -1]]


def test_images_that_nobody_can_tell_apart_have_no_neighbours(tmp_path):
    """Two phases at one of three positions, without times: whose neighbour would be which?"""
    rows = [(1, "a", height, NAN, 1) for height in (0.0, 0.0, 8.0, 16.0)]
    write(tmp_path / "out.h5", rows)
    with pytest.warns(UserWarning, match="2 of 4 rows have no place along slice, .*lack image pos"):
        batches = loader.Batches(tmp_path / "out.h5", **OPTIONS | {"batch_size": 4}, neighbours=1)
    table = Neighbours(1).rows_of(batches.dataset)
    assert table.tolist() == [[-1, 0, -1], [-1, 1, -1], [-1, 2, 3], [2, 3, -1]]


# Two positions with three phases each, in the order that scanners have: phases of a slice follow
# each other, or slices of a phase.
CINE = [(1, "a", 8.0 * (k // 3), 40.0 * (k % 3), k + 1, 1.0 + k % 3) for k in range(6)]
OF_CINE = {
    "slice": [[-1, 0, 3], [-1, 1, 4], [-1, 2, 5], [0, 3, -1], [1, 4, -1], [2, 5, -1]],
    "phase": [[-1, 0, 1], [0, 1, 2], [1, 2, -1], [-1, 3, 4], [3, 4, 5], [4, 5, -1]],
}


@pytest.mark.parametrize("along", ["slice", "phase"])
@pytest.mark.parametrize("known", ["time", "temporal position", "order"])
@pytest.mark.parametrize("is_slice_after_slice", [True, False])
def test_phases_are_told_by_time_or_position_or_order(tmp_path, along, known, is_slice_after_slice):
    rows = []
    for patient, series, height, ms, number, index in CINE:
        place = number if is_slice_after_slice else 2 * index + (height > 0)
        # What is known last does not count: the numbers run backwards where positions are known.
        place = -place if known == "temporal position" else place
        time = ms if known == "time" else NAN
        temporal = index if known == "temporal position" else NAN
        rows.append((patient, series, height, time, place, temporal))
    write(tmp_path / "out.h5", rows)
    dataset = loader.open_dataset(tmp_path / "out.h5")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loader.Batches(dataset, **OPTIONS, neighbours=Neighbours(along=along))
    assert Neighbours(1, along).rows_of(dataset).tolist() == OF_CINE[along]


def test_a_phase_that_a_position_lacks_is_passed_over(tmp_path):
    rows = [(1, "a", 8.0 * k, NAN, k, 1.0) for k in range(3)]
    rows += [(1, "a", 8.0 * k, NAN, 9 + k, 5.0) for k in (0, 2)]
    write(tmp_path / "out.h5", rows)
    dataset = loader.open_dataset(tmp_path / "out.h5")
    table = Neighbours(1).rows_of(dataset)
    assert table.tolist() == [[-1, 0, 1], [0, 1, 2], [1, 2, -1], [-1, 3, 4], [3, 4, -1]]
    table = Neighbours(1, "phase", within=3).rows_of(dataset)  # of four phases apart
    assert (table[:, [0, 2]] == -1).all()


def test_images_of_one_position_and_number_have_no_phase(tmp_path):
    rows = [(1, "a", 8.0 * (k // 2), NAN, 1, 1.0) for k in range(4)]
    rows += [(2, "a", 8.0 * (k // 2), NAN, 1) for k in range(4)]
    write(tmp_path / "out.h5", [*rows, (1, "a", 16.0, NAN, 1, 1.0)])
    for along in ("slice", "phase"):
        table = Neighbours(1, along).rows_of(loader.open_dataset(tmp_path / "out.h5"))
        assert (table[:, [0, 2]] == -1).all()


def test_a_file_without_any_neighbours_is_refused(tmp_path):
    write(tmp_path / "out.h5", [(patient, "a", 0.0, 0.0, 1) for patient in range(4)])
    why = r"no row has a neighbour along slice \(expected image position.*another along"
    with pytest.raises(loader.LoaderError, match=why):
        loader.Batches(tmp_path / "out.h5", **OPTIONS | {"batch_size": 4}, neighbours=1)


# The slow and obvious version


def numbered_phases(rows):
    """Return the phase of each row without a trigger time; None where nobody can tell."""
    phases = []
    for patient, series, height, time, number, temporal in rows:
        same = [
            row
            for row in rows
            if row[:2] == (patient, series)
            and math.isnan(row[3])
            and math.isnan(row[5]) == math.isnan(temporal)
        ]
        here = [row for row in same if row[2] == height]
        is_even = {sum(row[2] == other[2] for row in same) for other in same} == {len(here)}
        if not math.isnan(time):
            phase = None
        elif not math.isnan(temporal):
            phase = temporal if [row[5] for row in here].count(temporal) == 1 else None
        elif len(here) == 1 or is_even:
            numbers = sorted(row[4] for row in here)
            phase = numbers.index(number) if numbers.count(number) == 1 else None
        else:
            phase = None
        phases.append(phase)
    return phases


def oracle(rows, n, along):
    """Return the table of neighbours by looking at all pairs of rows."""
    table, phases = [], numbered_phases(rows)
    for i, (patient, series, height, time, _, temporal) in enumerate(rows):
        same = [j for j, row in enumerate(rows) if row[:2] == (patient, series)]
        alike = [
            j
            for j in same
            if phases[j] is not None and math.isnan(rows[j][5]) == math.isnan(temporal)
        ]
        if along == "number":
            line = sorted(same, key=lambda j: (rows[j][4], j))
        elif along == "phase" and math.isnan(time):
            line = [i]
            if phases[i] is not None:
                line = sorted([j for j in alike if rows[j][2] == height], key=phases.__getitem__)
        elif along == "phase":
            here = [j for j in same if rows[j][2] == height and rows[j][3] == rows[j][3]]
            line = sorted(here, key=lambda j: (rows[j][3], j))
        elif not math.isnan(time):
            timed = [j for j in same if rows[j][3] == rows[j][3]]
            tolerance = 0.1 * max(500.0, *(rows[j][3] for j in timed))
            line = [i]
            for other in sorted({rows[j][2] for j in timed} - {height}):
                found = [j for j in timed if rows[j][2] == other]
                best = min(found, key=lambda j: (abs(rows[j][3] - time), rows[j][3], j))
                if abs(rows[best][3] - time) <= tolerance:
                    line.append(best)
            line.sort(key=lambda j: rows[j][2])
        else:
            line = [i]
            if phases[i] is not None:
                of_phase = [j for j in alike if phases[j] == phases[i]]
                line = sorted(of_phase, key=lambda j: rows[j][2])
        place = line.index(i)
        padded = [-1] * n + line + [-1] * n
        table.append(padded[place : place + 2 * n + 1])
    return table


def rows_from(draw_of):
    row = st.tuples(
        st.integers(1, 2),
        st.sampled_from("ab"),
        st.integers(-2, 2).map(lambda step: step * 4.0),
        st.sampled_from([0.0, 10.0, 45.0, 50.0, 60.0, 300.0, 700.0, NAN, NAN]),
        st.integers(1, 6),
        st.sampled_from([1.0, 2.0, 3.0, NAN, NAN]),
    )
    return st.lists(row, min_size=1, max_size=draw_of)


@given(rows_from(14), st.integers(1, 3))
def test_neighbours_are_those_of_the_slow_version(tmp_path_factory, rows, n):
    path = tmp_path_factory.mktemp("drawn") / "out.h5"
    write(path, rows)
    dataset = loader.open_dataset(path)
    for along in ("slice", "phase", "number"):
        assert Neighbours(n, along).rows_of(dataset).tolist() == oracle(rows, n, along), along


# Images


def channels_of(dataset, row, neighbours):
    """Return the row that each channel shows; -1 for zeros."""
    line = neighbours.rows_of(dataset)[row].tolist()
    if neighbours.edges == "repeat":
        inside = [one for one in line if one != -1]
        n_before = line.index(inside[0])
        n_after = len(line) - n_before - len(inside)
        line = [inside[0]] * n_before + inside + [inside[-1]] * n_after
    return line


def expected_images(dataset, rows, neighbours):
    """Return stored values, (samples, channels, rows, columns)."""
    zeros = np.zeros_like(dataset.images[0])
    return np.array(
        [
            [
                zeros if one == -1 else dataset.images[one]
                for one in channels_of(dataset, row, neighbours)
            ]
            for row in rows
        ]
    )


@pytest.mark.parametrize("image_dtype", ["<i2", "<u2", "<i4", "<f4"])
@pytest.mark.parametrize(
    "neighbours", [Neighbours(), Neighbours(2, edges="mark"), Neighbours(3, "number", "mark")]
)
def test_channels_are_the_images_of_the_neighbours(tmp_path, neighbours, image_dtype):
    write(tmp_path / "out.h5", image_dtype=image_dtype)
    batches = loader.Batches(tmp_path / "out.h5", **OPTIONS, neighbours=neighbours)
    for images, masks in batches:
        expected = expected_images(batches.dataset, batches.indices, neighbours)
        assert images.dtype == image_dtype
        np.testing.assert_array_equal(images, expected)
        np.testing.assert_array_equal(masks[:, 0], batches.dataset.masks[batches.indices])


@pytest.mark.parametrize(
    ("layout", "shape", "axes"),
    [
        ("HWN", (6, 6, 3, 3), (3, 2, 0, 1)),
        ("NHW", (3, 3, 6, 6), None),
        ("NCHW", (3, 3, 6, 6), None),
    ],
)
@pytest.mark.parametrize("options", [{}, {"normalize": "zscore"}, {"augment": Augment.none()}])
def test_layouts_and_buffers(path, layout, shape, axes, options):
    options = OPTIONS | options
    plain = loader.Batches(path, **options, neighbours=1)
    batches = loader.Batches(path, **options | {"layout": layout}, neighbours=1)
    out = None
    for _ in range(3):
        expected, _ = plain.next_batch()
        images, masks = out = batches.next_batch(out=out)
        assert images.shape == shape
        assert masks.ndim == len(layout)
        found = images.transpose(axes) if axes else images
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(
        TypeError, match=r"out: expected .* arrays with the axes (HWCN|NCHW), found"
    ):
        batches.next_batch(out=(images[..., 0].copy(), masks))


@pytest.mark.parametrize("normalize", ["minmax", "zscore", "percentile", "dataset"])
def test_all_channels_are_normalised_as_the_middle_one(path, normalize):
    options = OPTIONS | {"normalize": normalize}
    stacks, plain = (loader.Batches(path, **options, neighbours=k) for k in (1, None))
    stored = loader.Batches(path, **OPTIONS, neighbours=1)
    for (images, _), (middle, _), (raw, _) in zip(stacks, plain, stored, strict=True):
        np.testing.assert_array_equal(images[:, 1:2], middle)
        # One line through the values of the middle image takes all channels to what they are.
        for image, values in zip(images, raw.astype(np.float64), strict=True):
            line = np.polyfit(values[1].ravel(), image[1].ravel(), 1)
            through = np.polyval(line, values)
            if normalize == "percentile":
                inside = (through > 0.02) & (through < 0.98)
                np.testing.assert_allclose(image[inside], through[inside], atol=0.1)
                assert image.min() >= 0
                assert image.max() <= 1
            else:
                np.testing.assert_allclose(image, through, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"patches": loader.Patches((3, 4))},
        {"augment": Augment.none(flip_rows=1)},
        {"augment": Augment.none(shift=(1, 0.1, 0.1))},
    ],
)
def test_minmax_clips_the_padding_of_the_middle_image_and_no_neighbours(tmp_path, options):
    if options.get("augment", Augment.none()).resamples:
        pytest.importorskip("cv2")
    limits = {"minimum": [300] * len(ROWS), "maximum": [600] * len(ROWS)}
    limits |= {"n_padding": [9] * len(ROWS)}
    write(tmp_path / "out.h5", manifest=limits)
    options = OPTIONS | {"normalize": "minmax"} | options
    middle_range, outside = [], 0
    for images, _ in loader.Batches(tmp_path / "out.h5", **options, neighbours=1):
        middle_range += [images[:, 1].min(), images[:, 1].max()]
        outside += np.count_nonzero((images[:, [0, 2]] < -0.1) | (images[:, [0, 2]] > 1.1))
    assert (min(middle_range), max(middle_range)) == (0, 1)
    assert outside > 20


def test_channels_of_zeros_stay_zeros(path):
    options = OPTIONS | {"normalize": "zscore", "augment": Augment.cardiac_mr()}
    neighbours = Neighbours(2, edges="mark")
    batches = loader.Batches(path, **options, neighbours=neighbours)
    for images, _ in batches:
        table = neighbours.rows_of(batches.dataset)[batches.indices]
        assert not images[table == -1].any()
        assert images[table != -1].any(axis=(1, 2)).all()


def test_the_middle_channel_is_what_there_is_without_neighbours(path):
    pytest.importorskip("cv2")
    for seed, normalize in itertools.product(range(4), (None, "zscore")):
        options = OPTIONS | {"seed": seed, "normalize": normalize, "augment": Augment.cardiac_mr()}
        stacks, plain = (loader.Batches(path, **options, neighbours=k) for k in (2, None))
        for (images, masks), (middle, same) in zip(stacks, plain, strict=True):
            np.testing.assert_array_equal(images[:, 2:3], middle)
            np.testing.assert_array_equal(masks, same)


def test_augmentation_moves_all_channels_together(path):
    pytest.importorskip("cv2")
    from loader.augment.arrays import augment_batch

    moving = Augment.none(
        rotate=(1, -90, 90), elastic=(1, 0.02, 0.05), gamma=(1, 0.5, 2), flip_rows=0.5
    )
    neighbours = Neighbours(1)
    batches = loader.Batches(path, **OPTIONS, neighbours=neighbours, augment=moving)
    for images, masks in batches:
        rows = batches.indices
        parameters = draw_parameters(moving, (6, 6), seed=7, epoch=0, rows=rows)
        stored = expected_images(batches.dataset, rows, neighbours).astype(np.float32)
        for channel in range(3):
            expected = augment_batch(stored[:, channel], batches.dataset.masks[rows], parameters)
            np.testing.assert_array_equal(images[:, channel], expected[0])
            np.testing.assert_array_equal(masks[:, 0], expected[1])


def test_noise_differs_between_channels(tmp_path):
    write(tmp_path / "out.h5", [(1, "a", height, NAN, 1) for height in (0, 8, 16, 24)])
    noisy = Augment.none(noise=(1.0, 0.5, 0.5))
    options = OPTIONS | {
        "batch_size": 4,
        "dtype": "float32",
        "neighbours": Neighbours(1, within=1000),
    }
    plain, other = (
        loader.Batches(tmp_path / "out.h5", **options, augment=a) for a in (None, noisy)
    )
    noise = other.next_batch()[0] - plain.next_batch()[0]
    flat = noise.reshape(4, 3, -1)
    assert (np.abs(np.corrcoef(flat[0])[np.triu_indices(3, 1)]) < 0.6).all()
    assert flat.std(2).min() > 0


# Choice of rows, states, refusals


def test_rows_that_are_left_out_may_be_neighbours(path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batches = loader.Batches(
            path, **OPTIONS | {"batch_size": 1}, neighbours=1, where=np.arange(9) == 0
        )
    images, _ = batches.next_batch()
    np.testing.assert_array_equal(images[0], batches.dataset.images[[0, 0, 2]])


def test_neighbours_never_are_of_another_split(path):
    dataset = loader.open_dataset(path)
    for along in ("slice", "phase", "number"):
        table = Neighbours(3, along).rows_of(dataset)
        split = dataset.manifest["split"]
        for row, line in enumerate(table):
            assert set(split[line[line != -1]]) == {split[row]}


@pytest.mark.parametrize("options", [{"prefetch": 2}, {"batch_size": 2}, {"rank": 0}])
def test_batch_size_and_prefetch_change_nothing(path, options):
    def samples(options):
        batches = loader.Batches(path, **OPTIONS | {"remainder": "keep"} | options, neighbours=1)
        found = {}
        for images, _ in batches:
            found |= {
                row: image.tobytes() for row, image in zip(batches.indices, images, strict=True)
            }
        return found

    assert samples(options) == samples({})


def test_a_state_goes_on_and_copies_have_the_same_neighbours(path):
    batches = loader.Batches(path, **OPTIONS, neighbours=Neighbours(1, edges="mark"))
    batches.next_batch()
    state = json.loads(json.dumps(batches.state_dict()))
    copy = pickle.loads(pickle.dumps(batches))
    expected = batches.next_batch()
    resumed = loader.Batches(path, **OPTIONS, neighbours=Neighbours(1, edges="mark"))
    resumed.load_state_dict(state)
    for other in (copy, resumed):
        for mine, theirs in zip(other.next_batch(), expected, strict=True):
            np.testing.assert_array_equal(mine, theirs)
    other = loader.Batches(path, **OPTIONS, neighbours=1)
    with pytest.raises(
        loader.LoaderError, match=r"neighbours \(expected .*'repeat'.*found .*'mark'"
    ):
        other.load_state_dict(state)
    plain = loader.Batches(path, **OPTIONS)
    old = plain.state_dict()
    del old["neighbours"]  # of a release before there were neighbours
    plain.load_state_dict(old)


def test_a_transform_gets_all_channels(path):
    def half(image, mask, manifest, generator):
        assert image.shape == (3, 6, 6)
        return image[:, ::2, ::2], mask[::2, ::2]

    options = OPTIONS | {"neighbours": 1}
    stacks, small = (loader.Batches(path, **options, transform=t) for t in (None, half))
    np.testing.assert_array_equal(stacks.next_batch()[0][..., ::2, ::2], small.next_batch()[0])


def given(neighbours):
    return Neighbours(**neighbours) if isinstance(neighbours, dict) else neighbours


@pytest.mark.parametrize(
    ("neighbours", "error", "message"),
    [
        (0, ValueError, "neighbours: expected an integer from 1 to 64, found 0"),
        (65, ValueError, "neighbours: expected an integer from 1 to 64"),
        (True, TypeError, "neighbours: expected a number, loader.Neighbours or None, found True"),
        ("slice", TypeError, "neighbours: expected a number, loader.Neighbours or None"),
        ({"along": "time"}, ValueError, "along: expected one of slice, phase, number, found"),
        ({"edges": "zero"}, ValueError, "edges: expected one of repeat, mark, found 'zero'"),
        ({"within": "8"}, TypeError, "within: expected a number, found '8'"),
        ({"within": 0}, ValueError, "within: expected a number above 0, found 0"),
        ({"within": NAN}, ValueError, "within: expected a number above 0, found nan"),
    ],
)
def test_arguments_that_can_never_be_right(path, neighbours, error, message):
    with pytest.raises(error, match=message):
        loader.Batches(path, **OPTIONS, neighbours=given(neighbours))


PLACES = [
    loader.Patches((3, 4)),
    loader.Patches((3, 3), foreground=0.5),
    loader.Patches((3, 4), foreground=0.5, pad=True),
    loader.Patches((8, 4), pad=True),
]


def patch_around(image, corner, size, padding):
    """Return a window of an image, pixel by pixel."""
    window = np.full(size, padding, image.dtype)
    for place in np.ndindex(*size):
        y, x = np.add(place, corner)
        if 0 <= y < image.shape[0] and 0 <= x < image.shape[1]:
            window[place] = image[y, x]
    return window


@pytest.mark.parametrize("image_dtype", ["<i2", "<u2", "<f4"])
@pytest.mark.parametrize("neighbours", [Neighbours(1), Neighbours(2, edges="mark")])
@pytest.mark.parametrize("patches", PLACES)
def test_patches_show_one_place_in_all_channels(tmp_path, image_dtype, neighbours, patches):
    write(tmp_path / "out.h5", image_dtype=image_dtype)
    options = OPTIONS | {"patches": patches, "neighbours": neighbours}
    batches = loader.Batches(tmp_path / "out.h5", **options)
    dataset, windows, out = batches.dataset, batches.feed.windows, None
    for epoch in range(2):
        for _ in range(3):
            images, masks = out = batches.next_batch(out=out if epoch else None)
            rows = batches.indices
            corners = windows.corners(rows, epoch, np.zeros_like(rows))
            for sample, mask, row, corner in zip(images, masks, rows, corners, strict=True):
                shown = channels_of(dataset, row, neighbours)
                for image, other in zip(sample, shown, strict=True):
                    stored = dataset.images[other]
                    expected = patch_around(stored, corner, patches.size, stored.min())
                    np.testing.assert_array_equal(image, expected if other != -1 else 0)
                expected = patch_around(dataset.masks[row], corner, patches.size, 0)
                np.testing.assert_array_equal(mask[0], expected)


@pytest.mark.parametrize("layout", ["HWN", "NCHW"])
@pytest.mark.parametrize("patches", PLACES)
@pytest.mark.parametrize(
    "options",
    [
        {"normalize": "zscore"},
        {"normalize": "percentile", "prefetch": 2},
        {"dtype": "float32", "mask_channels": "uint8"},
        {"augment": Augment.none(flip_rows=0.5, quarter_turns=0.5, gamma=(1, 0.5, 2))},
        {"augment": Augment.none(rotate=(0.7, -40, 40), elastic=(0.5, 0.02, 0.05))},
    ],
)
def test_the_middle_channel_of_a_patch_is_the_patch(path, options, patches, layout):
    if "augment" in options:
        pytest.importorskip("cv2")
    options = OPTIONS | options | {"layout": layout, "patches": patches, "seed": 3}
    stacks, plain = (loader.Batches(path, **options, neighbours=k) for k in (1, None))
    for _ in range(2):
        for (images, masks), (middle, same) in zip(stacks, plain, strict=True):
            found = images[:, :, 1] if layout == "HWN" else images[:, 1:2]
            np.testing.assert_array_equal(found, middle)
            np.testing.assert_array_equal(masks, same)


@pytest.mark.parametrize("patches", PLACES)
def test_each_channel_of_a_patch_is_augmented_as_the_middle_one(tmp_path, patches):
    """Rows with equal images give equal channels, whatever is drawn."""
    pytest.importorskip("cv2")
    augment = Augment.none(
        flip_rows=0.5, rotate=(0.5, -60, 60), elastic=(0.5, 0.02, 0.05), gamma=(0.5, 0.5, 2)
    )
    arrays = write(tmp_path / "out.h5", [(1, "a", float(k), NAN, 1) for k in range(6)])
    with h5py.File(tmp_path / "out.h5", "r+") as file:
        file["images"][:] = arrays["images"][:1]
        for name in ("minimum", "maximum", "mean", "std"):
            file[f"manifest/{name}"][:] = arrays[f"manifest/{name}"][0]
    options = {"patches": patches, "normalize": "minmax", "augment": augment, "neighbours": 1}
    for images, _ in loader.Batches(tmp_path / "out.h5", **OPTIONS, **options):
        for channel in (0, 2):
            np.testing.assert_array_equal(images[:, channel], images[:, 1])


def test_only_the_lines_of_patches_are_asked_for(tmp_path, monkeypatch):
    write(tmp_path / "out.h5", [(1, "a", float(k), NAN, 1) for k in range(6)])
    reads = iter(range(10**6))
    monkeypatch.setattr(lookahead, "_read_by_this_thread", lambda: (0, next(reads)))
    asked = []
    for name in ("ask_images", "ask_masks"):

        def ask(_, rows, tops=None, n_lines=0, name=name):
            asked.append((name, list(zip(rows.tolist(), tops.tolist(), strict=True)), n_lines))

        monkeypatch.setattr(lookahead.LookAhead, name, ask)
    options = OPTIONS | {"batch_size": 6, "patches": loader.Patches((3, 4))}
    batches = loader.Batches(tmp_path / "out.h5", **options, neighbours=Neighbours(1, edges="mark"))
    if not batches.feed.stream((0, 0))._look_ahead.n_batches:
        pytest.skip("no advice on this platform")
    batches.next_batch()
    rows = batches.indices
    tops = batches.feed.windows.corners(rows, 0, np.zeros_like(rows))[:, 0]
    shown = [
        (other, top)
        for row, top in zip(rows, tops, strict=True)
        for other in (row - 1, row, row + 1)
        if 0 <= other < 6
    ]
    expected = [("ask_images", shown, 3)]
    expected += [("ask_masks", list(zip(rows.tolist(), tops.tolist(), strict=True)), 3)]
    assert asked[:2] == expected
