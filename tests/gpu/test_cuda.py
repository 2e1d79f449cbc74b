"""What only a GPU can show: run with `pytest -m gpu` on a machine that has one."""

import pytest
import torch

import anybatch
from anybatch.probing.memory import measure_memory_limit
from anybatch.stats import MicroBatches
from anybatch.train.progress import silent
from anybatch.train.runtime import Runtime
from anybatch.workloads import load_workload

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def moments_of(model, parts, *, autocast=False, scaler=None):
    source = MicroBatches(model)
    total = sum(map(len, parts))
    for part in parts:
        with torch.autocast("cuda", torch.float16, enabled=autocast):
            loss = model(part).float().square().mean() * len(part) / total
        with source.sub_batch(len(part)):
            (loss if scaler is None else scaler.scale(loss)).backward()
    return source.finish(1.0 if scaler is None else scaler.get_scale())


@pytest.fixture
def model_and_parts():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    return model, list(torch.randn(24, 8).split([4, 8, 12]))


def test_moments_on_the_device_equal_those_on_the_cpu(model_and_parts):
    model, parts = model_and_parts
    expected = moments_of(model, parts)
    found = moments_of(model.cuda(), [part.cuda() for part in parts])
    assert found.mean_of_sq_norms.is_cuda
    torch.testing.assert_close(found.mean_of_sq_norms.cpu(), expected.mean_of_sq_norms, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.sq_norm_of_mean.cpu(), expected.sq_norm_of_mean, rtol=1e-5, atol=0)


def test_loss_scale_of_half_precision_is_taken_out(model_and_parts):
    model, parts = model_and_parts
    model, parts = model.cuda(), [part.cuda() for part in parts]
    expected = moments_of(model, parts)
    model.zero_grad()
    found = moments_of(model, parts, autocast=True, scaler=torch.amp.GradScaler("cuda"))
    torch.testing.assert_close(found.mean_of_sq_norms, expected.mean_of_sq_norms, rtol=2e-2, atol=0)


def test_memory_limit_is_found_by_real_trials_within_the_limit():
    workload, runtime = load_workload("digits"), Runtime.detect("cuda")
    limit = measure_memory_limit(workload, runtime, progress=silent)
    assert limit.max_micro_batch_size == workload.num_samples
    assert len(limit.trials) <= 10
    assert all(trial.peak_bytes for trial in limit.trials)


def test_probe_runs_on_the_device():
    result = anybatch.probe(load_workload("digits"), device="cuda", autocast="bfloat16", budget=10)
    assert result.recommendation is not None
