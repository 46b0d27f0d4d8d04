import dis
import hashlib
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning.data import StdlibTextStream
from recall_lightning.data.stdlib_text import _disassembly, _names, _source_files
from tests.support.processes import run_python

DOMAINS = ["documentation", "source", "disassembly", "names"]
SMALL = {"train_sequences": 100, "val_sequences": 20, "sequence_length": 32}


def rows(dataset) -> list[bytes]:
    return [bytes(sample["input_ids"].tolist()) for sample in dataset]


@pytest.fixture(scope="module")
def stream() -> StdlibTextStream:
    return StdlibTextStream(**SMALL)


@pytest.mark.parametrize("task", range(4))
def test_samples(stream: StdlibTextStream, task: int) -> None:
    assert stream.task_names == DOMAINS
    train, val = stream.train_dataset(task), stream.val_dataset(task)
    assert (len(train), len(val)) == (100, 20)
    sample = train[0]
    assert sample["input_ids"].shape == (32,)
    assert sample["input_ids"].dtype == sample["num_bytes"].dtype == torch.int64
    assert torch.equal(sample["input_ids"], sample["labels"])
    assert sample["attention_mask"].tolist() == [1] * 32
    assert sample["num_bytes"].item() == 31


@pytest.mark.parametrize("task", [0, 1, 3])  # listings repeat themselves
def test_held_out_text_is_not_trained(stream: StdlibTextStream, task: int) -> None:
    assert not set(rows(stream.val_dataset(task))) & set(rows(stream.train_dataset(task)))


def test_whole_blocks_of_16_sequences_are_held_out(stream: StdlibTextStream) -> None:
    names, val = _names(0, 0), rows(stream.val_dataset(3))
    block = b"".join(val[:16])
    assert names.index(block) % (16 * 32) == 0
    assert block not in b"".join(rows(stream.train_dataset(3)))


def test_each_domain_reads_as_what_it_is(stream: StdlibTextStream) -> None:
    text = [b"".join(rows(stream.train_dataset(task))) for task in range(4)]
    assert b" the " in text[0]
    assert b"import " in text[1]
    assert text[3].upper() == text[3]
    assert b"\nLOAD_FAST " in text[2]


def test_bytecode_is_instructions() -> None:
    stream = StdlibTextStream(tasks=["bytecode"], **SMALL)
    opcodes = b"".join(rows(stream.train_dataset(0)))[::2]  # an instruction is two bytes
    assert set(opcodes) <= set(dis.opmap.values())


@pytest.mark.processes
def test_a_disassembly_is_the_same_in_every_process(tmp_path: Path) -> None:
    code = (
        "import hashlib; from recall_lightning.data.stdlib_text import _disassembly;"
        "print(hashlib.md5(_disassembly(9**6, seed=0)).digest())"
    )
    shown = run_python("-c", code, folder=tmp_path, PYTHONHASHSEED="1").out  # this one's is another
    assert shown.strip() == str(hashlib.md5(_disassembly(9**6, seed=0)).digest())


def test_names_are_words_and_not_numbers() -> None:
    lines = _names(0, 0).decode().split("\n")
    assert "LATIN SMALL LETTER A" in lines
    assert not [
        line for line in lines if line.startswith(("CJK UNIFIED", "TANGUT IDEO", "HANGUL SYL"))
    ]


def test_seed_alone_decides() -> None:
    def read(seed: int) -> list[list[bytes]]:
        stream = StdlibTextStream(seed=seed, **SMALL)
        return [rows(stream.train_dataset(task)) for task in range(4)]

    torch.rand(2)
    first = read(1)
    assert first == read(1)
    assert all(a != b for a, b in zip(first, read(2), strict=True))


def test_source_files_are_the_library_alone() -> None:
    files = _source_files(0)
    assert len(files) > 200
    assert files == _source_files(0) != _source_files(1)
    assert any(path.name == "argparse.py" for path in files)
    folders = {part for path in files for part in path.parts[:-1]}
    assert not folders & {"test", "site-packages", "idlelib", "encodings", "pydoc_data"}


def test_no_module_is_imported() -> None:
    before = set(sys.modules)
    StdlibTextStream(tasks=["bytecode"], **SMALL).train_dataset(0)
    assert set(sys.modules) == before


def test_global_rng_is_left_alone() -> None:
    before = torch.get_rng_state()
    next(iter(StdlibTextStream(**SMALL).train_dataloader()))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"tasks": ["source", "poetry"]}, "unknown.*poetry.*documentation"),
        ({"tasks": ["source", "source"]}, "unique"),
        ({"tasks": []}, "not empty"),
        ({"sequence_length": 1}, "sequence_length=1"),
        ({"train_sequences": 0}, "train_sequences=0"),
        ({"val_sequences": 0}, "val_sequences=0"),
        ({"epochs_per_task": [1, 2]}, "epochs_per_task"),
    ],
)
def test_bad_arguments(kwargs, message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        StdlibTextStream(**kwargs)


def test_too_little_text_says_how_much_there_is() -> None:
    stream = StdlibTextStream(tasks=["documentation"], train_sequences=100_000)
    with pytest.raises(MisconfigurationException, match=r"'documentation' has \d{6} bytes"):
        stream.train_dataset(0)
