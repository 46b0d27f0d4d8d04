"""What differs on a GPU: its precisions, random state, memory and compiled code."""

import copy
import gc
from dataclasses import replace

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn

from recall_lightning import ForgettingMonitor, RecallCallback
from recall_lightning.merging.rules import Uniform
from recall_lightning.recall.settings import SnapshotSettings
from tests.recall.test_precisions import PRECISIONS, RULES, Half
from tests.support.callbacks import Never, Spy
from tests.support.resumed_runs import Random, differences, savers, stream
from tests.support.training import Plain, loader, quiet_trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

SHARDED = ("32-true", "bf16-true", "bf16-mixed", "16-true")
IN_FILES = {"snapshots": SnapshotSettings(to="file")}
DTYPES = PRECISIONS | {"16-mixed": torch.float32}


def gpu_trainer(*callbacks, **kwargs):
    return quiet_trainer(*callbacks, **({"accelerator": "gpu", "devices": 1} | kwargs))


@pytest.fixture(autouse=True)
def _deterministic(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("precision", DTYPES)
def test_every_rule_merges_in_every_precision(precision, rule):
    module, spy = Half(), Spy(every=3, **RULES[rule])
    for task in range(2):
        gpu_trainer(spy, precision=precision).fit(module, loader(task))
    assert len(spy.history) == 6
    for tensor in spy.after.values():
        assert tensor.dtype == DTYPES[precision]
        assert tensor.is_cuda
        assert tensor.isfinite().all()
    assert any(not torch.equal(spy.before[name], after) for name, after in spy.after.items())


@pytest.mark.parametrize("rule", ["default", "importance"])
def test_steps_that_loss_scaling_skips_spoil_nothing(rule):
    class Overflows(Plain):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss * float("inf") if batch_idx % 3 == 1 else loss

    module, recall = Overflows(), RecallCallback(every=3, **RULES[rule])
    for task in range(2):
        gpu_trainer(recall, precision="16-mixed").fit(module, loader(task))
    assert len(recall.history) == 6
    assert all(weight.isfinite().all() for weight in module.state_dict().values())


@pytest.mark.parametrize("rule", ["default", "product"])
def test_measuring_leaves_training_as_it_was(rule):
    def train(*callbacks):
        torch.manual_seed(0)
        module = Random()
        gpu_trainer(*callbacks).fit(module, loader(0))
        return module.state_dict()

    assert differences(train(), train(Never(every=3, **RULES[rule]))) == []


def trained(recall, folder, checkpoint=None, save=False):
    torch.manual_seed(0)
    module, monitor = Random(), ForgettingMonitor("val/acc")
    saving = savers(folder, ["batch"]) if save else []
    trainer = gpu_trainer(
        *[recall, monitor, *saving],
        max_epochs=4,
        reload_dataloaders_every_n_epochs=1,
        enable_checkpointing=save,
        default_root_dir=folder,
    )
    trainer.fit(module, datamodule=stream(), ckpt_path=checkpoint)
    coefficients = [record["coefficient"] for record in recall.history]
    weights = {name: tensor.cpu() for name, tensor in module.state_dict().items()}
    return {"weights": weights, "coefficients": coefficients, "matrix": monitor.matrix}


@pytest.mark.parametrize("storage", [{}, IN_FILES, {"buffers": "recalibrate"}], ids=str)
@pytest.mark.parametrize("rule", ["default", "paper", "importance"])
def test_a_resumed_run_ends_bit_for_bit_as_one_that_went_through(rule, storage, tmp_path):
    def recall():
        return RecallCallback(every=2, **RULES[rule], **storage)

    whole = trained(recall(), tmp_path, save=True)
    checkpoints = sorted(tmp_path.glob("*.ckpt"))
    for path in checkpoints[:: len(checkpoints) // 4]:
        assert differences(whole, trained(recall(), tmp_path, path)) == []


@pytest.mark.parametrize("rule", ["default", "paper", "cka and cosine"])
def test_where_snapshots_are_kept_changes_no_bit(rule, tmp_path):
    kept = RULES[rule].get("snapshots", SnapshotSettings())
    runs = [
        trained(RecallCallback(every=2, **RULES[rule] | {"snapshots": where}), tmp_path)
        for where in (kept, replace(kept, device="cpu"), replace(kept, to="file"))
    ]
    assert differences(runs[0], runs[1]) == differences(runs[0], runs[2]) == []


def test_a_snapshot_on_the_cpu_spares_most_of_a_copy_on_the_gpu():
    def peak(**settings):
        torch.manual_seed(0)
        module = Plain(nn.Sequential(nn.Linear(8, 4096), nn.Linear(4096, 4096), nn.Linear(4096, 2)))
        module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=1e-3)
        recall = RecallCallback(every=2, rule=Uniform(0.2), snapshots=SnapshotSettings(**settings))
        gc.collect()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        gpu_trainer(recall).fit(module, loader(0))
        return torch.cuda.max_memory_allocated() - before

    copy_of_weights = 4096 * 4096 * 4
    # a merge brings a part of it to the GPU at a time
    assert peak() - peak(device="cpu") > 0.5 * copy_of_weights


@pytest.mark.parametrize("rule", ["default", "paper"])
def test_compiled_models_merge_as_others_within_rounding(rule):
    def train(compile_it):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 2)
        )
        module = Plain(torch.compile(net) if compile_it else net)
        recall = RecallCallback(every=3, **RULES[rule])
        gpu_trainer(recall).fit(module, loader(0))
        return net.state_dict()

    plain, compiled = copy.deepcopy(train(False)), train(True)
    for name, tensor in plain.items():
        torch.testing.assert_close(compiled[name], tensor, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("kind", "precision"),
    [*[("ddp", precision) for precision in DTYPES], *[("fsdp", p) for p in SHARDED]],
)
def test_strategies_of_many_gpus_run_on_one(kind, precision, rule):
    class Sharded(Half):
        def configure_model(self):
            if kind == "fsdp" and not hasattr(self, "sharded"):
                from torch.distributed.fsdp import fully_shard

                self.sharded = True
                fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    recall, module = RecallCallback(every=3, **RULES[rule]), Sharded()
    for task in range(2):
        strategy = (
            DDPStrategy()
            if kind == "ddp"
            else ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1)
        )
        gpu_trainer(recall, strategy=strategy, precision=precision).fit(module, loader(task))
    assert len(recall.history) == 6
