import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.findings import SampleKey
from etl.options import BuildOptions
from etl.quality.people import (
    Person,
    finding,
    identifiers,
    mixed_people,
    repeated_instances,
    same_people,
)

NAMES = [f"P{n}" for n in range(8)]
KEYWORDS = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
ONE = Person(("A", "B"), ("PatientID",), "a.dcm")


def people(rows):
    """Return what is found of rows (patient, path, PatientID, study, series, instance)."""
    patients, paths, *values = zip(*rows, strict=True)
    return same_people(patients, paths, identifiers(*values))


def rows(n_images=3):
    """Return rows in which nothing is shared, one list for each image."""
    return [
        [name, f"{name}/{n}.dcm", 10 + p, 100 + p, f"series {name} {n % 2}", f"image {name} {n}"]
        for p, name in enumerate(NAMES)
        for n in range(n_images)
    ]


def shared(column, of, value="same"):
    """Return rows in which the first image of some patients has one value."""
    found = rows()
    for row in found:
        if row[0] in of and row[1].endswith("/0.dcm"):
            row[column] = value
    return found


def test_nothing_shared_gives_nothing():
    assert people(rows()) == []


@pytest.mark.parametrize(("column", "keyword"), list(enumerate(KEYWORDS, 2)))
def test_each_identifier_is_compared(column, keyword):
    assert people(shared(column, {"P5", "P2"})) == [Person(("P2", "P5"), (keyword,), "P2/0.dcm")]
    assert people(shared(column, {"P5"})) == []


@pytest.mark.parametrize("column", range(2, 6))
def test_what_all_patients_share_and_what_is_empty_tells_nothing(column):
    assert people(shared(column, set(NAMES))) == []
    assert len(people(shared(column, set(NAMES[1:])))) == 1
    for nothing in (0, "", b""):
        assert people(shared(column, {"P5", "P2"}, nothing)) == []


def test_two_patients_are_all_patients():
    assert people([["A", "a", 1, 2, "s", "i"], ["B", "b", 1, 3, "t", "j"]]) == []


def test_a_value_of_more_than_ten_patients_is_no_persons():
    for n_sharing, n_found in ((10, 1), (11, 0)):
        found = [[f"P{n}", f"{n}", 1 if n < n_sharing else n + 9, 0, "", ""] for n in range(40)]
        assert len(people(found)) == n_found


def test_an_image_uid_that_a_patient_has_twice_tells_nothing_but_frames_of_one_file_do():
    found = shared(5, {"P5", "P2"})
    found[1][5] = found[0][5]  # of P0: not theirs
    assert len(people(found)) == 1
    found[2 * 3 + 1][5] = "same"  # of P2
    assert people(found) == []
    frames = shared(5, {"P5", "P2"})
    frames.append([*frames[2 * 3]])
    assert len(people(frames)) == 1


def test_people_are_put_together_over_several_identifiers():
    found = shared(2, {"P1", "P3"}, 7)
    for row in found:
        row[3] = 8 if row[0] in {"P3", "P6"} else row[3]
        row[4] = "t" if row[0] in {"P0", "P4"} else row[4]
    assert people(found) == [
        Person(("P0", "P4"), ("SeriesInstanceUID",), "P0/0.dcm"),
        Person(("P1", "P3", "P6"), ("PatientID", "StudyInstanceUID"), "P1/0.dcm"),
    ]
    for order in itertools.islice(itertools.permutations(found), 0, 5000, 999):
        assert [one.patient_ids for one in people(order)] == [("P0", "P4"), ("P1", "P3", "P6")]


def message(sides, person=ONE, **options):
    found = finding(person, sides, BuildOptions(**options))
    assert (found.code, found.path, found.key) == ("same-person", "a.dcm", None)
    return found.message


def plain_people(rows):
    """Return the people of rows by looking at all rows for each value."""
    evidence = []
    for column, keyword in enumerate(KEYWORDS, 2):
        for value in {row[column] for row in rows} - {0}:
            having = [row for row in rows if row[column] == value]
            files = {name: {row[1] for row in having if row[0] == name} for name, *_ in having}
            is_split = keyword == KEYWORDS[-1] and any(len(paths) > 1 for paths in files.values())
            if 1 < len(files) < len({row[0] for row in rows}) and not is_split:
                evidence.append((keyword, set(files)))
    groups = [ids for _, ids in evidence]
    for _ in groups:  # each round joins at least one more, where any are still to be joined
        groups = [set().union(*(other for other in groups if other & ids)) for ids in groups]
    return sorted(
        Person(
            tuple(sorted(ids)),
            tuple(k for k in KEYWORDS if any(k == one and some <= ids for one, some in evidence)),
            next(row[1] for row in rows if row[0] == min(ids)),
        )
        for ids in {frozenset(ids) for ids in groups}
    )


some_rows = st.lists(
    st.tuples(st.sampled_from("ABCDE"), st.integers(0, 2), *[st.integers(0, 6)] * 4), min_size=1
).map(lambda rows: [(name, f"{name}/{n}.dcm", *values) for name, n, *values in rows])


@given(some_rows)
def test_people_are_those_that_a_look_at_all_rows_finds(rows):
    assert people(rows) == plain_people(rows)


@given(some_rows)
def test_an_image_uid_of_several_files_of_a_patient_is_told_wherever_it_stands(rows):
    keys = [SampleKey(row[0], "", n) for n, row in enumerate(rows)]
    paths, instances = (
        [row[1] for row in rows],
        ["" if row[5] == 0 else str(row[5]) for row in rows],
    )
    found = repeated_instances(keys, paths, instances)
    having = {(row[0], row[5]): set() for row in rows if row[5]}
    for row in rows:
        having.get((row[0], row[5]), set()).add(row[1])
    expected = {name for (name, _), files in having.items() if len(files) > 1}
    assert {finding.key.patient_id for finding in found} == expected


def test_the_message_says_what_the_split_makes_of_them():
    begin = "patients 'A' and 'B' have the same PatientID: one person under 2 ids? "
    assert message({}) == message({"A": (-1, -1), "B": (-1, -1)})
    assert message({}) == f"{begin}A split keeps them together."
    assert message({"A": (0, -1), "B": (0, -1)}) == f"{begin}They are on one side of the split."
    assert message({"A": (0, 1), "B": (0, 1)}).endswith("one side of the split and one fold.")
    leak = message({"A": (0, 1), "B": (2, -1)})
    assert leak == (
        f"{begin}They are on two sides of the split: 'A' train, 'B' test. Scores will be too good: "
        "give them one side in your split."
    )
    assert "They are in two folds: 'A' 1, 'B' 0. Scores" in message({"A": (0, 1), "B": (0, 0)})
    asked = message({"A": (0, -1), "B": (1, -1)}, same_person="separate")
    assert asked.endswith("'B' validation. You asked for that with --same-person separate.")


def test_of_many_ids_some_are_named():
    found = message({}, Person(tuple("ABCDEF"), KEYWORDS[:2], "a.dcm"))
    assert found.startswith(
        "patients 'A' and 'B' and 'C' and 'D' and 2 more have the same PatientID and "
        "StudyInstanceUID: one person under 6 ids?"
    )


# ------------------------------------------------------------------------- several people, one id


@pytest.mark.parametrize(
    ("values", "other"),
    [
        ([5, 5, 6, 5], "2.dcm"),
        ([5, 6], "1.dcm"),
        ([5, 5, 0, 6], "3.dcm"),  # 0: no PatientID
        ([5, 5, 5], ""),
        ([0, 0, 5], ""),
        ([5, 6, 7, 8], ""),  # an anonymiser's
    ],
)
def test_images_of_two_people_in_one_patient_are_told(values, other):
    paths = [f"{n}.dcm" for n in range(len(values))]
    found = mixed_people(["P1"] * len(values), paths, values)
    assert [one.path for one in found] == [other] * bool(other)
    if other:
        assert found[0].code == "patient-id-differs"
        assert f"{other} has another. Are they of two people?" in found[0].message


def test_frames_of_one_file_are_one_file_and_patients_are_apart():
    paths = ["a.dcm", "a.dcm", "b.dcm", "c.dcm"]
    assert mixed_people(["P1", "P1", "P1", "P2"], paths, [5, 5, 5, 6]) == []


@pytest.mark.parametrize(
    ("values", "path", "words"),
    [
        ("abcab", "3.dcm", "of 0.dcm, also of patient 'P1'; both are rows. So it is with 1 more "),
        (
            "abcda",
            "4.dcm",
            "has the SOPInstanceUID of 0.dcm, also of patient 'P1'; both are rows. ",
        ),
        ("aaaaa", "1.dcm", "of 0.dcm, also of patient 'P1'; both are rows. So it is with 3 more f"),
        ("abcde", None, ""),
        (["", "", "a", "", ""], None, ""),
    ],
)
def test_images_of_a_patient_with_one_uid_are_told_once(values, path, words):
    paths = [f"{n}.dcm" for n in range(len(values))]
    keys = [SampleKey("P1", "", n) for n in range(len(values))]
    found = repeated_instances(keys, paths, list(values))
    assert [(one.code, one.path) for one in found] == [("instance-duplicate", path)] * bool(path)
    if path:
        assert words in found[0].message
        assert (found[0].key, found[0].other_key) == (keys[int(path[0])], keys[0])
    in_any_order = repeated_instances(keys[::-1], paths[::-1], list(values)[::-1])
    assert in_any_order == found


def test_frames_of_a_file_and_images_of_two_patients_may_have_one_uid():
    paths = ["a.dcm", "a.dcm", "b.dcm"]
    keys = [SampleKey("P1", "", 1, 1), SampleKey("P1", "", 1, 2), SampleKey("P2", "", 1)]
    assert repeated_instances(keys, paths, [b"1.2"] * 3) == []
    keys = [SampleKey(f"P{n}", "", m) for m in (1, 2) for n in (1, 2)]
    found = repeated_instances(keys, ["a", "b", "c", "d"], [b"1.2"] * 4)
    assert [(one.path, one.message.split(",")[0]) for one in found] == [
        ("c", "has the SOPInstanceUID of a"),
        ("d", "has the SOPInstanceUID of b"),
    ]
