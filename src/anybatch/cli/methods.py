"""`anybatch methods`: what there is, one line each."""

from __future__ import annotations

from rich.console import Console
from rich.table import Column, Table

from anybatch.registry import METHODS, WORKLOADS


def methods() -> None:
    """List the methods, where they live and where they come from, and the built-in workloads."""
    console = Console()
    method = Column("method", no_wrap=True)  # so that its path can be copied
    table = Table("stage", method, "what it does", "from", box=None, header_style="bold", pad_edge=False)
    for card in METHODS:
        table.add_row(card.stage, f"{card.name}\n[dim]{card.where}[/dim]", card.summary, card.source)
    console.print(table)
    console.print(f"\nBuilt-in workloads: {', '.join(WORKLOADS)}")
