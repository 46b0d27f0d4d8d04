"""What a model knows: its blocks, their hidden states, typical samples, similarity.

Also what its linear maps are given (:mod:`~recall_lightning.representations.linear_maps`, with
:mod:`~recall_lightning.representations.map_moments`) and how its predictions depend on them
(:mod:`~recall_lightning.representations.curvature`), and sequences that a language model writes
itself (:mod:`~recall_lightning.representations.generation`).
"""
