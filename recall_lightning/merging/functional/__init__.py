"""Merge methods as functions of tensors."""
