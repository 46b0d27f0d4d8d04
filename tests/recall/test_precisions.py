"""Every rule in every precision that a CPU trains in."""

import pytest
import torch

from recall_lightning import RecallCallback
from recall_lightning.weights.naming import named_weights
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
    "paper": {"rule": "rbf", "end_rule": "rbf"},
    "cka and cosine": {"rule": "cka", "end_rule": "cosine", "snapshots": 2},
    "importance": {"rule": "importance", "importance_source": "gradients", "end_rule": None},
    "subspace": {"rule": "subspace", "end_rule": "subspace", "moment_width": 9, "moment_rank": 3},
    "product": {"rule": "rbf*importance", "end_rule": "cosine*subspace"},
    "uniform": {"rule": "uniform", "end_rule": None, "strength": 0.3},
}


class Half(Plain):
    """Adam whose ε is no zero in float16."""

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2, eps=1e-4)


class Spy(RecallCallback):
    """Keeps the weights before and after the last merge."""

    def _merge(self, trainer, pl_module, rule):
        self.before = {n: w.detach().clone() for n, w in named_weights(pl_module).items()}
        super()._merge(trainer, pl_module, rule)
        self.after = {n: w.detach().clone() for n, w in named_weights(pl_module).items()}


def trained(precision, rule, **kwargs):
    module, spy = Half(), Spy(every=3, typical_samples=8, pool_size=16, **RULES[rule])
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
