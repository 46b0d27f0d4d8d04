"""The command ``recall-lightning doctor``: text to paste into an issue, and an exit code."""

from __future__ import annotations

import io
import logging
import os
import platform
import sys
import tempfile
import warnings
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

from recall_lightning.__about__ import __version__
from recall_lightning.cli.arguments import RaisingParser, refuse
from recall_lightning.doctor.installed import packages, version_of
from recall_lightning.doctor.without_paths import told, without_paths
from recall_lightning.plugins import Plugins

_PROGRAM = "recall-lightning doctor"
_WIDTH = 22


def doctor_parser() -> ArgumentParser:
    """Build the command's parser.

    Example:
        >>> doctor_parser().parse_args([])
        Namespace()
    """
    return RaisingParser(
        prog=_PROGRAM,
        description="Print versions, devices and optional parts, and try training, merging, saving "
        "and resuming for half a minute. The text is made to be pasted into an issue: it holds no "
        "path and no environment variable. Exit code 0 if all is well, 1 if not.",
    )


def main(args: Sequence[str]) -> None:
    """Run the command.

    Args:
        args: The command line after ``doctor``.

    Raises:
        SystemExit: With code 1 if a needed package is missing or the self-test fails.
    """
    try:
        doctor_parser().parse_args(args)
    except ValueError as error:
        refuse(_PROGRAM, error)
    well = [_print_packages(), _print_machine()]
    _print_plugins()
    well.append(_print_self_test())
    print(f"\n{'all is well' if all(well) else 'something is wrong: see above'}")
    if not all(well):
        raise SystemExit(1)


def _row(name: str, text: object) -> None:
    print(f"  {name:<{_WIDTH}}  {text}", flush=True)


def _print_packages() -> bool:
    print("needed")
    _row("recall-lightning", __version__)
    _row("python", platform.python_version())
    try:
        found = list(packages())
    except (PackageNotFoundError, ImportError) as error:
        _row("packages", f"unknown: {' '.join(told(error)[0].split())}")
        return False
    for package in [each for each in found if not each.extra]:
        _row(package.name, package)
    print("optional")
    for package in [each for each in found if each.extra]:
        _row(f"{package.extra}: {package.name}", package)
    return not any(package.missing for package in found)


def _print_machine() -> bool:
    print("machine")
    _row("system", platform.platform())
    _row("cores", len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count())
    try:
        import torch
    except Exception as error:
        _row("devices", f"unknown: {told(error)[0]}")
        return False
    _row("torch threads", torch.get_num_threads())
    for device in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(device).total_memory / 2**30
        about = f"{torch.cuda.get_device_name(device)}, {memory:.0f} GiB, CUDA {torch.version.cuda}"
        _row(f"cuda:{device}", about)
    if torch.backends.mps.is_available():
        _row("mps", "there")
    if not torch.cuda.is_available():
        _row("cuda", "none")
    return True


def _print_plugins() -> None:
    """Print what other packages bring, if any does; what of it is broken is not this package's."""
    try:
        from recall_lightning.data.plugins import STREAM_PLUGINS
        from recall_lightning.merging.rules.named import RULE_PLUGINS
        from recall_lightning.methods.table import METHOD_PLUGINS
    except Exception:  # the self-test says why
        return
    rows = {}
    found: dict[str, Plugins[Any]] = {
        "rule": RULE_PLUGINS,
        "method": METHOD_PLUGINS,
        "stream": STREAM_PLUGINS,
    }
    for kind, plugins in found.items():
        with _silence():  # what they say when they are imported
            complaints = plugins.complaints()
        for name, package in plugins.packages.items():
            about = f"{kind} of {package} {version_of(package) or ''}".rstrip()
            rows[name] = without_paths(complaints.get(name, about))
    if rows:
        print("of other packages")
    for name, about in rows.items():
        _row(name, about)


def _print_self_test() -> bool:
    print("self-test", flush=True)
    name = "import"
    shown = sys.stdout
    try:
        with _silence(), tempfile.TemporaryDirectory() as folder:
            from recall_lightning.doctor.self_test import steps

            for name, seen in steps(Path(folder)):
                if seen:
                    with redirect_stdout(shown):
                        _row(name, f"passed: {seen}")
    except Exception as error:  # of whatever kind: saying so is what the command is for
        first, *places = told(error)
        _row(name, f"FAILED: {first}")
        for place in places:
            _row("", place)
        return False
    return True


@contextmanager
def _silence() -> Iterator[None]:
    """Keep what Lightning and others say to themselves."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with (
        warnings.catch_warnings(),
        redirect_stdout(io.StringIO()),
        redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
