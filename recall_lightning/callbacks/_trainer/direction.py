"""What the name of a metric says of its direction."""

import re

from lightning.pytorch.utilities.exceptions import MisconfigurationException

# What a metric's name says of its direction.
_LOWER_IS_BETTER = "loss perplexity ppl error err nll bits entropy mse mae rmse wer cer fid"
_HIGHER_IS_BETTER = (
    "acc accuracy f1 auc auroc precision recall bleu rouge iou dice score map r2 match"
)


def direction_of(asking: str, monitor: str, mode: str) -> bool:
    """Tell whether a higher value is better.

    >>> direction_of("ForgettingMonitor", "val/acc", "auto")
    True

    Args:
        asking: The callback's name, for errors.
        monitor: The metric's name.
        mode: ``"max"`` or ``"min"``; ``"auto"`` tells it from the name.

    Raises:
        MisconfigurationException: If ``mode`` is another, or the name does not tell.
    """
    if mode in ("max", "min"):
        return mode == "max"
    if mode != "auto":
        raise MisconfigurationException(f"mode={mode!r} must be 'max', 'min' or 'auto'")
    # words of snake_case, CamelCase and paths, digits apart: val/MulticlassAccuracy, acc1, f1
    words = {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", monitor)}
    words |= {word.lower() for word in re.findall(r"[A-Za-z]+\d", monitor)}
    lower, higher = (_any(words, known) for known in (_LOWER_IS_BETTER, _HIGHER_IS_BETTER))
    if lower == higher:
        raise MisconfigurationException(
            f"{asking}: whether a higher {monitor!r} is better cannot be told from its name: pass "
            "mode='max' or mode='min'"
        )
    return higher


def _any(words: set[str], known: str) -> bool:
    return not words.isdisjoint(known.split())
