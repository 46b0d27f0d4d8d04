"""How a public name or argument goes away: it works on for two minor versions, and says so once.

The policy is in ``docs/contribute/versioning.md``.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])

_told: set[str] = set()


def warn_once(what: str, since: str, removed_in: str, instead: str, stacklevel: int = 2) -> None:
    """Say that something is deprecated, the first time in a process.

    Args:
        what: What is, such as ``"the rule X"``.
        since: The version that it is deprecated since.
        removed_in: The version that no longer has it.
        instead: What to use in its place.
        stacklevel: Of :func:`warnings.warn`: how far up the line to change stands.

    Warns:
        FutureWarning: It reaches users, unlike a DeprecationWarning.

    Example:
        >>> with warnings.catch_warnings(record=True) as told:
        ...     warnings.simplefilter("always")
        ...     for _ in range(2):
        ...         warn_once("the rule Old", "0.1.0", "0.3.0", "New")
        >>> [str(each.message) for each in told]
        ['the rule Old is deprecated since 0.1.0 and removed in 0.3.0: use New']
    """
    message = f"{what} is deprecated since {since} and removed in {removed_in}: use {instead}"
    if message not in _told:
        _told.add(message)
        warnings.warn(message, FutureWarning, stacklevel=stacklevel + 1)


def deprecated(
    since: str, removed_in: str, instead: str
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a decorator of functions that are to go away.

    Args:
        since: See :func:`warn_once`.
        removed_in: The same.
        instead: The same.

    Example:
        >>> @deprecated("0.1.0", "0.3.0", "new()")
        ... def old():
        ...     return 1
        >>> with warnings.catch_warnings(action="ignore"):
        ...     old()
        1
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            warn_once(f"{function.__qualname__}()", since, removed_in, instead)
            return function(*args, **kwargs)

        return call

    return decorate


def renamed_argument(
    old: str, new: str, since: str, removed_in: str
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a decorator of functions, ``__init__`` too, that go on taking an argument's old name.

    Args:
        old: As a keyword, which the function has no longer.
        new: The one that it has.
        since: See :func:`warn_once`.
        removed_in: The same.

    Raises:
        TypeError: In a call with both names.

    Example:
        >>> @renamed_argument("size", "width", "0.1.0", "0.3.0")
        ... def area(width):
        ...     return width**2
        >>> with warnings.catch_warnings(action="ignore"):
        ...     area(size=3)
        9
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if old in kwargs:
                name = function.__qualname__
                warn_once(f"{old}= of {name}()", since, removed_in, f"{new}=")
                if new in kwargs:
                    raise TypeError(
                        f"{name}() got {old}= and {new}=, which are the same: give {new}= alone"
                    )
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call

    return decorate


def renamed_names(
    kind: str, since: str, removed_in: str, **names: _Decorated
) -> Callable[[str], _Decorated]:
    """Make a module's ``__getattr__``, which knows what it holds by the names that it once had.

    Args:
        kind: What they are, such as ``"rule"``.
        since: See :func:`warn_once`.
        removed_in: The same.
        **names: By the old name, what it is now.

    Example:
        >>> class Half: ...
        >>> get = renamed_names("rule", "0.1.0", "0.3.0", HalfRule=Half)
        >>> with warnings.catch_warnings(action="ignore"):
        ...     get("HalfRule") is Half
        True
    """

    def get(name: str) -> _Decorated:
        if name not in names:
            raise AttributeError(f"there is no {kind} {name!r}")
        warn_once(f"the {kind} {name}", since, removed_in, names[name].__name__)
        return names[name]

    return get
