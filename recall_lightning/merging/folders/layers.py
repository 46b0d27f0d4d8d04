"""The blocks of a model of which only the names and shapes of its tensors are known."""

import re
from collections.abc import Iterable, Mapping, Sequence
from math import prod

from recall_lightning.measuring.blocks import Block

_NUMBER = re.compile(r"(?:^|(?<=\.))\d+(?=\.)")
# what stands before the first block; everything else outside the blocks comes after the last
_BEFORE = re.compile(r"embed|wte|wpe|tok_|patch|position|shared\.|(^|\.)conv1|(^|\.)stem")


def blocks_from_names(shapes: Mapping[str, Sequence[int]]) -> list[Block]:
    """Group a model's tensors by the layers that their names number, shallow to deep.

    The outermost number in a name is its layer's (``model.layers.7.mlp.experts.3.w1``). Stacks much
    smaller than the largest, such as the two layers of a head, are no blocks. A model without
    numbered layers has a block a module, in the order of the names.

    Args:
        shapes: Tensor name to shape.

    Example:
        >>> shapes = {"embed.weight": (9, 4), "h.0.mlp": (4, 4), "h.1.mlp": (4, 4), "head": (9, 4)}
        >>> [(block.name, block.weights) for block in blocks_from_names(shapes)]
        [('h.0', ('embed.weight', 'h.0.mlp')), ('h.1', ('h.1.mlp', 'head'))]
    """
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    layers: dict[str, dict[int, int]] = {}
    for name in shapes:
        number = _NUMBER.search(name)
        if number:
            stack = layers.setdefault(name[: number.start()], {})
            index = int(number.group())
            stack[index] = stack.get(index, 0) + sizes[name]
    largest = max((sum(stack.values()) for stack in layers.values()), default=0)
    stacks = [
        prefix
        for prefix, stack in layers.items()
        if len(stack) > 1 and 10 * sum(stack.values()) >= largest
    ]
    names = [
        f"{prefix}{index}"
        for prefix in sorted(stacks, key=lambda prefix: ("decoder" in prefix, prefix))
        for index in sorted(layers[prefix])
    ]
    return blocks_named(names or _modules(shapes), shapes)


def blocks_named(names: Sequence[str], shapes: Mapping[str, Sequence[int]]) -> list[Block]:
    """Assign every tensor to one of the named blocks.

    A tensor outside goes to a block of the smallest module around it that has blocks: embeddings
    and what else stands before the layers to the first of these, final norms and heads to the last.

    Args:
        names: Names of the blocks' modules, shallow to deep.
        shapes: Tensor name to shape.
    """
    members: dict[str, list[str]] = {name: [] for name in names}
    for tensor in shapes:
        parents = [tensor[: dot.start()] for dot in re.finditer(r"\.|$", tensor)]
        inside = next((parent for parent in parents if parent in members), None)
        members[inside or _nearest(tensor, parents, names)].append(tensor)
    total = max(sum(prod(shape) for shape in shapes.values()), 1)
    sizes = {name: sum(prod(shapes[t]) for t in tensors) for name, tensors in members.items()}
    return [
        Block(name, sizes[name], sizes[name] / total, name, tuple(tensors))
        for name, tensors in members.items()
        if tensors
    ]


def _nearest(tensor: str, parents: Sequence[str], names: Sequence[str]) -> str:
    for parent in reversed(parents):
        siblings = [name for name in names if name.startswith(f"{parent}.")]
        if siblings:
            names = siblings
            break
    return names[0 if _BEFORE.search(tensor) else -1]


def _modules(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".")[0] or name for name in names))
