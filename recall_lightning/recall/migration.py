"""Arguments and states of RecallCallback as earlier versions had them, in today's form."""

from collections.abc import Mapping
from typing import Any

from recall_lightning.merging.rules.base import RULES

MOVED = {
    "typical_samples": ("samples", "typical", 32),
    "pool_size": ("samples", "pool", 256),
    "sampling": ("samples", "sampling", "k-means"),
    "importance_source": ("importance", "source", "auto"),
    "importance_steps": ("importance", "steps", 50),
    "moment_batches": ("moments", "batches", 32),
    "moment_width": ("moments", "width", None),
    "moment_rank": ("moments", "rank", None),
    "moment_source": ("moments", "source", "task"),
    "snapshot_device": ("snapshots", "device", None),
    "snapshot_to": ("snapshots", "to", "checkpoint"),
    "on_missing_snapshot": ("snapshots", "on_missing", "error"),
    "on_failed_write": ("snapshots", "on_failed_write", "keep_in_memory"),
}
"""Each old argument to its settings, its name there, and the default that it has kept, if any."""

MOMENTS_OF_THEN = {"batches": 32, "width": 1024, "rank": 128}
"""Settings of moments whose defaults are others now."""

OF_RULES = {
    "temperature": ("temperature", ("rbf", "cka", "cosine"), 1.0),
    "sigma": ("sigma", ("rbf",), "median"),
    "importance_scale": ("scale", ("importance", "kfac_importance"), 0.1),
    "new_inputs": ("new_inputs", ("subspace", "kfac_subspace"), 1.0),
}
"""Each old argument to its name among those of rules, the rules' names, and its default."""

OLD_ARGUMENTS = (*MOVED, *OF_RULES, "strength", "at_task_end", "probe_forward")
"""All arguments that are no more."""

OLD_CALLBACKS = {"RecallPaperLoop": "RecallPaper"}
"""By the class that a callback's state was saved under, the class that it is of now."""

_NEEDED_BY = {"samples": "similarity", "importance": "importance", "moments": "moments"}


def migrated_arguments(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return arguments of RecallCallback in today's form, as a recipe has them.

    A recipe is of the old form if it has an argument that is no more; else it is left alone. What
    had no effect is left out.

    Args:
        given: Arguments by name; rules by name or as ``{class_path: …, init_args: …}``.

    Returns:
        The arguments, and for each that is called otherwise now a phrase that says how.

    Example:
        >>> migrated_arguments({"rule": "rbf", "end_rule": "rbf", "typical_samples": 8})
        ({'rule': 'rbf', 'samples': {'typical': 8}}, ['typical_samples is samples.typical'])
    """
    old = set(OLD_ARGUMENTS) & given.keys()
    if not old:
        return dict(given), []
    new = {name: value for name, value in given.items() if name not in OLD_ARGUMENTS}
    said: list[str] = []
    number = given.get("snapshots")
    if isinstance(number, int | str):  # all settings of them go together now
        new["snapshots"] = {} if number == 1 else {"number": number}
    for name, (group, own, default) in MOVED.items():
        if name in given and given[name] != default:
            today = dict(new.get(group) or {})
            if today.get(own, default) != default:
                said.append(f"{name} is {group}.{own}, which is given too and counts")
                continue
            new[group] = today | {own: given[name]}
            said.append(f"{name} is {group}.{own}")
    if given.get("probe_forward") is not None:
        new["view"] = new.get("view") or given["probe_forward"]
        said.append("probe_forward is view")
    said += _migrate_rules(new, given)
    needs = _needs(new)
    said += _drop_unneeded(new, needs)
    said += _keep_defaults(new, given, needs)
    return {name: value for name, value in new.items() if value != {}}, said


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


def migrated_state(state: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return RecallCallback's state of a checkpoint in today's form, and what is called otherwise.

    Example:
        >>> state, said = migrated_state({"statistics": {"probe": {}, "recent": {}}})
        >>> sorted(state["statistics"]), said[0]
        (['recent_batches', 'samples'], 'statistics.probe is statistics.samples')
    """
    renamed = {"probe": "samples", "recent": "recent_batches"}
    statistics = state.get("statistics")
    if not isinstance(statistics, Mapping):  # damaged
        return dict(state), []
    said = [f"statistics.{a} is statistics.{b}" for a, b in renamed.items() if a in statistics]
    if not said:
        return dict(state), []
    new = {renamed.get(name, name): own for name, own in statistics.items()}
    settings, _ = migrated_arguments(state.get("settings", {}))
    return {**state, "statistics": new, "settings": settings}, said


def _migrate_rules(new: dict[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Write both rules with their own arguments, as they were meant."""
    loop = given.get("rule") or "kfac_importance"
    end = given.get("end_rule", "auto")
    end = "kfac_subspace" if end == "auto" else end
    new["rule"] = _rule(loop, given, given.get("strength", 1.0))
    new["end_rule"] = new["rule"] if end is None else _rule(end, given, 1.0)
    if not given.get("at_task_end", True):
        new["end_rule"] = "never"
    if new["end_rule"] == _partner(new["rule"]):
        new.pop("end_rule")
    said = [
        f"{name} is an argument of the rule, {own}"
        for name, (own, _, default) in OF_RULES.items()
        if given.get(name, default) != default
    ]
    if given.get("strength", 1.0) != 1.0:
        said.append("strength is an argument of the rule, called weight by Uniform")
    if not given.get("at_task_end", True):
        said.append("at_task_end=False is end_rule='never'")
    elif given.get("end_rule", "auto") == "auto" and "end_rule" in new:
        said.append(
            "the end_rule that was the default then is kept, kfac_subspace (end_rule='auto' would "
            "be another now)"
        )
    return said


def _partner(rule: Any) -> Any:
    """Return what merges at a task's end where nothing is said."""
    known = RULES.get(rule) if isinstance(rule, str) else None
    name = _class_name(rule)
    known = known or next((r for r in RULES.values() if r.__name__ == name), None)
    return rule if known is None or known.end_rule is None else known.end_rule


def _rule(rule: Any, given: Mapping[str, Any], strength: Any) -> Any:
    """Return a rule with the arguments that it had from outside."""
    if not isinstance(rule, str):
        return _with_strength(rule, strength)
    parts = [part.strip() for part in rule.split("*")]
    if parts == ["uniform"]:
        return {"class_path": "Uniform", "init_args": {"weight": strength}}
    built = [_named(part, given) for part in parts if part != "uniform"]  # which was a factor of 1
    if not built:
        return {"class_path": "Uniform", "init_args": {"weight": strength}}
    if len(built) == 1:
        return _with_strength(built[0], strength)
    if all(isinstance(part, str) for part in built) and strength == 1.0:
        return "*".join(built)
    product = {"rules": [_as_class(part) for part in built]}
    return _with_strength({"class_path": "Product", "init_args": product}, strength)


def _named(name: str, given: Mapping[str, Any]) -> Any:
    arguments = {
        own: given[old]
        for old, (own, rules, default) in OF_RULES.items()
        if name in rules and given.get(old, default) != default
    }
    return {**_as_class(name), "init_args": arguments} if arguments else name


def _as_class(rule: Any) -> Any:
    return {"class_path": RULES[rule].__name__} if isinstance(rule, str) and rule in RULES else rule


def _with_strength(rule: Any, strength: Any) -> Any:
    if strength == 1.0:
        return rule
    rule = _as_class(rule)
    arguments = dict(rule.get("init_args", {}))
    weight = arguments.get("weight")
    if _class_name(rule) == "Uniform" and isinstance(weight, int | float):
        weighted = strength if weight == 1 else None
        if isinstance(strength, int | float):
            weighted = weight * strength
        if weighted is not None:
            return {**rule, "init_args": {"weight": weighted}}
    return {**rule, "init_args": {**arguments, "strength": strength}}


def _class_name(rule: Any) -> str:
    path = rule.get("class_path", "") if isinstance(rule, Mapping) else ""
    return str(path).rpartition(".")[2]


def _needs(new: Mapping[str, Any]) -> frozenset[str] | None:
    """Return what the two rules decide from, or None where one is not known."""
    needs: frozenset[str] = frozenset()
    for rule in (new["rule"], new.get("end_rule") or _partner(new["rule"])):
        for part in _parts(rule):
            known = RULES.get(part) or next((r for r in RULES.values() if r.__name__ == part), None)
            if known is None and part not in ("auto", "never"):
                return None
            needs |= frozenset() if known is None else known.needs
    return needs


def _drop_unneeded(new: dict[str, Any], needs: frozenset[str] | None) -> list[str]:
    """Leave out settings of statistics that neither rule needs, as far as the rules are known."""
    if needs is None:
        return []
    if new.get("buffers") == "recalibrate":
        needs |= {"moments"}
    dropped = [group for group, need in _NEEDED_BY.items() if need not in needs and new.get(group)]
    for group in dropped:
        new.pop(group)
    return [f"{group} had no effect and is left out" for group in dropped]


def _keep_defaults(
    new: dict[str, Any], given: Mapping[str, Any], needs: frozenset[str] | None
) -> list[str]:
    """Write down the defaults of then that are others now, where they have an effect."""
    kept: list[str] = []
    if needs and "moments" in needs and not given.get("moments"):
        moments = new.get("moments") or {}
        kept += [f"moments.{own}={n}" for own, n in MOMENTS_OF_THEN.items() if own not in moments]
        new["moments"] = MOMENTS_OF_THEN | moments
    by_curvature = _class_name(_as_class(new["rule"])) == RULES["kfac_importance"].__name__
    if by_curvature and new.get("end_rule", "auto") == "auto" and new.get("merge_first_task", True):
        for name, value in {"every": 0.05, "plasticity": None}.items():
            if new.get(name, "auto") == "auto":
                new[name] = value
                kept.append(f"{name}={value}")
    return [f"{' and '.join(kept)}: what the defaults were then is kept"] if kept else []


def _parts(rule: Any) -> list[str]:
    if isinstance(rule, str):
        return [part.strip() for part in rule.split("*")]
    if _class_name(rule) == "Product":
        return [
            part for each in rule.get("init_args", {}).get("rules", []) for part in _parts(each)
        ]
    return [_class_name(rule)]
