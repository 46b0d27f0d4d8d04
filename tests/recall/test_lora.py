import peft
import pytest
import torch
import transformers
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader

from recall_lightning import RecallCallback
from recall_lightning.merging.lora.pairs import find_lora_pairs
from recall_lightning.merging.rules import Subspace, Uniform
from recall_lightning.recall.settings import MomentSettings, SampleSettings
from recall_lightning.recall.statistics import moments as measured
from recall_lightning.weights.naming import named_weights
from tests.support.callbacks import Spy
from tests.support.training import quiet_trainer

FOUR = SampleSettings(typical=4, pool=16)


class LoraModule(LightningModule):
    """A tiny Llama whose base is frozen, with adapters."""

    def __init__(self, r=4, **lora):
        super().__init__()
        config = transformers.LlamaConfig(
            vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2,
        )  # fmt: skip
        adapter = peft.LoraConfig(r=r, lora_alpha=8, target_modules=["q_proj", "v_proj"], **lora)
        self.model = peft.get_peft_model(transformers.LlamaForCausalLM(config), adapter)

    def training_step(self, batch, batch_idx):
        return self.model(**batch).loss

    def configure_optimizers(self):
        return torch.optim.AdamW((p for p in self.parameters() if p.requires_grad), lr=1e-2)


def batches(seed):
    ids = torch.randint(0, 32, (32, 8), generator=torch.Generator().manual_seed(seed))
    return DataLoader([{"input_ids": row, "labels": row} for row in ids], batch_size=4)


def updates(tensors, pairs):
    tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    factors = {pair.module: pair.factors(tensors) for pair in pairs}
    return {module: f.scale * f.b @ f.a for module, f in factors.items()}


class Updates(Spy):
    """Keeps the updates before and after a merge, and those of the snapshot."""

    def look(self, pl_module):
        pairs = find_lora_pairs(pl_module)
        if self.snapshots:
            self.then = updates(self.snapshots[-1], pairs)
        return updates(named_weights(pl_module), pairs)


def test_an_adapter_is_merged_as_the_product_of_its_factors():
    spy, model = Updates(every=1.0, rule="rbf", samples=FOUR), LoraModule()
    for task in range(2):
        quiet_trainer(spy).fit(model, batches(task))
    record = spy.history[-1]
    for module in spy.before:
        block = next(b.name for b in spy.blocks if module.startswith(b.name))
        w = record["coefficient"][block]
        u, s, v = torch.linalg.svd((1 - w) * spy.before[module] + w * spy.then[module])
        best = u[:, :4] * s[:4] @ v[:4]
        torch.testing.assert_close(spy.after[module], best, rtol=1e-3, atol=1e-5)
    assert all(0 <= lost < 0.5 for lost in record["discarded_energy"].values())


def measured_batches(monkeypatch):
    counts, measure = [], measured.kronecker_factors

    def counted(module, maps, batches, *args, **kwargs):
        counts.append(len(batches))
        return measure(module, maps, batches, *args, **kwargs)

    monkeypatch.setattr(measured, "kronecker_factors", counted)
    return counts


def test_an_adapter_is_measured_on_as_many_batches_as_hold_the_labels(monkeypatch):
    counts = measured_batches(monkeypatch)
    callback = RecallCallback(every=1.0, moments=MomentSettings(labels=40))
    quiet_trainer(callback).fit(LoraModule(), batches(0))
    # the first batch; sequences that the base wrote, then of 32 tokens a batch: merge, end
    assert counts == [1, 1, 2, 2]


def test_where_an_embedding_is_trained_all_batches_are_measured(monkeypatch):
    counts = measured_batches(monkeypatch)
    callback = RecallCallback(every=1.0, moments=MomentSettings(labels=40, batches=3))
    model = LoraModule()
    model.model = model.model.unload().requires_grad_(True)
    quiet_trainer(callback).fit(model, batches(0))
    assert counts == [1, 16, 3, 3]  # all that the base wrote, then the last ones: merge, end


def test_the_memory_of_moments_is_stated_once_at_the_first_batch(monkeypatch):
    said = []
    monkeypatch.setattr(measured, "rank_zero_info", said.append)
    callback, model = RecallCallback(every=1.0), LoraModule()
    for task in range(2):
        quiet_trainer(callback).fit(model, batches(task))
    (told,) = [text for text in said if "MiB" in text]
    state = callback.state_dict()["statistics"]["moments"]
    kept = {
        t.data_ptr(): t
        for part in ("old", "old_outputs")
        for m in state[part].values()
        for t in m.values()
    }
    expected = sum(t.nbytes for t in kept.values()) / 2**20
    assert f"take {expected:.3g} MiB" in told


def test_snapshot_is_of_the_adapter_and_not_of_its_base():
    callback, model = RecallCallback(every=1.0, rule="rbf", samples=FOUR), LoraModule()
    base = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    quiet_trainer(callback).fit(model, batches(0))
    adapter = sum(p.numel() * 4 for p in model.parameters() if p.requires_grad)
    assert callback.snapshots[0].nbytes == adapter
    assert all(torch.equal(p, base[n]) for n, p in model.named_parameters() if n in base)


def test_a_fresh_adapter_still_learns_after_a_merge():
    """B starts at zero: a merge must not leave directions that get no gradient."""
    callback = RecallCallback(every=1, rule=Uniform(0.9))
    model = LoraModule()
    quiet_trainer(callback, max_epochs=1).fit(model, batches(0))
    for pair in find_lora_pairs(model):
        a = named_weights(model)[pair.a]
        assert (a.norm(dim=1) > 1e-3).all()
        assert named_weights(model)[pair.b].abs().max() > 0


def test_what_cannot_be_merged_as_a_product_is_refused_by_name():
    with pytest.raises(Exception, match="DoRA layer, not plain LoRA"):
        quiet_trainer(RecallCallback()).fit(LoraModule(use_dora=True), batches(0))


def test_factors_of_one_update_cannot_have_coefficients_of_their_own():
    callback = RecallCallback(every=1.0, rule=Uniform({"*lora_B*": 0.9, "*": 0.1}))
    with pytest.raises(MisconfigurationException, match="are merged as one update"):
        quiet_trainer(callback).fit(LoraModule(), batches(0))


def test_an_update_that_merges_shrink_to_nothing_does_not_end_training():
    class Frozen(LoraModule):
        def configure_optimizers(self):
            schedule = torch.optim.lr_scheduler.LambdaLR(
                optimizer := super().configure_optimizers(), lambda step: float(step < 2)
            )
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    callback, model = RecallCallback(every=1, rule=Uniform(0.99)), Frozen()
    quiet_trainer(callback, max_epochs=6).fit(model, batches(0))
    assert all(torch.isfinite(p).all() for p in model.parameters())
    for pair in find_lora_pairs(model):
        assert (named_weights(model)[pair.a].norm(dim=1) > 1e-3).all()


@pytest.mark.parametrize("rank", [4, 16])
def test_an_update_is_merged_by_a_matrix_as_the_dense_formula_says_up_to_the_rank(rank):
    """With a rank of all of the hidden size nothing is lost."""

    class Dense(Subspace):
        def coefficients(self, inputs):
            self.given = super().coefficients(inputs)
            return self.given

    rule = Dense(4.0)
    spy = Updates(every=1.0, rule="rbf", end_rule=rule, merge_first_task=False)
    model = LoraModule(r=rank)
    for task in range(2):
        quiet_trainer(spy).fit(model, batches(task))
    pairs = find_lora_pairs(model)
    assert rule.given[pairs[0].a] is rule.given[pairs[0].b]
    for pair in pairs:
        live, then = (side[pair.module].double() for side in (spy.before, spy.then))
        dense = live + rule.given[pair.a].pull(then - live)
        u, s, v = torch.linalg.svd(dense)
        best = (u[:, :rank] * s[:rank] @ v[:rank]).float()
        torch.testing.assert_close(spy.after[pair.module], best, rtol=1e-3, atol=1e-5)
        assert not torch.allclose(spy.after[pair.module], spy.before[pair.module], atol=1e-4)
    lost = spy.history[-1]["discarded_energy"].values()
    assert all(0 < part < 0.5 if rank == 4 else part < 1e-6 for part in lost)


def test_default_rules_merge_adapters_of_a_model_that_writes_its_own_sequences():
    callback, model = RecallCallback(every=2, rule="importance", end_rule="subspace"), LoraModule()
    for task in range(2):
        quiet_trainer(callback).fit(model, batches(task))
    assert [record["task"] for record in callback.history] == [0] * 4 + [1] * 4
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert callback.history[-1]["condition"]
