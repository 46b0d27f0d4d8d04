"""What is read from the source is what the methods have once they are imported."""

import inspect

import pytest

from recall_lightning.cli.merge_options import method_names, methods_with, options
from recall_lightning.merging.functional import METHODS


def test_every_method_is_found():
    assert sorted(method_names()) == sorted(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_every_option_of_a_method_is_found_with_its_default(method):
    found = {name: option for name, option in options().items() if method in option.methods}
    assert found.keys() == METHODS[method].options.keys()
    for name, parameter in METHODS[method].options.items():
        assert found[name].required is (parameter.default is inspect.Parameter.empty)
        assert found[name].required or found[name].default == parameter.default
        assert found[name].text


def test_the_methods_of_task_vectors_are_those_that_need_a_base():
    assert methods_with("base") == [name for name, each in METHODS.items() if each.needs_base]
