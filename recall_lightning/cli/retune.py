"""The command ``recall-lightning retune``: another balance of old and new, after training."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recall_lightning.cli.arguments import RaisingParser, refuse

_PROGRAM = "recall-lightning retune"


def retune_parser() -> ArgumentParser:
    """Build the command's parser.

    Example:
        >>> retune_parser().parse_args(["a.ckpt", "--plasticity", "0.9", "--out", "b.ckpt"]).out
        'b.ckpt'
    """
    parser = RaisingParser(
        prog=_PROGRAM,
        description="Make the last merge of a checkpoint from a task's end again, so that it "
        "leaves another share of what the task has gained: in seconds, without data. Without "
        "--plasticity, show what merges were tried.",
    )
    parser.add_argument(
        "checkpoint",
        metavar="CKPT",
        help="One from a task's end, of a run whose RecallCallback had keep_live (as it has by "
        "default with an adapter).",
    )
    parser.add_argument(
        "--plasticity",
        type=float,
        nargs="+",
        metavar="SHARE",
        help="The share of the gain to leave, between 0 and 1; several make as many checkpoints.",
    )
    parser.add_argument(
        "--out",
        metavar="PATH",
        help="The checkpoint to make; of several shares the folder to make them in, as "
        "NAME-plasticity=SHARE.ckpt. It must not exist.",
    )
    return parser


def main(args: Sequence[str]) -> None:
    """Run the command; whatever is wrong is one line on stderr and exit code 2.

    Args:
        args: The command line after ``retune``.
    """
    try:
        given = retune_parser().parse_args(args)
        _run(Path(given.checkpoint), given.plasticity or [], given.out)
    except (ValueError, OSError) as error:
        refuse(_PROGRAM, error)


def _run(path: Path, shares: Sequence[float], out: str | None) -> None:
    from recall_lightning.recall.arguments import check_share
    from recall_lightning.recall.last_merge import told_out_of_reach
    from recall_lightning.recall.retuning import last_front, retuned, state_in  # slow to import
    from recall_lightning.weights.atomic import refuse_existing
    from recall_lightning.weights.lightning_checkpoint import read_checkpoint, write_checkpoint

    if bool(shares) != (out is not None):
        raise ValueError("--plasticity and --out belong together: give both, or neither")
    for share in shares:
        check_share(share)
    targets = [] if out is None else _targets(path, shares, Path(out))
    for target in [] if out is None else {Path(out), *targets}:
        refuse_existing(target)
    checkpoint = read_checkpoint(path)
    key = state_in(checkpoint)
    if not shares:
        _show(last_front(checkpoint["callbacks"][key]))
    for share, target in zip(shares, targets, strict=True):
        made = retuned(checkpoint, share, path.parent)
        write_checkpoint(made, target)
        record = made["callbacks"][key]["history"][-1]
        left = told_out_of_reach(record, share) or f"{100 * share:.4g} % to be left"
        print(f"{target}: {left}, the old counts {record['keep']:.3g} times")
    if shares and any("record" in state for state in checkpoint["callbacks"].values()):
        print(
            "not measured yet, the scores in it are from before: "
            f"recall-lightning validate -c RECIPE --ckpt_path={targets[-1]} does it"
        )


def _targets(path: Path, shares: Sequence[float], out: Path) -> list[Path]:
    if len(shares) == 1:
        return [out]
    names = [f"{path.stem}-plasticity={share:g}.ckpt" for share in shares]
    if len(set(names)) < len(names):
        raise ValueError("--plasticity has a share twice: give each once")
    return [out / name for name in names]


def _show(record: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from recall_lightning.recall.records import front_rows

    table = Table(
        "the old counts",
        "of the gain left, %",
        "loss",
        "nats from the snapshot",
        title=f"merges tried at step {record['step']}",
    )
    for column in table.columns:
        column.justify = "right"
    *tried, merged = front_rows(record)
    for row in tried:
        table.add_row(*_cells(*row[:-1]))
    table.add_section()
    table.add_row(*_cells(*merged[:-1]))
    table.caption = "the last line was merged"
    Console().print(table)


def _cells(
    keep: float, plasticity: float | None, loss: float | None, divergence: float | None
) -> list[str]:
    return [
        f"{keep:.3g} times",
        "–" if plasticity is None else f"{100 * plasticity:.1f}",
        "–" if loss is None else f"{loss:.4f}",
        "–" if divergence is None else f"{divergence:.4f}",
    ]
