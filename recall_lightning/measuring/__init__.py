"""What a model knows: its blocks and linear maps, and what they compute on given batches.

Hidden states and how alike they are, the moments of what linear maps are given, and how predictions
depend on them. Plain torch.
"""
