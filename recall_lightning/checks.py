"""Checks of arguments and of what files hold, which every part shares; it imports nothing heavy."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from numbers import Integral
from types import UnionType
from typing import Any, NotRequired, cast, get_args, get_origin, get_type_hints, is_typeddict


def check_choice(name: str, value: object, *choices: str) -> None:
    """Check that the value of an argument or a setting is one of its choices.

    Args:
        name: What the argument is called.
        value: What was given.
        choices: All that it may be.

    Raises:
        ValueError: If it is none of them; it names them all.

    Example:
        >>> check_choice("divide", "sum", "count", "weights", "none")
        Traceback (most recent call last):
        ValueError: divide='sum' is unknown: use 'count', 'weights' or 'none'
    """
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown: use {one_of(choices)}")


def meant(word: str, known: Sequence[str], before: str = "") -> str:
    """Return the question whether one of some names was meant, if one is like a word.

    >>> meant("ewcc", ["finetune", "ewc"]), meant("x", ["ewc"])
    ('; did you mean ewc?', '')
    """
    close = get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {before}{close[0]}?" if close else ""


def check_count(name: str, value: object) -> None:
    """Check that a value is a whole number of 1 or more.

    Raises:
        ValueError: If it is not.

    Example:
        >>> check_count("steps", 0)
        Traceback (most recent call last):
        ValueError: steps=0 must be an integer of 1 or more
    """
    if not is_integer(value) or value < 1:  # type: ignore[operator]
        raise ValueError(f"{name}={value!r} must be an integer of 1 or more")


def is_integer(value: object) -> bool:
    """Tell whether a value is a whole number, which a truth value is not.

    >>> is_integer(1), is_integer(True), is_integer(1.0)
    (True, False, False)
    """
    return isinstance(value, Integral) and not isinstance(value, bool)


def one_of(choices: tuple[str, ...]) -> str:
    """Return choices as a sentence names them.

    >>> one_of(("a", "b", "c"))
    "'a', 'b' or 'c'"
    """
    *others, last = map(repr, choices)
    return f"{', '.join(others)} or {last}" if others else last


def first_of(names: Iterable[str], most: int = 3) -> str:
    """Return the first of some names as a sentence lists them, and how many more there are.

    >>> first_of("abc"), first_of("abcde"), first_of("abc", most=1)
    ('a, b, c', 'a, b, c and 2 more', 'a and 2 more')
    """
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


class FormError(ValueError):
    """What was read has not the form that it was written in; who reads it says what to do."""


def check_form(value: object, form: Any, where: str = "") -> None:
    """Check that what was read from a file has the form that it was written in.

    Args:
        value: What was read: plain Python, and objects of the classes in ``form``.
        form: A TypedDict, ``dict[…]``, ``list[…]``, a union, ``Any`` or a class.
        where: What the value is called, to stand before its entries' names.

    Raises:
        FormError: Naming the first entry that is missing or of another type.

    Example:
        >>> import typing
        >>> class State(typing.TypedDict):
        ...     tasks: list[int]
        >>> check_form({"tasks": [0, "1"]}, State)
        Traceback (most recent call last):
        recall_lightning.checks.FormError: tasks.1 is a str, and must be an int
        >>> check_form({}, State, "snapshots")
        Traceback (most recent call last):
        recall_lightning.checks.FormError: snapshots.tasks is missing
    """
    if form is Any:
        return
    if is_typeddict(form):
        _check_type(value, dict, where)
        # not __required_keys__, which has all names where annotations are postponed
        for name, of in get_type_hints(form, include_extras=True).items():
            may_lack = get_origin(of) is NotRequired
            of = get_args(of)[0] if may_lack else of
            if name in cast(dict[str, object], value):
                check_form(cast(dict[str, object], value)[name], of, _entry(where, name))
            elif not may_lack:
                raise FormError(f"{_entry(where, name)} is missing")
    elif isinstance(form, UnionType):
        _check_union(value, get_args(form), where)
    elif get_origin(form) is dict:
        _check_type(value, dict, where)
        key, of = get_args(form)
        for own, entry in cast(dict[object, object], value).items():
            check_form(own, key, f"a name in {where}")
            check_form(entry, of, _entry(where, own))
    elif get_origin(form) is list:
        _check_type(value, list, where)
        for position, entry in enumerate(cast(list[object], value)):
            check_form(entry, get_args(form)[0], _entry(where, position))
    else:
        _check_type(value, form, where)


def _check_union(value: object, forms: tuple[Any, ...], where: str) -> None:
    if value is None and type(None) in forms:
        return
    others = [form for form in forms if form is not type(None)]
    if len(others) == 1:  # its own complaint tells more
        check_form(value, others[0], where)
        return
    for form in others:
        try:
            check_form(value, form, where)
            return
        except ValueError as error:
            last = error
    raise last


def _check_type(value: object, wanted: type, where: str) -> None:
    kinds = (int, float) if wanted is float else wanted
    if not isinstance(value, kinds) or (isinstance(value, bool) and wanted in (int, float)):
        a, other = (_with_article(kind) for kind in (wanted, type(value)))
        raise FormError(f"{where or 'all of it'} is {other}, and must be {a}")


def _entry(where: str, name: object) -> str:
    return f"{where}.{name}" if where else str(name)


def _with_article(kind: type) -> str:
    return f"{'an' if kind.__name__[0].lower() in 'aeiou' else 'a'} {kind.__name__}"
