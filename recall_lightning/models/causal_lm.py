"""Causal language modelling with a Hugging Face transformer."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from itertools import takewhile
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from recall_lightning.callbacks.fresh_adapter import FreshAdapter
from recall_lightning.callbacks.learning_rate import WarmupCosine
from recall_lightning.measuring.generation import nothing_of_its_own
from recall_lightning.merging.folders.configs import config_differences
from recall_lightning.models.bleu import Bleu
from recall_lightning.models.construction import build_optimizer, build_transformer
from recall_lightning.models.evaluation import LoaderMetrics, RatioOfSums
from recall_lightning.models.four_bit import four_bit_options, prepared_for_adapter
from recall_lightning.models.generation import (
    answer_in,
    ends_of_generation,
    positions_of,
    written_alike,
)
from recall_lightning.models.gguf import gguf_options
from recall_lightning.models.lora import LoraSettings, with_lora
from recall_lightning.models.packing import packing_fault
from recall_lightning.models.predicted_tokens import nats, predicted, predicted_logits
from recall_lightning.models.scoring import (
    WRITTEN,
    Normalisation,
    chosen,
    right_predictions,
    squad_exact_match,
    without_refusals,
)
from recall_lightning.models.step_mean import StepMean
from recall_lightning.models.undefined import UndefinedPredictions
from recall_lightning.weights.snapshot import frozen_digest


class Perplexity(RatioOfSums):
    """exp of nats per token.

    ``torchmetrics.text.Perplexity`` takes the logarithm of probabilities, so a single token that a
    forgetful model finds all but impossible makes the whole value infinite. This one takes nats.
    """

    def compute(self) -> Tensor:
        """The perplexity, of shape ``()``."""
        return super().compute().exp()


class CausalLMModule(LightningModule):
    """A causal language model, trained on the next token and scored separately on every loader.

    Batches are mappings with ``input_ids`` and ``labels``, int64 ``(B, L)``, and whatever else the
    model takes, such as ``attention_mask``. Labels are not shifted; -100 marks what is not
    predicted.

    The loss of an optimizer step is the mean over all of its predicted tokens, in all batches that
    are accumulated and on all processes, as in transformers since 2024: a token counts the same
    whatever answer it is in and however the step is cut into batches. A mixture of experts adds its
    balancing loss, as it says.

    Logged are ``train/loss``, which is that of the step, and, for each validation loader, over all
    of its predicted tokens:

    - ``val/loss``: mean nats per token,
    - ``val/acc``: the part of tokens whose most likely prediction is right,
    - ``val/perplexity``: exp of the loss,
    - ``val/bits_per_byte``: nats / ln 2 / bytes, if batches hold ``num_bytes``, int64 ``(B,)``, the
      number of bytes that the predicted tokens of each sample stand for,
    - ``val/score``, if batches hold ``questions`` (those of
      :class:`~recall_lightning.data.InstructionStream` do): the task's own score in [0, 1], which
      is accuracy of choices, exact match, SQuAD's exact match or F1, or BLEU (sacreBLEU's, over the
      whole set). ``val/squad_exact_match`` comes along with F1.

    A model whose predictions are no numbers scores NaN in all of them. Validation computes logits
    of predicted tokens alone.

    Example::

        >>> model = CausalLMModule(
        ...     {
        ...         "model_type": "llama",
        ...         "vocab_size": 256,
        ...         "hidden_size": 16,
        ...         "intermediate_size": 32,
        ...         "num_hidden_layers": 2,
        ...         "num_attention_heads": 2,
        ...     }
        ... )
        >>> model(torch.zeros(1, 5, dtype=torch.long)).logits.shape
        torch.Size([1, 5, 256])

    Args:
        model: Folder or hub id of a pre-trained model, which keeps the dtype it was saved in; or a
            mapping with ``model_type`` and config fields, for a model with random weights.
        optimizer: Makes an optimizer of the trainable parameters.
        lr_scheduler: Makes a scheduler of the optimizer; it steps once an epoch.
        schedule: ``"task"`` warms up and decays along a cosine in each task, ``"stream"`` once over
            all of them, ``"constant"`` neither.
        warmup: The part of it that is warm-up.
        decay_norms_and_biases: Whether weight decay acts on norms' weights and biases too.
        dtype: Of a pre-trained model's weights, such as ``"bfloat16"``, instead of the saved one.
        attn_implementation: ``"sdpa"``, ``"eager"``, ``"flash_attention_2"`` …; by default what
            transformers finds best.
        gradient_checkpointing: Whether to compute activations once more in backward, for memory.
        compile: Whether to compile the model.
        lora: Train an adapter instead of the model's own weights.
        load_in_4bit: Keep the base in 4 bits (NF4, quantised twice), through bitsandbytes. Only an
            adapter is then trained and merged.
        normalise: What the log-likelihood of a choice is divided by.
        trust_remote_code: Whether the model may run code of its own.
        gguf_file: Name of a file of GGUF in the folder or repository ``model``, as llama.cpp has
            models. Its weights are unpacked, to ``dtype`` or float32, and trained like others;
            what is exported is an ordinary folder. Needs the package ``gguf``.

    Raises:
        MisconfigurationException: If ``model`` can be neither loaded nor built, the adapter does
            not fit, a base in 4 bits has none, or the tokenizer has more tokens than the model.
    """

    proves_packing = True  # before it trains on packed examples

    def __init__(
        self,
        model: str | dict[str, Any],
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-3),
        lr_scheduler: LRSchedulerCallable | None = None,
        schedule: Literal["constant", "task", "stream"] = "constant",
        warmup: float = 0.03,
        decay_norms_and_biases: bool = True,
        dtype: Literal["float32", "bfloat16", "float16"] | None = None,
        attn_implementation: str | None = None,
        gradient_checkpointing: bool = False,
        compile: bool = False,
        lora: LoraSettings | None = None,
        load_in_4bit: bool = False,
        normalise: Normalisation = "tokens",
        trust_remote_code: bool = False,
        gguf_file: str | None = None,
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {"dtype": dtype, "attn_implementation": attn_implementation}
        options = {name: value for name, value in options.items() if value is not None}
        if trust_remote_code:
            options["trust_remote_code"] = True
        if gguf_file is not None:
            options |= gguf_options(model, gguf_file, load_in_4bit)
        if load_in_4bit:
            options |= four_bit_options(lora, dtype)
        built: Any = build_transformer("CausalLM", model, **options)
        if load_in_4bit:
            built = prepared_for_adapter(built)
        if gradient_checkpointing:
            built.gradient_checkpointing_enable({"use_reentrant": False})
            built.config.use_cache = False
            built.enable_input_require_grads()  # a frozen embedding would cut the gradients off
        if lora is not None:
            built = with_lora(built, lora)
        if compile:
            built.compile()
        self.model = built
        self.source = model
        self.gguf_file = gguf_file
        self.lora = lora
        self.load_in_4bit = load_in_4bit
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.schedule = schedule
        self.warmup = warmup
        self.decay_norms_and_biases = decay_norms_and_biases
        self.normalise = normalise
        self._step_mean = StepMean()
        self._packing_proved = False
        self._undefined = UndefinedPredictions(0)  # of the answers that were written last
        self.val_metrics = LoaderMetrics(
            {
                "loss": RatioOfSums,
                "acc": RatioOfSums,
                "perplexity": Perplexity,
                "bits_per_byte": RatioOfSums,
            }
        )

    def setup(self, stage: str) -> None:
        """Check that the model knows every token of the datamodule's tokenizer.

        Where its rows may be longer than the model has positions, it warns.

        Raises:
            MisconfigurationException: If it does not.
        """
        stream = getattr(self.trainer, "datamodule", None)
        self._warn_of_length(stream)
        tokenizer = getattr(stream, "tokenizer", None)
        known = len(self.model.get_input_embeddings().weight)
        if tokenizer is None:
            return
        needed = max(tokenizer.get_vocab().values(), default=-1) + 1  # ids may have gaps
        if needed > known:
            raise MisconfigurationException(
                f"the tokenizer {tokenizer.name_or_path} has {len(tokenizer)} tokens, numbered up "
                f"to {needed - 1}, and the model {self.source!r} knows {known}: take the model's "
                f"own tokenizer, or call resize_token_embeddings({needed}) on the model and save it"
            )

    def _warn_of_length(self, stream: Any) -> None:
        positions = positions_of(self.model)
        for name in ("max_length", "sequence_length"):
            length = getattr(stream, name, None)
            if isinstance(length, int) and positions is not None and length > positions:
                rank_zero_warn(
                    f"{name}={length} is more than the {positions} positions that the model "
                    f"{self.source!r} has: rows that are longer fail, or are learned at positions "
                    f"that it never saw: lower it to {positions}"
                )

    def on_fit_start(self) -> None:
        """Before training on packed examples, prove that they do not see each other.

        Raises:
            MisconfigurationException: If they do, or it cannot be shown.
        """
        stream = getattr(self.trainer, "datamodule", None)
        self._packing_proved = False
        if getattr(stream, "pack", False):
            self._prove_packing(stream.max_length)  # type: ignore[union-attr]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """The same for packed examples of another source, when the first come."""
        if self._packing_proved or not isinstance(batch, Mapping):
            return
        positions = batch.get("position_ids")
        if positions is not None and bool((positions[..., 1:] == 0).any()):
            self._prove_packing(positions.shape[-1])

    def _prove_packing(self, length: int) -> None:
        tokenizer = getattr(getattr(self.trainer, "datamodule", None), "tokenizer", None)
        own = vars(self.model.config) if tokenizer is None else {}
        special = {value for name, value in own.items() if name.endswith("_token_id")}
        special |= set() if tokenizer is None else set(tokenizer.all_special_ids)
        known = self.model.get_input_embeddings().num_embeddings
        known = known if tokenizer is None else min(known, len(tokenizer))
        tokens = [token for token in range(known) if token not in special]

        def run(**inputs: Any) -> Any:
            with self.trainer.precision_plugin.forward_context():
                return self(**inputs)

        fault = packing_fault(self, tokens, length, run)
        if fault is not None:
            config = self.model.config
            raise MisconfigurationException(
                f"examples cannot be packed for this {config.model_type} "
                f"(attn_implementation={config._attn_implementation!r}): {fault}. Set pack=False: "
                "examples are then padded to the longest of their batch"
            )
        self._packing_proved = True

    def configure_callbacks(self) -> list[Callback]:
        """The learning rate's schedule, and what ends an adapter of one task."""
        callbacks: list[Callback] = []
        if self.schedule != "constant":
            callbacks.append(WarmupCosine(self.schedule, self.warmup))
        if self.lora is not None and self.lora.fresh_per_task:
            callbacks.append(FreshAdapter())
        trainer: Any = self._trainer  # has them from a validation before the fit
        attached = [] if trainer is None else list(map(type, trainer.callbacks))
        return [callback for callback in callbacks if type(callback) not in attached]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """The model's own output: ``logits`` ``(B, L, vocabulary)`` and, given labels, ``loss``."""
        if position_ids is not None:  # packed: with a cache transformers does not look for parts
            kwargs |= {"position_ids": position_ids, "use_cache": False}
        return self.model(
            input_ids=input_ids, attention_mask=attention_mask, labels=labels, **kwargs
        )

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Nats of a batch, such that a step's loss is the mean over all of its tokens."""
        labels = batch["labels"]
        output = self(**_inputs(batch))
        logits, tokens = output.logits, predicted(labels)
        total, count = nats(logits[tokens], labels[:, 1:][tokens[:, :-1]]).sum(), tokens.sum()
        if getattr(output, "aux_loss", None) is not None:  # of a mixture of experts
            total = total + self._balancing * output.aux_loss.to(total.device) * count
        loss = self._step_mean.loss(self, batch_idx, total, count)
        self.log("train/loss", self._step_mean.mean, prog_bar=True)
        return loss

    @property
    def loss_share(self) -> Tensor | float:
        """What a mean over the current batch counts in the loss that it was trained on."""
        return self._step_mean.share

    @property
    def _balancing(self) -> float:
        """What transformers multiplies a mixture of experts' balancing loss by."""
        names = ("router_aux_loss_coef", "aux_loss_coef")
        return next((getattr(self.model, n) for n in names if hasattr(self.model, n)), 0.0)

    def on_after_backward(self) -> None:
        """Make a step's gradients those of the mean over its tokens; to be called by overrides."""
        self._step_mean.correct_gradients(self)

    def validation_step(
        self, batch: Mapping[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Score a batch."""
        logits, targets = predicted_logits(self, _inputs(batch), batch["labels"], self._head)
        total, tokens = nats(logits, targets).sum(), targets.numel()
        updates: dict[str, tuple[Any, ...]] = {
            "loss": (total, tokens),
            "acc": (right_predictions(logits, targets).sum(), tokens),
            "perplexity": (total, tokens),
        }
        if "num_bytes" in batch:
            updates["bits_per_byte"] = (total / math.log(2), batch["num_bytes"].sum())
        if "questions" in batch:
            updates |= self._scores(batch["questions"], dataloader_idx)
        self.val_metrics.update_and_log(self, dataloader_idx, updates)

    @property
    def _head(self) -> nn.Module | None:
        """What makes logits of hidden states, where the model tells."""
        try:
            head: nn.Module | None = self.model.get_output_embeddings()
        except (AttributeError, NotImplementedError):
            return None
        return head

    def _scores(self, questions: Mapping[str, Any], loader: int) -> dict[str, tuple[Any, ...]]:
        """Answer questions, and return what updates their scores."""
        if "choices" in questions:
            self.val_metrics.also(loader, "score", RatioOfSums)
            choice = chosen(self, questions, self.normalise, self._head)
            right = torch.where(choice < 0, torch.nan, (choice == questions["label"]).float())
            return {"score": (right.sum(), len(right))}
        kind, references = questions["score"], questions["references"]
        self._undefined = UndefinedPredictions(len(references))
        said = questions["no_answer"]
        texts = self.answers({**questions, "no_answer": ""})
        if kind == "bleu":  # for which that is a text like others, to be written
            references = [own or [said] for own in references]
            self.val_metrics.also(loader, "score", Bleu, questions["tokenizer"])
            return {"score": (texts, references, ~self._undefined.rows)}
        asked = zip(texts, references, strict=True)
        pairs = [without_refusals(text, own, said) for text, own in asked]
        measures = {"score": WRITTEN[kind]}
        measures |= {"squad_exact_match": squad_exact_match} if kind == "f1" else {}
        updates: dict[str, tuple[Any, ...]] = {}
        for name, measure in measures.items():
            self.val_metrics.also(loader, name, RatioOfSums)
            found = torch.tensor([measure(*pair) for pair in pairs])
            found = torch.where(self._undefined.rows.cpu(), torch.nan, found.float())
            updates[name] = (found.sum(), len(found))
        return updates

    def answers(self, questions: Mapping[str, Any]) -> list[str]:
        """Let the model write, greedily, and return its answers; empty where it says there is none.

        It stops at any token that its ``generation_config`` names as an end, and at the one with
        which answers end in training; nothing else in that config counts, such as a penalty.

        Args:
            questions: ``prompts``, ``leads``, ``max_new_tokens``, ``no_answer``, ``end_token`` and
                ``end_text`` of
                :func:`~recall_lightning.data.instructions.collating.collate_questions`.

        Raises:
            MisconfigurationException: If a prompt leaves no position of the model to write to.
        """
        tokenizer = self._tokenizer()
        prompts = questions["prompts"]
        ends = ends_of_generation(self.model, questions.get("end_token", tokenizer.eos_token_id))
        self._undefined = UndefinedPredictions(len(prompts["input_ids"]))
        with nothing_of_its_own(self.model):
            written = written_alike(
                self.model,
                prompts,
                questions["max_new_tokens"],
                self._undefined,
                do_sample=False,
                use_cache=True,
                eos_token_id=ends or None,
                pad_token_id=tokenizer.pad_token_id,
                remove_invalid_values=False,  # or NaN would be hidden
            )
        answers = [list(takewhile(lambda token: token not in ends, row)) for row in written]
        leads = questions.get("leads", [""] * len(answers))
        texts = [
            answer_in(text, lead, questions.get("end_text", ""))
            for text, lead in zip(
                tokenizer.batch_decode(answers, skip_special_tokens=True), leads, strict=True
            )
        ]
        none = questions["no_answer"]
        return ["" if none and text.lower() == none.lower() else text for text in texts]

    def _tokenizer(self) -> Any:
        tokenizer = getattr(getattr(self.trainer, "datamodule", None), "tokenizer", None)
        if tokenizer is None:
            raise MisconfigurationException(
                "answers that a model writes need a datamodule with a tokenizer, such as "
                "InstructionStream"
            )
        return tokenizer

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say how the model is built, and leave the base out where only an adapter is trained."""
        stream = getattr(self._trainer, "datamodule", None) if self._trainer is not None else None
        checkpoint["causal_lm"] = {
            "model": self.source,
            "gguf_file": self.gguf_file,
            "lora": None if self.lora is None else dict(vars(self.lora)),
            "load_in_4bit": self.load_in_4bit,
            "tokenizer": getattr(getattr(stream, "tokenizer", None), "name_or_path", None),
            "tasks": list(getattr(stream, "task_names", [])),
            "reads_old_data": getattr(stream, "joint", False) or bool(getattr(stream, "replay", 0)),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "config": json.loads(self.model.config.to_json_string(use_diff=False)),
        }
        self._step_mean.save(self, checkpoint)
        if self._leaves_base_out():
            checkpoint["causal_lm"]["base"] = frozen_digest(self)
            for name in self._frozen():
                checkpoint["state_dict"].pop(name, None)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the base back in.

        Raises:
            MisconfigurationException: If the adapter was trained on another base, or the weights
                in a model of the same shapes that computes something else.
        """
        self._step_mean.load(checkpoint)
        about = checkpoint.get("causal_lm", {})
        saved = about.get("base") if self._leaves_base_out() else None
        if saved is not None and saved != frozen_digest(self):
            raise MisconfigurationException(
                f"the checkpoint holds an adapter of another base than model={self.source!r}: give "
                f"the one that it was trained on, {about['model']!r}"
            )
        self._check_config(about)
        if saved is None:
            return
        own = dict(self.named_parameters(remove_duplicate=False)) | dict(self.named_buffers())
        for name in self._frozen():
            if name in own:  # bitsandbytes saves what it does not load
                checkpoint["state_dict"].setdefault(name, own[name].detach())

    def _check_config(self, about: Mapping[str, Any]) -> None:
        own = json.loads(self.model.config.to_json_string(use_diff=False))
        differing = config_differences(about.get("config", own), own)
        if differing:
            raise MisconfigurationException(
                f"the checkpoint is of another model than model={self.source!r} is now: "
                f"{', '.join(differing[:3])}; give the one that it was trained as"
            )

    def _leaves_base_out(self) -> bool:
        by_name = isinstance(self.source, str)  # or it is nowhere else
        return by_name and self.lora is not None and not self.lora.fresh_per_task

    def _frozen(self) -> list[str]:
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return [name for name in self.state_dict() if name not in trained]

    def configure_optimizers(self) -> Any:
        """The optimizer, and its schedule if there is one."""
        return build_optimizer(self, self.optimizer, self.lr_scheduler, self.decay_norms_and_biases)


def _inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    """What of a batch the model takes."""
    aside = ("labels", "num_bytes", "questions")
    return {name: value for name, value in batch.items() if name not in aside}
