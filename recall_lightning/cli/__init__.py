"""The command ``recall-lightning``."""
