"""What touches the Trainer: its loops, loggers, strategies and other callbacks."""
