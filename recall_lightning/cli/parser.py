"""The parser of ``fit`` and ``validate``: short complaints, and help that a terminal can show."""

import argparse
import os
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from recall_lightning.cli.complaints import sentence
from recall_lightning.cli.plain_text import first_sentence, plain
from recall_lightning.plugins import Plugins

_WIDTH = 100
_INDENT = 26

# The groups of options, by the first part of their names, in the order of how often they are used.
_FIRST = ("", "recall", "forgetting", "data", "model", "trainer", "optimizer", "lr_scheduler")
_TITLES = {
    "": "options",
    "forgetting": "--forgetting.*: what is measured and where it goes",
    "data": "--data.*: the stream of tasks",
    "model": "--model.*: what is trained",
    "trainer": "--trainer.*: Lightning's Trainer",
    "optimizer": "--optimizer.*: for a model of your own without configure_optimizers",
    "lr_scheduler": "--lr_scheduler.*: the same",
}

_CHOICES = textwrap.TextWrapper(
    _WIDTH, subsequent_indent=" " * 4, break_on_hyphens=False, break_long_words=False
)


class PlainParser(LightningArgumentParser):
    """LightningArgumentParser with one-sentence complaints and groups of help in plain text.

    Attributes:
        titles: More titles of groups, by the first part of their options' names.
        plugins: What other packages bring, by what it is. It is imported with the parser, so that
            recipes may name its classes without their modules.
    """

    titles: dict[str, str] = {}
    plugins: Mapping[str, Plugins[Any]] = {}

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say in two lines on stderr what is wrong and where help is, and exit with code 2."""
        if not self.exit_on_error or "JSONARGPARSE_DEBUG" in os.environ:
            super().error(message, ex)  # of a class within: it is told in the outer one's message
        parser = getattr(ex, "subcommand_parser", None) or self
        said = "; ".join([sentence(message, _names(parser)), *self._broken_in(message)])
        print(f"recall-lightning: error: {said}", file=sys.stderr)
        word = parser.prog.split()[-1]
        shown = word if word in ("fit", "validate") else "fit"
        print(f"tip: recall-lightning {shown} --help lists all options", file=sys.stderr)
        raise SystemExit(2) from ex

    def print_usage(self, file: Any = None) -> None:
        """Print none: it has a line for each of a hundred options."""

    def format_help(self, formatter: argparse.HelpFormatter | None = None) -> str:
        """Return the help: options in groups, those that are used most first, a sentence each.

        Of a single class, as for ``--recall.rule.help NAME``, all that its docstring says.
        """
        if getattr(self, "_inner_parser", False):
            return _of_class(self)
        groups = _grouped(self._actions)
        others = [name for name in groups if name not in _FIRST]
        parts = [f"usage: {_program(self)}", plain(self.description or "")]
        for name in [*_FIRST, *others]:
            if name in groups:
                parts.append(f"{self._title(name)}:\n{_listed(groups[name], _names(self))}")
        parts.append(self._of_packages())
        parts.append(textwrap.fill(plain(self.epilog or ""), _WIDTH))
        return "\n\n".join(part for part in parts if part.strip()) + "\n"

    def _broken_in(self, message: str) -> list[str]:
        """Return what is wrong with the plugins whose names a message has."""
        complaints = [
            each for plugins in self.plugins.values() for each in plugins.complaints().items()
        ]
        return [said for name, said in complaints if re.search(rf"\b{re.escape(name)}\b", message)]

    def _of_packages(self) -> str:
        """Return what other packages bring, and what is wrong with what cannot be used."""
        rows = []
        for kind, plugins in self.plugins.items():
            complaints = plugins.complaints()
            for name, package in plugins.packages.items():
                about = complaints.get(name, f"{kind} of {package}")
                rows.append(textwrap.fill(f"  {name}: {about}", _WIDTH, subsequent_indent="    "))
        return "\n".join(["what other packages bring:", *rows]) if rows else ""

    def _title(self, name: str) -> str:
        title = self.titles.get(name) or _TITLES.get(name) or f"--{name}.*"
        return "\n".join(textwrap.wrap(plain(title), _WIDTH))


def _program(parser: argparse.ArgumentParser) -> str:
    words = parser.prog.split()
    word = words[-1] if words[-1] in ("fit", "validate") else "{fit,validate}"
    return f"recall-lightning {word} -c RECIPE [--GROUP.OPTION VALUE ...]"


def _names(parser: argparse.ArgumentParser) -> list[str]:
    return [name for action in parser._actions for name in action.option_strings]


def _grouped(actions: Sequence[argparse.Action]) -> dict[str, list[argparse.Action]]:
    """Return what is shown, by the first part of its name."""
    groups: dict[str, list[argparse.Action]] = {}
    for action in actions:
        if action.help == argparse.SUPPRESS or not action.option_strings or _is_help(action):
            continue
        if type(action).__name__ in ("ActionLink", "_ActionConfigLoad"):
            continue
        first, dot, _ = action.dest.partition(".")
        alone = first in ("data", "model", "optimizer", "lr_scheduler")
        groups.setdefault(first if dot or alone else "", []).append(action)
    return groups


def _is_help(action: argparse.Action) -> bool:
    return action.option_strings[-1].endswith(".help")


def _listed(actions: Sequence[argparse.Action], names: Sequence[str]) -> str:
    rows = []
    for action in actions:
        text = first_sentence(plain(action.help or ""))
        more = f"--{action.dest}.help"
        rows.append(_lines(action, f"{text} [{more} CLASS]" if more in names else text))
    return "\n".join(rows)


def _of_class(parser: argparse.ArgumentParser) -> str:
    """Return all that is known of a class, whose arguments a parser holds."""
    parts = [plain(parser.description or "")]
    for group in parser._action_groups:
        shown = [each for each in group._group_actions if each.help != argparse.SUPPRESS]
        if not shown or any(type(each).__name__ == "ActionLink" for each in shown):
            continue
        title = plain(group.title or "").rstrip(":")
        texts = (_lines(each, " ".join(plain(each.help or "").split())) for each in shown)
        parts.append(f"{title}:\n" + "\n".join(texts))
    return "\n\n".join(parts) + "\n"


def _lines(action: argparse.Action, text: str) -> str:
    """Return an option with its help beside or below it."""
    name = "  " + ", ".join(each for each in action.option_strings if not each.endswith("+"))
    if action.nargs != 0 and not isinstance(action, argparse._HelpAction):
        name += f" {_metavar(action)}"
    about = f"{text}{_default(action)}".replace("%%", "%").strip()
    wrapped = textwrap.wrap(about, _WIDTH - _INDENT) or [""]
    if len(name) < _INDENT:
        rows = [f"{name:<{_INDENT}}{wrapped.pop(0)}"]
    elif len(name) < _WIDTH:
        rows = [name]
    else:  # of many choices
        rows = _CHOICES.wrap(name.replace(",", ", "))
    return "\n".join([*rows, *(" " * _INDENT + each for each in wrapped)])


def _metavar(action: argparse.Action) -> str:
    if action.choices:
        return "{" + ",".join(map(str, action.choices)) + "}"
    if isinstance(action.metavar, str) and action.metavar.startswith("{"):
        return action.metavar
    return action.dest.rpartition(".")[2].upper()


def _default(action: argparse.Action) -> str:
    if action.required:
        return " (required)"
    value = action.default
    if value is None or value == argparse.SUPPRESS or not isinstance(value, str | int | float):
        return ""
    return f" ({str(value).lower() if isinstance(value, bool) else value})"
