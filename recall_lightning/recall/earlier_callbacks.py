"""Which callback a module was trained under, as a new one knows nothing of the tasks before."""

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary, ref

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

if TYPE_CHECKING:
    from recall_lightning.recall.callback import RecallCallback

_TRAINED_UNDER: WeakKeyDictionary[LightningModule, "ref[RecallCallback]"] = WeakKeyDictionary()


def tell_of_an_earlier_one(callback: "RecallCallback", module: LightningModule) -> None:
    """Warn at a callback's first task if it leaves that unmerged, and the module had others before.

    Args:
        callback: The callback.
        module: What it trains from now on.
    """
    earlier = _TRAINED_UNDER.get(module)
    _TRAINED_UNDER[module] = ref(callback)
    if earlier is not None and earlier() is not callback and not callback.merge_first_task:
        rank_zero_warn(
            f"RecallCallback: this {type(module).__name__} was trained under another one before; "
            "this one knows nothing of those tasks, and leaves its own first one unmerged: build "
            "the callback once, and pass the same object to every Trainer"
        )
