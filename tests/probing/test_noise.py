"""The noise scale along runs and at given weights: against a loop over every sample, and without a trace."""

from dataclasses import replace
from itertools import islice, pairwise

import pytest
import torch
from probing.made_up import noise_of
from reference.gradient_moments import exact_noise_scale_of_set
from torch import nn
from torch.utils.data import TensorDataset
from train.small_workloads import (
    CPU,
    Regularized,
    Stream,
    cross_entropy,
    labelled_vectors,
    simulated_ranks,
    vectors_workload,
    weights_of,
)

from anybatch import InputError, RunError
from anybatch.decide import estimate_noise_scale
from anybatch.probing.noise import (
    POINTS,
    NoisePoint,
    average,
    measure_noise_along_runs,
    measure_noise_at_checkpoint,
    run_batch_size,
    run_lr_scale,
)
from anybatch.probing.noise_meter import MicroBatchSizes, NoiseMeter, StoppingRule
from anybatch.stats import MicroBatches
from anybatch.train.data import SampleDraws
from anybatch.train.loop import accumulate, start_training, train
from anybatch.train.progress import silent
from anybatch.workloads import load_workload
from anybatch.workloads.classification import Accuracy

SEED = 0
SIZES = MicroBatchSizes(1, 96)


def along_runs(workload, **arguments):
    options = {"micro_batch_sizes": SIZES, "samples_per_second": 1e5, "budget": 0.25, "progress": silent, **arguments}
    return measure_noise_along_runs(workload, CPU, **options)


def meter_of(workload, model, seed=0, target="training_set", sizes=None, step_size=128):
    return NoiseMeter(workload, CPU, model, sizes or SIZES, step_size, target, seed)


# at fixed weights, against every sample of the training set


@pytest.fixture(scope="module", params=[0, 200], ids=["fresh", "after 200 steps"])
def trained_digits(request):
    """Digits, weights at rest, and the exact noise scale there."""
    workload = load_workload("digits")
    training = start_training(workload, CPU, seed=SEED)
    list(islice(train(workload, CPU, training, batch_size=32, seed=SEED), request.param))
    model = training.model.eval()
    exact = exact_noise_scale_of_set(
        model, lambda twin, images, labels: cross_entropy(twin, (images, labels)), list(workload.train_set)
    )
    return workload, model, exact, request.param


@pytest.mark.parametrize("target", ["training_set", "population"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_interval_holds_the_exact_noise_scale_of_the_digits(trained_digits, target, seed):
    workload, model, exact, _ = trained_digits
    meter = meter_of(workload, model, seed, target, MicroBatchSizes(1, 512), step_size=512)
    loss, noise = meter.measure(0.0, StoppingRule())  # one round, however fast the machine is
    wanted = getattr(exact, target)
    assert noise.verdict == "measured"
    assert noise.target == target
    assert noise.low <= wanted <= noise.high
    assert noise.high / noise.low < 3
    assert noise.value == pytest.approx(wanted, rel=0.3)
    whole = tuple(workload.train_set.tensors)
    assert loss == pytest.approx(workload.loss(model, whole).item(), rel=0.1)


def test_without_the_correction_for_a_small_set_the_interval_misses_the_digits(trained_digits):
    workload, model, exact, num_steps = trained_digits
    draws, source, moments = SampleDraws(workload, CPU, 1, "test"), MicroBatches(model), []
    for _ in range(24):
        model.zero_grad()
        accumulate(workload, CPU, model, draws.parts([256] * 4), source)
        moments.append(source.finish())
    corrected = estimate_noise_scale(moments, target="training_set", population_size=1437)
    plain = estimate_noise_scale(moments, target="training_set", population_size=None)
    assert corrected.low <= exact.training_set <= corrected.high
    if num_steps:  # fresh weights have a noise scale far below the number of samples
        assert not plain.low <= exact.training_set <= (plain.high or float("inf"))
        assert exact.population > 1.1 * exact.training_set


# no trace


@pytest.mark.parametrize("model", [lambda: nn.Linear(6, 3), Regularized], ids=["linear", "batch norm and dropout"])
def test_measuring_on_the_way_gives_the_same_weights(model):
    workload = vectors_workload(model=model)

    def weights(measure_at):
        torch.manual_seed(5)  # dropout draws from the global generator
        training = start_training(workload, CPU, seed=0)
        meter = meter_of(workload, training.model)
        for step, _ in enumerate(islice(train(workload, CPU, training, batch_size=8, seed=0), 20)):
            if step in measure_at:
                meter.measure(0.0, StoppingRule())
        return weights_of(training.model), torch.random.get_rng_state()

    plain, state = weights(())
    measured, state_after = weights((0, 3, 11))
    assert torch.equal(plain, measured)
    assert torch.equal(state, state_after)


def test_measuring_the_digits_on_the_way_gives_the_same_weights():
    workload = load_workload("digits")

    def weights(measure):
        training = start_training(workload, CPU, seed=0)
        meter = meter_of(workload, training.model)
        steps = train(workload, CPU, training, batch_size=16, seed=0)
        for _ in range(3):
            list(islice(steps, 5))
            if measure:
                meter.measure(0.0, StoppingRule())
        return weights_of(training.model)

    assert torch.equal(weights(False), weights(True))


def test_measuring_leaves_gradients_as_they_were():
    workload = vectors_workload()
    training = start_training(workload, CPU, seed=0)
    next(train(workload, CPU, training, batch_size=8, seed=0))
    before = [parameter.grad.clone() for parameter in training.model.parameters()]
    meter_of(workload, training.model).measure(0.0, StoppingRule())
    after = [parameter.grad for parameter in training.model.parameters()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


# along a run


def test_points_lie_along_the_run_and_repeat_by_seed():
    told = []
    workload = vectors_workload()
    curve = along_runs(workload, samples_per_second=2e5, progress=lambda *call: told.append(call))
    assert curve.batch_size == 4
    assert curve.lr_scale == 0.5
    assert curve.share_of_training == 1
    wanted = [-(-int(192 * share) // 4) * 4 for share in POINTS]
    assert [point.num_samples for point in curve.points] == list(dict.fromkeys(wanted))
    assert curve.points[0].loss > curve.points[-1].loss
    assert curve.points[0].noise_scale.modules.keys() == {"weight", "bias"}
    fractions = [fraction for stage, fraction, _ in told if stage == "noise_scale"]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    again = along_runs(workload, samples_per_second=2e5)
    assert [point.num_samples for point in again.points] == [point.num_samples for point in curve.points]
    assert again.points[0].loss == pytest.approx(curve.points[0].loss, rel=0.2)


def test_several_runs_are_joined_where_the_budget_holds_them():
    curve = along_runs(vectors_workload(), samples_per_second=1e5)
    assert len(curve.runs) == 5
    assert len({run.inverse for run in curve.runs}) == 5
    mean = sum(run.inverse for run in curve.runs) / 5
    assert curve.average.inverse == pytest.approx(mean)
    assert "over 5 runs" in curve.reason
    assert "its interval is from the spread between them" in curve.reason


def test_a_run_is_as_long_as_half_the_budget_allows():
    curve = along_runs(vectors_workload(epochs=20), samples_per_second=1920, budget=0.5)  # 480 of 1920 samples
    assert len(curve.runs) == 1
    assert curve.share_of_training == pytest.approx(0.25)
    assert curve.points[-1].num_samples == 480
    assert "25% of the workload's epochs; its interval is for this run" in curve.reason


def test_without_epochs_the_share_of_training_is_unknown():
    curve = along_runs(vectors_workload(epochs=None), samples_per_second=1600, budget=0.5)
    assert curve.share_of_training is None
    assert curve.points[-1].num_samples == 288  # 3 epochs of 96
    assert "epochs" not in curve.reason


def test_a_stream_is_measured_without_the_correction_for_a_small_set():
    workload = vectors_workload(train_set=Stream(labelled_vectors(500), times=20))
    curve = along_runs(workload, samples_per_second=2e4, budget=0.5)
    assert curve.share_of_training is None
    assert len(curve.points) == len(POINTS)
    assert curve.average.inverse > 0


def test_sizes_may_count_something_else_than_samples():
    def weighted(model, batch):
        losses = nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")
        return (losses * batch[2]).sum() / batch[2].sum()

    inputs, labels = labelled_vectors().tensors
    data = TensorDataset(inputs, labels, torch.full((96,), 10.0))
    workload = vectors_workload(train_set=data, loss=weighted, batch_size_of=lambda batch: float(batch[2].sum()))
    meter = meter_of(workload, start_training(workload, CPU, seed=0).model)
    plain = vectors_workload()
    other = meter_of(plain, start_training(plain, CPU, seed=0).model)
    in_tens, in_samples = (one.measure(0.0, StoppingRule())[1] for one in (meter, other))
    assert meter.size_per_sample == 10
    assert in_tens.value == pytest.approx(in_samples.value, rel=0.02)  # (size - 1) / size of 960 and 96


@pytest.mark.parametrize(
    ("num_samples", "sizes", "parts"),
    [
        (96, (1, 96), [24, 24, 24, 24]),
        (96, (1, 10), [10] * 6 + [9] * 4),
        (5, (1, 5), [2, 2, 1]),
        (5, (2, 5), [3, 2]),
        (2, (1, 2), [1, 1]),
    ],
)
def test_steps_are_cut_into_parts_that_train_and_fit(num_samples, sizes, parts):
    workload = vectors_workload(train_set=labelled_vectors(num_samples), base_batch_size=None)
    meter = meter_of(workload, start_training(workload, CPU, seed=0).model, sizes=MicroBatchSizes(*sizes))
    assert meter._part_sizes() == parts


def test_a_training_set_too_small_for_two_parts_is_refused():
    workload = vectors_workload(train_set=labelled_vectors(3), base_batch_size=None, model=Regularized)
    with pytest.raises(InputError, match="needs 2 micro-batches of at least 2 samples a step; the training set has 3"):
        along_runs(workload, micro_batch_sizes=MicroBatchSizes(2, 3))


@pytest.mark.parametrize(("samples_per_second", "num_points"), [(7e4, 13), (4e4, 7), (2.5e4, 4), (10, 1)])
def test_what_the_budget_does_not_hold_is_not_measured(samples_per_second, num_points):
    workload = vectors_workload(epochs=1000)
    curve = along_runs(workload, samples_per_second=samples_per_second, budget=0.1)
    assert len(curve.points) == num_points
    assert curve.points[-1].num_samples >= curve.share_of_training * 96_000


def test_two_samples_are_enough_to_measure_with():
    workload = vectors_workload(train_set=labelled_vectors(2), base_batch_size=None)
    curve = along_runs(workload)
    assert curve.average.num_steps > 0


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda model, batch: cross_entropy(model, batch) * float("nan"), "16 of 16 gradients are not .* loss is nan"),
        (lambda model, batch: cross_entropy(model, batch) * float("inf"), "must be finite.*The rate may be too high"),
    ],
)
def test_gradients_that_are_not_finite_end_the_run(loss, message):
    with pytest.raises(RunError, match=message):
        along_runs(vectors_workload(loss=loss))


def test_a_few_gradients_that_are_not_finite_are_left_out_and_counted():
    calls = []

    def loss(model, batch):
        calls.append(1)
        value = cross_entropy(model, batch)
        if len(calls) == 7:
            value.register_hook(lambda grad: grad * float("nan"))
        return value

    workload = vectors_workload(loss=loss)
    meter = meter_of(workload, start_training(workload, CPU, seed=0).model)
    _, noise = meter.measure(0.0, StoppingRule())
    assert (noise.num_skipped, noise.num_steps) == (1, 15)


def test_the_metric_is_counted_at_the_end_of_the_first_run():
    data = labelled_vectors(200)
    workload = vectors_workload(train_set=data, eval_set=data, metric=Accuracy)
    assert along_runs(workload).metrics["accuracy"] > 0.6
    assert along_runs(vectors_workload()).metrics == {}


# at a checkpoint


def test_given_weights_have_a_single_point():
    workload = vectors_workload()
    model = start_training(workload, CPU, seed=0).model
    told = []
    curve = measure_noise_at_checkpoint(
        workload,
        CPU,
        model,
        micro_batch_sizes=SIZES,
        samples_per_second=1e4,
        budget=0.2,
        progress=lambda *call: told.append(call),
    )
    (point,) = curve.points
    assert point.num_samples == 0
    assert curve.average is point.noise_scale is curve.runs[0]
    assert (curve.batch_size, curve.share_of_training, curve.lr_scale) == (None, None, 1.0)
    assert curve.reason.startswith(f"at the checkpoint's weights, with a loss of {point.loss:.3g}")
    assert told[-1][:2] == ("noise_scale", 1.0)


# joining points


def point_of(num_samples, inverse):
    value = 1 / inverse if inverse > 0 else None
    return NoisePoint(
        num_samples, 1.0, noise_of(value, inverse=inverse, modules={"all": noise_of(value, inverse=inverse)})
    )


def test_points_are_weighted_by_the_small_batch_samples_between_them():
    inverses = [0.5, 0.1, 0.02]
    points = [point_of(samples, inverse) for samples, inverse in zip([0, 100, 300], inverses, strict=True)]
    first = 100 / (1 + 8 * (0.5 + 0.1) / 2)
    second = 200 / (1 + 8 * (0.1 + 0.02) / 2)
    weights = [first / 2, (first + second) / 2, second / 2]
    wanted = sum(weight * inverse for weight, inverse in zip(weights, inverses, strict=True)) / sum(weights)
    mean = average(points, batch_size=8)
    assert mean.inverse == pytest.approx(wanted)
    assert mean.value == pytest.approx(1 / wanted)
    assert mean.modules["all"].inverse == pytest.approx(wanted)


def test_a_single_point_is_its_own_average():
    assert average([point_of(0, 0.25)], batch_size=8).value == pytest.approx(4)


def test_a_point_whose_gradient_is_lost_in_noise_takes_part_with_its_negative_inverse():
    points = [point_of(0, 0.2), point_of(100, -0.1)]
    assert average(points, batch_size=8).inverse == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("base", "num_samples", "world_size", "batch_size"),
    [(None, 96, 1, 32), (None, 20, 1, 20), (64, 96, 1, 16), (2, 96, 1, 1), (4, 96, 3, 3), (None, None, 1, 32)],
)
def test_the_run_takes_a_quarter_of_the_base_batch(base, num_samples, world_size, batch_size):
    data = labelled_vectors(96 if num_samples is None else num_samples)
    workload = vectors_workload(train_set=Stream(data) if num_samples is None else data, base_batch_size=base)
    runtime = simulated_ranks(world_size)[0]
    assert run_batch_size(workload, runtime) == batch_size
    wanted = 1 if base is None else (batch_size / base) ** 0.5
    assert run_lr_scale(workload, batch_size) == pytest.approx(wanted)


def test_a_run_that_trains_has_a_noise_scale_that_grows():
    workload = replace(vectors_workload(train_set=labelled_vectors(400)), epochs=6)
    curve = along_runs(workload, samples_per_second=8000, budget=1.0)
    inverses = [point.noise_scale.inverse for point in curve.points]
    assert inverses[0] > 2 * inverses[-1]
    assert sum(one > other for one, other in pairwise(inverses)) >= 8


def test_a_run_never_takes_batches_that_batch_norm_cannot_train_on():
    workload = vectors_workload(
        model=lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)), base_batch_size=4
    )
    curve = along_runs(workload, micro_batch_sizes=MicroBatchSizes(2, 96))
    assert curve.batch_size == 2


def test_under_batch_norm_parts_are_the_run_s_own_micro_batches():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    workload = vectors_workload(model=lambda: model, base_batch_size=32)
    seen = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])) if model.training else None)
    along_runs(workload, micro_batch_sizes=MicroBatchSizes(2, 96))
    assert set(seen) == {8}


# in Adam's geometry


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=0.01)


def test_in_adam_s_geometry_the_first_point_follows_the_first_step():
    curve = along_runs(vectors_workload(optimizer=adam), geometry="adam", fractions=(0.0, 0.5, 1.0))
    assert [point.num_samples for point in curve.points] == [4, 96, 192]
    assert {point.noise_scale.geometry for point in curve.points} == {"adam"}
    assert curve.average.geometry == "adam"


def test_adam_s_geometry_needs_its_optimizer():
    with pytest.raises(InputError, match=r"optimizer must have betas and eps.*got SGD"):
        along_runs(vectors_workload(), geometry="adam")
