import copy
import math

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import DataLoader

from recall_lightning.callbacks.learning_rate import WarmupCosine
from recall_lightning.models import CausalLMModule

TINY = {
    "model_type": "llama",
    "vocab_size": 16,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}


def samples(count: int, seed: int, num_bytes: bool = False) -> list[dict[str, Tensor]]:
    """Random tokens; in every sample another number of them is not predicted."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for i in range(count):
        tokens = torch.randint(16, (12,), generator=generator)
        labels = tokens.clone()
        labels[:i] = -100
        made.append({"input_ids": tokens, "labels": labels})
        if num_bytes:
            made[-1]["num_bytes"] = torch.tensor(3 * int((labels[1:] != -100).sum()))
    return made


def loader(data: list[dict[str, Tensor]]) -> DataLoader:
    return DataLoader(data, batch_size=3)  # does not divide the 7 samples used below


def trainer(**kwargs) -> Trainer:
    quiet = dict.fromkeys(
        ["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False
    )
    return Trainer(**{"accelerator": "cpu", "max_epochs": 1, **quiet, **kwargs})


@pytest.fixture
def module() -> CausalLMModule:
    torch.manual_seed(0)
    return CausalLMModule(TINY)


def by_hand(module: CausalLMModule, data: list[dict[str, Tensor]]) -> tuple[float, float, int]:
    """Nats, right predictions and tokens, one token at a time."""
    module.eval()
    nats, right, tokens = 0.0, 0, 0
    for sample in data:
        with torch.no_grad():
            logits = module(sample["input_ids"][None]).logits[0]
        for position, label in enumerate(sample["labels"][1:].tolist()):
            if label != -100:
                nats -= logits[position].double().log_softmax(-1)[label].item()
                right += int(logits[position].argmax().item() == label)
                tokens += 1
    return nats, right, tokens


def test_values_of_each_loader_are_those_computed_by_hand(module: CausalLMModule) -> None:
    data = [samples(7, seed=0, num_bytes=True), samples(7, seed=1, num_bytes=True)]
    results = trainer().validate(module, [loader(d) for d in data], verbose=False)
    for i, (result, d) in enumerate(zip(results, data, strict=True)):
        nats, right, tokens = by_hand(module, d)
        suffix = f"/dataloader_idx_{i}"
        expected = {
            "val/loss": nats / tokens,
            "val/acc": right / tokens,
            "val/perplexity": math.exp(nats / tokens),
            "val/bits_per_byte": nats / math.log(2) / (3 * tokens),
        }
        assert result == pytest.approx({k + suffix: v for k, v in expected.items()}, rel=1e-5)


def test_bits_per_byte_needs_the_number_of_bytes(module: CausalLMModule) -> None:
    (result,) = trainer().validate(module, loader(samples(7, seed=0)), verbose=False)
    assert set(result) == {"val/loss", "val/acc", "val/perplexity"}


def test_metrics_start_anew_in_every_validation(module: CausalLMModule) -> None:
    data, seen = samples(7, seed=0), []
    module.on_validation_end = lambda: seen.append(module.trainer.callback_metrics["val/loss"])
    fit = trainer(max_epochs=2, num_sanity_val_steps=1)
    fit.fit(module, loader(samples(7, seed=5)), loader(data))
    nats, _, tokens = by_hand(module, data)
    assert len(seen) == 3  # the sanity check among them
    assert seen[-1].item() == pytest.approx(nats / tokens, rel=1e-5)


def test_more_loaders_may_come_later(module: CausalLMModule) -> None:
    one, two = loader(samples(7, seed=0)), loader(samples(7, seed=1))
    (first,) = trainer().validate(module, one, verbose=False)
    results = trainer().validate(module, [two, one], verbose=False)
    assert results[1]["val/loss/dataloader_idx_1"] == pytest.approx(first["val/loss"])


def test_inference_mode_may_be_switched_off_later(module: CausalLMModule) -> None:
    data = loader(samples(7, seed=0))
    (first,) = trainer().validate(module, data, verbose=False)
    (second,) = trainer(inference_mode=False).validate(module, data, verbose=False)
    assert first == pytest.approx(second)


def test_impossible_token_leaves_perplexity_finite(module: CausalLMModule) -> None:
    with torch.no_grad():
        module.model.lm_head.weight.mul_(1e5)
    (result,) = trainer().validate(module, loader(samples(7, seed=0)), verbose=False)
    assert result["val/loss"] > 1000
    with torch.no_grad():
        module.model.lm_head.weight.mul_(float("nan"))
    (result,) = trainer().validate(module, loader(samples(7, seed=0)), verbose=False)
    assert math.isnan(result["val/loss"])  # a diverged model is seen to be one


def test_batch_without_any_predicted_token_weighs_nothing(module: CausalLMModule) -> None:
    data = samples(3, seed=0)
    silent = [{**s, "labels": torch.full_like(s["labels"], -100)} for s in data]
    (alone,) = trainer().validate(module, loader(data), verbose=False)
    (both,) = trainer().validate(module, loader(silent + data), verbose=False)
    assert both == pytest.approx(alone)


def test_values_are_summed_in_full_precision_whatever_the_model_has(module: CausalLMModule) -> None:
    data = samples(12, seed=0) * 40
    (result,) = trainer(precision="bf16-true").validate(module, loader(data), verbose=False)
    nats, right, tokens = by_hand(module, data)  # of the model, which is in bfloat16 now
    assert result["val/acc"] == pytest.approx(right / tokens, abs=1e-2)
    assert result["val/loss"] == pytest.approx(nats / tokens, rel=1e-3)


def test_training_lowers_the_loss(module: CausalLMModule) -> None:
    data = samples(6, seed=0)
    before, *_ = by_hand(module, data)
    fit = trainer(max_epochs=20)
    fit.fit(module.train(), loader(data))
    assert by_hand(module, data)[0] < before
    assert "train/loss" in fit.callback_metrics


def test_model_is_not_given_the_number_of_bytes(module: CausalLMModule) -> None:
    given: set[str] = set()
    module.model.register_forward_pre_hook(lambda _, a, kw: given.update(kw), with_kwargs=True)
    data = loader(samples(3, seed=0, num_bytes=True))
    trainer(fast_dev_run=True).fit(module, data, data)
    assert given == {"input_ids", "attention_mask", "labels"}


def test_metrics_are_no_part_of_a_checkpoint(module: CausalLMModule) -> None:
    before = set(module.state_dict())
    trainer().validate(module, [loader(samples(3, 0))] * 2, verbose=False)
    assert set(module.state_dict()) == before
    assert all(name.startswith("model.") for name in before)
    assert set(copy.deepcopy(module).state_dict()) == before


def test_only_trainable_parameters_are_optimized(module: CausalLMModule) -> None:
    module.model.lm_head.requires_grad_(False)
    (group,) = module.configure_optimizers().param_groups
    assert not any(p is module.model.lm_head.weight for p in group["params"])
    assert len(group["params"]) == len(list(module.parameters())) - 1
    assert group["lr"] == 1e-3


def test_pretrained_model_is_trained_in_training_mode(tmp_path, module: CausalLMModule) -> None:
    module.model.save_pretrained(tmp_path)
    loaded = CausalLMModule(str(tmp_path))
    assert all(part.training for part in loaded.modules())
    for name, value in module.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"vocab_size": 16}, "no model_type"),
        ({"model_type": "lama"}, "'lama' cannot be built.*lama"),
        ({"model_type": "vit"}, "'vit' cannot be built as AutoModelForCausalLM"),
        ({**TINY, "hiden_size": 8}, r"'llama' has no fields \['hiden_size'\]"),
        ("./no/such/folder", "'./no/such/folder' is no folder, seen from .*hub id"),
    ],
)
def test_bad_model(model, message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        CausalLMModule(model)


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        (None, torch.optim.AdamW),
        ({"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}}, torch.optim.SGD),
    ],
)
def test_command_line_builds_it(optimizer, expected, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["recall-lightning"])
    init_args = {"model": TINY} | ({"optimizer": optimizer} if optimizer else {})
    schedule = {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 2}}
    cli = LightningCLI(
        run=False,
        save_config_callback=None,
        seed_everything_default=False,
        trainer_defaults={"accelerator": "cpu", "logger": False},
        args={
            "model": {
                "class_path": "recall_lightning.models.CausalLMModule",
                "init_args": {**init_args, "lr_scheduler": schedule},
            }
        },
    )
    (made,), (scheduler,) = cli.model.configure_optimizers()
    assert type(made) is expected
    assert scheduler.step_size == 2


def test_a_fit_after_a_validation_keeps_its_schedule_and_says_nothing_of_it(caplog) -> None:
    own, data = CausalLMModule(TINY, schedule="stream"), loader(samples(7, 0))
    fit = trainer()
    fit.validate(own, data, verbose=False)
    fit.fit(own, data, data)
    assert sum(isinstance(each, WarmupCosine) for each in fit.callbacks) == 1
    assert "configure_callbacks" not in caplog.text
