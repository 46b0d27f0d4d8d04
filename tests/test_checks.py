import pytest

from recall_lightning.checks import check_choice


@pytest.mark.parametrize("value", ["c", None, ["a"]])
def test_an_unknown_choice_names_the_known(value):
    check_choice("letter", "a", "a", "b")
    with pytest.raises(ValueError, match=r"letter=.* is unknown: use 'a' or 'b'$"):
        check_choice("letter", value, "a", "b")


def test_a_single_choice_is_named_too():
    with pytest.raises(ValueError, match=r"use 'a'$"):
        check_choice("letter", "b", "a")
