"""The command ``recall-lightning doctor``: what is installed, and whether it works."""
