"""Messages as jsonargparse writes them, and what is made of them."""

import pytest
from lightning.pytorch import LightningDataModule

from recall_lightning.cli.complaints import sentence

CALLBACK = """Parser key "trainer.callbacks":
  Does not validate against any of the Union subtypes
  Subtypes: [list[lightning.pytorch.callbacks.callback.Callback], <class 'NoneType'>]
  Errors:
    - Problem with given class_path 'lightning.pytorch.callbacks.ModelCheckpoint':
        {problem}
    - Problem with given class_path 'lightning.Callback':
        Option 'save_top_k' is not accepted
    - Expected a <class 'NoneType'>
  Given value type: <class 'jsonargparse._util.NestedArg'>
  Given value: NestedArg(key='save_top_k', val='x')"""


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        ("Option 'save_topk' is not accepted",
         "--trainer.callbacks: there is no argument 'save_topk' of ModelCheckpoint; did you mean "
         "save_top_k?"),
        ('Parser key "save_top_k":\n          Expected a <class \'int\'>. Got value: x',
         "--trainer.callbacks.save_top_k 'x' must be an int"),
        ("the following arguments are required: dirpath",
         "--trainer.callbacks: ModelCheckpoint needs 'dirpath': set --trainer.callbacks.dirpath"),
        ("Something else went wrong",
         "--trainer.callbacks (ModelCheckpoint) 'x': Something else went wrong"),
    ],
)  # fmt: skip
def test_of_a_class_that_was_named_its_own_problem_is_told(problem, said):
    assert sentence(CALLBACK.format(problem=problem)) == said


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("tests.cli.test_complaints.makes_one", "a function that makes one must say so: def "
         "makes_one(…) -> LightningDataModule"),
        ("torch.nn.Linear", "it must be a LightningDataModule, or a function whose return type "
         "says that it makes one"),
    ],
)  # fmt: skip
def test_what_makes_no_datamodule_is_told_how_it_would(path, said):
    problem = f"Import path {path} does not correspond to a subclass of LightningDataModule"
    message = f'Parser key "data":\n  {problem}\n  Given value: {path}'
    assert sentence(message) == f"--data {path!r}: {said}"


def makes_one(seed=0):
    return LightningDataModule()


UNION = """Parser key "recall.snapshots":

  - Expected a path but x either not accessible or invalid
  - Does not validate against any of the Union subtypes
  Subtypes: [<class 'int'>, typing.Literal['all'], <class 'NoneType'>]
  Errors:
    - Expected a <class 'int'>
    - Expected a typing.Literal['all']
    - Expected a <class 'NoneType'>
  Given value type: <class 'str'>
  Given value: x"""


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (UNION, "--recall.snapshots 'x' must be an int or 'all'"),
        ('Parser key "method":\n  Expected a typing.Literal[\'a\', \'b\']. Got value: c',
         "--method 'c' must be one of 'a', 'b'"),
        ('Parser key "score":\n  Expected a <class \'str\'>\n'
         "  Expected a typing.Literal['f1', 'exact_match']. Got value: exactmatch",
         "--score 'exactmatch' must be one of 'f1', 'exact_match'; did you mean exact_match?"),
        ("Subcommand 'fit' does not accept option 'trainer.max_epohs'",
         "no option 'trainer.max_epohs'; did you mean trainer.max_epochs?"),
        ("the following arguments are required: fit.model",
         "--model is missing: name a recipe that says it, -c RECIPE"),
        ('Parser key "config": File does not exist: \'a.yaml\'',
         "--config: File does not exist: 'a.yaml'"),
        ("unrecognized arguments: stray", "unrecognized arguments: stray"),
    ],
)  # fmt: skip
def test_the_option_the_value_and_what_it_may_be(message, said):
    assert sentence(message, ["--trainer.max_epochs"]) == said


def test_what_is_not_known_here_stays_as_it_is_up_to_a_length():
    assert sentence("Something\n  new") == "Something new"
    assert len(sentence("x" * 999)) < 210


def test_arguments_that_a_class_hands_to_its_base_are_known_too():
    said = sentence(
        """Parser key "data":
  Problem with given class_path 'recall_lightning.data.DigitsStream':
    Option 'epoch_per_task' is not accepted"""
    )
    assert said.endswith("'epoch_per_task' of DigitsStream; did you mean epochs_per_task?")
