"""Tokenizers of Hugging Face."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(name: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load a tokenizer, and give one without a padding token its end-of-sequence token for it.

    Args:
        name: Folder or hub id; or a file of GGUF, or a folder that holds one and no tokenizer
            besides, whose tokenizer is read out of it (by the package ``gguf``).
        trust_remote_code: Whether it may run code of its own.

    Raises:
        MisconfigurationException: If it cannot be loaded, or has neither.
    """
    try:
        tokenizer = tokenizer_on_disk(name, trust_remote_code)
    except (OSError, ValueError) as error:
        raise MisconfigurationException(
            f"tokenizer={name!r} cannot be loaded ({type(error).__name__}). Pass a folder that "
            "save_pretrained wrote, or a hub id; where there is no network, a local folder."
        ) from error
    if tokenizer.eos_token is None:
        raise MisconfigurationException(
            f"tokenizer={name!r} has no end-of-sequence token, with which answers end: set its "
            "eos_token and save it"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
        rank_zero_info(
            f"the tokenizer {name} has no padding token: its end-of-sequence token "
            f"{tokenizer.eos_token!r} stands for it"
        )
    return tokenizer


def tokenizer_on_disk(name: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load a tokenizer as it was saved; arguments as of :func:`load_tokenizer`.

    Raises:
        MisconfigurationException: If a folder has several files of GGUF and no other tokenizer, or
            the package that reads them is not installed.
        OSError: If there is none.
        ValueError: If it is of no kind that is known.
    """
    from transformers import AutoConfig, AutoTokenizer

    where, options = _place_of(name)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        where, trust_remote_code=trust_remote_code, **options
    )
    tokenizer.name_or_path = name
    if options:
        _name_special_tokens(tokenizer, AutoConfig.from_pretrained(where, **options))
    return tokenizer


def _name_special_tokens(tokenizer: PreTrainedTokenizerBase, config: Any) -> None:
    """Take special tokens from a file's numbers, which transformers 5.17 does not look at.

    It takes the names that its own class of tokenizers has for them.
    """
    for kind in ("bos", "eos", "pad"):
        number = getattr(config, f"{kind}_token_id", None)
        if isinstance(number, int):
            setattr(tokenizer, f"{kind}_token", tokenizer.convert_ids_to_tokens(number))


def _place_of(name: str) -> tuple[str, dict[str, str]]:
    """Return what a tokenizer is loaded from, and the options of ``from_pretrained`` with it."""
    path = Path(name)
    found = [path] if path.suffix == ".gguf" and path.is_file() else []
    if path.is_dir() and not any((*path.glob("*token*.*"), *path.glob("vocab.*"))):
        found = sorted(path.glob("*.gguf"))
    if not found:
        return name, {}
    if len(found) > 1:
        raise MisconfigurationException(
            f"tokenizer={name!r} holds {len(found)} files of GGUF, each with a tokenizer: name "
            f"one, such as {str(found[0])!r}"
        )
    if find_spec("gguf") is None:
        raise MisconfigurationException(
            f"tokenizer={name!r}: {found[0].name} is read by the package gguf: pip install "
            "recall-lightning[gguf]"
        )
    return str(found[0].parent), {"gguf_file": found[0].name}
