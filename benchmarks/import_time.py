"""How much longer does `import anybatch` take than `import torch`?

python benchmarks/import_time.py --json benchmarks/results/import_time.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

NUM_PAIRS = 15


def main() -> None:
    """Time both imports in turn, each in a fresh interpreter, and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="one pair, to see that it runs")
    parser.add_argument("--json", type=Path, help="write the figures")
    arguments = parser.parse_args()
    pairs = [(_seconds("anybatch"), _seconds("torch")) for _ in range(1 if arguments.smoke else NUM_PAIRS)]
    ratio = median(ours / theirs for ours, theirs in pairs)
    ours, theirs = (median(column) for column in zip(*pairs, strict=True))
    print(f"import anybatch {ours:.2f} s, import torch {theirs:.2f} s, median ratio of {len(pairs)} pairs {ratio:.3f}")
    if arguments.json:
        row = {"anybatch_s": ours, "torch_s": theirs, "ratio": ratio, "pairs": len(pairs)}
        about = {"python": platform.python_version(), "cores": os.cpu_count()}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"environment": about, "results": row}, indent=2) + "\n")


def _seconds(module: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
