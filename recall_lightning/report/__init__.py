"""What a run was, on one page: in words, in tables and in figures."""
