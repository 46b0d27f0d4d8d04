"""What modules score where a model diverged, and what a task's language asks for."""

import json
import math

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader

from recall_lightning.data import InstructionStream, InstructionTask, Template
from recall_lightning.models import CausalLMModule, ClassifierModule
from tests.support.tiny_language_model import save_model

CHOOSE = Template("{q}", choices=("yes", "no"), label="label")
WRITE = {
    score: Template("{q}", "{a}", score=score, max_new_tokens=3)
    for score in ("exact_match", "squad_exact_match", "f1", "bleu")
}
SPELL = Template("{q}", choices=("yes", "no"), label="label", generate=True, max_new_tokens=3)
ROWS = [{"q": f"is {n} even?", "a": "no", "label": 0, "zh": "我喜欢吃苹果。"} for n in range(4)]


@pytest.fixture
def folder(tmp_path):
    save_model(tmp_path)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def stream(folder, template):
    rows = str(folder / "rows.jsonl")
    task = InstructionTask("one", template, rows, rows)
    return InstructionStream([task], str(folder), max_length=48, batch_size=3)


def scores(folder, template, model):
    trainer = Trainer(default_root_dir=folder, accelerator="cpu", enable_progress_bar=False)
    return trainer.validate(model, datamodule=stream(folder, template), verbose=False)[0]


@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("template", [CHOOSE, SPELL, *WRITE.values()])
def test_a_model_whose_predictions_are_no_numbers_scores_nan(folder, template, broken):
    model = CausalLMModule(str(folder))
    model.model.lm_head.weight.data.fill_(broken)
    found = scores(folder, template, model)
    assert "val/score" in found
    assert all(math.isnan(value) for value in found.values()), found
    healthy = scores(folder, template, CausalLMModule(str(folder)))
    assert not any(math.isnan(value) for value in healthy.values()), healthy


def test_one_row_of_nan_is_not_lost_among_others(folder):
    """The embedding of one letter, that one prompt has."""
    model = CausalLMModule(str(folder))
    letter = stream(folder, CHOOSE).tokenizer("3")["input_ids"]
    model.model.get_input_embeddings().weight.data[letter] = math.nan
    for template in (CHOOSE, *WRITE.values()):
        assert math.isnan(scores(folder, template, model)["val/score"])


def test_a_classifier_of_nan_is_not_as_good_as_class_0_is_frequent(tmp_path):
    net = torch.nn.Linear(4, 3)
    net.weight.data.fill_(math.nan)
    data = [(torch.randn(4), 0) for _ in range(5)]
    trainer = Trainer(default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False)
    (found,) = trainer.validate(ClassifierModule(net, 3), DataLoader(data), verbose=False)
    assert math.isnan(found["val/acc"])
    assert math.isnan(found["val/loss"])


def test_a_classifier_of_another_number_of_classes_is_refused(tmp_path):
    data = DataLoader([(torch.randn(4), 0)])
    trainer = Trainer(default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False)
    with pytest.raises(MisconfigurationException, match=r"\(1, 3\) for 1 samples.*num_classes=2"):
        trainer.validate(ClassifierModule(torch.nn.Linear(4, 3), 2), data, verbose=False)


def test_exact_match_comes_along_with_f1_by_squads_name(folder):
    found = scores(folder, WRITE["f1"], CausalLMModule(str(folder)))
    assert {"val/score", "val/squad_exact_match"} <= set(found)
    assert "val/exact_match" not in found


def chinese(score, **kwargs):
    return Template("{q}", "{zh}", score=score, **kwargs)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (
            chinese("bleu"),
            "task 'one': score='bleu' counts words, and its tokenizer '13a'.*language",
        ),
        (Template("{q}", "ฉันชอบกิน", score="bleu", language="zh"), "its tokenizer 'zh'"),
        (Template("{q}", "りんごがすき", score="bleu", language="zh"), "its tokenizer 'zh'"),
        (chinese("bleu", language="fr"), "its tokenizer '13a'"),
        (chinese("bleu", bleu_tokenizer="intl"), "its tokenizer 'intl'"),
        (chinese("f1"), "task 'one': score='f1' counts words.*use score: exact_match"),
        (chinese("bleu", bleu_tokenizer="13b"), "task 'one': bleu_tokenizer='13b' must be one of"),
    ],
)
def test_a_score_of_words_is_refused_where_no_spaces_part_them(folder, template, said):
    with pytest.raises(MisconfigurationException, match=said):
        stream(folder, template).val_dataset(0)


@pytest.mark.parametrize(
    ("language", "package"), [("ja", r"'sacrebleu\[ja\]'"), ("ko-KR", r"'sacrebleu\[ko\]'")]
)
def test_a_tokenizer_that_needs_a_package_names_it(folder, language, package, monkeypatch):
    from sacrebleu.tokenizers import tokenizer_ja_mecab, tokenizer_ko_mecab

    monkeypatch.setattr(tokenizer_ja_mecab, "MeCab", None)
    monkeypatch.setattr(tokenizer_ko_mecab, "mecab_ko", None, raising=False)
    monkeypatch.setattr(tokenizer_ko_mecab, "MeCab", None, raising=False)
    with pytest.raises(MisconfigurationException, match=f"pip install {package}"):
        stream(folder, chinese("bleu", language=language))


@pytest.mark.parametrize(
    "kwargs", [{"language": "zh"}, {"language": "zh_TW"}, {"bleu_tokenizer": "char"}]
)
def test_a_languages_own_tokenizer_counts_its_words(folder, kwargs, monkeypatch):
    monkeypatch.setattr(CausalLMModule, "answers", lambda *_: ["我喜欢苹果。"] * 4)
    monkeypatch.setattr(InstructionStream, "eval_batch_size", 4, raising=False)
    data = stream(folder, chinese("bleu", **kwargs))
    data.val_dataset(0)  # is not refused
    (loader,) = data.val_dataloader()
    assert loader.collate_fn.keywords["tokenizer"] in ("zh", "char")


def test_where_there_is_no_answer_bleu_compares_with_what_is_to_be_said(folder, monkeypatch):
    (folder / "rows.jsonl").write_text('{"q": "who?", "r": []}\n{"q": "who?", "r": ["a b c d"]}\n')
    template = Template(
        "{q}", references="r", no_answer="there is none at all", score="bleu", max_new_tokens=2
    )
    model = CausalLMModule(str(folder))
    model.answers = lambda questions: ["there is none at all", "a b c d"]
    assert scores(folder, template, model)["val/score"] == 1
    model.answers = lambda questions: ["", "a b c d"]
    assert scores(folder, template, model)["val/score"] < 0.5
