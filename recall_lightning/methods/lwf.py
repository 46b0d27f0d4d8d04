"""Learning without forgetting: stay close to what the model said at the task's start."""

import copy
import math
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any, ClassVar, NotRequired

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.utils.hooks import RemovableHandle

from recall_lightning.callbacks._trainer.stored_state import check_tensors, count_tensors
from recall_lightning.callbacks._trainer.strategies import check_strategy
from recall_lightning.measuring.blocks import has_parameters
from recall_lightning.measuring.isolation import is_measured, undisturbed
from recall_lightning.measuring.predictions import Categorical, FoundPredictions, Predictions
from recall_lightning.measuring.predictions.loss import evidence_in
from recall_lightning.measuring.view import ModelView, given_by_name, view_of
from recall_lightning.methods.method import Method
from recall_lightning.methods.protecting import ProtectingCallback, ProtectingState
from recall_lightning.weights.naming import complex_weights, find_weights, named_weights
from recall_lightning.weights.snapshot import Snapshot


class DistillationState(ProtectingState):
    """What a checkpoint holds of it; an older one holds less."""

    teacher: dict[str, Tensor] | None
    predictions: NotRequired[str | None]
    outputs: NotRequired[dict[int, int]]


class LearningWithoutForgetting(ProtectingCallback):
    """Adds strength · T² · KL(teacher ‖ student) to the loss, on the new task's own batches.

    The teacher is the model at the task's start, in evaluation mode. The divergence is that of what
    the model predicts: classes (a softmax over all of the output together), real numbers, whose
    divergence is half the squared difference, or answers of yes and no. Logits of both sides are
    divided by the temperature T. It is summed over the output's last axis and averaged over
    samples, or over tokens that count: those that ``attention_mask`` does not hide and whose label
    (of a causal model: the next token's) is not −100.

    Source: LwF (Li & Hoiem, arXiv 1606.09282), whose cross-entropy with the old outputs has the
    gradient of this divergence. T² keeps the gradient's size independent of T (Hinton et al., arXiv
    1503.02531). LwF gives each task a head of its own and distils the old ones; here one output is
    shared and all of it is distilled, but for what a head has grown by since the last task.

    The student's logits are those that ``training_step`` computes anyway: what the LightningModule
    returns when it is called, or else the only submodule it has. The teacher computes the same
    inputs once more, which makes a step about a third slower and leaves no trace in buffers,
    metrics and random states. The divergence is added to the loss right before ``backward``, scaled
    as the loss is: by gradient accumulation and AMP, and by the module's ``loss_share`` if it has
    one, what the batch counts in a loss that is the mean over all tokens of a step. Under manual
    optimization it joins each ``manual_backward`` that follows a forward pass, and is not divided
    by anything. What the module logs as its loss is without it.

    Args:
        strength: What the divergence is multiplied by, 0 or more.
        temperature: T, more than 0.
        from_first_task: Whether what the model knows before its first task is worth keeping. False
            for a model that starts from random weights: then nothing happens in task 0.
        logits: ``logits(output)`` finds the logits, classes last, in what the module returns; only
            needed where that is no tensor and has no ``logits``.
        module: Name of the submodule that computes logits from a batch's inputs, such as
            ``"net"``; only needed where it is neither the LightningModule itself nor its only
            submodule.
        predictions: What the model predicts: ``"classes"``, ``"values"`` (real numbers),
            ``"binary"`` (yes or no, each output of its own), a
            :class:`~recall_lightning.measuring.predictions.Predictions` of your own, a function
            from outputs to a ``torch.distributions`` distribution, or ``"auto"``: what the training
            loss tells, or else a batch's targets, which is logged; where both tell nothing,
            classes.
        task_epochs: Only where no datamodule tells the task: epochs a task (int), or each task's
            first epoch (list). Without either, every fit is a task.

    Raises:
        MisconfigurationException: For an argument out of its range, a strategy that shards the
            weights, trained weights of complex numbers, where no logits can be found (in the first
            task already), or where what is predicted is neither set nor told, or both and not
            alike.

    Attributes:
        teacher: The weights at the current task's start; None in a task without distillation.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[LearningWithoutForgetting(strength=1.0)], logger=False)
    """

    state_form: ClassVar[type] = DistillationState

    def __init__(
        self,
        strength: float = 1.0,
        temperature: float = 2.0,
        from_first_task: bool = True,
        logits: Callable[[Any], Tensor] | None = None,
        module: str | None = None,
        predictions: str | Predictions | Callable[[Tensor], Distribution] = "auto",
        task_epochs: int | list[int] | None = None,
    ) -> None:
        super().__init__(from_first_task, task_epochs)
        if not (strength >= 0 and math.isfinite(strength)):
            raise MisconfigurationException(f"strength={strength!r} must be a number from 0 on")
        if not temperature > 0:
            raise MisconfigurationException(f"temperature={temperature!r} must be positive")
        self.strength = strength
        self.temperature = temperature
        self.logits = logits
        self.module = module
        try:
            self._predictions = FoundPredictions(predictions)
        except ValueError as error:
            raise MisconfigurationException(f"LearningWithoutForgetting: {error}") from error
        self._logged = self._predictions.kind
        self.teacher: Snapshot | None = None
        self._outputs: dict[int, int] = {}  # how many there were, by visit
        self._hooks: list[RemovableHandle] = []
        self._view = ModelView()
        self._batch: Any = None
        self._gone: set[str] = set()  # of the teacher's weights, as a warning has told
        self._found = True  # whether this batch's forward pass put out logits
        self._tried = False  # whether one of the task's batches has shown that logits are found
        self._calls: dict[nn.Module, list[tuple[Any, Any, Tensor]]] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse sharded weights."""
        super().setup(trainer, pl_module, stage)
        check_strategy(trainer, self)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to the module's outputs; after a resume, bring the teacher to the device."""
        super().on_train_start(trainer, pl_module)
        left_out = complex_weights(pl_module)
        if left_out:
            raise MisconfigurationException(
                f"LearningWithoutForgetting cannot keep the teacher's {left_out[0]}, a weight of "
                "complex numbers: freeze it, or keep its real and imaginary parts as parameters"
            )
        if self.teacher is not None:
            self.teacher = self.teacher.to_devices_of(named_weights(pl_module))
        self._tried = False
        self._listen_to(pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the module as it was."""
        super().teardown(trainer, pl_module, stage)
        self._remove_hooks()

    def on_task_start(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Keep the teacher's weights."""
        self._tried = False
        self._listen_to(pl_module)  # which may have other submodules by now
        if self.visit == 0:
            self._outputs = {}
        try:
            self.teacher = Snapshot.take(pl_module) if self.protects else None
        except ValueError as error:
            raise MisconfigurationException(f"LearningWithoutForgetting: {error}") from error

    def on_task_end(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Forget the last batch: the task has ended."""
        self._batch, self._calls = None, {}

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the batch's masks and labels."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        # a training_step may pop what it takes
        self._batch = copy.copy(batch) if isinstance(batch, (Mapping, list)) else batch
        self._calls, self._found = {}, False

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Add the divergence to the loss, in place: it is what ``backward`` is called on."""
        calls, self._calls = self._calls, {}
        if not self._listens:
            return
        student_module = next((c for c in self._candidates(pl_module) if c in calls), None)
        if student_module is None:
            if not self._found:
                self._refuse(pl_module)
            return
        self._found = True
        if not self._tried:  # in a task without a teacher too: the next is too late
            self._tried = True
            self._try(loss, calls[student_module])
        if self.teacher is None:
            return
        extra = self.strength * self._divergence(trainer, pl_module, student_module, calls)
        if pl_module.automatic_optimization:  # Lightning has divided the loss already
            extra = extra / trainer.accumulate_grad_batches
            extra = extra * getattr(pl_module, "loss_share", 1.0)  # of a step's mean over tokens
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        loss.add_((extra if scaler is None else scaler.scale(extra)).to(loss.dtype))

    def check_fits(self, weights: Mapping[str, Tensor]) -> None:
        """Check the teacher's names and shapes."""
        check_tensors(self.teacher or {}, weights, "teacher")

    def state_dict(self) -> dict[str, Any]:
        """Return the task, the teacher's weights and the kind of predictions."""
        teacher = None if self.teacher is None else dict(self.teacher)
        state = {
            **super().state_dict(),
            "teacher": teacher,
            "predictions": self._predictions.found,
            "outputs": dict(self._outputs),
        }
        return {**state, "tensors": count_tensors(state)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state_dict)
        teacher = state_dict["teacher"]
        self.teacher = None if teacher is None else Snapshot(teacher)
        # older checkpoints have none of these
        self._predictions.restore(state_dict.get("predictions"))
        self._outputs = dict(state_dict.get("outputs", {}))

    def _divergence(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        student_module: nn.Module,
        calls: Mapping[nn.Module, list[tuple[Any, Any, Tensor]]],
    ) -> Tensor:
        """The mean over all samples or tokens of the calls that led to this loss."""
        teacher = _Teacher(pl_module, student_module)
        weights = self._teacher_weights(pl_module, teacher)
        total, count = torch.zeros(2, device=pl_module.device)
        assert self.visit is not None
        old = self._outputs.get(self.visit - 1)
        for args, kwargs, student in calls[student_module]:
            with trainer.precision_plugin.forward_context():
                output = torch.func.functional_call(teacher, weights, args, kwargs)
            taught = self._logits_in(output)
            assert taught is not None  # the student's were found in the same way
            given = _with(self._batch, kwargs)
            kind = self._kind(student, given)
            parameters = self._predictions.to_parameters(student, self._view.targets(given))
            new, known = parameters(student)[..., :old], parameters(taught)[..., :old]
            each = kind.divergence(new, known, self.temperature)
            counts = self._view.counts(given, each)
            total = total + torch.where(counts, each, 0.0).sum()
            count = count + counts.sum()
        return total / count.clamp(min=1)

    @property
    def _listens(self) -> bool:
        return self.teacher is not None or not self._tried

    def _try(self, loss: Tensor, calls: list[tuple[Any, Any, Tensor]]) -> None:
        """Take what the loss tells of predictions, and refuse what cannot be told."""
        other = self._predictions.see_loss(evidence_in(loss, [student for *_, student in calls]))
        if other is not None and self._predictions.kind is not None:
            rank_zero_warn(
                f"LearningWithoutForgetting: predictions={self._predictions.kind.name!r} is set, "
                f"and the training loss takes the model's outputs for {other!r}: what is distilled "
                "is what is set"
            )
        for _, kwargs, student in calls:
            self._kind(student, _with(self._batch, kwargs))

    def _kind(self, student: Tensor, batch: Any) -> Predictions:
        """What the student predicts, logged where the batch has told it."""
        try:
            view = self._view
            self._predictions.of(student, view.targets(batch), view.inputs(batch))
        except ValueError as error:
            raise MisconfigurationException(f"LearningWithoutForgetting: {error}") from error
        kind = self._predictions.kind or _fallback(student)
        if type(kind) is not type(self._logged):
            self._logged = kind
            told = "nothing in the batch tells more"
            if self._predictions.kind is not None:
                told = (
                    "the training loss" if self._predictions.is_shown else "the batch"
                ) + " tells"
            doubt = self._predictions.doubt
            tell = rank_zero_info if doubt is None else rank_zero_warn
            tell(
                f"LearningWithoutForgetting takes what the model predicts for {kind.name!r}, as "
                f"{told}: set predictions= if it is {'something else' if doubt is None else doubt}"
            )
        return kind

    def _logits_in(self, output: Any) -> Tensor | None:
        own = output if self.logits is None else self.logits(output)
        return self._view.logits(own)

    def _teacher_weights(self, pl_module: LightningModule, module: nn.Module) -> dict[str, Tensor]:
        """The teacher's weights under the names they have in ``module``."""
        assert self.teacher is not None
        live = find_weights(pl_module, self.teacher)
        try:
            self.teacher.check_shapes(live)
        except ValueError as error:
            raise MisconfigurationException(f"LearningWithoutForgetting: {error}") from error
        self._tell_gone([name for name in self.teacher if name not in live])
        by_id = {id(weight): self.teacher[name] for name, weight in live.items()}
        inside = chain(module.named_parameters(), module.named_buffers())
        return {name: by_id[id(tensor)] for name, tensor in inside if id(tensor) in by_id}

    def _tell_gone(self, names: list[str]) -> None:
        if set(names) - self._gone:
            rank_zero_warn(
                f"the teacher of LearningWithoutForgetting has the student's {', '.join(names[:3])}"
                f"{' and more' if len(names) > 3 else ''}: its own are gone from the model under "
                "this name (pruned, parametrised or replaced within the task)"
            )
        self._gone |= set(names)

    def _listen(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        # not to validation, the teacher or what another callback measures
        if not (self._listens and torch.is_grad_enabled()) or is_measured():
            return
        logits = self._logits_in(output)
        if logits is None or not logits.requires_grad:
            return
        if logits.dim() and self.visit is not None:
            self._outputs[self.visit] = logits.shape[-1]
        self._calls.setdefault(module, []).append((args, kwargs, logits))

    def _listen_to(self, pl_module: LightningModule) -> None:
        self._remove_hooks()
        self._view = view_of(pl_module)
        for candidate in self._candidates(pl_module):
            self._hooks.append(candidate.register_forward_hook(self._listen, with_kwargs=True))

    def _candidates(self, pl_module: LightningModule) -> list[nn.Module]:
        """Where logits may come from, the best first."""
        if self.module is not None:
            try:
                return [pl_module.get_submodule(self.module)]
            except AttributeError as error:
                raise MisconfigurationException(
                    f"module={self.module!r} must be a submodule of {type(pl_module).__name__}"
                ) from error
        own = [pl_module] if type(pl_module).forward is not LightningModule.forward else []
        if own and self.logits is not None:
            return [*own]  # the user's function is for what the module itself returns
        children = [child for child in pl_module.children() if has_parameters(child)]
        return [*own, *(children if len(children) == 1 else [])]

    def _refuse(self, pl_module: LightningModule) -> None:
        heard = [type(candidate).__name__ for candidate in self._candidates(pl_module)]
        names = " and ".join(heard) or type(pl_module).__name__
        raise MisconfigurationException(
            f"LearningWithoutForgetting found no logits in what {names} returned in training_step: "
            "pass logits=lambda output: …, which finds them in the output, or module='…', the name "
            "of the submodule that computes them from the batch"
        )

    def _remove_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._calls = [], {}


class _Teacher(nn.Module):
    """Runs a part of a module in evaluation mode, which begins under the teacher's weights."""

    def __init__(self, whole: nn.Module, part: nn.Module) -> None:
        super().__init__()
        self.whole = whole
        self._run = lambda *args, **kwargs: part(*args, **kwargs)  # no second name of its weights

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with undisturbed(self.whole):
            return self._run(*args, **kwargs)


def _fallback(student: Tensor) -> Predictions:
    """Take outputs for logits of classes where no target tells what they are."""
    if student.dim() > 3 or student.shape[-1] == 1:
        raise MisconfigurationException(
            "LearningWithoutForgetting cannot tell what the model predicts from outputs of shape "
            f"{tuple(student.shape)} and this batch: set predictions='classes', 'values' or "
            "'binary'"
        )
    return Categorical()


def _with(batch: Any, kwargs: Mapping[str, Any]) -> Any:
    """Return a batch whose inputs are those that the model was called with, by name."""
    inputs = {**given_by_name(batch), **kwargs}
    if inputs and isinstance(batch, (tuple, list)):
        return (inputs, *batch[1:])
    return inputs or batch


METHOD = Method(
    "lwf",
    "learning without forgetting: distillation",
    LearningWithoutForgetting,
    keeps_first="from_first_task",
)
