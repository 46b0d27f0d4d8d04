"""LoRA through three domains of instructions, on a model that was trained to do one thing well.

The model of ``recipes/five_tasks_tiny`` finds in a text what is asked for (``general``: exact
match 1.0 on held-out questions). The domains ask for the same in other forms: telegrams, French,
and records of code. Every method trains the same adapter on the same rows.

    python -m benchmarks.lora_domains --jobs 2        # about 15 minutes on two cores
    python -m benchmarks.lora_domains --choose        # the seeds that the settings were chosen on

Writes ``benchmarks/results/lora_domains.md``.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import tempfile
import warnings
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from benchmarks.support.machine import machine
from benchmarks.support.pages import ROOT, write_page
from benchmarks.support.tables import table
from recall_lightning import ForgettingMonitor, RecallCallback
from recall_lightning.data import InstructionStream, InstructionTask, Template
from recall_lightning.merging.rules import KfacImportance, KfacSubspace
from recall_lightning.methods.ewc import ElasticWeightConsolidation
from recall_lightning.methods.sfa import SequentialFinetuningAveraging
from recall_lightning.models import CausalLMModule
from recall_lightning.models.lora import LoraSettings

MODEL = ROOT / "recipes/five_tasks_tiny/model"
GENERAL = ROOT / "recipes/five_tasks_tiny/data/lookup_val.jsonl"
REPORTED, CHOSEN_ON = range(3), range(100, 101)
TRAIN, VALIDATION = 512, 64


@dataclass(frozen=True)
class Method:
    """A way to train: a callback, and whether each task's adapter is added to the base."""

    callback: Callable[[], Callback] | None = None
    fresh: bool = False


ASK = Template(
    "{text}\nQuestion: {question}\nAnswer:", "{answer}", score="exact_match", max_new_tokens=8
)
METHODS: dict[str, Method] = {
    "fine-tuning, one adapter": Method(),
    "fine-tuning, an adapter a task": Method(fresh=True),
    "EWC, strength 10,000, one adapter": Method(lambda: ElasticWeightConsolidation(10_000.0)),
    "SFA, 0.2 every 25 %, an adapter a task": Method(
        lambda: SequentialFinetuningAveraging(0.25, 0.2), fresh=True
    ),
    "RECALL, the paper's rule, an adapter a task": Method(
        lambda: RecallCallback(every=1.0, rule="rbf"), fresh=True
    ),
    "RECALL, default, one adapter": Method(RecallCallback),
    "RECALL, new_inputs=8, scale=0.02, an adapter a task": Method(
        lambda: RecallCallback(
            rule=KfacImportance(scale=0.02), end_rule=KfacSubspace(new_inputs=8.0)
        ),
        fresh=True,
    ),
}
KINDS = {"colour": "couleur", "number": "numéro", "place": "lieu"}
VALUES = {
    "colour": [("red", "rouge"), ("blue", "bleu"), ("green", "vert"), ("black", "noir")],
    "number": [(str(number), str(number)) for number in range(1, 99)],
    "place": [("hall", "salon"), ("attic", "grenier"), ("cellar", "cave"), ("yard", "cour")],
}


def rows(domain: str, draw: random.Random) -> Iterator[dict[str, str]]:
    """Make rows of a domain without end."""
    while True:
        said = {kind: draw.choice(VALUES[kind]) for kind in draw.sample(sorted(KINDS), 3)}
        asked = draw.choice(sorted(said))
        english, french = said[asked]
        if domain == "telegrams":
            text = " STOP ".join(
                f"{kind.upper()} {value[0].upper()}" for kind, value in said.items()
            )
            yield {"text": f"{text} STOP", "question": asked.upper(), "answer": english.upper()}
        elif domain == "french":
            told = (f"{KINDS[kind].capitalize()} : {value[1]}." for kind, value in said.items())
            yield {"text": " ".join(told), "question": f"Quel {KINDS[asked]} ?", "answer": french}
        else:
            fields = ", ".join(f'"{kind}": "{value[0]}"' for kind, value in said.items())
            yield {"text": f"{{{fields}}}", "question": f'["{asked}"]', "answer": f'"{english}"'}


DOMAINS = ("telegrams", "french", "records")


def stream(folder: Path, seed: int) -> InstructionStream:
    """Write the rows of a seed, and make their stream; no held-out row is trained on."""
    tasks = []
    for domain in DOMAINS:
        made, distinct = rows(domain, random.Random(f"{domain} {seed}")), dict[str, None]()
        while len(distinct) < TRAIN + VALIDATION:
            distinct[json.dumps(next(made), ensure_ascii=False)] = None
        lines = list(distinct)
        files = [str(folder / f"{domain}_{split}.jsonl") for split in ("train", "val")]
        Path(files[0]).write_text("\n".join(lines[VALIDATION:]), encoding="utf-8")
        Path(files[1]).write_text("\n".join(lines[:VALIDATION]), encoding="utf-8")
        tasks.append(InstructionTask(domain, ASK, files[0], files[1]))
    return InstructionStream(
        tasks,
        str(MODEL),
        max_length=192,
        chat=True,
        general=InstructionTask("general", ASK, validation=str(GENERAL)),
        epochs_per_task=8,
        batch_size=8,
        eval_batch_size=64,
        seed=seed,
    )


def run(method: str, seed: int) -> dict[str, float]:
    """Train by one method; return the metrics and what is left of the general ability."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    seed_everything(seed, verbose=False)
    chosen, monitor = METHODS[method], ForgettingMonitor("val/score")
    callbacks = [*([chosen.callback()] if chosen.callback else []), monitor]
    with tempfile.TemporaryDirectory() as folder:
        data = stream(Path(folder), seed)
        module = CausalLMModule(
            str(MODEL),
            lambda parameters: torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.0),
            dtype="float32",
            schedule="task",
            lora=LoraSettings(
                r=8, alpha=16, target_modules="all-linear", fresh_per_task=chosen.fresh
            ),
        )
        trainer = Trainer(
            max_epochs=data.total_epochs,
            reload_dataloaders_every_n_epochs=1,
            check_val_every_n_epoch=8,
            callbacks=callbacks,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.validate(module, data, verbose=False)
        trainer.fit(module, datamodule=data)
    kept = {"general": monitor.record.probes[-1][0]}
    return monitor.summary() | kept | {"general before": monitor.record.probes_before[0]}  # type: ignore[index]


COLUMNS = {
    "forgetting": "forgetting ↓",
    "plasticity": "plasticity ↑",
    "average": "average of the three ↑",
    "general": "general ability left ↑",
}


def scores(results: dict[tuple[str, int], dict[str, float]]) -> str:
    """Mean ± standard deviation over seeds, a row a method."""
    rows = []
    for method in METHODS:
        own = [found for (name, _), found in results.items() if name == method]
        values = [[found[column] for found in own] for column in COLUMNS]
        cells = [f"{statistics.mean(v):.3f} ± {statistics.stdev(v):.3f}" for v in values if v[1:]]
        rows.append([method, *(cells or [f"{v[0]:.3f}" for v in values])])
    return table(["method", *COLUMNS.values()], rows)


def listed(seeds: range) -> str:
    """Name seeds in a sentence."""
    return ", ".join(map(str, seeds))


def main() -> None:
    """Run every method on every seed."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--choose", action="store_true", help="print, on the other seeds")
    given = parser.parse_args()
    seeds = CHOSEN_ON if given.choose else REPORTED
    jobs = [(method, seed) for seed in seeds for method in METHODS]
    results = {}
    with ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn")) as pool:
        for job, found in zip(jobs, pool.map(run, *zip(*jobs, strict=True)), strict=True):
            results[job] = found
            print(job, {k: round(v, 3) for k, v in found.items()}, file=sys.stderr, flush=True)
    if given.choose:
        print(scores(results))
        return
    before = results[jobs[0]]["general before"]
    write_page(
        "lora_domains",
        f"""LoRA (r = 8, all linear layers) through three domains of instructions, on a model of
0.4 M parameters that was trained to find in a text what is asked for, which it does (exact match
{before:.2f} on held-out questions, the general ability below). The domains ask for the same in
other forms: telegrams, French, records of code; {TRAIN} rows each, {VALIDATION} held out. One
adapter goes through all tasks, or each task's adapter is added to the base at the task's end.
Scores are exact match of what the model writes: mean ± standard deviation over the seeds
{listed(REPORTED)}. Forgetting is measured from the best score since trained. The settings of EWC,
SFA and RECALL's last row were chosen on seed {listed(CHOSEN_ON)}, of three to seven tried each.
{machine()}.""",
        scores(results),
    )


if __name__ == "__main__":
    main()
