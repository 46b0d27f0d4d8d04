"""What we use of other packages without their leave: where it is, and that nothing else is."""

import argparse
import ast
import inspect
import os
from collections import defaultdict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import jsonargparse
import pytest
import torch
import torchmetrics
import transformers
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

import recall_lightning

PACKAGE = Path(recall_lightning.__file__).parent
RESUMING = "callbacks/_trainer/resuming.py"
PARSER = "cli/parser.py"
METRICS = ("callbacks/_trainer/metrics_apart.py", "callbacks/_trainer/carried_metrics.py")


def trainer():
    return Trainer(logger=False, accelerator="cpu")


@dataclass(frozen=True)
class Private:
    """An attribute, what has it, and which files of ours use it."""

    name: str
    owner: str
    found: Callable[[], object]
    files: tuple[str, ...]


def of(owner, get, name, *files):
    return Private(name, owner, lambda: hasattr(get(), name), files)


def class_help():
    """jsonargparse makes the parser whose help ``--x.help`` prints, and marks it."""
    source = inspect.getsource(jsonargparse._actions._ActionHelpClassPath.print_help)
    return SimpleNamespace(_inner_parser=True) if "subparser._inner_parser = True" in source else 0


def fused_adam():
    return torch.optim.Adam([torch.zeros(1, requires_grad=True)], fused=True)


USED = [
    of("FitLoop", lambda: trainer().fit_loop, "_data_fetcher", RESUMING),
    of("FitLoop", lambda: trainer().fit_loop, "_should_accumulate", RESUMING,
       "models/step_mean.py"),
    of("FitLoop", lambda: trainer().fit_loop, "_should_reload_train_dl", RESUMING),
    of("training epoch loop", lambda: trainer().fit_loop.epoch_loop, "_should_check_val_fx",
       RESUMING),
    of("validation loop", lambda: trainer().fit_loop.epoch_loop.val_loop, "_restart_stage",
       RESUMING),
    Private("_batches_that_stepped", "training epoch loop's state_dict()",
            lambda: "_batches_that_stepped" in trainer().fit_loop.epoch_loop.state_dict()
            ["state_dict"], (RESUMING,)),
    of("Trainer", trainer, "_val_check_time_interval", RESUMING),
    Private("_accelerator_connector", "Trainer, with use_distributed_sampler,",
            lambda: trainer()._accelerator_connector.use_distributed_sampler in (True, False),
            ("data/stream.py",)),
    of("DDPStrategy", DDPStrategy, "_start_method", "callbacks/_trainer/strategies.py"),
    of("LightningModule", LightningModule, "_on_before_batch_transfer",
       "recall/statistics/samples.py"),
    of("LightningModule", LightningModule, "_trainer", "models/causal_lm.py",
       "models/step_mean.py", "callbacks/_trainer/gradients.py"),
    of("LightningCLI", lambda: LightningCLI, "_get", "cli/fit.py"),
    of("LightningCLI", lambda: LightningCLI, "_add_configure_optimizers_method_to_model",
       "cli/fit.py"),
    of("LightningCLI", lambda: LightningCLI, "_instantiate_trainer", "cli/fit.py",
       "compare/worker.py"),
    of("torch.nn.modules.batchnorm", lambda: nn.modules.batchnorm, "_NormBase",
       "measuring/blocks.py", "measuring/hidden_states.py", "recall/buffers.py",
       "weights/naming.py"),
    of("torch.nn.modules.conv", lambda: nn.modules.conv, "_ConvNd", "measuring/curvature.py",
       "measuring/hidden_states.py"),
    of("torch.nn.Module", nn.Module, "_modules", "measuring/blocks.py"),
    of("torch.nn.Conv2d", lambda: nn.Conv2d(1, 1, 1), "_reversed_padding_repeated_twice",
       "measuring/patches.py"),
    of("torch.nn.ConvTranspose2d", lambda: nn.ConvTranspose2d(1, 1, 1), "_output_padding",
       "measuring/patches.py"),
    of("torch.compile's module", lambda: torch.compile(nn.Identity()), "_orig_mod",
       "measuring/forward.py"),
    of("torch's fused optimizer", fused_adam, "_step_supports_amp_scaling",
       "callbacks/_trainer/gradients.py"),
    of("torchmetrics.Metric", torchmetrics.MeanMetric, "_computed", *METRICS),
    of("torchmetrics.Metric", torchmetrics.MeanMetric, "_update_count", *METRICS),
    of("torchmetrics.Metric", torchmetrics.MeanMetric, "_reductions", METRICS[0]),
    of("Trainer", trainer, "_results", METRICS[0], "callbacks/_trainer/monitored_metric.py"),
    of("torch.nn.Module", nn.Module, "_compiled_call_impl", "measuring/forward.py"),
    of("torch.nn.Module", nn.Module, "_parameters", "measuring/linear_maps.py",
       "measuring/set_aside.py"),
    of("torch.nn.Module", nn.Module, "_buffers", "measuring/set_aside.py"),
    of("a tensor", lambda: torch.ones(1), "_version", "measuring/input_moments.py",
       "measuring/set_aside.py", "recall/compared_predictions.py"),
    of("transformers' configurations", transformers.LlamaConfig, "_name_or_path",
       "recall/statistics/prior.py"),
    of("transformers' configurations", transformers.LlamaConfig, "_attn_implementation",
       "models/causal_lm.py"),
    of("a power's step in torch's graph", lambda: (torch.ones(1, requires_grad=True) ** 2).grad_fn,
       "_saved_exponent", "measuring/predictions/loss.py"),
    of("a named tuple", lambda: namedtuple("Pair", "a b"), "_fields", "measuring/batches.py"),
    of("ArgumentParser", argparse.ArgumentParser, "_actions", "cli/merge.py", PARSER),
    of("ArgumentParser", argparse.ArgumentParser, "_action_groups", PARSER),
    of("a group of arguments", lambda: argparse.ArgumentParser()._action_groups[0],
       "_group_actions", PARSER),
    of("ArgumentParser", argparse.ArgumentParser, "_option_string_actions", "cli/arguments.py"),
    of("argparse", lambda: argparse, "_HelpAction", PARSER),
    of("jsonargparse's parser of a class's help", class_help, "_inner_parser", PARSER),
    of("os", lambda: os, "_exit", "compare/worker.py"),
]  # fmt: skip


def moved(used):
    if used.found():
        return None
    return f"{used.owner} no longer has {used.name}, which {', '.join(used.files)} use"


@pytest.mark.parametrize("used", USED, ids=lambda used: used.name)
def test_it_is_where_we_expect_it(used):
    assert moved(used) is None


def test_what_moved_is_named_with_who_uses_it():
    gone = of("Trainer", trainer, "_gone", "data/stream.py", "cli/fit.py")
    assert moved(gone) == "Trainer no longer has _gone, which data/stream.py, cli/fit.py use"


def test_nothing_else_is_used():
    sources = {str(p.relative_to(PACKAGE)): p.read_text() for p in PACKAGE.rglob("*.py")}
    uses = {(name, file) for file, names in foreign(sources).items() for name in names}
    listed = {(used.name, file) for used in USED for file in used.files}
    unlisted = [f"{file} uses {name}" for name, file in sorted(uses - listed)]
    assert not unlisted, f"name these in USED, with what has them: {unlisted}"
    # of an override the scan sees a definition of ours
    stale = [(n, f) for n, f in listed - uses if n not in sources.get(f, "")]
    assert not stale, f"take these out of USED, they are used no more: {sorted(stale)}"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("trainer._data_fetcher", {"_data_fetcher"}),
        ("getattr(trainer, '_data_fetcher', None)", {"_data_fetcher"}),
        ("state['a']['_data_fetcher']", {"_data_fetcher"}),
        ("from torch.nn.modules.conv import _ConvNd", {"_ConvNd"}),
        ("class A:\n def f(self): return self._trainer", {"_trainer"}),
        ("class A:\n def f(self): self._mine = 1; return self._mine", set()),
        ("class A:\n def _f(self): return 1\n def g(self, other): return other._f()", set()),
        ("from recall_lightning.callbacks._trainer import loggers; a.__dict__", set()),
    ],
)
def test_the_scan_sees_uses_and_not_what_is_our_own(source, found):
    assert foreign({"file.py": source})["file.py"] == found


def foreign(sources):
    """Return file to the private attributes it uses that no class of ours defines.

    On ``self`` and ``super()`` any class of ours may define it, on other objects one of the file.
    """
    trees = {file: ast.parse(source) for file, source in sources.items()}
    own = {file: _defined(tree) for file, tree in trees.items()}
    anywhere = set().union(*own.values())
    found = defaultdict(set)
    for file, tree in trees.items():
        for node in ast.walk(tree):
            for name, inherited in _private_uses(node):
                if name not in (anywhere if inherited else own[file]):
                    found[file].add(name)
    return found


def _defined(tree):
    names = set()
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                names.add(name)
            case ast.ClassDef(name=own, body=body):
                names.add(own)  # annotations name it as a string
                for each in body:
                    match each:
                        case ast.FunctionDef(name=name):
                            names.add(name)
                        case ast.AnnAssign(target=ast.Name(id=name)):
                            names.add(name)
                        case ast.Assign(targets=targets):
                            names |= {t.id for t in targets if isinstance(t, ast.Name)}
    return names


def _private_uses(node):
    """Yield the private names that a node uses, and whether of ``self``."""
    uses = []
    match node:
        case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name):
            uses = [(name, True)]
        case ast.Attribute(value=ast.Call(func=ast.Name(id="super")), attr=name):
            uses = [(name, True)]
        case ast.Attribute(attr=name):
            uses = [(name, False)]
        case ast.Call(func=ast.Name(id="getattr"), args=[_, ast.Constant(value=str(name)), *_]):
            uses = [(name, False)]
        case ast.Subscript(slice=ast.Constant(value=str(name))):
            uses = [(name, False)]
        case ast.ImportFrom(module=module, names=names) if "recall_lightning" not in str(module):
            uses = [(alias.name, False) for alias in names]
    return [(n, s) for n, s in uses if n.startswith("_") and n.strip("_") and n[:2] != "__"]
