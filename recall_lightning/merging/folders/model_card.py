"""What a merged model's folder holds beside its weights."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from recall_lightning.merging.folders.settings import MergeReport, MergeSettings
from recall_lightning.merging.folders.union import UnitedVocabulary
from recall_lightning.merging.folders.writing import ModelWriter, companion_files
from recall_lightning.weights.reading import ModelFiles


def write_companions(
    writer: ModelWriter,
    donor: ModelFiles,
    settings: MergeSettings,
    report: MergeReport,
    adapter_config: Mapping[str, Any] | None,
    dtype: str,
    united: UnitedVocabulary | None = None,
) -> None:
    """Write config, tokenizer, ``merge.yaml``, ``coefficients.json`` and the model card.

    ``merge.yaml`` holds the settings, for ``recall-lightning merge --config``.

    Args:
        writer: Of the output folder.
        donor: Whose config, generation config and tokenizer are copied, if it has a folder.
        settings: Of the merge.
        report: Of the merge.
        adapter_config: Of merged adapters.
        dtype: What the weights are written as, which the config is to say.
        united: The tokens of all models, where their vocabularies were made one.
    """
    replaced = {} if united is None else united.files()
    for file in companion_files(donor.folder) if donor.folder else []:
        if file.name == "config.json" and donor.config is not None:
            key = "torch_dtype" if "torch_dtype" in donor.config else "dtype"
            says = donor.config | {key: dtype}
            if united is not None:
                says = _with_rows(says, united)
            config = json.dumps(says, indent=2, ensure_ascii=False)
            writer.write_file(file.name, config + "\n")
        elif file.name in replaced and file.parent == donor.folder:
            text = json.dumps(replaced[file.name], indent=2, ensure_ascii=False)
            writer.write_file(file.name, text + "\n")
        else:
            writer.copy_file(file, file.relative_to(donor.folder) if donor.folder else None)
    if adapter_config is not None:
        writer.write_file("adapter_config.json", json.dumps(adapter_config, indent=2) + "\n")
    writer.write_file("merge.yaml", yaml.safe_dump(settings.flat(), sort_keys=False))
    writer.write_file("coefficients.json", json.dumps(_coefficients(report), indent=2) + "\n")
    writer.write_file("README.md", _card(settings, report, adapter_config is not None))


def _with_rows(config: dict[str, Any], united: UnitedVocabulary) -> dict[str, Any]:
    """Return a config that counts the rows of the united vocabulary."""
    if isinstance(config.get("text_config"), Mapping) and "vocab_size" not in config:
        return config | {"text_config": _with_rows(dict(config["text_config"]), united)}
    return config | {"vocab_size": max(config.get("vocab_size", 0), united.least_rows)}


def _coefficients(report: MergeReport) -> dict[str, Any]:
    blocks = []
    for block in report.blocks:
        row: dict[str, Any] = {"name": block.name, "parameters": block.parameters}
        row["weights"] = [given.get(block.name) for given in report.weights]
        if report.similarity:
            row["similarity"] = [given[block.name] for given in report.similarity]
        blocks.append(row)
    discarded = dict(report.discarded_energy)
    return {"blocks": blocks} | ({"discarded_energy": discarded} if discarded else {})


def _card(settings: MergeSettings, report: MergeReport, adapter: bool) -> str:
    names = [Path(path).name for path in settings.models]
    library = [f"library_name: {'peft' if adapter else 'transformers'}"] if report.loads else []
    base = [f"| base | `{settings.base}` |"] if settings.base else []
    lines = [
        "---",
        *library,
        "tags:",
        "- merge",
        f"- {settings.method}",
        "---",
        "",
        f"# {Path(settings.out).name}",
        "",
        f"{len(names)} {'adapters' if adapter else 'models'} merged by `{settings.method}` with "
        "recall_lightning.",
        "",
        "| | model |",
        "|---|---|",
        *(f"| {i} | `{path}` |" for i, path in enumerate(settings.models, start=1)),
        *base,
        "",
        "## Weights",
        "",
        "Means over each block's tensors. Embeddings count to the first block, final norm and head "
        "to the last.",
        "",
        *_table(report, len(names)),
    ]
    if report.discarded_energy:
        worst = max(report.discarded_energy.values())
        lines += [
            "",
            f"Bringing the merged updates ΔW back to their rank discarded up to {worst:.2%} of a "
            "module's ‖ΔW‖²; `coefficients.json` has every module's.",
        ]
    lines += ["", "## Settings", "", "```yaml"]
    lines += [yaml.safe_dump(settings.flat(), sort_keys=False) + "```", ""]
    return "\n".join(lines)


def _table(report: MergeReport, models: int) -> Sequence[str]:
    numbers = range(1, models + 1)
    head = ["block", *(f"weight {i}" for i in numbers)]
    if report.similarity:
        head += [f"similarity {i}" for i in numbers]
    rows = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for block in report.blocks:
        values = [given.get(block.name) for given in report.weights]
        values += [given[block.name] for given in report.similarity]
        cells = ["–" if value is None else f"{value:.4f}" for value in values]
        rows.append("| " + " | ".join([f"`{block.name}`", *cells]) + " |")
    return rows
