import re
from pathlib import Path

import pytest

from recall_lightning.cli import recipes
from recall_lightning.cli.main import main

ROOT = Path(__file__).parents[2]


def test_each_recipe_is_listed_with_what_it_is(capsys):
    main(["recipes"])
    rows = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    listed = {name.strip(): about.strip() for name, about in rows.items()}
    assert set(listed) == {file.stem for file in (ROOT / "recipes").glob("*.yaml")}
    assert listed["defaults"] == "What all recipes share"
    assert all(listed.values())


def test_they_are_copied_with_all_that_they_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["recipes", "--out", "recipes"])
    texts = [file.read_text() for file in Path("recipes").glob("*.yaml")]
    named = {Path(name) for text in texts for name in re.findall(r"recipes/[\w./]+\w", text)}
    assert Path("recipes/five_tasks_tiny/model") in named
    assert {name for name in named if not name.exists()} == {
        Path("recipes/five_tasks_tiny/make.py")
    }
    assert not list(Path("recipes").rglob("*.py"))


def test_an_installed_package_has_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "_PACKAGE", tmp_path)
    (tmp_path / "recipes").mkdir()
    assert recipes.recipes_folder() == tmp_path / "recipes"


def test_what_is_there_is_not_written_over(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["recipes", "--out", str(tmp_path)])
    assert stopped.value.code == 2
    assert "exists: name a folder that does not" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
