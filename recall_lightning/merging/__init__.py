"""How weights are combined: a library of its own, which the callback and the command use.

- :mod:`~recall_lightning.merging.functional`: merge methods as functions of one tensor a model;
- :mod:`~recall_lightning.merging.lora`: LoRA adapters, merged as the updates they stand for;
- :mod:`~recall_lightning.merging.rules`: how coefficients follow from what was measured, one rule
  a module;
- :mod:`~recall_lightning.merging.coefficients`: what rules give, numbers or matrices;
- :mod:`~recall_lightning.merging.blockwise`: snapshots merged into live weights, block by block;
- :mod:`~recall_lightning.merging.block_settings`: numbers that differ over depth or by name;
- :mod:`~recall_lightning.merging.folders`: models on disk.
"""
