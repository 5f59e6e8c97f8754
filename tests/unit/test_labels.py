import pytest

from etl.labels import LabelScheme, cardiac_scheme, named_scheme, names_alike
from loader.format import CORE, Structure, manifest_columns, min_reader_version

LIVER = Structure("liver", 7, "liver tissue", "liver", contrast="brighter")
LESION = Structure("lesion", 3, "lesion", "lesion", inside_of="liver")


def test_the_paint_order_is_the_order_given_and_codes_are_iterated_in_order():
    scheme = LabelScheme((LIVER, LESION))
    assert scheme.places == {7: 0, 3: 1}
    assert [structure.code for structure in scheme] == [3, 7]
    assert scheme[7] is LIVER
    assert scheme.nested == [(LESION, LIVER)]
    assert [one["paint_order"] for one in scheme.to_json()] == [0, 1]


@pytest.mark.parametrize(
    ("structures", "words"),
    [
        ((), "expected at least one"),
        ((LIVER, LESION._replace(code=7)), "expected every code once"),
        ((LIVER, LIVER._replace(code=8)), "expected every name once"),
        ((LIVER, LESION._replace(stem="liver")), "expected every stem once"),
        ((LIVER, LESION._replace(contour_label=7)), "expected every label once"),
        ((LIVER._replace(code=0),), "expected codes 1 to 254, found 0"),
        ((LIVER._replace(code=255),), "expected codes 1 to 254, found 255"),
        ((LIVER._replace(stem="Liver 1"),), "cannot begin a column's name"),
        ((LIVER._replace(stem=""),), "cannot begin a column's name"),
        ((LIVER._replace(inside_of="body"),), "inside of 'body', unknown"),
        ((LIVER._replace(inside_of="liver"),), "inside of 'liver', unknown"),
        ((LIVER._replace(contrast="bright"),), "expected a contrast of"),
        ((LIVER._replace(inside_of="lesion"), LESION), "lies in itself"),
        ((LIVER._replace(stem="dicom"),), "two columns named 'dicom_path'"),
    ],
)
def test_what_no_file_can_hold_is_refused(structures, words):
    with pytest.raises(ValueError, match=words):
        LabelScheme(structures)


def test_the_cardiac_scheme_has_the_columns_of_version_1():
    both = cardiac_scheme(("i", "o"))
    assert [(one.code, one.name, one.stem) for one in both] == [
        (1, "i-contour", "icontour"),
        (2, "o-contour", "ocontour"),
    ]
    assert both.places == {2: 0, 1: 1}  # the blood pool is painted last, so that it wins
    assert both.nested == [(both[1], both[2])]
    assert min_reader_version(both) == 1


@pytest.mark.parametrize(("kind", "label"), [("i", 1), ("o", 2)])
def test_one_kind_is_1_in_the_masks_and_keeps_its_label(kind, label):
    scheme = cardiac_scheme((kind,))
    ((code, structure),) = scheme.by_code.items()
    assert (code, structure.label, structure.inside_of) == (1, label, "")
    assert min_reader_version(scheme) == 1


def test_names_get_codes_in_their_order():
    scheme = named_scheme([f"part {n}" for n in range(254)])
    assert (scheme[1].name, scheme[254].name) == ("part 0", "part 253")
    assert scheme.places[254] == 253
    assert min_reader_version(scheme) == 2
    columns = manifest_columns(scheme)
    assert columns.keys() >= CORE.keys() | {"label254_area", "n_pixels_254", "drawn_254"}
    with pytest.raises(ValueError, match="codes 1 to 254"):
        named_scheme([f"part {n}" for n in range(255)])


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (("Liver", "liver"), "'Liver' and 'liver'"),
        (("left kidney", "left_kidney", "left  kidney"), "'left  kidney' and 'left kidney' and"),
        (("lesion 1", "Lesion 01"), "'Lesion 01' and 'lesion 1'"),
        (("r\u00e9gion", "re\u0301gion"), "'re\\u0301gion' and 'r\u00e9gion'"),
        (("lesion 1", "lesion 11"), ""),
        (("liver", "livers"), ""),
        (("+", "-"), ""),  # nothing but marks
    ],
)
def test_names_that_are_spelled_alike_are_told(names, shown):
    for found, what in (
        (names_alike((), named_scheme(names)), "structures"),
        (names_alike(names, named_scheme(["one"])), "patients"),
    ):
        assert [one.code for one in found] == ["names-alike"] * bool(shown)
        if shown:
            assert found[0].message.startswith(f"the {what} {shown}")
