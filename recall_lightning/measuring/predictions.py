"""What a model predicts: its outputs in what it returns, and labels drawn from them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from recall_lightning.measuring.batches import tensors_of


def logits_of(output: Any) -> Tensor | None:
    """Find the logits in an output: itself if it is a tensor of rows, or its ``logits``.

    Example:
        >>> logits_of(torch.tensor(0.5)) is None, logits_of({"logits": torch.zeros(1, 2)}).shape
        (True, torch.Size([1, 2]))
    """
    if isinstance(output, Mapping):
        output = output.get("logits")
    found = getattr(output, "logits", output)
    return found if isinstance(found, Tensor) and found.dim() >= 2 else None


def positions_that_count(
    inputs: Mapping[str, Any], like: Tensor, causal: bool, two_stacks: bool = False
) -> Tensor:
    """Tell which samples or tokens are neither padding nor without a label.

    Args:
        inputs: What the model was given: ``attention_mask`` and ``labels``, if there are any.
        like: A tensor with one number a position, (batch,) or (batch, tokens).
        causal: Whether a token's output is about the next token, as the labels are then shifted.
        two_stacks: Whether the outputs are a decoder's, which an encoder's mask says nothing about.

    Returns:
        bool, of the shape of ``like``.

    Example:
        >>> inputs = {"labels": torch.tensor([[-100, 5, -100]])}
        >>> positions_that_count(inputs, torch.zeros(1, 3), causal=True)
        tensor([[ True, False, False]])
    """
    mask = torch.ones_like(like, dtype=torch.bool)
    attention = inputs.get("decoder_attention_mask" if two_stacks else "attention_mask")
    labels = inputs.get("labels")
    if isinstance(attention, Tensor) and attention.shape == like.shape:
        mask &= attention != 0
    if isinstance(labels, Tensor) and labels.shape == like.shape:
        mask &= _labelled(labels, causal)
    return mask


def _labelled(labels: Tensor, causal: bool) -> Tensor:
    labelled = labels != -100
    shifted = causal and labels.dim() == 2
    return functional.pad(labelled[:, 1:], (0, 1)) if shifted else labelled


def predicts_next_token(module: nn.Module) -> bool:
    """Ask a Hugging Face model which loss it computes; its default is the causal one.

    Example:
        >>> predicts_next_token(nn.Linear(2, 2))
        False
    """
    for child in module.modules():
        if hasattr(child, "loss_type") and hasattr(child, "config"):
            named = child.loss_type in ("ForCausalLM", "ForConditionalGeneration")
            unnamed = child.loss_type is None and bool(getattr(child, "can_generate", bool)())
            return (named or unnamed) and not has_two_stacks(module)
    return False


def has_two_stacks(module: nn.Module) -> bool:
    """Tell whether there is a Hugging Face encoder-decoder inside.

    Example:
        >>> has_two_stacks(nn.Linear(2, 2))
        False
    """
    configs = (getattr(child, "config", None) for child in module.modules())
    return any(bool(getattr(config, "is_encoder_decoder", False)) for config in configs)


class Predictions:
    """What a model's outputs say of its batch's targets, as a distribution to draw labels from.

    The batch tells which: its targets are entries named ``labels``, ``label``, ``targets``,
    ``target`` or ``y`` if it has any, all but the first of a tuple or list, else everything but
    masks and positions (``input_ids`` count for a model that predicts the next token).

    - Floating-point targets in the shape of the outputs, or in theirs without a last axis of 1: a
      normal distribution of variance 1.
    - Integers in the shape of the outputs' other axes (with a 1 behind them or without), below the
      number of classes, or −100 for none: a softmax over the last axis.

    Args:
        module: The model.

    Example:
        >>> logits = torch.zeros(4, 3, requires_grad=True)
        >>> predictions = Predictions(nn.Linear(8, 3))
        >>> batch = (torch.zeros(4, 8), torch.tensor([0, 1, 2, -100]))
        >>> loss, count = predictions.sampled_loss(logits, batch)
        >>> count, round(loss.item() / count, 4)  # ln 3
        (3, 1.0986)
        >>> predictions.sampled_loss(logits, torch.zeros(4, 8)) is None
        True
    """

    def __init__(self, module: nn.Module) -> None:
        self.causal = predicts_next_token(module)
        self.two_stacks = has_two_stacks(module)

    def sampled_loss(self, output: Any, batch: Any) -> tuple[Tensor, int] | None:
        """Return −log p of labels that are drawn from the predictions.

        The second moments of its gradients are the Fisher information, without a look at true
        labels (Martens, arXiv 1412.1193; Kunstner et al., arXiv 1905.12558).

        Args:
            output: What the model returned: a tensor, or something with ``logits``.
            batch: What it was given, targets included.

        Returns:
            The sum over samples, or tokens that count, and how many those are; None where the batch
            tells no distribution, or the outputs have no gradient.
        """
        outputs = logits_of(output)
        if outputs is None and isinstance(output, Tensor) and output.dim() == 1:
            outputs = output[:, None]
        if outputs is None or not outputs.requires_grad or outputs.dim() > 3:
            return None
        targets = self._targets(batch)
        if any(_are_values(target, outputs) for target in targets):
            noise = torch.randn_like(outputs, dtype=torch.float32)
            # the gradient of (y − f)² / 2 at y = f + noise is −noise
            return (outputs.float() * noise).sum(), outputs[..., 0].numel()
        classes = next((target for target in targets if _are_classes(target, outputs)), None)
        if classes is None:
            return None
        logits = outputs.flatten(0, -2).float()
        drawn = torch.cat([_drawn(rows) for rows in logits.detach().split(_ROWS)])
        each = functional.cross_entropy(logits, drawn, reduction="none").view(outputs.shape[:-1])
        entries = batch if isinstance(batch, (tuple, list)) else [batch]
        inputs = next((entry for entry in entries if isinstance(entry, Mapping)), {})
        mask = positions_that_count(inputs, each, self.causal, self.two_stacks)
        mask &= _labelled(classes.reshape(each.shape), self.causal)
        return torch.where(mask, each, 0.0).sum(), int(mask.sum())

    def _targets(self, batch: Any) -> list[Tensor]:
        if isinstance(batch, Mapping):
            named = {name: batch[name] for name in _TARGETS if name in batch}
            left_out = _NO_TARGETS if self.causal else (*_NO_TARGETS, "input_ids")
            others = {name: batch[name] for name in batch if name not in left_out}
            return tensors_of(named or others)
        several = isinstance(batch, (tuple, list)) and len(batch) > 1
        if not several and isinstance(batch, (tuple, list)) and batch:
            return self._targets(batch[0])
        return tensors_of(list(batch[1:])) if several else tensors_of(batch)


_TARGETS = ("labels", "label", "targets", "target", "y")
_NO_TARGETS = (
    "attention_mask",
    "token_type_ids",
    "position_ids",
    "decoder_attention_mask",
    "decoder_input_ids",
    "num_bytes",
)
_ROWS = 1024  # whose probabilities are formed at a time: vocabularies are large


def _drawn(logits: Tensor) -> Tensor:
    """Draw a class for every row; of logits that are not finite any, the loss tells."""
    probabilities = logits.softmax(dim=-1)
    usable = probabilities.isfinite().all(dim=-1, keepdim=True)
    return torch.multinomial(torch.where(usable, probabilities, 1.0), 1).squeeze(-1)


def _are_classes(target: Tensor, outputs: Tensor) -> bool:
    integers = not target.is_floating_point() and not target.is_complex()
    shapes = (outputs.shape[:-1], (*outputs.shape[:-1], 1))
    fits = target.shape in shapes and outputs.shape[-1] > 1
    if not integers or target.dtype == torch.bool or not fits:
        return False
    return bool(((target >= 0) & (target < outputs.shape[-1]) | (target == -100)).all())


def _are_values(target: Tensor, outputs: Tensor) -> bool:
    without_last = outputs.shape[:-1] if outputs.shape[-1] == 1 else outputs.shape
    return target.is_floating_point() and target.shape in (outputs.shape, without_last)
