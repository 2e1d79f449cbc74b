import pytest
from report.records import (
    comparison_record,
    diverged_comparison,
    empty_comparison,
    loss_comparison,
    partial_comparison,
)

from anybatch.report.comparison_summaries import course, failures, headline, interruption
from anybatch.report.comparison_tables import (
    applied_table,
    distance_table,
    rates_table,
    results_table,
    runs_table,
    short_rates_table,
)
from anybatch.report.wording import compact, duration, listed, metric_label, score, spread


def cells(table, head):
    return [row[list(table.heads).index(head)] for row in table.rows]


def test_headline_names_the_best_the_first_and_the_base():
    assert headline(comparison_record()) == (
        "At batch size 4,096, regime reaches an eval accuracy of 88.77% (sd 0.24, 3 seeds), plain 83.29% (sd 0.23). "
        "At the base batch size of 128, plain reaches 89.81% (sd 0.22)."
    )


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (comparison_record(batch_sizes=(512,)), "(sd 0.35, 3 seeds), plain 87.21% (sd 0.34)."),
        (
            comparison_record(recipes=("plain",)),
            "At batch size 4,096, plain reaches an eval accuracy of 83.29% (sd 0.23, 3",
        ),
        (comparison_record(batch_sizes=(256, 512)), "At batch size 256, plain reaches"),
        (
            loss_comparison(),
            "regime reaches an eval loss of 0.339 (1 seed), plain 0.450. At the base batch size of 128",
        ),
        (
            comparison_record(recipes=("plain", "sqrt"), batch_sizes=(128,)),
            "At batch size 128, plain reaches an eval accuracy of 89.81% (sd 0.22, 3 seeds), sqrt 89.67% (sd 0.27).",
        ),
        (diverged_comparison(), "(sd 0.24, 3 seeds), plain diverged. At the base"),
        (
            partial_comparison(),
            "ghost reaches an eval accuracy of 87.51% (sd 0.34, 3 seeds), plain 83.16% (sd 0.12, 2 seeds)",
        ),
        (empty_comparison(), "No run has finished."),
    ],
)
def test_headline_says_only_what_is_there(record, words):
    assert words in headline(record)


def test_headline_says_that_the_largest_batch_has_no_result():
    record = comparison_record()
    record["table"] = [row for row in record["table"] if row["batch_size"] != 4096]
    assert headline(record).startswith("At batch size 4,096, no run has finished. At batch size 512, regime reaches")


def test_lower_is_better_for_a_loss():
    record = loss_comparison()
    means = {row["recipe"]: row["metrics"]["eval_loss"]["mean"] for row in record["table"] if row["batch_size"] == 4096}
    assert headline(record).startswith(f"At batch size 4,096, {min(means, key=lambda name: means[name])} reaches")


def test_course_counts_runs_and_says_how_rates_were_picked():
    assert course(comparison_record()).startswith("36 runs: 36 done; 9.7 h in all. Means")
    assert (
        course(comparison_record(recipes=("plain",), batch_sizes=(128,), seeds=1)) == "1 run: 1 done; 12.3 min in all."
    )
    assert course(comparison_record(lr_factors=(0.5, 1.0, 2.0))).endswith(
        "Every recipe and batch size was trained at 0.5, 1 and 2 × its rate and stands at the best of them."
    )
    assert course(empty_comparison()) == ""


def test_interruption_is_silent_on_a_whole_comparison():
    assert interruption(comparison_record()) == ""
    assert interruption(partial_comparison()) == "This comparison was interrupted: 5 of 36 runs did not finish."
    assert interruption(empty_comparison()) == "This comparison was interrupted before its first run."


def test_failures_tell_the_seeds_that_diverged_and_why():
    reason = "the training loss is not finite after 14 updates."
    assert failures(diverged_comparison()) == [f"plain at batch size 4,096: 3 of 3 seeds diverged: {reason}"]
    assert failures(comparison_record()) == []


def test_failure_of_a_grid_names_its_rate():
    record = comparison_record(recipes=("plain",), batch_sizes=(128,), seeds=1, lr_factors=(1.0, 4.0))
    record["runs"][1] |= {"status": "diverged", "reason": None}
    assert failures(record) == ["plain at batch size 128 and 4 × its rate: 1 of 1 seeds diverged."]


def test_results_mark_the_best_of_each_batch_size():
    table = results_table(comparison_record())
    marked = {(table.rows[place][0], table.rows[place][1]) for place in table.marked}
    assert marked == {("plain", "128"), ("regime", "512"), ("regime", "4,096")}
    assert "Seeds" not in table.heads


def test_results_show_mean_spread_and_gap():
    table = results_table(comparison_record())
    assert cells(table, "Eval accuracy (%)>")[0] == "89.81 ± 0.22"
    assert cells(table, "Train accuracy (%)>")[0] == "98.75"
    assert cells(table, "Gap>")[0] == "8.95"


def test_gap_of_a_loss_is_positive_where_training_looks_better():
    record = loss_comparison()
    metrics = record["table"][0]["metrics"]
    table = results_table(record)
    assert "Eval loss>" in table.heads
    assert list(table.heads).count("Eval loss>") == 1
    assert cells(table, "Gap>")[0] == score(metrics["eval_loss"]["mean"] - metrics["train_loss"]["mean"], "eval_loss")


def test_rates_show_the_best_and_the_untuned():
    record = comparison_record(lr_factors=(0.5, 1.0, 2.0))
    shown = [row for row in results_table(record).rows if row[:2] == ("plain", "4,096")]
    assert [row[-1] for row in shown] == ["× 1, untuned", "× 2, best"]
    assert len(rates_table(record).rows) == len(short_rates_table(record).rows) == 36
    assert short_rates_table(comparison_record()).rows == []


def test_diverged_and_unfinished_rows_say_so():
    table = results_table(partial_comparison())
    assert cells(table, "Eval accuracy (%)>")[-1] == "unfinished"
    assert cells(table, "Seeds")[2] == "2 done, 1 diverged"
    assert cells(results_table(diverged_comparison()), "Eval accuracy (%)>")[2] == "diverged"
    outcomes = cells(runs_table(partial_comparison()), "Outcome")
    assert outcomes[6] == "diverged: the training loss is not finite after 14 updates"
    assert outcomes[-1] == "unfinished"


def test_applied_settings_are_those_of_each_batch_size():
    table = applied_table(comparison_record())
    assert table.rows[-1] == ("regime", "4,096", "0.566", "5.66", "160", "80 and 120", "0", "128", "5", "0")
    assert cells(table, "Ghost batch>")[0] == "—"


def test_distance_laws_are_averaged_over_runs():
    record = comparison_record()
    record["runs"][0]["distance_law"] |= {"slope": 2.5, "better": "power"}
    record["runs"][1]["distance_law"] = None
    first = distance_table(record).rows[0]
    assert first == ("plain", "128", "20 to 10,000", "2.35", "0.9968", "0.9612", "1 log, 1 power")


@pytest.mark.parametrize(
    ("count", "words"), [(None, "—"), (586, "586"), (18_750, "18.8k"), (2_400_000, "2.4M"), (1.92e9, "1.92G")]
)
def test_large_counts_are_short(count, words):
    assert compact(count) == words


@pytest.mark.parametrize(("seconds", "words"), [(None, "—"), (3, "3 s"), (90, "1.5 min"), (34_900, "9.69 h")])
def test_times_have_the_unit_that_reads_best(seconds, words):
    assert duration(seconds) == words


def test_shares_are_in_percent_and_other_metrics_are_not():
    assert (metric_label("eval_accuracy"), score(0.9, "eval_accuracy")) == ("Eval accuracy (%)", "90.00")
    assert (metric_label("eval_loss"), score(0.9, "eval_loss")) == ("Eval loss", "0.900")
    assert (score(None, "eval_loss"), score(123.4, "eval_loss")) == ("—", "123")
    assert (spread(0.0024, "eval_accuracy"), spread(0.00243, "eval_loss")) == ("0.24", "0.0024")


def test_words_are_listed_as_in_a_sentence():
    assert [listed(words) for words in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]
