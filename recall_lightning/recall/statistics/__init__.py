"""What merge rules decide from, one statistic a file."""
