"""The study of Kalman normalization: its net, its controls, its test and its errors are what its README says."""

import importlib
import json
import math
import sys
from pathlib import Path
from statistics import mean
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from anybatch.nn import KalmanOptions, Moments, convert

STUDIES = Path(__file__).parent.parent / "studies"
FOLDER = STUDIES / "wang_2018_kalman_normalization"
NAMES = {path.stem for path in [*FOLDER.glob("*.py"), *STUDIES.glob("*.py")]}


@pytest.fixture(scope="module")
def study():
    """The study's modules, whose plain names other studies have too."""
    pytest.importorskip("matplotlib")
    others = {name: sys.modules.pop(name) for name in NAMES & sys.modules.keys()}
    path = list(sys.path)
    sys.path[:0] = [str(FOLDER), str(STUDIES)]
    names = ("network", "priors", "judging", "moments", "evidence", "cells", "parts", "run")
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    sys.path[:] = path
    for name in NAMES & sys.modules.keys():
        del sys.modules[name]
    sys.modules.update(others)


def moments(mean, var):
    return Moments(torch.tensor(mean), torch.tensor(var))


# the net


@pytest.mark.parametrize("num_units", [1, 2])
def test_the_net_has_6n_plus_1_norms_and_all_but_the_first_have_a_prior(study, num_units):
    model = study.network.PreActivationNet(num_units, 1)
    conversion = convert(model, "kalman", example_inputs=torch.zeros(2, 1, 28, 28), state_space="raw")
    assert len(conversion.replaced) == 6 * num_units + 1
    assert list(conversion.fallbacks) == ["stem_norm"]
    assert not conversion.cuts


def test_the_prior_of_an_entry_adds_the_posterior_of_the_stem_and_the_branch(study):
    torch.manual_seed(0)
    model = study.network.PreActivationNet(1, 1)
    convert(model, "kalman", example_inputs=torch.zeros(2, 1, 28, 28), state_space="raw", micro_batch_size=2)
    model(torch.randn(8, 1, 28, 28))
    layers = dict(model.named_modules())
    stem = layers["stem_norm"].latest.posterior
    deviation = stem.var.sqrt()
    at = torch.distributions.Normal(0.0, 1.0)
    ratio = stem.mean / deviation
    relu_mean = stem.mean * at.cdf(ratio) + deviation * at.log_prob(ratio).exp()
    branch = layers["units.1.entry.0"].latest.prior.mean - relu_mean
    inner = layers["units.0.norm1"].latest.posterior
    ratio = inner.mean / inner.var.sqrt()
    inner_mean = inner.mean * at.cdf(ratio) + inner.var.sqrt() * at.log_prob(ratio).exp()
    maps = inner_mean[:, :, None, None].expand(-1, -1, 28, 28)
    expected = torch.conv2d(maps, layers["units.0.conv2"].weight, padding=1).mean((2, 3))
    torch.testing.assert_close(branch, expected, atol=1e-4, rtol=1e-4)


# the controls


def test_controls_are_given_only_to_layers_that_have_a_prediction(study):
    observed = moments([[1.0, 2.0]], [[1.0, 1.0]])
    for control in (study.priors.Constant, study.priors.Shuffled, study.priors.MovingAverage, study.priors.Oracle):
        assert control()(None, None, observed) is None


def test_a_constant_prior_is_0_and_1_and_a_shuffled_one_has_the_same_values_elsewhere(study):
    observed = predicted = moments([[1.0, 2.0, 3.0, 4.0]], [[5.0, 6.0, 7.0, 8.0]])
    constant = study.priors.Constant()(None, predicted, observed)
    assert constant.mean.tolist() == [[0.0] * 4]
    assert constant.var.tolist() == [[1.0] * 4]
    shuffled = study.priors.Shuffled()(None, predicted, observed)
    assert sorted(shuffled.mean[0].tolist()) == [1, 2, 3, 4]
    assert shuffled.mean.tolist() != predicted.mean.tolist()
    assert (shuffled.var - shuffled.mean).unique().tolist() == [4.0]


def test_the_oracle_knows_the_moments_of_the_whole_batch(study):
    values = torch.tensor([[0.0], [2.0], [6.0], [8.0]])
    observed = Moments(values.view(2, 2).mean(1, keepdim=True), values.view(2, 2).var(1, correction=0, keepdim=True))
    oracle = study.priors.Oracle()(None, observed, observed)
    assert oracle.mean.item() == values.mean().item()
    assert oracle.var.item() == values.var(correction=0).item()


def test_a_moving_average_is_the_layers_own_running_statistics_as_they_were(study):
    layer = torch.nn.BatchNorm1d(2)
    observed = moments([[1.0, 2.0]], [[1.0, 1.0]])
    prior = study.priors.MovingAverage()(layer, observed, observed)
    layer.running_mean.add_(1)
    assert prior.mean.tolist() == [[0.0, 0.0]]


def test_the_defaults_of_the_package_are_part_of_every_recipe(study):
    assert {"state_space", "gain", "prior_weight", "transition", "gate"} <= study.parts.KN.norm_options.keys()


# the test


def test_the_paired_test_is_scipys(study):
    from scipy.stats import ttest_1samp

    differences = [0.3, 0.9, -0.2, 0.8, 0.5]
    ours, scipys = study.judging.paired_test(differences), ttest_1samp(differences, 0)
    assert ours.p == pytest.approx(scipys.pvalue)
    assert ours.mean - ours.error == pytest.approx(scipys.confidence_interval().low)


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([1.0, 1.2, 0.9], "reproduced"),
        ([-1.0, -1.2, -0.9], "not"),
        ([1.0, -1.2, 0.9], "undecided"),
        ([1.0], "undecided"),
        ([0.0, 0.0], "undecided"),
    ],
)
def test_verdicts_are_those_of_the_test(study, differences, verdict):
    measured = study.judging.Measured("", differences)
    (claim,) = study.judging.judge([study.judging.Expected("a", "", "", "", lambda found: measured)], None)
    assert (claim.verdict, claim.seeds) == (verdict, len(differences))


def cell_of(study, accuracies, epochs=(2.5, 5.0), early=0.5):
    def run(accuracy):
        if accuracy is None:
            return SimpleNamespace(status="diverged", metrics={}, curve=[])
        curve = [
            {"epochs": epoch, "eval_accuracy": value} for epoch, value in zip(epochs, (early, accuracy), strict=True)
        ]
        return SimpleNamespace(status="done", metrics={"eval_accuracy": accuracy}, curve=curve)

    return study.cells.Cell({}, {seed: run(accuracy) for seed, accuracy in enumerate(accuracies)})


def test_claims_pair_seeds_and_count_what_diverged_as_guessing(study):
    found = study.evidence.Found(
        {("p", "a"): cell_of(study, [0.9, 0.8]), ("p", "b"): cell_of(study, [0.85, None, 0.7])}
    )
    measured = study.evidence.above(("p", "a"), ("p", "b"), 0.5)(found)
    assert measured.differences == pytest.approx([5.5, 70.5])


def test_a_claim_without_runs_is_not_measured(study):
    assert study.evidence.above(("p", "a"), ("p", "b"))(study.evidence.Found({})) is None


def test_a_lead_at_the_drop_is_the_final_one_less_the_one_before(study):
    found = study.evidence.Found(
        {("p", "a"): cell_of(study, [0.9], early=0.6), ("p", "b"): cell_of(study, [0.8], early=0.55)}
    )
    assert study.evidence.appears_at_drop(("p", "a"), ("p", "b"))(found).differences == pytest.approx([5.0])


def test_epochs_to_an_accuracy_lie_on_a_line_between_evaluations(study):
    (run,) = cell_of(study, [0.9], early=0.5).runs.values()
    assert study.evidence.epochs_to(run, 0.7) == pytest.approx(3.75)
    assert study.evidence.epochs_to(run, 0.95) is None


# errors of moments


def test_errors_are_in_pooled_deviations_and_in_logs_of_the_variance(study):
    of_mean, of_var = study.moments.error_of(
        moments([[3.0], [-1.0]], [[math.e * 4], [4 / math.e]]), moments([[1.0]], [[4.0]])
    )
    assert of_mean == pytest.approx(1, rel=1e-4)
    assert of_var == pytest.approx(1, rel=1e-4)


def test_scatter_is_between_micro_batches_and_blind_to_what_they_have_in_common(study):
    pooled = moments([[1.0, 0.0]], [[4.0, 4.0]])
    of_mean, of_var = study.moments.scatter_of(
        moments([[7.0, -9.0], [3.0, -9.0]], [[math.e * 9, 1.0], [9 / math.e, 1.0]]), pooled
    )
    assert of_mean == pytest.approx(math.sqrt(0.5), rel=1e-4)
    assert of_var == pytest.approx(math.sqrt(0.5), rel=1e-4)


def test_figures_are_averaged_over_layers_for_each_seed(study):
    rows = [{"seeds": [0, 1], "x": [1.0, 2.0]}, {"seeds": [0, 1], "x": [3.0, 6.0]}]
    assert np.allclose(study.moments.per_seed(rows, lambda row, index: row["x"][index]), [2, 4])


def test_every_claim_has_an_id_of_its_own_and_cells_that_are_trained(study):
    ids = [each.id for each in study.run.EXPECTED]
    assert len(ids) == len(set(ids)) == 34
    known = {(part, recipe.name): cell_of(study, [0.5, 0.6]) for part, each in study.parts.FULL.items()
             for recipe in each.recipes}  # fmt: skip
    found = study.evidence.Found(known)
    for each in study.run.EXPECTED:
        assert each.measure(found) is not None or each.id.startswith("moments"), each.id


def test_the_defaults_are_the_best_candidate_or_not_told_apart_from_it(study):
    best = {}  # of each candidate, at the better of its rates
    for row in json.loads((FOLDER / "defaults.json").read_text())["rows"]:
        best.setdefault(row["candidate"], row["accuracies"])
    varied = {name: best.pop(name) for name in list(best) if name.startswith(("gain", "transition"))}
    defaults = KalmanOptions()
    name, accuracies = next(iter(best.items()))
    assert name == f"{defaults.state_space}, {defaults.prior_weight:g}"
    assert len(varied) == 4
    for others in varied.values():
        assert mean(others) - mean(accuracies) < max(others) - min(others)


def test_where_the_best_rate_is_at_the_edge_one_more_is_tried_with_that_recipe_alone(study, monkeypatch):
    def planned(bench, parts, factors):
        job = lambda factor: SimpleNamespace(cell=SimpleNamespace(lr_factor=factor))  # noqa: E731
        return {(recipe, 128): [job(factor) for factor in factors] for recipe in ("low", "middle", "high")}

    monkeypatch.setattr(study.cells, "tuning_jobs", planned)
    rates = [
        {"recipe": recipe, "batch_size": 128, "accuracies": dict(zip(("0.3", "1", "10"), found, strict=True))}
        for recipe, found in (("low", (80.0, 70.0, 60.0)), ("middle", (60.0, 80.0, 70.0)), ("high", (1.0, 2.0, 3.0)))
    ]
    more = study.cells.jobs_beyond(None, {}, rates)
    found = {recipe: [job.cell.lr_factor for job in jobs] for (recipe, _), jobs in more.items()}
    assert found == {"low": [0.1], "high": [30.0]}
    assert study.cells.jobs_beyond(None, {}, rates[1:2]) == {}
