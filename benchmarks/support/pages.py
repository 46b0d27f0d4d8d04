"""The page that a benchmark writes."""

import shlex
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"

_BEGAN = time.monotonic()


def write_page(name: str, *parts: str) -> None:
    """Print a page and write it, as ``benchmarks/results/NAME.md``.

    Args:
        name: The benchmark's own.
        parts: Paragraphs and tables, an empty line between each; how long the program took, and
            the command that was typed, come after the first.
    """
    typed = shlex.join(["python", "-m", f"benchmarks.{name}", *sys.argv[1:]])
    first, *others = parts
    took = f"Made in {(time.monotonic() - _BEGAN) / 60:.1f} minutes by"
    page = "\n\n".join([first.strip(), took, f"```\n{typed}\n```", *map(str.strip, others)]) + "\n"
    print(page)
    (RESULTS / f"{name}.md").write_text(page, encoding="utf-8")
