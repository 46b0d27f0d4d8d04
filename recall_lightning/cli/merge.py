"""The command ``recall-lightning merge``: models on disk in, a model folder out.

It is one of argparse, not of jsonargparse: there types of arguments are objects, and those of merge
settings and methods come with torch, which takes longer to import than ``--help`` to read. What a
value must be is checked once, by the settings, for scripts as for this command.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recall_lightning.cli.arguments import RaisingParser, refuse
from recall_lightning.cli.merge_options import Option, method_names, methods_with, options

if TYPE_CHECKING:
    from recall_lightning.merging.folders.settings import MergeReport, MergeSettings

_PROGRAM = "recall-lightning merge"
_BRIEF = 40  # blocks that the terminal shows


def merge_parser() -> ArgumentParser:
    """Build the command's parser; what is not given is None, for a YAML file to say.

    Example:
        >>> merge_parser().parse_args(["a", "b", "--out", "c", "--density", "0.2"]).density
        0.2
    """
    parser = RaisingParser(
        hint="several numbers are joined by commas, as in --weights 0.6,0.4",
        prog=_PROGRAM,
        usage=f"{_PROGRAM} MODEL MODEL... --out DIR [--method METHOD] [options]",
        description="Merge models of one architecture, file to file. Weights are read lazily, and "
        "the output folder appears whole or not at all.",
    )
    add = parser.add_argument_group("what is merged, and how").add_argument
    add(
        "models",
        nargs="*",
        metavar="MODEL",
        help="Hugging Face folders, PEFT adapter folders, .safetensors files or Lightning .ckpt "
        "files; for recall the newest last.",
    )
    add("--config", metavar="YAML", help="File with any of these; the command line goes first.")
    add("--out", metavar="DIR", help="Folder to make; it must not exist.")
    add("--method", help=f"One of {', '.join(method_names())} (linear).")
    add(
        "--weights",
        type=_value,
        help="One a model, in their order: 0.6,0.4; in YAML each may be a number, a list that is "
        "interpolated over depth, or a mapping of name patterns to either.",
    )
    add(
        "--base",
        help=f"What all come from, needed for {', '.join(methods_with('base'))}; for adapters, "
        "what they adapt.",
    )
    add("--normalize", type=_value, help="For linear: divide weights by their sum (true).")
    add = parser.add_argument_group("for methods with numbers of their own").add_argument
    for name, option in options().items():
        add(f"--{name.replace('_', '-')}", type=_value, help=_help_of(option))
    add = parser.add_argument_group("for methods that measure").add_argument
    add(
        "--statistics",
        nargs="+",
        metavar="FILE",
        help="For fisher and regmean: one safetensors file a model, under the weights' names.",
    )
    add("--probe", metavar="FILE", help="For recall: JSON lines with a 'text', or plain lines.")
    add("--measure", help="For recall: rbf, cka or cosine (rbf).")
    add("--typical-samples", type=int, help="For recall: how many to measure on (32).")
    add("--pool-size", type=int, help="For recall: how many to choose them from (256).")
    add("--max-length", type=int, help="For recall: tokens of a text at most (512).")
    add = parser.add_argument_group("what is written, and where it is computed").add_argument
    add(
        "--donor",
        help="Folder to copy config and tokenizer from (the first Hugging Face folder).",
    )
    add("--rank", type=_value, help="Of merged adapters: a number, or 'sum', which is exact.")
    add("--dtype", help="To compute in: float32 or float64 (float32).")
    add("--out-dtype", help="To write, such as bfloat16 (the first model's).")
    add("--shard-size", type=_value, help="Most bytes of a weight file (5GB).")
    add("--device", help="Where to compute (cpu).")
    add(
        "--tokenizer",
        help="union: the tokens of all models, their rows merged token by token; otherwise all "
        "must have one tokenizer.",
    )
    add(
        "--allow-different-configs",
        action="store_const",
        const=True,
        help="Merge models of the same shapes whose configs or tokenizers differ, such as in "
        "heads, rotary embeddings or which id is which token; the donor's are written.",
    )
    return parser


def main(args: Sequence[str]) -> None:
    """Run the command; whatever is wrong is one line on stderr and exit code 2 (130 for Ctrl-C).

    Args:
        args: The command line after ``merge``.
    """
    try:
        settings = _settings(_given(args))
        report = _merged(settings)
    except ValueError as error:
        refuse(_PROGRAM, error)
    except KeyboardInterrupt as error:
        print(f"{_PROGRAM}: interrupted, nothing was written", file=sys.stderr)
        raise SystemExit(130) from error
    _show(settings, report)


def _given(args: Sequence[str]) -> dict[str, Any]:
    """Read the command line on top of the YAML file that it names."""
    parser = merge_parser()
    parsed = vars(parser.parse_args(args))
    given = {name: value for name, value in parsed.items() if value is not None and value != []}
    file = given.pop("config", None)
    if file is not None:
        known = [action.dest for action in parser._actions if action.dest not in ("help", "config")]
        given = _read_config(Path(file), known) | given
    weights = given.get("weights")
    if isinstance(weights, str | int | float):
        given["weights"] = _numbers(str(weights))
    return given


def _settings(given: dict[str, Any]) -> MergeSettings:
    from recall_lightning.merging.folders.settings import MergeSettings

    return MergeSettings.from_flat(given)


def _read_config(file: Path, known: Sequence[str]) -> dict[str, Any]:
    import yaml

    from recall_lightning.cli.yaml_values import read_yaml

    try:
        content = read_yaml(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{file} does not exist: name a YAML file") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{file} cannot be read as YAML ({error}): mend it") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds no settings: write them as 'name: value'")
    for name in content:
        if name not in known:
            raise ValueError(f"{file} has the unknown setting {name!r}: use {', '.join(known)}")
    return content


def _help_of(option: Option) -> str:
    """Say which methods have an option, what it is, and its default."""
    also = ", recall" if option.name == "seed" else ""  # whose k-means has one too
    shown = " (required)" if option.required else f" ({option.default})"
    return f"For {', '.join(option.methods)}{also}: {option.text}{shown}".replace("%", "%%")


def _value(text: str) -> Any:
    """Read a number, a truth value, or a list or mapping as in YAML; all else stays text."""
    import yaml

    from recall_lightning.cli.yaml_values import read_yaml

    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    try:
        return read_yaml(text)
    except yaml.YAMLError:
        return text


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(
            f"weights={text!r} must be numbers with commas between, such as 0.6,0.4"
        ) from error


def _merged(settings: MergeSettings) -> MergeReport:
    """Merge, with a bar that shows how it goes.

    Raises:
        ValueError: If anything is wrong, or the memory does not suffice.
    """
    from rich import progress as rich
    from rich.console import Console

    from recall_lightning.merging.folders.merge import merge_files

    columns = (
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.DownloadColumn(),
        rich.TransferSpeedColumn(),
        rich.TimeRemainingColumn(),
    )
    progress = rich.Progress(*columns, console=Console(stderr=True))
    task = progress.add_task("merging", total=None)

    def show(done: int, total: int) -> None:
        progress.start()  # only now: everything was checked, and models have been measured
        progress.update(task, advance=done, total=total)

    try:
        return merge_files(settings, show)
    except (MemoryError, RuntimeError) as error:
        if not _is_of_memory(error):
            raise
        raise ValueError(
            "the memory does not suffice: use another --device, or method linear"
        ) from error
    finally:
        if progress.live.is_started:
            progress.stop()


def _is_of_memory(error: Exception) -> bool:
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        "allocate memory" in str(error)  # how torch says it of the CPU's
    )


def _show(settings: MergeSettings, report: MergeReport) -> None:
    from rich.console import Console
    from rich.filesize import decimal
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    names = [f"{i}: {Path(path).name}" for i, path in enumerate(settings.models, start=1)]
    rows = [
        [f"{given[block.name]:.4f}" if block.name in given else "–" for given in report.weights]
        for block in report.blocks
    ]
    table = Table("block", *map(escape, names), title=f"weights by {settings.method}")
    for column in table.columns[1:]:
        column.justify = "right"
    if all(row == rows[0] for row in rows):
        table.add_row(f"all {len(rows)}", *rows[0])
    else:
        for block, row in list(zip(report.blocks, rows, strict=True))[:_BRIEF]:
            table.add_row(escape(block.name), *row)
    console.print(table)
    if table.row_count == _BRIEF < len(rows):
        console.print(f"and {len(rows) - _BRIEF} more blocks, in coefficients.json")
    worst = max(report.discarded_energy.values(), default=0.0)
    if worst > 0:
        console.print(f"the rank could not hold up to {worst:.2%} of a module's ‖ΔW‖²")
    if not report.loads:
        console.print("no config.json came along: name a Hugging Face folder as --donor for one")
    speed = decimal(int(report.nbytes / report.seconds))
    size = f"{decimal(report.nbytes)} in {report.seconds:.1f} s ({speed}/s)"
    console.print(f"{settings.out}: {size}", markup=False, soft_wrap=True)
