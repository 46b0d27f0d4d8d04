from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from transformers import BatchEncoding

from recall_lightning.measuring.forward import default_forward


class Recorder(nn.Module):
    """Remembers what its forward got."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)


class TakesX(Recorder):
    def forward(self, x):
        self.got = x


class TakesTwo(Recorder):
    def forward(self, source, target, mask=None):
        self.got = (source, target)


class TakesNames(Recorder):
    def forward(self, input_ids, attention_mask=None, labels=None):
        self.got = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


class TakesAnything(Recorder):
    def forward(self, **inputs):
        self.got = inputs


class TakesBatch(Recorder):
    def forward(self, batch):
        self.got = batch


X, Y = torch.ones(3, 2), torch.zeros(3)


def run(model, batch):
    default_forward(model, batch)
    return model.got


@pytest.mark.parametrize("batch", [X, (X, Y), [X, Y], {"x": X, "y": Y}, ({"x": X}, Y)])
def test_one_input_is_found_in_every_kind_of_batch(batch):
    assert run(TakesX(), batch) is X


def test_a_tuple_gives_as_many_inputs_as_are_required():
    assert run(TakesTwo(), (X, Y, Y)) == (X, Y)


def test_a_tokenizers_batch_goes_in_by_name():
    got = run(TakesNames(), BatchEncoding({"input_ids": X, "labels": Y, "other": Y}))
    assert got == {"input_ids": X, "attention_mask": None, "labels": Y}


def test_a_forward_of_keyword_arguments_gets_all_of_them():
    assert run(TakesAnything(), {"a": X, "b": Y}) == {"a": X, "b": Y}


def test_a_forward_that_asks_for_the_batch_gets_the_batch():
    batch = {"image": X, "label": Y}
    assert run(TakesBatch(), batch) is batch


def test_without_a_forward_the_child_with_the_blocks_is_run():
    class Wrapped(LightningModule):
        def __init__(self):
            super().__init__()
            self.metric = nn.Identity()
            self.model = TakesX()

    model = Wrapped()
    default_forward(model, (X, Y))
    assert model.model.got is X


def test_a_compiled_child_is_run_by_its_original_signature():
    model = nn.ModuleDict({"model": torch.compile(TakesX(), backend="eager")})
    default_forward(model, (X, Y))
    assert torch.equal(model["model"].got, X)


@pytest.mark.parametrize(
    ("model", "batch", "message"),
    [
        (TakesX(), {"image": X, "label": Y}, "TakesX.forward takes x.*entries image, label"),
        (TakesTwo(), (X,), "requires source, target, and the batch is a tuple of 1"),
        (TakesX(), "text", "batch of type str"),
        (
            nn.ModuleDict({"a": TakesX(), "b": TakesX()}),
            X,
            r"how its children \(a, b\) work together",
        ),
    ],
)
def test_inputs_that_cannot_be_found_are_said_exactly(model, batch, message):
    with pytest.raises(ValueError, match=message):
        default_forward(model, batch)


def test_masks_reach_a_transformer_behind_keyword_arguments():
    class PassesOn(Recorder):
        def forward(self, input_ids, **kwargs):
            self.got = kwargs

    got = run(PassesOn(), {"input_ids": X, "attention_mask": Y, "labels": Y})
    assert list(got) == ["attention_mask"]


def test_a_head_on_a_frozen_backbone_is_not_run_alone():
    model = nn.ModuleDict({"backbone": TakesX().requires_grad_(False), "head": TakesX()})
    with pytest.raises(ValueError, match="how its children"):
        default_forward(model, X)


@dataclass
class Fields:
    y: torch.Tensor
    x: torch.Tensor


Named = namedtuple("Named", ["y", "x"])
Other = namedtuple("Other", ["inputs", "labels"])


class TakesFields(Recorder):
    def forward(self, given: Fields):
        self.got = given


class Graph:
    nodes = X


def test_fields_go_in_by_name_wherever_they_stand():
    assert run(TakesX(), Fields(Y, X)) is X
    assert run(TakesX(), Named(Y, X)) is X
    assert run(TakesX(), Other(X, Y)) is X  # no field of that name: by position
    assert run(TakesX(), (Fields(Y, X), Y)) is X


def test_a_batch_goes_in_whole_where_the_parameter_says_so_or_it_is_no_collection():
    for model, batch in ((TakesFields(), Fields(Y, X)), (TakesX(), Graph())):
        assert run(model, batch) is batch


def test_fields_that_are_missing_are_named():
    with pytest.raises(ValueError, match=r"TakesTwo\.forward takes source, target, and the batch"):
        default_forward(TakesTwo(), Fields(Y, X))
