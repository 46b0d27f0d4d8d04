"""The twenty newsgroups: four new ones a task, or in each task others of the same four topics."""

from collections.abc import Mapping

from torch.utils.data import Dataset, TensorDataset

from benchmarks.real.packages import file_of
from benchmarks.real.texts import Encode, behind_tasks, by_category, drawn, labelled
from recall_lightning.data import TaskStream

GROUPS_A_TASK = 4
Texts = Mapping[str, list[str]]
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
    corpus = _corpus()
    groups = list(corpus[0])
    labels = {group: label for label, group in enumerate(groups)}
    tasks = {}
    for first in range(0, len(groups), GROUPS_A_TASK):
        own = groups[first : first + GROUPS_A_TASK]
        tasks[f"groups_{first}_to_{first + len(own) - 1}"] = {group: labels[group] for group in own}
    told = GROUPS_A_TASK if task_is_told else None
    return _stream(
        tasks,
        corpus,
        encode,
        seed,
        train_per_group,
        val_per_group,
        length,
        probes,
        told,
        **settings,
    )


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
    tasks = {}
    for own in zip(*TOPICS.values(), strict=True):
        groups = [f"{topic}.{group}" for topic, group in zip(TOPICS, own, strict=True)]
        name = "_".join(group.rpartition(".")[2] for group in own)
        tasks[name] = {group: label for label, group in enumerate(groups)}
    corpus = _corpus()
    return _stream(
        tasks, corpus, encode, seed, train_per_group, val_per_group, length, probes, **settings
    )


def _corpus() -> tuple[Texts, Texts]:
    """Return the texts to train on and those that are held out, by group."""
    return by_category(file_of("newsgroups_train")), by_category(file_of("newsgroups_test"))


def _stream(
    tasks: Mapping[str, Mapping[str, int]],
    corpus: tuple[Texts, Texts],
    encode: Encode,
    seed: int,
    train_per_group: int,
    val_per_group: int,
    length: int,
    probes: Mapping[str, Dataset] | None,
    told_of: int | None = None,
    **settings: int,
) -> TaskStream:
    """Draw the texts of tasks, each the labels of its groups; of so many classes if it is told."""
    learned, held_out = corpus

    def rows(texts: Texts, count: int, labels: Mapping[str, int]) -> TensorDataset:
        chosen = {group: drawn(texts[group], count, seed) for group in labels}
        found = labelled(chosen, labels, encode, length)
        return found if told_of is None else behind_tasks(found, told_of)

    pairs = [
        (rows(learned, train_per_group, labels), rows(held_out, val_per_group, labels))
        for labels in tasks.values()
    ]
    return TaskStream.from_datasets(pairs, list(tasks), probes=probes, seed=seed, **settings)
