import pytest

from recall_lightning.merging.rules import (
    Cka,
    Cosine,
    Importance,
    KfacImportance,
    KfacSubspace,
    Product,
    Rbf,
    Subspace,
    rule_by_name,
)

BY_NAME = {
    "rbf": Rbf,
    "cka": Cka,
    "cosine": Cosine,
    "importance": Importance,
    "kfac_importance": KfacImportance,
    "subspace": Subspace,
    "kfac_subspace": KfacSubspace,
}


@pytest.mark.parametrize(("name", "kind"), BY_NAME.items())
def test_each_name_builds_its_rule_with_its_defaults(name, kind):
    built = rule_by_name(name)
    assert type(built) is kind
    assert vars(built) == vars(kind())


def test_a_product_is_named_by_its_factors():
    product = rule_by_name("rbf * importance")
    assert isinstance(product, Product)
    assert [type(rule) for rule in product.rules] == [Rbf, Importance]


def test_a_rule_that_has_no_defaults_says_how_to_give_its_arguments():
    with pytest.raises(ValueError, match=r"end_rule='uniform' has arguments .* end_rule=Uniform"):
        rule_by_name("uniform", "end_rule")


@pytest.mark.parametrize("name", ["mean", "rbf*mean"])
def test_an_unknown_name_lists_the_known_ones(name):
    with pytest.raises(ValueError, match="rule='mean' is unknown: use one of ") as refused:
        rule_by_name(name)
    assert all(known in str(refused.value) for known in (*BY_NAME, "uniform"))
