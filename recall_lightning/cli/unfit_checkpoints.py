"""What Lightning finds wrong with a checkpoint, in one sentence."""

import pickle
import re
import traceback
from collections.abc import Sequence
from pathlib import Path

from recall_lightning.checks import first_of

_OPTION = "--ckpt_path"
_READERS = ("serialization.py", "_weights_only_unpickler.py")  # of torch


def unfit_checkpoint(error: BaseException, args: Sequence[str]) -> str | None:
    r"""Return what is wrong with the checkpoint that a command line names; None of other errors.

    Args:
        error: What came of it.
        args: The command line.

    Example:
        >>> error = RuntimeError(
        ...     'Error(s) in loading state_dict for Net:\n\tMissing key(s) in state_dict: "a.weight".'
        ... )
        >>> unfit_checkpoint(error, ["--ckpt_path=last.ckpt"])
        '--ckpt_path: the checkpoint is of another model than this Net, it has no a.weight: give the recipe that it was trained with'
    """  # noqa: E501
    if not any(word.partition("=")[0] == _OPTION for word in args):
        return None
    message = str(error)
    if _comes_from_loading(error):
        if _is_damage(error) and "GLOBAL" not in message:  # of a class in it
            return f"{_OPTION}: the file is no checkpoint, or not a whole one: name another"
        if isinstance(error, KeyError):
            return (
                f"{_OPTION}: the file is no checkpoint of a Trainer, it has no {error.args[0]}: "
                "load mere weights where you build the model"
            )
        if isinstance(error, ValueError) and "parameter group" in message:
            return (
                f"{_OPTION}: the checkpoint's optimizer has other groups of parameters than this "
                "run's: give the recipe that it was trained with"
            )
    kind = re.match(r"Error\(s\) in loading state_dict for (\w+)", message)
    if kind is None:
        return None
    missing, other = (
        re.findall(
            r'"(.+?)"', "".join(re.findall(rf"{what} key\(s\) in state_dict: (.*)", message))
        )
        for what in ("Missing", "Unexpected")
    )
    resized = re.findall(r"size mismatch for (.+?):", message)
    found = {"it has no": missing, "it has besides": other, "of other shapes are": resized}
    said = "; ".join(f"{how} {first_of(names)}" for how, names in found.items() if names)
    if not said:
        return None
    return (
        f"{_OPTION}: the checkpoint is of another model than this {kind[1]}, {said}: give the "
        "recipe that it was trained with"
    )


def _is_damage(error: BaseException) -> bool:
    """Tell whether a file cannot be read as what torch saves; text fails wherever it looks odd."""
    last = traceback.extract_tb(error.__traceback__)[-1:]
    return isinstance(error, pickle.UnpicklingError | EOFError) or any(
        Path(frame.filename).name in _READERS for frame in last
    )


def _comes_from_loading(error: BaseException) -> bool:
    """Tell whether Lightning was reading the checkpoint; data and models read files, too."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(
        frame.name == "_parse_ckpt_path" or Path(frame.filename).name == "checkpoint_connector.py"
        for frame in frames
    )
