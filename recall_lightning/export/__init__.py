"""Checkpoints of language models as folders of Hugging Face."""
