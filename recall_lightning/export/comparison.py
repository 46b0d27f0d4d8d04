"""Whether a folder that was written is the model that it was written of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recall_lightning.weights.finite import all_finite

_ROUNDINGS = 8  # how many roundings of a weight the logits may be off by, as a part of their norm
_LEAST = 1e-4  # what sums in another order amount to in float32


def refuse_infinite_weights(model: nn.Module) -> None:
    """Check that a model's weights are numbers.

    Raises:
        ValueError: If one holds a NaN or an infinity: it names the first.
    """
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and not all_finite(weight.detach()):
            raise ValueError(
                f"the checkpoint's weight {name!r} holds NaN or infinite values: export an earlier "
                "one"
            )


class Comparison:
    """A model's logits on a batch, for what is loaded later to be compared with.

    Args:
        model: A causal language model in evaluation mode, which is not kept.

    Example:
        >>> from recall_lightning.models import CausalLMModule
        >>> config = {"model_type": "gpt2", "vocab_size": 9, "n_embd": 4, "n_layer": 1, "n_head": 1}
        >>> model = CausalLMModule(config).eval().model
        >>> comparison = Comparison(model)
        >>> comparison.error(model)
        0.0
        >>> _ = torch.nn.init.normal_(model.transformer.wte.weight)
        >>> comparison.error(model) > comparison.tolerance
        True
    """

    def __init__(self, model: Any) -> None:
        known = len(model.get_input_embeddings().weight)
        most = getattr(model.config, "max_position_embeddings", None)
        length = min(16, most) if isinstance(most, int) and most > 0 else 16
        generator = torch.Generator().manual_seed(0)
        self._batch = torch.randint(known, (2, length), generator=generator)
        self._expected = self._logits(model)
        widths = {p.dtype for p in model.parameters() if p.is_floating_point()}
        coarsest = max(torch.finfo(dtype).eps for dtype in widths)
        self.tolerance = max(_ROUNDINGS * coarsest, _LEAST)

    def error(self, model: Any) -> float:
        """Return ‖logits − expected logits‖ / ‖expected logits‖ on the batch."""
        difference = self._logits(model) - self._expected
        return float(difference.norm() / self._expected.norm().clamp_min(1e-30))

    def check(self, model: Any, folder: Path) -> None:
        """Check that a model computes what it should, up to the rounding of its weights.

        Args:
            model: What was loaded.
            folder: What it is to be.

        Raises:
            ValueError: If it does not.
        """
        error = self.error(model)
        if not error <= self.tolerance:  # also for NaN
            raise ValueError(
                f"{folder} was not made: loaded again, its logits differ from the checkpoint's by "
                f"{error:.1%} of their norm, and rounding explains {self.tolerance:.2%}; this "
                "architecture or adapter cannot be exported as it is"
            )

    @torch.no_grad()
    def _logits(self, model: Any) -> Tensor:
        device = model.get_input_embeddings().weight.device
        logits: Tensor = model.eval()(input_ids=self._batch.to(device)).logits
        return logits.double().cpu()
