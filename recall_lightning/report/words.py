"""What a run learned, lost and cost, in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from recall_lightning.metrics.record import TaskRecord
from recall_lightning.report.numbers import decimals_for, duration, shown


def learned(record: TaskRecord) -> str:
    """Say how good the model was at each task right after its training.

    Example:
        >>> learned(TaskRecord("val/acc", True, ["a", "b"], [[0.9, 0.1], [0.5, 0.8]]))
        'Right after its own training a task scores 0.850 on average in val/acc (higher is better): from 0.800 (“b”) to 0.900 (“a”).'
        >>> learned(TaskRecord("val/loss", False, ["a"], [[1.5]]))
        'Right after its training “a”, the only task, scores 1.500 in val/loss (lower is better).'
    """  # noqa: E501
    digits = score_decimals(record)
    better = "higher is better" if record.higher_is_better else "lower is better"
    in_metric = f"in {record.score_name} ({better})"
    scores = {
        quoted(record.visit_name(row)): _at(record.matrix[row], task)
        for row, task in enumerate(record.trained)
        if row not in record.rolled_back
    }
    own = {name: score for name, score in scores.items() if math.isfinite(score)}
    missing = [name for name in scores if name not in own]
    if not own:
        return f"What was learned is not known: no task has a score {in_metric}."
    mean = shown(sum(own.values()) / len(own), digits)
    low, high = min(own, key=own.__getitem__), max(own, key=own.__getitem__)
    if len(scores) == 1 and not record.rolled_back:
        said = [f"Right after its training {low}, the only task, scores {mean} {in_metric}."]
    elif len(own) == 1:
        said = [f"Right after its own training {low} scores {mean} {in_metric}."]
    else:
        said = [
            f"Right after its own training a task scores {mean} on average {in_metric}: from "
            f"{shown(own[low], digits)} ({low}) to {shown(own[high], digits)} ({high})."
        ]
    if missing:
        said.append(f"That of {listed(missing)} was not measured and is left out.")
    untrained = [_at(record.before or [], task) for task in dict.fromkeys(record.trained)]
    if all(map(math.isfinite, untrained)):
        average = " on average" if len(untrained) > 1 else ""
        before = shown(sum(untrained) / len(untrained), digits)
        said.append(f"Before the run it was {before}{average}.")
    return " ".join(said)


def lost(record: TaskRecord, exceeded: Sequence[Mapping[str, Any]] | None = None) -> str:
    """Say what was forgotten of earlier tasks, and of what the model could do before any.

    Args:
        record: Of the run.
        exceeded: The limits that were not kept, or None where that is not known.

    Example:
        >>> lost(TaskRecord("val/acc", True, ["a", "b"], [[0.9, 0.1], [0.5, 0.8]]))
        'The one earlier task, “a”, scores 0.400 worse at the end than at its best since its own training: it fell from 0.900 to 0.500.'
        >>> lost(TaskRecord("val/loss", False, ["a", "b"], [[1.0, 3.0], [1.0, 1.5]]))
        'Nothing was forgotten: “a”, the one earlier task, scores no worse at the end than at its best since its own training.'
    """  # noqa: E501
    said = [*_lost_of_tasks(record), *_lost_of_probes(record)]
    if record.rolled_back:
        names = [quoted(record.visit_name(row)) for row in record.rolled_back]
        what = "task was" if len(names) == 1 else "tasks were"
        said.append(
            f"{len(names)} {what} rolled back ({listed(names)}) as a limit was not kept: the "
            "weights of before were put back, and what was learned of "
            f"{'it' if len(names) == 1 else 'them'} was given up."
        )
    if record.last_is_retuned:
        said.append(
            "The last merge was made again afterwards: all scores are of the weights of before, "
            "and those that there are now were not measured."
        )
    if record.last_is_early:
        said.append(
            "The last task ended behind its last validation: all scores are of the weights of "
            "then, and those of the task's end were not measured."
        )
    if exceeded:
        was = "limit was" if len(exceeded) == 1 else "limits were"
        stopped = ", and the fit was stopped there" * bool(exceeded[-1].get("stopped"))
        said.append(
            f"{len(exceeded)} {was} not kept: {'; '.join(map(not_kept, exceeded))}{stopped}."
        )
    return " ".join(said)


def left(record: TaskRecord) -> str | None:
    """Say what all tasks score at the end; None of one alone, or where that is not known.

    Example:
        >>> left(TaskRecord("val/acc", True, ["a", "b"], [[0.9, 0.1], [0.5, 0.8]]))
        'The 2 tasks score 0.650 on average at the end.'
        >>> left(TaskRecord("val/acc", True, ["a", "b"], [[0.9, 0.1], [0.5, 0.8]], retuned=[1]))
        'The 2 tasks score 0.650 on average before the last merge was made again.'
    """
    tasks, average = len(set(record.trained)), record.summary().get("average")
    if tasks < 2 or average is None:
        return None
    when = "before the last task's end" if record.last_is_early else "at the end"
    when = "before the last merge was made again" if record.last_is_retuned else when
    return f"The {tasks} tasks score {shown(average, score_decimals(record))} on average {when}."


def not_kept(one: Mapping[str, Any]) -> str:
    """Say which limit was not kept, of an entry of ``ForgettingMonitor.exceeded``.

    Example:
        >>> not_kept({"task": "b", "name": "a", "value": 0.25, "limit": 0.1})
        '“a” lost 0.250 after “b”, where 0.100 was allowed'
        >>> not_kept({"task": "b", "name": "a", "value": 0.25, "limit": 0.1, "mended": True})
        '“a” lost 0.250 after “b”, where 0.100 was allowed, until another merge that keeps it took its place'
    """  # noqa: E501
    name, value, limit = one["name"], one["value"], one["limit"]
    digits = decimals_for([value or 0.0, limit])
    whole = name in ("forgetting", "estimated_forgetting", "quadratic_forgetting")
    what = f"{name.replace('_', ' ')} was" if whole else f"{quoted(name)} lost"
    allowed = f"after {quoted(one['task'])}, where {shown(limit, digits)} was allowed"
    mended = ", until another merge that keeps it took its place" if one.get("mended") else ""
    return f"{what} {_amount(value, digits)} {allowed}{mended}"


def boundaries_found(record: TaskRecord) -> str | None:
    """Say where boundaries were found that nobody announced; None where nothing looked for them.

    Example:
        >>> found = [{"visit": 0, "step": 66, "began": 60, "signal": "loss"}]
        >>> boundaries_found(TaskRecord("val/acc", True, ["a"], [[0.9]], found_boundaries=found))
        '1 boundary was found that nobody had announced, after step 60, by the loss 6 steps later.'
        >>> boundaries_found(TaskRecord("val/acc", True, ["a"], [[0.9]], found_boundaries=[]))
        'No boundary was found in the data, in which nobody had announced any.'
    """
    if record.found_boundaries is None:
        return None
    if not record.found_boundaries:
        return "No boundary was found in the data, in which nobody had announced any."
    found = record.found_boundaries
    steps = [str(each["began"]) for each in found]
    signals = dict.fromkeys(f"the {each['signal']}" for each in found)
    late = sorted({each["step"] - each["began"] for each in found})
    later = f"{late[0]} to {late[-1]}" if len(late) > 1 else str(late[0])
    several = len(found) > 1
    return (
        f"{len(found)} {'boundaries were' if several else 'boundary was'} found that nobody had "
        f"announced, after step{'s' * several} {listed(steps)}, by {listed(list(signals))} {later} "
        "steps later."
    )


def cost(record: TaskRecord, merges: Sequence[Mapping[str, Any]] | None = None) -> str:
    """Say how long training and its merges took; what is measured between merges is in neither.

    Args:
        record: Of the run.
        merges: The merges, or None where that is not known.

    Example:
        >>> cost(TaskRecord("val/acc", True, ["a"], [[0.9]], seconds=80.0))
        'Training took 1 min 20 s, validation included; of merges nothing is recorded.'
        >>> merges = [{"probe_seconds": 1.5, "merge_seconds": 0.5}]
        >>> cost(TaskRecord("val/acc", True, ["a"], [[0.9]], seconds=80.0), merges)
        'Training took 1 min 20 s, validation included; 2.0 s of it went into 1 merge (2.5 %), not counting what is measured between merges.'
    """  # noqa: E501
    said = f"Training took {duration(record.seconds)}, validation included"
    if not merges:
        return f"{said}; of merges nothing is recorded."
    seconds = merge_seconds(merges)
    count = f"{len(merges)} merge{'s' if len(merges) > 1 else ''}"
    share = f" ({100 * seconds / record.seconds:.2g} %)" if seconds < record.seconds else ""
    return (
        f"{said}; {duration(seconds)} of it went into {count}{share}, not counting what is "
        "measured between merges."
    )


def refitted(merges: Mapping[str, Mapping[str, Any]]) -> str:
    """Say after which merges a classifier's last layer was fitted anew; nothing where none was.

    Args:
        merges: The last merge of each task, by the task's name.

    Example:
        >>> refitted({"a": {}, "b": {"refitted": "head"}, "c": {"refitted": "head"}})
        'With the merges of “b” and “c” the last layer, head, was fitted anew.'
    """
    tasks = [quoted(name) for name, merge in merges.items() if merge.get("refitted")]
    if not tasks:
        return ""
    layer = next(merge["refitted"] for merge in merges.values() if merge.get("refitted"))
    of = f"merge{'s' if len(tasks) > 1 else ''} of {listed(tasks)}"
    return f"With the {of} the last layer, {layer}, was fitted anew."


def merge_seconds(merges: Sequence[Mapping[str, Any]]) -> float:
    """Return what all merges took, with what they measured.

    Example:
        >>> merge_seconds([{"probe_seconds": 1.5, "merge_seconds": None}])
        1.5
    """
    return sum(merge.get(n) or 0.0 for merge in merges for n in ("probe_seconds", "merge_seconds"))


def score_decimals(record: TaskRecord) -> int:
    """Return how many decimals all scores of a run are written with."""
    rows = [*record.matrix, *record.probes, record.before or [], record.probes_before or []]
    return decimals_for(score for row in rows for score in row)


def quoted(name: object) -> str:
    """Put a name in quotes.

    Example:
        >>> quoted("a")
        '“a”'
    """
    return f"“{name}”"


def listed(names: Sequence[str]) -> str:
    """Join names as a sentence does.

    Example:
        >>> listed(["a", "b", "c"])
        'a, b and c'
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _lost_of_tasks(record: TaskRecord) -> list[str]:
    digits, by_name = score_decimals(record), record.lost()
    last = record.trained[-1]
    earlier = [task for task in dict.fromkeys(record.trained) if task != last]
    if record.found_boundaries and len(record.trained) == 1:
        return [
            "What was lost is not known from the task matrix, which has one row for the whole fit: "
            "the scores over training show what happened after each boundary that was found."
        ]
    if not earlier:
        return ["There was no earlier task to forget."]
    falls = {task: by_name.get(record.task_names[task], math.nan) for task in earlier}
    unknown = [task for task in earlier if not math.isfinite(falls[task])]
    known = {task: fall for task, fall in falls.items() if math.isfinite(fall)}
    said = []
    if known:
        said.append(_fall(record, known, digits, alone=len(earlier) == 1))
    if unknown:
        names = listed([quoted(record.task_names[task]) for task in unknown])
        one = len(unknown) == 1
        said.append(
            f"What was lost of {names} is not known: {'it has' if one else 'they have'} no score "
            f"of {'its' if one else 'their'} own training or of the end."
        )
    return said


def _fall(record: TaskRecord, falls: Mapping[int, float], digits: int, alone: bool) -> str:
    """Say how far the earlier tasks fell whose scores are known."""
    worst = max(falls, key=falls.__getitem__)
    name, most = quoted(record.task_names[worst]), falls[worst]
    if not most:
        if len(falls) == 1:
            who = f"{name}, the one earlier task, scores" if alone else f"{name} scores"
            return (
                f"Nothing was forgotten: {who} no worse at the end than at its best since its own "
                "training."
            )
        return (
            f"Nothing was forgotten: none of the {len(falls)} earlier tasks scores worse at the "
            "end than at its best since its own training."
        )
    now = record.matrix[-1][worst]
    then = now + most if record.higher_is_better else now - most
    verb = "fell" if record.higher_is_better else "rose"
    move = f"{verb} from {shown(then, digits)} to {shown(now, digits)}"
    if len(falls) == 1:
        who = f"The one earlier task, {name}," if alone else name
        return (
            f"{who} scores {_amount(most, digits)} worse at the end than at its best since its own "
            f"training: it {move}."
        )
    mean = record.summary().get("forgetting", sum(falls.values()) / len(falls))
    since = "at the end than at its best since its own training"
    if shown(abs(mean), digits) == shown(0, digits) or mean < 0:
        gained = f" ({_amount(-mean, digits)} better)" if mean < 0 else ""
        start = f"On average over {len(falls)} earlier tasks nothing was forgotten{gained}"
    else:
        start = (
            f"On average over {len(falls)} earlier tasks a task scores {_amount(mean, digits)} "
            f"worse {since}"
        )
    return f"{start}; {name} lost most, {_amount(most, digits)}: it {move}."


def _lost_of_probes(record: TaskRecord) -> list[str]:
    if not record.probe_names or not record.probes:
        return []
    digits, falls = score_decimals(record), record.lost()
    said = []
    for name in record.probe_names:
        fall = falls.get(name)
        if fall is None:
            said.append(f"Of the held-out {quoted(name)} nothing was measured before training.")
        elif math.isinf(fall):
            said.append(f"The held-out {quoted(name)} has no score at the end.")
        elif fall > 0:
            amount = _amount(fall, digits)
            said.append(f"The held-out {quoted(name)} scores {amount} worse than before training.")
        else:
            said.append(f"The held-out {quoted(name)} scores no worse than before training.")
    return said


def _amount(value: float | None, digits: int) -> str:
    """Write a difference that is not zero, however small it is."""
    if value is None:
        return "more than any number"
    text = shown(value, digits)
    return (
        text if float(text.replace("−", "-").replace("∞", "inf")) else f"less than {10**-digits:g}"
    )


def _at(row: Sequence[float], task: int) -> float:
    return row[task] if task < len(row) else math.nan
