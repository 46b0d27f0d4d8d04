import zipfile

import pytest
import torch
from torch.utils.data import TensorDataset

from benchmarks.real.texts import (
    behind_tasks,
    by_account,
    by_category,
    drawn,
    hashed_words,
    labelled,
)


@pytest.fixture
def table(tmp_path):
    file = tmp_path / "news.tab"
    header = "Category\tText\nd\tstring\nclass\t\n\n"
    file.write_text(f"{header}sport\tthe match\nart\tthe museum\nsport\tthe\tgame\nart\t \n")
    return file


def test_a_table_of_orange_is_read_by_category_behind_its_header(table):
    assert by_category(table) == {"art": ["the museum"], "sport": ["the match", "the\tgame"]}


def test_tweets_are_read_by_account_without_their_links(tmp_path):
    file = tmp_path / "tweets.zip"
    rows = 'source_id,text\nwho-1,"Wash, often http://t/a"\nbbc-health-2,Sleep\nwho-3,http://t …\n'
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("tweets.csv", rows)
    assert by_account(file) == {"bbc-health": ["Sleep"], "who": ["Wash, often"]}


def test_samples_are_cut_and_filled_up_to_one_length():
    data = labelled({"a": ["x", "x y z w"], "b": ["z"]}, {"a": 4, "b": 2}, hashed_words(9), 3)
    tokens, labels = data.tensors
    assert tokens.shape == (3, 3)
    assert labels.tolist() == [4, 4, 2]
    assert ((tokens != 0).sum(1) == torch.tensor([1, 3, 1])).all()
    assert tokens[0, 0] == tokens[1, 0]


def test_a_task_stands_before_its_texts_and_has_labels_of_its_own():
    both = TensorDataset(torch.tensor([[7, 8], [9, 0], [3, 3]]), torch.tensor([0, 5, 3]))
    rows, labels = behind_tasks(both, classes=4).tensors
    assert rows.tolist() == [[0, 7, 8], [1, 9, 0], [0, 3, 3]]
    assert labels.tolist() == [0, 1, 3]


def test_a_draw_depends_on_its_seed_alone():
    texts = [str(number) for number in range(50)]
    assert drawn(texts, 5, seed=1) == drawn(texts, 5, seed=1) != drawn(texts, 5, seed=2)
    assert sorted(drawn(texts, 90, seed=1)) == sorted(texts)
