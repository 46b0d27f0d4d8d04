"""Names of earlier versions by what they have become: recipes and checkpoints go on working."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from types import MappingProxyType
from typing import Any

Become = str | Callable[[dict[str, Any], Any], str]
"""The new name, or a function that puts the value into the settings and returns the new name."""


OLD_CALLBACKS = {"RecallPaperLoop": "RecallPaper"}
"""By the class that a callback's state was saved under, the class that it is of now."""


def rename_states(states: dict[str, Any]) -> None:
    """Put a checkpoint's callback states under the names of today.

    Args:
        states: By state key: the class's name, or the name with what tells two of a class apart.

    Example:
        >>> states = {"RecallPaperLoop": {"task": 1}}
        >>> rename_states(states)
        >>> states
        {'RecallPaper': {'task': 1}}
    """
    for old, new in OLD_CALLBACKS.items():
        for key in [key for key in states if key.partition("{")[0] == old]:
            states.setdefault(new + key.removeprefix(old), states.pop(key))


def set_in(settings: dict[str, Any], name: str, value: Any) -> None:
    """Set a value under a name with dots, in dicts that are made where there are none.

    Example:
        >>> settings = {"recall": {"every": 0.1}}
        >>> set_in(settings, "recall.moments.batches", 8)
        >>> settings
        {'recall': {'every': 0.1, 'moments': {'batches': 8}}}
    """
    *path, last = name.split(".")
    for part in path:
        if not isinstance(settings.get(part), dict):
            settings[part] = {}
        settings = settings[part]
    settings[last] = value


def get_in(settings: Any, name: str) -> Any:
    """Return what stands under a name with dots; None where there is nothing.

    Example:
        >>> get_in({"recall": {"moments": {"batches": 8}}}, "recall.moments.batches")
        8
    """
    for part in name.split("."):
        settings = settings.get(part) if isinstance(settings, Mapping) else None
    return settings


def of_rules(
    argument: str, new_name: str, holders: Mapping[str, str], group: str = "recall"
) -> Callable[[dict[str, Any], Any], str]:
    """Make what moves an argument into the rules that it belongs to.

    A rule that was named becomes ``{class_path: …, init_args: {…}}``; one that is written so gets
    one more of ``init_args``, unless it has its own.

    Args:
        argument: The old one, as messages call it.
        new_name: What a rule calls it.
        holders: The classes of the rules that have it, by each name that a recipe may give them.
        group: Where the callback's arguments stand.

    Example:
        >>> move = of_rules("importance_scale", "scale", {"importance": "rules.Importance"})
        >>> settings = {"recall": {"rule": "importance", "end_rule": "rbf"}}
        >>> move(settings, 0.2)
        'recall.rule.init_args.scale'
        >>> settings["recall"]
        {'rule': {'class_path': 'rules.Importance', 'init_args': {'scale': 0.2}}, 'end_rule': 'rbf'}
    """

    def move(settings: dict[str, Any], value: Any) -> str:
        moved = []
        for place in ("rule", "end_rule"):
            rule = settings.get(group, {}).get(place)
            given = {"class_path": rule} if isinstance(rule, str) else rule
            if not isinstance(given, dict) or given.get("class_path") not in holders:
                continue
            own = {new_name: value, **(given.get("init_args") or {})}
            settings[group][place] = {
                "class_path": holders[given["class_path"]],
                "init_args": own,
            }
            moved.append(f"{group}.{place}.init_args.{new_name}")
        return " and ".join(moved) or f"the argument {new_name} of a rule that has one"

    return move


OLD_ARGUMENTS: dict[str, Become] = {
    "recall.moment_batches": "recall.moments.batches",
    "recall.importance_scale": of_rules(
        "importance_scale",
        "scale",
        {
            "importance": "recall_lightning.merging.rules.importance.ImportanceRule",
            "kfac_importance": "recall_lightning.merging.rules.kfac.KfacImportanceRule",
        },
    ),
}
"""By an argument's old name, with its group, what has become of it."""


def migrated(
    settings: Mapping[str, Any],
    old: Mapping[str, Become],
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[dict[str, Any], list[str]]:
    """Put the values of old arguments where they belong now, unless that was given too.

    Args:
        settings: All that was given and the defaults of the rest, in dicts, of a command such as
            ``fit``. It is left as it is.
        old: What to look for, such as :data:`OLD_ARGUMENTS`.
        defaults: What the settings are where nothing is given.

    Returns:
        The settings in their new form, and a sentence on each argument that was found.

    Example:
        >>> migrated({"a": {"b": 1}}, {"a.b": "a.c.d"})
        ({'a': {'c': {'d': 1}}}, ['a.b is now a.c.d'])
        >>> migrated({"a": {"b": 1, "c": 2}}, {"a.b": "a.c"}, {"a": {"c": 0}})
        ({'a': {'c': 2}}, ['a.b is now a.c, which is given too and counts'])
    """
    new, told = deepcopy(dict(settings)), []
    for name, become in old.items():
        group, _, last = name.rpartition(".")
        holder = get_in(new, group)
        if not isinstance(holder, dict) or last not in holder:
            continue
        value = holder.pop(last)
        if not isinstance(become, str):
            told.append(f"{name} is now {become(new, value)}")
        elif get_in(new, become) != get_in(defaults, become):
            told.append(f"{name} is now {become}, which is given too and counts")
        else:
            set_in(new, become, value)
            told.append(f"{name} is now {become}")
    return new, told
