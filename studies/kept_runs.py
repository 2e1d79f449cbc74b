"""How do finished runs come along to a machine that did not do them? One line each, committed with the study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from anybatch.train.plain import write_text
from anybatch.train.run_folder import RunFolder

KEPT = "finished.jsonl"


def bring_runs(kept: Path, runs: Path) -> None:
    """Make folders of finished runs from a file, where they are not there yet.

    A run's name holds a digest of all that decides it, so one that would come out otherwise today is not asked for.

    Args:
        kept: the file; nothing happens where there is none.
        runs: folder of all runs.

    Raises:
        AnybatchError: a folder cannot be written or holds something else.
    """
    for line in kept.read_text(encoding="utf-8").splitlines() if kept.exists() else ():
        run = json.loads(line)
        folder = RunFolder(runs / run["name"])
        if folder.result() is None:
            with folder.lock() as is_ours:
                if is_ours and folder.result() is None:
                    folder.claim(run["config"])
                    folder.finish(run["result"])


def keep_runs(runs: Path, kept: Path) -> None:
    """Write all finished runs to a file, by name; of the walk of each tensor the first one's alone, which studies read.

    Args:
        runs: folder of all runs.
        kept: the file.
    """
    lines = []
    for path in sorted(runs.iterdir()):
        if (path / "result.json").exists():
            config, result = (json.loads((path / name).read_text("utf-8")) for name in ("config.json", "result.json"))
            run = {"name": path.name, "config": config, "result": _without_most_tensors(result)}
            lines.append(json.dumps(run, separators=(",", ":")) + "\n")
    write_text(kept, "".join(lines))


def _without_most_tensors(result: dict[str, Any]) -> dict[str, Any]:
    """Return a result without what is nine tenths of it: how far every single tensor has walked."""
    if "distance" not in result:
        return result
    lines = [{**line, "tensors": dict(list(line["tensors"].items())[:1])} for line in result["distance"]]
    return {**result, "distance": lines}
