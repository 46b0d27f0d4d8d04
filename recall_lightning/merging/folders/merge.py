"""Merging whole models from file to file, tensor by tensor."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recall_lightning.measuring.blocks import Block
from recall_lightning.merging.block_settings import Setting, setting_by_weight
from recall_lightning.merging.blockwise import mean_by_block
from recall_lightning.merging.folders.adapter_files import as_adapter
from recall_lightning.merging.folders.adapters import AdapterMerge
from recall_lightning.merging.folders.checked_sums import CheckedSums
from recall_lightning.merging.folders.inputs import (
    infinite,
    open_models,
    reference_of,
    refuse_infinite,
    tied_names,
)
from recall_lightning.merging.folders.layers import blocks_from_names, blocks_named
from recall_lightning.merging.folders.model_card import write_companions
from recall_lightning.merging.folders.settings import MergeReport, MergeSettings
from recall_lightning.merging.folders.union import UnitedVocabulary
from recall_lightning.merging.folders.writing import ModelWriter, Plan
from recall_lightning.merging.running_statistics import means_of_variances, spread_of_means
from recall_lightning.weights.atomic import refuse_existing
from recall_lightning.weights.chunks import chunk_size
from recall_lightning.weights.finite import all_finite
from recall_lightning.weights.reading import ModelFiles, open_model

Progress = Callable[[int, int], None]
"""Called with the bytes merged since the last call, of all models, and those to merge in all."""


def merge_files(settings: MergeSettings, progress: Progress | None = None) -> MergeReport:
    """Merge models on disk into a new folder that ``from_pretrained`` loads.

    Weights are read lazily and written as they are merged; ``linear`` and ``recall`` hold a chunk
    of 256 k elements of each model at a time, other methods one tensor of each. Whole models are
    loaded for ``recall`` only, one at a time, to be measured. Integer and boolean tensors are
    copied from the first model. A summed ``running_var`` is that of the models' activations mixed
    (:func:`~recall_lightning.merging.running_statistics.spread_of_means`), unless weights are no
    parts of 1. The folder also gets the donor's config and tokenizer, a model card, the settings
    (``merge.yaml``) and every block's coefficients (``coefficients.json``). It appears whole or not
    at all.

    Args:
        settings: What to merge, how, and where to.
        progress: Told how it goes.

    Raises:
        ValueError: If anything is wrong with the models, the settings or the disk. There is no
            output folder then.

    Example:
        >>> import tempfile
        >>> from safetensors.torch import save_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file({"w": torch.zeros(2)}, f"{folder}/a.safetensors")
        ...     save_file({"w": torch.ones(2)}, f"{folder}/b.safetensors")
        ...     paths = [f"{folder}/a.safetensors", f"{folder}/b.safetensors"]
        ...     report = merge_files(MergeSettings(paths, f"{folder}/out", weights=[0.25, 0.75]))
        ...     open_model(f"{folder}/out")["w"]
        tensor([0.7500, 0.7500])
    """
    with _system_errors_are_named(settings.out):
        return _merge_files(settings, progress)


def _merge_files(settings: MergeSettings, progress: Progress | None) -> MergeReport:
    refuse_existing(Path(settings.out))
    _check_device(settings.device)
    models, base = _opened(settings)
    work: _ModelMerge | AdapterMerge
    if models[0].kind == "adapter":
        work = AdapterMerge(models, settings)
    else:
        work = _ModelMerge(models, base, settings)
    unopened = ModelWriter(settings.out, work.plan, settings.shard_size, None, work.stem)
    measured, names = _measured(models, settings)
    started = time.perf_counter()
    blocks = _blocks(work.shapes, names, models[-1])
    weights = _weights(settings, blocks, measured, len(models))
    total = len(models) * sum(
        dtype.itemsize * math.prod(shape) for dtype, shape in work.plan.values()
    )
    with unopened as writer:
        for name, chunks in work.tensors(weights):
            writer.write(name, _counted(chunks, progress, total, len(models)))
        sizes = {name: torch.empty(shape, device="meta") for name, shape in work.shapes.items()}
        opened = models if base is None else [*models, base]
        donor = reference_of(opened) if settings.donor is None else open_model(settings.donor)
        report = MergeReport(
            blocks,
            [mean_by_block(given, blocks, sizes) for given in weights],
            measured,
            work.discarded_energy,
            writer.nbytes,
            time.perf_counter() - started,
            bool(donor.config or work.config),
        )
        united = None
        if settings.tokenizer is not None:
            united = UnitedVocabulary.of([donor, *(m for m in opened if m.path != donor.path)])
        dtype = _main_dtype(work.plan)
        write_companions(writer, donor, settings, report, work.config, dtype, united)
    return report


def _measured(
    models: Sequence[ModelFiles], settings: MergeSettings
) -> tuple[list[dict[str, float]], list[str] | None]:
    """Return the models' similarities and the names of the blocks, for methods that need them."""
    if not settings.how.measures:
        return [], None
    # what runs models takes seconds to import
    from recall_lightning.merging.folders.probing import similarity_to_newest

    return similarity_to_newest(models, settings)


def _opened(settings: MergeSettings) -> tuple[list[ModelFiles], ModelFiles | None]:
    """Open the models and, where task vectors are differences from it, their base."""
    base, insists = settings.base, settings.allow_different_configs
    unites = settings.tokenizer is not None
    of_adapters = base is not None and as_adapter(open_model(settings.models[0])).kind == "adapter"
    if base is not None and settings.how.needs_base and not of_adapters:
        *models, opened = open_models([*settings.models, base], settings.donor, insists, unites)
        return models, opened
    models = open_models(settings.models, settings.donor, insists, unites)
    if base is not None and not of_adapters and settings.probe is None:
        raise ValueError(
            f"{settings.method} uses no base: leave it out, or choose a method of task vectors, "
            "such as task_arithmetic or ties"
        )
    return models, None


def _blocks(
    shapes: Mapping[str, Sequence[int]], measured: Sequence[str] | None, model: ModelFiles
) -> list[Block]:
    """Return the blocks that were measured, else those that the tensors' names show."""
    if measured is None:
        return blocks_from_names(shapes)
    blocks = blocks_named(measured, shapes)
    if not any(name.startswith(f"{block.name}.") for block in blocks for name in block.weights):
        raise ValueError(
            f"no tensor of {model.path} is named after the blocks that were measured, "
            f"{measured[0]} to {measured[-1]}: save the model again with save_pretrained"
        )
    return blocks


def _by_weight(label: str, setting: Setting, blocks: Sequence[Block]) -> dict[str, float]:
    try:
        return setting_by_weight(setting, blocks)
    except ValueError as error:
        raise ValueError(f"{label}: {error}") from error


def _weights(
    settings: MergeSettings,
    blocks: Sequence[Block],
    measured: Sequence[Mapping[str, float]],
    count: int,
) -> list[dict[str, float]]:
    """Return each model's weight by tensor name."""
    if settings.how.weights_from_similarity is not None:
        options = {o: _by_weight(o, value, blocks) for o, value in settings.options.items()}
        by_model: list[dict[str, float]] = [{} for _ in measured]
        for block in blocks:
            similarity = [given[block.name] for given in measured]
            for name in block.weights:
                own = {option: values[name] for option, values in options.items()}
                parts = settings.how.weights_from_similarity(similarity, **own)
                for weights, part in zip(by_model, parts, strict=True):
                    weights[name] = part
        return by_model
    shares = [1.0] * count if settings.weights is None else settings.weights
    by_model = [_by_weight(f"weights[{i}]", share, blocks) for i, share in enumerate(shares)]
    if settings.normalizes:
        for name in by_model[0]:
            total = math.fsum(weights[name] for weights in by_model)  # the order must not matter
            if abs(total) <= 1e-12 * max(abs(weights[name]) for weights in by_model):
                raise ValueError(
                    f"the weights of {name!r} sum to 0: {settings.method} divides them by their "
                    "sum, so give others"
                )
            for weights in by_model:
                weights[name] /= total
    return by_model


class _ModelMerge:
    """How full models are merged: what is written, and how each tensor is made.

    Args:
        models: Of one architecture, under the same names.
        base: Of their task vectors, for methods that work on these.
        settings: Of the merge.

    Attributes:
        plan: Name to dtype and shape of everything that is written.
        shapes: Name to shape of everything that has a weight.
        discarded_energy: Empty: nothing has a rank.

    Raises:
        ValueError: If statistics or options do not fit the tensors, or a rank is given.
    """

    stem = "model"
    config = None

    def __init__(
        self, models: Sequence[ModelFiles], base: ModelFiles | None, settings: MergeSettings
    ) -> None:
        if settings.rank is not None:
            raise ValueError(f"rank is for adapters and {models[0].path} is none: leave it out")
        self.models, self.base, self.settings = models, base, settings
        self.discarded_energy: dict[str, float] = {}
        first = models[0]
        out = None if settings.out_dtype is None else getattr(torch, settings.out_dtype)
        self.plan = {
            name: ((out or dtype) if dtype.is_floating_point else dtype, first.shape(name))
            for name, dtype in ((name, first.dtype(name)) for name in first)
        }
        self.shapes = {
            name: shape for name, (dtype, shape) in self.plan.items() if dtype.is_floating_point
        }
        if not self.shapes:
            raise ValueError(f"{first.path} holds no floating-point tensor: nothing can be merged")
        self._tied = {name: to for name, to in tied_names(first).items() if name in self.shapes}
        self._sums = CheckedSums(models, settings.device)
        self._means = means_of_variances(self.shapes)
        self._sums_of_variances = CheckedSums(models, settings.device)
        self._statistics = [open_model(path) for path in settings.statistics]
        self._check_statistics()
        self._options = self._options_by_name()

    def tensors(
        self, weights: Sequence[Mapping[str, float]]
    ) -> Iterator[tuple[str, Tensor | Iterable[Tensor]]]:
        """Yield every tensor of the plan, whole or in chunks, given each model's weight by name."""
        for name, (dtype, _) in self.plan.items():
            once = self._tied.get(name, name)  # what is one tensor is merged as one
            if name not in self.shapes:
                yield name, self.models[0][name]
            elif self.settings.how.sums(self._has_statistics(once)):
                yield name, self._summed(once, [given[once] for given in weights], dtype)
            else:
                yield name, self._merge(once, [given[once] for given in weights], dtype)

    def _has_statistics(self, name: str) -> bool:
        return bool(self._statistics) and name in self._statistics[0]

    def _summed(
        self, name: str, shares: list[float], dtype: torch.dtype
    ) -> Tensor | Iterable[Tensor]:
        are_parts = min(shares) >= 0 and math.isclose(math.fsum(shares), 1)
        if name not in self._means or not are_parts:
            return self._sums.chunks(name, shares, dtype)
        used = [(m, share) for m, share in zip(self.models, shares, strict=True) if share != 0]
        means = [self._read(model, self._means[name], torch.float64) for model, _ in used]
        spread = spread_of_means(means[0], means[1:], [share for _, share in used[1:]])
        # the other sums' memory may still be written to disk
        chunks = self._sums_of_variances.chunks(name, shares, dtype)
        mixed = torch.cat([chunk.clone() for chunk in chunks]).add_(spread.reshape(-1))
        if not all_finite(mixed):
            refuse_infinite([model for model, _ in used], name, dtype)
        return mixed.reshape(spread.shape)

    def _merge(self, name: str, shares: list[float], dtype: torch.dtype) -> Tensor:
        how = self.settings.how
        dtypes = {model.dtype(name) for model in self.models} | {
            getattr(torch, self.settings.dtype)
        }
        wide = torch.float64 if torch.float64 in dtypes else torch.float32
        # which random entries are dropped follows from the tensor, not from order or files
        keys = [_digest(model[name]) for model in self.models]
        order = sorted(range(len(keys)), key=lambda i: (keys[i], shares[i]))  # sums are rounded
        statistics = [
            self._read(self._statistics[i], name, wide) for i in order if self._statistics
        ]
        given: dict[str, Any] = {
            "weights": [shares[i] for i in order],
            "name": name,
            "model_keys": [keys[i] for i in order],
            how.statistics or "": statistics,
        }
        if self.base is not None:
            given["base"] = self._read(self.base, name, wide)
        tensors = [self._read(self.models[i], name, wide) for i in order]
        options = {option: values[name] for option, values in self._options.items()}
        try:
            inputs = [given[key] for key in how.inputs]
            merged = how.function(tensors, *inputs, **options).to(dtype)
        except ValueError as error:
            raise ValueError(f"{how.name} of {name!r}: {error}") from error
        if not all_finite(merged):
            refuse_infinite(self.models, name, dtype)
        return merged

    def _read(self, model: ModelFiles, name: str, dtype: torch.dtype) -> Tensor:
        tensor = model[name].to(self.settings.device)
        tensor = tensor.to(torch.promote_types(tensor.dtype, dtype))
        if not all_finite(tensor):
            raise infinite(model, name)
        return tensor

    def _check_statistics(self) -> None:
        """Check that files have statistics of the same weights, of all that are not summed."""
        for file in self._statistics:
            if not any(name in file for name in self.shapes):
                raise ValueError(
                    f"{file.path} has statistics of no weight of {self.models[0].path}: they must "
                    f"have the weights' names, such as {next(iter(self.shapes))!r}"
                )
            for name in self.shapes:
                summed = self.settings.how.sums(has_statistics=False)
                wanted = not summed or self._has_statistics(name)
                if wanted and name not in file:
                    raise ValueError(f"{file.path} has no statistics of {name!r}: gather them too")
                if not wanted and name in file:
                    lacking = self._statistics[0].path
                    raise ValueError(f"{lacking} has no statistics of {name!r}: gather them too")

    def _options_by_name(self) -> dict[str, dict[str, Any]]:
        """Return the method's options by tensor name; conventions and seeds are for all."""
        blocks = blocks_from_names(self.shapes)
        kinds = {name: p.annotation for name, p in self.settings.how.options.items()}
        return {
            option: _by_weight(option, value, blocks)
            if kinds[option] is float
            else dict.fromkeys(self.shapes, value)
            for option, value in self.settings.options.items()
            if option in kinds  # how linear normalizes is no option of its function
        }


def _digest(tensor: Tensor) -> str:
    """Identify a tensor by up to 4096 of its values, evenly spread."""
    flat = tensor.reshape(-1)
    sample = flat[:: len(flat) // 4096 + 1].contiguous().view(torch.uint8)
    return blake2b(sample.numpy().tobytes(), digest_size=16).hexdigest()


def _main_dtype(plan: Plan) -> str:
    """Return what most of the model's numbers are written as, as a config names it."""
    counts: dict[torch.dtype, int] = {}
    for dtype, shape in plan.values():
        if dtype.is_floating_point:
            counts[dtype] = counts.get(dtype, 0) + math.prod(shape)
    return str(max(counts, key=lambda dtype: counts[dtype])).removeprefix("torch.")


def _check_device(device: str) -> None:
    try:
        torch.ones(1, dtype=torch.float64, device=device).item()
    except (RuntimeError, AssertionError, TypeError) as error:  # as backends see fit
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"device={device!r} cannot be used ({reason}): use cpu") from error


@contextmanager
def _system_errors_are_named(out: str | Path) -> Iterator[None]:
    """Turn what the system refuses, a permission or a broken disk, into a sentence."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"{error.filename or out} cannot be read or written ({error.strerror or error}), so "
            f"{out} was not made: check its permissions and its disk"
        ) from error


def _counted(
    chunks: Tensor | Iterable[Tensor], progress: Progress | None, total: int, models: int
) -> Tensor | Iterable[Tensor]:
    """Report what is read for what is written: as many bytes of each model."""
    if progress is None:
        return chunks

    def reported() -> Iterator[Tensor]:
        parts: Iterable[Tensor] = chunks
        if isinstance(chunks, Tensor):
            parts = chunks.reshape(-1).split(chunk_size(chunks.device))
        for chunk in parts:
            progress(chunk.numel() * chunk.element_size() * models, total)
            yield chunk

    return reported()
