from collections import Counter

import numpy as np
import pytest
from builders import COLUMNS, ROWS, write_tree
from click.testing import CliRunner

import etl
from etl.cli import cli
from etl.errors import EtlError
from etl.options import BuildOptions
from etl.output.split import assign
from etl.output.strata import strata
from loader import open_dataset

SIZES = {"a": 280, "b": 80, "c": 30, "d": 10}
GROUPS = {f"P{n:03d}": name for n, name in enumerate(sorted(Counter(SIZES).elements()))}
SAMPLES = {one: 5 + n % 3 for n, one in enumerate(GROUPS)}


@pytest.mark.parametrize("seed", range(5))
def test_each_part_has_its_share_of_each_group_to_within_a_patient(seed):
    options = BuildOptions(split=(70, 15, 15), folds=4, split_seed=seed, stratify="group")
    sides = assign(SAMPLES, options, strata=GROUPS)
    totals = Counter()
    for one, group in GROUPS.items():
        totals[group] += SAMPLES[one]
    for code, share in enumerate((0.7, 0.15, 0.15)):
        mine = [one for one, (side, _) in sides.items() if side == code]
        for group, total in totals.items():
            n = sum(SAMPLES[one] for one in mine if GROUPS[one] == group)
            assert abs(n - share * total) <= 7, (code, group)
    folds = Counter()
    for one, (_, fold) in sides.items():
        folds[GROUPS[one], fold] += SAMPLES[one]
    for group in SIZES:
        per_fold = [folds[group, fold] for fold in range(4)]
        assert max(per_fold) - min(per_fold) <= 14


def test_it_does_better_than_a_split_that_knows_no_groups():
    def worst(strata):
        sides = assign(SAMPLES, BuildOptions(split=(70, 15, 15)), strata=strata)
        rare = [sides[one][0] for one, group in GROUPS.items() if group in "cd"]
        return abs(rare.count(0) / len(rare) - 0.7)

    assert worst(GROUPS) < worst(None)


def test_the_order_of_the_patients_does_not_matter_and_the_seed_does():
    options = BuildOptions(split=(60, 20, 20), folds=3)
    backwards = dict(reversed(SAMPLES.items()))
    assert assign(SAMPLES, options, strata=GROUPS) == assign(backwards, options, strata=GROUPS)
    other = BuildOptions(split=(60, 20, 20), folds=3, split_seed=1)
    assert assign(SAMPLES, options, strata=GROUPS) != assign(SAMPLES, other, strata=GROUPS)


def test_groups_of_single_patients_fill_all_parts_near_their_shares():
    alone = {one: one for one in SAMPLES}
    sides = assign(SAMPLES, BuildOptions(split=(70, 15, 15)), strata=alone)
    n = Counter(side for side, _ in sides.values())
    assert [round(n[code] / len(SAMPLES), 1) for code in range(3)] == pytest.approx(
        [0.7, 0.15, 0.15], abs=0.06
    )


@pytest.mark.parametrize("n_patients", [3, 4, 7])
def test_each_part_has_a_patient_where_there_are_enough(n_patients):
    patients = {str(n): 10 for n in range(n_patients)}
    sides = assign(patients, BuildOptions(split=(70, 15, 15)), strata=dict.fromkeys(patients, "x"))
    assert {side for side, _ in sides.values()} == {0, 1, 2}


def test_one_person_stays_together():
    people = [("P000", "P300"), ("P001", "P399")]
    sides = assign(SAMPLES, BuildOptions(split=(50, 25, 25)), people=people, strata=GROUPS)
    assert all(sides[one] == sides[other] for one, other in people)


def test_values_of_rows_become_one_of_each_patient():
    manifest = {
        "patient_id": np.array([b"A", b"A", b"A", b"B"]),
        "series": np.array([b"x", b"y", b"y", b"x"]),
        "mean": np.array([1.0, 2.0, 6.0, np.nan]),
    }
    assert strata(BuildOptions(), manifest) is None
    assert strata(BuildOptions(stratify="series"), manifest) == {"A": "y", "B": "x"}
    assert strata(BuildOptions(stratify="mean"), manifest) == {"A": "3.0", "B": ""}


def test_many_numbers_are_cut_into_quarters(tmp_path):
    table = tmp_path / "patients.csv"
    ages = "".join(f"P{n},{20 + n}\n" for n in range(12))
    table.write_text(f"patient_id,Age\n{ages}")
    manifest = {"patient_id": np.array([f"P{n}".encode() for n in range(13)])}
    found = strata(BuildOptions(stratify="Age", patients_csv=str(table)), manifest)
    assert Counter(found.values()) == {f"quarter {n}": 3 for n in (1, 2, 3, 4)} | {"": 1}


def run(*arguments):
    size = ["--size", f"{ROWS}x{COLUMNS}"]
    return CliRunner().invoke(cli, ["build", *map(str, arguments), *size])


def test_the_command_takes_a_table_and_says_what_came_out(tmp_path):
    root = write_tree(tmp_path / "data", [(f"P{n}", f"A{n}") for n in range(8)])
    table, out = tmp_path / "patients.csv", tmp_path / "out.h5"
    table.write_text("patient_id,sex\n" + "".join(f"P{n},{'FM'[n % 2]}\n" for n in range(8)))
    options = ["--split", "50/25/25", "--stratify", "sex", "--patients-csv", table]
    result = run(root, out, *options)
    assert "Note: sex F is 50.0% of all rows: 50.0% of train, 50.0% of validation, 50.0% of" in (
        result.stderr
    )
    recorded = open_dataset(out).attributes["options"]
    assert recorded["stratify"] == "sex"
    assert len(recorded["patients_csv_xxh3"]) == 32
    assert "patients_csv" not in recorded
    assert run(root, out, "--force", "--stratify", "sex").exit_code == 2
    assert run(root, out, "--force", "--split", "50/25/25", "--patients-csv", table).exit_code == 2


def test_a_column_that_is_not_there_is_refused_before_the_work(tmp_path):
    root = write_tree(tmp_path / "data", [("P1", "A1")])
    options = {"rows": ROWS, "columns": COLUMNS, "split": (50, 25, 25)}
    table = tmp_path / "patients.csv"
    table.write_text("patient_id,sex\nP1,F\nP1,M\n")
    with pytest.raises(EtlError, match="two values"):
        etl.build(
            root,
            tmp_path / "out.h5",
            BuildOptions(**options, stratify="sex", patients_csv=str(table)),
        )
    with pytest.raises(EtlError, match=r"(?s)`stratify`.*'sex'.*n_pixels_1"):
        etl.build(root, tmp_path / "out.h5", BuildOptions(**options, stratify="sex"))
    with pytest.raises(ValueError, match="patients_csv"):
        BuildOptions(patients_csv=str(table))
