"""What a method of the command line is: a record, which stands in the method's own file."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning.data.stream import TaskStream


@dataclass(frozen=True)
class Method:
    """A way to train on a stream: a callback, an option of the stream, or nothing.

    A new one is a file in ``recall_lightning/methods`` with such a record, a line in
    :data:`recall_lightning.methods.FILES`, and its callback among that package's names. Another
    package brings one by an entry point, ``recall_lightning.plugins``, that names such a record.

    Attributes:
        name: Its name on the command line, and of its group of arguments there.
        summary: What it does, in a few words.
        callback: The callback that does it. One callback may serve several methods.
        keeps_first: The callback's argument that says whether what the model knows before its first
            task is worth keeping. On the command line ``--recall.merge_first_task`` sets it.
        defaults: Of the callback's arguments, where the method has others than the class.
        old_data: ``old_data(stream, settings)`` sets the stream's option that has it read data of
            earlier tasks; None for a method that reads none.
        settings: The class of these settings, whose arguments are the method's; None for none.

    Raises:
        ValueError: If ``keeps_first`` or ``defaults`` name what is no argument.

    Example:
        >>> Method("finetune", "plain fine-tuning").needs_old_data
        False
    """

    name: str
    summary: str
    callback: type[Callback] | None = None
    keeps_first: str | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    old_data: Callable[[TaskStream, Any], None] | None = None
    settings: type | None = None

    def __post_init__(self) -> None:
        named = [*self.defaults, *([self.keeps_first] if self.keeps_first else [])]
        has = inspect.signature(self.configured).parameters if self.configured else {}
        for argument in named:
            if argument not in has:
                raise ValueError(
                    f"the method {self.name!r} has no argument {argument!r}: name one of "
                    f"{', '.join(has)}"
                )

    @property
    def needs_old_data(self) -> bool:
        """Whether data of earlier tasks is read."""
        return self.old_data is not None

    @property
    def configured(self) -> type | None:
        """The class that the method's arguments are those of; None if it has no arguments."""
        return self.callback or self.settings

    def give_old_data(self, datamodule: LightningDataModule | None, settings: Any = None) -> None:
        """Set the stream's option, if the method is one.

        Args:
            datamodule: The stream.
            settings: An instance of :attr:`settings`.

        Raises:
            MisconfigurationException: If the method needs a TaskStream and ``datamodule`` is none.
        """
        if self.old_data is None:
            return
        if not isinstance(datamodule, TaskStream):
            raise MisconfigurationException(
                f"method={self.name!r} reads data of other tasks, which only a TaskStream can "
                f"give: the data is {type(datamodule).__name__}"
            )
        self.old_data(datamodule, settings)
