"""What a merge of model files must know of a method: a record, written beside its function."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from torch import Tensor


@dataclass(frozen=True, eq=False)
class MergeMethod:
    """A merge method: its function, and how the models, weights and files come to it.

    Attributes:
        function: Merges one weight tensor of every model. Its parameters after ``models`` are what
            it is given for each weight: ``weights``, ``base``, ``name``, ``model_keys``,
            ``similarity`` or statistics. Keyword-only parameters are the method's own options.
        summed: Which weights come out as Σ wᵢθᵢ, so that files are summed chunk by chunk and the
            function is not called: all, those without statistics, or none.
        normalize: Whether weights are divided by their sum, so that they count relative to one
            another; None leaves that to an option ``normalize``, which is true unless given.
        most_models: How many models there may be, if not any number.
        statistics: The parameter that takes what files of statistics hold.
        weights_from_similarity: What makes weights of the models' similarities and the options.
        positive: Options that must be positive, which is said before models are measured.
        former_name: What older settings call the method.

    Example:
        >>> def first(models, weights, base, *, scale: float = 1.0):
        ...     return base + scale * (models[0] - base)
        >>> method = MergeMethod(first)
        >>> method.name, method.inputs, list(method.options)
        ('first', ('weights', 'base'), ['scale'])
    """

    function: Callable[..., Tensor]
    summed: Literal["always", "without statistics", "never"] = "never"
    normalize: bool | None = False
    most_models: int | None = None
    statistics: str | None = None
    weights_from_similarity: Callable[..., list[float]] | None = None
    positive: tuple[str, ...] = ()
    former_name: str | None = None

    @property
    def name(self) -> str:
        """The function's name, which settings give."""
        return self.function.__name__

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """What the function is given for each weight beside the models, in order."""
        parameters = inspect.signature(self.function).parameters.values()
        return tuple(p.name for p in parameters if p.kind is not p.KEYWORD_ONLY)[1:]

    @cached_property
    def options(self) -> dict[str, inspect.Parameter]:
        """The function's own options, with their types and defaults."""
        parameters = inspect.signature(self.function).parameters
        return {key: p for key, p in parameters.items() if p.kind is p.KEYWORD_ONLY}

    @cached_property
    def option_types(self) -> dict[str, Any]:
        """The types of all that may be set: the options, and ``normalize`` where it is left to."""
        kinds = {option: parameter.annotation for option, parameter in self.options.items()}
        return kinds | ({"normalize": bool} if self.normalize is None else {})

    @property
    def needs_base(self) -> bool:
        """Whether it works on differences from a base."""
        return "base" in self.inputs

    @property
    def measures(self) -> bool:
        """Whether weights follow from how similar the models' hidden states are."""
        return self.weights_from_similarity is not None

    @property
    def always_sums(self) -> bool:
        """Whether all weights come out as weighted sums, so that adapters can be merged too."""
        return self.summed == "always"

    def sums(self, has_statistics: bool) -> bool:
        """Tell whether a weight comes out as a weighted sum."""
        return self.always_sums or (self.summed == "without statistics" and not has_statistics)
