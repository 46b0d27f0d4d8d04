from functools import partial

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from recall_lightning.data import DigitsStream
from recall_lightning.models import ClassifierModule

TINY = {
    "model_type": "vit",
    "image_size": 8,
    "patch_size": 2,
    "num_channels": 1,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def images(count: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(count, 1, 8, 8, generator=generator)
    return TensorDataset(pixels, torch.randint(10, (count,), generator=generator))


def trainer(**kwargs) -> Trainer:
    quiet = dict.fromkeys(
        ["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False
    )
    return Trainer(**{"accelerator": "cpu", "max_epochs": 1, **quiet, **kwargs})


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


@pytest.mark.parametrize("model", [linear, lambda: dict(TINY)])
def test_values_of_each_loader_are_those_of_all_its_samples(model) -> None:
    module = ClassifierModule(model(), num_classes=10)
    data = [images(7, seed=0), images(5, seed=1)]
    loaders = [DataLoader(d, batch_size=3) for d in data]
    results = trainer().validate(module, loaders, verbose=False)
    for i, (result, d) in enumerate(zip(results, data, strict=True)):
        pixels, labels = d.tensors
        with torch.no_grad():
            logits = module.eval()(pixels)
        expected = {
            f"val/loss/dataloader_idx_{i}": functional.cross_entropy(logits, labels).item(),
            f"val/acc/dataloader_idx_{i}": (logits.argmax(-1) == labels).float().mean().item(),
        }
        assert result == pytest.approx(expected, rel=1e-5)


def test_batches_may_be_mappings() -> None:
    module = ClassifierModule(TINY, num_classes=10)
    tuples = images(7, seed=0)
    mappings = [{"pixel_values": pixels, "labels": label} for pixels, label in tuples]
    first, second = (
        trainer().validate(module, DataLoader(data, batch_size=3), verbose=False)[0]
        for data in (tuples, mappings)
    )
    assert first == pytest.approx(second)
    trainer(fast_dev_run=True).fit(module, DataLoader(mappings, batch_size=3))


def test_inference_mode_may_be_switched_off_later() -> None:
    module, data = ClassifierModule(linear(), 10), DataLoader(images(7, seed=0), batch_size=3)
    (first,) = trainer().validate(module, data, verbose=False)
    (second,) = trainer(inference_mode=False).validate(module, data, verbose=False)
    assert first == pytest.approx(second)


def test_digits_are_learned() -> None:
    torch.manual_seed(0)
    stream = DigitsStream(num_tasks=1, epochs_per_task=3)
    adam = partial(torch.optim.Adam, lr=1e-2)
    module = ClassifierModule(linear(), num_classes=10, optimizer=adam)
    fit = trainer(max_epochs=3, reload_dataloaders_every_n_epochs=1)
    fit.fit(module, datamodule=stream)
    assert fit.callback_metrics["val/acc"] > 0.8
    assert fit.callback_metrics["train/loss"] < 1.5


def test_pretrained_model_gets_a_new_head_of_the_right_size(tmp_path) -> None:
    ClassifierModule(TINY, num_classes=10).model.save_pretrained(tmp_path)
    module = ClassifierModule(str(tmp_path), num_classes=4)
    assert module(torch.zeros(2, 1, 8, 8)).shape == (2, 4)
    assert all(part.training for part in module.modules())


def test_given_module_keeps_its_mode() -> None:
    assert not ClassifierModule(linear().eval(), num_classes=10).model.training


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"image_size": 8}, "no model_type"),
        ({**TINY, "num_labels": 3}, "num_labels=3, which must be num_classes=10"),
        ("./no/such/folder", "is no folder, seen from"),
    ],
)
def test_bad_model(model, message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        ClassifierModule(model, num_classes=10)


@pytest.mark.parametrize(
    "model",
    [TINY, {"class_path": "torch.nn.Linear", "init_args": {"in_features": 4, "out_features": 10}}],
)
def test_command_line_builds_it(model, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["recall-lightning"])
    cli = LightningCLI(
        run=False,
        save_config_callback=None,
        seed_everything_default=False,
        trainer_defaults={"accelerator": "cpu", "logger": False},
        args={
            "model": {
                "class_path": "recall_lightning.models.ClassifierModule",
                "init_args": {"model": model, "num_classes": 10},
            },
            "data": {
                "class_path": "recall_lightning.data.DigitsStream",
                "init_args": {"scenario": "split", "num_tasks": 2, "epochs_per_task": [1, 2]},
            },
        },
    )
    assert isinstance(cli.model.model, nn.Module)
    assert isinstance(cli.model.configure_optimizers(), torch.optim.AdamW)
    assert cli.datamodule.total_epochs == 3
