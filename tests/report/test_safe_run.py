"""The report of a safe run: its sentences, charts, tables, page and terminal output."""

import io

import pytest
from report.browser import CHROMIUM, look_at
from report.safe_records import (
    hostile_safe_record,
    measured_record,
    other_scale_record,
    safe_record,
    single_record,
    update,
)
from rich.console import Console

from anybatch.report import safe_run_summaries, safe_run_tables
from anybatch.report.page import render_safe_run
from anybatch.report.safe_run_charts import MOST_POINTS, SAFE_RUN_CHARTS
from anybatch.report.terminal import print_safe_run

RECORDS = (safe_record, measured_record, other_scale_record, single_record, hostile_safe_record)


def traces(record, name):
    """Coordinates by the name of their line."""
    figure = SAFE_RUN_CHARTS[name](record)
    return {trace.name: (list(trace.x), list(trace.y)) for trace in figure.data}


def printed(record, width=80):
    text = io.StringIO()
    print_safe_run(record, Console(file=text, width=width, highlight=False))
    return text.getvalue()


# what it says


def test_headline_sets_the_worst_deployed_policy_against_the_first():
    assert safe_run_summaries.headline(safe_record()) == (
        "No deployed policy was worse than the first; 5 of 5 updates moved the policy."
    )
    assert safe_run_summaries.headline(measured_record()) == (
        "The worst deployed policy stands at -12.3 as measured, the first at -11.9, which is within noise; "
        "3 of 5 updates moved the policy."
    )


def test_course_says_what_the_guarantee_is_worth_and_what_is_spent():
    proven = safe_run_summaries.course(safe_record())
    assert "the performance from -11.9 to -11.4" in proven
    assert "The guarantee is proven, given the stated constants." in proven
    assert proven.endswith("The chance that some update did worse than promised is at most 0.25.")
    assert "heuristic: something in it came from data" in safe_run_summaries.course(measured_record())
    assert "which says nothing at 1." in safe_run_summaries.course(single_record())
    assert "the closed form of the environment from -55 to -50" in safe_run_summaries.course(other_scale_record())


def test_a_run_that_was_ended_says_where():
    assert safe_run_summaries.interruption(safe_record()) == ""
    assert safe_run_summaries.interruption(measured_record()) == "This run was ended at 15,000 of 20,000 trajectories."


# what it draws


def test_lower_bound_is_the_first_return_less_two_errors_plus_the_gains_before():
    _, values = traces(safe_record(), "measured")["guaranteed lower bound"]
    assert values == pytest.approx([-11.91 - 0.1 + 0.01 * place for place in range(5)])


def test_no_lower_bound_is_drawn_from_where_the_guarantee_is_void():
    updates = [update(number, guarantee="proven" if number < 4 else "void") for number in range(1, 6)]
    places, values = traces(safe_record(iterations=updates), "measured")["guaranteed lower bound"]
    assert places == [updates[place]["num_trajectories"] for place in range(3)]
    assert values == pytest.approx([-11.91 - 0.1 + 0.01 * place for place in range(3)])
    voids = [update(number, guarantee="void", guaranteed_gain=None) for number in range(1, 6)]
    assert "guaranteed lower bound" not in traces(safe_record(iterations=voids), "measured")


def test_exact_performance_stands_beside_the_measured_one_only_on_the_same_scale():
    assert "exact" in traces(safe_record(), "measured")
    assert traces(safe_record(), "closed-form") == {}
    assert "exact" not in traces(other_scale_record(), "measured")
    assert traces(other_scale_record(), "closed-form")["closed form of the environment"][1] == [-55, -54, -53, -52, -51]
    assert traces(measured_record(), "closed-form") == {}


def test_error_stands_against_what_the_method_compares_it_with():
    assert traces(safe_record(), "error")["largest coordinate"][1] == [8.5, 7.5, 6.5, 5.5, 4.5]
    assert traces(measured_record(), "error")["norm of the gradient"][1] == pytest.approx([8.6, 7.6, 6.6, 5.6, 4.6])
    assert traces(safe_record(), "error")["bound on its error"][1] == [2.5] * 5


def test_updates_that_did_not_move_the_policy_are_marked():
    found = traces(measured_record(), "step-size")
    assert found["no step"] == ([1000, 3000], [0, 0])
    assert found["step"][0] == [6000, 10_000, 15_000]


def test_probability_is_drawn_by_update_and_in_sum():
    found = traces(safe_record(), "probability")
    assert found["this update"][1] == [0.05] * 5
    assert found["some update so far (union bound)"][1] == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.25])


def test_long_runs_are_thinned_from_the_first_update_to_the_last_with_the_same_bound():
    updates = [update(number) for number in range(1, 5001)]
    record = safe_record(iterations=[{**u, "max_gradient": 5.0} for u in updates])
    places, values = traces(record, "measured")["guaranteed lower bound"]
    assert len(places) <= MOST_POINTS + 1
    assert (places[0], places[-1]) == (updates[0]["num_trajectories"], updates[-1]["num_trajectories"])
    assert values[-1] == pytest.approx(-11.91 - 0.1 + 0.01 * 4999)


def test_tables_hold_policies_constants_and_updates():
    policies = safe_run_tables.policies_table(safe_record()).rows
    assert [row[0] for row in policies] == ["first", "worst deployed", "last"]
    assert policies[2] == ("last", "6", "-11.4", "-0.25")
    constants = {row[0]: row[1:] for row in safe_run_tables.constants_table(safe_record()).rows}
    assert constants["R, of rewards"] == ("4", "3.9", "stated")
    assert constants["M, of features"] == ("1.99", "1.99", "estimated from data")
    assert [row[0] for row in safe_run_tables.updates_table(safe_record()).rows] == ["1", "2", "3", "4", "5"]


# the page and the terminal


@pytest.mark.parametrize("record", RECORDS)
def test_terminal_output_fits_its_console(record):
    text = printed(record())
    assert max(map(len, text.splitlines())) <= 80
    assert text.rstrip().splitlines()[-1].startswith("╰")


def test_names_are_escaped_on_the_page_and_printed_as_they_are():
    page = render_safe_run(hostile_safe_record())
    assert "<script>alert" not in page
    assert "<b>env</b>" not in page
    assert "[red]exceeds[/red]" in printed(hostile_safe_record())


@pytest.mark.parametrize("record", RECORDS)
def test_page_holds_headline_notes_and_constants(record):
    found = record()
    page = render_safe_run(found)
    assert safe_run_summaries.headline(found) in page
    assert "estimated from data" in page
    assert page.count("<figure>") == sum(bool(draw(found).data) for draw in SAFE_RUN_CHARTS.values())


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed to open the page in")
@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("record", [other_scale_record, measured_record])
def test_page_draws_every_chart_and_fits_its_window(record, width, tmp_path):
    found = record()
    sight = look_at(render_safe_run(found), width, tmp_path)
    assert sight.console == []
    assert list(sight.page["charts"]) == [f"chart-{name}" for name, draw in SAFE_RUN_CHARTS.items() if draw(found).data]
    for name, chart in sight.page["charts"].items():
        assert chart["traces"] > 0, name
        assert chart["right"] <= width, name
    assert sight.page["scroll_width"] <= width
