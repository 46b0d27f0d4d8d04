"""What belongs together among the arguments of RecallCallback, and what they come to."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import MISSING, fields, is_dataclass, replace
from numbers import Integral, Real
from typing import Any, Literal, get_args

import torch

from recall_lightning.checks import check_choice, is_integer
from recall_lightning.measuring.view import ModelView
from recall_lightning.merging.rules import KfacSubspace, MergeRule, rule_by_name
from recall_lightning.merging.rules.base import OF_MAPS
from recall_lightning.recall.settings import (
    Buffers,
    DriftSettings,
    ImportanceSettings,
    MomentSettings,
    PriorSettings,
    SampleSettings,
    SnapshotSettings,
    is_texts,
)

_STEPS_UNTOLD = 10  # between merges, where nobody knows how long a task will be


def rules_of(
    rule: str | MergeRule, end_rule: str | MergeRule | None
) -> tuple[MergeRule, MergeRule | None]:
    """Return the rule of the loop and that of a task's end, which is None for ``"never"``.

    Raises:
        ValueError: For an unknown name, or something else.

    Example:
        >>> loop, end = rules_of("kfac_importance", "auto")
        >>> loop.name, end.name
        ('kfac_importance', 'kfac_subspace')
        >>> loop, end = rules_of("rbf", "auto")
        >>> end is loop
        True
    """
    loop = _rule_of("rule", rule)
    if end_rule == "never":
        return loop, None
    if end_rule == "auto":
        end_rule = loop.end_rule
    return loop, loop if end_rule is None else _rule_of("end_rule", end_rule)


def chosen(
    every: float | Literal["auto"],
    plasticity: float | Literal["auto"] | None,
    rule: MergeRule,
    end_rule: MergeRule | None,
    pretrained: bool,
    untold: bool = False,
) -> tuple[float, float | None]:
    """Return ``every`` and ``plasticity``, with what ``"auto"`` is.

    A pre-trained model moves little in a task, and what it knew is worth much: one merge at the
    task's end, as large as leaves 0.95 of the gain, keeps more than merges in the loop do. One that
    starts from random weights moves far, and then merging on the way matters most. An end rule with
    a balance of its own, ``KfacSubspace(new_inputs=2)``, has that left instead of a share.

    Args:
        every: As given.
        plasticity: As given.
        rule: That of the loop.
        end_rule: That of a task's end, None where nothing is merged there.
        pretrained: Whether the model knew something before its first task.
        untold: Whether nobody knows how long a task is.

    Raises:
        ValueError: For a fraction of a task of which nobody knows the length.

    Example:
        >>> chosen("auto", "auto", *rules_of("kfac_importance", "auto"), pretrained=True)
        (1.0, 0.95)
        >>> chosen("auto", "auto", *rules_of("rbf", "auto"), pretrained=True)
        (0.05, None)
    """
    by_default = pretrained and rule.name == "kfac_importance" and _leaves_balance(end_rule)
    if every == "auto":
        every = 1.0 if by_default else _STEPS_UNTOLD if untold else 0.05
    if untold and not isinstance(every, Integral) and every < 1:
        raise ValueError(
            f"every={every!r} is a fraction of the task, and with boundaries='drift' nobody knows "
            "how long it will be: give a number of optimizer steps, or 1.0 for its end alone"
        )
    if plasticity == "auto":
        plasticity = 0.95 if by_default else None
    return _python_number(every), _python_number(plasticity)


def _leaves_balance(end_rule: MergeRule | None) -> bool:
    """Tell whether a rule is the default of a task's end, and old and new count alike in it."""
    return isinstance(end_rule, KfacSubspace) and end_rule.new_inputs == 1


def _python_number(given: Any) -> Any:
    """Return numpy's numbers as Python's, which any checkpoint may hold."""
    if isinstance(given, bool) or not isinstance(given, Real):
        return given
    return int(given) if isinstance(given, Integral) else float(given)


def _rule_of(argument: str, given: object) -> MergeRule:
    if isinstance(given, str):
        return rule_by_name(given, argument)
    if isinstance(given, type) and issubclass(given, MergeRule):
        raise ValueError(
            f"{argument}={given.__name__} is a class, and must be an object of it: "
            f"{argument}={given.__name__}(…), with its arguments"
        )
    if not isinstance(given, MergeRule):
        raise ValueError(f"{argument}={given!r} must be the name of a rule or a MergeRule object")
    return given


def needed_settings(
    given: Mapping[str, Any], rules: Sequence[MergeRule], buffers: str, measures_loss: bool = False
) -> None:
    """Refuse settings of statistics that nothing reads.

    Args:
        given: The callback's arguments.
        rules: In the loop and at a task's end.
        buffers: That argument.
        measures_loss: Whether the loss tells what a merge costs.

    Raises:
        ValueError: Naming the first argument, and what would use it.

    Example:
        >>> needed_settings({"samples": SampleSettings()}, [rule_by_name("importance")], "merge")
        Traceback (most recent call last):
        ValueError: samples=SampleSettings(...) has no effect: importance does not need it...
    """
    needs = {need for rule in rules for need in rule.needs}
    users = {
        "samples": ("similarity" in needs, "rules by similarity, such as rule='rbf'"),
        "importance": ("importance" in needs, "the importance rules"),
        "moments": (
            bool(needs & OF_MAPS) or buffers == "recalibrate",
            "the subspace and kfac rules, and buffers='recalibrate'",
        ),
        "predictions": (
            "curvature" in needs or measures_loss,
            "the kfac rules, and for plasticity",
        ),
        "prior": (bool(needs & OF_MAPS), "the subspace and kfac rules"),
    }
    names = " and ".join(dict.fromkeys(rule.name or type(rule).__name__ for rule in rules))
    do = "does" if len(set(map(id, rules))) == 1 else "do"
    for argument, (used, users_of) in users.items():
        if given.get(argument) not in (None, "auto") and not used:
            shown = described(given[argument]) if argument == "prior" else given[argument]
            raise ValueError(
                f"{argument}={shown!r} has no effect: {names} {do} not need it; it is "
                f"for {users_of}"
            )


def check_arguments(given: Mapping[str, Any]) -> None:
    """Refuse arguments of another type, or out of their range.

    Args:
        given: Those of RecallCallback by name; rules and counts are checked where they are used.

    Raises:
        ValueError: Naming the argument, its value and what it may be.
    """
    for name, kinds in _KINDS.items():
        if not isinstance(given[name], kinds) or (kinds is int and isinstance(given[name], bool)):
            wanted = " or ".join(kind.__name__ for kind in _as_tuple(kinds) if kind is not _NONE)
            raise ValueError(f"{name}={given[name]!r} must be a {wanted}")
    view = given["view"]
    if isinstance(view, type) or not (
        view is None or isinstance(view, ModelView) or callable(view)
    ):
        raise ValueError(f"view={view!r} must be a function (pl_module, batch), or a ModelView")
    _check_prior(given["prior"], given["merge_first_task"], given["moments"])
    every, plasticity = given["every"], given["plasticity"]
    steps = is_integer(every) and int(every) > 0
    fraction = isinstance(every, Real) and not isinstance(every, Integral) and 0 < float(every) <= 1
    if every != "auto" and not steps and not fraction:
        raise ValueError(
            f"every={every!r} must be a fraction of the task in (0, 1] (float) or a positive "
            "number of optimizer steps (int)"
        )
    is_share = _is_share(plasticity)
    if plasticity not in ("auto", None) and not is_share:
        raise ValueError(
            f"plasticity={plasticity!r} must be 'auto', None, or a share between 0 and 1 of what a "
            f"task has gained{_meant(plasticity)}"
        )
    if is_share and given["end_rule"] == "never":
        raise ValueError(
            f"plasticity={plasticity!r} has no effect with end_rule='never': it is what a merge at "
            "a task's end leaves"
        )
    if every == 1 and not steps and given["end_rule"] == "never":
        raise ValueError(
            f"every={every!r} with end_rule='never' merges nowhere: give a smaller part of the task"
        )
    if not isinstance(given["boundaries"], DriftSettings):
        check_choice("boundaries", given["boundaries"], "known", "drift")
    if given["boundaries"] != "known" and given["task_epochs"] is not None:
        raise ValueError(
            f"task_epochs={given['task_epochs']!r} has no effect with boundaries='drift', which "
            "finds where tasks start: leave one of them out"
        )
    check_choice("buffers", given["buffers"], *get_args(Buffers))
    check_choice("optimizer_state", given["optimizer_state"], "keep", "reset")
    if given["log_artifacts"] not in (True, False, "weights", "snapshots"):
        raise ValueError(
            f"log_artifacts={given['log_artifacts']!r} must be True, False, 'weights' or "
            "'snapshots'"
        )


def check_share(plasticity: object) -> float:
    """Return a share of a task's gain as a number of Python; refuse one that is outside of (0, 1).

    >>> check_share(95)
    Traceback (most recent call last):
    ValueError: plasticity=95 must be a share between 0 and 1 of what ... gained: for 95 % give 0.95
    """
    if not _is_share(plasticity):
        raise ValueError(
            f"plasticity={plasticity!r} must be a share between 0 and 1 of what a task has gained"
            f"{_meant(plasticity)}"
        )
    return float(plasticity)  # type: ignore[arg-type]


def _is_share(plasticity: object) -> bool:
    return isinstance(plasticity, Real) and 0 < float(plasticity) < 1


def _meant(plasticity: object) -> str:
    """Return the share that was meant by what looks like a percentage."""
    if not isinstance(plasticity, Real) or not 1 < float(plasticity) < 100:
        return ""
    return f": for {plasticity} % give {float(plasticity) / 100:g}"


def check_keep_live(
    keep_live: bool | Literal["auto"], plasticity: float | None, buffers: Buffers
) -> bool | Literal["auto"]:
    """Return what ``keep_live`` comes to; a merge that is made again needs no batches.

    Raises:
        ValueError: If it is to be kept what nothing could be made of.

    Example:
        >>> check_keep_live("auto", None, "merge"), check_keep_live("auto", 0.9, "merge")
        (False, 'auto')
    """
    if keep_live not in (True, False, "auto"):
        raise ValueError(f"keep_live={keep_live!r} must be True, False or 'auto'")
    if keep_live is True and plasticity is None:
        raise ValueError(
            "keep_live=True has no effect without plasticity: it is by plasticity that a merge is "
            "made again"
        )
    if keep_live is True and buffers == "recalibrate":
        raise ValueError(
            "keep_live=True has no effect with buffers='recalibrate': they are measured on "
            "batches, which are not kept"
        )
    return False if plasticity is None or buffers == "recalibrate" else keep_live


def check_refit_head(refit_head: bool | Literal["auto"], rules: Sequence[MergeRule]) -> bool:
    """Return whether a classifier's last layer may be fitted anew.

    Args:
        refit_head: As given.
        rules: In the loop, and at a task's end if anything is merged there.

    Raises:
        ValueError: If no rule measures what predictions depend on, which tells whether they are
            classes, or nothing is merged at a task's end.

    Example:
        >>> check_refit_head("auto", [rule_by_name("rbf"), rule_by_name("kfac_subspace")])
        True
    """
    if not isinstance(refit_head, bool) and refit_head != "auto":
        raise ValueError(f"refit_head={refit_head!r} must be True, False or 'auto'")
    possible = len(rules) > 1 and "curvature" in rules[-1].needs
    if refit_head is True and not possible:
        raise ValueError(
            "refit_head=True has no effect without a kfac rule at a task's end: use "
            "end_rule='kfac_subspace'"
        )
    return possible and bool(refit_head)


def _check_prior(prior: Any, merge_first_task: bool, moments: MomentSettings | None) -> None:
    if prior is None:
        return
    writes = moments is not None and moments.source == "generated"
    if not merge_first_task and not (writes and isinstance(prior, PriorSettings)):
        raise ValueError(
            f"prior={described(prior)!r} has no effect with merge_first_task=False: nothing of "
            "what came before the first task is kept"
        )
    if isinstance(prior, PriorSettings):
        return
    if _is_one_batch(prior) or not isinstance(prior, Iterable):
        shown = repr(prior) if isinstance(prior, str | bytes) else type(prior).__name__
        raise ValueError(
            f"prior={shown} must be PriorSettings, a list of texts, or a DataLoader or list of "
            "batches: of a single batch [batch]"
        )
    if isinstance(prior, Iterator):
        raise ValueError(
            f"prior={prior!r} can be read only once, and a run that resumes reads it again: give a "
            "list or a DataLoader"
        )
    if isinstance(prior, Sized) and not len(prior):
        raise ValueError(f"prior={prior!r} is empty: give texts or batches of what the model knew")


def _is_one_batch(prior: Any) -> bool:
    """Tell whether something can only be one batch, or one text, and no collection of those."""
    of_tensors = isinstance(prior, tuple) and all(isinstance(each, torch.Tensor) for each in prior)
    return of_tensors or isinstance(prior, str | bytes | Mapping | torch.Tensor)


def described(prior: Any) -> Any:
    """Return what may stand in a checkpoint of what the model knew: no sample of it.

    >>> described(["a text", "another"]), described(PriorSettings(tokens=8))
    ('2 texts', PriorSettings(sequences=64, tokens=8, starts=('bos', 'chat', 'random'), ...))
    """
    if isinstance(prior, PriorSettings):
        name = getattr(prior.tokenizer, "name_or_path", prior.tokenizer)
        return replace(prior, tokenizer=name)
    if prior is None:
        return None
    number = f"{len(prior)} " if isinstance(prior, list | tuple) else ""
    kind = "texts" if is_texts(prior) else "batches"
    return f"{number}{kind}" if number else type(prior).__name__


_NONE = type(None)


def _as_tuple(kinds: type | tuple[type, ...]) -> tuple[type, ...]:
    return kinds if isinstance(kinds, tuple) else (kinds,)


_KINDS: dict[str, type | tuple[type, ...]] = {
    "samples": (SampleSettings, _NONE),
    "importance": (ImportanceSettings, _NONE),
    "moments": (MomentSettings, _NONE),
    "snapshots": (SnapshotSettings, int, str, _NONE),
    "blocks": (list, tuple, str, _NONE),
    "merge_first_task": bool,
    "allow_untested": bool,
    "seed": int,
}


def check_decides_about(snapshots: int | str, rule: MergeRule) -> None:
    """Refuse a rule that cannot decide about as many snapshots as are kept.

    Raises:
        ValueError: If it cannot.
    """
    if snapshots != 1 and not rule.decides_jointly:
        raise ValueError(
            f"snapshots.number={snapshots!r} needs a rule that decides about several, and end_rule "
            "too: keep one, or use rule='rbf', or define joint_coefficients of "
            f"{type(rule).__name__}"
        )


def plain_settings(given: Mapping[str, Any], function: Callable[..., None]) -> dict[str, Any]:
    """Return the arguments that are not their defaults, in plain Python for a checkpoint.

    >>> plain_settings({"self": 1, "sep": ",", "file": print}, print)
    {'file': '<built-in function print>', 'sep': ','}
    """
    defaults = inspect.signature(function).parameters
    own = {name: value for name, value in sorted(given.items()) if name in defaults}
    changed = {n: v for n, v in own.items() if n != "self" and v != defaults[n].default}
    return {name: _plain(value) for name, value in changed.items()}


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {
            f.name: _plain(getattr(value, f.name))
            for f in fields(value)
            if f.default is MISSING or getattr(value, f.name) != f.default
        }
    value = _python_number(value)
    return (
        value if isinstance(value, str | int | float | bool | list | dict | None) else repr(value)
    )
