import pytest
import torch

from recall_lightning.measuring.predictions import KINDS, FoundPredictions, Gaussian, Predictions


class Exponential(Predictions):
    """Outputs are logarithms of rates."""

    def sampled_loss(self, outputs):
        rates = outputs.exp()
        drawn = torch.empty_like(outputs).exponential_() / rates.detach()
        return (rates * drawn - outputs).sum(-1)

    def divergence(self, student, teacher, temperature=1.0):
        ratio = student - teacher
        return (ratio.exp() - ratio - 1).sum(-1)


@pytest.fixture
def registered():
    before = dict(KINDS)
    yield lambda name: type("Named", (Exponential,), {"name": name})
    KINDS.clear()
    KINDS.update(before)


def test_a_kind_of_ones_own_needs_two_methods():
    kind = Exponential()
    assert FoundPredictions(kind).of(torch.zeros(4, 2), []) is kind
    with pytest.raises(TypeError, match="divergence"):
        type("Half", (Predictions,), {"sampled_loss": Exponential.sampled_loss})()


def test_a_kind_of_ones_own_can_be_set_by_its_name(registered):
    kind = registered("durations")
    assert isinstance(FoundPredictions("durations").kind, kind)
    registered("durations")  # a notebook's cell is run again
    with pytest.raises(ValueError, match="cannot be called 'classes': that name is taken"):
        registered("classes")
    with pytest.raises(ValueError, match="'auto'"):
        registered("auto")


def test_a_kind_without_a_name_of_its_own_takes_none_away():
    class Wide(Gaussian):
        pass

    assert KINDS["values"] is Gaussian
    assert Wide().name == "values"
