"""What tokenizers' files say of which id is which token, and of how text becomes tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recall_lightning.weights.paths import file_inside
from recall_lightning.weights.reading import optional_json

_BINARY = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer, as far as its files say what it is.

    Attributes:
        tokens: Id to token, added ones among them; empty where they lie in a binary file alone.
        order: What decides between ways to split a word: merges, or the tokens' scores.
        rules: What a text goes through before that, by its name in tokenizer.json.
        binary: Name to content of binary files, of sentencepiece and tiktoken.
    """

    tokens: Mapping[int, str] = field(default_factory=dict)
    order: Sequence[Any] = ()
    rules: Mapping[str, Any] = field(default_factory=dict)
    binary: Mapping[str, bytes] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Vocabulary | None:
        """Read a folder's tokenizer; None where there is none.

        Raises:
            ValueError: If a file is not what it should be.
        """
        found = _read_fast(folder) or _read_lists(folder)
        names = [name for name in _BINARY if (folder / name).is_file()]
        names += sorted(file.name for file in folder.glob("*.tiktoken"))
        binary = {name: file_inside(folder, name).read_bytes() for name in names}
        if found is None and not binary:
            return None
        tokens, order, rules = found or ({}, (), {})
        tokens = {**tokens, **_added(folder)}
        return cls(tokens if found else {}, order, rules, binary)

    def difference(self, other: Vocabulary) -> str | None:
        """Say in a few words how another tokenizer differs; None if it does not.

        Example:
            >>> one, other = Vocabulary({0: "cat", 1: "dog"}), Vocabulary({0: "cat", 1: "red"})
            >>> one.difference(other)
            "1 of their ids stand for other tokens, such as 1 for 'red' and not 'dog'"
        """
        if self.tokens and other.tokens:
            return self._of_tokens(other) or self.difference_of_rules(other)
        shared = self.binary.keys() & other.binary.keys()
        if shared:
            name = next((n for n in sorted(shared) if self.binary[n] != other.binary[n]), None)
            return f"their {name} differ" if name else None
        return "their tokenizers are of different files, which cannot be compared"

    def _of_tokens(self, other: Vocabulary) -> str | None:
        ids = sorted(self.tokens.keys() | other.tokens.keys())
        differing = [i for i in ids if self.tokens.get(i) != other.tokens.get(i)]
        if not differing:
            return None
        # a token that has moved says more than one that is new
        shown = next((i for i in differing if i in self.tokens and i in other.tokens), differing[0])
        return (
            f"{len(differing)} of their ids stand for other tokens, such as {shown} for "
            f"{_shown(other.tokens.get(shown))} and not {_shown(self.tokens.get(shown))}"
        )

    def difference_of_rules(self, other: Vocabulary) -> str | None:
        """Say how another tokenizer splits text otherwise, whatever its tokens; None if alike."""
        if self.order and other.order and self.order != other.order:
            return "their tokenizers split words by other merges or scores"
        if not (self.rules and other.rules):
            return None
        for name in dict.fromkeys([*self.rules, *other.rules]):
            if self.rules.get(name) != other.rules.get(name):
                return f"their tokenizers differ in their {name}"
        return None


def _read_fast(folder: Path) -> tuple[dict[int, str], Sequence[Any], dict[str, Any]] | None:
    """Read tokenizer.json."""
    content = optional_json(folder, "tokenizer.json")
    if content is None:
        return None
    model = content.get("model")
    if not isinstance(model, Mapping):
        raise _unreadable(folder, "its tokenizer.json has no model")
    listed = model.get("vocab", {})
    try:
        if isinstance(listed, Mapping):
            tokens = {int(number): str(token) for token, number in listed.items()}
            order = [
                tuple(pair.split(" ", 1)) if isinstance(pair, str) else tuple(pair)
                for pair in model.get("merges") or ()
            ]
        else:
            tokens = {number: str(token) for number, (token, _) in enumerate(listed)}
            order = [score for _, score in listed]
        added = {
            int(each["id"]): str(each["content"]) for each in content.get("added_tokens") or ()
        }
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable(folder, f"in its tokenizer.json, {error!r}") from error
    aside = ("vocab", "merges", "dropout")
    kind = {key: value for key, value in model.items() if key not in aside and value}
    rules = {"model": kind} | {k: _plain(content.get(k)) for k in ("normalizer", "pre_tokenizer")}
    return {**tokens, **added}, order, rules


def _read_lists(folder: Path) -> tuple[dict[int, str], Sequence[Any], dict[str, Any]] | None:
    """Read what tokenizers without a tokenizer.json have: vocab.json and merges.txt, vocab.txt."""
    listed = optional_json(folder, "vocab.json")
    if listed is not None:
        try:
            tokens = {int(number): token for token, number in listed.items()}
        except (TypeError, ValueError) as error:
            raise _unreadable(folder, f"in its vocab.json, {error!r}") from error
        lines = _lines(folder, "merges.txt")
        return tokens, [tuple(line.split(" ", 1)) for line in lines if line[:9] != "#version:"], {}
    lines = _lines(folder, "vocab.txt")
    return (dict(enumerate(lines)), (), {}) if lines else None


def _added(folder: Path) -> dict[int, str]:
    """Read the tokens that were added, where they stand beside the vocabulary."""
    added = optional_json(folder, "added_tokens.json") or {}
    config = optional_json(folder, "tokenizer_config.json") or {}
    decoder = config.get("added_tokens_decoder") or {}
    try:
        return {int(number): str(token) for token, number in added.items()} | {
            int(number): str(token["content"] if isinstance(token, Mapping) else token)
            for number, token in decoder.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _unreadable(folder, f"in its added tokens, {error!r}") from error


def _lines(folder: Path, name: str) -> list[str]:
    if not (folder / name).is_file():
        return []
    try:
        text = file_inside(folder, name).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise _unreadable(folder, f"its {name} is no text in UTF-8") from error
    return text.removesuffix("\n").split("\n")


def _plain(rule: Any) -> Any:
    """Return a rule without what versions write differently and no token depends on."""
    if isinstance(rule, Mapping):
        kept = {key: _plain(value) for key, value in rule.items() if key != "trim_offsets"}
        return {"use_regex": True} | kept if kept.get("type") == "ByteLevel" else kept
    return [_plain(each) for each in rule] if isinstance(rule, list) else rule


def _unreadable(folder: Path, reason: str) -> ValueError:
    return ValueError(f"the tokenizer in {folder} cannot be loaded ({reason}): save it again")


def _shown(token: str | None) -> str:
    return "none" if token is None else repr(token)
