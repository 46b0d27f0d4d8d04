import json
import shlex

import pytest

from recall_lightning.compare.plan import Comparison, normal_recipes, parse_seeds, parse_settings

KNOWN = ["finetune", "joint", "ewc", "recall"]


def settings(methods="", sweeps=(), variants=()):
    return parse_settings([m for m in methods.split(",") if m], sweeps, variants, KNOWN)


def labels(*args):
    return [each.label for each in settings(*args)]


def comparison(folder, **changes):
    (folder / "a.yaml").write_text("seed_everything: 0")
    given = {
        "recipes": (str(folder / "a.yaml"),), "settings": settings("finetune,ewc"),
        "seeds": (3, 4), "out": folder / "out",
    }  # fmt: skip
    return Comparison(**(given | changes))


def test_a_sweep_stands_in_place_of_its_method():
    assert labels("finetune,ewc,recall", ["ewc.strength=1,10"]) == [
        "finetune", "ewc strength=1", "ewc strength=10", "recall",
    ]  # fmt: skip


def test_sweeps_of_one_method_are_multiplied():
    swept = settings("finetune", ["ewc.strength=1,10", "ewc.decay=0.5,1"])
    values = [(e.swept["ewc.strength"], e.swept["ewc.decay"]) for e in swept[1:]]
    assert values == [("1", "0.5"), ("1", "1"), ("10", "0.5"), ("10", "1")]
    assert swept[1].arguments == ("--ewc.strength=1", "--ewc.decay=0.5")


def test_commas_in_brackets_belong_to_a_value():
    swept = settings("", ["recall.rule.strength=[0.5,0.2],{'a':1,'b':2},3"])
    values = [setting.swept["recall.rule.strength"] for setting in swept]
    assert values == ["[0.5,0.2]", "{'a':1,'b':2}", "3"]


def test_a_variant_is_a_method_with_arguments_under_a_name():
    plain, of_recall = settings(
        "", variants=["slow ewc=ewc:--ewc.strength '1 0'", "seldom=--recall.every 0.5"]
    )
    assert (plain.label, plain.method) == ("slow ewc", "ewc")
    assert plain.arguments == ("--ewc.strength", "1 0")
    assert (of_recall.method, of_recall.arguments) == ("recall", ("--recall.every", "0.5"))


def test_a_variant_may_be_a_method_as_it_is():
    (as_it_is,) = settings("", variants=["plain= ewc "])
    assert (as_it_is.label, as_it_is.method, as_it_is.arguments) == ("plain", "ewc", ())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((""), "nothing to compare"),
        (
            ("finetun"),
            "unknown method 'finetun': use finetune, joint, ewc, recall; did you mean finetune",
        ),
        (("finetune", ["ew.strength=1"]), "unknown method 'ew'"),
        (("finetune", ["ewc.strength"]), "must be METHOD.ARGUMENT"),
        (("finetune", ["ewc.strength=1,,2"]), "empty value"),
        (("finetune", ["ewc.strength=1,1"]), "one twice"),
        (("finetune", ["ewc.strength=1", "ewc.strength=2"]), "swept twice"),
        (("finetune", [], ["name"]), "must be NAME=METHOD:ARGUMENTS"),
        (("finetune", [], ["a=ewc 1"]), "beginning with '--'"),
        (("finetune", [], ["a=rbf"]), "unknown method 'rbf'"),
        (("finetune", [], ["a=ewc:--x '1"]), "quotation mark"),
        (("finetune", [], ["finetune=ewc:"]), "share a folder"),
        (("finetune,finetune",), "share a folder"),
        (("", [], ["a b=ewc:", "a_B=ewc:"]), "'a b' and 'a_B' would share a folder"),
        (("", [], ["..=ewc:"]), "cannot be the name of a folder"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(given, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        settings(*((given,) if isinstance(given, str) else given))


@pytest.mark.parametrize("text", ["0", "-1", "a", "1,1", "1,-2", ",", ""])
def test_seeds_that_are_none_are_refused(text):
    with pytest.raises(ValueError, match="--seeds"):
        parse_seeds(text)


def test_a_comma_makes_a_number_the_seed_itself():
    assert parse_seeds("7,") == (7,)


def test_seeds_are_outermost_and_folders_their_own(tmp_path):
    runs = comparison(tmp_path).runs()
    assert [run.name for run in runs] == [
        "finetune, seed 3", "ewc, seed 3", "finetune, seed 4", "ewc, seed 4",
    ]  # fmt: skip
    assert len({run.folder for run in runs}) == 4


def test_a_settings_own_arguments_come_last_and_so_win(tmp_path):
    own = settings("", ["ewc.strength=7"])
    (run, *_) = comparison(tmp_path, settings=own, arguments=("--ewc.strength", "1")).runs()
    assert run.command[-3:] == ("--ewc.strength", "1", "--ewc.strength=7")


def test_a_run_is_done_only_for_the_same_command_and_the_same_recipes(tmp_path):
    compared = comparison(tmp_path)
    run = compared.runs()[0]
    assert not run.done
    run.folder.mkdir(parents=True)
    record = {"command": shlex.join(run.command), "state": dict(run.state.parts)}
    (run.folder / "run.json").write_text(json.dumps(record))
    assert compared.runs()[0].done
    assert not comparison(tmp_path, arguments=("--x", "1")).runs()[0].done
    (tmp_path / "defaults.yaml").write_text("trainer: {}")
    assert not compared.runs()[0].done
    (tmp_path / "defaults.yaml").unlink()
    assert compared.runs()[0].done
    (tmp_path / "a.yaml").write_text("seed_everything: 1")
    assert not compared.runs()[0].done
    assert compared.runs()[0].outdated == [str(tmp_path / "a.yaml")]
    assert compared.runs()[1].outdated == []


def test_a_record_that_tells_no_state_is_of_another(tmp_path):
    run = comparison(tmp_path).runs()[0]
    run.folder.mkdir(parents=True)
    (run.folder / "run.json").write_text(json.dumps({"command": shlex.join(run.command)}))
    assert not run.done
    assert run.outdated == ["what it reads"]


def test_half_a_record_is_no_record(tmp_path):
    run = comparison(tmp_path).runs()[0]
    run.folder.mkdir(parents=True)
    (run.folder / "run.json").write_text('{"command": "recall')
    assert not run.done


def test_recipes_must_be_there(tmp_path):
    with pytest.raises(ValueError, match="no recipe"):
        normal_recipes([])
    with pytest.raises(ValueError, match=r"none\.yaml does not exist"):
        normal_recipes([str(tmp_path / "none.yaml")])
