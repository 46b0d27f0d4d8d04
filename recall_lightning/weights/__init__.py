"""A model's weights: their names, copies of them, and files of them. Plain torch."""
