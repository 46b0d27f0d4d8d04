"""Lightning's own callbacks beside ours: which of them can't do their part, and why."""

from lightning.pytorch import Trainer, callbacks
from lightning.pytorch.utilities.exceptions import MisconfigurationException

_AVERAGES = ("StochasticWeightAveraging", "WeightAveraging")  # the second is of Lightning 2.6


def refuse_weight_averaging(trainer: Trainer, does: str) -> None:
    """Refuse callbacks that keep an average of the weights apart and put it in their place.

    It would leave out what it has not seen of what we write, which would not be the last word.

    Args:
        trainer: Whose callbacks.
        does: Who writes weights, and how, as a clause.

    Raises:
        MisconfigurationException: Naming the callback and what to do.
    """
    kinds = tuple(getattr(callbacks, name) for name in _AVERAGES if hasattr(callbacks, name))
    for other in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(other, kinds):
            raise MisconfigurationException(
                f"{does}, and {type(other).__name__} puts an average of its own in their place "
                "when training ends: take one of the two out; RecallCallback averages with the "
                "snapshot too, by rule=Uniform(weight), as often as every says"
            )
