"""Micro-batches, ranks and samples measure the same noise scale; where the truth is known, that one."""

import multiprocessing
from itertools import combinations

import numpy as np
import pytest
import torch
import torch.distributed as dist
from stats import agreement_worker
from stats.agreement_worker import BATCH_SIZE, NUM_STEPS, SLOPE, SPREAD, TASKS, WIDTH

from anybatch.decide import estimate_noise_scale
from anybatch.stats import GradientMoments, MicroBatches, PerSample

NAMES = ("micro-batches", "ranks", "samples")


def of_ranks(folder) -> dict[str, list[GradientMoments]]:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("spawn")
    arguments = [(rank, 2, store.port, str(folder)) for rank in range(2)]
    processes = [context.Process(target=agreement_worker.run, args=each) for each in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
        if process.is_alive():
            process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
    found = torch.load(folder / "rank0.pt", weights_only=True)
    return {name: [restored(*step) for step in steps] for name, steps in found.items()}


def restored(sizes, mean_of_sq_norms, sq_norm_of_mean) -> GradientMoments:
    modules = tuple(map(str, range(len(sq_norm_of_mean))))
    weights, finite = sizes / sizes.sum(), torch.tensor(0)
    return GradientMoments(modules, sizes, weights, mean_of_sq_norms, sq_norm_of_mean, finite)


def of_one_device(name: str, source_type, seed: int, num_parts: int) -> list[GradientMoments]:
    make, loss = TASKS[name]
    model, generator = make(), torch.Generator().manual_seed(seed)
    source, steps = source_type(model), []
    for _ in range(NUM_STEPS):
        model.zero_grad()
        for _ in range(num_parts):
            with source.sub_batch(BATCH_SIZE // num_parts, weight=1 / num_parts):
                (loss(model, generator, BATCH_SIZE // num_parts) / num_parts).backward()
        steps.append(source.finish())
    return steps


@pytest.fixture(scope="module")
def moments(tmp_path_factory) -> dict[str, dict[str, list[GradientMoments]]]:
    found = {"ranks": of_ranks(tmp_path_factory.mktemp("agreement"))}
    found["micro-batches"] = {name: of_one_device(name, MicroBatches, 7, 4) for name in TASKS}
    found["samples"] = {name: of_one_device(name, PerSample, 8, 1) for name in TASKS}
    return found


def test_three_sources_agree_within_their_intervals(moments):
    noise = {name: estimate_noise_scale(moments[name]["model"]) for name in NAMES}
    assert all(each.verdict == "measured" for each in noise.values())
    for left, right in combinations(NAMES, 2):
        error = np.hypot(noise[left].inverse_std_error, noise[right].inverse_std_error)
        assert abs(noise[left].inverse - noise[right].inverse) <= 3 * error, (left, right)
        assert noise[left].low <= noise[right].high, (left, right)
        assert noise[right].low <= noise[left].high, (left, right)


@pytest.mark.parametrize("name", NAMES)
def test_every_source_finds_the_known_truth_within_its_standard_error(moments, name):
    steps = moments[name]["toy"]
    for estimates, truth in (
        ([float(step.grad_var_trace().sum()) for step in steps], WIDTH * SPREAD**2),
        ([float(step.grad_sq_norm().sum()) for step in steps], WIDTH * SLOPE**2),
    ):
        error = np.std(estimates, ddof=1) / np.sqrt(len(estimates))
        assert abs(np.mean(estimates) - truth) <= 3 * error
    noise = estimate_noise_scale(steps)
    assert noise.low <= SPREAD**2 / SLOPE**2 <= noise.high
