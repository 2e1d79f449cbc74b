"""The search for a rate ends at the best one, with worse ones on both sides, wherever it starts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anybatch.probing.rate_search import FEWEST_RATES, MOST_FAILURES, best_rate, is_bracketed, next_rate


def searched(cost_of, first):
    """Run a search to its end; a rate that is worse than the best so far is given up."""
    costs = {}
    while (exponent := next_rate(costs, first)) is not None:
        assert exponent not in costs
        cost = cost_of(exponent)
        best = best_rate(costs)
        costs[exponent] = None if best is not None and cost is not None and cost > costs[best] else cost
        assert len(costs) < 40
    return costs


@given(optimum=st.floats(-6, 6), first=st.integers(-6, 6), stable=st.floats(0, 3))
def test_the_best_rate_of_a_valley_is_found_and_bracketed(optimum, first, stable):
    def cost_of(exponent):
        return None if exponent > optimum + 1 + stable else 100 + 10 * (exponent - optimum) ** 2

    if cost_of(first) is None and first - optimum > MOST_FAILURES // 2:
        return
    costs = searched(cost_of, first)
    truth = min(range(-20, 20), key=lambda exponent: cost_of(exponent) or 1e9)
    assert cost_of(best_rate(costs)) == pytest.approx(cost_of(truth))
    assert is_bracketed(costs)
    assert len(costs) >= FEWEST_RATES


def test_rates_are_neighbours_a_factor_two_apart():
    costs = searched(lambda exponent: 10.0 + abs(exponent - 4), 0)
    assert sorted(costs) == list(range(min(costs), max(costs) + 1))
    assert max(costs) == 5


def test_where_every_rate_fails_the_search_gives_up_on_both_sides():
    costs = searched(lambda exponent: None, 2)
    assert len(costs) == MOST_FAILURES
    assert min(costs) < 2 < max(costs)
    assert best_rate(costs) is None
    assert not is_bracketed(costs)


def test_a_first_guess_that_diverges_is_left_for_smaller_rates():
    costs = searched(lambda exponent: None if exponent > -2 else 10.0 - exponent, 0)
    assert best_rate(costs) == -2


def test_of_equal_rates_the_smaller_is_best():
    assert best_rate({0: 5.0, 1: 5.0, 2: None}) == 0


@pytest.mark.parametrize("costs", [{0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0}, {0: 2.0, 1: 1.0, 2: 2.0}, {0: None}])
def test_an_edge_or_too_few_rates_are_no_bracket(costs):
    assert not is_bracketed(costs)
