"""The whole: what a probe returns, keeps when it ends early, and refuses."""

import json
import random
import time
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch import nn
from train.small_workloads import (
    CPU,
    Regularized,
    Stream,
    cross_entropy,
    labelled_vectors,
    vectors_workload,
)

import anybatch
from anybatch import InputError, ProbeInterrupted, RunError
from anybatch.probing.probe import ProbeSettings
from anybatch.train.loop import start_training
from anybatch.workloads import load_workload

STAGES = ["check", "memory", "throughput", "noise_scale", "recommend"]


def probed(workload=None, **arguments):
    return anybatch.probe(workload or vectors_workload(), **{"budget": 0.5, "device": "cpu", **arguments})


# the digits, from end to end


@pytest.fixture(scope="module")
def told():
    return []


@pytest.fixture(scope="module")
def digits(told):
    workload = load_workload("digits")
    start_training(workload, CPU, seed=0)  # torch and scikit-learn draw random numbers where they are first imported
    before = torch.random.get_rng_state(), random.getstate(), str(np.random.get_state())
    result = anybatch.probe(workload, budget=6, device="cpu", progress=lambda *call: told.append(call))
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert (random.getstate(), str(np.random.get_state())) == before[1:]
    return result


@pytest.fixture(scope="module")
def record(digits):
    return json.loads(digits.to_json())


def test_the_json_holds_what_was_promised(record):
    assert record["memory"]["max_micro_batch_size"] == 1437
    assert record["memory"]["limited_by"] == "dataset"
    assert all(point["micro_batch_size"] and point["samples_per_second"] for point in record["throughput"])
    noise = record["noise_scale"]
    assert {"value", "low", "high", "verdict", "modules", "at_least", "reason", "points", "runs"} <= noise.keys()
    assert noise["verdict"] == "measured"
    assert 0 < noise["low"] < noise["value"] < noise["high"]
    assert noise["modules"].keys() == {"features", "classifier"}
    assert record["recommendation"].keys() >= {
        "batch_size", "micro_batch_size", "accumulation_steps", "lr_scale", "reasons", "settings",
    }  # fmt: skip
    assert record["seconds"].keys() == {*STAGES, "total"}
    assert record["seconds"]["total"] == pytest.approx(sum(record["seconds"][stage] for stage in STAGES), rel=0.05)
    assert record["partial"] is False
    assert record["workload"] == "digits"
    assert record["settings"]["budget"] == 6
    assert record["environment"]["world_size"] == 1


def test_each_number_of_the_recommendation_has_its_reason_in_a_sentence(record):
    recommendation = record["recommendation"]
    assert recommendation["reasons"].keys() >= {"batch_size", "micro_batch_size", "accumulation_steps", "lr_scale"}
    assert all(reason and "\n" not in reason for reason in recommendation["reasons"].values())
    for part in (record["memory"], record["knee"], record["law"], record["diminishing_devices"], record["noise_scale"]):
        assert part["reason"]


def test_the_recommendation_follows_from_the_measurements(record):
    recommendation, law = record["recommendation"], record["law"]
    assert law["critical_batch_size"] == record["noise_scale"]["value"]
    size = recommendation["batch_size"]
    assert recommendation["batch_size_low"] <= size <= recommendation["batch_size_high"]
    assert recommendation["micro_batch_size"] * recommendation["accumulation_steps"] == size
    best = min(record["curve"], key=lambda point: point["relative_time"])
    assert best["batch_size"] == size
    assert best["relative_time"] == 1
    ratio = size / 32
    factor = ratio if recommendation["lr_rule"] == "linear" else ratio**0.5
    assert recommendation["lr_scale"] == pytest.approx(factor)
    assert [point["devices"] for point in record["devices"]] == [1, 8, 64, 512]
    largest = recommendation["samples_of_largest"]
    assert largest["value"] == pytest.approx(law_ratio(law["critical_batch_size"], 1437, size))


def law_ratio(critical, size, other):
    return (1 + size / critical) / (1 + other / critical)


def test_the_result_is_written_as_json_and_as_a_page(digits, tmp_path):
    digits.to_json(tmp_path / "deep" / "p.json")
    assert json.loads((tmp_path / "deep" / "p.json").read_text()) == digits.to_dict()
    digits.to_html(tmp_path / "p.html")
    page = (tmp_path / "p.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert "digits" in page


@pytest.mark.parametrize("method", ["to_json", "to_html"])
def test_a_file_that_cannot_be_written_is_told(digits, method, tmp_path):
    with pytest.raises(InputError, match="cannot be written: Is a directory"):
        getattr(digits, method)(tmp_path)


def test_progress_goes_through_the_stages_in_order(digits, told):
    stages = [call[0] for call in told]
    assert list(dict.fromkeys(stages)) == STAGES
    for stage in STAGES[:4]:
        fractions = [call[1] for call in told if call[0] == stage]
        assert fractions[0] == 0
        assert fractions[-1] == 1
        assert all(0 <= fraction <= 1 for fraction in fractions)


# what is asked for


def test_a_batch_asked_for_is_planned_and_compared():
    result = probed(batch_size=80, memory=None)
    recommendation = result.recommendation
    assert recommendation.batch_size == recommendation.batch_size_low == recommendation.batch_size_high == 80
    assert recommendation.reasons["batch_size"].startswith("you asked for 80; the measurements would recommend ")
    assert any(point.batch_size == 80 and point.relative_time == 1 for point in result.curve)
    (warning,) = [warning for warning in result.warnings if warning.cause == "short last batch"]
    assert "96 samples leave a last batch of 16 at batch 80, whose samples would weigh 5 times" in warning.message


def test_a_batch_larger_than_fits_is_accumulated(monkeypatch):
    def too_large(model, batch):
        if len(batch[0]) > 10:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return cross_entropy(model, batch)

    workload = vectors_workload(loss=too_large)
    monkeypatch.setattr("anybatch.probing.input_check._refuse_bad_loss", lambda *_: None)  # it takes 3 x 8 at once
    recommendation = probed(workload, batch_size=64).recommendation
    assert recommendation.accumulation_steps >= 8
    assert recommendation.micro_batch_size <= 8
    assert "(loss / accumulation_steps).backward()" in recommendation.settings["PyTorch"]


def test_without_a_base_batch_size_there_is_no_advice_on_rates():
    recommendation = probed(vectors_workload(base_batch_size=None)).recommendation
    assert (recommendation.lr_scale, recommendation.lr_rule) == (None, None)
    assert "base_batch_size" in recommendation.reasons["lr_scale"]
    assert not any(word in text for text in recommendation.settings.values() for word in ("lr=", "learning_rate"))


def test_adam_gets_its_betas_and_noise_in_its_own_geometry():
    def adam(model):
        return torch.optim.AdamW(model.parameters(), lr=0.01, betas=(0.9, 0.99))

    result = probed(vectors_workload(optimizer=adam), batch_size=32)
    recommendation = result.recommendation
    assert recommendation.lr_scale == pytest.approx(2**0.5)
    assert recommendation.betas == pytest.approx((0.8, 0.98))
    assert result.noise.average.geometry == "adam"
    assert "in Adam's geometry" in result.noise.reason
    assert "noise in SGD's geometry" not in [warning.cause for warning in result.warnings]


def test_noise_of_other_optimizers_is_the_plain_gradient_s_and_is_said_to_be(tmp_path):
    def rmsprop(model):
        return torch.optim.RMSprop(model.parameters(), lr=0.01)

    def adam(model):
        return torch.optim.Adam(model.parameters(), lr=0.01)

    torch.save(vectors_workload().model().state_dict(), tmp_path / "weights.pt")
    for optimizer, options in ((rmsprop, {}), (adam, {"checkpoint": tmp_path / "weights.pt"})):
        result = probed(vectors_workload(optimizer=optimizer), batch_size=32, **options)
        assert result.noise.average.geometry == "sgd"
        assert "noise in SGD's geometry" in [warning.cause for warning in result.warnings]


def test_kept_probes_of_plain_gradients_stay_where_they_were(tmp_path):
    def adam(model):
        return torch.optim.Adam(model.parameters(), lr=0.01)

    for workload, settings in ((vectors_workload(), set()), (vectors_workload(optimizer=adam), {"geometry"})):
        probed(workload, batch_size=32, runs=tmp_path / workload.optimizer.__name__)
        (path,) = (tmp_path / workload.optimizer.__name__).glob("probe-*/config.json")
        kept = json.loads(path.read_text())["probe"]
        assert kept.keys() - {field.name for field in fields(ProbeSettings)} == settings


def test_a_schedule_that_warms_up_leaves_the_advised_rate_alone():
    def warm_up(optimizer):
        return torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1)

    recommendation = probed(vectors_workload(schedule=warm_up), batch_size=16).recommendation
    assert "lr=0.1" in recommendation.settings["PyTorch"]


def test_an_optimizer_without_a_known_rule_gets_no_rate():
    class Lion(torch.optim.SGD):
        pass

    recommendation = probed(vectors_workload(optimizer=lambda model: Lion(model.parameters(), lr=0.1))).recommendation
    assert recommendation.lr_scale is None
    assert recommendation.reasons["lr_scale"] == "no scaling rule is known for Lion"


def test_a_checkpoint_is_measured_at_its_weights(tmp_path):
    workload = vectors_workload()
    torch.save(start_training(workload, CPU, seed=3).model.state_dict(), tmp_path / "w.pt")
    noise = probed(workload, checkpoint=tmp_path / "w.pt").noise
    assert len(noise.points) == 1
    assert "at the checkpoint's weights" in noise.reason


def test_a_short_run_is_warned_of():
    result = probed(vectors_workload(epochs=1e5))
    (warning,) = [warning for warning in result.warnings if warning.cause == "short run"]
    assert "A larger --budget covers more" in warning.message


def test_a_stream_can_be_probed():
    workload = vectors_workload(train_set=Stream(labelled_vectors(200), times=1000))
    result = probed(workload, memory=10**12)
    assert result.memory.limited_by in ("search", "memory")
    assert result.noise.share_of_training is None
    assert result.recommendation.batch_size >= 1


def test_a_probe_of_a_stream_cannot_be_kept(tmp_path):
    workload = vectors_workload(train_set=Stream(labelled_vectors(200), times=1000))
    with pytest.raises(InputError, match="train_set must have a length for runs to be kept; got a stream"):
        probed(workload, memory=10**12, runs=tmp_path)


def test_a_model_with_batch_norm_on_vectors_can_be_probed():
    result = probed(vectors_workload(model=Regularized))
    assert result.throughput.points[0].micro_batch_size == 2
    assert result.recommendation.micro_batch_size >= 2
    assert "BatchNorm in train mode" in [warning.cause for warning in result.warnings]


# what is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": "test_set"}, "target must be one of training_set, population; got 'test_set'"),
        ({"objective": "money"}, "objective must be one of time, samples; got 'money'"),
        ({"autocast": "float8"}, "autocast must be one of bfloat16; got 'float8'"),
        ({"budget": 0}, "budget must be a positive number of seconds; got 0"),
        ({"budget": float("nan")}, "budget must be a positive number of seconds; got nan"),
        ({"budget": float("inf")}, "budget must be a positive number of seconds; got inf"),
        ({"devices": [1, 0]}, r"devices must be numbers of at least 1; got \[1, 0\]"),
        ({"batch_size": 97}, "batch_size must be at most the training set's 96 samples; got 97"),
        ({"batch_size": 0}, "batch_size must be at least the number of ranks, 1; got 0"),
        ({"device": "abacus"}, "device must be one torch can use here; got 'abacus'"),
        ({"checkpoint": "/none.pt"}, r"checkpoint /none\.pt cannot be read: No such file"),
        ({"memory": 1000}, "memory must hold one sample; got 0.001 MB, and training on it takes"),
    ],
)
def test_a_bad_argument_is_told_with_its_rule(arguments, message):
    with pytest.raises(InputError, match=message):
        probed(**arguments)


def test_a_base_batch_larger_than_the_data_is_refused():
    with pytest.raises(InputError, match="base_batch_size of the workload must be at most the training set's 96"):
        probed(vectors_workload(base_batch_size=128))


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "w.pt")
    with pytest.raises(InputError, match="checkpoint must fit the workload's model; size mismatch"):
        probed(checkpoint=tmp_path / "w.pt")


def test_a_refused_loss_has_nothing_measured_yet():
    with pytest.raises(InputError, match="sum-reduced") as caught:
        probed(vectors_workload(loss=lambda model, batch: cross_entropy(model, batch) * len(batch[0])))
    assert caught.value.partial.memory is None
    assert caught.value.partial.partial


# what is kept


def interrupted_at(stage):
    def progress(name, fraction, text=""):
        if name == stage and fraction > 0:
            raise KeyboardInterrupt

    with pytest.raises(ProbeInterrupted, match="the probe was interrupted") as caught:
        probed(progress=progress)
    return caught.value.partial


@pytest.mark.parametrize(
    ("stage", "kept"),
    [("check", []), ("memory", []), ("throughput", ["memory"]), ("noise_scale", ["memory", "throughput"])],
)
def test_an_interruption_keeps_what_was_measured(stage, kept, tmp_path):
    result = interrupted_at(stage)
    assert result.partial
    assert [name for name in ("memory", "throughput", "noise", "recommendation") if getattr(result, name)] == kept
    assert list(result.seconds) == STAGES[: STAGES.index(stage) + 1]
    record = json.loads(result.to_json())
    assert record["partial"] is True
    assert record["recommendation"] is None
    result.to_html(tmp_path / "p.html")
    assert (tmp_path / "p.html").stat().st_size > 1000


def test_a_loss_that_breaks_on_the_way_keeps_what_was_measured():
    broken = []

    def progress(stage, fraction, text=""):
        if stage == "noise_scale" and fraction > 0:
            broken.append(True)

    def loss(model, batch):
        return cross_entropy(model, batch) * (float("nan") if broken else 1.0)

    with pytest.raises(RunError, match=r"loss and gradients must be finite; .* the mean loss is nan") as caught:
        probed(vectors_workload(loss=loss), progress=progress)
    partial = caught.value.partial
    assert partial.partial
    assert partial.memory is not None
    assert partial.throughput is not None
    assert partial.noise is None


def test_memory_that_runs_out_on_the_way_is_told_with_its_stage():
    broken = []

    def progress(stage, fraction, text=""):
        if stage == "throughput":
            broken.append(True)

    def loss(model, batch):
        if broken:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
        return cross_entropy(model, batch)

    with pytest.raises(RunError, match=r"^memory ran out in measuring throughput: CUDA out .* 2\.00 GiB\.$") as caught:
        probed(vectors_workload(loss=loss), progress=progress)
    assert caught.value.partial.memory is not None


def test_the_budget_is_about_kept_where_samples_are_slow():
    def slow(model, batch):
        time.sleep(0.002 * len(batch[0]))
        return cross_entropy(model, batch)

    started = time.monotonic()
    result = probed(replace(vectors_workload(), loss=slow, epochs=100), budget=3.0)
    assert time.monotonic() - started < 9
    assert result.recommendation is not None
