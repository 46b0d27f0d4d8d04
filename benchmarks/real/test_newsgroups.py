from benchmarks.real import newsgroups
from benchmarks.real.newsgroups import GROUPS_A_TASK, TOPICS, class_incremental, domain_incremental
from benchmarks.real.texts import hashed_words

GROUPS = [f"{topic}.{group}" for topic, groups in TOPICS.items() for group in groups]


def tasks(monkeypatch, make, **settings):
    """Return the labels of each task's texts, the first word of a text being its topic."""
    monkeypatch.setattr(newsgroups, "file_of", str)
    texts = {group: [f"{group.partition('.')[0]} {n}" for n in range(3)] for group in GROUPS}
    monkeypatch.setattr(newsgroups, "by_category", lambda file: texts)
    stream = make(hashed_words(1000), 0, 2, 1, length=4, **settings)
    stream.setup("fit")
    return [list(loader.dataset) for loader in stream.val_dataloader()]


def test_topics_are_the_same_labels_in_every_task(monkeypatch):
    found = tasks(monkeypatch, domain_incremental)
    words = {topic: hashed_words(1000)(topic)[0] for topic in TOPICS}
    of_labels = [words[topic] for topic in TOPICS]
    assert len(found) == len(TOPICS["comp"])
    for rows in found:
        assert [int(label) for _, label in rows] == [0, 1, 2, 3]
        assert [int(tokens[0]) for tokens, _ in rows] == of_labels
    assert len(set(GROUPS)) == 16


def test_groups_are_new_labels_in_every_task_unless_the_task_is_told(monkeypatch):
    found = tasks(monkeypatch, class_incremental)
    assert [[int(label) for _, label in rows] for rows in found] == [
        list(range(first, first + GROUPS_A_TASK)) for first in range(0, len(GROUPS), GROUPS_A_TASK)
    ]
    told = tasks(monkeypatch, class_incremental, task_is_told=True)
    assert [[int(label) for _, label in rows] for rows in told] == [[0, 1, 2, 3]] * len(found)
