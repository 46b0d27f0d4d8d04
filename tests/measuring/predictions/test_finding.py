import pytest
import torch

from recall_lightning.measuring.predictions import Bernoulli, Categorical, FoundPredictions
from recall_lightning.measuring.predictions.loss import LossEvidence

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


def parameters_of(found, outputs, *targets):
    found.of(outputs, targets)
    return found.to_parameters(outputs, targets)(outputs)


def test_soft_labels_are_probabilities_of_classes_and_one_hot_ones_are_in_doubt():
    assert kind_of(logits(4, 3), torch.rand(4, 3).softmax(-1)) == "classes"
    found = FoundPredictions()
    assert found.of(logits(3, 3), [torch.eye(3)]).name == "binary"
    assert found.doubt == "classes"
    found = FoundPredictions()
    assert found.of(logits(4, 3), [MANY.float()]).name == "binary"
    assert found.doubt is None


def test_classes_of_outputs_that_look_like_their_inputs_are_in_doubt():
    found = FoundPredictions()
    assert found.of(logits(4, 3), [LABELS], inputs=[torch.randn(4, 3)]).name == "classes"
    assert found.doubt == "values"
    found = FoundPredictions("values")
    assert found.of(logits(4, 3), [LABELS], inputs=[torch.randn(4, 3)]).name == "values"
    assert found.doubt is None


def test_what_the_loss_tells_goes_before_what_targets_tell_until_another_loss_tells_nothing():
    found = FoundPredictions()
    assert found.see_loss(LossEvidence("values")) is None
    assert found.of(logits(4, 3), [LABELS]).name == "values"
    assert found.found == "values"
    found.see_loss(None)
    assert found.of(logits(4, 3), [LABELS]).name == "classes"


def test_what_is_set_stays_where_the_loss_tells_something_else_which_is_returned():
    found = FoundPredictions("classes")
    assert found.see_loss(LossEvidence("values")) == "values"
    assert found.of(logits(4, 3), [LABELS]).name == "classes"
    assert not found.is_shown


@pytest.mark.parametrize("shape", [(2, 4, 6, 5), (2, 4, 6), (2, 4, 6, 5, 3)])
def test_classes_are_the_second_axis_where_targets_fit_only_so(shape):
    outputs, targets = logits(*shape), torch.ones(shape[0], *shape[2:], dtype=torch.long)
    found = FoundPredictions()
    torch.testing.assert_close(parameters_of(found, outputs, targets), outputs.movedim(1, -1))
    assert found.kind.name == "classes"


def test_where_both_axes_fit_the_loss_decides():
    outputs, targets = logits(2, 6, 6, 6), torch.ones(2, 6, 6, dtype=torch.long)
    found = FoundPredictions()
    found.see_loss(LossEvidence("classes", classes_second=True))
    torch.testing.assert_close(parameters_of(found, outputs, targets), outputs.movedim(1, -1))


def test_images_in_the_outputs_shape_are_values():
    assert kind_of(logits(2, 3, 8, 8), torch.randn(2, 3, 8, 8)) == "values"


def test_probabilities_of_classes_become_logits():
    outputs = logits(4, 3).softmax(-1)
    found = parameters_of(FoundPredictions(), outputs, LABELS)
    torch.testing.assert_close(found.softmax(-1), outputs)
    torch.testing.assert_close(found, outputs.log())
    plain = logits(4, 3)
    assert parameters_of(FoundPredictions(), plain, LABELS) is plain


def test_a_loss_that_takes_probabilities_for_logits_has_the_last_word():
    outputs, found = logits(4, 3).softmax(-1), FoundPredictions()
    found.see_loss(LossEvidence("classes"))
    assert parameters_of(found, outputs, LABELS) is outputs
    found.see_loss(LossEvidence("classes"), of_own_outputs=False)  # it was one of other outputs
    torch.testing.assert_close(parameters_of(found, outputs, LABELS), outputs.log())


def test_probabilities_of_yes_become_logits():
    start = logits(4, 3)
    for evidence, own in ((LossEvidence("binary", True), True), (LossEvidence("binary"), False)):
        found = FoundPredictions()
        found.see_loss(evidence, own)
        torch.testing.assert_close(parameters_of(found, start.sigmoid(), MANY.float()), start)


def test_a_loss_of_another_kind_than_what_is_set_says_nothing_of_probabilities():
    outputs, found = logits(4, 3).softmax(-1), FoundPredictions("classes")
    found.see_loss(LossEvidence("values"))
    torch.testing.assert_close(parameters_of(found, outputs, LABELS), outputs.log())
