"""Files of rows, one format a module."""
