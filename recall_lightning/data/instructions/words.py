"""Where the words of answers end, for scores that count words."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Protocol

_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_KANA = "\u3040-\u30ff\u31f0-\u31ff"
_OTHERS = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Tibetan, Burmese, Khmer
)
_NOT_PARTED = {  # of scripts without spaces, those in which a tokenizer finds no words
    "zh": _KANA + _OTHERS,
    "ja-mecab": _OTHERS,
    **dict.fromkeys(["13a", "intl", "none", "ko-mecab"], _HAN + _KANA + _OTHERS),
}
_TOKENIZERS = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab"}  # as sacreBLEU has them


class ScoredAnswers(Protocol):
    """What a template says of how written answers are scored."""

    @property
    def score(self) -> str:
        """The score's name."""

    @property
    def language(self) -> str | None:
        """The language that answers are written in."""

    @property
    def bleu_tokenizer(self) -> str | None:
        """The name of one of sacreBLEU's tokenizers."""


def check_language(template: ScoredAnswers) -> None:
    """Refuse a language, or a tokenizer of BLEU's, of answers that another score is of.

    Raises:
        ValueError: Naming the argument.
    """
    for name in ("language", "bleu_tokenizer"):
        if getattr(template, name) is not None and template.score != "bleu":
            raise ValueError(
                f"{name}={getattr(template, name)!r} is for BLEU, and score is {template.score!r}: "
                f"leave {name} out, or set score: bleu"
            )


def bleu_tokenizer(template: ScoredAnswers) -> str:
    """Return the name of sacreBLEU's tokenizer for the language of a template's answers.

    Raises:
        ValueError: If sacreBLEU has none of that name, or it needs a package that is not installed.

    Example:
        >>> from recall_lightning.data import Template
        >>> bleu_tokenizer(Template("{q}", "{a}", score="bleu", language="zh"))
        'zh'
        >>> bleu_tokenizer(Template("{q}", "{a}", score="bleu", language="fr"))
        '13a'
    """
    from sacrebleu.metrics import BLEU  # loads lxml and more

    language = (template.language or "").replace("_", "-").partition("-")[0].lower()
    name = template.bleu_tokenizer or _TOKENIZERS.get(language, BLEU.TOKENIZER_DEFAULT)
    if name not in BLEU.TOKENIZERS:
        raise ValueError(
            f"bleu_tokenizer={name!r} must be one of sacreBLEU's: {', '.join(BLEU.TOKENIZERS)}"
        )
    try:
        BLEU(tokenize=name)
    except (ImportError, RuntimeError) as error:
        needed = {"ja-mecab": "'sacrebleu[ja]'", "ko-mecab": "'sacrebleu[ko]'"}
        raise ValueError(
            f"BLEU's tokenizer {name!r} needs more packages: pip install "
            f"{needed.get(name, 'sentencepiece')}, or set bleu_tokenizer: char"
        ) from error
    except OSError as error:
        raise ValueError(
            f"BLEU's tokenizer {name!r} has a model that sacreBLEU downloads, and it cannot "
            f"({error}): set bleu_tokenizer: char"
        ) from error
    return name


def check_words(template: ScoredAnswers, references: Iterable[str]) -> None:
    """Refuse scores that count words where most letters are of a script that does not part them.

    Raises:
        ValueError: Saying what to use instead.

    Example:
        >>> from recall_lightning.data import Template
        >>> check_words(Template("{q}", "{a}", score="f1"), ["in the north"])
        >>> check_words(Template("{q}", "{a}", score="f1"), ["我喜欢吃苹果。"])
        Traceback (most recent call last):
        ValueError: score='f1' counts words, ... use score: exact_match, or bleu with its language
    """
    if template.score not in ("f1", "bleu"):
        return
    name = bleu_tokenizer(template) if template.score == "bleu" else "none"
    text = "".join(references)
    letters = sum(letter.isalpha() for letter in text)
    lost = len(re.findall(f"[{_NOT_PARTED[name]}]", text)) if name in _NOT_PARTED else 0
    if 2 * lost <= letters or not letters:
        return
    if template.score == "f1":
        raise ValueError(
            "score='f1' counts words, and the answers are in a script without spaces between them: "
            "use score: exact_match, or bleu with its language"
        )
    raise ValueError(
        f"score='bleu' counts words, and its tokenizer {name!r} finds none in the script of the "
        "answers: set language: zh, ja or ko, or bleu_tokenizer: char or flores200"
    )
