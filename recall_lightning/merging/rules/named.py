"""Rules by their names: built-in ones, a user's own, and those of other packages."""

import inspect

from recall_lightning.merging.rules import importance, kfac, similarity, subspace, uniform  # noqa: F401  # whose rules put themselves into RULES
from recall_lightning.merging.rules.base import RULES, MergeRule
from recall_lightning.merging.rules.product import Product
from recall_lightning.plugins import Plugins


def _check(name: str, found: object) -> type[MergeRule]:
    if not (inspect.isclass(found) and issubclass(found, MergeRule)):
        raise ValueError(f"{found!r} must be a subclass of MergeRule")
    if found.name != name:
        raise ValueError(
            f"its class {found.__name__} has the name {found.name!r}, which must be {name!r}"
        )
    return found


RULE_PLUGINS = Plugins("rules", [*RULES, "auto", "never"], _check)
"""Rules of other packages: subclasses of MergeRule whose ``name`` is their entry point's."""


def named_rule(name: str) -> type[MergeRule] | None:
    """Return the rule of a name; None where no rule is called so.

    Raises:
        ValueError: Of one of another package that cannot be used.

    Example:
        >>> named_rule("uniform").__name__
        'Uniform'
    """
    return RULE_PLUGINS.get(name) or RULES.get(name)


def rule_by_name(name: str, argument: str = "rule") -> MergeRule:
    """Build a rule that has a name, with its defaults, or the product of several.

    Args:
        name: Its name, or several with ``*`` between.
        argument: What an error calls the name.

    Raises:
        ValueError: For an unknown name (it lists the known ones), a rule without defaults, or one
            of another package that cannot be used.

    Example:
        >>> type(rule_by_name("rbf*importance")).__name__
        'Product'
    """
    if "*" in name:
        return Product([rule_by_name(part.strip(), argument) for part in name.split("*")])
    rule = named_rule(name)
    if rule is None:
        others = ["auto", "never"] if argument == "end_rule" else []
        known = dict.fromkeys([*others, *RULES, *RULE_PLUGINS.packages])
        raise ValueError(
            f"{argument}={name!r} is unknown: use one of {', '.join(known)}, or a product: "
            "rbf*importance, or a MergeRule object"
        )
    try:
        return rule()
    except TypeError as error:
        raise ValueError(
            f"{argument}={name!r} has arguments of its own to give: use the rule's class, as in "
            f"{argument}=Uniform(0.2) or class_path: {rule.__name__} with init_args"
        ) from error
