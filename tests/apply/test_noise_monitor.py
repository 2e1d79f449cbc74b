"""The monitor measures when it says, what its source says, and nothing else."""

import copy
import json
import math

import pytest
import torch
from stats.nets import BodyAndHead, make_samples, mean_loss, stack
from torch import nn

import anybatch
from anybatch import NoiseMonitor
from anybatch.decide import estimate_noise_scale
from anybatch.errors import InputError
from anybatch.stats import MicroBatches


def train(monitor, model, num_steps, num_parts=1, optimizer=None, first=0):
    """Run steps by the book; return the steps that were measured."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.01)
    measured = []
    for step in range(first, first + num_steps):
        optimizer.zero_grad()
        for part in range(num_parts):
            inputs, targets = stack(make_samples(8, seed=100 * step + part))
            with monitor.sub_batch(8, weight=1 / num_parts):
                (mean_loss(model, inputs, targets) / num_parts).backward()
        if monitor.finish():
            measured.append(step + 1)
        optimizer.step()
    return measured


@pytest.mark.parametrize("num_parts", [1, 3])
def test_every_so_many_steps_are_measured(num_parts):
    model = BodyAndHead()
    monitor = NoiseMonitor(model, every=4)
    assert train(monitor, model, 13, num_parts) == [4, 8, 12]
    assert monitor.num_measurements == 3


def test_the_first_step_is_never_measured():
    model = BodyAndHead()
    assert train(NoiseMonitor(model, every=1), model, 4) == [2, 3, 4]


def test_a_measured_step_outside_sub_batch_is_refused():
    monitor = NoiseMonitor(BodyAndHead(), every=3)
    assert not monitor.finish()
    assert not monitor.finish()
    with pytest.raises(InputError, match=r"forward pass and backward\(\) inside monitor.sub_batch\(size\); got none"):
        monitor.finish()


def test_steps_between_leave_no_hook_and_call_no_source(monkeypatch):
    model = BodyAndHead()
    monitor = NoiseMonitor(model, every=3)
    monkeypatch.setattr(monitor, "_make_source", lambda: pytest.fail("measured"))
    train(monitor, model, 2)
    assert monitor.is_due


def test_figures_are_those_of_the_source_over_the_window():
    model, twin = BodyAndHead(), BodyAndHead()
    monitor = NoiseMonitor(model, every=2, window=3, per_module=True)
    train(monitor, model, 10, num_parts=4)
    source, optimizer, moments = MicroBatches(twin), torch.optim.SGD(twin.parameters(), lr=0.01), []
    for step in range(10):
        optimizer.zero_grad()
        for part in range(4):
            with source.sub_batch(8, weight=1 / 4):
                (mean_loss(twin, *stack(make_samples(8, seed=100 * step + part))) / 4).backward()
        moments.append(source.finish())
        optimizer.step()
    wanted = estimate_noise_scale([moments[5], moments[7], moments[9]])
    assert monitor.noise_scale() == wanted
    figures = monitor.log()
    assert figures["batch_size"] == 32
    assert figures["noise_scale"] == wanted.value
    assert figures["batch_efficiency"] == pytest.approx(1 / (1 + wanted.value / 32))
    assert figures["batch_efficiency"] + figures["sample_efficiency"] == pytest.approx(1)
    assert figures["inverse_noise_scale"] == wanted.inverse
    for name, module in wanted.modules.items():
        assert figures.get(f"noise_scale/{name}") == module.value


def test_figures_are_finite_floats_that_json_takes():
    model = BodyAndHead()
    monitor = NoiseMonitor(model, every=2)
    assert monitor.log() == {}
    train(monitor, model, 2)
    assert monitor.log() == {}
    train(monitor, model, 8)
    figures = json.loads(json.dumps(monitor.log(), allow_nan=False))
    assert figures
    assert all(isinstance(value, float) and math.isfinite(value) for value in figures.values())
    assert {"noise_scale", "noise_scale_low", "noise_scale_high", "batch_efficiency"} <= figures.keys()


def test_without_a_gradient_that_stands_out_there_is_a_lower_limit_alone():
    model = nn.Linear(30, 1, bias=False)
    monitor = NoiseMonitor(model, every=1)
    for step in range(8):
        model.zero_grad()
        with monitor.sub_batch(8):
            model(torch.randn(8, 30, generator=torch.Generator().manual_seed(step))).mean().backward()
        monitor.finish()
    assert monitor.noise_scale().value is None
    assert monitor.log().keys() == {"noise_scale_at_least", "inverse_noise_scale", "batch_size"}


def test_a_batch_measured_by_some_of_its_samples_agrees_with_all_of_them():
    noise = {}
    for stride in (1, 8):
        model = BodyAndHead()
        monitor = NoiseMonitor(model, every=1, window=60, sample_stride=stride)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        for step in range(61):
            model.zero_grad()
            with monitor.sub_batch(64):
                mean_loss(model, *stack(make_samples(64, seed=step))).backward()
            monitor.finish()
            optimizer.step()
        noise[stride] = monitor.noise_scale()
    assert noise[1].inverse != noise[8].inverse
    assert noise[8].inverse == pytest.approx(noise[1].inverse, rel=0.1)  # 480 samples of 3840: 5% each and some luck
    assert noise[8].low < noise[1].value < noise[8].high


def test_training_is_the_same_with_and_without():
    plain, watched = BodyAndHead(), BodyAndHead()
    train(NoiseMonitor(plain, every=10**6), plain, 6)
    train(NoiseMonitor(watched, every=2), watched, 6)
    for left, right in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(left, right)


def test_a_resumed_monitor_goes_on_as_the_uninterrupted_one(tmp_path):
    model = BodyAndHead()
    whole = NoiseMonitor(model, every=3)
    train(whole, model, 7)
    torch.save(whole.state_dict(), tmp_path / "monitor.pt")
    second = copy.deepcopy(model)
    resumed = NoiseMonitor(second, every=3)
    resumed.load_state_dict(torch.load(tmp_path / "monitor.pt", weights_only=True))
    assert train(resumed, second, 6, first=7) == train(whole, model, 6, first=7) == [9, 12]
    assert resumed.log() == whole.log() != {}
    assert resumed.num_measurements == 4


def test_adam_waits_for_its_first_step_and_says_its_geometry():
    model = BodyAndHead()
    optimizer = torch.optim.AdamW(model.parameters())
    monitor = NoiseMonitor(model, every=1, geometry="adam", optimizer=optimizer)
    measured = []
    for step in range(5):
        optimizer.zero_grad()
        with monitor.sub_batch(8):
            mean_loss(model, *stack(make_samples(8, step))).backward()
        measured.append(monitor.finish())
        if step > 0:  # a first step that GradScaler skips
            optimizer.step()
    assert measured == [False, False, True, True, True]
    assert monitor.noise_scale().geometry == "adam"


def test_cutting_the_batch_where_it_is_due_measures_batch_norm():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    monitor = NoiseMonitor(model, every=2, source="micro_batches")
    for step in range(6):
        model.zero_grad()
        inputs = torch.randn(32, 4, generator=torch.Generator().manual_seed(step))
        parts = inputs.chunk(4 if monitor.is_due else 1)
        for part in parts:
            with monitor.sub_batch(len(part)):
                ((model(part) - 1).square().mean() / len(parts)).backward()
        monitor.finish()
    assert monitor.num_measurements == 3
    assert monitor.noise_scale() is not None


def test_one_micro_batch_with_batch_norm_is_refused_at_the_first_step_with_what_to_do():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    monitor = NoiseMonitor(model, every=50)
    with monitor.sub_batch(8):
        model(torch.randn(8, 4)).square().mean().backward()
    with pytest.raises(InputError, match=r"2 micro-batches or more .* got 1, .* Accumulate, or cut the batch"):
        monitor.finish()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every must be at least 1; got 0"),
        ({"window": 1}, "window must be at least 2; got 1"),
        ({"source": "rank"}, "source must be one of auto, micro_batches, ranks, per_sample; got 'rank'"),
        ({"geometry": "adam"}, "must come with the optimizer"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        NoiseMonitor(BodyAndHead(), **options)


def test_a_state_of_another_geometry_or_in_the_middle_of_a_step_is_refused():
    model = BodyAndHead()
    optimizer = torch.optim.Adam(model.parameters())
    monitor = NoiseMonitor(model, geometry="adam", optimizer=optimizer)
    with pytest.raises(InputError, match="geometry 'adam'; got 'sgd'"):
        monitor.load_state_dict(NoiseMonitor(model).state_dict())
    with monitor.sub_batch(4):
        pass
    with pytest.raises(RuntimeError, match="between steps; a step is open"):
        monitor.state_dict()


def test_a_state_of_other_modules_is_refused():
    model = BodyAndHead()
    monitor = NoiseMonitor(model, every=1)
    train(monitor, model, 2)
    other = NoiseMonitor(model, module_prefixes={"all": ["body", "head"]})
    with pytest.raises(InputError, match="must be of the modules all; got body, head"):
        other.load_state_dict(monitor.state_dict())


def test_the_state_of_another_version_is_refused():
    monitor = NoiseMonitor(torch.nn.Linear(2, 1))
    with pytest.raises(ValueError, match="state of the monitor must have version 1; got None"):
        monitor.load_state_dict({})


def test_an_optimizer_that_keeps_no_second_moments_is_told_and_not_waited_for():
    model = BodyAndHead()
    optimizer = torch.optim.Adamax(model.parameters())
    monitor = NoiseMonitor(model, every=2, geometry="adam", optimizer=optimizer)
    with pytest.raises(RuntimeError, match="second moments"):
        train(monitor, model, 2, optimizer=optimizer)


def test_it_is_at_the_root():
    assert anybatch.NoiseMonitor is NoiseMonitor
