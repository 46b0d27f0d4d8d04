import torch
from torch import nn

from recall_lightning.callbacks._trainer.optimizer_state import forget


def test_what_is_forgotten_starts_anew_and_the_rest_goes_on():
    net = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    forget([optimizer], [net.weight])
    assert list(optimizer.state) == [net.bias]
    optimizer.step()
    assert optimizer.state[net.weight]["step"] == 1
    assert optimizer.state[net.bias]["step"] == 2
