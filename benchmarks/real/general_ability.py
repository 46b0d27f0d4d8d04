"""What a language model could do before its first task, measured at the end of every task."""

import copy
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.real.news import news_tokens
from benchmarks.real.packages import prepared
from benchmarks.real.questions import QUESTIONS
from recall_lightning.callbacks._trainer.loggers import run_folder
from recall_lightning.measuring.isolation import undisturbed
from recall_lightning.weights.atomic import write_whole

FILE = "general_ability.json"


class GeneralAbility(Callback):
    """What a chat model could do before: its own text, English news, and answers to questions.

    Written into the run's folder as ``general_ability.json``:

    - ``kl``: KL divergence from the model as it came to the model at each task's end, nats a token,
      on sequences that the former wrote itself: at temperature 1, half of them begun with its BOS
      and half with a random token, the same in every run;
    - ``news``: loss on English news, nats a token, before the first task and at each task's end;
    - ``answers``: what it says to each question, greedily, ``before`` and ``after`` the last task.

    Args:
        sequences: Of its own text and of the news each.
        length: Tokens of each.
        questions: How many of :data:`~benchmarks.real.questions.QUESTIONS` are asked.
        answer_length: Tokens that an answer may have.
    """

    def __init__(
        self, sequences: int = 24, length: int = 128, questions: int = 20, answer_length: int = 48
    ) -> None:
        self.sequences, self.length = sequences, length
        self.questions = list(QUESTIONS[:questions])
        self.answer_length = answer_length
        self.found = General()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep a copy of the model, let it write, and ask it."""
        tokenizer = trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        model: Any = pl_module.model
        with undisturbed(pl_module):
            self.base = without_hooks(copy.deepcopy(model))
            self.own_text = written_by(self.base, self.sequences, self.length)
            self.news = news_tokens(tokenizer, self.sequences, self.length)
            self.found.news.append(loss(self.base, self.news))
            before = answers(self.base, tokenizer, self.questions, self.answer_length)
        asked = zip(self.questions, before, strict=True)
        self.found.answers = [{"question": each, "before": answer} for each, answer in asked]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure after a task's last epoch, when all callbacks have merged what they merge."""
        stream: Any = trainer.datamodule  # type: ignore[attr-defined]
        ends = [*stream.first_epochs[1:], stream.total_epochs]
        if trainer.current_epoch + 1 not in ends:
            return
        model: Any = pl_module.model
        with undisturbed(pl_module):
            self.found.kl.append(divergence(self.base, model, self.own_text))
            self.found.news.append(loss(model, self.news))
            if trainer.current_epoch + 1 == ends[-1]:
                after = answers(model, stream.tokenizer, self.questions, self.answer_length)
                for asked, answer in zip(self.found.answers, after, strict=True):
                    asked["after"] = answer
        folder = run_folder(trainer)
        if folder is not None and trainer.is_global_zero:
            text = json.dumps(asdict(self.found), indent=1, ensure_ascii=False)
            write_whole(folder / FILE, text)


@dataclass
class General:
    """What :class:`GeneralAbility` found; see there."""

    kl: list[float] = field(default_factory=list)
    news: list[float] = field(default_factory=list)
    answers: list[dict[str, str]] = field(default_factory=list)


def measured_in(folder: Path) -> General | None:
    """Return what was written into a run's folder; None of a run without the callback."""
    file = folder / FILE
    return General(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None


def without_hooks(model: nn.Module) -> nn.Module:
    """Take off a copy what callbacks have hooked on its original."""
    for module in model.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
        module._backward_hooks.clear()
    return model.requires_grad_(False).eval()


def written_by(model: Any, sequences: int, length: int) -> Tensor:
    """Let SmolLM2 write, once for all runs; token ids int64 (sequences, length)."""

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

    file = prepared(f"smollm2_wrote_{sequences}x{length}.json", write)
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
    for part in text.to(base.device).split(at_once):
        old, new = (each(part).logits[:, :-1].float().log_softmax(-1) for each in (base, model))
        total += float((old.exp() * (old - new)).sum(-1).double().sum())
    return total / text[:, 1:].numel()


@torch.no_grad()
def loss(model: Any, text: Tensor, at_once: int = 8) -> float:
    """Return the mean loss of the next token, in nats; arguments as of :func:`divergence`."""
    total = 0.0
    for part in text.to(model.device).split(at_once):
        logits = model(part).logits[:, :-1].float()
        each = cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="none")
        total += float(each.double().sum())
    return total / text[:, 1:].numel()


@torch.no_grad()
def answers(model: Any, tokenizer: Any, questions: list[str], length: int) -> list[str]:
    """Return what a model answers to each question in a chat of its own, greedily."""
    if not questions:
        return []
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
