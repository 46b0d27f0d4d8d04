"""What can be known to be wrong before the first run starts."""

import io
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning.cli.fit import build_method
from recall_lightning.cli.recipe_files import check_recipes
from recall_lightning.compare.plan import PlannedRun
from recall_lightning.compare.worker import MeasuredCLI, parser_settings
from recall_lightning.methods.table import METHODS


class _ParsedCLI(MeasuredCLI):
    """The command line's parser, without anything being made or run."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = self.in_new_form(parser.parse_args(args))

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
    cli: Any = None
    for run in runs:
        arguments = list(run.command[1:])
        complaints = io.StringIO()
        try:
            with redirect_stderr(complaints), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of jsonargparse, about itself
                if cli is None:
                    check_recipes(arguments)
                    cli = _ParsedCLI(
                        args=arguments,
                        seed_everything_default=0,
                        parser_kwargs=parser_settings(arguments),
                    )
                config = cli.in_new_form(cli.parser.parse_args(arguments)).fit
                build_method(METHODS[config.method], config.get(config.method))
        except SystemExit as error:
            reason = complaints.getvalue().rpartition("error: ")[2].partition("\n")[0]
            if "--data: there is no argument 'seed'" in reason:
                reason += "; compare gives each run's seed to the data: add seed: int = 0 to it"
            raise ValueError(f"{run.setting.label}: {reason}") from error
        except (MisconfigurationException, ValueError, TypeError) as error:
            raise ValueError(f"{run.setting.label}: {error}") from error
