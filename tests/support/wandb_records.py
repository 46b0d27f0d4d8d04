"""What an offline run of Weights & Biases has recorded, read back from its file."""

import json
from pathlib import Path

from recall_lightning.callbacks._trainer.wandb_history import records_in


def records(folder):
    """Yield the records of the one process that logged below a folder."""
    (file,) = record_files(folder)
    yield from records_in(file)


def record_files(folder):
    """Return the files of records below a folder, one of each process that logged."""
    return sorted(Path(folder).rglob("run-*.wandb"), key=lambda file: file.stat().st_mtime)


def config_of(folder):
    """Return the run's config."""
    config = {}
    for record in records(folder):
        for update in [*record.run.config.update, *record.config.update]:
            config[update.key or ".".join(update.nested_key)] = json.loads(update.value_json)
    return config


def history_of(folder):
    """Return the points that were logged, each a dict by key."""
    return points_of(records(folder))


def points_of(found):
    """Return the points among records."""
    points = [record.history.item for record in found if record.HasField("history")]
    return [
        {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}
        for items in points
    ]


def summary_of(folder):
    """Return the run's summary, as its updates leave it; of media a dict."""
    summary = {}
    for record in records(folder):
        for update in record.summary.update:
            keys = [*update.nested_key] or [update.key]
            place = summary
            for key in keys[:-1]:
                place = place.setdefault(key, {})
            place[keys[-1]] = json.loads(update.value_json)
    return summary


def metrics_of(folder):
    """Return what was defined of metrics: name or pattern to its axis and its summaries."""
    found = {}
    for record in records(folder):
        if record.HasField("metric"):
            one = record.metric
            kinds = {field.name for field, value in one.summary.ListFields() if value}
            found[one.name or one.glob_name] = (one.step_metric, kinds)
    return found


def artifacts_of(folder):
    """Return the artifacts of our own kinds, each a dict."""
    return [
        {
            "name": one.name,
            "type": one.type,
            "metadata": json.loads(one.metadata or "{}"),
            "aliases": set(one.aliases),
            "files": {content.path: content.local_path for content in one.manifest.contents},
        }
        for one in (r.artifact for r in records(folder) if r.HasField("artifact"))
        if one.type != "run_table"
    ]


def files_of(folder):
    """Return the names of the files that the run keeps."""
    return {file.path for r in records(folder) for file in r.files.files}
