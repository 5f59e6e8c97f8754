import click
import pytest

from etl.commands import param_types

TYPES = [
    (param_types.Size(), "12X14", (12, 14), "12"),
    (param_types.Size(most=True), "most", "most", "least"),
    (param_types.Spacing(), "1.25", (1.25, 1.25), "nan"),
    (param_types.Split(), "70/15/15", (70.0, 15.0, 15.0), "70/20"),
    (param_types.Names(), "A, B", ("A", "B"), None),
    (param_types.Codes(lambda: ("a", "b")), "b,a", ("a", "b"), "c"),
    (param_types.Flags(), "area-jump:P1", ("area-jump:P1",), "area-jump:"),
    (param_types.Limit(), "image-bytes=4GiB", ("image-bytes", 4 << 30), "image-bytes=0"),
    (param_types.Structures(), "b,a", ("b", "a"), "a,a"),
    (param_types.Steps(), "swap", ("swap",), "swop"),
    (param_types.Count(), "7", 7, "0"),
    (param_types.Count(), "all", None, "none"),
]


@pytest.mark.parametrize(("kind", "text", "value", "wrong"), TYPES)
def test_text_becomes_a_value_that_stays_and_other_text_fails(kind, text, value, wrong):
    assert kind(text) == value
    assert kind(value) == value
    if wrong is not None:
        with pytest.raises(click.BadParameter) as caught:
            kind(wrong)
        assert caught.value.message


def test_a_message_names_the_option():
    command = click.Command("build", params=[click.Option(["--fit"], type=param_types.Size())])
    with pytest.raises(click.BadParameter, match="expected ROWSxCOLUMNS") as caught:
        command.make_context("build", ["--fit", "7"])
    assert caught.value.param.name == "fit"
