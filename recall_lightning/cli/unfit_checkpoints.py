"""What Lightning finds wrong with a checkpoint, in one sentence."""

import pickle
import re
from collections.abc import Sequence

from recall_lightning.checks import first_of

_OPTION = "--ckpt_path"


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
    if isinstance(error, pickle.UnpicklingError | EOFError) or "PytorchStreamReader" in message:
        return f"{_OPTION}: the file is no checkpoint, or not a whole one: name another"
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
    return (
        f"{_OPTION}: the checkpoint is of another model than this {kind[1]}, {said}: give the "
        "recipe that it was trained with"
    )
