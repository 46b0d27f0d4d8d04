"""What a run's results are results of, besides its command: recipes, data, code and versions."""

import ast
import hashlib
import importlib.util
import os
import platform
import re
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from recall_lightning.plugins import plugin_module

_OURS = __name__.partition(".")[0]
_ROOT = Path(__file__).parents[1]

# What scores may depend on; a package that a recipe names itself is added.
_PACKAGES = (
    *("torch", "lightning", "transformers", "tokenizers", "torchmetrics", "peft"),
    *("datasets", "numpy", "scikit-learn", "safetensors"),
)

# A value under such a key is no input: a run writes there, or it is a name of something else.
_NO_INPUTS = {
    *("name", "names", "task_names", "pattern", "cache", "cache_dir", "folder", "dirpath"),
    *("save_dir", "output_dir", "default_root_dir", "version", "title", "class_path", "method"),
}

_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


@dataclass(frozen=True)
class State:
    """Digests of all that a run reads.

    Attributes:
        parts: A digest, or a version, by what it is of: a path, ``module NAME``, a package.
        seen: Digests of all files one by one.
    """

    parts: Mapping[str, str]
    seen: Mapping[str, str]

    def changed_since(self, parts: Mapping[str, str]) -> list[str]:
        """Name what is another than it was, as far as it is in both.

        Example:
            >>> State({"a.txt": "1", "torch": "2"}, {}).changed_since({"a.txt": "0", "torch": "2"})
            ['a.txt']
        """
        return [name for name, value in self.parts.items() if parts.get(name, value) != value]

    def touched(self) -> str | None:
        """Return the first file that is no longer what it was; None where all are."""
        return next((name for name, was in self.seen.items() if _digest_of(name) != was), None)


def state_of(
    recipes: Sequence[str], arguments: Sequence[str] = (), out: Path | None = None
) -> State:
    """Take the state of everything that recipes and arguments name.

    That is: the recipes with the ``defaults.yaml`` beside each; files and folders under any key, in
    YAML files that they name too; the source of modules of the user's own, with what these import
    of such modules; this package's source; and the versions of Python and of what computes.

    Args:
        recipes: YAML files.
        arguments: Of ``recall-lightning fit``.
        out: A folder that is left out, wherever it lies: the runs write there.

    Returns:
        Another state once any of that changes. What was downloaded by name is not seen.
    """
    found = _Inputs(None if out is None else out.resolve())
    for recipe in map(Path, recipes):
        for file in (recipe.parent / "defaults.yaml", recipe):
            if file.is_file():
                found.add_file(file)
                found.add_yaml(file)
    for key, text in _words(arguments):
        found.add_value(key, text)
    parts = found.parts | _own_source() | {"python": platform.python_version()}
    for package in (*_PACKAGES, *sorted(found.packages)):
        version = _version(package)
        parts |= {} if version is None else {package: version}
    return State(parts, found.seen)


class _Inputs:
    """Collects digests of what is named."""

    def __init__(self, out: Path | None) -> None:
        self.out = out
        self.parts: dict[str, str] = {}
        self.seen: dict[str, str] = {}
        self.packages: set[str] = set()

    def add_yaml(self, file: Path) -> None:
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            return  # whoever reads it next says so
        for key, text in _strings(content):
            self.add_value(key, text)

    def add_value(self, key: str, text: str) -> None:
        """Add what a setting names, if it names anything."""
        module = text if _DOTTED.fullmatch(text) else plugin_module(text)
        if module:
            self.add_module(module.partition(".")[0])
        if key in _NO_INPUTS or not text or "\n" in text or str(Path(text)) in self.parts:
            return
        path = Path(text).expanduser()
        try:
            is_file, is_folder = path.is_file(), path.is_dir()
        except (OSError, ValueError):  # too long for a name, or with a zero in it
            return
        if is_file:
            self.add_file(path)
            if path.suffix in (".yaml", ".yml"):
                self.add_yaml(path)
        elif is_folder:
            self.add_folder(path)

    def add_file(self, file: Path) -> None:
        digest = self.parts[str(file)] = self.seen[str(file)] = _digest_of(str(file))
        assert digest

    def add_folder(self, folder: Path) -> None:
        self.parts[str(folder)] = self._combined(self._files_below(folder))

    def add_module(self, name: str) -> None:
        """Add a module of the user's own with those it imports; of another's, its version."""
        key = f"module {name}"
        if key in self.parts or name in self.packages or name == _OURS:
            return
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            return
        if spec is None or spec.origin in ("built-in", "frozen"):
            return
        where = [*(spec.submodule_search_locations or [])] or [str(spec.origin)]
        if _is_installed(where[0]):
            self.packages.add(name)
            return
        files = [file for each in where for file in _sources(Path(each))]
        self.parts[key] = self._combined(files)
        for imported in sorted({name for file in files for name in _imports(file)}):
            self.add_module(imported)

    def _combined(self, files: Iterable[Path]) -> str:
        digest = hashlib.sha256()
        for file in files:
            own = self.seen[str(file)] = _digest_of(str(file))
            digest.update(f"{file}\n{own}\n".encode())
        return digest.hexdigest()

    def _files_below(self, folder: Path) -> Iterator[Path]:
        for where, folders, names in os.walk(folder):
            folders[:] = sorted(each for each in folders if self._is_input(Path(where, each)))
            yield from (Path(where, name) for name in sorted(names) if name[0] != ".")

    def _is_input(self, folder: Path) -> bool:
        return (
            folder.name[0] != "." and folder.name != "__pycache__" and folder.resolve() != self.out
        )


def _words(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the values among the words of a command line, each with the last part of its key."""
    key = ""
    for word in arguments:
        value = word
        if word.startswith("-"):
            option, _, value = word.partition("=")
            key = option.rstrip("+").rpartition(".")[2].lstrip("-")
        try:
            content = yaml.safe_load(value)
        except yaml.YAMLError:
            content = value
        yield from _strings(content, key)
        if not isinstance(content, str):
            yield key, value


def _strings(content: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text in nested lists and mappings, with the key that it lies under."""
    if isinstance(content, str):
        yield key, content
    elif isinstance(content, Mapping):
        for name, value in content.items():
            yield from _strings(value, str(name))
    elif isinstance(content, list):
        for value in content:
            yield from _strings(value, key)


def _digest_of(file: str) -> str:
    """Hash a file that may be gone; it is read once as long as nobody writes to it."""
    try:
        stat = os.stat(file)
        return _read(os.path.abspath(file), stat.st_size, stat.st_mtime_ns, stat.st_ino)
    except OSError as error:
        return f"unreadable: {error.strerror}"


@cache
def _read(file: str, size: int, time: int, inode: int) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@cache
def _own_source() -> dict[str, str]:
    digest = hashlib.sha256()
    for file in _sources(_ROOT):
        digest.update(f"{file.relative_to(_ROOT)}\n{_digest_of(str(file))}\n".encode())
    return {_OURS: digest.hexdigest()}


def _sources(where: Path) -> list[Path]:
    """Return a module's file, or all sources of a package."""
    if where.is_file():
        return [where]
    return sorted(file for file in where.rglob("*.py") if "__pycache__" not in file.parts)


def _imports(file: Path) -> set[str]:
    """Return the first names of the modules that a source imports, wherever in it."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return set()
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names


def _is_installed(where: str) -> bool:
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    parts = Path(where).parts
    inside = any(Path(where).is_relative_to(sysconfig.get_path(kind)) for kind in kinds)
    return inside or "site-packages" in parts or "dist-packages" in parts


@cache
def _version(package: str) -> str | None:
    """Return the version of a distribution, or of the one that a module is from."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        names = [] if package in _PACKAGES else _distributions().get(package, [])
        return metadata.version(names[0]) if names else None


@cache
def _distributions() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()
