"""What a comparison runs: settings (a method with its arguments) times seeds, as commands."""

import itertools
import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recall_lightning.checks import meant
from recall_lightning.compare.results import RUN_FILE, Run
from recall_lightning.compare.state import State, state_of

_LOGGER = "--trainer.logger.init_args"
_PLACE = f"{_LOGGER}.save_dir"


@dataclass(frozen=True)
class Setting:
    """A row of the comparison's tables: a method with arguments of its own.

    Attributes:
        label: Its name in tables and figures.
        method: The value of ``--method``.
        arguments: More arguments of ``recall-lightning fit``.
        swept: The values of a sweep, by argument.

    Example:
        >>> Setting("ewc strength=1", "ewc").folder
        'ewc_strength=1'
    """

    label: str
    method: str
    arguments: tuple[str, ...] = ()
    swept: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """The label as the name of a folder."""
        return re.sub(r"[^\w.=+,-]+", "_", self.label)


@dataclass(frozen=True)
class PlannedRun:
    """One setting with one seed.

    Attributes:
        setting: What is trained.
        seed: Seed of the weights and of the data.
        folder: Where its files go.
        command: ``recall-lightning fit …``, a word an entry.
        state: Of the recipes, data and code; see :func:`~recall_lightning.compare.state.state_of`.
    """

    setting: Setting
    seed: int
    folder: Path
    command: tuple[str, ...]
    state: State

    @property
    def name(self) -> str:
        """The run as messages call it."""
        return f"{self.setting.label}, seed {self.seed}"

    @property
    def done(self) -> bool:
        """Whether this very run has finished before, on what there is now."""
        return self._record.get("state") == self.state.parts

    @property
    def outdated(self) -> list[str]:
        """What has changed since this run has finished; nothing if it has not, or is done."""
        if not self._record or self.done:
            return []
        return self.state.changed_since(self._record.get("state", {})) or ["what it reads"]

    @property
    def _record(self) -> dict[str, Any]:
        """What was written of this command, wherever the comparison's folder was then."""
        try:
            content = json.loads((self.folder / RUN_FILE).read_text())
            ran = shlex.split(content.get("command", ""))
        except (OSError, ValueError):
            return {}
        return content if _without_place(ran) == _without_place(self.command) else {}


@dataclass(frozen=True)
class Comparison:
    """All that is compared.

    Attributes:
        recipes: YAML files, each on top of the one before.
        settings: The rows of the tables, in their order.
        seeds: Every setting is trained with each.
        out: The folder of everything that is written.
        arguments: Arguments of ``recall-lightning fit`` for all runs.
        joint: Label of the setting that is trained on all tasks at once, for the gap closed.
    """

    recipes: tuple[str, ...]
    settings: tuple[Setting, ...]
    seeds: tuple[int, ...]
    out: Path
    arguments: tuple[str, ...] = ()
    joint: str = "joint"

    def runs(self) -> list[PlannedRun]:
        """Return all runs, seed after seed, so that tables fill evenly."""
        states = [self.state(("--method", s.method, *s.arguments)) for s in self.settings]
        return [
            self._run(setting, seed, state)
            for seed in self.seeds
            for setting, state in zip(self.settings, states, strict=True)
        ]

    def state(self, arguments: Sequence[str] = ()) -> State:
        """Return what there is now of all that runs read, and of what more arguments name."""
        return state_of(self.recipes, [*self.arguments, *arguments], self.out)

    def _run(self, setting: Setting, seed: int, state: State) -> PlannedRun:
        command = ["recall-lightning", "fit"]
        command += [word for recipe in self.recipes for word in ("-c", recipe)]
        command += ["--method", setting.method]
        command += ["--seed_everything", str(seed), "--data.init_args.seed", str(seed)]
        command += ["--trainer.logger", "lightning.pytorch.loggers.CSVLogger"]
        command += [_PLACE, str(self.out), f"{_LOGGER}.name", setting.folder]
        command += [f"{_LOGGER}.version", f"seed_{seed}"]
        command += ["--trainer.enable_progress_bar", "false"]
        command += ["--trainer.enable_checkpointing", "false"]
        command += [*self.arguments, *setting.arguments]
        folder = self.out / setting.folder / f"seed_{seed}"
        return PlannedRun(setting, seed, folder, tuple(command), state)


def _without_place(command: Sequence[str]) -> list[str]:
    """Leave out of a run's command where it writes."""
    before = (None, *command)
    return [word for last, word in zip(before, command, strict=False) if last != _PLACE]


def unfinished(planned: Sequence[PlannedRun], runs: Iterable[Run]) -> str:
    """Say which runs have not finished; nothing if all have.

    Args:
        planned: All.
        runs: Those that have.
    """
    finished = {(run.label, run.seed) for run in runs}
    missing = [run.name for run in planned if (run.setting.label, run.seed) not in finished]
    few = "; ".join(missing[:8]) + ("; …" if len(missing) > 8 else "")
    return f"{len(missing)} of {len(planned)} runs have not finished: {few}." if missing else ""


def parse_seeds(text: str, first: int = 0) -> tuple[int, ...]:
    """Read a number of seeds, or the seeds themselves with commas between.

    Args:
        text: Such as ``"5"`` or ``"0,3,7"``; a single seed of one's own is ``"7,"``.
        first: The first of a number of seeds.

    Raises:
        ValueError: If there are none, one is negative or given twice, or it is no number.

    Example:
        >>> parse_seeds("3"), parse_seeds("2", first=10), parse_seeds("0,3,7")
        ((0, 1, 2), (10, 11), (0, 3, 7))
    """
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise ValueError(f"--seeds {text} must be a number, or several such as 0,3,7") from error
    seeds = tuple(numbers) if "," in text else tuple(range(first, first + sum(numbers)))
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise ValueError(
            f"--seeds {text} must be a positive number of seeds, or different ones such as 0,3,7"
        )
    return seeds


def parse_settings(
    methods: Sequence[str], sweeps: Sequence[str], variants: Sequence[str], known: Sequence[str]
) -> tuple[Setting, ...]:
    """Make the rows of a comparison.

    Args:
        methods: Names of methods. One that is swept stands for its sweep.
        sweeps: ``METHOD.ARGUMENT=VALUE,VALUE``; several of one method are multiplied.
        variants: ``NAME=METHOD:ARGUMENTS``, or ``NAME=ARGUMENTS`` for method ``recall``.
        known: The methods that there are.

    Raises:
        ValueError: If a method is unknown, a sweep or variant cannot be read, or two rows have one
            label, or one folder.

    Example:
        >>> methods = ["finetune", "ewc"]
        >>> settings = parse_settings(methods, ["ewc.strength=1,10"], [], known=methods)
        >>> [setting.label for setting in settings]
        ['finetune', 'ewc strength=1', 'ewc strength=10']
        >>> settings[1].arguments
        ('--ewc.strength=1',)
    """
    swept: dict[str, dict[str, list[str]]] = {}
    for sweep in sweeps:
        method, argument, values = _parse_sweep(sweep)
        if argument in swept.setdefault(method, {}):
            raise ValueError(f"{method}.{argument} is swept twice: give all values in one --sweep")
        swept[method][argument] = values
    names = [*methods, *(method for method in swept if method not in methods)]
    settings = [row for name in names for row in _sweep(name, swept.get(name, {}))]
    settings += [_parse_variant(variant) for variant in variants]
    _check(settings, known)
    return tuple(settings)


def _parse_sweep(text: str) -> tuple[str, str, list[str]]:
    found = re.fullmatch(r"(\w+)\.([\w.]+)=(.+)", text, re.DOTALL)
    if not found:
        raise ValueError(f"--sweep {text!r} must be METHOD.ARGUMENT=VALUE,VALUE…")
    values = [value.strip() for value in _split(found[3])]
    if "" in values or len(set(values)) < len(values):
        raise ValueError(f"--sweep {text!r} has an empty value, or one twice: drop it")
    return found[1], found[2], values


def _split(text: str) -> Iterator[str]:
    """Split at the commas that stand outside of all brackets."""
    depth, start = 0, 0
    for position, character in enumerate(text):
        depth += (character in "[{(") - (character in "]})")
        if character == "," and depth == 0:
            yield text[start:position]
            start = position + 1
    yield text[start:]


def _sweep(method: str, arguments: Mapping[str, Sequence[str]]) -> Iterator[Setting]:
    """Yield the product of all values; the plain method where nothing is swept."""
    for values in itertools.product(*arguments.values()):
        chosen = dict(zip(arguments, values, strict=True))
        yield Setting(
            " ".join([method, *(f"{name}={value}" for name, value in chosen.items())]),
            method,
            tuple(f"--{method}.{name}={value}" for name, value in chosen.items()),
            {f"{method}.{name}": value for name, value in chosen.items()},
        )


def _parse_variant(text: str) -> Setting:
    found = re.fullmatch(r"([^=]+)=\s*(?:(\w+)(?::|$))?(.*)", text.strip(), re.DOTALL)
    if not found or not found[1].strip():
        raise ValueError(f"--variant {text!r} must be NAME=METHOD:ARGUMENTS")
    try:
        arguments = shlex.split(found[3])
    except ValueError as error:
        raise ValueError(f"--variant {text!r} has a quotation mark left open: close it") from error
    if arguments and not arguments[0].startswith("-"):
        raise ValueError(
            f"--variant {text!r} must be NAME=METHOD:ARGUMENTS, arguments beginning with '--', as "
            "in 'rbf=recall:--recall.rule rbf'"
        )
    return Setting(found[1].strip(), found[2] or "recall", tuple(arguments))


def _check(settings: Sequence[Setting], known: Sequence[str]) -> None:
    if not settings:
        raise ValueError("nothing to compare: name --methods, such as finetune,recall")
    for setting in settings:
        if setting.method not in known:
            close = meant(setting.method, known)
            raise ValueError(f"unknown method {setting.method!r}: use {', '.join(known)}{close}")
    folders: dict[str, str] = {}
    for setting in settings:
        other = folders.setdefault(setting.folder.lower(), setting.label)
        if other is not setting.label:
            raise ValueError(
                f"{other!r} and {setting.label!r} would share a folder: give each its own label"
            )
        if setting.folder.strip("._") == "":
            raise ValueError(f"{setting.label!r} cannot be the name of a folder: use letters")


def normal_recipes(recipes: Sequence[str]) -> tuple[str, ...]:
    """Return the recipes' paths without detours, all of them files.

    Raises:
        ValueError: If there is none, or one is no file.
    """
    if not recipes:
        raise ValueError("no recipe: name one, such as -c recipes/digits_rotated.yaml")
    for recipe in recipes:
        if not Path(recipe).is_file():
            raise ValueError(f"the recipe {recipe} does not exist: name a YAML file")
    return tuple(os.path.normpath(recipe) for recipe in recipes)
