"""A rule as plain Python, as a checkpoint may hold it, and back."""

import inspect
from collections.abc import Mapping
from typing import Any

from recall_lightning.merging.rules.base import RULES, MergeRule
from recall_lightning.merging.rules.named import named_rule
from recall_lightning.merging.rules.product import Product

_PLAIN = (str, int, float, bool, list, dict, type(None))


def rule_as_plain(rule: MergeRule) -> dict[str, Any] | None:
    """Return a rule's name and arguments; None if it has no name, or arguments that are objects.

    Example:
        >>> from recall_lightning.merging.rules import Uniform
        >>> rule_as_plain(Uniform(0.3))
        {'name': 'uniform', 'arguments': {'weight': 0.3}}
    """
    if type(rule) is Product:
        rules = [rule_as_plain(each) for each in rule.rules]
        return None if None in rules else {"product": rules, "strength": rule.strength}
    if rule.name is None or RULES.get(rule.name) is not type(rule):
        return None
    names = list(inspect.signature(type(rule).__init__).parameters)[1:]
    arguments = {name: vars(rule).get(name, ...) for name in names}
    plain = all(isinstance(value, _PLAIN) for value in arguments.values())
    return {"name": rule.name, "arguments": arguments} if plain else None


def rule_from_plain(stored: Mapping[str, Any]) -> MergeRule:
    """Build what :func:`rule_as_plain` returned.

    Raises:
        ValueError: If no rule of that name is known, or it has other arguments.

    Example:
        >>> rule_from_plain({"name": "uniform", "arguments": {"weight": 0.3}})
        Uniform(weight=0.3)
    """
    if "product" in stored:
        return Product(list(map(rule_from_plain, stored["product"])), stored["strength"])
    name = stored["name"]
    rule = named_rule(name)
    if rule is None:
        raise ValueError(
            f"the rule {name!r} is not known: import the module that defines it, or install the "
            "package that brings it"
        )
    try:
        return rule(**stored["arguments"])
    except TypeError as error:
        raise ValueError(
            f"the rule {name!r} has other arguments now ({error}): go on with the version that "
            "stored it"
        ) from error
