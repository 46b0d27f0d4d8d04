"""LoRA adapters, merged as the updates that they stand for."""
