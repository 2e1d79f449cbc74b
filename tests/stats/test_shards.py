"""Models that fully_shard shards over 2, 3 and 4 ranks measure and scale as one process does, over gloo."""

import re
from typing import Any

import pytest
import torch
from reference import agvm as twin
from reference.gradient_moments import mean_gradient, moments_of_gradients
from stats import shards_worker
from stats.nets import mean_loss, stack
from stats.shards_worker import (
    MODULES,
    NUM_PARTS,
    NUM_STEPS,
    OPTIMIZERS,
    SIZES,
    WORLD_SIZES,
    Net,
    factors_of_ranks,
    parts_of_ranks,
    sizes_of,
)
from stats.test_ranks import run_ranks

from anybatch import AGVM, NoiseMonitor
from anybatch.stats import HalfBatches, MicroBatchHalves

# float32 gradients, averaged over ranks in another order than in one process
FLOAT32 = {"rtol": 1e-5, "atol": 1e-6}
CASES = [*SIZES, *(f"{case}, default weights" for case in SIZES)]
FIELDS = ("sizes", "weights", "sq_norms", "products")


@pytest.fixture(scope="module")
def all_ranks(tmp_path_factory) -> list[dict[str, Any]]:
    return run_ranks(max(WORLD_SIZES), tmp_path_factory.mktemp("ranks"), shards_worker.run)


@pytest.fixture(params=WORLD_SIZES, ids=[f"{size} ranks" for size in WORLD_SIZES])
def ranks(request, all_ranks) -> list[dict[str, Any]]:
    return [found[str(request.param)] for found in all_ranks[: request.param]]


@pytest.fixture
def three_ranks(all_ranks) -> list[dict[str, Any]]:
    return [found["3"] for found in all_ranks[:3]]


def factors_of(case: str, num_ranks: int) -> list[list[float]]:
    """What the losses of a case are multiplied with; by default each rank takes the mean over its own samples."""
    if case in SIZES:
        return factors_of_ranks(case, num_ranks)
    return [[size / sum(own) for size in own] for own in sizes_of(case.split(",")[0], num_ranks)]


def weighted_parts(case: str, num_ranks: int) -> list[list[tuple[list, float]]]:
    """Of each micro-batch the samples on every rank, with their weight in the mean over ranks."""
    parts, factors = parts_of_ranks(case.split(",")[0], num_ranks), factors_of(case, num_ranks)
    every = range(num_ranks)
    return [[(parts[rank][k], factors[rank][k] / num_ranks) for rank in every] for k in range(NUM_PARTS)]


def weighted_mean(parts: list[tuple[list, float]]) -> tuple[dict[str, torch.Tensor], float, float]:
    """The mean gradient of parts, by the slow twin, its size and its weight."""
    gradients = [mean_gradient(Net(), mean_loss, part) for part, _ in parts]
    total = sum(weight for _, weight in parts)
    named = {
        name: sum(weight * own[name] for own, (_, weight) in zip(gradients, parts, strict=True)) / total
        for name in gradients[0]
    }
    return named, total**2 / sum(weight**2 / len(part) for part, weight in parts), total


def by_module(named: dict[str, torch.Tensor]) -> twin.Gradient:
    return {module: [grad for name, grad in named.items() if name.startswith(module)] for module in MODULES}


def joined_parts(num_ranks: int, seed: int) -> list[list]:
    """What one process holds: micro-batch k of all ranks in one."""
    parts = parts_of_ranks("uneven", num_ranks, seed)
    return [[sample for own in parts for sample in own[k]] for k in range(NUM_PARTS)]


# ------------------------------------------------------------------------------------------- the numbers of one process


@pytest.mark.parametrize("case", SIZES)
def test_the_gradient_of_a_measured_step_is_that_of_a_single_process(ranks, case):
    samples = [sample for parts in parts_of_ranks(case, len(ranks)) for part in parts for sample in part]
    expected = mean_gradient(Net(), mean_loss, samples)
    for found in ranks:
        assert set(found[case]["gradients"]) == {name for name in expected if not name.startswith("spare")}
        for name, gradient in found[case]["gradients"].items():
            torch.testing.assert_close(gradient.double(), expected[name], **FLOAT32)


@pytest.mark.parametrize("case", CASES)
def test_halves_are_those_of_a_single_process(ranks, case):
    parts = weighted_parts(case, len(ranks))
    halves = [weighted_mean([each for part in parts[side::2] for each in part]) for side in range(2)]
    gradients = [by_module(named) for named, _, _ in halves]
    found = ranks[0][case]
    assert found["sizes"].tolist() == pytest.approx([size for _, size, _ in halves])
    assert found["weights"].tolist() == pytest.approx([weight for _, _, weight in halves])
    for index, module in enumerate(MODULES):
        a, b = (twin.flat(gradient[module]) for gradient in gradients)
        assert found["sq_norms"][:, index].tolist() == pytest.approx([twin.dot(a, a), twin.dot(b, b)], rel=1e-5)
        assert found["products"][index].item() == pytest.approx(twin.dot(a, b), rel=1e-5)


@pytest.mark.parametrize("case", SIZES)
def test_moments_of_micro_batches_are_those_of_a_single_process(ranks, case):
    gradients, sizes, weights = zip(*map(weighted_mean, weighted_parts(case, len(ranks))), strict=True)
    expected = moments_of_gradients(gradients, sizes, weights)
    found = ranks[0][f"{case}, moments"]
    assert found["sizes"].tolist() == pytest.approx(list(sizes))
    assert found["weights"].tolist() == pytest.approx(list(weights))
    for index, module in enumerate(MODULES):
        assert found["mean_of_sq_norms"][index].item() == pytest.approx(expected.A[module], rel=1e-5)
        assert found["sq_norm_of_mean"][index].item() == pytest.approx(expected.B[module], rel=1e-5)


def test_a_module_without_a_gradient_has_no_cosine_and_a_frozen_one_is_no_module(ranks):
    for found in ranks:
        assert found["even"]["modules"] == tuple(MODULES)
        assert found["even"]["cosines"].isnan().tolist() == [False, False, True]


@pytest.mark.parametrize("case", SIZES)
def test_every_rank_holds_the_same_numbers_whatever_the_loss_scale_and_keeps_no_copy(ranks, case):
    for found in ranks:
        assert found[f"{case}, copies kept"] == 0
        for name in FIELDS:
            assert torch.equal(found[case][name], ranks[0][case][name])
            torch.testing.assert_close(found[f"{case}, again"][name], found[case][name], rtol=1e-6, atol=0.0)


# ------------------------------------------------------------------------------------------- what is communicated


def test_a_step_that_is_not_measured_is_the_plain_one_bit_for_bit_and_asks_for_no_more(ranks):
    for found in ranks:
        assert found["with a source, traffic"] == found["plain, traffic"]
        assert found["plain, traffic"]
        for name, gradient in found["with a source, gradients"].items():
            assert torch.equal(gradient, found["plain, gradients"][name])


@pytest.mark.parametrize(("source", "num_rows"), [("MicroBatchHalves", 3), ("MicroBatches", NUM_PARTS + 1)])
def test_a_measurement_adds_one_gathering_of_a_few_numbers_and_no_gradient(ranks, source, num_rows):
    for found in ranks:
        assert found[f"{source}, added"] == [("allgather_", 1 + 2 * NUM_PARTS + num_rows * len(MODULES))]


# ------------------------------------------------------------------------------------------- AGVM and the monitor


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_agvm_steps_as_in_a_single_process(ranks, name):
    model = Net()
    optimizer = OPTIMIZERS[name](model.parameters())
    agvm = AGVM(optimizer, model, MODULES, anchor="body", interval=2, momentum=0.5)
    source = MicroBatchHalves(model, MODULES, agvm.preconditioner)
    for index in range(NUM_STEPS):
        optimizer.zero_grad()
        halves = accumulate(model, joined_parts(len(ranks), seed=index), source if agvm.is_due else None)
        if halves is not None:
            agvm.observe(halves)
        optimizer.step()
    assert agvm.scales["head"] != pytest.approx(1, abs=1e-3)
    for found in (each[f"agvm, {name}"] for each in ranks):
        assert found["scales"] == ranks[0][f"agvm, {name}"]["scales"]
        assert found["scales"] == pytest.approx(agvm.scales, rel=1e-5)
        assert found["rates"] == [optimizer.param_groups[0]["lr"]] * NUM_STEPS
        for key, weight in model.state_dict().items():
            torch.testing.assert_close(found["weights"][key], weight, **FLOAT32)


def accumulate(model: Net, parts: list[list], source: MicroBatchHalves | None) -> HalfBatches | None:
    for part in parts:
        loss = mean_loss(model, *stack(part)) * len(part) / sum(map(len, parts))
        if source is None:
            loss.backward()
        else:
            with source.sub_batch(len(part)):
                loss.backward()
    return None if source is None else source.finish()


def test_a_gradient_that_overflows_on_one_rank_leaves_the_scales_of_all(three_ranks):
    for found in three_ranks:
        assert found["scales after overflow"] == dict.fromkeys(MODULES, 1.0)
        assert found["log after overflow"] == {f"scale/{module}": 1.0 for module in MODULES}


@pytest.mark.parametrize("geometry", ["sgd", "adam"])
def test_the_noise_monitor_measures_what_it_measures_in_a_single_process(three_ranks, geometry):
    model = Net().double()
    optimizer = OPTIMIZERS["AdamW"](model.parameters())
    monitor = NoiseMonitor(model, 2, module_prefixes=MODULES, geometry=geometry, optimizer=optimizer)
    for index in range(NUM_STEPS):
        optimizer.zero_grad()
        parts = joined_parts(3, seed=index)
        for part in parts:
            inputs, targets = stack(part)
            share = len(part) / sum(map(len, parts))
            with monitor.sub_batch(len(part), share):
                (share * mean_loss(model, inputs.double(), targets.double())).backward()
        monitor.finish()
        optimizer.step()
    measurements = monitor.state_dict()["measurements"]
    assert len(measurements) == NUM_STEPS // 2
    for found in three_ranks:
        for mine, theirs in zip(found[f"monitor, {geometry}"], measurements, strict=True):
            for name, value in theirs.items():
                torch.testing.assert_close(mine[name], value, rtol=1e-9, atol=1e-12)


# ------------------------------------------------------------------------------------------- refusals


def test_a_change_that_one_rank_alone_sees_is_refused_on_all(three_ranks):
    """A weight of one row lies on the first rank; clipping a sharded gradient moves no version counter."""
    messages = [found["refused: clipped"] for found in three_ranks]
    assert re.match(r"RuntimeError: gradients and parameters must stay as backward\(\) left them", messages[0])
    assert messages[1:] == ["RuntimeError: finish() failed on rank 0; see its error."] * 2


def test_a_source_can_be_used_again_after_refusals(three_ranks):
    for found in three_ranks:
        assert re.match(r"RuntimeError: finish\(\) must follow", found["refused: finish without a part"])
        assert re.match(r"RuntimeError: sub_batch\(\) must hold one backward\(\)", found["refused: no backward"])
        assert found["after refusals"].tolist() == pytest.approx([24, 12])


@pytest.mark.parametrize("source", ["Ranks", "RankHalves"])
def test_sources_of_ranks_name_the_one_for_shards(three_ranks, source):
    other = {"Ranks": "MicroBatches", "RankHalves": "MicroBatchHalves"}[source]
    message = rf"TypeError: {source} needs a DistributedDataParallel model.*{other} on one device or under fully_shard"
    assert re.match(message, three_ranks[0][f"refused: {source}"])


@pytest.mark.parametrize("source", ["MicroBatches", "MicroBatchHalves"])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            "replicas",
            r"InputError: trainable parameters must be sharded.*one axis; .*\(Replicate\(\), Shard\(dim=0\)\)",
        ),
        ("a whole one", r"InputError: trainable parameters must be sharded.* got one of shape \(2,\) that is whole"),
        ("FSDP1", r"TypeError: parameters must be whole tensors on each rank; got sharded ones \(FSDP or DTensor\)"),
    ],
)
def test_what_is_sharded_in_another_way_is_refused(all_ranks, source, model, message):
    for found in all_ranks:
        assert re.match(message, found[f"refused: {source}, {model}"])


def test_the_noise_monitor_refuses_steps_of_one_micro_batch_at_the_first_one(three_ranks):
    message = r"InputError: a step must have 2 micro-batches or more where fully_shard shards the model; got 1, .*Accum"
    for found in three_ranks:
        assert re.match(message, found["refused: monitor of one part"])


def test_samples_of_a_sharded_model_are_refused(three_ranks):
    message = three_ranks[0]["refused: PerSample"]
    assert re.match(r"TypeError: parameters must be whole tensors.*micro-batches of a model that fully_shard", message)
