"""The `anybatch` command."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

import anybatch
from anybatch.cli import launch
from anybatch.cli.compare import compare
from anybatch.cli.convert import convert
from anybatch.cli.methods import methods
from anybatch.cli.probe import probe
from anybatch.cli.safe_pg import safe_pg

app = typer.Typer(
    name="anybatch",
    help="Train PyTorch models at any batch size: measure which one a workload deserves, and make it work.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(probe)
app.command()(compare)
app.command()(convert)
app.command()(safe_pg)
app.command()(methods)


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(anybatch.__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", callback=_tell_version, is_eager=True)
    ] = False,
) -> None:
    """Hold what comes before the subcommand."""


def main() -> None:
    """Run the command line; exit code 0: done, 1: the run failed, 2: the arguments are wrong."""
    sys.exit(launch.run(app))
