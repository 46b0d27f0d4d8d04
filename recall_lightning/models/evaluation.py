"""Validation metrics for several loaders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import Metric


class RatioOfSums(Metric):
    """Sum of numerators over sum of denominators: a mean over all tokens, samples or bytes.

    Unlike ``torchmetrics.MeanMetric``, it keeps NaN, so that a diverged model does not look
    healthy, and sums in float32 even where Lightning has set the default dtype to half precision.

    Example::

        >>> metric = RatioOfSums()
        >>> metric.update(torch.tensor(6.0), 2)
        >>> metric.update(torch.tensor(2.0), 6)
        >>> metric.compute()
        tensor(1.)
    """

    full_state_update = False
    numerator: Tensor
    denominator: Tensor

    def __init__(self) -> None:
        super().__init__()
        zero = torch.zeros((), dtype=torch.float32)
        self.add_state("numerator", default=zero, dist_reduce_fx="sum")
        self.add_state("denominator", default=zero.long(), dist_reduce_fx="sum")

    def update(self, numerator: Tensor, denominator: Tensor | int) -> None:
        """Add a batch.

        Args:
            numerator: Sum of a quantity over a batch, of shape ``()``.
            denominator: What it was summed over: a number of tokens, samples or bytes.
        """
        # Not in place: after a validation in inference mode, the state may be an inference tensor.
        self.numerator = self.numerator + numerator.to(self.numerator.dtype)
        self.denominator = self.denominator + denominator

    def compute(self) -> Tensor:
        """The ratio, of shape ``()``; NaN as long as the denominator is 0."""
        return self.numerator / self.denominator


class LoaderMetrics(nn.Module):
    """Validation metrics with a state of their own for every loader, so that loaders never mix.

    Metrics are logged as ``Metric`` objects, which makes Lightning gather them across processes and
    reset them after each validation. With several loaders, Lightning appends
    ``/dataloader_idx_N`` to the names.

    Args:
        makers: For each name, what makes a new metric.
    """

    def __init__(self, makers: Mapping[str, Callable[[], Metric]]) -> None:
        super().__init__()
        self._makers = dict(makers)
        self._made: dict[tuple[int, str], tuple[Any, ...]] = {}
        self.loaders = nn.ModuleDict()

    def of(self, loader: int) -> dict[str, Metric]:
        """The metrics of one loader by name, made when it is first asked for.

        Example::

            >>> metrics = LoaderMetrics({"loss": RatioOfSums})
            >>> metrics.of(0)["loss"].update(torch.tensor(2.0), 2)
            >>> metrics.of(1)["loss"].update(torch.tensor(6.0), 2)
            >>> [metrics.of(loader)["loss"].compute().item() for loader in range(2)]
            [1.0, 3.0]
        """
        key = str(loader)
        if key not in self.loaders:
            self.loaders[key] = nn.ModuleDict({name: make() for name, make in self._makers.items()})
        return dict(self.loaders[key].items())  # type: ignore[operator]

    def also(self, loader: int, name: str, make: Callable[..., Metric], *arguments: Any) -> None:
        """Let one loader have a metric of its own, unless it has the same one under that name.

        It may have another from a validation with other data.

        Args:
            loader: Index of the loader.
            name: The metric's name.
            make: Makes it of ``arguments``.
            *arguments: What tells it apart from others that ``make`` makes.
        """
        made = (make, *arguments)
        if name not in self.of(loader) or self._made.get((loader, name)) != made:
            self.loaders[str(loader)][name] = make(*arguments)  # type: ignore[operator]
            self._made[loader, name] = made

    def update_and_log(
        self, module: LightningModule, loader: int, updates: Mapping[str, tuple[Any, ...]]
    ) -> None:
        """Update metrics of one loader with a batch, and log them as ``val/<name>``.

        To be called in ``validation_step``, with the same names for all batches of a loader.

        Args:
            module: The module that is validated.
            loader: Index of the loader.
            updates: For each name, the arguments of the metric's ``update``.
        """
        metrics = self.of(loader)
        for name, arguments in updates.items():
            metric = metrics[name].to(module.device)
            if not torch.is_inference_mode_enabled() and any(
                isinstance(state, Tensor) and state.is_inference()
                for state in metric.metric_state.values()
            ):
                metric.reset()  # after a validation in inference mode, which left nothing in it
            metric.update(*arguments)
            # Lightning looks attributes up once a run and would not find what was made since.
            attribute = f"loaders.{loader}.{name}"
            module.log(f"val/{name}", metric, metric_attribute=attribute)
