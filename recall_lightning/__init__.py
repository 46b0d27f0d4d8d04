"""Continual training for PyTorch Lightning: merge snapshot and live weights while training runs."""
