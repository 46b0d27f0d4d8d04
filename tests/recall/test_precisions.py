"""Every rule in every precision that a CPU trains in."""

import pytest
import torch

from recall_lightning.merging.rules import Uniform
from recall_lightning.recall.settings import ImportanceSettings, MomentSettings, SnapshotSettings
from tests.support.callbacks import FEW, Spy
from tests.support.training import Plain, loader, quiet_trainer

PRECISIONS = {
    "32-true": torch.float32,
    "bf16-true": torch.bfloat16,
    "bf16-mixed": torch.float32,
    "16-true": torch.float16,
    "64-true": torch.float64,
}
RULES = {
    "default": {},
    "paper": {"rule": "rbf", "samples": FEW},
    "cka and cosine": {
        "rule": "cka",
        "end_rule": "cosine",
        "samples": FEW,
        "snapshots": SnapshotSettings(number=2),
    },
    "importance": {"rule": "importance", "importance": ImportanceSettings("gradients")},
    "subspace": {"rule": "subspace", "moments": MomentSettings(width=9, rank=3)},
    "product": {"rule": "rbf*importance", "end_rule": "cosine*subspace", "samples": FEW},
    "uniform": {"rule": Uniform(0.3)},
}


class Half(Plain):
    """Adam whose ε is no zero in float16."""

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2, eps=1e-4)


def trained(precision, rule, **kwargs):
    module, spy = Half(), Spy(every=3, **RULES[rule])
    for task in range(2):
        quiet_trainer(spy, precision=precision, **kwargs).fit(module, loader(task))
    return spy


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_rule_merges_in_every_precision(precision, rule):
    spy = trained(precision, rule)
    assert len(spy.history) == 6
    assert {tensor.dtype for tensor in spy.after.values()} == {PRECISIONS[precision]}
    assert {tensor.dtype for tensor in spy.snapshots[0].values()} == {PRECISIONS[precision]}
    assert all(tensor.isfinite().all() for tensor in spy.after.values())
    moved = [not torch.equal(spy.before[name], after) for name, after in spy.after.items()]
    assert any(moved)
    for record in spy.history:
        assert all(0 <= value <= 1 for value in record["coefficient"].values())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_is_written_is_the_average_to_the_last_digit(precision):
    spy = trained(precision, "uniform")
    for name, before in spy.before.items():
        exact = before.double().lerp(spy.snapshots[0][name].double(), 0.3)
        digit = torch.finfo(before.dtype).eps * float(before.abs().max())
        torch.testing.assert_close(spy.after[name].double(), exact, rtol=0, atol=digit)


def test_on_a_cpu_lightning_trains_16_mixed_as_bf16_mixed_and_says_so():
    with pytest.warns(UserWarning, match="not supported on CPU. Using `precision='bf16-mixed'`"):
        assert len(trained("16-mixed", "uniform").history) == 6
