"""Which options mean the same in several commands?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anybatch.train import runtime

WORKLOAD = (
    "A built-in name (see [b]anybatch methods[/b]), or [b]path/to/file.py:function[/b], a function that returns an "
    "anybatch.Workload"
)

Autocast = Annotated[runtime.Autocast | None, typer.Option(help="Precision of forward passes. \\[default: full]")]
DataRoot = Annotated[Path | None, typer.Option(help="Folder of the data, for workloads that take one.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Device = Annotated[str | None, typer.Option(help="As torch names it. \\[default: CUDA if there, else cpu]")]
NumWorkers = Annotated[int, typer.Option(min=0, help="Workers of the data loader.")]
Report = Annotated[Path | None, typer.Option(help="Write the report, one HTML page that needs no network.")]
