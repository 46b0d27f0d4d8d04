import pytest
import torch

from recall_lightning.measuring.predictions import Bernoulli, Categorical, FoundPredictions

LABELS = torch.tensor([0, 1, 2, 0])
MANY = torch.tensor([[0, 1, 1], [1, 0, 0], [1, 1, 1], [0, 0, 0]])


def logits(*shape):
    return torch.randn(*shape, requires_grad=True)


def kind_of(outputs, *targets, setting="auto"):
    kind = FoundPredictions(setting).of(outputs, targets)
    return kind and kind.name


@pytest.mark.parametrize(
    ("shape", "targets"),
    [
        ((4, 3), LABELS),
        ((4, 3), LABELS[:, None]),
        ((4, 3), torch.tensor([0, -100, 1, -100], dtype=torch.int32)),
        ((2, 5, 3), torch.ones(2, 5, dtype=torch.long)),
    ],
    ids=["labels", "a column", "some without", "tokens"],
)
def test_integers_below_the_number_of_outputs_are_classes(shape, targets):
    assert kind_of(logits(*shape), targets) == "classes"


@pytest.mark.parametrize(
    ("shape", "of_targets"), [((4, 3), (4, 3)), ((4, 1), (4,)), ((2, 5, 1), (2, 5))]
)
def test_floating_point_targets_of_the_outputs_shape_are_values(shape, of_targets):
    assert kind_of(logits(*shape), torch.randn(of_targets)) == "values"


@pytest.mark.parametrize("dtype", [torch.float, torch.bfloat16, torch.long, torch.bool])
def test_zeros_and_ones_in_the_outputs_shape_are_binary(dtype):
    assert kind_of(logits(4, 3), MANY.to(dtype)) == "binary"
    assert kind_of(logits(4, 1), MANY[:, 0].to(dtype)) == "binary"
    assert kind_of(logits(4, 1), MANY[:, :1].to(dtype)) == "binary"


def test_zeros_and_ones_for_probabilities_are_values():
    assert kind_of(logits(4, 3).sigmoid(), MANY.float()) == "values"
    assert kind_of(logits(4, 3).sigmoid(), MANY) == "values"


def test_one_number_that_is_neither_makes_values_of_them():
    targets = MANY.float()
    targets[2, 1] = 0.5
    assert kind_of(logits(4, 3), targets) == "values"
    assert kind_of(logits(4, 3), MANY.float(), targets) == "values"


def test_float_targets_of_the_outputs_shape_win_over_integers_that_would_fit():
    assert kind_of(logits(4, 3), torch.randn(4, 3), LABELS) == "values"


@pytest.mark.parametrize(
    "targets",
    [
        (),
        (torch.zeros(4, 8),),
        (torch.tensor([0, 1, 2, 3]),),
        (torch.tensor([True, False, True, False]),),
        (torch.zeros(3, dtype=torch.long),),
        (2 * MANY,),
        (torch.zeros(4, 3, dtype=torch.complex64) + 2,),
    ],
    ids=["none", "other floats", "a class too many", "booleans", "another number", "counts", "i"],
)
def test_what_the_targets_do_not_tell_is_not_guessed(targets):
    assert kind_of(logits(4, 3), *targets) is None


def test_images_of_logits_are_not_guessed_but_can_be_set():
    targets = torch.zeros(2, 6, 6, dtype=torch.long)
    assert kind_of(logits(2, 6, 6, 6), targets) is None
    assert kind_of(logits(2, 6, 6, 6), targets, setting="classes") == "classes"


def test_what_was_found_stays_while_it_fits_and_no_longer():
    found = FoundPredictions()
    assert found.kind is None
    assert found.of(logits(4, 1), [torch.randn(4)]).name == "values"
    assert found.of(logits(4, 1), [torch.ones(4)]).name == "values"
    assert found.of(logits(4, 3), [LABELS]).name == "classes"
    assert found.of(logits(4, 3), []) is None
    assert found.kind.name == "classes"


@pytest.mark.parametrize(
    ("setting", "shape", "targets"),
    [
        ("classes", (4, 3), torch.eye(4, 3)),
        ("classes", (4, 3), None),
        ("values", (4, 3), MANY.float()),
        ("values", (4, 1), MANY[:, 0]),
        ("binary", (4, 3), torch.rand(4, 3)),
        ("binary", (4, 3), torch.zeros(4, 8)),
    ],
)
def test_what_is_set_settles_what_cannot_be_told(setting, shape, targets):
    targets = [] if targets is None else [targets]
    assert kind_of(logits(*shape), *targets, setting=setting) == setting


@pytest.mark.parametrize(
    ("setting", "targets", "told"),
    [
        ("classes", torch.randn(4, 3), "values"),
        ("values", LABELS, "classes"),
        ("binary", LABELS, "classes"),
        (Bernoulli(), 2 + torch.rand(4, 3), "values"),
    ],
)
def test_what_is_set_and_contradicted_is_one_clear_error(setting, targets, told):
    name = getattr(setting, "name", setting)
    message = rf"set to '{name}', .*\(4, 3\) have targets.* mean '{told}': set predictions='{told}'"
    with pytest.raises(ValueError, match=message):
        kind_of(logits(4, 3), targets, setting=setting)


def test_a_name_that_no_kind_has_is_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match=r"'clases' is no kind.*'auto', 'binary', 'classes', 'v"):
        FoundPredictions("clases")


def test_an_object_is_taken_as_it_is():
    kind = Categorical()
    assert FoundPredictions(kind).of(logits(4, 3), [LABELS]) is kind


def test_what_was_found_goes_on_after_a_resume_and_what_was_set_is_not_replaced():
    counts = [torch.tensor([[0.0], [3.0]])]
    first, resumed, named = FoundPredictions(), FoundPredictions(), FoundPredictions("binary")
    first.of(torch.zeros(2, 1), counts)
    for other in (resumed, named):
        other.restore(first.found)
    assert resumed.of(torch.zeros(2, 1), [torch.tensor([[0.0], [1.0]])]).name == "values"
    assert named.kind.name == "binary"
    assert named.found is None
