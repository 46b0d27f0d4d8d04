"""Safetensors folders as Hugging Face lays them out, written tensor by tensor as they come."""

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from pathlib import Path, PurePath
from types import TracebackType

import torch
from torch import Tensor

from recall_lightning.weights.atomic import atomic_folder, existing_parent, write_all
from recall_lightning.weights.chunks import chunk_size
from recall_lightning.weights.paths import refuse_link_out
from recall_lightning.weights.safetensors_layout import CODES, Place, Plan, layout, nbytes_of

_COMPANIONS = (
    "config.json",
    "generation_config.json",
    "*processor_config.json",
    "*tokenizer*.json",
    "tokenizer.model*",
    "*.model",
    "*.spm",
    "*.tiktoken",
    "tekken.json",
    "vocab*.json",
    "vocab*.txt",
    "merges.txt",
    "bpe.codes",
    "normalizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "*.py",
    "license*",
    "licence*",
    "copying*",
    "notice*",
    "use_policy*",
)
_TEMPLATES = "additional_chat_templates"


class ModelWriter:
    """Write a model's folder tensor by tensor; it appears whole or not at all.

    Used in a ``with`` statement. On entry the shards are laid out as ``save_pretrained`` does and
    the disk's space is checked; then each tensor is written once, in any order. At the end all is
    flushed and renamed to ``out``. After an exception nothing is left of it, and what a killed
    process leaves the next one removes: see :mod:`recall_lightning.weights.atomic`.

    Args:
        out: The folder to make; it must not exist, or be empty.
        plan: Name to dtype and shape of every tensor, in the order in which shards are filled.
        shard_size: The most bytes of tensors in a file, as a number or such as ``"5GB"``. A larger
            tensor gets a file of its own.
        metadata: Text for every file's header, besides ``{"format": "pt"}``.
        file_stem: ``"model"``, or ``"adapter_model"`` for a PEFT adapter.

    Raises:
        ValueError: On construction for an empty plan, a dtype that safetensors lacks or a bad
            shard size; on entry if ``out`` exists or cannot be made; at any moment if the disk is
            full; at the end if a tensor was not written.

    Example:
        >>> import tempfile
        >>> from safetensors.torch import load_file
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     with ModelWriter(Path(parent, "out"), {"w": (torch.float32, (2, 2))}) as writer:
        ...         writer.write("w", iter([torch.zeros(3), torch.ones(1)]))
        ...     load_file(f"{parent}/out/model.safetensors")["w"]
        tensor([[0., 0.],
                [0., 1.]])
    """

    def __init__(
        self,
        out: str | Path,
        plan: Plan,
        shard_size: int | str = "5GB",
        metadata: Mapping[str, str] | None = None,
        file_stem: str = "model",
    ) -> None:
        self.out = Path(out)
        self._stem = file_stem
        self._shards = _split(plan, shard_size, file_stem)
        self._headers: dict[str, bytes] = {}
        self._sizes: dict[str, int] = {}
        self._places: dict[str, Place] = {}
        for file, names in self._shards.items():
            self._headers[file], places = layout(file, names, plan, metadata or {})
            self._places |= places
            data = sum(place.nbytes for place in places.values())
            self._sizes[file] = len(self._headers[file]) + data
        self._written: set[str] = set()
        self._descriptors: dict[str, int] = {}
        self._writing: Future[None] | None = None

    @property
    def nbytes(self) -> int:
        """The bytes of all weight files."""
        return sum(self._sizes.values())

    def __enter__(self) -> "ModelWriter":
        with ExitStack() as stack:
            stack.enter_context(_full_disk_is_named(self.out, self.nbytes))
            self._folder = stack.enter_context(atomic_folder(self.out, self.nbytes))
            self._background = stack.enter_context(ThreadPoolExecutor(1))
            for file in self._shards:
                path, flags = self._folder / file, os.O_WRONLY | os.O_CREAT | os.O_EXCL
                self._descriptors[file] = os.open(path, flags, 0o666)
                stack.callback(os.close, self._descriptors[file])
            stack.callback(self._finish)
            for file, header in self._headers.items():
                self._pass_on(self._descriptors[file], memoryview(header), 0)
            if len(self._shards) > 1:
                self.write_file(f"{self._stem}.safetensors.index.json", self._index())
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            missing = [name for name in self._places if name not in self._written]
            if missing:
                raise ValueError(
                    f"{self.out} was not made because {len(missing)} of its tensors were not "
                    f"written, {missing[0]!r} first: write every tensor of the plan"
                )

    def write(self, name: str, chunks: Tensor | Iterable[Tensor]) -> None:
        """Write one tensor, whole or as consecutive pieces of it flattened.

        Args:
            name: A name of the plan that was not written yet.
            chunks: The tensor, or pieces of any shape in row-major order, on any device. A piece is
                written while the next is made: it must last until that one, which may be of
                another tensor, is handed over.

        Raises:
            ValueError: If the name is not in the plan or written already, the dtype is not the
                planned one, or there are fewer or more elements than planned.
        """
        if name not in self._places:
            raise ValueError(f"the tensor {name!r} is not in the plan for {self.out}: add it")
        if name in self._written:
            raise ValueError(f"the tensor {name!r} of {self.out} is written already: write it once")
        place = self._places[name]
        if isinstance(chunks, Tensor):
            if chunks.shape != place.shape:
                raise ValueError(
                    f"the tensor {name!r} of {self.out} is planned with the shape {place.shape}, "
                    f"not {tuple(chunks.shape)}: write the planned shape"
                )
            chunks = chunks.detach().reshape(-1).split(chunk_size(chunks.device))
        offset = place.offset
        for buffer in self._checked(name, place, chunks):
            self._pass_on(self._descriptors[place.file], buffer, offset)
            offset += len(buffer)
        self._written.add(name)

    def write_file(self, name: str | PurePath, content: bytes | str) -> None:
        """Write a small file into the folder, such as a model card; text as UTF-8.

        Raises:
            ValueError: If the name is absolute or leads out of the folder, or the file is there.
        """
        path = self._free(name)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    def copy_file(self, source: Path, name: str | PurePath | None = None) -> None:
        """Copy a file into the folder, under its own name or ``name``.

        Raises:
            ValueError: As :meth:`write_file`.
        """
        shutil.copyfile(source, self._free(name or source.name))

    def _pass_on(self, descriptor: int, buffer: memoryview, offset: int) -> None:
        """Have bytes written in the background, once those before them are."""
        self._finish()
        self._writing = self._background.submit(write_all, descriptor, buffer, offset)

    def _finish(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _checked(self, name: str, place: Place, chunks: Iterable[Tensor]) -> Iterator[memoryview]:
        """Yield the pieces as bytes; nothing is yielded past the tensor's end."""
        count = 0
        for chunk in chunks:
            if chunk.dtype != place.dtype:
                raise ValueError(
                    f"the tensor {name!r} of {self.out} is planned as {place.dtype}, not "
                    f"{chunk.dtype}: convert it first"
                )
            count += chunk.numel()
            if count > place.count:
                break
            if chunk.numel():
                flat = chunk.detach().cpu().reshape(-1)
                yield flat.view(torch.uint8).numpy().data
        if count != place.count:
            raise ValueError(
                f"the tensor {name!r} of {self.out} is planned with {place.count} elements and got "
                f"{'more' if count > place.count else count}: write the planned shape"
            )

    def _free(self, name: str | PurePath) -> Path:
        path = PurePath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise ValueError(f"{str(name)!r} is no file name inside {self.out}: use a relative one")
        target = self._folder / path
        if target.exists():
            raise ValueError(f"{name} is in {self.out} already: write it once")
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def _index(self) -> str:
        places = self._places.items()
        index = {
            "metadata": {
                "total_parameters": sum(place.count for _, place in places),
                "total_size": sum(place.nbytes for _, place in places),
            },
            "weight_map": {name: place.file for name, place in places},
        }
        return json.dumps(index, indent=2, sort_keys=True) + "\n"


def companion_files(folder: Path) -> list[Path]:
    """Return the files that make weights a usable model, sorted.

    These are config and generation config, tokenizer and processor files, chat templates, custom
    code and licences; neither weights and their index, nor training state, nor the README, nor an
    adapter's config.

    Raises:
        ValueError: If one is a link to a file that is not the model's own.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("config.json", "tokenizer.json", "README.md", "model.safetensors"):
        ...         Path(folder, name).touch()
        ...     [path.name for path in companion_files(Path(folder))]
        ['config.json', 'tokenizer.json']
    """
    files = [
        path
        for path in folder.iterdir()
        if any(fnmatchcase(path.name.lower(), pattern) for pattern in _COMPANIONS)
    ]
    files += (folder / _TEMPLATES).glob("*.jinja")
    found = sorted(path for path in files if path.is_file())
    for path in found:
        refuse_link_out(folder, path)
    return found


def _split(plan: Plan, shard_size: int | str, stem: str) -> dict[str, list[str]]:
    """Return file name to tensor names: shards filled greedily in the plan's order."""
    if not plan:
        raise ValueError("the plan names no tensor: a model needs at least one")
    for name, (dtype, _) in plan.items():
        if dtype not in CODES:
            raise ValueError(f"the tensor {name!r} cannot be written as {dtype}: use another dtype")
    if isinstance(shard_size, int) and shard_size < 1:
        raise ValueError(f"shard_size={shard_size} must be positive: the bytes of a file")
    from huggingface_hub import split_state_dict_into_shards_factory

    try:
        split = split_state_dict_into_shards_factory(
            {name: nbytes_of(*tensor) for name, tensor in plan.items()},
            get_storage_size=lambda nbytes: nbytes,
            filename_pattern=stem + "{suffix}.safetensors",
            max_shard_size=shard_size,
        )
    except ValueError as error:
        raise ValueError(
            f"shard_size={shard_size!r} is no size: use bytes, or a number with KB, MB, GB or TB"
        ) from error
    return split.filename_to_tensors


@contextmanager
def _full_disk_is_named(out: Path, needed: int) -> Iterator[None]:
    """Turn a full disk, whenever it shows, into a sentence with the bytes needed and free."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(existing_parent(out)).free
        raise ValueError(
            f"{out} was not made because the disk is full: its weights need {needed:,} bytes and "
            f"{free:,} are free, so make room or choose another folder"
        ) from error
