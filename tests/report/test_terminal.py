import io
import os
from pathlib import Path

import pytest
from report.nulls import paths, with_null
from report.records import (
    complete_record,
    hostile_record,
    partial_record,
    single_point_record,
    undetermined_record,
)
from rich.console import Console

from anybatch.report.terminal import print_probe

GOLDEN = Path(__file__).with_name("probe.txt")


def printed(record, width=80):
    """Return what is printed into a pipe."""
    pipe = io.StringIO()
    print_probe(record, Console(file=pipe, width=width))
    return "\n".join(line.rstrip() for line in pipe.getvalue().splitlines()) + "\n"


def test_terminal_output_is_the_golden_one():
    """Run with ANYBATCH_REGENERATE=1 to write the golden file anew."""
    text = printed(complete_record())
    if os.environ.get("ANYBATCH_REGENERATE"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")


@pytest.mark.parametrize("record", [complete_record(), partial_record(), undetermined_record()])
def test_nothing_but_code_is_wider_than_the_console(record):
    text = printed(record).split("Settings for")[0]
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text


def test_recommendation_stands_last_with_its_reasons_before_the_settings():
    record = complete_record()
    before, panel = printed(record).split("╭", 1)
    panel, after = panel.split("╯", 1)
    words = " ".join(panel.replace("│", " ").split())
    assert "Use a batch size of 32, in 2 micro-batches of 16, at 0.5 × the base learning rate." in words
    assert "16 to 48" in panel
    wide = printed(record, width=200)
    for reason in record["recommendation"]["reasons"].values():
        assert reason[1:] in wide
    titles = ["Noise scale", "Throughput", "Memory", "Devices", "Cost", "Warnings"]
    places = [before.index(f"\n{title}\n") for title in titles]
    assert places == sorted(places)
    assert "\nSettings for Lightning\n" in after


def test_code_is_printed_unwrapped_and_last():
    record = complete_record()
    long_line = "Trainer(" + ", ".join(f"option_{index}=None" for index in range(12)) + ")"
    record["recommendation"]["settings"]["Lightning"] = long_line
    assert printed(record).endswith(f"Settings for Lightning\n{long_line}\n")


def test_undetermined_says_at_least():
    text = printed(undetermined_record())
    assert "The noise scale is at least 24.9 samples" in text
    assert "all modules   undetermined   at least 24.9" in text


def test_interrupted_run_says_what_is_missing():
    words = " ".join(printed(partial_record()).replace("│", " ").split())
    assert "This run was interrupted. Missing: throughput, noise scale, predicted time, devices" in words
    assert "This run gives no recommendation." in words


def test_markup_in_names_is_printed_as_it_is():
    record = hostile_record()
    record["workload"] = "[red]digits[/red] :smile:"
    assert "[red]digits[/red] :smile:" in printed(record)


def test_any_entry_may_be_null():
    record = single_point_record()
    for path in paths(record):
        assert printed(with_null(record, path)), path
    assert "unnamed workload" in printed({})
