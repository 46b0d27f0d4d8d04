"""What a merge of model files is told, and what it tells."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from recall_lightning.checks import check_choice
from recall_lightning.measuring.blocks import Block
from recall_lightning.merging.block_settings import Setting, numbers_of
from recall_lightning.merging.functional import METHODS, MergeMethod, method_named

_DTYPES = ("float32", "float64")
OUT_DTYPES = ("float64", "float32", "bfloat16", "float16")
_LARGEST = 1e100  # sums of such numbers are finite too
_MEASURES = ("rbf", "cka", "cosine")


@dataclass(frozen=True)
class ProbeSettings:
    """How ``recall`` measures models.

    Attributes:
        file: JSON lines with a ``text`` (or ``prompt`` and an answer, or chat ``messages``), or
            plain text, one sample a line.
        measure: ``"rbf"`` (the paper's), ``"cka"`` or ``"cosine"``.
        typical_samples: How many samples are chosen, by k-means, to measure on.
        pool_size: From how many of the file's first samples they are chosen.
        max_length: Tokens after which a sample is cut off.
        seed: Seed of k-means.

    Raises:
        ValueError: For an unknown measure, or a count that is no whole number in its range.

    Example:
        >>> ProbeSettings("texts.jsonl", max_length=0)
        Traceback (most recent call last):
        ValueError: max_length=0 must be a whole number from 1 on
    """

    file: str | Path
    measure: str = "rbf"
    typical_samples: int = 32
    pool_size: int = 256
    max_length: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        _check_path("probe", self.file)
        check_choice("measure", self.measure, *_MEASURES)
        _check_whole("typical_samples", self.typical_samples, 2)
        _check_whole("pool_size", self.pool_size, 2)
        _check_whole("max_length", self.max_length, 1)
        _check_whole("seed", self.seed, 0)


@dataclass(frozen=True)
class MergeSettings:
    """What is merged, how, and where it goes.

    Attributes:
        models: Paths, in the order in which weights are given; for ``recall`` the newest is last.
        out: The folder to make.
        method: One of :data:`~recall_lightning.merging.functional.METHODS`, or its former name.
        weights: One a model: a number, a list over depth, or name patterns; None for equal ones.
            ``linear`` divides them by their sum unless the option ``normalize`` is false.
        base: The model that task vectors are differences from; for adapters what they adapt.
        donor: The folder that config and tokenizer are copied from; None for the first Hugging
            Face folder, or the first adapter.
        options: The method's own, by name; numbers may differ by block as weights may.
        statistics: For ``fisher`` and ``regmean``, one safetensors file a model, under the
            names of the weights.
        probe: For ``recall``.
        rank: Of merged adapters: a number, ``"sum"`` (exact), or None for the models' largest.
        dtype: What methods other than ``linear`` compute in, which is summed in float64.
        out_dtype: What is written; None keeps the first model's.
        shard_size: The most bytes of a weight file, such as ``"5GB"``.
        device: Where it is computed.
        allow_different_configs: Whether to merge models of the same shapes whose configs or
            tokenizers differ in what they compute, and write the donor's.
        tokenizer: ``"union"`` to give the result the tokens of all models: rows of embeddings and
            heads are merged token by token, and a model that lacks a token counts as the mean of
            those that have it. None for one tokenizer that all must have.

    Raises:
        ValueError: For an unknown method, option or dtype, a missing input, a value of another
            kind than described, or counts that differ.

    Example:
        >>> MergeSettings(["a", "b"], "out", weights=[0.5])
        Traceback (most recent call last):
        ValueError: 1 weight is given for 2 models: give one each, in their order
    """

    models: Sequence[str | Path]
    out: str | Path
    method: str = "linear"
    weights: Sequence[Setting] | None = None
    base: str | Path | None = None
    donor: str | Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    statistics: Sequence[str | Path] = ()
    probe: ProbeSettings | None = None
    rank: int | str | None = None
    dtype: str = "float32"
    out_dtype: str | None = None
    shard_size: int | str = "5GB"
    device: str = "cpu"
    allow_different_configs: bool = False
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "method", method_named(self.method).name)
        self._check_paths()
        self._check_inputs()
        self._check_weights()
        self._check_options()
        check_choice("dtype", self.dtype, *_DTYPES)
        if self.out_dtype is not None:
            check_choice("out_dtype", self.out_dtype, *OUT_DTYPES)
        if self.tokenizer is not None:
            check_choice("tokenizer", self.tokenizer, "union")
            if self.how.measures or self.how.statistics:
                raise ValueError(
                    f"tokenizer='union' moves rows and {self.method} measures models or takes "
                    "statistics as they were: use another method, such as linear"
                )
        if self.rank not in (None, "sum"):
            _check_whole("rank", self.rank, 1, " or 'sum'")
        if not isinstance(self.allow_different_configs, bool):
            raise ValueError(
                f"allow_different_configs={self.allow_different_configs!r} must be true or false"
            )
        if not isinstance(self.shard_size, str):
            _check_whole("shard_size", self.shard_size, 1, " or such as '5GB'")

    @classmethod
    def from_flat(cls, given: Mapping[str, Any]) -> "MergeSettings":
        """Build settings from one level of names, as on the command line and in ``merge.yaml``.

        Names of the probe's settings and of the method's options stand beside the others, and
        ``probe`` is the file. None counts as not given.

        Raises:
            ValueError: As the class; also if there are no models or there is no output folder.

        Example:
            >>> given = {"models": ["a", "b"], "out": "c", "method": "slerp"}
            >>> MergeSettings.from_flat(given | {"parallel_threshold": 0.9}).options
            {'parallel_threshold': 0.9}
        """
        rest = {name: value for name, value in given.items() if value is not None}
        own = {f.name: rest.pop(f.name) for f in fields(cls) if f.name in rest}
        if "out" not in own:
            raise ValueError("no output folder is given: name one as out")
        file = own.pop("probe", None)
        if file is not None:
            names = [f.name for f in fields(ProbeSettings) if f.name in rest]
            own["probe"] = ProbeSettings(file, **{name: rest.pop(name) for name in names})
        return cls(own.pop("models", []), own.pop("out"), **own, options=rest)

    def flat(self) -> dict[str, Any]:
        """Return all but ``out`` that is set or has an effect, as :meth:`from_flat` reads it."""
        flat: dict[str, Any] = {"models": [str(path) for path in self.models]}
        flat["method"] = self.method
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name not in ("models", "out", "options", "probe", "method") and value != f.default:
                flat[f.name] = _plain(value)
        if self.probe:
            flat["probe"] = str(self.probe.file)
            flat |= {f.name: getattr(self.probe, f.name) for f in fields(self.probe)[1:]}
        own = {n: p.default for n, p in self.how.options.items()} | dict(self.options)
        return flat | {name: _plain(value) for name, value in own.items()}

    @property
    def how(self) -> MergeMethod:
        """What there is to know of the method."""
        return METHODS[self.method]

    @property
    def normalizes(self) -> bool:
        """Whether a weight's shares are divided by their sum before the method sees them."""
        if self.how.normalize is None:
            return bool(self.options.get("normalize", True))
        return self.how.normalize

    def _check_paths(self) -> None:
        for label, paths in (("models", self.models), ("statistics", self.statistics)):
            if not isinstance(paths, Sequence) or isinstance(paths, str):
                raise ValueError(f"{label}={paths!r} must be a list of paths")
            for path in paths:
                _check_path(label, path)
        for label in ("out", "base", "donor"):
            if getattr(self, label) is not None:
                _check_path(label, getattr(self, label))

    def _check_inputs(self) -> None:
        method, how = self.method, self.how
        most = how.most_models or len(self.models)
        if not 2 <= len(self.models) <= most:
            needed = "two" if how.most_models == 2 else "two or more"
            who = "a merge" if how.most_models is None else method
            raise ValueError(f"{_count(len(self.models), 'model')} given: {who} needs {needed}")
        if how.needs_base and self.base is None:
            raise ValueError(f"{method} needs the model that all come from: give base")
        if len(self.statistics) != (len(self.models) if how.statistics else 0):
            others = " or ".join(other.name for other in METHODS.values() if other.statistics)
            raise ValueError(
                f"{method} needs statistics, one safetensors file a model, and "
                f"{len(self.statistics)} are given for {len(self.models)} models"
                if how.statistics
                else f"{method} uses no statistics: leave them out, or use {others}"
            )
        if how.measures != (self.probe is not None):
            others = " or ".join(other.name for other in METHODS.values() if other.measures)
            raise ValueError(
                f"{method} needs a probe file with texts of the newest model's task: give probe"
                if how.measures
                else f"{method} measures nothing: leave probe out, or use {others}"
            )

    def _check_weights(self) -> None:
        if self.weights is None:
            return
        if self.how.measures:
            raise ValueError(
                f"{self.method} computes the weights itself: leave them out, or use linear"
            )
        if not isinstance(self.weights, Sequence) or isinstance(self.weights, str):
            raise ValueError(f"weights={self.weights!r} must be a list: give one each model")
        if len(self.weights) != len(self.models):
            raise ValueError(
                f"{_count(len(self.weights), 'weight')} given for {len(self.models)} models: give "
                "one each, in their order"
            )
        for index, weight in enumerate(self.weights):
            _check_setting(f"weights[{index}]", weight)

    def _check_options(self) -> None:
        kinds = self.how.option_types
        for option, value in self.options.items():
            if option not in kinds:
                has = ", ".join(kinds) or "none"
                raise ValueError(
                    f"{self.method} has no option {option!r}: it has {has}, so leave it out"
                )
            _check_option(option, value, kinds[option])
        for option, parameter in self.how.options.items():
            if parameter.default is parameter.empty and option not in self.options:
                raise ValueError(f"{self.method} needs a {option}: give it, such as {option}=0.5")
        for option in self.how.positive:
            value = self.options.get(option, 1)
            if min(numbers_of(value)) <= 0:
                raise ValueError(f"{option}={value!r} must be positive")


@dataclass(frozen=True)
class MergeReport:
    """What a merge did.

    Attributes:
        blocks: The model's blocks, shallow to deep.
        weights: Of each model, block name to the mean of its tensors' weights.
        similarity: Of each model, block name to its similarity to the newest; empty but for
            ``recall``.
        discarded_energy: Of merged adapters, module to the part of ‖ΔW‖² that its rank lost.
        nbytes: Bytes of the weights written.
        seconds: Wall time, without measuring similarities.
        loads: Whether a config says what the model is, so that ``from_pretrained`` loads it.
    """

    blocks: Sequence[Block]
    weights: Sequence[Mapping[str, float]]
    similarity: Sequence[Mapping[str, float]]
    discarded_energy: Mapping[str, float]
    nbytes: int
    seconds: float
    loads: bool


def _check_path(label: str, path: Any) -> None:
    if not isinstance(path, str | Path) or not str(path):
        raise ValueError(f"{label}={path!r} must be a path")


def _check_whole(label: str, value: Any, least: int, otherwise: str = "") -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{label}={value!r} must be a whole number from {least} on{otherwise}")


def _check_setting(label: str, setting: Any) -> None:
    try:
        numbers = numbers_of(setting)
    except ValueError as error:
        raise ValueError(f"{label}: {error}") from error
    if not all(abs(number) < _LARGEST for number in numbers):  # also for NaN
        raise ValueError(f"{label}={setting!r} must be finite, and below {_LARGEST}")
    if isinstance(setting, Mapping) and not all(isinstance(key, str) for key in setting):
        raise ValueError(f"{label}={setting!r} must have patterns of names as keys")


def _check_option(label: str, value: Any, kind: Any) -> None:
    if get_origin(kind) is Literal:
        check_choice(label, value, *get_args(kind))
    elif kind is bool and not isinstance(value, bool):
        raise ValueError(f"{label}={value!r} must be true or false")
    elif kind is int:
        _check_whole(label, value, 0)
    elif kind is float:
        _check_setting(label, value)


def _count(number: int, what: str) -> str:
    return f"{number} {what} is" if number == 1 else f"{number} {what}s are"


def _plain(value: Any) -> Any:
    """Return a value as YAML can hold it."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
