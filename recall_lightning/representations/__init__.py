"""What a model knows: its blocks, their hidden states, typical samples, similarity."""
