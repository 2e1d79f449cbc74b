"""How fast each micro-batch size trains: the sizes, the knee, and a model at rest."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from probing.made_up import curve_of
from torch import nn
from train.small_workloads import CPU, Regularized, cross_entropy, vectors_workload

from anybatch import RunError
from anybatch.probing.throughput import KNEE_SHARE, ThroughputPoint, _curve, grid, measure_throughput
from anybatch.train.progress import silent


def measured(workload, **arguments):
    return measure_throughput(
        workload, CPU, progress=silent, **{"max_micro_batch_size": 12, "budget": 2.0, **arguments}
    )


@given(smallest=st.integers(1, 40), extra=st.integers(0, 3000))
def test_sizes_are_powers_of_two_between_the_smallest_and_the_largest(smallest, extra):
    largest = smallest + extra
    sizes = grid(smallest, largest)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == largest
    assert all(size & (size - 1) == 0 and size >= smallest for size in sizes[:-1])
    assert set(sizes) >= {2**power for power in range(13) if smallest <= 2**power <= largest}


def test_points_ascend_and_their_figures_belong_together():
    told = []
    curve = measure_throughput(
        vectors_workload(), CPU, max_micro_batch_size=12, budget=3.0, progress=lambda *call: told.append(call)
    )
    assert [point.micro_batch_size for point in curve.points] == [1, 2, 4, 8, 12]
    assert [call[0] for call in told] == ["throughput"] * 5
    for point in curve.points:
        assert point.samples_per_second == pytest.approx(point.micro_batch_size / point.seconds_per_step)
        assert point.samples_per_second_with_loader == pytest.approx(
            point.micro_batch_size / point.seconds_per_step_with_loader
        )
        assert point.samples_per_second_low <= point.samples_per_second <= point.samples_per_second_high
        assert point.samples_per_second_with_loader <= point.samples_per_second
    assert 0 < curve.optimizer_seconds <= curve.points[0].seconds_per_step


def test_the_smallest_size_that_trains_is_the_first():
    curve = measured(vectors_workload(model=Regularized), min_micro_batch_size=2)
    assert [point.micro_batch_size for point in curve.points] == [2, 4, 8, 12]


def test_a_spent_budget_ends_the_curve_after_the_first_size():
    assert [point.micro_batch_size for point in measured(vectors_workload(), budget=0.0).points] == [1]


def test_timing_moves_neither_weights_nor_the_global_generator():
    models = []

    def model():
        models.append(nn.Linear(6, 3))
        return models[-1]

    workload = vectors_workload(model=model)
    before = torch.random.get_rng_state()
    torch.manual_seed(0)
    measured(workload, max_micro_batch_size=2)
    (timed,) = models
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    measured(workload, max_micro_batch_size=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(one, other) for one, other in zip(timed.parameters(), models[1].parameters(), strict=True))
    torch.random.set_rng_state(before)


def test_a_slow_loader_is_seen_beside_the_model():
    class Slow(torch.utils.data.Dataset):
        def __len__(self):
            return 16

        def __getitem__(self, index):
            torch.ones(400, 400) @ torch.ones(400, 400)
            return torch.zeros(6), 0

    curve = measured(vectors_workload(train_set=Slow()), max_micro_batch_size=4)
    last = curve.points[-1]
    assert last.samples_per_second_with_loader < last.samples_per_second / 2


def test_a_loss_that_is_not_finite_ends_the_timing():
    workload = vectors_workload(
        loss=lambda model, batch: cross_entropy(model, batch) * (float("nan") if len(batch[0]) == 4 else 1)
    )
    with pytest.raises(RunError, match="loss is nan on the first batch of 4 samples"):
        measured(workload)


@pytest.mark.parametrize(
    ("rates", "knee"),
    [
        ({1: 100, 2: 190, 4: 350, 8: 600}, 8),
        ({1: 100, 2: 195, 4: 200, 8: 200}, 2),
        ({1: 100, 2: 180, 4: 200, 8: 150}, 2),  # 180 is 0.9 of the best, and the largest size is slower
        ({1: 100, 2: 179, 4: 200, 8: 190}, 4),
        ({1: 100}, 1),
    ],
)
def test_the_knee_is_the_smallest_size_within_a_share_of_the_best(rates, knee):
    points = [ThroughputPoint(size, 1e6, 1e6, 1e6, rate, 1e-6, size / rate) for size, rate in rates.items()]
    curve = _curve(points, 0.0)
    assert curve.knee == knee
    best = max(rates, key=rates.get)
    assert curve.reason == (
        f"{knee} is the smallest size within {1 - KNEE_SHARE:.0%} of the best throughput, "
        f"{rates[best]} samples/s at {best}"
    )


def test_the_optimizer_takes_no_more_than_the_smallest_step():
    points = curve_of(lambda size: 0.01 * size, [1, 2]).points
    assert _curve(points, 1.0).optimizer_seconds == 0.01
    assert _curve(points, 0.001).optimizer_seconds == 0.001
