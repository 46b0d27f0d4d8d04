"""``recall-lightning fit``: LightningCLI with a task stream, RECALL and the monitor."""

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.cli import (
    ArgsType,
    LightningArgumentParser,
    LightningCLI,
)
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

import recall_lightning.models  # noqa: F401  # lets recipes name the modules without their path
from recall_lightning.callbacks._trainer.loggers import keep_file, log_page, run_folder
from recall_lightning.callbacks.forgetting import ForgettingMonitor
from recall_lightning.callbacks.task_aware import TaskAwareCallback
from recall_lightning.cli.arguments import refuse
from recall_lightning.cli.complaints import reason
from recall_lightning.cli.parser import PlainParser
from recall_lightning.cli.recipe_files import check_recipes, defaults_beside
from recall_lightning.cli.run_config import SaveRunConfig
from recall_lightning.cli.unfit_checkpoints import unfit_checkpoint
from recall_lightning.data import TaskStream
from recall_lightning.data.plugins import STREAM_PLUGINS
from recall_lightning.merging.rules.named import RULE_PLUGINS
from recall_lightning.methods import FILES
from recall_lightning.methods.method import Method
from recall_lightning.methods.table import METHOD_PLUGINS, METHODS
from recall_lightning.recall.migration import OLD_ARGUMENTS, migrated_arguments
from recall_lightning.report.environment import write_environment
from recall_lightning.report.page import FILE_NAME, write_report
from recall_lightning.report.words import not_kept

_EPILOG = (
    "Methods are compared by: recall-lightning compare -c RECIPE --methods finetune,recall --out "
    "FOLDER. Models on disk are merged by: recall-lightning merge MODEL MODEL… --out FOLDER. A "
    "checkpoint of a language model becomes a folder of Hugging Face by: recall-lightning export "
    "CKPT --out FOLDER. A task's last merge is made again with another balance by: "
    "recall-lightning retune CKPT --plasticity 0.9 --out CKPT. What runs learned and forgot "
    "is put on one page by: recall-lightning report RUN… --out report.html"
)


def _about(method: Method) -> str:
    package = METHOD_PLUGINS.packages.get(method.name) if method.name not in FILES else None
    remarks = ["needs old data"] * method.needs_old_data + [f"of {package}"] * bool(package)
    return f"{method.summary} ({', '.join(remarks)})" if remarks else method.summary


_TITLES = {name: f"--{name}.*: {_about(method)}" for name, method in METHODS.items()}
_METHOD_HELP = "How to train; each method has arguments of its own, --METHOD.*. " + ". ".join(
    f"{name}: {_about(method)}" for name, method in METHODS.items()
)


_LIMIT_NOT_KEPT = 3


class RecallCLI(LightningCLI):
    """LightningCLI that adds ``--method``, arguments of each method, and ``--forgetting.*``.

    A recipe is read on top of the ``defaults.yaml`` in its own folder, if there is one. Where the
    data is a :class:`~recall_lightning.TaskStream`, ``trainer.max_epochs`` and
    ``trainer.reload_dataloaders_every_n_epochs`` follow from it unless they are given.
    """

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Offer what a stream of tasks has data for: ``fit`` and ``validate``."""
        of_lightning = LightningCLI.subcommands()
        return {name: of_lightning[name] for name in ("fit", "validate")}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Build a parser whose errors and help are of a few lines."""
        self.parser_class = PlainParser
        parser: Any = super().init_parser(**kwargs)
        if not isinstance(parser, PlainParser):  # of a Lightning that cannot be told its class
            parser.__class__ = PlainParser
        parser.titles = _TITLES
        parser.plugins = {
            "rule": RULE_PLUGINS,
            "method": METHOD_PLUGINS,
            "stream": STREAM_PLUGINS,
        }
        for plugins in parser.plugins.values():
            plugins.working()  # recipes may name classes that are imported without their module
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the method, every method's arguments, the monitor's, and hidden ones of old."""
        parser.add_argument(
            "--method",
            type=Literal[tuple(METHODS)],
            default="recall",
            help=_METHOD_HELP,
        )
        for method in METHODS.values():
            add_method_arguments(parser, method, instantiate=False)
        first = METHODS["recall"]
        for method in METHODS.values():
            if method.keeps_first and method is not first:
                parser.link_arguments(
                    f"{first.name}.{first.keeps_first}", f"{method.name}.{method.keeps_first}"
                )
        parser.add_lightning_class_args(ForgettingMonitor, "forgetting")
        parser.set_defaults({"forgetting.monitor": "val/loss"})
        for name in OLD_ARGUMENTS:
            parser.add_argument(
                f"--{first.name}.{name}",
                type=Any,
                default=argparse.SUPPRESS,
                help=argparse.SUPPRESS,
            )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, and bring what an earlier version called otherwise into its new form."""
        super().parse_arguments(parser, args)
        self.config = self.in_new_form(self.config)

    def in_new_form(self, config: Any) -> Any:
        """Return parsed arguments with old ones under their new names, of which a warning tells."""
        subcommand = config["subcommand"]
        if not any(f"recall.{name}" in config[subcommand] for name in OLD_ARGUMENTS):
            return config
        settings = config[subcommand].as_dict()
        settings.pop("config", None)  # a recipe is not to be read once more
        arguments, told = migrated_arguments(settings["recall"])
        if arguments == settings["recall"]:
            return config
        rank_zero_warn(f"the arguments of recall are of an earlier version: {', '.join(told)}")
        settings["recall"] = arguments
        config = self.parser.parse_object({"subcommand": subcommand, subcommand: settings})
        for name in OLD_ARGUMENTS:  # a defaults.yaml was read again
            config[subcommand].pop(f"recall.{name}", None)
        return config

    def instantiate_classes(self) -> None:
        """Build what is used: of the methods the chosen one alone."""
        METHOD_PLUGINS.get(self._get(self.config, "method"))  # tells of one that is left out
        data = self._get(self.config, "data") or {}
        STREAM_PLUGINS.get(str(data.get("class_path")).rpartition(".")[2])
        used = self.config.clone()
        for name in METHODS:
            used[self.subcommand].pop(name, None)
        self.config_init = self.parser.instantiate_classes(used)
        self.datamodule = self._get(self.config_init, "data")
        self.model = self._get(self.config_init, "model")
        self._add_configure_optimizers_method_to_model(self.subcommand)
        self.trainer = self.instantiate_trainer()

    def before_fit(self) -> None:
        """Find the last checkpoint; measure a model that starts untrained: the matrix's first row.

        Training data that is missing is told of before that takes its time. ``--ckpt_path last``
        means that of any run in the recipe's folder. Lightning looks into the new run's folder
        only, and starts anew where there is none.
        """
        if self._get(self.config, "ckpt_path") == "last":
            found = last_checkpoint(self.trainer)
            rank_zero_info(f"going on from {found}" if found else "no run to go on from: a new one")
            self._go_on_from(found)
        if isinstance(self.datamodule, TaskStream):
            self.datamodule.check_training_data()
        if self._get(self.config, "ckpt_path") is None and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.trainer.validate(self.model, self.datamodule, verbose=False)

    def before_validate(self) -> None:
        """Find the last checkpoint, as :meth:`before_fit` does; a Trainer's own word knows none.

        Raises:
            MisconfigurationException: If there is none.
        """
        named = self._get(self.config, "ckpt_path")
        found = last_checkpoint(self.trainer) if named == "last" else named
        if named in ("last", "best") and found in (None, "best"):
            why = "no run has left one" if named == "last" else "only a fit knows its best"
            raise MisconfigurationException(f"--ckpt_path={named}, and {why}: name the file")
        self._go_on_from(found)

    def _go_on_from(self, path: str | None) -> None:
        """Have the subcommand load another checkpoint than it was given."""
        for config in (self.config_init, self.config):
            config[self.subcommand]["ckpt_path"] = path

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        method = METHODS[self._get(self.config, "method")]
        built = build_method(method, self._get(self.config, method.name))
        method.give_old_data(self.datamodule, built)
        _follow_stream(config, self.datamodule)
        own = [built] if isinstance(built, Callback) else []
        _check_each_is_one([*own, *callbacks, *_listed(config.get("callbacks"))])
        try:
            return super()._instantiate_trainer(config, [*own, *callbacks])
        except (ValueError, TypeError) as error:  # what Lightning says of an argument's value
            raise MisconfigurationException(f"trainer: {error}") from error


def add_method_arguments(
    parser: LightningArgumentParser, method: Method, instantiate: bool
) -> None:
    """Add ``--METHOD.*``, if the method has arguments.

    Args:
        parser: Where to.
        method: Whose.
        instantiate: Whether the parser is to build the method's callback or settings of them.
    """
    if method.configured is None:
        return
    parser.add_class_arguments(
        method.configured,
        method.name,
        fail_untyped=False,
        instantiate=instantiate,
        sub_configs=True,
    )
    parser.set_defaults({f"{method.name}.{name}": value for name, value in method.defaults.items()})


def build_method(method: Method, arguments: Any) -> Any:
    """Build a method's callback, or the settings of its option.

    Args:
        method: Which.
        arguments: What was parsed as ``--METHOD.*``.

    Returns:
        None for a method that has neither.

    Raises:
        MisconfigurationException: If the callback, or a rule that is given to it, refuses a value.
    """
    if method.configured is None:
        return None
    parser = LightningArgumentParser()
    add_method_arguments(parser, method, instantiate=True)
    given = {method.name: arguments.as_dict()}
    try:
        return parser.instantiate_classes(parser.parse_object(given))[method.name]
    except ValueError as error:
        raise MisconfigurationException(f"{method.name}: {reason(error)}") from error


def last_checkpoint(trainer: Trainer) -> str | None:
    """Return the newest ``last.ckpt`` of all runs that log or save beside this one, if any."""
    given = [getattr(logger, "root_dir", None) for logger in trainer.loggers]
    given += [getattr(each, "dirpath", None) for each in trainer.checkpoint_callbacks]
    folders = [folder for folder in given if folder] or [trainer.default_root_dir]
    found = [path for folder in folders for path in Path(folder).rglob("last*.ckpt")]
    return str(max(found, key=lambda path: path.stat().st_mtime)) if found else None


def _listed(callbacks: Any) -> list[Any]:
    return callbacks if isinstance(callbacks, list) else [callbacks]


def _check_each_is_one(callbacks: Sequence[Any]) -> None:
    """Check that there are no two of a kind, whose states in a checkpoint could not be told apart.

    Raises:
        MisconfigurationException: Naming the kind.
    """
    known = set()
    for each in callbacks:
        if isinstance(each, TaskAwareCallback):
            if each.state_key in known:
                raise MisconfigurationException(
                    f"trainer.callbacks has {type(each).__name__}, and a Trainer takes one, which "
                    "the command line builds from --method and --forgetting.*: set it there, and "
                    "leave it out of trainer.callbacks"
                )
            known.add(each.state_key)


def _follow_stream(config: dict[str, Any], datamodule: LightningDataModule | None) -> None:
    """Set what a stream needs of the Trainer where the user left it open."""
    if isinstance(datamodule, TaskStream):
        if config.get("max_epochs") is None and config.get("max_steps", -1) == -1:
            config["max_epochs"] = datamodule.total_epochs
        if not config.get("reload_dataloaders_every_n_epochs"):
            config["reload_dataloaders_every_n_epochs"] = 1


def main(args: Sequence[str] | None = None) -> None:
    """Run ``fit`` or ``validate``; a misconfiguration is one line on stderr and exit code 2.

    A fit after which a limit of :class:`~recall_lightning.ForgettingMonitor` was not kept ends with
    exit code 3.

    Args:
        args: The command line without the program's name; by default ``sys.argv``'s.
    """
    # Lightning 2.6 warns of its own use of torch's pytree at every validation
    warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated")
    given = sys.argv[1:] if args is None else list(args)
    defaults = {"default_config_files": defaults_beside(given)}
    kind = _for_one(given[0]) if given[:1] and given[0] in RecallCLI.subcommands() else _RunCLI
    try:
        check_recipes(given)
        kind(
            args=None if args is None else given,
            save_config_callback=SaveRunConfig,
            seed_everything_default=0,
            parser_kwargs={"epilog": _EPILOG} | dict.fromkeys(kind.subcommands(), defaults),
        )
    except Exception as error:
        said = _misconfiguration(error) or unfit_checkpoint(error, given)
        if said is None:
            raise
        refuse("recall-lightning", said)


class _RunCLI(RecallCLI):
    """A run of one method: arguments of others would be without effect."""

    def after_fit(self) -> None:
        """Write the report; tell a pipeline by the exit code what was forgotten beyond limits."""
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        monitors = [each for each in callbacks if isinstance(each, ForgettingMonitor)]
        _report(self.trainer, monitors)
        exceeded = [each for monitor in monitors for each in monitor.exceeded]
        if exceeded:
            said = "; ".join(map(not_kept, exceeded))
            self.trainer.print(f"exit code {_LIMIT_NOT_KEPT}: {said}")
            raise SystemExit(_LIMIT_NOT_KEPT)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, and refuse arguments of other methods; a recipe may hold those of several."""
        super().parse_arguments(parser, args)
        method = self.config[self.config["subcommand"]]["method"]
        words: Any = sys.argv[1:] if args is None else args
        options = {str(word).partition("=")[0] for word in words}
        options.discard(f"--recall.{METHODS['recall'].keeps_first}")  # is told for all of them
        for other in METHODS:
            given = sorted(option for option in options if option.startswith(f"--{other}."))
            if given and other != method:
                raise MisconfigurationException(
                    f"{given[0]} has no effect with --method {method}: leave it "
                    f"out, or give --method {other}"
                )


def _report(trainer: Trainer, monitors: Sequence[ForgettingMonitor]) -> None:
    """Write ``report.html`` beside each monitor's files; the run goes on where that fails."""
    beside = run_folder(trainer)
    for monitor in monitors:
        folder = beside if monitor.folder is None else Path(monitor.folder)
        if folder is None or not monitor.matrix or not trainer.is_global_zero:
            continue
        try:
            write_environment(folder, trainer.strategy.root_device)
            write_report([folder], folder / FILE_NAME, beside)
            trainer.print(f"report: {folder / FILE_NAME}")
            log_page(trainer, "continual/report", folder / FILE_NAME)
            for name in (FILE_NAME, "environment.json", "merges.json"):
                keep_file(trainer, folder / name)
        except (OSError, ValueError) as error:
            rank_zero_warn(f"{folder / FILE_NAME} could not be written: {error}")


def _for_one(subcommand: str) -> type[RecallCLI]:
    """Return the command line of one subcommand: the other's parser takes a second to build."""

    class OneCommandCLI(_RunCLI):
        @staticmethod
        def subcommands() -> dict[str, set[str]]:
            return {subcommand: RecallCLI.subcommands()[subcommand]}

    return OneCommandCLI


def _misconfiguration(error: BaseException | None) -> BaseException | None:
    """Find what the user configured wrongly behind what jsonargparse makes of it, if it is that."""
    if isinstance(error, FileNotFoundError):
        return error
    while error is not None and not isinstance(error, MisconfigurationException):
        error = error.__cause__
    return error
