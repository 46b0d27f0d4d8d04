"""What a model is made of, as a merge sees it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from recall_lightning.measuring.blocks import Block, find_blocks
from recall_lightning.measuring.linear_maps import LinearMap, find_linear_maps
from recall_lightning.merging.lora.pairs import LoraPair, find_lora_pairs


@dataclass(frozen=True)
class Structure:
    """The parts of a model that are measured and merged: found once a task, and handed on.

    Attributes:
        blocks: Shallow to deep.
        maps: The linear maps among the weights; empty where no rule asks for them.
        lora_pairs: Factors that are merged as one update.
        others: Weight matrices that are no linear map, to the reason why.

    Example:
        >>> Structure([Block("0", 2, 1.0, "0", ("0.weight", "0.bias"))]).weights
        ['0.weight', '0.bias']
    """

    blocks: Sequence[Block] = ()
    maps: Sequence[LinearMap] = ()
    lora_pairs: Sequence[LoraPair] = ()
    others: Mapping[str, str] = field(default_factory=dict)

    @property
    def weights(self) -> list[str]:
        """The names of all weights, block by block."""
        return [name for block in self.blocks for name in block.weights]

    def without_maps(self, reasons: Mapping[str, str]) -> "Structure":
        """Return this structure, some weights of which have turned out to be no linear maps.

        Args:
            reasons: Their names, to why they are none.

        Example:
            >>> from recall_lightning.measuring.linear_maps import LinearMap
            >>> structure = Structure(maps=[LinearMap("w", None, "linear", ("",), 3)])
            >>> structure.without_maps({"w": "it is scaled"})
            Structure(blocks=(), maps=[], lora_pairs=(), others={'w': 'it is scaled'})
        """
        maps = [each for each in self.maps if each.weight not in reasons]
        return replace(self, maps=maps, others={**self.others, **reasons})

    @classmethod
    def of(
        cls, module: nn.Module, patterns: Sequence[str] | None = None, with_maps: bool = True
    ) -> "Structure":
        """Find the structure of a model as it is now.

        Args:
            module: The model.
            patterns: Shell-style patterns of the modules to take as blocks; None finds them.
            with_maps: Whether linear maps are wanted.

        Raises:
            ValueError: If no block is found, or an adapter can't be merged.
        """
        blocks, pairs = find_blocks(module, patterns), find_lora_pairs(module)
        if not with_maps:
            return cls(blocks, lora_pairs=pairs)
        factors = {pair.a: pair.b for pair in pairs}
        layers = {pair.a: pair.module for pair in pairs}
        maps, others = find_linear_maps(module, factors, layers)
        return cls(blocks, maps, pairs, others)
