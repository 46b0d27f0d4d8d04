"""One view of a model: how it is run on a batch, what it is given there, and what it puts out."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from recall_lightning.measuring.architecture import (
    find_generator,
    is_encoder_decoder,
    predicts_next_token,
)
from recall_lightning.measuring.batches import entries_of, tensors_of
from recall_lightning.measuring.forward import ProbeForward, default_forward

_TARGETS = ("labels", "label", "targets", "target", "y")
_NO_TARGETS = (
    "attention_mask",
    "token_type_ids",
    "position_ids",
    "decoder_attention_mask",
    "decoder_input_ids",
    "num_bytes",
)


class ModelView:
    """What a model is given and puts out: here, one that says nothing special about itself.

    :func:`view_of` finds the view of a model. Where it is wrong about yours, subclass this one (or
    that of its kind) and override what is different.

    Example:
        >>> class Scores(ModelView):
        ...     def forward(self, module, batch):
        ...         return module(batch["image"])
        >>> Scores().forward(nn.Identity(), {"image": torch.ones(2, 3)}).shape
        torch.Size([2, 3])
    """

    _inputs = "input_ids"
    _mask_of_outputs = "attention_mask"

    def forward(self, module: nn.Module, batch: Any) -> Any:
        """Run the module on a batch and return its output.

        Here: on the inputs that its ``forward`` asks for (see
        :func:`~recall_lightning.measuring.forward.default_forward`).
        """
        return default_forward(module, batch)

    def mask(self, batch: Any, module_name: str) -> Tensor | None:
        """Tell which of the tokens that one of the model's modules computes are no padding.

        Here: those of the batch's ``attention_mask``.

        Args:
            batch: What the model runs on.
            module_name: The name of the module inside the model.

        Returns:
            bool (samples, tokens); None where nothing is known to be padding.
        """
        return _not_zero(given_by_name(batch).get("attention_mask"))

    def targets(self, batch: Any) -> list[Tensor]:
        """Return the tensors of a batch that may be what the model is to predict.

        Here: entries (or attributes) named ``labels``, ``label``, ``targets``, ``target`` or ``y``
        if it has any, all but the first of a tuple or list, else everything but masks, positions
        and ``input_ids``.
        """
        entries = entries_of(batch)
        if entries is None and not isinstance(batch, (tuple, list, Tensor)):  # such as a graph
            attributes = {name: getattr(batch, name, None) for name in _TARGETS}
            return tensors_of({n: a for n, a in attributes.items() if isinstance(a, Tensor)})
        named = {name: entries[name] for name in _TARGETS if name in entries} if entries else {}
        if entries is not None and (named or not isinstance(batch, tuple)):
            others = {n: entries[n] for n in entries if n not in (*_NO_TARGETS, self._inputs)}
            return tensors_of(named or others)
        if isinstance(batch, (tuple, list)) and batch:
            return tensors_of(list(batch[1:])) if len(batch) > 1 else self.targets(batch[0])
        return tensors_of(batch)

    def inputs(self, batch: Any) -> list[Tensor]:
        """Return the tensors of a batch that a model may reconstruct: all that are no targets."""
        targets = set(map(id, self.targets(batch)))
        return [tensor for tensor in tensors_of(batch) if id(tensor) not in targets]

    def logits(self, output: Any) -> Tensor | None:
        """Find what the model predicts in what it returned.

        Here: the output itself if it is a tensor, or its ``logits``.

        Returns:
            (samples, …, classes or values); one number a sample is (samples, 1). None if there are
            none.
        """
        if isinstance(output, Mapping):
            output = output.get("logits")
        found = getattr(output, "logits", output)
        if not isinstance(found, Tensor) or found.dim() == 0 or found.is_complex():
            return None
        return found[:, None] if found.dim() == 1 else found

    def counts(self, batch: Any, like: Tensor) -> Tensor:
        """Tell for which samples or tokens a prediction counts: no padding, and with a label.

        Here: those that ``attention_mask`` does not hide and whose integer label is not −100.

        Args:
            batch: What the model was given, targets included.
            like: A tensor with one number a prediction, (samples) or (samples, tokens).

        Returns:
            bool, of the shape of ``like``.

        Example:
            >>> batch = {"labels": torch.tensor([[-100, 5, -100]])}
            >>> ModelView().counts(batch, torch.zeros(1, 3))
            tensor([[False,  True, False]])
            >>> CausalView().counts(batch, torch.zeros(1, 3))  # the output before it predicts it
            tensor([[ True, False, False]])
        """
        given = given_by_name(batch)
        counts = torch.ones_like(like, dtype=torch.bool)
        mask = _not_zero(given.get(self._mask_of_outputs))
        if mask is not None and mask.shape == like.shape:
            counts &= mask
        shapes = (like.shape, (*like.shape, 1))
        for found in ([given.get("labels")], self.targets(batch)):
            labels = [one for one in map(_integers, found) if one is not None]
            fitting = next((one for one in labels if one.shape in shapes), None)
            if fitting is not None:
                counts &= self._labelled(fitting.reshape(like.shape))
        return counts

    def generator(self, module: nn.Module) -> nn.Module | None:
        """Return the part of the module that writes sequences of its own, as ``generate`` does.

        Here: the causal language model inside, if there is one.
        """
        return find_generator(module)

    def with_forward(self, forward: ProbeForward) -> ModelView:
        """Return this view of a model that is run by ``forward(module, batch)``."""
        view = copy.copy(self)
        vars(view)["forward"] = forward
        return view

    def _labelled(self, labels: Tensor) -> Tensor:
        return labels != -100


class CausalView(ModelView):
    """Of causal language models: a token's output predicts the next, and inputs are targets too."""

    _inputs = ""

    def _labelled(self, labels: Tensor) -> Tensor:
        labelled = labels != -100
        return functional.pad(labelled[:, 1:], (0, 1)) if labels.dim() == 2 else labelled


class EncoderDecoderView(ModelView):
    """Of models of two stacks: the encoder's mask says nothing of what the decoder puts out.

    Modules with ``decoder`` in their name are the decoder's; their mask is
    ``decoder_attention_mask``, or the labels that are not −100.
    """

    _mask_of_outputs = "decoder_attention_mask"

    def mask(self, batch: Any, module_name: str) -> Tensor | None:
        """Tell which tokens of the stack that a module is in are no padding."""
        if "decoder" not in module_name:
            return super().mask(batch, module_name)
        given = given_by_name(batch)
        mask, labels = given.get("decoder_attention_mask"), _integers(given.get("labels"))
        return _not_zero(mask) if labels is None or isinstance(mask, Tensor) else labels != -100

    def generator(self, module: nn.Module) -> None:
        """Nothing: a decoder writes nothing of what the model knows without its encoder."""


def view_of(module: nn.Module, own: ModelView | ProbeForward | None = None) -> ModelView:
    """Return the view of a model: of its kind, or the user's own.

    Args:
        module: The model, or a LightningModule around one.
        own: A view, which is returned; or a function ``(module, batch)`` that runs the module: then
            all but how it is run is that of its kind.

    Example:
        >>> type(view_of(nn.Linear(2, 2))).__name__, type(view_of(nn.Transformer())).__name__
        ('ModelView', 'EncoderDecoderView')
    """
    if isinstance(own, ModelView):
        return own
    view = ModelView()
    if is_encoder_decoder(module):
        view = EncoderDecoderView()
    elif predicts_next_token(module):
        view = CausalView()
    return view if own is None else view.with_forward(own)


def given_by_name(batch: Any) -> Mapping[str, Any]:
    """Return what a batch gives by name: its own entries, or the first mapping in a tuple or list.

    Example:
        >>> given_by_name(({"x": 1}, 2)), given_by_name((1, 2))
        ({'x': 1}, {})
    """
    own = entries_of(batch)
    if own is not None:
        return own
    parts = batch if isinstance(batch, (tuple, list)) else []
    return next((each for part in parts if (each := entries_of(part)) is not None), {})


def _not_zero(mask: Any) -> Tensor | None:
    return mask != 0 if isinstance(mask, Tensor) else None


def _integers(labels: Any) -> Tensor | None:
    """Return labels that may be classes: lists and real numbers are none."""
    number = isinstance(labels, Tensor) and not labels.is_floating_point()
    return labels if number and not labels.is_complex() else None
