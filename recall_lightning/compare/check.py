"""What can be known to be wrong before the first run starts."""

import io
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning.compare.plan import PlannedRun
from recall_lightning.compare.worker import MeasuredCLI, parser_settings
from recall_lightning.methods.table import METHODS


class _ParsedCLI(MeasuredCLI):
    """The command line's parser, without anything being made or run."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)

    def _set_seed(self) -> None:
        pass

    def instantiate_classes(self) -> None:
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def check_commands(runs: Sequence[PlannedRun]) -> None:
    """Parse each command, and make each method's callback from its arguments.

    Args:
        runs: One a setting.

    Raises:
        ValueError: One sentence on the first that is wrong.
    """
    parser: Any = None
    for run in runs:
        arguments = list(run.command[1:])
        complaints = io.StringIO()
        try:
            with redirect_stderr(complaints), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of jsonargparse, about itself
                if parser is None:
                    parser = _ParsedCLI(
                        args=arguments,
                        seed_everything_default=0,
                        parser_kwargs=parser_settings(arguments),
                    ).parser
                _make_callback(run.setting.method, parser.parse_args(arguments).fit)
        except SystemExit as error:
            reason = complaints.getvalue().rpartition("error: ")[2]
            raise ValueError(f"{run.setting.label}: {reason}") from error
        except (MisconfigurationException, ValueError, TypeError) as error:
            raise ValueError(f"{run.setting.label}: {error}") from error


def _make_callback(method: str, config: Any) -> None:
    kind = METHODS[method].callback
    if kind is None or config.get(method) is None:
        return
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(kind, method)
    given = dict(config[method].as_dict())
    parser.instantiate_classes(parser.parse_object({method: given}))
