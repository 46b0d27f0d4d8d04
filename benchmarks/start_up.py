"""What ``import recall_lightning`` adds to ``import lightning.pytorch``.

python benchmarks/import_time.py
"""

import statistics
import subprocess
import sys

CODE = """
import time, lightning.pytorch
started = time.perf_counter()
import recall_lightning
print(time.perf_counter() - started)
"""


def main() -> None:
    run = [sys.executable, "-c", CODE]
    seconds = [float(subprocess.run(run, capture_output=True, check=True).stdout) for _ in range(5)]
    print(f"import recall_lightning adds {statistics.median(seconds):.3f} s (median of 5)")


if __name__ == "__main__":
    main()
