"""What is handed to a Trainer."""
