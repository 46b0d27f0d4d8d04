import copy
import warnings

import pytest
import torch
import transformers
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader

from recall_lightning import PriorSettings, RecallCallback
from recall_lightning.measuring.beginnings import beginnings
from recall_lightning.measuring.generation import write_sequences
from recall_lightning.merging.rules import Subspace
from recall_lightning.recall.settings import MomentSettings
from recall_lightning.recall.statistics.prior import find_tokenizer
from tests.support.callbacks import Never, statistic
from tests.support.chat_templates import CHATML
from tests.support.language_modules import Language, texts
from tests.support.tiny_language_model import save_model, save_tokenizer
from tests.support.training import Plain, loader, quiet_trainer, task_data

DEGENERATE = "is degenerate: "
EMBEDDED = "model.model.embed_tokens.weight"


def subspace(**kwargs):
    return RecallCallback(**({"every": 1.0, "rule": "subspace"} | kwargs))


def chat_tokenizer(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(save_tokenizer(folder))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    return tokenizer


def measured(callback, model, data=None):
    """Fit one step, whose merge is made of what was known; return how often tokens were looked up.

    The task's own tokens come on top at its end, and are 250 to 253.
    """
    quiet_trainer(callback, limit_train_batches=1).fit(model, data or texts())
    counts = statistic(callback, "moments").known.inputs[EMBEDDED].counts.clone()
    counts[250:254] = 0
    return counts


def shares(ids, vocabulary=300):
    counts = torch.bincount(ids.flatten(), minlength=vocabulary) / ids.numel()
    counts[250:254] = 0
    return counts


def test_a_model_writes_from_its_first_token_its_chat_template_and_random_ones(tmp_path):
    tokenizer = chat_tokenizer(tmp_path)
    model = Language(tokenizer)
    begun = beginnings(model.model, tokenizer)
    assert list(begun) == ["bos", "chat", "random"]
    written = write_sequences(copy.deepcopy(model), 9, 20, 3, list(begun.values()))
    callback = subspace(prior=PriorSettings(sequences=9, tokens=20), seed=3)
    counts = measured(callback, model)
    torch.testing.assert_close(counts, shares(written.ids[written.mask.bool()]))


def test_starts_choose_among_them(tmp_path):
    model = Language(chat_tokenizer(tmp_path))
    callback = subspace(prior=PriorSettings(sequences=6, tokens=12, starts=("chat",)))
    chat = beginnings(model.model, model.tokenizer)["chat"]
    written = write_sequences(copy.deepcopy(model), 6, 12, 0, [chat])
    counts = measured(callback, model)
    torch.testing.assert_close(counts, shares(written.ids[written.mask.bool()]))


def test_a_start_that_there_is_not_is_refused_before_training():
    callback = subspace(prior=PriorSettings(starts=("chat",)))
    with pytest.raises(MisconfigurationException, match=r"prior.starts=\['chat'\] must have one"):
        quiet_trainer(callback).fit(Language(), texts())


def test_what_the_user_gives_is_what_the_model_knew():
    batches = [{"input_ids": torch.tensor([[1, 2, 3, 3]])}, {"input_ids": torch.tensor([[4, 5]])}]
    for prior in (batches, DataLoader(batches, batch_size=None)):
        counts = measured(subspace(prior=prior), Language())
        torch.testing.assert_close(counts, shares(torch.tensor([1, 2, 3, 3, 4, 5])))


def test_texts_are_read_by_the_tokenizer(tmp_path):
    tokenizer = chat_tokenizer(tmp_path)
    counts = measured(subspace(prior=["a text", "another one"]), Language(tokenizer))
    ids = torch.tensor([*tokenizer("a text").input_ids, *tokenizer("another one").input_ids])
    torch.testing.assert_close(counts, shares(ids))


def test_as_many_batches_are_read_as_of_a_task():
    batches = [{"input_ids": torch.full((1, 4), token)} for token in range(1, 9)]
    callback = subspace(prior=batches, moments=MomentSettings(batches=2))
    counts = measured(callback, Language())
    torch.testing.assert_close(counts, shares(torch.tensor([1, 2])))


def test_a_model_of_another_kind_takes_batches_and_no_warning_that_nothing_is_known():
    def merged(**kwargs):
        torch.manual_seed(0)
        callback = subspace(end_rule=Subspace(4.0), **kwargs)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="there are no inputs of what the model knew")
            quiet_trainer(callback).fit(model := Plain(), loader(0))
        assert statistic(callback, "moments").known.tasks == 2
        return model.net[0].weight

    knew = [(task_data(task)[:32][0], task_data(task)[:32][1]) for task in (1, 2)]
    loaded = DataLoader(task_data(1), batch_size=16, shuffle=True)
    assert not torch.equal(merged(prior=knew), merged(prior=knew[:1]))
    torch.testing.assert_close(merged(prior=loaded), merged(prior=DataLoader(task_data(1), 64)))


def test_without_it_the_warning_says_what_to_give():
    with pytest.warns(UserWarning, match=r"first task's own inputs stand in.* pass prior= a Data"):
        quiet_trainer(subspace()).fit(Plain(), loader(0))


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (["a text"], "prior= is texts, and there is no tokenizer for them"),
        (PriorSettings(), r"prior=PriorSettings\(…\) needs a causal language model"),
        ([torch.ones(2, 5)], "prior=: Plain could not be run"),
        ([torch.ones(2, 8), torch.ones(2, 5)], "prior=: Plain could not be run"),
        (DataLoader([], 1), "prior=.* is empty"),
    ],
)
def test_what_cannot_be_used_is_refused_before_the_first_step(prior, message):
    model = Plain()
    before = model.net[0].weight.clone()
    with pytest.raises(MisconfigurationException, match=message):
        quiet_trainer(subspace(prior=prior)).fit(model, loader(0))
    assert torch.equal(model.net[0].weight, before)


def test_a_look_at_the_users_batches_leaves_no_trace():
    model = Plain(nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2)))
    callback = Never(every=1.0, prior=DataLoader(task_data(1), 16, True))
    other = copy.deepcopy(model)
    for module, own in ((model, callback), (other, None)):
        torch.manual_seed(0)
        quiet_trainer(*([own] if own else [])).fit(module, loader(0))
    for name, tensor in other.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_what_an_untrained_model_writes_is_warned_of_with_what_to_do():
    with pytest.warns(
        UserWarning, match=f"{DEGENERATE}its tokens are all but random.* pass prior="
    ):
        measured(subspace(), Language())


def trained_to_count():
    """A model that knows what follows each token: varied sequences without repetition."""
    model = Language(vocab_size=50, hidden_size=32, eos_token_id=None, bos_token_id=None)
    following = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    hidden = nn.functional.normalize(torch.randn(50, 32), dim=1)
    with torch.no_grad():
        model.model.model.embed_tokens.weight.copy_(hidden)
        for layer in model.model.model.layers:
            for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
                weight.zero_()
        model.model.lm_head.weight.copy_(hidden[torch.argsort(following)])
    return model


def test_what_a_model_writes_that_goes_in_circles_is_warned_of_and_other_text_is_not():
    model = trained_to_count()
    prior = PriorSettings(sequences=8, tokens=40)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*" + DEGENERATE)
        data = DataLoader([{"input_ids": torch.tensor([1, 2]), "labels": torch.tensor([1, 2])}])
        quiet_trainer(subspace(prior=prior)).fit(copy.deepcopy(model), data)
    with torch.no_grad():
        model.model.lm_head.weight.mul_(20)  # it is certain of what follows
    with pytest.warns(UserWarning, match=r"\d+% of its sequences of 11 tokens repeat"):
        quiet_trainer(subspace(prior=PriorSettings(8, 128))).fit(model, data)


def test_a_tokenizer_is_the_given_ones_the_datamodules_the_modules_or_the_folders(tmp_path):
    folder = tmp_path / "model"
    save_model(folder)
    module, trainer = Language(), quiet_trainer()
    assert find_tokenizer(trainer, module) is None
    module.model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert len(find_tokenizer(trainer, module)) == 258
    module.tokenizer = own = chat_tokenizer(tmp_path / "own")
    assert find_tokenizer(trainer, module) is own
    assert len(find_tokenizer(trainer, module, str(folder))) == 258
    with pytest.raises(ValueError, match=r"prior.tokenizer='nowhere/at-all' cannot be loaded"):
        find_tokenizer(trainer, module, "nowhere/at-all")


def test_a_run_that_resumes_before_its_first_merge_knows_the_same(tmp_path):
    def known(*others, checkpoint=None):
        callback = subspace(prior=PriorSettings(sequences=6, tokens=8))
        trainer = quiet_trainer(callback, *others, enable_checkpointing=bool(others))
        trainer.fit(Language(), texts(), ckpt_path=checkpoint)
        counts = statistic(callback, "moments").known.inputs[EMBEDDED].counts.clone()
        counts[250:254] = 0  # the task's own
        return counts

    whole = known(ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1))
    assert torch.equal(known(checkpoint=tmp_path / "step=2.ckpt"), whole)
    assert whole.count_nonzero() > 10


def test_no_checkpoint_holds_what_was_given(tmp_path):
    knew = [{"input_ids": torch.full((3, 7), 77)}]
    callback = subspace(prior=knew)
    saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    quiet_trainer(callback, saver, enable_checkpointing=True).fit(Language(), texts())
    for path in tmp_path.glob("*.ckpt"):
        state = torch.load(path)["callbacks"][callback.state_key]
        assert state["settings"]["prior"] == "1 batches"
        assert "77, 77, 77" not in str(state)
