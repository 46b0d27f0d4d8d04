"""Weights in files, read only when asked for: memory-mapped, so that a slice costs no memory."""

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from recall_lightning.weights.paths import file_inside
from recall_lightning.weights.safetensors_layout import SAFETENSORS_DTYPES

_PICKLED = (".bin", ".pt", ".pth")
_CONVERT = (
    "load it where you trust it with transformers' from_pretrained and write it with "
    "save_pretrained, which saves safetensors"
)
_ZIP = b"PK\x03\x04"
_PICKLES = (_ZIP, b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclass(frozen=True)
class _Entry:
    """One tensor of a file: what its header says, and how to map its data."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]


class ModelFiles(Mapping[str, Tensor]):
    """The weights of one model on disk, by name; what :func:`open_model` returns.

    Looking a name up maps the tensor's bytes and copies nothing: the pages that are read belong to
    the file's cache, not to the process. Writing to such a tensor never reaches the file. The order
    is that of the files: shard by shard, by position.

    Attributes:
        path: What was opened.
        kind: ``"huggingface"``, ``"adapter"``, ``"safetensors"`` or ``"lightning"``.
        folder: The folder that may hold a config and a tokenizer; None for a single file.
        config: ``config.json`` of the folder, or None.
        adapter_config: ``adapter_config.json`` of an adapter's folder, or None.
        beside: What a Lightning checkpoint holds beside its weights; empty for all else.
    """

    def __init__(
        self,
        path: Path,
        kind: str,
        entries: Mapping[str, _Entry],
        folder: Path | None = None,
        beside: Mapping[str, Any] | None = None,
    ) -> None:
        if not entries:
            raise ValueError(f"{path} holds no tensor: name a model that has weights")
        self.path = path
        self.kind = kind
        self.folder = folder
        self.beside = beside or {}
        self.config = optional_json(folder, "config.json")
        self.adapter_config = optional_json(folder, "adapter_config.json")
        self._entries = entries

    def __getitem__(self, name: str) -> Tensor:
        return self._entries[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:  # Mapping's own would map the tensor
        return name in self._entries

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the tensor's shape, from the header."""
        return self._entries[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """Return the tensor's dtype, from the header."""
        return self._entries[name].dtype

    def renamed(self, names: Mapping[str, str]) -> "ModelFiles":
        """Return these weights under other names, without those that get none.

        Args:
            names: Name in the file to the new name.
        """
        other = copy.copy(self)
        other._entries = {new: self._entries[old] for old, new in names.items()}
        return other

    def replaced(
        self, tensors: Mapping[str, tuple[tuple[int, ...], Callable[[], Tensor]]]
    ) -> "ModelFiles":
        """Return these weights with some of another shape and content, of the same dtype.

        Args:
            tensors: Name to shape, and what returns the tensor.
        """
        other = copy.copy(self)
        new = {n: _Entry(self.dtype(n), shape, read) for n, (shape, read) in tensors.items()}
        other._entries = {**self._entries, **new}
        return other

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors."""
        return sum(
            entry.dtype.itemsize * torch.Size(entry.shape).numel()
            for entry in self._entries.values()
        )


def open_model(path: str | Path) -> ModelFiles:
    """Open a model's files and check every header; no weight is read yet.

    What a file is its first bytes say, whatever it is called.

    Args:
        path: A Hugging Face folder (``model.safetensors``, or shards with their index), a PEFT
            adapter's folder, one safetensors file, or a Lightning checkpoint, of which the tensors
            of its ``state_dict`` are taken (they need not be contiguous). Tensors of a shard that
            the index does not list are taken too, as transformers does. Files of a folder lie in
            it: see :func:`~recall_lightning.weights.paths.file_inside`.

    Raises:
        ValueError: If there is nothing at ``path``, weights are pickled without being a Lightning
            checkpoint, a file is truncated or corrupt, a name or a link leads out of the folder,
            index and shards contradict each other, JSON has a key twice, or a dtype is unknown.

    Example:
        >>> import tempfile
        >>> from safetensors.torch import save_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file({"w": torch.ones(2, 3)}, f"{folder}/model.safetensors")
        ...     model = open_model(folder)
        ...     model.kind, model.shape("w"), model["w"].sum()
        ('huggingface', (2, 3), tensor(6.))
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path} does not exist: name a model's folder or file")
    if path.is_dir():
        return _open_folder(path)
    content = _content(path)
    if content == "safetensors" or path.suffix == ".safetensors":
        return ModelFiles(path, "safetensors", _safetensors_entries(path))
    if content == "pickle" or (content is None and path.suffix == ".ckpt"):
        entries, beside = _lightning_entries(path)
        return ModelFiles(path, "lightning", entries, beside=beside)
    raise ValueError(
        f"{path} is no model file: name a folder, a safetensors file or a checkpoint of Lightning"
    )


def read_json(file: Path) -> dict[str, Any]:
    """Read a file of one JSON object.

    Raises:
        ValueError: If it holds something else, or an object has a key twice, of which readers take
            one or the other.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=_unique_keys)
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(f"{file} is no valid JSON ({error}): download or save it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds no JSON object: download or save it again")
    return content


def optional_json(folder: Path | None, name: str) -> dict[str, Any] | None:
    """Read a folder's file of one JSON object; None where there is none."""
    if folder is None or not (folder / name).is_file():
        return None
    return read_json(file_inside(folder, name))


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in found if keys.count(key) > 1)
        raise ValueError(f"it has the key {twice!r} twice, and must have it once")
    return found


def _content(file: Path) -> str | None:
    """Tell by a file's first bytes whether it is of safetensors or pickled; None for neither."""
    start = _start(file)
    if start.startswith(_PICKLES):
        return "pickle"
    # the length of the header, and its first character
    return "safetensors" if len(start) == 9 and start.endswith(b"{") else None


def _is_zip(file: Path) -> bool:
    """Tell whether a checkpoint's tensors can be mapped: before torch 1.6 they could not."""
    return _start(file).startswith(_ZIP)


def _start(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(9)
    except OSError:  # who reads on says why
        return b""


def _open_folder(folder: Path) -> ModelFiles:
    adapter = (folder / "adapter_config.json").is_file()
    kind, stem = ("adapter", "adapter_model") if adapter else ("huggingface", "model")
    single = folder / f"{stem}.safetensors"
    index = folder / f"{stem}.safetensors.index.json"
    if single.is_file():
        entries = _safetensors_entries(file_inside(folder, single.name))
        return ModelFiles(folder, kind, entries, folder)
    if index.is_file():
        return ModelFiles(folder, kind, _indexed_entries(index), folder)
    _refuse_other_names(folder, adapter)
    pickled = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLED)
    if pickled:
        raise ValueError(
            f"{folder} holds weights only as {pickled[0]}, which is refused because unpickling "
            f"runs code: {_CONVERT}"
        )
    raise ValueError(
        f"{folder} holds neither {single.name} nor {index.name}: name a folder that "
        "save_pretrained wrote, or the weight file itself"
    )


def _refuse_other_names(folder: Path, adapter: bool) -> None:
    """Name what a folder lacks whose weights are there, under another name than they should have.

    Raises:
        ValueError: If it holds an adapter's weights without its config, or a safetensors file that
            is called otherwise.
    """
    if not adapter and (folder / "adapter_model.safetensors").is_file():
        raise ValueError(
            f"{folder} holds an adapter without adapter_config.json, which has its scale: copy "
            "that file there, or save the adapter again"
        )
    for file in sorted(folder.iterdir()):
        if file.suffix in _PICKLED and file.is_file() and _content(file) == "safetensors":
            raise ValueError(
                f"{folder} holds weights only as {file.name}, which is a safetensors file by its "
                "content: name that file, or give it the name model.safetensors"
            )


def _indexed_entries(index: Path) -> dict[str, _Entry]:
    listed = read_json(file_inside(index.parent, index.name)).get("weight_map")
    if not isinstance(listed, dict):
        raise ValueError(f"{index} has no weight_map: download or save the model again")
    entries: dict[str, _Entry] = {}
    holder: dict[str, str] = {}
    shards = {shard: file_inside(index.parent, shard, index) for shard in listed.values()}
    for shard, file in sorted(shards.items()):
        if not file.is_file():
            raise ValueError(
                f"{index} names the shard {shard}, which is missing: download or save it again"
            )
        found = _safetensors_entries(file)
        for name in found.keys() & entries.keys():
            raise ValueError(
                f"{index.parent} holds the tensor {name!r} twice, in {holder[name]} and in "
                f"{shard}: save the model again"
            )
        entries |= found
        holder |= dict.fromkeys(found, shard)
    for name, shard in listed.items():
        if holder.get(name) != shard:
            raise ValueError(
                f"{index.parent / shard} lacks the tensor {name!r} that {index.name} places there: "
                "download or save the model again"
            )
    return entries


def _safetensors_entries(file: Path) -> dict[str, _Entry]:
    if _content(file) == "pickle":
        raise ValueError(f"{file} is pickled, and no safetensors file: {_CONVERT}")
    try:
        opened = safe_open(file, "pt")
    except (SafetensorError, OSError) as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        raise ValueError(
            f"{file} is no whole safetensors file ({reason}): download or save it again"
        ) from error
    return {name: _safetensors_entry(file, opened, name) for name in opened.offset_keys()}


def _safetensors_entry(file: Path, opened: safe_open, name: str) -> _Entry:
    header = opened.get_slice(name)
    code = header.get_dtype()
    if code not in SAFETENSORS_DTYPES:
        _refuse_dtype(file, name, code)
    return _Entry(
        SAFETENSORS_DTYPES[code], tuple(header.get_shape()), lambda: opened.get_tensor(name)
    )


def _lightning_entries(file: Path) -> tuple[dict[str, _Entry], dict[str, Any]]:
    """Return a checkpoint's tensors, and what it holds beside them."""
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=_is_zip(file))
    except Exception as error:  # unpickling a corrupt file may raise anything
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{file} cannot be read as tensors and plain Python ({reason}): save it whole, or "
            "load it where you trust it and save only {'state_dict': checkpoint['state_dict']}"
        ) from error
    weights = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(weights, dict):
        raise ValueError(
            f"{file} has no state_dict, as a checkpoint that a Trainer saved has; other pickled "
            f"weights are refused because unpickling runs code: {_CONVERT}"
        )
    entries = {
        name: _loaded_entry(file, name, tensor.detach())
        for name, tensor in weights.items()
        if isinstance(tensor, Tensor)
    }
    return entries, {key: value for key, value in checkpoint.items() if key != "state_dict"}


def _loaded_entry(file: Path, name: str, tensor: Tensor) -> _Entry:
    if tensor.layout is not torch.strided:
        raise ValueError(f"{file} holds {name!r} as {tensor.layout}: save it as a dense tensor")
    if tensor.dtype not in SAFETENSORS_DTYPES.values():
        _refuse_dtype(file, name, str(tensor.dtype))
    return _Entry(tensor.dtype, tuple(tensor.shape), lambda: tensor)


def _refuse_dtype(file: Path, name: str, dtype: str) -> None:
    known = ", ".join(str(known).removeprefix("torch.") for known in SAFETENSORS_DTYPES.values())
    raise ValueError(f"{file} holds {name!r} as {dtype}: convert it to one of {known}")
