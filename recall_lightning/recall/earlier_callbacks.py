"""Which callback a module was trained under, as a new one knows nothing of the tasks before."""

from weakref import WeakKeyDictionary, ref

from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

_TRAINED_UNDER: WeakKeyDictionary[LightningModule, ref[Callback]] = WeakKeyDictionary()


def tell_of_an_earlier_one(
    callback: Callback, module: LightningModule, merge_first_task: bool
) -> None:
    """Warn at a callback's first task if it leaves that unmerged, and the module had others before.

    Args:
        callback: The callback.
        module: What it trains from now on.
        merge_first_task: Whether the callback merges its first task.
    """
    earlier = _TRAINED_UNDER.get(module)
    _TRAINED_UNDER[module] = ref(callback)
    if earlier is not None and earlier() is not callback and not merge_first_task:
        rank_zero_warn(
            f"RecallCallback: this {type(module).__name__} was trained under another one before; "
            "this one knows nothing of those tasks, and leaves its own first one unmerged: build "
            "the callback once, and pass the same object to every Trainer"
        )
