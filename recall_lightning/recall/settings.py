"""What the arguments of RecallCallback may be; each check raises a ValueError."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from recall_lightning.merging.block_settings import Setting, numbers_of
from recall_lightning.merging.rules import MergeRule, RuleOptions, rule_by_name


def rule_of(argument: str, given: object, options: RuleOptions) -> MergeRule:
    """Return a rule that was given by name or as an object."""
    if given == "uniform" and argument == "end_rule":
        raise ValueError(
            "end_rule='uniform' has no weight and would undo the whole task: give it one, "
            "end_rule=UniformRule(0.3) from recall_lightning.merging.rules, or use end_rule=None "
            "for that of the loop"
        )
    if isinstance(given, str):
        return rule_by_name(given, options, argument)
    if not isinstance(given, MergeRule):
        raise ValueError(f"{argument}={given!r} must be the name of a rule or a MergeRule object")
    return given


def unused_arguments(given: Mapping[str, object], rules: Sequence[str | MergeRule]) -> list[str]:
    """Name those arguments that no rule of a schedule uses.

    Args:
        given: Arguments that are not at their defaults.
        rules: Names and objects as they were given; an object has arguments of its own.

    Example:
        >>> unused_arguments({"temperature": 0.3, "new_inputs": 2.0}, ["rbf*importance"])
        ['new_inputs']
    """
    names = {part.strip() for r in rules if isinstance(r, str) for part in r.split("*")}
    built = [rule_by_name(rule) if isinstance(rule, str) else rule for rule in rules]
    represented = any(rule.uses_representations for rule in built)
    important = any(rule.uses_importance for rule in built)
    moments = any(rule.uses_moments or rule.uses_curvature for rule in built)
    used = {
        "temperature": bool(names & {"rbf", "cka", "cosine"}),
        "sigma": "rbf" in names,
        "importance_scale": bool(names & {"importance", "kfac_importance"}),
        "new_inputs": bool(names & {"subspace", "kfac_subspace"}),
        **dict.fromkeys(("importance_source", "importance_steps"), important),
        **dict.fromkeys(_MOMENTS, moments),
        **dict.fromkeys(("typical_samples", "pool_size", "sampling"), represented),
    }
    return [name for name in given if not used.get(name, True)]


_MOMENTS = ("moment_batches", "moment_width", "moment_rank", "moment_source")


def warn_of_unused(given: Mapping[str, Any], function: Callable[..., None]) -> None:
    """Say which arguments have no effect under the rules that are given.

    Args:
        given: All arguments, ``rule`` and ``end_rule`` among them.
        function: Its signature has their defaults.
    """
    defaults = inspect.signature(function).parameters
    own = [name for name in defaults if name in given]
    changed = {name: given[name] for name in own if given[name] != defaults[name].default}
    if given["buffers"] == "recalibrate":
        changed.pop("moment_batches", None)
    rules = [given[name] for name in ("rule", "end_rule") if given[name] is not None]
    if unused := unused_arguments(changed, rules):
        names = [repr(rule) if isinstance(rule, str) else type(rule).__name__ for rule in rules]
        rank_zero_warn(
            f"{', '.join(f'{name}={given[name]!r}' for name in unused)} has no effect: no rule of "
            f"{' and '.join(names)} uses it"
        )


def plain_settings(given: Mapping[str, Any], function: Callable[..., None]) -> dict[str, Any]:
    """Return the arguments that are not their defaults, in plain Python for a checkpoint.

    >>> plain_settings({"self": 1, "sep": ",", "file": print}, print)
    {'file': '<built-in function print>', 'sep': ','}
    """
    defaults = inspect.signature(function).parameters
    own = {name: value for name, value in sorted(given.items()) if name in defaults}
    changed = {n: v for n, v in own.items() if n != "self" and v != defaults[n].default}
    plain = str | int | float | bool | list | dict | None
    return {name: v if isinstance(v, plain) else repr(v) for name, v in changed.items()}


def check_decides_about(snapshots: int | str, rule: MergeRule) -> None:
    """Refuse a rule that cannot decide about as many snapshots as are kept."""
    decides_jointly = type(rule).joint_coefficients is not MergeRule.joint_coefficients
    if snapshots != 1 and not decides_jointly:
        raise ValueError(
            f"snapshots={snapshots!r} needs a rule that decides about several, and end_rule too: "
            f"use snapshots=1, rule='rbf' with end_rule='rbf', or define joint_coefficients of "
            f"{type(rule).__name__}"
        )


def check_strength(strength: Setting, rule: object) -> None:
    """Refuse a strength outside [0, 1], and one that would undo all training."""
    if rule == "uniform" and set(numbers_of(strength)) == {1.0}:
        raise ValueError(
            "rule='uniform' with strength=1 puts the snapshot back at every merge: give a smaller "
            "strength, such as 0.2"
        )
    for value in numbers_of(strength):
        if not 0 <= value <= 1:
            raise ValueError(f"strength={value!r} must lie in [0, 1]: it multiplies coefficients")


def check_numbers(every: object, typical_samples: int, pool_size: int, snapshots: object) -> None:
    """Refuse numbers out of their range."""
    steps = isinstance(every, Integral) and not isinstance(every, bool) and int(every) > 0
    fraction = isinstance(every, Real) and not isinstance(every, Integral) and 0 < float(every) <= 1
    if not steps and not fraction:
        raise ValueError(
            f"every={every!r} must be a fraction of the task in (0, 1] (float) or a positive "
            "number of optimizer steps (int)"
        )
    if not isinstance(typical_samples, Integral) or typical_samples < 2:
        raise ValueError(
            f"typical_samples={typical_samples} must be 2 or more: widths come from distances"
        )
    if not isinstance(pool_size, Integral) or pool_size < typical_samples:
        raise ValueError(
            f"pool_size={pool_size} must be at least typical_samples={typical_samples}, which are "
            "chosen from the pool"
        )
    if snapshots != "all" and (not isinstance(snapshots, Integral) or snapshots < 1):
        raise ValueError(f"snapshots={snapshots!r} must be 'all' or how many to keep, 1 or more")


def device_of(name: str) -> torch.device:
    """Return the device of a name."""
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"snapshot_device={name!r} is no device: {error}") from error
