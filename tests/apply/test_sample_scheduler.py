"""A schedule of torch, counted in samples: at the base batch it is itself, at any other it is where it should be."""

import io

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.optim import lr_scheduler as torch_schedulers

from anybatch import InputError, Milestones
from anybatch.apply import SampleScheduler
from anybatch.decide.sample_schedule import SampleSchedule

NUM_STEPS = 24
BASE = 12  # samples per update of the base batch


def sequential(optimizer):
    return torch_schedulers.SequentialLR(
        optimizer,
        [
            torch_schedulers.LinearLR(optimizer, 0.1, total_iters=4),
            torch_schedulers.CosineAnnealingLR(optimizer, NUM_STEPS - 4),
        ],
        milestones=[4],
    )


SCHEDULERS = {
    "StepLR": lambda optimizer: torch_schedulers.StepLR(optimizer, 5, 0.5),
    "MultiStepLR": lambda optimizer: torch_schedulers.MultiStepLR(optimizer, [3, 11, 12], 0.2),
    "ExponentialLR": lambda optimizer: torch_schedulers.ExponentialLR(optimizer, 0.9),
    "CosineAnnealingLR": lambda optimizer: torch_schedulers.CosineAnnealingLR(optimizer, NUM_STEPS, 1e-3),
    "CosineAnnealingWarmRestarts": lambda optimizer: torch_schedulers.CosineAnnealingWarmRestarts(optimizer, 5, 2),
    "OneCycleLR": lambda optimizer: torch_schedulers.OneCycleLR(optimizer, 1.0, total_steps=NUM_STEPS + 1),
    "LambdaLR": lambda optimizer: torch_schedulers.LambdaLR(optimizer, lambda step: 1 / (1 + step)),
    "SequentialLR": sequential,
}
make_schedulers = pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)


def two_groups():
    """An optimizer with two rates."""
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in (0.1, 0.3)]
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def rates(optimizer):
    return [group["lr"] for group in optimizer.param_groups]


def own_sequence(make):
    """The rates before the first step and after each, set by torch alone."""
    optimizer = two_groups()
    scheduler = make(optimizer)
    sequence = [rates(optimizer)]
    for _ in range(NUM_STEPS):
        optimizer.step()
        scheduler.step()
        sequence.append(rates(optimizer))
    return sequence


def advanced(scheduler, optimizer, num_samples):
    optimizer.step()
    scheduler.advance(num_samples)
    return rates(optimizer)


@make_schedulers
def test_at_the_base_batch_a_scheduler_sets_its_own_sequence(make):
    optimizer = two_groups()
    scheduler = SampleScheduler(optimizer, scheduler=make(optimizer), samples_per_step=BASE)
    found = [rates(optimizer)]
    found += [advanced(scheduler, optimizer, BASE * step) for step in range(1, NUM_STEPS + 1)]
    assert found == own_sequence(make)


@make_schedulers
@pytest.mark.parametrize("batch_size", [1, 5, 12, 18, 36, 96, 288])
def test_at_any_batch_size_the_rates_agree_at_equal_samples(make, batch_size):
    wanted = own_sequence(make)
    optimizer = two_groups()
    scheduler = SampleScheduler(optimizer, scheduler=make(optimizer), samples_per_step=BASE)
    for num_samples in range(batch_size, BASE * NUM_STEPS + 1, batch_size):
        assert advanced(scheduler, optimizer, num_samples) == wanted[num_samples // BASE]


@make_schedulers
def test_a_factor_multiplies_what_the_scheduler_sets_and_does_not_feed_back(make):
    wanted = own_sequence(make)
    optimizer = two_groups()
    warm_up = SampleSchedule((), (), warmup_samples=100)
    scheduler = SampleScheduler(optimizer, warm_up.factor, make(optimizer), BASE)
    assert rates(optimizer) == pytest.approx([lr / 100 for lr in wanted[0]])
    for num_samples in range(8, BASE * NUM_STEPS + 1, 8):
        factor = min(1.0, (num_samples + 1) / 100)
        found = advanced(scheduler, optimizer, num_samples)
        assert found == pytest.approx([lr * factor for lr in wanted[num_samples // BASE]])


@make_schedulers
@pytest.mark.parametrize("stop", [40, 150])
def test_a_state_goes_through_a_file_and_the_schedule_goes_on(make, stop):
    def started():
        optimizer = two_groups()
        factor = SampleSchedule.from_epochs(Milestones((10,), 0.5), BASE, warmup_epochs=5).factor
        return optimizer, SampleScheduler(optimizer, factor, make(optimizer), BASE)

    optimizer, scheduler = started()
    wanted = {samples: advanced(scheduler, optimizer, samples) for samples in range(10, 281, 10)}
    optimizer, scheduler = started()
    for samples in range(10, stop + 1, 10):
        advanced(scheduler, optimizer, samples)
    file = io.BytesIO()
    torch.save({"scheduler": scheduler.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    optimizer, scheduler = started()
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    for samples in range(stop + 10, 281, 10):
        assert advanced(scheduler, optimizer, samples) == wanted[samples]


def test_a_factor_alone_schedules_the_optimizers_rates():
    optimizer = two_groups()
    scheduler = SampleScheduler(optimizer, lambda samples: 1 / (1 + samples))
    assert rates(optimizer) == [0.1, 0.3]
    scheduler.advance(4)
    assert rates(optimizer) == pytest.approx([0.02, 0.06])
    scheduler.advance(9)
    assert rates(optimizer) == pytest.approx([0.01, 0.03])


def test_without_anything_rates_stay_as_they_are():
    optimizer = two_groups()
    scheduler = SampleScheduler(optimizer)
    optimizer.param_groups[0]["lr"] = 5.0
    scheduler.advance(1000)
    assert rates(optimizer) == [5.0, 0.3]


@given(
    num_samples=st.integers(2, 2000),
    base=st.integers(1, 500),
    batch_size=st.integers(1, 500),
    epochs=st.integers(1, 50),
)
@example(num_samples=96, base=15, batch_size=12, epochs=10)  # 64 * 12 / (96 * 12 / 15) is 9.999999999999998
def test_a_stretched_schedule_moves_at_the_update_of_the_base_batch(num_samples, base, batch_size, epochs):
    """Regime adaptation: the drop after so many updates comes after as many at any other batch, to the update."""
    stretch = batch_size / base
    updates = -(-epochs * num_samples // base)  # the first update that has seen so many epochs at the base batch
    optimizer = two_groups()
    scheduler = SampleScheduler(
        optimizer, scheduler=SCHEDULERS["ExponentialLR"](optimizer), samples_per_step=num_samples * stretch
    )
    optimizer.step()
    scheduler.advance((updates - 1) * batch_size)
    before = rates(optimizer)[0]
    scheduler.advance(updates * batch_size)
    assert before > rates(optimizer)[0] * 1.0001
    assert rates(optimizer)[0] == pytest.approx(0.1 * 0.9 ** (updates * base // num_samples))


def test_a_scheduler_that_waits_for_a_metric_is_refused():
    optimizer = two_groups()
    scheduler = torch_schedulers.ReduceLROnPlateau(optimizer)
    with pytest.raises(InputError, match=r"scheduler must depend on progress alone; got ReduceLROnPlateau, which wait"):
        SampleScheduler(optimizer, scheduler=scheduler)  # pyright: ignore[reportArgumentType]


def test_a_scheduler_of_another_optimizer_is_refused():
    scheduler = torch_schedulers.ExponentialLR(two_groups(), 0.5)
    with pytest.raises(InputError, match=r"scheduler must be the optimizer's own; it was made for another one\."):
        SampleScheduler(two_groups(), scheduler=scheduler)
