"""Warnings where what is known of tasks is not of those that the model was trained on."""

from lightning.pytorch.utilities.rank_zero import rank_zero_warn


def tell_of_no_step(name: str) -> None:
    """Warn that a task has ended without an optimizer step.

    Args:
        name: The task's.
    """
    rank_zero_warn(
        f"RecallCallback: no optimizer step was taken in the task {name!r} (losses of None, an "
        "accumulation longer than the task, or steps that AMP skipped): nothing is merged at its "
        "end, and later merges protect nothing of it"
    )


def tell_of_what_stays() -> None:
    """Warn that a task is rolled back of which a checkpoint already knew what it had measured."""
    rank_zero_warn(
        "RecallCallback: the run was resumed between the end of the task that is rolled back and "
        "its validation, so what was measured of the task stays: resume from an earlier checkpoint "
        "to leave it out"
    )
