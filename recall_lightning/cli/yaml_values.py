"""YAML as the settings of commands are written in it."""

import re
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """Plain values, with numbers as YAML 1.2 has them and no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} is there twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$"),
    list("-+.0123456789"),
)


def read_yaml(text: str) -> Any:
    """Read a text of YAML: ``1e-1`` is a number, which to YAML 1.1 it is not.

    Raises:
        yaml.YAMLError: If it is none, or a mapping has a key twice.

    Example:
        >>> read_yaml("weights: [1e-1, 9E-1, .5e0, 2e3, 1, a]")
        {'weights': [0.1, 0.9, 0.5, 2000.0, 1, 'a']}
    """
    return yaml.load(text, _Loader)
