"""How much of the snapshot a weight takes: a number, or a matrix of a linear map."""
