"""RECALL on real models and real data, from packages that anyone can install."""
