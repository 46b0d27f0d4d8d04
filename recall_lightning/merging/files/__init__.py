"""Model files of any size: read lazily, written as the merge goes, there whole or not at all."""
