import pytest

from recall_lightning.merging.rules import RULE_NAMES, RuleOptions, rule_by_name
from recall_lightning.merging.rules.importance import ImportanceRule
from recall_lightning.merging.rules.product import ProductRule
from recall_lightning.merging.rules.similarity import SimilarityRule
from recall_lightning.merging.rules.subspace import SubspaceRule
from recall_lightning.merging.rules.uniform import UniformRule


def test_each_name_builds_its_rule_with_its_own_options():
    options = RuleOptions(
        temperature=0.5, sigma=2.0, importance_scale=7.0, new_inputs=3.0, ridge=0.1, mix=0.9
    )
    built = {name: rule_by_name(name, options) for name in RULE_NAMES}
    for name in ("rbf", "cka", "cosine"):
        assert isinstance(built[name], SimilarityRule)
        assert (built[name].measure, built[name].temperature, built[name].sigma) == (name, 0.5, 2.0)
    assert isinstance(built["uniform"], UniformRule)
    assert isinstance(built["importance"], ImportanceRule)
    assert built["importance"].scale == 7.0
    assert isinstance(built["subspace"], SubspaceRule)
    balance = built["subspace"].balance
    assert (balance.new, balance.ridge, balance.mix) == (3.0, 0.1, 0.9)


def test_a_product_is_named_by_its_factors():
    product = rule_by_name("rbf * importance")
    assert isinstance(product, ProductRule)
    assert [type(rule) for rule in product.rules] == [SimilarityRule, ImportanceRule]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mean", {}, "rule='mean' is unknown: use one of " + ", ".join(RULE_NAMES)),
        ("rbf*mean", {}, "rule='mean' is unknown"),
        ("rbf", {"temperature": 0.0}, "temperature=0.0 must be a positive"),
        ("rbf", {"sigma": "mean"}, "sigma='mean' must be a positive number or 'median'"),
        ("rbf", {"sigma": -1.0}, "sigma=-1.0"),
        ("importance", {"importance_scale": 0.0}, "importance_scale=0.0 must be a positive"),
        ("importance", {"importance_scale": float("inf")}, "importance_scale=inf must be"),
        ("subspace", {"new_inputs": -1.0}, "new_inputs=-1.0 must be a positive"),
        ("subspace", {"new_inputs": float("nan")}, "new_inputs=nan must be a positive"),
        ("subspace", {"ridge": 0.0}, "ridge=0.0 must be a positive"),
        ("subspace", {"mix": 1.5}, r"mix=1.5 must lie in \[0, 1\]"),
    ],
)
def test_bad_names_and_options_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        rule_by_name(name, RuleOptions(**options))
