"""What a model predicts: its outputs in what it returns, and labels drawn from them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from recall_lightning.representations.batches import tensors_of


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


def positions_that_count(inputs: Mapping[str, Any], like: Tensor, causal: bool) -> Tensor:
    """Tell which samples or tokens are neither padding nor without a label.

    Args:
        inputs: What the model was given: ``attention_mask`` and ``labels``, if there are any.
        like: A tensor with one number a position, (batch,) or (batch, tokens).
        causal: Whether a token's output is about the next token, as the labels are then shifted.

    Returns:
        bool, of the shape of ``like``.

    Example:
        >>> inputs = {"labels": torch.tensor([[-100, 5, -100]])}
        >>> positions_that_count(inputs, torch.zeros(1, 3), causal=True)
        tensor([[ True, False, False]])
    """
    mask = torch.ones_like(like, dtype=torch.bool)
    attention, labels = inputs.get("attention_mask"), inputs.get("labels")
    if isinstance(attention, Tensor) and attention.shape == like.shape:
        mask &= attention != 0
    if isinstance(labels, Tensor) and labels.shape == like.shape:
        labelled = labels != -100
        mask &= functional.pad(labelled[:, 1:], (0, 1)) if causal and like.dim() == 2 else labelled
    return mask


def predicts_next_token(module: nn.Module) -> bool:
    """Ask a Hugging Face model which loss it computes; its default is the causal one.

    Example:
        >>> predicts_next_token(nn.Linear(2, 2))
        False
    """
    for child in module.modules():
        if hasattr(child, "loss_type") and hasattr(child, "config"):
            two_stacks = getattr(child.config, "is_encoder_decoder", False)
            shifted = child.loss_type in (None, "ForCausalLM", "ForConditionalGeneration")
            return shifted and not two_stacks
    return False


def sampled_loss(output: Any, batch: Any, causal: bool = False) -> tuple[Tensor, int] | None:
    """Return −log p of labels that are drawn from a model's own predictions.

    The second moments of its gradients are the Fisher information, without a look at true labels
    (Martens, arXiv 1412.1193; Kunstner et al., arXiv 1905.12558). What p is, the batch tells:

    - a softmax over the last axis of the outputs, where the batch holds integers (labels, or the
      tokens themselves) in the shape of the other axes, below the number of classes;
    - a normal distribution of variance 1, where it holds floating-point targets in the shape of the
      outputs, or in theirs without a last axis of 1.

    Args:
        output: What the model returned: a tensor, or something with ``logits``.
        batch: What it was given, targets included.
        causal: Whether a token's output is about the next token.

    Returns:
        The sum over samples, or tokens that count (see :func:`positions_that_count`), and how many
        those are; None where the batch tells neither.

    Example:
        >>> logits = torch.zeros(4, 3, requires_grad=True)
        >>> loss, count = sampled_loss(logits, (torch.zeros(4, 8), torch.tensor([0, 1, 2, 0])))
        >>> round(loss.item() / count, 4)  # ln 3
        1.0986
        >>> sampled_loss(logits, torch.zeros(4, 8)) is None
        True
    """
    outputs = logits_of(output)
    if outputs is None and isinstance(output, Tensor) and output.dim() == 1:
        outputs = output[:, None]
    if outputs is None or not outputs.requires_grad:
        return None
    given = tensors_of(batch)
    if any(_are_classes(tensor, outputs) for tensor in given):
        logits = outputs.flatten(0, -2).float()
        drawn = torch.cat([_drawn(rows) for rows in logits.detach().split(_ROWS)])
        each = functional.cross_entropy(logits, drawn, reduction="none").view(outputs.shape[:-1])
        inputs = next((b for b in (batch, *_entries(batch)) if isinstance(b, Mapping)), {})
        mask = positions_that_count(inputs, each, causal)
        return torch.where(mask, each, 0.0).sum(), int(mask.sum())
    if any(_are_values(tensor, outputs) for tensor in given):
        noise = torch.randn_like(outputs, dtype=torch.float32)
        # the gradient of (y − f)² / 2 at y = f + noise is −noise
        return (outputs.float() * noise).sum(), outputs[..., 0].numel()
    return None


_ROWS = 1024  # whose probabilities are formed at a time: vocabularies are large


def _drawn(logits: Tensor) -> Tensor:
    """Draw a class for every row; of logits that are not finite the first, the loss tells."""
    probabilities = logits.softmax(dim=-1)
    usable = probabilities.isfinite().all(dim=-1, keepdim=True)
    return torch.multinomial(torch.where(usable, probabilities, 1.0), 1).squeeze(-1)


def _entries(batch: Any) -> tuple[Any, ...]:
    return tuple(batch) if isinstance(batch, (tuple, list)) else ()


def _are_classes(tensor: Tensor, outputs: Tensor) -> bool:
    integers = not tensor.is_floating_point() and not tensor.is_complex()
    fits = tensor.shape == outputs.shape[:-1] and outputs.shape[-1] > 1
    if not integers or tensor.dtype == torch.bool or not fits:
        return False
    return bool(((tensor >= 0) & (tensor < outputs.shape[-1]) | (tensor == -100)).all())


def _are_values(tensor: Tensor, outputs: Tensor) -> bool:
    without_last = outputs.shape[:-1] if outputs.shape[-1] == 1 else outputs.shape
    return tensor.is_floating_point() and tensor.shape in (outputs.shape, without_last)
