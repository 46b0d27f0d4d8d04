"""Known ways of forgetting less, one a file, to compare with."""
