"""BLEU of a whole set of answers, by sacreBLEU."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import torch
from torch import Tensor
from torchmetrics import Metric

_ORDERS = 4


class Bleu(Metric):
    """sacreBLEU's corpus score with its default settings, over 100, collected batch by batch.

    What is added up over batches and processes are sacreBLEU's own counts (Post 2018, arXiv
    1804.08771), so the score is that of all answers at once.

    An empty answer has no words: it matches nothing and makes the set of answers shorter. An answer
    to a row without references is compared with the empty text: whatever is in it counts as wrong.
    Where no word was written at all the score is 0, as sacreBLEU has it. Answers that are not
    defined, because the model's predictions were no numbers, make it NaN.

    Args:
        tokenizer: Name of one of sacreBLEU's tokenizers.

    Example:
        >>> bleu = Bleu()
        >>> bleu.update(["the cat sat on the mat"], [["the cat sat on a mat", "a cat sat"]])
        >>> round(bleu.compute().item(), 4)
        0.5373
    """

    full_state_update = False
    higher_is_better = True
    counts: Tensor
    undefined: Tensor

    def __init__(self, tokenizer: str = "13a") -> None:
        super().__init__()
        from sacrebleu.metrics import BLEU  # loads lxml and more

        self._bleu = BLEU(tokenize=tokenizer)
        # lengths of answers and references, matched n-grams, and all n-grams of the answers
        self.add_state("counts", torch.zeros(2 + 2 * _ORDERS).long(), dist_reduce_fx="sum")
        self.add_state("undefined", torch.zeros(()).long(), dist_reduce_fx="sum")

    def update(
        self,
        answers: Sequence[str],
        references: Sequence[Sequence[str]],
        defined: Tensor | None = None,
    ) -> None:
        """Add a batch.

        Args:
            answers: What was written.
            references: For each answer, the texts that are right; their number may differ.
            defined: bool ``(B,)``, whether the model's predictions were numbers; by default all.
        """
        if answers:
            # first references, second ones …; None where an answer has no more
            streams = [list(each) for each in zip_longest(*[own or [""] for own in references])]
            found = self._bleu.corpus_score(list(answers), streams)
            counts = [found.sys_len, found.ref_len, *found.counts, *found.totals]
            # not in place: after a validation in inference mode it may be an inference tensor
            self.counts = self.counts + torch.tensor(counts, device=self.counts.device)
        if defined is not None:
            self.undefined = self.undefined + (~defined).sum()

    def compute(self) -> Tensor:
        """The score in [0, 1], of shape ``()``."""
        if self.undefined > 0:
            return torch.tensor(float("nan"), device=self.counts.device)
        answers, references, *counts = self.counts.tolist()
        score = self._bleu.compute_bleu(
            counts[:_ORDERS], counts[_ORDERS:], answers, references, smooth_method="exp"
        ).score
        return torch.tensor(score / 100, device=self.counts.device)
