"""The blocks of a model: found by its structure, or named by patterns."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.parametrize import is_parametrized

from recall_lightning.weights.naming import canonical_name, named_submodules, named_weights

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)
_CONTAINERS = (nn.ModuleList, nn.Sequential)


@dataclass(frozen=True)
class Block:
    """A part of a model that is measured as one and merged with one coefficient.

    Attributes:
        name: The name of the block's (first) module.
        parameters: How many numbers a merge writes in this block.
        share: ``parameters`` as a fraction of all blocks'.
        output: The name of the module whose output is the block's representation.
        weights: Names of the weights that belong to the block (see
            :func:`recall_lightning.weights.naming.named_weights`).
    """

    name: str
    parameters: int
    share: float
    output: str
    weights: tuple[str, ...]


@dataclass
class _Seed:
    """A block before the weights outside every block are assigned."""

    name: str
    members: list[str]
    output: str


def find_blocks(module: nn.Module, patterns: Sequence[str] | None = None) -> list[Block]:
    """Find the blocks of a model and assign every trainable weight to one of them.

    Without ``patterns`` the structure decides, the first that applies:

    1. repeated blocks: the children of each ``ModuleList`` or ``Sequential`` of alike, composite
       modules (the layers of a transformer, of both stacks of an encoder-decoder). Several such
       ``Sequential`` side by side are the stages of a convolutional network: each is one block;
    2. otherwise every layer, in order of registration; normalisation and parameter-free layers
       belong to the layer before them.

    Weights outside the blocks go to a block of the smallest module around them that has blocks:
    what comes before them and every ``nn.Embedding`` to the first, what comes after (final norm,
    output head) to the last one registered before it. A tied weight is registered, and merged,
    once; a module that stands in several places is one block, by its first name.

    Args:
        module: The model.
        patterns: Shell-style patterns of module names (``"model.layers.*"``); each outermost
            module with parameters that matches is a block.

    Returns:
        The blocks that hold at least one trainable weight, in order of registration, which is
        shallow to deep in the models of this world.

    Raises:
        ValueError: If no block is found, or a pattern matches no module with parameters.

    Example:
        >>> mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> [(block.name, block.parameters, block.output) for block in find_blocks(mlp)]
        [('0', 40, '1'), ('2', 18, '2')]
    """
    modules = named_submodules(module)
    first_names = _first_names(module)
    if patterns:
        seeds = _matching(modules, first_names, patterns)
    else:
        seeds = _found_once(_repeated(module) or _layers(module), first_names)
    if not seeds:
        raise ValueError(
            f"no block was found in {type(module).__name__}: name its blocks by module name, as in "
            "blocks=['encoder.layers.*']"
        )
    owners = _assign_weights(module, modules, seeds)
    weights = named_weights(module)
    total = sum(weight.numel() for weight in weights.values())
    blocks = []
    for seed in seeds:
        names = tuple(name for name in weights if owners[name] == seed.name)
        size = sum(weights[name].numel() for name in names)
        if names:
            blocks.append(Block(seed.name, size, size / total, seed.output, names))
    return blocks


def _first_names(module: nn.Module) -> dict[str, str]:
    """Map every name of every submodule to its first: a shared one has several."""
    named = list(module.named_modules(remove_duplicate=False))
    first: dict[int, str] = {}
    for name, child in named:
        first.setdefault(id(child), canonical_name(name))
    return {canonical_name(name): first[id(child)] for name, child in named}


def _found_once(seeds: list[_Seed], first_names: Mapping[str, str]) -> list[_Seed]:
    """Leave out blocks found under another name before, and give all names as their first."""
    found: dict[str, _Seed] = {}
    for seed in seeds:
        name = first_names[seed.name]
        members = [first_names[member] for member in seed.members]
        found.setdefault(name, _Seed(name, members, first_names[seed.output]))
    return list(found.values())


def _matching(
    modules: dict[str, nn.Module], first_names: Mapping[str, str], patterns: Sequence[str]
) -> list[_Seed]:
    candidates = [name for name, module in modules.items() if name and has_parameters(module)]
    chosen: list[str] = []
    for pattern in patterns:
        matched = {first_names[name] for name in first_names if fnmatchcase(name, pattern)}
        matches = [name for name in candidates if name in matched]
        if not matches:
            shown = ", ".join(candidates[:8]) + (", …" if len(candidates) > 8 else "")
            raise ValueError(
                f"the block pattern {pattern!r} matches no module with parameters; the model has "
                f"{shown or 'none'}"
            )
        chosen += matches
    outermost = {n for n in chosen if not any(n.startswith(f"{other}.") for other in chosen)}
    return [_Seed(name, [name], name) for name in candidates if name in outermost]


def _repeated(module: nn.Module) -> list[_Seed]:
    """Find stacks of alike composite modules, if they make up most of the model's layers."""
    names: list[str] = []
    for parent_name, parent in _outside_stacks(module, ""):
        stacks = [(n, c) for n, c in parent.named_children() if _is_stack(c)]
        stages = [(n, c) for n, c in stacks if isinstance(c, nn.Sequential)]
        for child_name, child in stacks:
            name = _join(parent_name, child_name)
            if len(stages) > 1 and isinstance(child, nn.Sequential):
                names.append(name)
            else:
                names += [_join(name, n) for n, c in child.named_children() if has_parameters(c)]
    if _is_stack(module):
        names = [name for name, child in module.named_children() if has_parameters(child)]
    layers = [name for name, _ in _leaves(module, "")]
    covered = sum(any(f"{layer}.".startswith(f"{name}.") for name in names) for layer in layers)
    if len(names) < 2 or 2 * covered < len(layers):
        return []
    return [_Seed(name, [name], name) for name in map(canonical_name, names)]


def _outside_stacks(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    if _is_stack(module):
        return
    yield name, module
    for child_name, child in module.named_children():
        yield from _outside_stacks(child, _join(name, child_name))


def _is_stack(module: nn.Module) -> bool:
    """Tell whether a container holds composite modules, at least half of them of one class."""
    if not isinstance(module, _CONTAINERS):
        return False
    children = [child for child in module.children() if has_parameters(child)]
    if not children or not all(any(map(has_parameters, c.children())) for c in children):
        return False
    return 2 * Counter(type(child) for child in children).most_common(1)[0][1] >= len(children)


def _layers(module: nn.Module) -> list[_Seed]:
    """Take every layer as a block, with the norms and parameter-free layers that follow it."""
    uses = Counter(id(c) for m in module.modules() for c in m._modules.values() if c is not None)
    seeds: list[_Seed] = []
    for name, layer in _leaves(module, "", parametrised=False):
        parent = name.rpartition(".")[0]
        follows = bool(seeds) and seeds[-1].name.rpartition(".")[0] == canonical_name(parent)
        in_sequential = isinstance(module.get_submodule(parent), nn.Sequential)
        name = canonical_name(name)
        if isinstance(layer, _NORMS) and has_parameters(layer) and follows:
            seeds[-1].members.append(name)
            seeds[-1].output = name
        elif has_parameters(layer):
            if not isinstance(layer, nn.Embedding):
                seeds.append(_Seed(name, [name], name))
        elif follows and in_sequential and uses[id(layer)] == 1:
            seeds[-1].output = name
    return seeds


def _leaves(
    module: nn.Module, name: str, parametrised: bool = True
) -> Iterator[tuple[str, nn.Module]]:
    """Walk the layers: modules without parametrised children, and torch's own layers as one."""
    own_layer = type(module).__module__.startswith("torch.nn.modules") or is_parametrized(module)
    composite = any(map(has_parameters, module.children()))
    if name and (not composite or (own_layer and not isinstance(module, _GROUPS))):
        if has_parameters(module) or not parametrised:
            yield name, module
        return
    for child_name, child in module.named_children():
        yield from _leaves(child, _join(name, child_name), parametrised)


_GROUPS = (
    nn.ModuleList,
    nn.ModuleDict,
    nn.Sequential,
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerDecoder,
)


def _assign_weights(
    module: nn.Module, modules: dict[str, nn.Module], seeds: list[_Seed]
) -> dict[str, str]:
    """Map every weight's name to its block's name."""
    position = {name: index for index, name in enumerate(modules)}
    owner_of_module = {member: seed.name for seed in seeds for member in seed.members}
    owners: dict[str, str] = {}
    for weight in named_weights(module):
        holder = weight.rpartition(".")[0]
        around = [holder]  # the holder and every module around it, innermost first
        while around[-1]:
            around.append(around[-1].rpartition(".")[0])
        inside = next((owner_of_module[m] for m in around if m in owner_of_module), None)
        if inside is None:
            inside = _nearest(holder, around, modules, position, seeds)
        owners[weight] = inside
    return owners


def _nearest(
    holder: str,
    around: list[str],
    modules: dict[str, nn.Module],
    position: dict[str, int],
    seeds: list[_Seed],
) -> str:
    for ancestor in around:
        siblings = [s for s in seeds if not ancestor or s.name.startswith(f"{ancestor}.")]
        if not siblings:
            continue
        before = [s for s in siblings if position[s.name] <= position[holder]]
        layer, name = modules[holder], holder.rpartition(".")[2]
        # some models register norms in another order than they compute them in, and name them right
        norm_of_embedding = isinstance(layer, _NORMS) and "embed" in name
        if isinstance(layer, _NORMS) and "final" in name:
            return siblings[-1].name
        if isinstance(layer, nn.Embedding) or norm_of_embedding or not before:
            return siblings[0].name
        return before[-1].name
    return seeds[-1].name


def has_parameters(module: nn.Module) -> bool:
    """Tell whether a module or any of its children has a parameter, trainable or not."""
    return any(True for _ in module.parameters())


def _join(parent: str, child: str) -> str:
    return f"{parent}.{child}" if parent else child


def format_blocks(blocks: Sequence[Block], others: Mapping[str, str] = MappingProxyType({})) -> str:
    """Return the table of blocks as text: name, number of parameters, share of all.

    Args:
        blocks: The blocks.
        others: Weights that are merged otherwise, to how and why: a line each, below the table.

    Example:
        >>> print(format_blocks(find_blocks(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)))))
        block  parameters   share
        0              40   69.0%
        1              18   31.0%
    """
    width = max(map(len, ["block", *(block.name for block in blocks)]))
    rows = [
        f"{block.name:<{width}}  {block.parameters:>10,}  {block.share:>6.1%}" for block in blocks
    ]
    notes = [f"{name}: {how}" for name, how in others.items()]
    return "\n".join([f"{'block':<{width}}  parameters   share", *rows, *notes])
