"""What a language model could do before its first task, measured at the end of every task."""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from benchmarks.real.packages import prepared
from recall_lightning.callbacks._trainer.loggers import run_folder
from recall_lightning.data import TaskStream
from recall_lightning.measuring.isolation import undisturbed
from recall_lightning.weights.atomic import write_whole

FILE = "general_ability.json"


class GeneralAbility(Callback):
    """KL divergence from the model as it came to the model at each task's end, and its answers.

    Both are measured on text of the model as it came: sequences that it wrote itself, half of them
    begun with its BOS and half with a random token, at temperature 1, the same in every run; and
    what it answers to questions, greedily, before the first task and after the last. Written into
    the run's folder as ``general_ability.json``, which holds ``kl``, nats a token, by task in the
    order of training, and ``answers`` with ``before`` and ``after`` to each question.

    Args:
        sequences: How many it writes.
        length: Tokens of each.
        questions: What it is asked, each in a chat of its own; none by default.
        answer_length: Tokens that an answer may have.
    """

    def __init__(
        self,
        sequences: int = 24,
        length: int = 128,
        questions: list[str] | None = None,
        answer_length: int = 48,
    ) -> None:
        self.sequences, self.length = sequences, length
        self.questions, self.answer_length = questions or [], answer_length
        self.base: nn.Module | None = None
        self.found: dict[str, Any] = {"kl": [], "answers": []}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep a copy of the model, let it write, and ask it."""
        with undisturbed(pl_module):
            self.base = without_hooks(copy.deepcopy(pl_module.model))
            self.text = written_by(self.base, self.sequences, self.length).to(pl_module.device)
            before = self._answers(trainer, pl_module)
        both = zip(self.questions, before, strict=True)
        self.found["answers"] = [{"question": q, "before": a} for q, a in both]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure after a task's last epoch, when all callbacks have merged what they merge."""
        stream: TaskStream = trainer.datamodule  # type: ignore[attr-defined]
        ends = [*stream.first_epochs[1:], stream.total_epochs]
        if trainer.current_epoch + 1 not in ends:
            return
        assert self.base is not None
        with undisturbed(pl_module):
            kl = divergence(self.base, pl_module.model, self.text)
            last = trainer.current_epoch + 1 == ends[-1]
            after = self._answers(trainer, pl_module) if last else []
        self.found["kl"].append(kl)
        for question, answer in zip(self.found["answers"], after, strict=False):
            question["after"] = answer
        folder = run_folder(trainer)
        if folder is not None and trainer.is_global_zero:
            write_whole(folder / FILE, json.dumps(self.found, indent=1, ensure_ascii=False))

    def _answers(self, trainer: Trainer, pl_module: LightningModule) -> list[str]:
        if not self.questions:
            return []
        tokenizer = trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        return answers(pl_module.model, tokenizer, self.questions, self.answer_length)


def measured_in(folder: Path) -> dict[str, Any]:
    """Return what was written into a run's folder; empty lists of a run without the callback."""
    file = folder / FILE
    empty: dict[str, Any] = {"kl": [], "answers": []}
    return empty | (json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {})


def without_hooks(model: nn.Module) -> nn.Module:
    """Take off a copy what callbacks have hooked on its original."""
    for module in model.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
        module._backward_hooks.clear()
    return model.requires_grad_(False).eval()


def written_by(model: Any, sequences: int, length: int) -> Tensor:
    """Let a model write, once for all runs; token ids int64 (sequences, length)."""

    def write() -> bytes:
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            first = torch.full((sequences, 1), model.config.bos_token_id)
            half = sequences // 2
            first[half:] = torch.randint(model.config.vocab_size, (sequences - half, 1))
            first = first.to(model.device)
            ids = model.generate(
                input_ids=first,
                attention_mask=torch.ones_like(first),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                min_new_tokens=length - 1,  # all of one length: an end is not drawn
                max_new_tokens=length - 1,
                pad_token_id=model.config.eos_token_id,
            )
        return json.dumps(ids.tolist()).encode()

    file = prepared(f"written_{sequences}x{length}.json", write)
    return torch.tensor(json.loads(file.read_bytes()))


@torch.no_grad()
def divergence(base: Any, model: Any, text: Tensor, at_once: int = 8) -> float:
    """Return KL(base ‖ model), nats a token, over the next tokens of all positions but the last.

    Args:
        base: The model as it came.
        model: The model as it is.
        text: Token ids int64 (sequences, length).
        at_once: Sequences in a batch.
    """
    total = 0.0
    for part in text.split(at_once):
        old, new = (each(part).logits[:, :-1].float().log_softmax(-1) for each in (base, model))
        total += float((old.exp() * (old - new)).sum(-1).double().sum())
    return total / text[:, 1:].numel()


@torch.no_grad()
def answers(model: Any, tokenizer: Any, questions: list[str], length: int) -> list[str]:
    """Return what a model answers in a chat, greedily."""
    chats = [[{"role": "user", "content": question}] for question in questions]
    tokenizer.padding_side = "left"
    asked = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, return_tensors="pt", return_dict=True, padding=True
    ).to(model.device)
    tokenizer.padding_side = "right"
    written = model.generate(
        **asked, do_sample=False, max_new_tokens=length, pad_token_id=tokenizer.pad_token_id
    )
    kept = written[:, asked["input_ids"].shape[1] :]
    return [text.strip() for text in tokenizer.batch_decode(kept, skip_special_tokens=True)]
