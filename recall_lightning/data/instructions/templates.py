"""How a row of a data set becomes a prompt and its answer, for the tasks that ship and your own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any, Literal

from recall_lightning.data.rows import RowError

Score = Literal["accuracy", "exact_match", "squad_exact_match", "f1", "bleu"]


@dataclass(frozen=True)
class Example:
    """One prompt with what is right.

    Attributes:
        prompt: What the model reads.
        answer: What it is to say.
        choices: All answers it may choose from; empty where it writes freely.
        label: Which of them is right.
        references: All answers that count as right when it writes freely.
    """

    prompt: str
    answer: str
    choices: tuple[str, ...] = ()
    label: int = -1
    references: tuple[str, ...] = ()


@dataclass(frozen=True)
class Template:
    """How rows become examples, in the format language of ``str.format``.

    Args:
        prompt: Format of the prompt; ``{question}`` is a column, ``{translation[en]}`` an entry of
            one that holds a mapping.
        answer: Format of the answer where there are no choices.
        choices: Formats of the answers to choose from, or the name of a column that lists them.
        label: Column that tells which choice is right: its number, or one of ``labels``.
        labels: What ``label`` may hold, in the order of the choices, such as letters. Without them
            it counts from 0.
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
        for name in ("language", "bleu_tokenizer"):
            if getattr(self, name) is not None and self.score != "bleu":
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is for BLEU, and score is {self.score!r}"
                )
        for pattern in self._formats():
            try:
                list(Formatter().parse(pattern))
            except ValueError as error:
                raise ValueError(f"{pattern!r} is no format: {error}") from error

    @property
    def columns(self) -> list[str]:
        """Names of the columns that rows must have, sorted."""
        fields = [
            field
            for pattern in self._formats()
            for _, field, _, _ in Formatter().parse(pattern)
            if field is not None
        ]
        for own in (self.label, self.references):
            fields += [own] if own is not None else []
        fields += [self.choices] if isinstance(self.choices, str) else []
        return sorted({field.partition("[")[0].partition(".")[0] for field in fields})

    def _formats(self) -> list[str]:
        choices = [] if self.choices is None or isinstance(self.choices, str) else self.choices
        return [self.prompt, self.answer, *choices]

    def example(self, row: Mapping[str, Any]) -> Example:
        """Make an example of a row.

        Raises:
            RowError: Saying what of the row is missing, empty or out of range.
        """
        prompt = _filled(self.prompt, row, "prompt")
        if self.choices is not None:
            choices = self._choices(row)
            label = self._label(row, len(choices))
            return Example(prompt, choices[label], choices, label, (choices[label],))
        if self.references is not None:
            listed = _looked_up(self.references, row)
            if isinstance(listed, str):
                listed = [listed]
            if not isinstance(listed, Sequence) or not all(isinstance(t, str) for t in listed):
                raise RowError(f"{self.references} lists no texts, but holds {listed!r}")
            references = tuple(text for text in listed if text.strip())
            if not references and self.no_answer is None:
                raise RowError(f"{self.references} lists no answer")
            answer = references[0] if references else str(self.no_answer)
            return Example(prompt, answer, references=references)
        answer = _filled(self.answer, row, "answer")
        return Example(prompt, answer, references=(answer,))

    def _choices(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        assert self.choices is not None
        if isinstance(self.choices, str):
            listed = _looked_up(self.choices, row)
            if not isinstance(listed, Sequence) or isinstance(listed, str):
                raise RowError(f"{self.choices} lists no choices, but holds {listed!r}")
            found = tuple(map(str, listed))
        else:
            found = tuple(_filled(pattern, row, "choice") for pattern in self.choices)
        if len(found) < 2 or not all(choice.strip() for choice in found):
            raise RowError(f"there are not two choices or more, none empty, but {list(found)}")
        return found

    def _label(self, row: Mapping[str, Any], choices: int) -> int:
        assert self.label is not None
        given = _looked_up(self.label, row)
        if self.labels is not None:
            if str(given) not in self.labels:
                raise RowError(f"{self.label} holds {given!r}, and not one of {list(self.labels)}")
            number = list(self.labels).index(str(given))
        else:
            try:
                number = int(given)
            except (TypeError, ValueError):
                raise RowError(f"{self.label} holds {given!r}, and no number") from None
        if not 0 <= number < choices:
            raise RowError(f"{self.label} holds {given!r}, and there are {choices} choices")
        return number


def _looked_up(field: str, row: Mapping[str, Any]) -> Any:
    try:
        value = Formatter().get_field(field, (), row)[0]
    except (KeyError, IndexError, TypeError, AttributeError):
        raise RowError(f"{field} is missing") from None
    if value is None:
        raise RowError(f"{field} is empty")
    return value


def _filled(pattern: str, row: Mapping[str, Any], what: str) -> str:
    for _, field, _, _ in Formatter().parse(pattern):
        if field is not None and not str(_looked_up(field, row)).strip():
            raise RowError(f"{field} is empty")
    text = Formatter().vformat(pattern, (), row)
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


def template_of(given: str | Template) -> Template:
    """Return a template that was given by name, or as it is.

    Raises:
        ValueError: If there is none of that name.

    Example:
        >>> template_of("sst2").columns
        ['label', 'sentence']
    """
    if isinstance(given, Template):
        return given
    if given not in TEMPLATES:
        raise ValueError(f"there is no template {given!r}: use {', '.join(TEMPLATES)} or your own")
    return TEMPLATES[given]
