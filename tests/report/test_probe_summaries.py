import pytest
from report.records import complete_record

from anybatch.report.probe_summaries import (
    advice_rows,
    headline,
    interruption,
    law_summary,
    memory_summary,
    noise_summary,
)
from anybatch.report.wording import (
    Bounds,
    in_words,
    memory_size,
    noise_bounds,
    number,
    percent,
    sentences,
    span,
)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "—"),
        (0, "0"),
        (1437, "1,437"),
        (28.06, "28.1"),
        (0.000381, "0.000381"),
        (20857.4, "20,857"),
        (1.0, "1"),
    ],
)
def test_numbers_have_three_digits_or_are_whole(value, words):
    assert number(value) == words


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (1, 2, "1 to 2"),
        (1, None, "at least 1"),
        (None, 2, "at most 2"),
        (None, None, "—"),
        (0, None, "at least 0"),
    ],
)
def test_intervals_may_be_open(low, high, words):
    assert span(low, high) == words


def test_undetermined_estimate_keeps_only_its_lower_bound():
    estimate = {"value": 9.0, "low": 4.0, "high": 80.0, "at_least": 5.0, "verdict": "undetermined"}
    assert noise_bounds(estimate) == Bounds(None, 5.0, None)
    assert noise_bounds(estimate | {"at_least": None}) == Bounds(None, 4.0, None)
    assert noise_bounds(estimate | {"verdict": "measured"}) == Bounds(9.0, 4.0, 80.0)
    assert noise_bounds(None).is_empty


def test_estimates_in_words():
    assert in_words(Bounds(28.1, 24.0, None), "samples") == "28.1 samples (at least 24)"
    assert in_words(Bounds(28.1, None, None)) == "28.1"
    assert in_words(Bounds(None, None, None)) == "not measured"


def test_sizes_and_shares_in_words():
    assert memory_size(16_000_000_000) == "16 GB"
    assert memory_size(4e8) == "400 MB"
    assert percent(0.004) == "0.4%"


def test_sentences_are_joined_with_capitals_and_stops():
    assert sentences("one", None, "", "Two.", "three?") == "One. Two. three?".replace("three", "Three")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "Use a batch size of 32, in 2 micro-batches of 16, at 0.5 × the base learning rate."),
        ({"lr_scale": None}, "Use a batch size of 32, in 2 micro-batches of 16."),
        (
            {"lr_scale": 1.0, "accumulation_steps": 1, "micro_batch_size": 32},
            "Use a batch size of 32, in one micro-batch of 32, at the base learning rate.",
        ),
        ({"batch_size": None}, "This run gives no recommendation."),
    ],
)
def test_headline_says_the_recommendation(change, words):
    record = complete_record()
    record["recommendation"] |= change
    assert headline(record) == words


def test_headline_names_the_devices():
    record = complete_record()
    record["environment"]["world_size"] = 4
    assert ", in 2 micro-batches of 16 on each of 4 devices, " in headline(record)


def test_advice_shows_any_further_reason():
    record = complete_record()
    record["recommendation"]["relative_time"] = {"value": 1.0, "low": 0.9, "high": None}
    record["recommendation"]["reasons"]["relative_time"] = "it is the reference"
    last = advice_rows(record)[-1]
    assert last == ("Relative time", "1", "at least 0.9", "It is the reference.")


def test_interruption_is_silent_on_a_whole_run():
    assert interruption(complete_record()) == ""


def test_summaries_name_target_limit_and_law():
    record = complete_record()
    assert "It refers to the training set." in noise_summary(record)
    assert memory_summary(record) == sentences(record["memory"]["reason"])
    assert law_summary(record).startswith("The critical batch size is 28.1 samples (24 to 33).")
