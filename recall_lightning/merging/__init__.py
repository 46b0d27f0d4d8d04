"""How weights are combined: a library of its own, which the callback and the command use.

- :mod:`~recall_lightning.merging.kernels`: arithmetic on named weights, in place or in chunks;
- :mod:`~recall_lightning.merging.methods`: the merge methods, functions of one tensor a model;
- :mod:`~recall_lightning.merging.adapters`: LoRA adapters, merged as the updates they stand for;
- :mod:`~recall_lightning.merging.rules`: how coefficients follow from what was measured, one rule
  a module;
- :mod:`~recall_lightning.merging.map_coefficients`: of linear maps, which are matrices, and
  :mod:`~recall_lightning.merging.kronecker_coefficients`, of both their sides;
- :mod:`~recall_lightning.merging.blockwise`: snapshots merged into live weights, block by block;
- :mod:`~recall_lightning.merging.block_settings`: numbers that differ over depth or by name;
- :mod:`~recall_lightning.merging.files.merge`: models on disk.
"""
