"""What does every study's command take, and where are its runs?"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from kept_runs import KEPT, bring_runs, keep_runs

SIZES = ("smoke", "quick", "full")


def read_arguments(
    about: str | None,
    here: Path,
    *,
    sizes: Iterable[str] = SIZES,
    parts: Iterable[str] = (),
    more: Callable[[argparse.ArgumentParser], None] | None = None,
    arguments: Sequence[str] | None = None,
) -> argparse.Namespace:
    """Return the options of a study, with the finished runs that came along with it in their folder.

    Args:
        about: what the study says of itself.
        here: its folder.
        sizes: its scales, one of which is asked for.
        parts: names that --only takes; without them there is no such option.
        more: adds options of its own.
        arguments: of the command. Default: those of this process.

    Returns:
        The options; `size` is one of the sizes.

    Raises:
        AnybatchError: the folder of runs cannot be written.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group(required=True)
    for name in sizes:
        size.add_argument(f"--{name}", dest="size", action="store_const", const=name)
    if parts := tuple(parts):
        parser.add_argument("--only", nargs="*", choices=parts, help="some parts of --full")
    parser.add_argument("--finished-only", action="store_true", help="run nothing, show what is finished")
    parser.add_argument("--runs", type=Path, help=f"folder of all runs; default: runs/ and the size in {here.name}/")
    parser.add_argument("--data-root", type=Path, default=Path("../shared/data"), help="folder that holds the data")
    parser.add_argument("--json", type=Path, help="write rows and claims, and figures.svg beside them")
    if more is not None:
        more(parser)
    found = parser.parse_args(arguments)
    if found.runs is None:
        found.runs = here / "runs" / found.size
        if found.size == "full":
            bring_runs(here / KEPT, found.runs)
    return found


def is_own_record(arguments: argparse.Namespace, here: Path) -> bool:
    """Return whether these are the results that are committed with the study."""
    is_whole = arguments.size == "full" and not getattr(arguments, "only", None)
    return bool(is_whole and arguments.json and arguments.json.resolve().parent == here.resolve())


def keep_finished(arguments: argparse.Namespace, here: Path) -> None:
    """Keep the finished runs beside the results that are committed."""
    if is_own_record(arguments, here) and arguments.runs.resolve() == (here / "runs" / "full").resolve():
        keep_runs(arguments.runs, here / KEPT)
