"""What merge rules decide from, one statistic a file.

:mod:`~recall_lightning.recall.statistics.base` says what a statistic is,
:mod:`~recall_lightning.recall.statistics.available` lists them.
"""
