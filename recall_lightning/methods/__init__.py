"""Known ways of forgetting less, one a file, and the table of them."""
