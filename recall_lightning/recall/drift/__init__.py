"""Boundaries that nobody announces: a change is noticed, and the task ended before it."""
