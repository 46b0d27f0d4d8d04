import csv
import json
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning.data import InstructionStream, InstructionTask, Template, instruction_stream
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
def test_what_does_not_fit_is_said(change, said, folder):
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


@pytest.mark.parametrize(("processes", "workers"), [(2, 1), (4, 1), (4, 2), (1, 4), (7, 2)])
def test_streamed_rows_are_dealt_out_evenly_to_processes(folder, processes, workers, monkeypatch):
    """A process with a batch more than the others would wait for them forever."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: processes)
    rows, shares = stream(folder, streaming=True).train_dataset(0), []
    for rank in range(processes):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        for worker in range(workers):
            info = SimpleNamespace(num_workers=workers, id=worker)
            monkeypatch.setattr(instruction_stream, "get_worker_info", lambda info=info: info)
            shares.append(list(rows))
    sizes = [list(map(len, shares[worker::workers])) for worker in range(workers)]
    assert all(len(set(own)) == 1 for own in sizes)
    read = [row for share in shares for row in share]
    assert set(read) == set(stream(folder).train_dataset(0))
    assert len(read) - len(ROWS) == -len(ROWS) % processes


def test_a_stream_without_a_usable_row_is_refused(folder):
    (folder / "rows.jsonl").write_text('{"q": "", "a": "b"}\n')
    with pytest.raises(
        MisconfigurationException, match=r"has no rows to use: 1 rows .* q is empty"
    ):
        list(stream(folder, streaming=True).train_dataset(0))


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


def rows_of(folder, name, rows):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


@pytest.mark.parametrize("max_length", [20, 24, 64])
def test_what_is_asked_is_what_was_trained_on_however_long_an_answer_may_be(folder, max_length):
    template = Template("Q: {q}", "{a}", score="bleu", max_new_tokens=128)
    data = stream(folder, template=template, max_length=max_length)
    for trained, asked in zip(data.train_dataset(0), data.val_dataset(0), strict=True):
        assert asked.right == trained
        assert asked.prompt == trained.tokens[: trained.answer_start]


def test_prompts_that_are_cut_are_said_to_be(folder):
    rows_of(folder, "long.jsonl", [*ROWS, {"q": "x" * 100 + "end?", "a": "yes"}])
    data = stream(folder, "long.jsonl", max_length=40)
    for read in (data.train_dataset, data.val_dataset):
        with pytest.warns(UserWarning, match="1 of 7 prompts were too long for max_length"):
            read(0)


def test_a_template_that_never_fits_is_refused(folder):
    template = Template("Say this and that and so on: {q}", "{a}", score="bleu")
    for read in ("train_dataset", "val_dataset"):
        with pytest.raises(MisconfigurationException, match=r"'one'.*max_length=30 every prompt"):
            getattr(stream(folder, template=template, max_length=30), read)(0)


@pytest.mark.parametrize(
    "bad",
    [
        '{"q": "\\ud83d", "a": "x"}',
        '{"q": "x", "a": "\\udc00"}',
        '{"q": "x", "a": NaN}',
        '{"q": "x", "a": null}',
        '{"q": "x"}',
        '{"q": {"en": "x"}, "a": "x"}',
        '{"q": "x\\u0000", "a": "x"}',
        "nonsense",
    ],
)
@pytest.mark.parametrize("place", [0, 3])
def test_a_bad_row_is_left_out_with_a_warning_wherever_it_stands(bad, place, folder):
    lines = [json.dumps(row) for row in ROWS]
    lines.insert(place, bad)
    (folder / "bad.jsonl").write_text("\n".join(lines))
    said = rf"1 of 7 rows were left out; the first: line {place + 1}: "
    for streaming in (False, True):
        data = stream(folder, "bad.jsonl", streaming=streaming)
        for read in (data.train_dataset, data.val_dataset):
            with pytest.warns(UserWarning, match=said):
                assert len(list(read(0))) == 6
    with pytest.raises(MisconfigurationException, match=rf"line {place + 1}: .*bad_rows='skip'"):
        stream(folder, "bad.jsonl", bad_rows="error").train_dataset(0)


def test_a_header_without_a_column_is_refused_at_once(folder):
    (folder / "headerless.csv").write_text("what is 1?,number 1\nwhat is 2?,number 2\n")
    with pytest.raises(MisconfigurationException, match=r"'a', 'q', and it has .* no header"):
        stream(folder, "headerless.csv").train_dataset(0)


def test_a_section_that_no_row_has_the_column_of_is_said(folder):
    template = Template("{q}{#hnit} ({hnit}){/hnit}", "{a}", score="f1")
    with pytest.warns(UserWarning, match="no row has 'hnit'"):
        assert len(stream(folder, template=template).train_dataset(0)) == 6


def test_encoding_and_delimiter_are_the_task_s(folder):
    (folder / "semi.csv").write_bytes("q;a\nPérou?;Lima\n".encode("latin-1"))
    task = {"encoding": "latin-1", "delimiter": ";"}
    (example,) = stream(folder, "semi.csv", task=task).train_dataset(0)
    data = stream(folder)
    assert data.tokenizer.decode(example.tokens) == "Q: Pérou? Lima</s>"


def test_tokenised_data_is_not_that_of_the_same_bytes_read_in_another_way(folder):
    kept = {"cache": str(folder / "cache")}
    for name in ("a.csv", "a.tsv"):
        (folder / name).write_text('"q"\t"a"\n"1"\t"2"\n')
    quoted = stream(folder, "a.csv", task={"delimiter": "\t"}, **kept).train_dataset(0)
    with pytest.raises(MisconfigurationException, match="needs the column"):
        stream(folder, "a.tsv", **kept).train_dataset(0)
    assert len(quoted) == 1


TALK = {
    "messages": [
        {"role": "user", "content": "one?"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "two?"},
        {"role": "assistant", "content": "2"},
    ]
}


def test_conversations_are_learned_turn_by_turn_and_asked_for_their_last_answer(folder):
    rows_of(folder, "talks.jsonl", [TALK])
    save_tokenizer(folder / "tokenizer", chat=CHAT.replace("{% endfor %}", "</s>{% endfor %}"))
    data = stream(folder, "talks.jsonl", "messages", chat=True, cache=str(folder / "cache"))
    (batch,) = batches(data)
    tokens, labels = batch["input_ids"][0], batch["labels"][0]
    assert data.tokenizer.decode(tokens) == (
        "<|user|>one?</s><|assistant|>1</s><|user|>two?</s><|assistant|>2</s>"
    )
    assert data.tokenizer.decode(tokens[labels != -100]) == "1</s>2</s>"
    (asked,) = data.val_dataset(0)
    assert data.tokenizer.decode(asked.prompt).endswith("two?</s><|assistant|>")
    assert asked.references == ("2",)
    again = stream(folder, "talks.jsonl", "messages", chat=True, cache=str(folder / "cache"))
    assert torch.equal(batches(again)[0]["labels"], batch["labels"])
    packed = stream(folder, "talks.jsonl", "messages", chat=True, pack=True)
    (packed,) = batches(packed)
    assert torch.equal(packed["labels"], batch["labels"])


@pytest.mark.parametrize(
    "template", ["messages", Template("{q}", "{a}", score="f1", system="Be kind.")]
)
def test_conversations_and_system_prompts_need_a_chat_template(template, folder):
    with pytest.raises(MisconfigurationException, match=r"task 'one'.*set chat=True"):
        stream(folder, template=template)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "task 'later': there is no file"),
        ('{"question": "?", "a": "x"}\n', "task 'later'.*needs the column 'q'"),
        ('{"q": "?", "a": ""}\n', "task 'later'.*has no rows to use.*a is empty"),
    ],
)
def test_a_later_task_s_training_file_is_found_wrong_before_the_first_is_trained(
    text, said, folder
):
    rows, later = str(folder / "rows.jsonl"), folder / "later.jsonl"
    if text:
        later.write_text(text)
    tasks = [InstructionTask("one", ASK, rows, rows), InstructionTask("later", ASK, later, rows)]
    data = InstructionStream(tasks, str(folder / "tokenizer"), max_length=64)
    with pytest.raises(MisconfigurationException, match=said):
        data.setup("fit")
