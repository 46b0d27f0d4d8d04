import importlib
import inspect
import pkgutil
import re
import warnings
from pathlib import Path

import pytest
from packaging.version import Version

import recall_lightning
from recall_lightning import __version__
from recall_lightning.deprecation import deprecated, renamed_argument, renamed_names
from recall_lightning.merging import rules

SINCE = ("0.1.0", "0.3.0")
PACKAGE = Path(recall_lightning.__file__).parent


@deprecated(*SINCE, "new()")
def old(number: int) -> int:
    """Double a number."""
    return 2 * number


class Wide:
    @renamed_argument("size", "width", *SINCE)
    def __init__(self, width: int = 1):
        self.width = width


def told(function):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        function()
    return found


def test_what_is_deprecated_works_and_says_so_once_where_it_is_called():
    found = told(lambda: [old(2), old(3)])
    assert old(2) == 4
    assert [str(each.message) for each in found] == [
        "old() is deprecated since 0.1.0 and removed in 0.3.0: use new()"
    ]
    assert found[0].filename == __file__
    assert issubclass(found[0].category, FutureWarning)


def test_it_keeps_its_name_docstring_and_signature():
    assert (old.__name__, old.__doc__) == ("old", "Double a number.")
    assert list(inspect.signature(Wide).parameters) == ["width"]


def test_an_arguments_old_name_is_taken_and_told_once():
    found = told(lambda: [Wide(size=2), Wide(size=3)])
    assert [str(each.message) for each in found] == [
        "size= of Wide.__init__() is deprecated since 0.1.0 and removed in 0.3.0: use width="
    ]
    assert found[0].filename == __file__
    assert Wide(size=2).width == 2


def test_the_new_name_and_none_are_told_nothing_of():
    assert told(lambda: [Wide(2), Wide(width=3), Wide()]) == []


def test_both_names_at_once_are_refused():
    with pytest.raises(TypeError, match="size= and width=, which are the same"):
        told(lambda: Wide(size=1, width=2))


def test_a_module_gives_what_it_holds_by_its_old_name():
    get = renamed_names("rule", *SINCE, WideRule=Wide)
    assert told(lambda: get("WideRule"))[0].filename == __file__
    with pytest.raises(AttributeError, match="there is no rule 'Wider'"):
        get("Wider")


def test_rules_are_known_by_the_names_that_they_once_had():
    with pytest.warns(FutureWarning, match="UniformRule is deprecated .*: use Uniform"):
        assert rules.UniformRule is rules.Uniform


def test_nothing_is_kept_beyond_the_version_that_it_was_to_be_removed_in():
    """A release has to remove what it said that it would."""
    here = Version(__version__)
    for module in pkgutil.walk_packages([str(PACKAGE)], "recall_lightning."):
        file = Path(importlib.util.find_spec(module.name).origin)
        uses = re.findall(r'"(\d+\.\d+\.\d+)",\s+"(\d+\.\d+\.\d+)"', file.read_text())
        for since, removed_in in uses if "deprecation" in file.read_text() else []:
            assert here < Version(removed_in), f"{file} keeps what {removed_in} was to remove"
            first, last = Version(since), Version(removed_in)
            kept = last.major > first.major or last.minor >= first.minor + 2
            assert kept, f"{file}: two minor versions are promised"
