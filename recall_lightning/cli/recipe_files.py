"""The recipes that a command line names, and the defaults in their folders."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.utilities.exceptions import MisconfigurationException


def defaults_beside(args: Sequence[str]) -> list[str]:
    """Return the ``defaults.yaml`` of each recipe's folder."""
    beside = [recipe.parent / "defaults.yaml" for recipe in _recipes(args)]
    return list(dict.fromkeys(str(file) for file in beside if file.is_file()))


def check_recipes(args: Sequence[str]) -> None:
    """Check that the recipes on a command line, and the defaults beside them, are readable YAML.

    A recipe alone must name the classes of model, data and logger: others have them from defaults.

    Raises:
        MisconfigurationException: One sentence with the file and the line; a file that is not there
            is left to whoever opens it.
    """
    recipes = _recipes(args)
    files = [*map(Path, defaults_beside(args)), *recipes]
    for file in files:
        if not _is_there(file):
            continue
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            where = f", line {mark.line + 1}" if mark is not None else ""
            raise MisconfigurationException(
                f"{file}{where} is no YAML ({error.problem or error.context}): mend it"
            ) from error
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise MisconfigurationException(
                f"{file} cannot be read as YAML ({error}): mend it"
            ) from error
        if not isinstance(content, dict) and (content is not None or file in recipes):
            raise MisconfigurationException(
                f"{file} holds no settings: write them as 'name: value'"
            )
        nameless = next(_without_class(content), None) if len(files) == 1 else None
        if nameless and not any(word.startswith(f"--{nameless}") for word in args):
            raise MisconfigurationException(
                f"{file} gives init_args of {nameless} without its class_path, and there is no "
                "defaults.yaml in its folder that does: copy that too, or name the class"
            )


def _is_there(file: Path) -> bool:
    try:
        return file.is_file()
    except OSError:  # settings that are written on the command line itself
        return False


def _without_class(recipe: Any) -> Iterator[str]:
    """Name the settings that give arguments of a class, and not which one."""
    for name in ("trainer.logger", "data", "model"):  # of others a class may have its own default
        settings = recipe
        for key in name.split("."):
            settings = settings.get(key) if isinstance(settings, dict) else None
        if isinstance(settings, dict) and "init_args" in settings and "class_path" not in settings:
            yield name


def _recipes(args: Sequence[str]) -> list[Path]:
    found = []
    for option, value in zip(args, [*args[1:], ""], strict=False):
        if option.startswith(("--config=", "-c=")):
            option, value = option.split("=", 1)
        if option in ("-c", "--config"):
            found.append(Path(value))
    return found
