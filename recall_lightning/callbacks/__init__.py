"""What is handed to a Trainer, and the parts that it is made of; baselines have a folder."""
