"""The options of every command, from the parsers that read them."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

from docs.extension.markup import escaped
from recall_lightning.cli.fit import RecallCLI
from recall_lightning.cli.merge import merge_parser
from recall_lightning.cli.parser import _FIRST, PlainParser
from recall_lightning.cli.plain_text import plain
from recall_lightning.cli.recipes import recipes_parser
from recall_lightning.cli.report import report_parser
from recall_lightning.cli.retune import retune_parser
from recall_lightning.compare.command import compare_parser
from recall_lightning.doctor.command import doctor_parser
from recall_lightning.export.command import export_parser
from recall_lightning.methods.table import METHODS

_INNER = ("_ActionConfigLoad", "ActionLink", "_ActionSubCommands")
_OURS = {"forgetting", *METHODS}  # whose help is of our docstrings, in reStructuredText
_LONG = 60


@dataclass(frozen=True)
class Option:
    """An option of a command.

    Attributes:
        names: All it may be given as; of what is given by its place alone, its name.
        value: What stands behind the name; "" for a switch.
        text: What it means, in reStructuredText.
        default: What is taken where it is left out; "" where nothing is said.
    """

    names: tuple[str, ...]
    value: str
    text: str
    default: str


@dataclass(frozen=True)
class Group:
    """Options that belong together.

    Attributes:
        title: What they are of.
        options: They.
    """

    title: str
    options: tuple[Option, ...]


class _ParserFoundError(Exception):
    """Carries the parser out of what would go on and train."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


class _ParserAlone(RecallCLI):
    """The command line of ``fit`` and ``validate`` up to where it reads its arguments."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        raise _ParserFoundError(parser)


def parser_of(command: str) -> argparse.ArgumentParser:
    """Return the parser of a command, as the command itself builds it.

    Example:
        >>> parser_of("report").prog
        'recall-lightning report'
    """
    parsers = {
        "compare": compare_parser,
        "merge": merge_parser,
        "retune": retune_parser,
        "report": report_parser,
        "export": export_parser,
        "recipes": recipes_parser,
        "doctor": doctor_parser,
    }
    if command in parsers:
        return parsers[command]()
    try:
        _ParserAlone(args=[command])
    except _ParserFoundError as found:
        (subcommands,) = (a for a in found.parser._actions if hasattr(a, "_name_parser_map"))
        return subcommands._name_parser_map[command]
    raise AssertionError("the command line was read without asking for its arguments")


def groups_of(parser: argparse.ArgumentParser) -> list[Group]:
    """Return a parser's options in the groups that its own help has, all that can be given.

    Example:
        >>> [group.title for group in groups_of(parser_of("compare"))]
        ['What is compared', 'How it is run']
    """
    groups: dict[str, list[Option]] = {}
    for group in parser._action_groups:
        for action in filter(_is_shown, group._group_actions):
            groups.setdefault(_title(parser, group, action), []).append(_option(action))
    return [Group(title, tuple(groups[title])) for title in sorted(groups, key=_place)]


def _place(title: str) -> int:
    """Return where a group stands: as in the help, those that are used most come first."""
    name = re.match(r"--(\w+)\.", title)
    first = "" if name is None else name[1]
    return _FIRST.index(first) if first in _FIRST else len(_FIRST)


def _is_shown(action: argparse.Action) -> bool:
    is_help = action.option_strings and action.option_strings[-1].endswith(".help")
    hidden = action.help == argparse.SUPPRESS or type(action).__name__ in _INNER
    return not (hidden or is_help or isinstance(action, argparse._HelpAction))


def _title(parser: argparse.ArgumentParser, group: Any, action: argparse.Action) -> str:
    if not isinstance(parser, PlainParser):
        title = group.title or ""
    else:
        first, dot, _ = action.dest.partition(".")
        alone = first in ("data", "model", "optimizer", "lr_scheduler")
        title = " ".join(parser._title(first if dot or alone else "").split())
    return title[:1].upper() + title[1:]


def _option(action: argparse.Action) -> Option:
    names = tuple(name for name in action.option_strings if not name.endswith("+"))
    value = "" if action.nargs == 0 else _value(action)
    text = " ".join((action.help or "").replace("%%", "%").split())
    shown = text if action.dest.partition(".")[0] in _OURS else escaped(plain(text))
    default = "" if "Default: " in text else _default(action)
    return Option(names or (value,), value if names else "", shown, default)


def _value(action: argparse.Action) -> str:
    if action.choices:
        return "|".join(map(str, action.choices))
    metavar = action.metavar or action.dest.rpartition(".")[2].upper()
    metavar = metavar if isinstance(metavar, str) else " ".join(metavar)
    metavar = "".join(filter(str.isprintable, metavar))
    return metavar if len(metavar) < _LONG else action.dest.rpartition(".")[2].upper()


def _default(action: argparse.Action) -> str:
    value = action.default
    if action.required or value in (None, argparse.SUPPRESS, False, []):
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)
