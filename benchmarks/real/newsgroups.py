"""The twenty newsgroups: four new ones a task, or in each task others of the same four topics."""

from collections.abc import Mapping

from torch.utils.data import Dataset, TensorDataset

from benchmarks.real.packages import file_of
from benchmarks.real.texts import Encode, behind_tasks, by_category, drawn, labelled
from recall_lightning.data import TaskStream

GROUPS_A_TASK = 4
TOPICS = {
    "comp": ["graphics", "sys.mac.hardware", "windows.x", "os.ms-windows.misc"],
    "rec": ["autos", "sport.hockey", "motorcycles", "sport.baseball"],
    "sci": ["crypt", "med", "space", "electronics"],
    "talk": ["politics.guns", "politics.mideast", "religion.misc", "politics.misc"],
}


def class_incremental(
    encode: Encode,
    seed: int,
    train_per_group: int,
    val_per_group: int,
    length: int,
    probes: Mapping[str, Dataset] | None = None,
    task_is_told: bool = False,
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
        task_is_told: Whether the task's number stands before a text's tokens, and labels are 0 to 3
            in each task (task-incremental; else class-incremental).
        **settings: Arguments of :class:`~recall_lightning.data.TaskStream`.
    """
    learned = by_category(file_of("newsgroups_train"))
    held_out = by_category(file_of("newsgroups_test"))
    labels = {group: label for label, group in enumerate(learned)}
    pairs, names = [], []

    def rows(texts: Mapping[str, list[str]]) -> TensorDataset:
        found = labelled(texts, labels, encode, length)
        return behind_tasks(found, GROUPS_A_TASK) if task_is_told else found

    for first in range(0, len(labels), GROUPS_A_TASK):
        own = list(labels)[first : first + GROUPS_A_TASK]
        train = {group: drawn(learned[group], train_per_group, seed) for group in own}
        val = {group: drawn(held_out[group], val_per_group, seed) for group in own}
        pairs.append((rows(train), rows(val)))
        names.append(f"groups_{first}_to_{first + len(own) - 1}")
    return TaskStream.from_datasets(pairs, names, probes=probes, seed=seed, **settings)


def domain_incremental(
    encode: Encode,
    seed: int,
    train_per_group: int,
    val_per_group: int,
    length: int,
    probes: Mapping[str, Dataset] | None = None,
    **settings: int,
) -> TaskStream:
    """Computers, recreation, science and talk under the labels 0 to 3, of each a group a task.

    What a text is to be told from stays the same, and what it is about changes.

    Args:
        encode: Makes tokens of a text.
        seed: Draws the texts, and orders them.
        train_per_group: Texts of each group to train on, where there are as many.
        val_per_group: Held-out texts of each group, of the corpus's own test set.
        length: Tokens of a text that are read.
        probes: Held-out data of no task.
        **settings: Arguments of :class:`~recall_lightning.data.TaskStream`.
    """
    learned, held_out = (by_category(file_of(f"newsgroups_{part}")) for part in ("train", "test"))
    pairs, names = [], []
    for own in zip(*TOPICS.values(), strict=True):
        groups = [f"{topic}.{group}" for topic, group in zip(TOPICS, own, strict=True)]
        labels = {group: label for label, group in enumerate(groups)}
        train, val = (
            labelled({g: drawn(texts[g], count, seed) for g in groups}, labels, encode, length)
            for texts, count in ((learned, train_per_group), (held_out, val_per_group))
        )
        pairs.append((train, val))
        names.append("_".join(group.rpartition(".")[2] for group in own))
    return TaskStream.from_datasets(pairs, names, probes=probes, seed=seed, **settings)
