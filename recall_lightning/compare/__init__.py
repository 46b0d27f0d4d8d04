"""The command ``recall-lightning compare``: methods, settings and seeds against each other.

:mod:`~recall_lightning.compare.results` reads what it leaves in a folder, for other programs.
"""
