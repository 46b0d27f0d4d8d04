"""Every program answers a call for help before it measures anything."""

import runpy
import sys
from pathlib import Path

import pytest

STARTS_ANOTHER = {"faults"}
PROGRAMS = sorted(
    path.stem
    for path in Path(__file__).parent.glob("[!_]*.py")
    if not path.stem.startswith("test_") and path.stem not in STARTS_ANOTHER
)


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_is_told_and_nothing_is_measured(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"benchmarks.{name}", run_name="__main__")
    assert ended.value.code == 0
    assert "usage:" in capsys.readouterr().out
