"""Models on disk: read lazily, merged tensor by tensor, written whole or not at all."""
