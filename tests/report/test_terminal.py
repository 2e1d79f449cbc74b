import io
import os
from pathlib import Path

import pytest
from report.nulls import paths, with_null
from report.records import (
    comparison_record,
    complete_record,
    diverged_comparison,
    empty_comparison,
    hostile_comparison,
    hostile_record,
    loss_comparison,
    partial_comparison,
    partial_record,
    single_point_record,
    undetermined_record,
)
from rich.console import Console

from anybatch.report.terminal import print_comparison, print_probe

FOLDER = Path(__file__).parent


def printed(record, width=80, show=print_probe):
    """Return what is printed into a pipe."""
    pipe = io.StringIO()
    show(record, Console(file=pipe, width=width))
    return "\n".join(line.rstrip() for line in pipe.getvalue().splitlines()) + "\n"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (printed(complete_record()), "probe.txt"),
        (printed(comparison_record(lr_factors=(1.0, 2.0)), show=print_comparison), "comparison.txt"),
    ],
)
def test_terminal_output_is_the_golden_one(text, name):
    """Run with ANYBATCH_REGENERATE=1 to write the golden files anew."""
    if os.environ.get("ANYBATCH_REGENERATE"):
        (FOLDER / name).write_text(text, encoding="utf-8")
    assert text == (FOLDER / name).read_text(encoding="utf-8")


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


@pytest.mark.parametrize(
    "record",
    [
        comparison_record(),
        comparison_record(lr_factors=(0.5, 1.0, 2.0)),
        partial_comparison(),
        loss_comparison(),
        empty_comparison(),
        hostile_comparison(),
    ],
)
def test_comparison_fits_the_console(record):
    text = printed(record, show=print_comparison)
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text


def test_headline_of_a_comparison_stands_last():
    text = printed(comparison_record(), show=print_comparison)
    titles = ["Distance from the initial weights", "Results", "Warnings", "╭─ anybatch: fashion_mnist"]
    places = [text.index(f"\n{title}") for title in titles]
    assert places == sorted(places)
    assert "regime reaches an eval accuracy of 88.77%" in text[places[-1] :]
    assert text.endswith("╯\n")


def test_runs_that_diverged_or_did_not_finish_are_told_in_words():
    assert "plain    4,096          diverged" in printed(diverged_comparison(), show=print_comparison)
    words = " ".join(printed(partial_comparison(), show=print_comparison).split())
    assert "regime 4,096 unfinished — 703" in words
    assert "plain at batch size 4,096: 1 of 3 seeds diverged: the training loss is not finite" in words
    assert "This comparison was interrupted: 5 of 36 runs did not finish." in words
