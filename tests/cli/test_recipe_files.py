import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning.cli.recipe_files import check_recipes, defaults_beside

NAMELESS = "trainer: {logger: {init_args: {name: mine}}}"


def test_defaults_are_looked_for_beside_the_recipe(tmp_path):
    (tmp_path / "defaults.yaml").touch()
    recipe = str(tmp_path / "mine.yaml")
    assert defaults_beside(["fit", "-c", recipe]) == [str(tmp_path / "defaults.yaml")]
    assert defaults_beside(["fit", f"--config={recipe}"]) == [str(tmp_path / "defaults.yaml")]
    assert defaults_beside(["fit", "-c", str(tmp_path / "none" / "mine.yaml")]) == []


def test_a_class_that_only_missing_defaults_would_name_is_said_to_be_missing(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(NAMELESS)
    given = ["fit", "-c", str(recipe)]
    with pytest.raises(MisconfigurationException, match=r"init_args of trainer\.logger without"):
        check_recipes(given)
    check_recipes([*given, "--trainer.logger", "CSVLogger"])
    recipe.write_text("model: {class_path: Net, init_args: {inner: {init_args: {width: 3}}}}")
    check_recipes(given)  # the class may have a default of its own there
    recipe.write_text(NAMELESS)
    (tmp_path / "defaults.yaml").write_text("trainer: {logger: {class_path: CSVLogger}}")
    check_recipes(given)
