"""RECALL in the loop, this package's own method: :class:`~recall_lightning.RecallCallback`."""

from recall_lightning.methods.method import Method
from recall_lightning.recall.callback import RecallCallback

METHOD = Method("recall", "RecallCallback", RecallCallback, keeps_first="merge_first_task")
