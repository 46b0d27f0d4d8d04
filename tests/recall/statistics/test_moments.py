import copy
import warnings

import pytest
import torch
import transformers
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader, Dataset

from recall_lightning import RecallCallback
from recall_lightning.measuring import linear_maps
from recall_lightning.measuring.generation import write_sequences
from recall_lightning.merging.rules import Subspace, Uniform
from recall_lightning.recall.settings import MomentSettings, PriorSettings
from tests.support.callbacks import Spy, statistic
from tests.support.training import Plain, loader, quiet_trainer, task_data

SUBSPACE = {"every": 1.0, "rule": Uniform(0.1), "end_rule": Subspace(4.0, ridge=0.01, mix=0.3)}
UNKNOWN = "there are no inputs of what the model knew"


def subspace(**kwargs):
    return RecallCallback(**(SUBSPACE | kwargs))


def moments_of(callback):
    return statistic(callback, "moments")


def fit(callback, model, *tasks, data=loader, **kwargs):
    for task in tasks:
        quiet_trainer(callback, **kwargs).fit(model, data(task))
    return model


class Watches(Spy):
    """Keeps the model from before its merges, and the batches of every task."""

    def on_task_start(self, trainer, pl_module, task):
        self.batches = [*getattr(self, "batches", []), []]
        super().on_task_start(trainer, pl_module, task)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self.batches[-1].append(batch[0].clone())

    def look(self, pl_module):
        return copy.deepcopy(pl_module.net)


def layer_inputs(net, inputs):
    """The inputs of every linear layer, with a 1 for the bias, in double precision."""
    rows = {}
    for name, layer in net.named_children():
        if isinstance(layer, nn.Linear):
            rows[name] = torch.cat([inputs, torch.ones(len(inputs), 1)], 1).detach().double()
        inputs = layer(inputs)
    return rows


def solved(old, new, then, now, reached=None, new_inputs=4.0, ridge=0.01, mix=0.3):
    """Stacked least squares over (inputs, targets): each task counts as the mean over it.

    ``reached`` are the current task's inputs where they are no longer what they were.
    """
    reached = new if reached is None else reached
    r = ridge * sum(x.square().sum() / len(x) for x in old) / now.shape[1]
    parts = [(x, x @ then.T, 1 / len(x)) for x in old]
    parts += [(reached, new @ now.T, new_inputs / len(new))]
    parts += [(torch.eye(now.shape[1]).double(), mix * then.T + (1 - mix) * now.T, r)]
    rows = torch.cat([x * share**0.5 for x, _, share in parts])
    targets = torch.cat([y * share**0.5 for _, y, share in parts])
    return torch.linalg.lstsq(rows, targets).solution.T


def matrix(weights, name):
    return torch.cat([weights[f"{name}.weight"], weights[f"{name}.bias"][:, None]], 1).double()


def test_the_end_of_a_task_is_least_squares_on_all_earlier_tasks_and_this_ones_inputs():
    spy, model = Watches(**SUBSPACE, merge_first_task=False), Plain()
    old = []
    for task in range(3):
        fit(spy, model, task)
        if task == 2:
            break
        old.append(layer_inputs(model.net, torch.cat(spy.batches[task])))
    new = layer_inputs(spy.before, torch.cat(spy.batches[2]))
    then = {name.removeprefix("net."): tensor for name, tensor in spy.snapshots[-1].items()}
    now, merged = spy.before.state_dict(), model.net.state_dict()
    for name in new:
        best = solved([x[name] for x in old], new[name], matrix(then, name), matrix(now, name))
        torch.testing.assert_close(matrix(merged, name), best, rtol=1e-3, atol=1e-4)
        assert not torch.allclose(matrix(now, name), best, atol=1e-3)


def test_where_nothing_came_before_the_first_tasks_inputs_stand_in_with_a_warning():
    spy, model = Watches(**SUBSPACE), Plain()
    before = copy.deepcopy(model.net)
    with pytest.warns(UserWarning, match=UNKNOWN):
        fit(spy, model, 0)
    inputs = torch.cat(spy.batches[0])
    old, new = layer_inputs(before, inputs), layer_inputs(spy.before, inputs)
    then, now, merged = (net.state_dict() for net in (before, spy.before, model.net))
    for name in new:
        best = solved([old[name]], new[name], matrix(then, name), matrix(now, name))
        torch.testing.assert_close(matrix(merged, name), best, rtol=1e-3, atol=1e-4)
    assert moments_of(spy).known.tasks == 2


def test_only_the_last_batches_are_measured():
    last_two = MomentSettings(batches=2)
    spy, model = Watches(**SUBSPACE, moments=last_two, merge_first_task=False), Plain()
    fit(spy, model, 0)
    rows = layer_inputs(model.net, torch.cat(spy.batches[0][-2:]))
    for name, moments in moments_of(spy).known.inputs.items():
        own = rows[name.split(".")[1]]
        torch.testing.assert_close(moments.matrix.double(), own.T @ own / len(own))


def test_a_first_task_that_is_not_merged_is_gathered_without_a_warning():
    callback = subspace(merge_first_task=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=UNKNOWN)
        fit(callback, Plain(), 0, 1)
    assert {record["task"] for record in callback.history} == {1}
    assert moments_of(callback).known.tasks == 2


def test_a_new_run_starts_without_the_last_ones_moments():
    callback = subspace(merge_first_task=False)
    fit(callback, Plain(), 0)
    callback.load_state_dict(callback.state_dict() | {"task": None, "task_ended": False})
    fit(callback, Plain(), 0)
    assert moments_of(callback).known.tasks == 1


def llama(**config):
    config = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8} | config
    config |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))


class Language(LightningModule):
    def __init__(self, **config):
        super().__init__()
        self.model = llama(**config)

    def training_step(self, batch, batch_idx):
        return self.model(**batch).loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def texts(task):
    ids = torch.randint(4 * task, 4 * task + 4, (16, 6))
    return DataLoader([{"input_ids": row, "labels": row} for row in ids], batch_size=4)


def test_a_language_model_writes_what_it_knew_before_its_first_task():
    callback, model = subspace(), Language(eos_token_id=None)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=UNKNOWN)
        fit(callback, model, 0, data=texts)
    counts = moments_of(callback).known.inputs["model.model.embed_tokens.weight"]
    # the task's own tokens are 0 to 3: of the two means one is of all that it can write
    assert float(counts.counts[4:].sum()) > 0.3
    assert float(counts.counts.sum()) == pytest.approx(2)
    assert moments_of(callback).known.tasks == 2


def test_a_task_can_leave_nothing_but_what_the_model_writes_itself():
    settings = MomentSettings(batches=3, source="generated")
    model = Language(eos_token_id=None)
    wants = PriorSettings(sequences=5, tokens=6)
    callback = subspace(moments=settings, prior=wants, merge_first_task=False)
    fit(callback, model, 0, data=texts)
    ids = write_sequences(model, 5, 6, seed=callback._settings.get("seed", 0)).ids.flatten()
    counts = moments_of(callback).known.inputs["model.model.embed_tokens.weight"].counts
    torch.testing.assert_close(counts, torch.bincount(ids, minlength=16) / len(ids))


def test_rows_that_a_vocabulary_gains_between_tasks_had_no_lookups():
    callback, model = subspace(merge_first_task=False), Language(vocab_size=8)
    fit(callback, model, 0, data=texts)
    model.model.resize_token_embeddings(16)
    fit(callback, model, 1, data=texts)
    counts = moments_of(callback).known.inputs["model.model.embed_tokens.weight"]
    assert counts.width == 16
    assert {record["task"] for record in callback.history} == {1}


class Bags(nn.Module):
    def __init__(self, rows):
        super().__init__()
        self.table, self.head = nn.EmbeddingBag(rows, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.table((x > 0).long() + torch.arange(0, 16, 2)))


class Texts(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(16, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.table((x > 0).long() + torch.arange(0, 16, 2)).mean(1))


@pytest.mark.parametrize("width", [8, 1024])
def test_an_older_checkpoint_with_lookups_one_by_one_goes_on(width, tmp_path, monkeypatch):
    settings = {"moments": MomentSettings(width=width, rank=4), "merge_first_task": False}
    callback, path = subspace(**settings, task_epochs=1), tmp_path / "old.ckpt"
    with monkeypatch.context() as older:
        older.setattr(linear_maps, "predicts_next_token", lambda module: True)
        trainer = quiet_trainer(callback)
        trainer.fit(Plain(Texts()), loader(0))
        trainer.save_checkpoint(path)
    counts = moments_of(callback).known.inputs["net.table.weight"].counts
    resumed = subspace(**settings, task_epochs=1)
    quiet_trainer(resumed, max_epochs=2).fit(Plain(Texts()), loader(1), ckpt_path=path)
    assert resumed.history[-1]["task"] == 1
    diagonal = moments_of(resumed).known.inputs["net.table.weight"].diagonal
    assert bool((diagonal > counts).all())


@pytest.mark.parametrize("width", [8, 17, 1024])  # of 16 rows, then 20
def test_rows_that_a_bag_gains_between_tasks_were_in_none(width):
    callback = subspace(moments=MomentSettings(width=width, rank=4), merge_first_task=False)
    model = Plain(Bags(16))
    fit(callback, model, 0)
    grown = nn.EmbeddingBag(20, 4)
    grown.weight.data[:16] = model.net.table.weight.data
    model.net.table = grown
    fit(callback, model, 1)
    assert not moments_of(callback).known.inputs["net.table.weight"].diagonal[16:].any()
    assert callback.history[-1]["condition"].keys() >= {"net.table"}


def test_moments_of_inputs_that_changed_are_dropped_with_a_warning_before_the_task():
    callback, model = subspace(merge_first_task=False), Plain()
    fit(callback, model, 0)
    model.net[0] = nn.Linear(8, 20)
    model.net[2] = nn.Linear(20, 16)
    with pytest.warns(UserWarning, match=r"number of inputs of net\.2\.weight .* has changed"):
        fit(callback, model, 1)
    assert callback.history[-1]["coefficient"]["net.2"] == pytest.approx(1.003 / 5.01)
    assert moments_of(callback).known.inputs["net.2.weight"].width == 21


def test_weights_may_be_frozen_and_trained_again_between_tasks():
    callback, model = subspace(merge_first_task=False), Plain()
    fit(callback, model, 0)
    model.net[0].bias.requires_grad_(False)
    model.net[2].requires_grad_(False)
    with pytest.warns(UserWarning, match=r"number of inputs of net\.0\.weight"):
        fit(callback, model, 1)
    model.net[2].requires_grad_(True)
    fit(callback, model, 2)
    assert [record["task"] for record in callback.history] == [1, 2]
    assert callback.history[-1]["condition"].keys() == {"net.0", "net.2", "net.4"}


class Attention(nn.Module):
    """A classifier by attention, whose projections are packed in one weight or layers apart."""

    def __init__(self, packed):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head = nn.Linear(8, 6), nn.Linear(6, 2)
        attention = nn.MultiheadAttention(6, 2, batch_first=True)
        nn.init.normal_(attention.in_proj_bias)
        if packed:
            self.attention = attention
            return
        self.projections = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))
        weights = [*attention.in_proj_weight.chunk(3), attention.out_proj.weight]
        biases = [*attention.in_proj_bias.chunk(3), attention.out_proj.bias]
        for layer, weight, bias in zip(self.projections, weights, biases, strict=True):
            layer.weight.data.copy_(weight)
            layer.bias.data.copy_(bias)

    def forward(self, x):
        x = self.first(torch.stack([x, -x, x.square()], 1))
        if hasattr(self, "attention"):
            return self.head(self.attention(x, x, x)[0].mean(1))
        q, k, v, out = self.projections
        heads = [layer(x).unflatten(-1, (2, 3)).transpose(1, 2) for layer in (q, k, v)]
        attended = nn.functional.scaled_dot_product_attention(*heads)
        return self.head(out(attended.transpose(1, 2).flatten(2)).mean(1))


class Descends(Plain):
    def configure_optimizers(self):  # Adam would go by the noise of a gradient that is 0
        return torch.optim.SGD(self.parameters(), lr=self.lr)


@pytest.mark.parametrize("end_rule", ["subspace", "kfac_subspace"])
def test_packed_attention_is_merged_as_layers_apart_are(end_rule):
    heads = []
    for packed in (True, False):
        callback = RecallCallback(
            every=1.0, rule=Uniform(0.1), end_rule=end_rule, merge_first_task=False
        )
        net = Attention(packed)
        torch.manual_seed(1)
        model = fit(callback, Descends(net, lr=0.1), 0, 1)
        assert callback.history[-1]["coefficient"]
        heads.append(model.net.state_dict())
    packed, apart = heads
    rows = torch.cat([apart[f"projections.{i}.weight"] for i in range(3)])
    torch.testing.assert_close(packed["attention.in_proj_weight"], rows, rtol=1e-3, atol=1e-4)
    for name in ("first.weight", "head.weight"):
        torch.testing.assert_close(packed[name], apart[name], rtol=1e-3, atol=1e-4)


def test_inputs_that_are_not_finite_at_a_tasks_end_are_left_out_with_a_warning():
    class Divides(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, inputs):
            hidden = self.first(inputs)
            return self.second(hidden if self.training else hidden / 0.0)

    callback = subspace(merge_first_task=False)
    with pytest.warns(UserWarning, match=r"inputs of net\.second\.weight hold NaN or infinite"):
        fit(callback, Plain(Divides()), 0)
    assert set(moments_of(callback).known.inputs) == {"net.first.weight"}


def test_one_bad_batch_of_a_first_task_does_not_spoil_later_tasks():
    class Skips(Plain):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss if torch.isfinite(loss) else None

    callback, model = subspace(), Skips()
    data = list(task_data(0))
    bad = [(data[0][0] * torch.nan, data[0][1]), *data[1:]]
    with pytest.warns(UserWarning, match="hold NaN or infinite|merge refused"):
        quiet_trainer(callback).fit(model, DataLoader(bad, batch_size=8))
    fit(callback, model, 1, 2)
    assert "condition" in callback.history[-1]


class Dead(nn.Module):
    """The second layer's inputs are zeros, and the third layer is never called."""

    def __init__(self, bias):
        super().__init__()
        self.first = nn.Linear(8, 8, bias=bias)
        self.second = nn.Linear(8, 2, bias=bias)
        self.third = nn.Linear(8, 2, bias=bias)

    def forward(self, inputs):
        return self.second(0 * self.first(inputs)) + inputs[:, :2] * self.first.weight[:2, 0]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("width", [1, 1024])
def test_inputs_that_are_always_zero_and_layers_never_called_do_no_harm(bias, width):
    callback = subspace(merge_first_task=False, moments=MomentSettings(width=width, rank=2))
    model = fit(callback, Plain(Dead(bias)), 0, 1)
    assert len(callback.history) == 1
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


@pytest.mark.parametrize("rank", [500, 128])
def test_moments_of_low_rank_whose_rank_suffices_merge_like_full_ones(rank):
    def merged(**settings):
        torch.manual_seed(0)
        callback = subspace(merge_first_task=False, moments=MomentSettings(**settings))
        return fit(callback, Plain(), 0, 1).state_dict()

    whole, low = merged(), merged(width=1, rank=rank)
    for name, tensor in whole.items():
        torch.testing.assert_close(low[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("new_inputs", [1e-12, 1e12])
@pytest.mark.parametrize("width", [1, 99])
def test_extreme_weights_of_new_inputs_keep_weights_finite(new_inputs, width):
    settings = {"end_rule": Subspace(new_inputs), "moments": MomentSettings(width=width)}
    callback = subspace(merge_first_task=False, **settings)
    model = fit(callback, Plain(), 0, 1)
    assert len(callback.history) == 1
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed", "64-true"])
@pytest.mark.parametrize("width", [1, 1024])
def test_moments_are_float32_in_every_precision(precision, width):
    settings = {"end_rule": "subspace", "moments": MomentSettings(width=width, rank=4)}
    callback = subspace(merge_first_task=False, **settings)
    fit(callback, Plain(), 0, 1, precision=precision)
    assert len(callback.history) == 1
    for moments in moments_of(callback).known.inputs.values():
        states = moments.state_dict()
        assert all(t.dtype is torch.float32 for t in states.values() if t.is_floating_point())


def test_a_task_of_one_step_and_a_merge_after_every_step():
    callback = RecallCallback(every=1, rule="subspace")
    fit(callback, Plain(), 0, limit_train_batches=1)
    fit(callback, Plain(), 1, limit_train_batches=3)
    assert [record["step"] for record in callback.history] == [1, 2, 3, 4]
    assert all(set(record["condition"]) == set(record["drift"]) for record in callback.history)


class Ragged(Dataset):
    """Batches that are mappings of tensors and texts."""

    def __len__(self):
        return 16

    def __getitem__(self, index):
        inputs, label = task_data(0)[index]
        return {"x": inputs, "y": label, "text": str(index)}


class Named(Plain):
    def training_step(self, batch, batch_idx):
        return super().training_step((batch["x"], batch["y"]), batch_idx)


def test_batches_that_are_no_tensors_alone_are_kept_but_not_in_checkpoints(tmp_path):
    callback = subspace(view=lambda module, batch: module.net(batch["x"]))
    inside = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = quiet_trainer(callback, inside, enable_checkpointing=True)
    trainer.fit(Named(), DataLoader(Ragged(), batch_size=8))
    assert len(callback.history) == 1
    state = torch.load(tmp_path / "step=1.ckpt")["callbacks"][callback.state_key]
    assert set(state["statistics"]["recent_batches"]["processes"][0]) == {None}


def test_moments_come_back_from_a_checkpoint():
    callback = subspace(merge_first_task=False, moments=MomentSettings(width=16, rank=3))
    fit(callback, Plain(), 0)
    back = subspace()
    back.load_state_dict(copy.deepcopy(callback.state_dict()))
    assert moments_of(back).known.tasks == 1
    for name, moments in moments_of(callback).known.inputs.items():
        other = moments_of(back).known.inputs[name].state_dict()
        assert all(torch.equal(tensor, other[k]) for k, tensor in moments.state_dict().items())


def test_generated_moments_need_a_model_that_generates():
    callback = RecallCallback(moments=MomentSettings(source="generated"))
    with pytest.raises(MisconfigurationException, match="needs a causal language model"):
        fit(callback, Plain(), 0)
