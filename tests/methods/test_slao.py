import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from peft import LoraConfig, get_peft_model

from recall_lightning.methods import Slao
from recall_lightning.methods.slao import orthonormal
from tests.support.baseline_tools import assert_same, trained_with_a_break, weights_of
from tests.support.tiny_streams import counting, loss_of, tiny_llama_module
from tests.support.training import Plain, loader, quiet_trainer


class Adapted(Plain):
    def __init__(self):
        super().__init__()
        self.net = get_peft_model(self.net, LoraConfig(r=2, target_modules=["0", "2"]))

    def configure_optimizers(self):
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=self.lr)


class Starts(Callback):
    """Keeps weights as each task starts to be trained."""

    def __init__(self):
        self.first = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 0:
            self.first.append(weights_of(pl_module))


class Ends(Callback):
    """Stands before Slao: the weights as trained, the last ones of a task at last."""

    def __init__(self):
        self.tuned = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == trainer.num_training_batches - 1:
            self.tuned.append(weights_of(pl_module))


def train(callback, tasks=3):
    torch.manual_seed(0)
    model, ends, starts, merged = Adapted(), Ends(), Starts(), []
    for task in range(tasks):
        quiet_trainer(ends, callback, starts).fit(model, loader(task))
        merged.append(weights_of(model))
    return ends.tuned, starts.first, merged


@pytest.mark.parametrize(("from_first_task", "power"), [(False, 0.5), (True, 0.5), (True, 1.0)])
def test_b_is_the_papers_average_and_a_the_last_tasks(from_first_task, power):
    tuned, _, merged = train(Slao(power, from_first_task))
    for name in [name for name in tuned[0] if "lora_B" in name]:
        b = torch.zeros_like(tuned[0][name])
        for i, task in enumerate(tuned, start=1 + from_first_task):
            b = b + i**-power * (task[name] - b)
            torch.testing.assert_close(merged[i - 1 - from_first_task][name], b)
        a = name.replace("lora_B", "lora_A")
        assert torch.equal(merged[-1][a], tuned[-1][a])


def test_a_task_starts_from_the_last_ones_training_and_an_orthonormal_a():
    tuned, first, merged = train(Slao(), tasks=2)
    for name in [name for name in tuned[0] if "lora_A" in name]:
        start, then, b = first[1][name], tuned[0][name], name.replace("lora_A", "lora_B")
        torch.testing.assert_close(start @ start.T, torch.eye(2), atol=1e-6, rtol=0)
        torch.testing.assert_close(then @ start.T @ start, then)  # of the same rows
        assert ((then @ start.T).diagonal() > 0).all()
        assert torch.equal(first[1][b], tuned[0][b])
        assert not torch.equal(first[1][b], merged[0][b])


def test_an_orthonormal_a_stays_as_it_is():
    a = torch.linalg.qr(torch.randn(5, 3)).Q.T
    torch.testing.assert_close(orthonormal(a), a)


def test_optimizers_start_anew_with_the_factors():
    class Looks(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            steps.append({float(state["step"]) for state in optimizer.state.values()})

    steps = []
    torch.manual_seed(0)
    trainer = quiet_trainer(Slao(task_epochs=1), Looks(), max_epochs=2)
    trainer.fit(Adapted(), loader(0))
    assert steps[1] == {1.0}
    assert steps[8] == set()
    assert steps[9] == {1.0}


def test_a_language_model_forgets_less_under_it():
    def forgotten(*callbacks):
        module = tiny_llama_module(1e-2, 1, {})
        for step in (3, 5):
            quiet_trainer(*callbacks, max_epochs=15).fit(module, counting(step))
        return loss_of(module, 3) + loss_of(module, 1)

    assert forgotten(Slao()) < 0.9 * forgotten()


@pytest.mark.parametrize("stop_after", [5, 12])
def test_a_resume_in_the_midst_of_a_task_goes_on_as_if_nothing_had_happened(tmp_path, stop_after):
    whole, resumed, _ = trained_with_a_break(
        lambda: Slao(task_epochs=1), tmp_path / "mid.ckpt", stop_after, Adapted
    )
    assert_same(whole, resumed, rtol=0, atol=0)


def test_models_without_one_adapter_for_all_tasks_are_refused():
    with pytest.raises(MisconfigurationException, match="Plain trains none: use wise_ft or sfa"):
        quiet_trainer(Slao()).fit(Plain(), loader(0))
    module = tiny_llama_module(lora={"fresh_per_task": True})
    with pytest.raises(MisconfigurationException, match="fresh_per_task=True adds each task's"):
        quiet_trainer(Slao()).fit(module, counting(1))
    with pytest.raises(MisconfigurationException, match="power=-1 must be a number from 0 on"):
        Slao(power=-1)
