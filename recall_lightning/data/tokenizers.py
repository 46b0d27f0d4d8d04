"""Tokenizers of Hugging Face."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(name: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load a tokenizer, and give one without a padding token its end-of-sequence token for it.

    Raises:
        MisconfigurationException: If it cannot be loaded, or has neither.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
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
