"""How weights are combined."""
