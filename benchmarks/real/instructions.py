"""Instructions with short answers, made of real texts: they make a model that talks forget it."""

import json
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.real.packages import file_of, prepared, unpacked
from benchmarks.real.rows import orange_rows, rows_of
from recall_lightning.data import InstructionStream, InstructionTask, Template

TOPICS = {
    "rec.sport.hockey": "hockey",
    "rec.motorcycles": "motorcycles",
    "rec.autos": "cars",
    "sci.crypt": "encryption",
    "sci.med": "medicine",
    "sci.space": "space",
    "comp.graphics": "graphics",
    "misc.forsale": "for sale",
}
PARTIES = {
    "CDU/CSU": "CDU/CSU",
    "SPD": "SPD",
    "FDP": "FDP",
    "GRUENE": "Grüne",
    "PDS/LINKE": "Linke",
}
_WORDS = 60
_LINES = 6

Row = dict[str, str]


def _first_words(text: str) -> str:
    return " ".join(text.split()[:_WORDS])


def topics() -> Iterator[Row]:
    """What a post to a newsgroup is about; the newsgroups' own names, in words."""
    for split in ("train", "test"):
        for row in orange_rows(file_of(f"newsgroups_{split}")):
            if row["Category"] in TOPICS:
                yield {"text": _first_words(row["Text"]), "answer": TOPICS[row["Category"]]}


def speakers() -> Iterator[Row]:
    """Who says a line in a dialogue of a few lines, each by another person."""
    scene: list[Row] = []
    for row in orange_rows(file_of("friends")):
        if row["Title"] != (scene[-1]["Title"] if scene else row["Title"]):
            scene = []
        scene.append(row)
        if len(scene) == _LINES:
            asked = scene[len(scene[0]["Quote"]) % _LINES]
            said = [_first_words(each["Quote"])[:90] for each in scene]
            lines = "\n".join(
                f"{each['Author']}: {own}" for each, own in zip(scene, said, strict=True)
            )
            line = said[scene.index(asked)]
            if line and said.count(line) == 1:
                yield {"text": lines, "line": line, "answer": asked["Author"]}
            scene = []


def headlines() -> Iterator[Row]:
    """The headline of an article."""
    for row in rows_of(unpacked("news")):
        if len(row["title"].split()) > 3 and row["text"]:  # and no title of a column
            yield {"text": _first_words(row["text"]), "answer": " ".join(row["title"].split())}


def parties() -> Iterator[Row]:
    """The party of whoever gives a speech in the German parliament."""
    for row in rows_of(unpacked("bundestag")):
        if row["party"] in PARTIES and row["chair"] == "FALSE":
            yield {"text": _first_words(row["text"]), "answer": PARTIES[row["party"]]}


MAKERS: Mapping[str, Callable[[], Iterator[Row]]] = {
    "topics": topics,
    "speakers": speakers,
    "headlines": headlines,
    "parties": parties,
}
TEMPLATES = {
    "topics": Template(
        "{text}\n\nWhat is this post about? One of: " + ", ".join(TOPICS.values()),
        "{answer}",
        score="exact_match",
        max_new_tokens=8,
    ),
    "speakers": Template(
        '{text}\n\nWho says "{line}"?', "{answer}", score="exact_match", max_new_tokens=8
    ),
    "headlines": Template(
        "{text}\n\nWrite the headline of this article.",
        "{answer}",
        score="f1",
        max_new_tokens=24,
    ),
    "parties": Template(
        "{text}\n\nZu welcher Partei gehört, wer hier spricht? Eine von: "
        + ", ".join(PARTIES.values()),
        "{answer}",
        score="exact_match",
        max_new_tokens=8,
    ),
}


class Instructions(InstructionStream):
    """InstructionStream on newsgroups, a series' dialogues, news and speeches, for SmolLM2.

    Classification (topics, parties), extraction (speakers) and headlines; there are no texts in
    these packages that are translations of each other. The rows are drawn by the seed, held-out
    ones from a tenth of each source that is the same for all seeds.

    Args:
        train_rows: Of each task.
        val_rows: Of each task.
        seed: Draws the rows, and orders them.
        **kwargs: Arguments of :class:`~recall_lightning.data.InstructionStream`.
    """

    def __init__(self, train_rows: int, val_rows: int, seed: int = 0, **kwargs: Any) -> None:
        tasks = [
            InstructionTask(
                name,
                TEMPLATES[name],
                str(_drawn(name, "train", train_rows, seed)),
                str(_drawn(name, "val", val_rows, seed)),
            )
            for name in MAKERS
        ]
        super().__init__(
            tasks=tasks, tokenizer=str(file_of("smollm2").parent), chat=True, seed=seed, **kwargs
        )


def _drawn(name: str, split: str, count: int, seed: int) -> Path:
    def make() -> str:
        rows = list(MAKERS[name]())
        random.Random(name).shuffle(rows)
        border = len(rows) * 9 // 10
        rows = rows[:border] if split == "train" else rows[border:]
        chosen = random.Random(f"{name} {split} {seed}").sample(rows, count)
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in chosen)

    return prepared(f"instructions/{name}_{split}_{count}_{seed}.jsonl", make)
