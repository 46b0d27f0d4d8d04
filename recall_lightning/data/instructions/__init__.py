"""Instructions as training data: rows in, prompts and answers as tokens out."""
