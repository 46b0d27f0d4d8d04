import pytest
import torch

from benchmarks.real.own_text import (
    BagClassifier,
    RecurrentClassifier,
    TransformerClassifier,
    _evenly,
)


def test_classes_with_few_texts_leave_their_share_to_the_others():
    texts = {"many": ["a"] * 90, "few": ["b"] * 5, "some": ["c"] * 40}
    counts = {name: len(chosen) for name, chosen in _evenly(texts, 65, seed=0).items()}
    assert counts == {"few": 5, "some": 30, "many": 30}


NETWORKS = [TransformerClassifier(), RecurrentClassifier(), BagClassifier(classes=4)]


@pytest.mark.parametrize("network", NETWORKS)
def test_what_fills_up_a_text_changes_nothing(network):
    network.eval()
    words = torch.tensor([[3, 7, 9] + [0] * 37, [1] * 40])
    before = network(words)
    with torch.no_grad():
        network.words.weight[0].fill_(5)
    assert torch.allclose(network(words), before, atol=1e-6)
    assert before.isfinite().all()
