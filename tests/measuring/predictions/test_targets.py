import pytest
import torch

from recall_lightning.measuring.predictions.targets import are_probabilities

LOGITS = torch.zeros(4, 2, requires_grad=True)


@pytest.mark.parametrize(
    "outputs",
    [
        LOGITS.sigmoid(),
        LOGITS.softmax(-1),
        LOGITS.sigmoid()[:, 0],
        LOGITS.sigmoid().flatten().view(8, 1),
        LOGITS.sigmoid().bfloat16(),
    ],
    ids=["sigmoid", "softmax", "selected", "reshaped", "cast"],
)
def test_a_sigmoid_and_a_softmax_put_out_probabilities(outputs):
    assert are_probabilities(outputs)


@pytest.mark.parametrize(
    "outputs",
    [LOGITS, LOGITS + 0.5, LOGITS.log_softmax(-1), LOGITS.sigmoid() @ torch.eye(2), LOGITS.relu()],
    ids=["leaf", "sum", "log softmax", "product", "relu"],
)
def test_other_outputs_are_none_whatever_their_values(outputs):
    assert not are_probabilities(outputs)
