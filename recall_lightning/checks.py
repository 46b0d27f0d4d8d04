"""Checks of arguments that every part of the package shares; it imports nothing heavy."""


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


def one_of(choices: tuple[str, ...]) -> str:
    """Return choices as a sentence names them.

    >>> one_of(("a", "b", "c"))
    "'a', 'b' or 'c'"
    """
    *others, last = map(repr, choices)
    return f"{', '.join(others)} or {last}" if others else last
