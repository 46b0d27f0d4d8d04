"""How a row of a data set becomes a prompt and its answer, for the tasks that ship and your own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from recall_lightning.checks import meant
from recall_lightning.data.cells import is_empty, text_of
from recall_lightning.data.instructions.conversations import Conversation
from recall_lightning.data.instructions.examples import Example, before_of
from recall_lightning.data.instructions.formats import (
    column_of,
    columns_of,
    fill,
    fixed_text,
    look_up,
    parse,
)
from recall_lightning.data.instructions.words import check_language
from recall_lightning.data.row_errors import RowError

Score = Literal["accuracy", "exact_match", "squad_exact_match", "f1", "bleu"]


@dataclass(frozen=True)
class Template:
    """How rows become examples, in the format language of ``str.format``.

    A column that is missing, empty or NaN makes a row one that nothing can be made of, but for
    those in a section of their own: ``{#input}…{/input}`` is left out where the column ``input`` is
    empty, and ``{^input}…{/input}`` where it is not.

    Args:
        prompt: Format of the prompt; ``{question}`` is a column, ``{translation[en]}`` an entry of
            one that holds a mapping.
        answer: Format of the answer where there are no choices.
        choices: Formats of the answers to choose from, or the name of a column that lists them.
        label: Column that tells which choice is right: its number, or one of ``labels``.
        labels: What ``label`` may hold, in the order of the choices, such as letters. Without them
            it counts from 0. A whole number is the same as text, integer or float: ``"1"``, ``1``
            and ``1.0``.
        references: Column, or entry of one, that lists all right answers, the first of which is
            trained on.
        no_answer: The answer where ``references`` is empty.
        separator: What stands between prompt and answer.
        score: How answers are scored: ``"accuracy"`` of choices; ``"exact_match"``, to the letter;
            ``"squad_exact_match"`` or ``"f1"`` of words, which SQuAD 2.0 compares in lower case,
            without ASCII punctuation and English articles; or sacreBLEU's ``"bleu"``.
        language: Code of the language that answers are in, such as ``"zh"``: BLEU's tokenizer is
            sacreBLEU's for it, which is ``"13a"`` for all but Chinese, Japanese and Korean.
        bleu_tokenizer: Name of one of sacreBLEU's tokenizers instead, such as ``"char"`` or
            ``"flores200"`` for Thai.
        generate: Whether a model with choices writes its answer, which is then right if it is the
            right choice's text; by default the most likely choice counts.
        max_new_tokens: How long a written answer may be.
        system: Format of a system prompt, which takes a chat template; empty for none.

    Example:
        >>> template = Template("Capital of {country}?", "{capital}", score="exact_match")
        >>> template.example({"country": "France", "capital": "Paris"}).answer
        'Paris'
    """

    prompt: str
    answer: str = ""
    choices: Sequence[str] | str | None = None
    label: str | None = None
    labels: Sequence[str] | None = None
    references: str | None = None
    no_answer: str | None = None
    separator: str = " "
    score: Score = "accuracy"
    generate: bool = False
    max_new_tokens: int = 64
    language: str | None = None
    bleu_tokenizer: str | None = None
    system: str = ""

    def __post_init__(self) -> None:
        if self.choices is None and not self.answer and self.references is None:
            raise ValueError("a template needs an answer, references, or choices with a label")
        if self.choices is not None and self.label is None:
            raise ValueError(f"choices={self.choices!r} need the column of the right one as label")
        if self.choices is None and self.score == "accuracy":
            raise ValueError(
                "score='accuracy' is of choices, and there are none: use 'exact_match', "
                "'squad_exact_match', 'f1' or 'bleu'"
            )
        if self.choices is not None and not self.generate and self.score != "accuracy":
            raise ValueError(
                f"score={self.score!r} is of written answers, and here one is chosen: leave score "
                "out, or set generate: true"
            )
        check_language(self)
        for pattern in self._formats():
            try:
                parse(pattern)
            except ValueError as error:
                raise ValueError(f"{pattern!r} is no format: {error}") from error
        if self.labels is not None:
            names = [_label_name(label) for label in self.labels]
            if len(set(names)) < len(names):
                raise ValueError(f"labels={list(self.labels)} must all be different")
            listed = None if isinstance(self.choices, str) else self.choices
            if listed is not None and len(listed) != len(names):
                raise ValueError(
                    f"labels={list(self.labels)} must be one for each of the {len(listed)} choices"
                )

    @property
    def writes(self) -> bool:
        """Whether a model writes its answer, instead of choosing one."""
        return self.generate or self.choices is None

    @property
    def columns(self) -> list[str]:
        """Names of the columns that rows must have, sorted."""
        fields = [own for own in (self.label, self.references) if own is not None]
        fields += [self.choices] if isinstance(self.choices, str) else []
        return sorted(set(map(column_of, fields)).union(*self._columns(0)))

    @property
    def optional_columns(self) -> list[str]:
        """Names of the columns that rows may lack, sorted."""
        return sorted(set().union(*self._columns(1)) - set(self.columns))

    @property
    def fixed_prompt(self) -> str:
        """What the prompts of all rows have in common."""
        return fixed_text(self.prompt)

    def _columns(self, kind: int) -> list[set[str]]:
        return [columns_of(pattern)[kind] for pattern in self._formats()]

    def _formats(self) -> list[str]:
        choices = [] if self.choices is None or isinstance(self.choices, str) else self.choices
        return [self.prompt, self.answer, self.system, *choices]

    def example(self, row: Mapping[str, Any]) -> Example:
        """Make an example of a row.

        Raises:
            RowError: Saying what of the row is missing, empty or out of range.
        """
        prompt = _filled(self.prompt, row, "prompt")
        before = before_of(fill(self.system, row))
        if self.choices is not None:
            choices = self._choices(row)
            label = self._label(row, len(choices))
            return Example(prompt, choices[label], choices, label, (choices[label],), before)
        if self.references is not None:
            references = self._references(row)
            answer = references[0] if references else str(self.no_answer)
            return Example(prompt, answer, references=references, before=before)
        answer = _filled(self.answer, row, "answer")
        return Example(prompt, answer, references=(answer,), before=before)

    def _references(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        assert self.references is not None
        listed = look_up(self.references, row)
        if not isinstance(listed, list | tuple):
            if not isinstance(listed, str | bytes):
                text_of(listed, self.references)  # says of an empty one that it is
                raise RowError(f"{self.references} lists no texts, but holds {listed!r}")
            listed = [listed]
        found = tuple(text_of(t, self.references) for t in listed if not is_empty(t))
        if not found and self.no_answer is None:
            raise RowError(f"{self.references} lists no answer")
        return found

    def _choices(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        assert self.choices is not None
        if isinstance(self.choices, str):
            listed = look_up(self.choices, row)
            if not isinstance(listed, list | tuple):
                raise RowError(f"{self.choices} lists no choices, but holds {listed!r}")
            found = tuple(text_of(t, f"{self.choices}[{n}]") for n, t in enumerate(listed))
        else:
            found = tuple(_filled(pattern, row, "choice") for pattern in self.choices)
        if len(found) < 2:
            raise RowError(f"there are not two choices or more, but {list(found)}")
        return found

    def _label(self, row: Mapping[str, Any], choices: int) -> int:
        assert self.label is not None
        given = look_up(self.label, row)
        text_of(given, self.label)
        name = _label_name(given)
        if self.labels is not None:
            names = [_label_name(label) for label in self.labels]
            if name not in names:
                raise RowError(f"{self.label} holds {given!r}, and not one of {list(self.labels)}")
            number = names.index(name)
        elif isinstance(given, bool):
            number = int(given)
        else:
            whole = _WHOLE.fullmatch(name)
            if whole is None:
                raise RowError(f"{self.label} holds {given!r}, and no number")
            number = int(whole[1])
        if not 0 <= number < choices:
            raise RowError(f"{self.label} holds {given!r}, and there are {choices} choices")
        return number


_WHOLE = re.compile(r"([+-]?[0-9]{1,18})(?:\.0*)?")
_AS_WRITTEN = re.compile(r"(-?(?:0|[1-9][0-9]*))\.0*")  # "01" is another label than "1"


def _label_name(value: Any) -> str:
    """What tells a label from others: a whole number as such, however it was written down.

    >>> [_label_name(value) for value in (1, "1", 1.0, "1.0", " 1", b"1", "01", 1.5, True)]
    ['1', '1', '1', '1', '1', '1', '01', '1.5', 'True']
    """
    text = text_of(value, "label").strip()
    number = _AS_WRITTEN.fullmatch(text)
    return text if number is None else number[1]


def _filled(pattern: str, row: Mapping[str, Any], what: str) -> str:
    text = fill(pattern, row)
    if not text.strip():
        raise RowError(f"the {what} is empty")
    return text


TEMPLATES: dict[str, Template] = {
    "sst2": Template(
        prompt="Review: {sentence}\nIs the review negative or positive?\nAnswer:",
        choices=("negative", "positive"),
        label="label",
    ),
    "squad_v2": Template(
        prompt=(
            "{context}\nQuestion: {question}\nAnswer in words of the text, or say unanswerable.\n"
            "Answer:"
        ),
        references="answers[text]",
        no_answer="unanswerable",
        score="f1",
        max_new_tokens=32,
    ),
    "iwslt2017_en_fr": Template(
        prompt="Translate to French.\nEnglish: {translation[en]}\nFrench:",
        answer="{translation[fr]}",
        score="bleu",
        language="fr",
        max_new_tokens=128,
    ),
    "race": Template(
        prompt="{article}\nQuestion: {question}\nAnswer:",
        choices="options",
        label="answer",
        labels=("A", "B", "C", "D"),
    ),
    "medmcqa": Template(
        prompt="Question: {question}\nAnswer:",
        choices=("{opa}", "{opb}", "{opc}", "{opd}"),
        label="cop",
    ),
}
"""Templates of the five tasks of the RECALL paper, for their data sets' own columns."""

FORMATS: dict[str, Template | Conversation] = {
    "alpaca": Template(
        prompt=(
            "Below is an instruction that describes a task{#input}, paired with an input that "
            "provides further context{/input}. Write a response that appropriately completes the "
            "request.\n\n### Instruction:\n{instruction}\n\n{#input}### Input:\n{input}\n\n{/input}"
            "### Response:"
        ),
        answer="{output}",
        separator="\n",
        score="f1",
        max_new_tokens=256,
    ),
    "messages": Conversation("messages"),
    "sharegpt": Conversation("conversations", system="{#system}{system}{/system}"),
}
"""Templates of the columns that instruction data of any kind comes in."""


def template_of(given: str | Template | Conversation) -> Template | Conversation:
    """Return a template that was given by name, or as it is.

    Raises:
        ValueError: If there is none of that name.

    Example:
        >>> template_of("sst2").columns
        ['label', 'sentence']
    """
    if not isinstance(given, str):
        return given
    if given not in TEMPLATES | FORMATS:
        known = ", ".join([*TEMPLATES, *FORMATS])
        close = meant(given, [*TEMPLATES, *FORMATS])
        raise ValueError(f"there is no template {given!r}: use {known} or your own{close}")
    return (TEMPLATES | FORMATS)[given]
