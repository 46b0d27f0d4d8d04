from pathlib import Path

import pytest
import yaml

from recall_lightning.merging.folders.settings import MergeSettings, ProbeSettings

TWO = ["a", "b"]


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"weights": [[0.5, 0.1], {"*.mlp": 0.3, "*": 1}]},
        {"method": "ties", "base": "c", "density": {"*": [0.1, 0.2]}, "elect": "count"},
        {"method": "recall", "probe": "t", "seed": 3, "max_length": 9, "temperature": 0.5},
        {"method": "dare", "base": "c", "density": 0.5, "seed": 3},
        {"method": "regmean", "statistics": ["s", "t"], "ridge": 0.2},
        {"rank": "sum", "out_dtype": "bfloat16", "shard_size": 3000, "normalize": False},
    ],
)
def test_settings_survive_a_yaml_file(given):
    settings = MergeSettings.from_flat({"models": TWO, "out": "o"} | given)
    text = yaml.safe_dump(settings.flat())
    again = MergeSettings.from_flat(yaml.safe_load(text) | {"out": "o"})
    assert again.flat() == settings.flat()
    assert settings.options.items() <= again.options.items()  # defaults are written out
    assert given.items() <= settings.flat().items()


def test_paths_and_tuples_can_be_written_too():
    settings = MergeSettings((Path("a"), Path("b")), Path("o"), base=Path("c"), weights=(1, (2, 3)))
    expected = {"models": TWO, "method": "linear", "base": "c", "weights": [1, [2, 3]]}
    assert yaml.safe_load(yaml.safe_dump(settings.flat())) == expected


PROBE = ProbeSettings("t")
TIES = {"method": "ties", "base": "c"}


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"models": []}, "0 models are given: a merge needs two or more"),
        ({"models": ["a"]}, "1 model is given"),
        ({"models": "a b"}, "models='a b' must be a list of paths"),
        ({"models": ["a", 3]}, "models=3 must be a path"),
        ({"models": ["a", ""]}, "models='' must be a path"),
        ({"models": {"a": 1, "b": 2}}, "must be a list of paths"),
        ({"out": 3}, "out=3 must be a path"),
        ({"base": ["x"]}, r"base=\['x'\] must be a path"),
        ({"method": "magic"}, "method='magic' is unknown: use 'linear', 'slerp'"),
        ({"method": ["linear"]}, "is unknown"),
        ({"models": ["a", "b", "c"], "method": "slerp"}, "3 models are given: slerp needs two"),
        ({"weights": [1]}, "1 weight is given for 2 models"),
        ({"weights": [1, 2, 3]}, "3 weights are given for 2 models"),
        ({"weights": {"a": 1, "b": 2}}, "must be a list: give one each model"),
        ({"weights": "12"}, "must be a list: give one each model"),
        ({"weights": [1, "x"]}, r"weights\[1\]: 'x' must be a number"),
        ({"weights": [1, []]}, r"weights\[1\]: \[\] must be a number"),
        ({"weights": [1, [[1]]]}, r"weights\[1\]: \[\[1\]\] must be a number"),
        ({"weights": [1, True]}, r"weights\[1\]: True must be a number"),
        ({"weights": [1, {"*": None}]}, r"weights\[1\]: None must be a number"),
        ({"weights": [1, {3: 1}]}, r"weights\[1\]=.* must have patterns of names as keys"),
        ({"weights": [1, float("nan")]}, r"weights\[1\]=nan must be finite"),
        ({"weights": [1, {"*": [0, float("inf")]}]}, "must be finite"),
        ({"weights": [1, 10**400]}, "must be finite"),
        ({"method": "ties", "options": {"density": 0.5}}, "ties needs the model .*: give base"),
        (TIES, "ties needs a density: give it"),
        (TIES | {"options": {"density": []}}, r"density: \[\] must be a number"),
        (TIES | {"options": {"density": "x"}}, "density: 'x' must be a number"),
        (TIES | {"options": {"density": 0.5, "elect": "me"}}, "elect='me' is unknown: use 'sum'"),
        (TIES | {"options": {"density": 0.5, "seed": 1}}, "ties has no option 'seed': it has dens"),
        ({"options": {"density": 1}}, "linear has no option 'density': it has normalize"),
        ({"options": {"normalize": "no"}}, "normalize='no' must be true or false"),
        ({"method": "fisher", "options": {"x": 1}, "statistics": TWO}, "it has none"),
        ({"method": "fisher"}, "fisher needs statistics, .* 0 are given for 2"),
        ({"method": "regmean", "statistics": "ab"}, "statistics='ab' must be a list of paths"),
        ({"statistics": ["s", "t"]}, "linear uses no statistics"),
        ({"method": "recall"}, "recall needs a probe file"),
        ({"probe": PROBE}, "linear measures nothing"),
        ({"method": "recall", "probe": PROBE, "weights": [1, 1]}, "computes the weights itself"),
        (
            {"method": "recall", "probe": PROBE, "options": {"temperature": 0}},
            "temperature=0 must be positive",
        ),
        (
            {"method": "recall", "probe": PROBE, "options": {"temperature": {"*": [1, -1]}}},
            "must be positive",
        ),
        ({"dtype": "bfloat16"}, "dtype='bfloat16' is unknown: use 'float32' or 'float64'"),
        ({"out_dtype": "int8"}, "out_dtype='int8' is unknown"),
        ({"rank": 0}, "rank=0 must be a whole number from 1 on or 'sum'"),
        ({"rank": 0.5}, "rank=0.5 must be"),
        ({"rank": True}, "rank=True must be"),
        ({"rank": "all"}, "rank='all' must be"),
        ({"shard_size": 0.5}, "shard_size=0.5 must be"),
    ],
)
def test_what_does_not_fit_is_one_sentence(given, match):
    with pytest.raises(ValueError, match=match) as caught:
        MergeSettings(**{"models": TWO, "out": "o"} | given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"file": 3}, "probe=3 must be a path"),
        ({"measure": "l2"}, "measure='l2' is unknown: use 'rbf', 'cka' or 'cosine'"),
        ({"typical_samples": 1}, "typical_samples=1 must be a whole number from 2 on"),
        ({"pool_size": 0.5}, "pool_size=0.5 must be"),
        ({"seed": -1}, "seed=-1 must be"),
    ],
)
def test_a_probe_that_does_not_fit_is_one_sentence(given, match):
    with pytest.raises(ValueError, match=match):
        ProbeSettings(**{"file": "t"} | given)


def test_methods_that_were_renamed_are_still_read_with_a_warning():
    for former, name in (("importance", "fisher"), ("subspace", "regmean")):
        with pytest.warns(FutureWarning, match=f"'{former}' is deprecated .*: use '{name}'"):
            settings = MergeSettings(TWO, "o", method=former, statistics=TWO)
        assert settings.method == name


def test_an_output_folder_is_needed():
    with pytest.raises(ValueError, match="no output folder is given"):
        MergeSettings.from_flat({"models": TWO})
