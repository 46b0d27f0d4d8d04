"""The twenty newsgroups as five tasks of four classes each."""

from collections.abc import Mapping

from torch.utils.data import Dataset

from benchmarks.real.packages import file_of
from benchmarks.real.texts import Encode, by_category, drawn, labelled
from recall_lightning.data import TaskStream

GROUPS_A_TASK = 4


def class_incremental(
    encode: Encode,
    seed: int,
    train_per_group: int,
    val_per_group: int,
    length: int,
    probes: Mapping[str, Dataset] | None = None,
    **settings: int,
) -> TaskStream:
    """The groups in alphabetical order, four a task, under the labels 0 to 19.

    Held-out texts are of the corpus's own test set.

    Args:
        encode: Makes tokens of a text.
        seed: Draws the texts, and orders them.
        train_per_group: Texts of each group to train on, where there are as many.
        val_per_group: Held-out texts of each group.
        length: Tokens of a text that are read.
        probes: Held-out data of no task.
        **settings: Arguments of :class:`~recall_lightning.data.TaskStream`.
    """
    learned = by_category(file_of("newsgroups_train"))
    held_out = by_category(file_of("newsgroups_test"))
    labels = {group: label for label, group in enumerate(learned)}
    pairs, names = [], []
    for first in range(0, len(labels), GROUPS_A_TASK):
        own = list(labels)[first : first + GROUPS_A_TASK]
        train = {group: drawn(learned[group], train_per_group, seed) for group in own}
        val = {group: drawn(held_out[group], val_per_group, seed) for group in own}
        pairs.append(
            (labelled(train, labels, encode, length), labelled(val, labels, encode, length))
        )
        names.append(f"groups_{first}_to_{first + len(own) - 1}")
    return TaskStream.from_datasets(pairs, names, probes=probes, seed=seed, **settings)
