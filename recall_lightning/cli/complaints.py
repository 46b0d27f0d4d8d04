"""What jsonargparse finds wrong, in one sentence: the option, the value, and what to do."""

import inspect
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from itertools import takewhile
from typing import Any

from recall_lightning.checks import meant

_LONGEST = 200  # characters of a value, or of a reason that is not known here


@dataclass
class _Found:
    """What the lines of a message say.

    Attributes:
        keys: The option, and what lies in it.
        of_class: The class whose arguments are wrong, as a path.
        unknown: An argument that it does not have.
        required: An argument that is missing.
        types: What the value could have been.
        value: It.
        reasons: Lines that say something else.
    """

    keys: list[str] = field(default_factory=list)
    of_class: str = ""
    unknown: str = ""
    required: str = ""
    types: list[str] = field(default_factory=list)
    value: str = ""
    reasons: list[str] = field(default_factory=list)


def sentence(message: str, options: Iterable[str] = ()) -> str:
    r"""Return a sentence for a message of jsonargparse.

    Args:
        message: All of it, of any number of lines.
        options: The options that there are, to say which one may have been meant.

    Example:
        >>> sentence('Parser key "a.b": Expected a <class \'int\'>. Got value: x')
        "--a.b 'x' must be an int"
        >>> sentence("unrecognized arguments: --recal.every 1", ["--recall.every", "--method"])
        'unrecognized arguments: --recal.every 1; did you mean --recall.every?'
    """
    known = [option.lstrip("-") for option in options]
    stray = re.match(r"unrecognized arguments: -*([^\s=]+)", message, re.IGNORECASE)
    if stray:
        return f"{_short(message)}{meant(stray[1], known, '--')}"
    inside = re.match(
        r"(?:Subcommand '\w+'|Parser) does not accept (?:option|nested key) '(.+)'", message
    )
    if inside:
        return f"no option {inside[1]!r}{meant(inside[1], known)}"
    missing = re.match(r"the following arguments are required: (?:\w+\.)?(model|data)$", message)
    if missing:
        return f"--{missing[1]} is missing: name a recipe that says it, -c RECIPE"
    return _told(_read(message)) or _short(message)


def reason(error: BaseException) -> str:
    r"""Return why a value was refused that jsonargparse hands to a class.

    It retells what the class has said, and names as the cause what the first of the types says that
    the value could have been of.

    Example:
        >>> first = ValueError("Expected a typing.Literal['all']. Got value: x")
        >>> told = ValueError("Errors:\n  - Expected a typing.Literal['all']\n  - x must be odd")
        >>> told.__cause__ = first
        >>> reason(told)
        'x must be odd'
    """
    said = _read(str(error)).reasons
    while error.__cause__ is not None:
        error = error.__cause__
    of_a_type = str(error).startswith("Expected a ")
    return " ".join(said) if said and of_a_type else str(error)


def _read(message: str) -> _Found:
    found = _Found()
    for line in _first_branch(re.sub(r'(?<=":) (?=\S)', "\n  ", message).split("\n")):
        _read_line(line.strip().removeprefix("- "), found)
    return found


def _first_branch(lines: Sequence[str]) -> list[str]:
    """Leave out what else a value could have been, where a class was named for it."""
    for position, line in enumerate(lines):
        if not line.lstrip(" -").startswith("Problem with given class_path"):
            continue
        depth = _depth(line)
        deeper = (_depth(each) > depth for each in lines[position + 1 :])
        inside = lines[position + 1 : position + 1 + sum(takewhile(bool, deeper))]
        values = [each for each in lines if each.lstrip().startswith("Given value:")]
        return [*lines[:position], line, *_first_branch(inside), *values[-1:]]
    return list(lines)


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip())


def _read_line(line: str, found: _Found) -> None:
    if match := re.match(r'Parser key "(.+)":', line):
        found.keys.append(match[1])
    elif match := re.match(r"Problem with given class_path '(.+)'", line):
        found.of_class = match[1]
    elif match := re.search(r"Option '(.+?)' is not accepted", line):
        found.unknown = match[1]
        inner = re.search(r"class_path='(.+?)'", line)
        found.of_class = inner[1] if inner else found.of_class
    elif match := re.match(r"the following arguments are required: (.+)", line):
        found.required = match[1]
    elif match := re.match(r"Import path (\S+) does not correspond to a subclass of (\S+)", line):
        found.reasons.append(_why_it_is_no(match[2], match[1]))
    elif match := re.match(r"Expected a (.+?)(?:\. Got value: (.*))?$", line):
        found.value = match[2] or found.value
        kind = "a class" if match[1].startswith("dot import path") else match[1]
        if not kind.startswith(("path but", "<class 'NoneType'>")):
            found.types.append(kind)
    elif match := re.match(r"Given value: (.*)", line):
        found.value = found.value or _given(match[1])
    elif line and not re.match(r"Does not validate|Subtypes:|Errors:|Given value type:", line):
        found.reasons.append(line)


def _given(value: str) -> str:
    """Return what was typed: of an argument of a class it, of a class its path."""
    for pattern in (r"NestedArg\(key='.+?', val='?(.*?)'?\)$", r"\{'class_path': '([^']+)'"):
        if match := re.match(pattern, value):
            return match[1]
    return value


def _told(found: _Found) -> str:
    if not found.keys:
        return ""
    option = f"--{'.'.join(found.keys)}"
    name = found.of_class.rpartition(".")[2]
    if found.unknown:
        has = _arguments_of(found.of_class)
        whose = f" of {name}" if name else ""
        listed = f"; there are {', '.join(has)}" if 0 < len(has) <= 12 else ""
        close = meant(found.unknown, has)
        return f"{option}: there is no argument {found.unknown!r}{whose}{close or listed}"
    if found.required:
        return f"{option}: {name or 'it'} needs {found.required!r}: set {option}.{found.required}"
    if found.reasons:
        of = f" ({name})" if name else ""
        value = f" {_short(found.value)!r}" if found.value else ""
        return f"{option}{of}{value}: {_short(' '.join(found.reasons))}"
    if found.types:
        kinds = list(dict.fromkeys(map(_kind, found.types)))
        choices = [each for kind in kinds for each in re.findall(r"'(\w+)'", kind)]
        if choices and re.fullmatch(r"[\w-]+", found.value):
            kinds = [kind for kind in kinds if kind != "a str"]  # which it is
        hint = ", given by its import path, package.module.Class, or the name of a known one"
        must = f" must be {' or '.join(kinds)}{hint if 'a class' in kinds else ''}"
        return f"{option} {_short(found.value)!r}{must}{meant(found.value, choices)}"
    return ""


def _kind(expected: str) -> str:
    """Name a type as a sentence does.

    >>> _kind("<class 'int'>"), _kind("typing.Literal['a', 'b']"), _kind("a class")
    ('an int', "one of 'a', 'b'", 'a class')
    """
    if expected == "a class":
        return expected
    chosen = re.fullmatch(r"(?:typing\.)?Literal\[(.*)\]", expected)
    if chosen:
        return f"one of {chosen[1]}" if "," in chosen[1] else chosen[1]
    plain = re.fullmatch(r"<class '(?:.*\.)?(\w+)'>", expected)
    name = plain[1] if plain else re.sub(r"typing\.|collections\.abc\.", "", expected)
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _why_it_is_no(base: str, path: str) -> str:
    """Return why what lies at an import path makes no object of a class."""
    own, name = _imported(path), path.rpartition(".")[2]
    if inspect.isroutine(own) and "return" not in inspect.get_annotations(own):
        return f"a function that makes one must say so: def {name}(…) -> {base}"
    return f"it must be a {base}, or a function whose return type says that it makes one"


def _arguments_of(path: str) -> list[str]:
    """Return what a class is called with; nothing where that cannot be told."""
    owner = _imported(path)
    if owner is None:
        return []
    try:
        found: list[str] = []
        variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        for each in inspect.getmro(owner) if inspect.isclass(owner) else [owner]:
            parameters = inspect.signature(each).parameters
            found += [own for own, its in parameters.items() if its.kind not in variable]
            if not any(its.kind is its.VAR_KEYWORD for its in parameters.values()):
                break  # it hands nothing on to its base
    except (ValueError, TypeError):
        return []
    return list(dict.fromkeys(found))


def _imported(path: str) -> Any:
    """Return what lies at a path of a module and a name; None where that is not found."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name, None)
    except (ImportError, ValueError):
        return None


def _short(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= _LONGEST else f"{words[:_LONGEST]}…"
