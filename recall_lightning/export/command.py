"""The command ``recall-lightning export``: a checkpoint in, a folder of Hugging Face out."""

import sys
from argparse import ArgumentParser
from collections.abc import Sequence

from recall_lightning.cli.arguments import RaisingParser, refuse

_PROGRAM = "recall-lightning export"


def export_parser() -> ArgumentParser:
    """Build the command's parser.

    Example:
        >>> export_parser().parse_args(["last.ckpt", "--out", "model"]).merge_adapter
        False
    """
    parser = RaisingParser(
        prog=_PROGRAM,
        description="Write the language model of a checkpoint as a folder that from_pretrained "
        "loads, or its adapter as one that PEFT loads, with tokenizer and model card.",
    )
    parser.add_argument("checkpoint", metavar="CKPT", help="A checkpoint of CausalLMModule.")
    parser.add_argument("--out", metavar="DIR", required=True, help="Folder to make.")
    parser.add_argument(
        "--merge-adapter", action="store_true", help="Write a LoRA adapter into its base."
    )
    parser.add_argument(
        "--model", metavar="PATH", help="Where the pre-trained model is now, if it has moved."
    )
    parser.add_argument("--tokenizer", metavar="PATH", help="The same for the tokenizer.")
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="Let them run code of their own."
    )
    return parser


def main(args: Sequence[str]) -> None:
    """Run the command; whatever is wrong is one line on stderr and exit code 2.

    Args:
        args: The command line after ``export``.
    """
    try:
        given = export_parser().parse_args(args)
        from recall_lightning.export.folder import export  # slow to import

        training = export(**vars(given))
    except ValueError as error:
        refuse(_PROGRAM, error)
    print(
        f"{given.out}: {training.method} on {' → '.join(training.tasks) or 'unnamed tasks'}, "
        f"{training.steps} steps; its card is README.md"
    )
    if training.in_midst is not None:
        print(
            f"{_PROGRAM}: warning: {given.checkpoint} was written {training.in_midst}, so nothing "
            "was merged at that task's end: give a checkpoint of after it, unless that is meant",
            file=sys.stderr,
        )
