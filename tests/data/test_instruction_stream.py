import csv
import json

import pyarrow
import pyarrow.parquet
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning.data import InstructionStream, InstructionTask, Template
from recall_lightning.models import CausalLMModule
from tests.support.tiny_language_model import CHAT, save_model, save_tokenizer

ASK = Template("Q: {q}", "{a}", score="exact_match", max_new_tokens=4)
ROWS = [{"q": f"what is {n}?", "a": f"number {n}"} for n in range(6)]


@pytest.fixture
def folder(tmp_path):
    save_tokenizer(tmp_path / "tokenizer")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def stream(folder, file="rows.jsonl", template=ASK, task=None, **kwargs):
    rows = str(folder / file)
    options = {"train": rows, "validation": rows} | (task or {})
    tasks = [InstructionTask("one", template, **options)]
    return InstructionStream(tasks, str(folder / "tokenizer"), **({"max_length": 64} | kwargs))


def batches(data):
    return list(data.train_dataloader())


def test_the_answer_alone_is_learned_token_by_token(folder):
    (batch,) = batches(stream(folder))
    data = stream(folder)
    for tokens, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        learned = tokens[labels != -100]
        assert data.tokenizer.decode(learned).startswith(" number")
        assert learned[-1] == data.tokenizer.eos_token_id
        assert data.tokenizer.decode(tokens[: int((labels != -100).nonzero()[0])]).endswith("?")
        assert torch.equal(labels[labels != -100], learned)


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet", "json"])
def test_files_of_every_kind_hold_the_same_rows(kind, folder):
    file = folder / f"rows.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), file)
    elif kind == "json":
        file.write_text((folder / "rows.jsonl").read_text())
    else:
        with file.open("w", newline="") as out:
            writer = csv.DictWriter(out, ["q", "a"], delimiter="," if kind == "csv" else "\t")
            writer.writeheader()
            writer.writerows(ROWS)
    (expected,), (found,) = batches(stream(folder)), batches(stream(folder, file.name))
    assert torch.equal(expected["labels"], found["labels"])


def test_a_saved_data_set_is_read_by_its_splits(folder):
    import datasets

    splits = datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})
    splits.save_to_disk(folder / "saved")
    task = {"data": str(folder / "saved"), "train": "train", "validation": "train"}
    (found,) = batches(stream(folder, task=task))
    assert torch.equal(found["labels"], batches(stream(folder))[0]["labels"])


def test_bad_rows_are_counted_and_the_first_is_named(folder):
    lines = (folder / "rows.jsonl").read_text().splitlines()
    lines[2:2] = ["nonsense", '{"q": "", "a": "x"}']
    (folder / "bad.jsonl").write_text("\n".join(lines))
    said = r"'one'.*2 of 8 rows were left out; the first: line 3: it is no JSON object"
    with pytest.warns(UserWarning, match=said):
        assert len(stream(folder, "bad.jsonl").train_dataset(0)) == 6
    with pytest.raises(MisconfigurationException, match=r"line 3: it is no JSON object.*'skip'"):
        stream(folder, "bad.jsonl", bad_rows="error").train_dataset(0)


def test_long_prompts_lose_their_beginning_and_are_counted(folder, caplog):
    long = {"q": "x" * 100 + "end?", "a": "yes"}
    (folder / "long.jsonl").write_text(json.dumps(long))
    with caplog.at_level("INFO", "lightning.pytorch"):
        data = stream(folder, "long.jsonl", max_length=20)
        (example,) = data.train_dataset(0)
    assert len(example.tokens) == 20
    assert data.tokenizer.decode(example.tokens[: example.answer_start]).endswith("xend?")


def test_an_answer_that_is_too_long_alone_is_a_bad_row(folder):
    with pytest.raises(MisconfigurationException, match=r"no rows to use: 6 rows.*leaves no room"):
        stream(folder, max_length=4).train_dataset(0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"template": Template("{wrong}", "{a}", score="bleu")}, "'wrong'.*has 'q', 'a'"),
        ({"task": {"train": "none.jsonl"}}, "there is no file none.jsonl"),
        ({"task": {"train": "train"}}, "is no file of"),
        ({"task": {"train": "train", "data": "no/such"}}, "point data to a folder"),
        ({"template": "sst3"}, "task 'one': there is no template 'sst3'"),
        ({"chat": True}, "has none: set chat=False"),
        ({"pack": True, "streaming": True}, "drop one"),
    ],
)
def test_what_does_not_fit_is_said(change, said, folder, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(MisconfigurationException, match=said):
        stream(folder, **change).train_dataset(0)


def test_an_empty_split_is_named(folder):
    (folder / "empty.jsonl").write_text("")
    with pytest.raises(MisconfigurationException, match=r"empty.jsonl has no rows to use"):
        stream(folder, "empty.jsonl").train_dataset(0)


def test_a_chat_template_wraps_the_prompt(folder):
    save_tokenizer(folder / "tokenizer", chat=CHAT)
    data = stream(folder, chat=True)
    example = data.train_dataset(0)[0]
    assert data.tokenizer.decode(example.tokens) == "<|user|>Q: what is 0?<|assistant|>number 0</s>"


def test_packed_examples_do_not_see_each_other(folder):
    save_model(folder / "model")
    model = CausalLMModule(str(folder / "model")).eval()
    data = stream(folder, pack=True, max_length=64)
    batch = data.collate_fn(data.train_dataset(0)[:2])
    packed = model(**batch).logits
    first = data.train_dataset(0)[0]
    assert len(first) > 1
    begin = 0
    for example in first:
        alone = model(torch.tensor([example.tokens])).logits[0]
        together = packed[0, begin : begin + len(example.tokens)]
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
        begin += len(example.tokens)


def test_tokenised_data_is_found_again_and_made_anew_where_something_changed(folder):
    kept = {"cache": str(folder / "cache")}
    first = stream(folder, **kept).train_dataset(0)
    assert list(stream(folder, **kept).train_dataset(0)) == list(first)
    assert len(list((folder / "cache").iterdir())) == 1
    stream(folder, max_length=50, **kept).train_dataset(0)
    (folder / "rows.jsonl").write_text(json.dumps({"q": "new?", "a": "b"}))
    assert len(stream(folder, **kept).train_dataset(0)) == 1
    assert len(list((folder / "cache").iterdir())) == 3


def test_streamed_rows_are_those_that_are_kept(folder):
    streamed = list(stream(folder, streaming=True).train_dataset(0))
    assert streamed == list(stream(folder).train_dataset(0))


def test_limits_take_rows_from_the_front(folder):
    data = stream(folder, task={"train_limit": 2, "val_limit": 3})
    assert (len(data.train_dataset(0)), len(data.val_dataset(0))) == (2, 3)


def test_a_general_task_is_scored_behind_the_others_and_never_trained(folder):
    (folder / "general.jsonl").write_text(json.dumps({"q": "who?", "a": "me"}) + "\n")
    general = InstructionTask("general", ASK, validation=str(folder / "general.jsonl"))
    data = stream(folder, general=general)
    assert (data.task_names, data.probe_names) == (["one"], ["general"])
    (_, last) = data.val_dataloader()
    assert [batch["questions"]["references"] for batch in last] == [[["me"]]]
    assert data.num_tasks == data.total_epochs == 1
