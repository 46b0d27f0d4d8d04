"""What Lightning finds wrong with a checkpoint, in one sentence."""

import pickle
import re
import sys
import traceback
from collections.abc import Sequence

from recall_lightning.checks import first_of

_OPTION = "--ckpt_path"
_READERS = ("torch.serialization", "torch._weights_only_unpickler")
_FIRST = ("lightning.pytorch.cli", "lightning.pytorch.utilities.migration")  # that look into it
_LIBRARIES = sys.stdlib_module_names | {"lightning", "torch", "fsspec", "recall_lightning"}


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
    message, calls = str(error), _calls_of_reading(error)
    if any(module.partition(".")[0] not in _LIBRARIES for module in calls):  # a user's own hook
        return None
    said = _of_reading(error, message, calls[-1]) if calls else None
    if said is not None:
        return f"{_OPTION}: {said}"
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


def _of_reading(error: BaseException, message: str, place: str) -> str | None:
    """Return what is wrong with a file that Lightning reads, by the module where that failed."""
    damaged = isinstance(error, pickle.UnpicklingError | EOFError) or "PytorchStream" in message
    if isinstance(error, IsADirectoryError):
        return "it is a folder: name a file in it"
    if (damaged or place in _READERS) and "GLOBAL" not in message:  # of a class in it
        return "the file is no checkpoint, or not a whole one: name another"
    if "contains only the model" in message:
        return (
            "the checkpoint holds weights and no state of optimizers, as ModelCheckpoint's "
            "save_weights_only leaves it: load it where you build the model"
        )
    lacks = isinstance(error, KeyError) and " " not in message
    strange = isinstance(error, AttributeError | TypeError | IndexError) and place.startswith(
        _FIRST
    )
    if lacks or strange:
        why = f"has no {error.args[0]}" if lacks else "is no dictionary"
        return (
            f"the file is no checkpoint of a Trainer, it {why}: load mere weights where you build "
            "the model"
        )
    if "parameter group" in message and place.startswith("torch.optim"):
        return (
            "the checkpoint's optimizer has other groups of parameters than this run's: give the "
            "recipe that it was trained with"
        )
    return None


def _calls_of_reading(error: BaseException) -> list[str]:
    """Name the modules of the calls from where Lightning reads the checkpoint on.

    There are none where it does not: data and models read files, too.
    """
    calls = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    names = [str(frame.f_globals.get("__name__")) for frame in calls]
    starts = (
        number
        for number, (frame, name) in enumerate(zip(calls, names, strict=True))
        if frame.f_code.co_name == "_parse_ckpt_path" or name.endswith(".checkpoint_connector")
    )
    return names[next(starts, len(names)) :]
