import gzip
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning import ForgettingMonitor
from recall_lightning.data import TextFilesStream, TextTask
from recall_lightning.models import CausalLMModule
from tests.support.tiny_language_model import save_model, save_tokenizer
from tests.support.training import quiet_trainer

PROSE = "The cat sat on the mat, and the dög slept. " * 40


@pytest.fixture
def folder(tmp_path):
    save_tokenizer(tmp_path / "tokenizer")
    (tmp_path / "prose" / "deep").mkdir(parents=True)
    (tmp_path / "prose" / "a.txt").write_text(PROSE)
    (tmp_path / "prose" / "deep" / "b.md").write_text(PROSE)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": PROSE, "body": "b" * 400}) + "\n")
    return tmp_path


def stream(folder, *tasks, **kwargs):
    tasks = tasks or (TextTask("prose", str(folder / "prose")),)
    return TextFilesStream(
        list(tasks), str(folder / "tokenizer"), **({"sequence_length": 32} | kwargs)
    )


def everything(data, task=0):
    parts = [*data.train_dataset(task), *data.val_dataset(task)]
    return torch.stack([part["input_ids"] for part in parts])


def test_a_folder_is_read_at_every_depth_and_documents_end(folder):
    data = stream(folder)
    tokens = everything(data)
    length = len(PROSE.encode()) + 1  # a token a byte, and the end
    assert tokens.shape == (2 * length // 32, 32)
    assert (tokens == data.tokenizer.eos_token_id).sum() >= 1


def test_a_pattern_and_a_column_choose_what_is_read(folder):
    some = TextTask("some", str(folder / "prose"), pattern="*.md")
    assert len(everything(stream(folder, some))) == (len(PROSE.encode()) + 1) // 32
    body = TextTask("body", str(folder / "rows.jsonl"), column="body")
    data = stream(folder, body)
    assert data.tokenizer.decode(everything(data)[0]) == "b" * 32


def test_held_out_text_is_never_trained_on(folder):
    numbered = "".join(f"{n:031d} " for n in range(200))
    (folder / "numbered.txt").write_text(numbered)
    data = stream(folder, TextTask("numbered", str(folder / "numbered.txt")), val_fraction=0.2)
    train, val = data.train_dataset(0), data.val_dataset(0)
    assert (len(train), len(val)) == (160, 40)
    seen = {tuple(each["input_ids"].tolist()) for each in train}
    assert seen.isdisjoint(tuple(each["input_ids"].tolist()) for each in val)


def test_held_out_text_of_its_own_and_limits(folder):
    task = TextTask(
        "prose", str(folder / "prose"), str(folder / "rows.jsonl"), train_limit=5, val_limit=3
    )
    data = stream(folder, task)
    assert (len(data.train_dataset(0)), len(data.val_dataset(0))) == (5, 3)


@given(text=st.text(min_size=40))
def test_tokens_share_out_the_bytes_of_the_text(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    save_tokenizer(folder / "tokenizer")
    (folder / "a.txt").write_bytes(text.encode())
    data = stream(folder, TextTask("text", str(folder / "a.txt")), sequence_length=2)
    tokens, sizes = data._encode(text)
    assert sizes.sum() == len(text.encode())
    assert len(tokens) == len(sizes)


def test_bits_per_byte_are_those_of_the_predicted_tokens(folder):
    (sample, *_) = stream(folder).val_dataset(0)
    written = stream(folder).tokenizer.decode(sample["input_ids"][1:])
    assert sample["num_bytes"] == len(written.replace("</s>", "").encode())


def test_general_text_is_scored_from_the_start_and_no_metric_counts_it(folder):
    tasks = [TextTask("prose", str(folder / "prose")), TextTask("rows", str(folder / "rows.jsonl"))]
    general = TextTask("general", str(folder / "rows.jsonl"), column="body", val_limit=4)
    data = stream(folder, *tasks, general=general, batch_size=8)
    monitor = ForgettingMonitor("val/bits_per_byte")
    trainer = quiet_trainer(monitor, max_epochs=2, reload_dataloaders_every_n_epochs=1)
    model = CausalLMModule(save_model(folder / "model"))
    trainer.validate(model, data, verbose=False)
    trainer.fit(model, datamodule=data)
    record = monitor.record
    assert (record.task_names, record.probe_names) == (["prose", "rows"], ["general"])
    assert [len(row) for row in record.matrix] == [2, 2]
    lost = record.probes[-1][0] - record.probes_before[0]
    assert record.summary()["general_lost"] == pytest.approx(lost)
    assert record.table().splitlines()[0].split() == [
        "val/bits_per_byte",
        "prose",
        "rows",
        "general",
    ]


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ({"train": "none"}, "must name a file or folder"),
        ({"pattern": "*.rst"}, "no files like '[*].rst'"),
        ({"train": "rows.jsonl", "column": "title"}, "no column 'title', but 'text', 'body'"),
        ({"train": "short.txt"}, "holds 4 tokens, too few"),
    ],
)
def test_what_does_not_fit_is_said(task, said, folder):
    (folder / "short.txt").write_text("abc")
    options = {"train": str(folder / "prose")} | task
    options["train"] = str(folder / options["train"])
    with pytest.raises(MisconfigurationException, match=said):
        stream(folder, TextTask("one", **options), bad_rows="error").train_dataset(0)


def test_files_that_are_no_text_are_left_out_with_a_warning(folder):
    (folder / "prose" / "image.png").write_bytes(b"\x89PNG\xff")
    with pytest.warns(UserWarning, match=r"1 of 3 rows were left out; the first: .*image.png"):
        stream(folder).train_dataset(0)


@pytest.mark.parametrize(
    ("name", "content", "task"),
    [
        ("mark.txt", PROSE.encode("utf-8-sig"), {}),
        ("wide.txt", PROSE.encode("utf-16"), {"encoding": "utf-16"}),
        ("latin.txt", PROSE.encode("latin-1"), {"encoding": "latin-1"}),
        ("small.txt.gz", gzip.compress(PROSE.encode(), mtime=0), {}),
        ("ROWS.JSONL.gz", gzip.compress(json.dumps({"text": PROSE}).encode(), mtime=0), {}),
        ("rows.csv", f'id;text\n1;"{PROSE}"\n'.encode(), {"delimiter": ";"}),
        ("array.json", json.dumps([{"text": PROSE}], indent=1).encode(), {}),
    ],
)
def test_text_is_the_same_however_it_was_saved(name, content, task, folder):
    (folder / name).write_bytes(content)
    found = stream(folder, TextTask("one", str(folder / name), **task))
    plain = stream(folder, TextTask("one", str(folder / "prose" / "a.txt")))
    assert torch.equal(everything(found), everything(plain))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("wide.txt", PROSE.encode("utf-16"), "encoding='utf-16'"),
        ("latin.txt", PROSE.encode("latin-1"), "encoding='latin-1'"),
        ("nul.txt", b"a text, a\0b", "NUL"),
        ("blank.txt", b" \n ", "it is empty"),
        ("packed.txt", gzip.compress(b"a", mtime=0), "compressed with gzip"),
        ("broken.json", b'[\n{"text": "a"', "broken JSON on line 2"),
        ("half.jsonl", b'{"text": "\\ud83d"}', "half a character"),
        ("none.jsonl", b'{"text": null}', "text is empty"),
        ("nan.jsonl", b'{"text": NaN}', "and no text"),
        ("semi.csv", b"id;text\n1;a", "delimiter=';'"),
    ],
)
def test_a_file_that_cannot_be_read_right_is_left_out_of_a_folder_with_its_reason(
    name, content, said, folder
):
    (folder / "prose" / name).write_bytes(content)
    with pytest.warns(UserWarning, match=rf"1 of 3 rows were left out; .*{name}.*{said}"):
        stream(folder).train_dataset(0)
    alone = TextTask("one", str(folder / "prose" / name))
    with pytest.raises(MisconfigurationException, match=rf"too few .*{said}"):
        stream(folder, alone).train_dataset(0)
