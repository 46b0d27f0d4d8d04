"""What published merges of adapters leave of two languages, beside merging while training.

    python -m benchmarks.published_merges [--seeds 0] [--jobs 1] [--out runs/published_merges]

SmolLM2 learns German and Dutch by an adapter each, both from the model as it came, which PEFT then
merges in every way that it has (TIES, arXiv 2306.01708; DARE, 2311.03099; means of factors and of
updates). Beside them, one adapter learns German, then Dutch: by fine-tuning and with RECALL's
defaults. Needs what ``make evidence-real`` installs. Writes
``benchmarks/results/published_merges.md``, and once more with RECALL's row at the end.
"""

import argparse
import copy
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from benchmarks.real.adapter_merges import adapters_in, merged_scores
from benchmarks.real.general_ability import (
    GeneralAbility,
    divergence,
    loss,
    measured_in,
    without_hooks,
    written_by,
)
from benchmarks.real.news import news_tokens
from benchmarks.real.protocol import RECIPES
from benchmarks.support.comparisons import compared
from benchmarks.support.machine import machine
from benchmarks.support.pages import write_page
from benchmarks.support.tables import table
from recall_lightning import ForgettingMonitor
from recall_lightning.cli.fit import RecallCLI
from recall_lightning.cli.recipe_files import defaults_beside
from recall_lightning.compare.results import Run, confidence_interval
from recall_lightning.compare.tables import cell

RECIPE = RECIPES / "smollm2_lora.yaml"
SAVING = ["--trainer.callbacks+=benchmarks.real.adapter_merges.SaveTaskAdapters"]
ALONE = [*SAVING, "--data.init_args.languages=[Dutch]"]
RECALL = "one adapter, RECALL"


@dataclass(frozen=True)
class Left:
    """What a model has at the end, in nats a token.

    Attributes:
        german: Its loss on held-out German.
        dutch: On held-out Dutch.
        own_text: KL(model as it came ‖ model) on what the former wrote.
        news: Its loss on English news.
    """

    german: float
    dutch: float
    own_text: float
    news: float


def left_of(folder: Path, runs: Sequence[Run]) -> list[Left]:
    """Return what is left at the end of runs on both languages.

    Args:
        folder: Of the comparison that they are of.
        runs: One a seed.
    """
    found = []
    for run in runs:
        general = measured_in(folder / run.label / f"seed_{run.seed}")
        german, dutch = run.matrix[-1]
        assert general is not None
        assert german is not None
        assert dutch is not None
        found.append(Left(german, dutch, general.kl[-1], general.news[-1]))
    return found


def merged(seed: int, folders: Sequence[Path]) -> dict[str, Left]:
    """Return what each published merge of adapters leaves, and the model as it came."""
    args = ["validate", "-c", str(RECIPE), f"--seed_everything={seed}", "--trainer.logger=false"]
    defaults = {"validate": {"default_config_files": defaults_beside(args)}}
    cli = RecallCLI(args=args, parser_kwargs=defaults, save_config_callback=None)
    module: Any = cli.model.eval()
    stream: Any = cli.datamodule
    base = without_hooks(copy.deepcopy(module.model))
    asked = GeneralAbility()  # by which the sequential runs are measured
    own_text = written_by(base, asked.sequences, asked.length)
    news = news_tokens(stream.tokenizer, asked.sequences, asked.length)
    callbacks = cli.trainer.callbacks  # type: ignore[attr-defined]
    monitor = next(each for each in callbacks if isinstance(each, ForgettingMonitor))

    def left() -> Left:
        assert monitor.record.before is not None
        german, dutch = monitor.record.before  # of the last validation outside of a fit
        moved = divergence(base, module.model, own_text)
        return Left(german, dutch, moved, loss(module.model, news))

    def validated() -> Left:
        cli.trainer.validate(module, stream, verbose=False)
        module.eval()
        return left()

    before = left()
    scores = merged_scores(module.model, folders, validated)
    return {"as it came": before} | {f"PEFT, `{name}`": own for name, own in scores.items()}


def rows(found: Mapping[str, Sequence[Left]], seeds: int) -> list[list[str]]:
    """Return the table's rows, means over seeds."""
    shown = []
    for title, own in found.items():
        columns = zip(*map(astuple, own), strict=True)
        shown.append([title, *(cell(confidence_interval(each), seeds) for each in columns)])
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.published_merges")
    parser.add_argument("--seeds", default="0", help="joined by commas (0)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time (1)")
    parser.add_argument("--out", type=Path, default=Path("runs/published_merges"))
    given = parser.parse_args()
    seeds = [int(seed) for seed in given.seeds.split(",")]
    both, alone = given.out / "both", given.out / "alone"

    def run(folder: Path, method: str, arguments: Sequence[str]) -> list[Run]:
        return compared(RECIPE, folder, {method: f"{method}:"}, seeds, given.jobs, arguments)

    run(alone, "finetune", ALONE)
    after_another = run(both, "finetune", SAVING)
    found: dict[str, list[Left]] = {}
    for seed in seeds:
        own = Path("finetune") / f"seed_{seed}"
        german, dutch = (adapters_in(part / own)[0] for part in (both, alone))
        for title, left in merged(seed, [german, dutch]).items():
            found.setdefault(title, []).append(left)
    found["one adapter, fine-tuning"] = left_of(both, after_another)
    _write(found, given.seeds, len(seeds))
    found[RECALL] = left_of(both, run(both, "recall", SAVING))
    _write(found, given.seeds, len(seeds))


def _write(found: Mapping[str, Sequence[Left]], seeds: str, count: int) -> None:
    write_page(
        "published_merges",
        "# Published merges of adapters, beside merging while training\n\n"
        "SmolLM2-135M-Instruct, LoRA of rank 8 on all linear layers, 80 steps of German and 80 of "
        "Dutch. Loss on held-out text, divergence of the model at the end from the model as it "
        "came on text that the latter wrote itself, and loss on English news, all in nats a token, "
        f"lower is better; seeds {seeds}. Merges by PEFT's `add_weighted_adapter` are of two "
        "adapters that were trained apart, from the model as it came, with the weights that were "
        "published: 1 each, for `linear` and `svd` ½ each, and TIES and DARE keep a fifth of all "
        "entries. One adapter learns German, then Dutch."
        + ("" if RECALL in found else " RECALL's run has not finished."),
        machine(),
        table(["", "German", "Dutch", "KL", "news"], rows(found, count)),
    )


if __name__ == "__main__":
    main()
