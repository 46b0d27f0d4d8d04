"""Models of different vocabularies over one vocabulary that has all their tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recall_lightning.merging.folders.meaning import tokenizer_folder
from recall_lightning.merging.folders.vocabularies import Vocabulary
from recall_lightning.weights.reading import ModelFiles, optional_json

# tensors with a row a token; what stands beside embeddings has none
_ROWS = (
    "embed",
    "wte",
    "lm_head",
    "shared.weight",
    "output_projection",
    "predictions.bias",
    "predictions.decoder",
)
_NO_ROWS = ("position", "pos_embed", "patch", "norm", "token_type")


@dataclass(frozen=True)
class UnitedVocabulary:
    """All tokens of several models, those of the first under its ids.

    Attributes:
        ids: Token to id.
        added: The tokens that the first model's tokenizer lacks: token to its entry among the
            added tokens of a tokenizer.json.
        own: Of each model, token to the model's own id.
        folder: Where the first model's tokenizer is.
    """

    ids: Mapping[str, int]
    added: Mapping[str, Mapping[str, Any]]
    own: Sequence[Mapping[str, int]]
    folder: Path

    @classmethod
    def of(cls, models: Sequence[ModelFiles]) -> UnitedVocabulary:
        """Unite the vocabularies of models, the first of which says how text is split.

        Raises:
            ValueError: If one has no tokenizer, they split text by different rules, or one has a
                token that the first's rules could never make.
        """
        folders = [_folder_of(model) for model in models]
        read = [Vocabulary.read(folder) for folder in folders]
        own = []
        for model, vocabulary in zip(models, read, strict=True):
            if vocabulary is None or not vocabulary.tokens or read[0] is None:
                raise ValueError(
                    f"tokenizer='union' needs the tokens of every model, and {model.path} has no "
                    "tokenizer.json, vocab.json or vocab.txt: save its tokenizer there"
                )
            if (rules := read[0].difference_of_rules(vocabulary)) is not None:
                raise ValueError(
                    f"the tokenizers of {model.path} and {models[0].path} cannot be united: "
                    f"{rules}; leave tokenizer='union' out"
                )
            own.append({token: number for number, token in sorted(vocabulary.tokens.items())})
        if not (folders[0] / "tokenizer.json").is_file():
            raise ValueError(
                f"tokenizer='union' needs a tokenizer.json, and {folders[0]} has none: save one "
                "there"
            )
        ids: dict[str, int] = dict(own[0])
        added: dict[str, Mapping[str, Any]] = {}
        free = max(ids.values()) + 1
        for model, folder, tokens in zip(models, folders, own, strict=True):
            for token in tokens:
                if token not in ids:
                    ids[token], free = free, free + 1
                    added[token] = _entry(model, folder, token)
        united = cls(ids, added, own, folders[0])
        united.files()  # an error is to come before any work
        return united

    @property
    def least_rows(self) -> int:
        """How many rows embeddings need to have one for every id."""
        return max(self.ids.values()) + 1

    def files(self) -> dict[str, Any]:
        """Return the first model's tokenizer files that are other ones now, by name.

        Raises:
            ValueError: If the tokenizer would number the tokens otherwise than the rows are.
        """
        fast = optional_json(self.folder, "tokenizer.json") or {}
        config = optional_json(self.folder, "tokenizer_config.json")
        slow = optional_json(self.folder, "added_tokens.json")
        entries = {token: {"id": self.ids[token], **entry} for token, entry in self.added.items()}
        fast["added_tokens"] = [*(fast.get("added_tokens") or []), *entries.values()]
        self._check_ids(fast)
        found = {"tokenizer.json": fast}
        if config is not None and "added_tokens_decoder" in config:
            for entry in entries.values():
                flags = {key: value for key, value in entry.items() if key != "id"}
                config["added_tokens_decoder"][str(entry["id"])] = flags
            found["tokenizer_config.json"] = config
        if slow is not None:
            found["added_tokens.json"] = slow | {t: entry["id"] for t, entry in entries.items()}
        return found

    def _check_ids(self, fast: Mapping[str, Any]) -> None:
        from tokenizers import Tokenizer

        numbered = Tokenizer.from_str(json.dumps(fast)).get_vocab(with_added_tokens=True)
        for token, number in self.ids.items():
            if numbered.get(token) != number:
                raise ValueError(
                    f"the tokenizer in {self.folder} cannot take the other models' tokens in: it "
                    f"would give {token!r} the id {numbered.get(token)} and not {number}"
                )

    def united(self, models: Sequence[ModelFiles]) -> list[ModelFiles]:
        """Return the models with a row for every token, in the united order.

        A model that lacks a token gets the mean of the rows that the others have for it. Rows
        without a token, which pad a vocabulary to a round size, are the first model's.

        Args:
            models: Those that the vocabulary is of, under the same names.

        Raises:
            ValueError: If a model has no embeddings with a row a token.
        """
        names = [name for name in models[0] if self._has_rows(models[0], name)]
        if not any(len(models[0].shape(name)) == 2 for name in names):
            raise ValueError(
                f"tokenizer='union' needs embeddings called so with {len(self.own[0])} rows or "
                f"more, and {models[0].path} has none"
            )
        for model, own in zip(models, self.own, strict=True):
            for name in names:
                if max(own.values()) >= model.shape(name)[0]:
                    raise ValueError(
                        f"{model.path} has {model.shape(name)[0]} rows in {name!r} and a token of "
                        f"the id {max(own.values())}: give it its own tokenizer"
                    )
        rows = max(models[0].shape(names[0])[0], self.least_rows)
        places = [self._places(own, rows) for own in self.own]
        return [
            model.replaced(
                {
                    name: ((rows, *model.shape(name)[1:]), partial(_rows, models, places, i, name))
                    for name in names
                }
            )
            for i, model in enumerate(models)
        ]

    def _has_rows(self, model: ModelFiles, name: str) -> bool:
        shape = model.shape(name)
        called = any(p in name for p in _ROWS) and not any(p in name.lower() for p in _NO_ROWS)
        return called and len(shape) in (1, 2) and shape[0] > max(self.own[0].values())

    def _places(self, own: Mapping[str, int], rows: int) -> Tensor:
        """Return, for every united id, the row that a model has for its token; -1 for none."""
        places = torch.full((rows,), -1)
        pairs = [(self.ids[token], number) for token, number in own.items()]
        united, numbers = torch.tensor(pairs).T
        places[united] = numbers
        return places


def _rows(models: Sequence[ModelFiles], places: Sequence[Tensor], index: int, name: str) -> Tensor:
    """Return a model's tensor in the united order of rows."""
    own = models[index][name]
    rows = own[places[index].clamp_min(0)]
    lacking = (places[index] < 0).nonzero().flatten()
    total = torch.zeros(len(lacking), *own.shape[1:], dtype=torch.float64)
    count = torch.zeros(len(lacking), dtype=torch.float64)
    for model, theirs in zip(models, places, strict=True):
        having = (theirs[lacking] >= 0).nonzero().flatten()
        total[having] += model[name][theirs[lacking[having]]].double()
        count[having] += 1
    nowhere = (count == 0).nonzero().flatten()
    padding = lacking[nowhere]
    kept = padding < len(models[0][name])
    total[nowhere[kept]] = models[0][name][padding[kept]].double()
    mean = total / count.clamp_min(1).view(-1, *[1] * (own.ndim - 1))
    rows[lacking] = mean.to(own.dtype)
    return rows


def _folder_of(model: ModelFiles) -> Path:
    folder = tokenizer_folder(model)
    if folder is None:
        raise ValueError(
            f"tokenizer='union' needs the tokens of every model, and {model.path} has no "
            "tokenizer: give its folder"
        )
    return folder


def _entry(model: ModelFiles, folder: Path, token: str) -> Mapping[str, Any]:
    """Return how a token is written among those added to a tokenizer.json, without its id.

    Raises:
        ValueError: If it is a piece of words, which a tokenizer would now find where it is none.
    """
    fast = optional_json(folder, "tokenizer.json") or {}
    config = optional_json(folder, "tokenizer_config.json") or {}
    decoder = config.get("added_tokens_decoder")
    listed = [*(fast.get("added_tokens") or []), *(decoder.values() if decoder else [])]
    for entry in listed:
        if isinstance(entry, Mapping) and entry.get("content") == token:
            return {key: value for key, value in entry.items() if key != "id"}
    if (fast.get("model") or {}).get("type") == "WordLevel":
        flags = dict.fromkeys(("lstrip", "rstrip", "normalized", "special"), False)
        return {"content": token, "single_word": True, **flags}
    raise ValueError(
        f"the token {token!r} of {model.path} is none that was added to its tokenizer, and cannot "
        "be added to another one's, whose rules never make it: merge models of one tokenizer"
    )
