"""The protocol of the evidence: streams, methods, trials and seeds, fixed before any run."""

from collections.abc import Mapping
from dataclasses import dataclass

TUNING_SEEDS = (100,)
REPORT_SEEDS = (0, 1, 2, 3, 4)
PLASTICITY_TOLERANCE = 0.02
"""Relative: a baseline counts as plastic as RECALL if it is no further below than this."""
MATCHED_ROWS = 3
"""How many baselines run once more with RECALL's plasticity: those that forget least there."""


@dataclass(frozen=True)
class Stream:
    """A stream that methods are compared on.

    Attributes:
        name: Of its recipe in ``recipes/``.
        title: What it is.
        domain_incremental: Whether forgetting is compared at matched plasticity there.
        left_out: Methods that are not run there, to save time or as they cannot.
    """

    name: str
    title: str
    domain_incremental: bool = True
    left_out: tuple[str, ...] = ()


_SLOW = ("low_lr", "hft", "adaptive")
_FOR_ADAPTERS = ("slao",)
_FOR_SOME = ("self_replay", *_FOR_ADAPTERS)  # language models, or adapters
STREAMS = (
    Stream(
        "digits_permuted",
        "five permutations of digits' pixels, MLP",
        left_out=_FOR_SOME,
    ),
    Stream(
        "digits_split",
        "five pairs of digits, class-incremental, MLP",
        domain_incremental=False,
        left_out=_FOR_SOME,
    ),
    Stream(
        "stdlib_text",
        "four text domains, tiny Llama; the first is pre-training",
        left_out=(*_SLOW, *_FOR_ADAPTERS),
    ),
    Stream(
        "digits_rotated",
        "five rotations of digits, tiny ViT; the first is pre-training",
        left_out=(*_SLOW, *_FOR_SOME),
    ),
)


@dataclass(frozen=True)
class Trials:
    """What a method is tuned over: one argument, with the same number of values for every method.

    Attributes:
        argument: Its name in the method's group.
        values: Four values, in units that its docstring names.
        given: Arguments that it needs beside it.
    """

    argument: str
    values: tuple[float, ...]
    given: str = ""


QUICK_STREAMS = ("digits_permuted",)
"""What the quick form runs, a few batches each and with the first rows of each ablation."""

TUNED = {
    "low_lr": Trials("factor", (0.03, 0.1, 0.3, 0.6)),
    "l2": Trials("strength", (0.01, 0.1, 1.0, 10.0)),
    "sfa": Trials("strength", (0.1, 0.2, 0.4, 0.6)),
    "wise_ft": Trials("strength", (0.2, 0.4, 0.6, 0.8)),
    "ewc": Trials("strength", (30.0, 300.0, 3000.0, 30000.0)),
    "ewc_lora": Trials("strength", (3.0, 10.0, 30.0, 100.0)),
    "kfac_penalty": Trials("strength", (3.0, 10.0, 30.0, 100.0)),
    "lwf": Trials("strength", (0.3, 1.0, 3.0, 10.0)),
    "self_replay": Trials("strength", (0.03, 0.1, 0.3, 1.0)),
    "finch": Trials("factor", (0.03, 0.1, 0.3, 1.0)),
    "slao": Trials("power", (0.25, 0.5, 1.0, 2.0)),
    "osf": Trials("fraction", (0.25, 0.5, 0.75, 0.9)),
    "hft": Trials("fraction", (0.3, 0.5, 0.8, 0.95)),
    "adaptive": Trials("strength", (0.1, 0.2, 0.4, 0.6)),
    "recall_paper": Trials("temperature", (0.1, 0.3, 1.0, 3.0)),
    "recall_paper_loop": Trials("temperature", (0.1, 0.3, 1.0, 3.0)),
    "recall": Trials(
        "end_rule.new_inputs", (0.25, 0.5, 1.0, 2.0), given="--recall.end_rule KfacSubspace"
    ),
}
UNTUNED = ("finetune", "joint", "replay")
"""What has nothing to tune; replay stores 100 samples of each task."""

REPLAY = "--replay.per_task 100"
COMPARED = (
    "sfa",
    "wise_ft",
    "ewc",
    "ewc_lora",
    "kfac_penalty",
    "l2",
    "lwf",
    "self_replay",
    "finch",
    "slao",
    "osf",
    "recall_paper",
)
"""The baselines that RECALL is measured against at matched plasticity."""

ORDER = (
    "finetune",
    "joint",
    "replay",
    "low_lr",
    "l2",
    "ewc",
    "ewc_lora",
    "kfac_penalty",
    "lwf",
    "self_replay",
    "finch",
    "slao",
    "osf",
    "hft",
    "sfa",
    "wise_ft",
    "adaptive",
    "recall_paper",
    "recall_paper_loop",
    "recall",
)

_LOOP = "recall_paper_loop:"
_RECALL = "recall:"
_PLAIN = f"{_RECALL}--recall.rule importance --recall.end_rule subspace"
_PAPER = f"{_RECALL}--recall.every 0.25 --recall.rule Rbf"
_IN_THE_LOOP = {
    "none": f"{_RECALL}--recall.every 1.0",
    "uniform, strength 0.1": (
        f"{_RECALL}--recall.rule Uniform --recall.rule.weight 0.1 --recall.end_rule kfac_subspace"
    ),
    "rbf, strength 0.1": (
        f"{_RECALL}--recall.rule Rbf --recall.rule.strength 0.1 --recall.end_rule kfac_subspace"
    ),
    "importance": f"{_RECALL}--recall.rule importance --recall.end_rule kfac_subspace",
    "kfac_importance": _RECALL,
    "rbf*kfac_importance": (
        f"{_RECALL}--recall.rule rbf*kfac_importance --recall.end_rule kfac_subspace"
    ),
}
_AT_THE_END = {
    "kfac_subspace": _RECALL,
    "subspace": f"{_RECALL}--recall.end_rule subspace",
    "kfac_importance, as in the loop": f"{_RECALL}--recall.end_rule kfac_importance",
    "rbf": f"{_RECALL}--recall.end_rule rbf",
}
_LOOP_TITLE = "Rule in the loop, kfac_subspace at the end"
_END_TITLE = "Rule at the end, kfac_importance in the loop"
_DETAILS = {
    "Interval between merges": {
        f"every {every}": f"{_RECALL}--recall.every {every}"
        for every in (1.0, 0.25, 0.1, 0.05, 0.02)
    },
    "Strength in the loop (λ of kfac_importance)": {
        str(value): f"{_RECALL}--recall.rule KfacImportance --recall.rule.scale {value}"
        for value in (0.02, 0.1, 0.5)
    },
    "What new inputs count (λ of kfac_subspace)": {
        str(value): f"{_RECALL}--recall.end_rule KfacSubspace --recall.end_rule.new_inputs {value}"
        for value in (0.25, 0.5, 1.0, 2.0, 4.0)
    },
    "Last merge": {
        "on": _RECALL,
        "off": f"{_RECALL}--recall.end_rule never",
        "the paper's loop, on": _PAPER,
        "the paper's loop, off": f"{_PAPER} --recall.end_rule never",
    },
    "Optimizer state after a merge": {
        "kept": _RECALL,
        "reset": f"{_RECALL}--recall.optimizer_state reset",
    },
    "Source of importance (rules importance and subspace)": {
        source: f"{_PLAIN} --recall.importance.source {source}"
        for source in ("optimizer", "gradients")
    },
    "Batches that moments are measured on": {
        str(batches): f"{_RECALL}--recall.moments.batches {batches}" for batches in (2, 8, 32)
    },
    "Rank of moments (rules importance and subspace)": {
        "full": _PLAIN,
        **{
            f"rank {rank} plus diagonal": (
                f"{_PLAIN} --recall.moments.width 8 --recall.moments.rank {rank}"
            )
            for rank in (4, 16, 64)
        },
    },
    "Temperature (the paper's rule in the loop)": {
        f"τ {tau}": f"{_PAPER} --recall.rule.temperature {tau}" for tau in (0.1, 0.3, 1.0, 3.0)
    },
    "Width of the kernel (the paper's rule in the loop)": {
        f"σ {sigma}": f"{_PAPER} --recall.rule.sigma {sigma}" for sigma in ("median", 0.3, 1.0, 3.0)
    },
    "Number of typical samples (the paper's rule in the loop)": {
        str(count): f"{_PAPER} --recall.samples.typical {count}" for count in (4, 32, 128)
    },
    "Choice of typical samples (the paper's rule in the loop)": {
        sampling: f"{_PAPER} --recall.samples.sampling {sampling}"
        for sampling in ("k-means", "random")
    },
    "Which layers (the paper's rule in the loop)": {
        "all": _PAPER,
        **{
            f"{name} only": f'{_PAPER} --recall.rule.strength \'{{"*{layer}*": 1.0, "*": 0.0}}\''
            for name, layer in (("first", "hidden_1"), ("second", "hidden_2"), ("output", "output"))
        },
    },
}


@dataclass(frozen=True)
class Ablations:
    """Tables that are run together.

    Attributes:
        stream: Of which recipe.
        stage: Their folder.
        seeds: Tuning seeds.
        tables: By title what each row runs; rows of one setting are run once.
    """

    stream: str
    stage: str
    seeds: tuple[int, ...]
    tables: Mapping[str, Mapping[str, str]]


ABLATIONS = (
    Ablations(
        "digits_permuted",
        "rules",
        (100, 101, 102),
        {_LOOP_TITLE: _IN_THE_LOOP, _END_TITLE: _AT_THE_END},
    ),
    Ablations("digits_permuted", "details", (100,), _DETAILS),
    Ablations(
        "stdlib_text",
        "rules",
        (100,),
        {
            _LOOP_TITLE: {
                name: _IN_THE_LOOP[name]
                for name in (
                    "none",
                    "rbf, strength 0.1",
                    "kfac_importance",
                    "rbf*kfac_importance",
                )
            },
            "Source of old moments": {
                "task": _RECALL,
                "generated": f"{_RECALL}--recall.moments.source generated",
            },
        },
    ),
    Ablations(
        "digits_rotated",
        "rules",
        (100, 101, 102),
        {
            _LOOP_TITLE: {
                name: _IN_THE_LOOP[name]
                for name in (
                    "none",
                    "rbf, strength 0.1",
                    "importance",
                    "kfac_importance",
                    "rbf*kfac_importance",
                )
            },
            _END_TITLE: {name: _AT_THE_END[name] for name in ("kfac_subspace", "subspace")},
        },
    ),
)

MANY_TASKS = {"digits_permuted": "MLP", "digits_rotated": "transformer"}
MANY_TASKS_EPOCHS = {"digits_permuted": "8", "digits_rotated": "[9,3,3,3,3,3,3,3,3,3]"}
MANY_TASKS_METHODS = ("finetune", "joint", "replay", "ewc", "recall")
MANY_TASKS_SEEDS = {"digits_permuted": (0, 1), "digits_rotated": (0,)}
