"""Halves of the ranks: the gradient of one process, the cosines of its halves, and nothing on the steps between."""

import re
from typing import Any

import pytest
import torch
from reference import agvm as twin
from reference.gradient_moments import mean_gradient
from stats import halves_worker
from stats.halves_worker import SIZES, parts_of_ranks
from stats.nets import BodyAndHead, mean_loss, stack
from stats.test_ranks import run_ranks

from anybatch import AGVM
from anybatch.stats import MicroBatchHalves, RankHalves

WORLD_SIZES = [2, 3, 4]


@pytest.fixture(scope="module", params=WORLD_SIZES, ids=[f"{size} ranks" for size in WORLD_SIZES])
def ranks(request, tmp_path_factory) -> list[dict[str, Any]]:
    return run_ranks(request.param, tmp_path_factory.mktemp("ranks"), halves_worker.run)


def samples_of(ranks_parts: list[list[list]]) -> list:
    return [sample for parts in ranks_parts for part in parts for sample in part]


def half_gradients(case: str, world_size: int) -> tuple[twin.Gradient, twin.Gradient]:
    """The mean gradients of the two halves' samples, by the slow twin, one sample at a time."""
    parts = parts_of_ranks(case, world_size)
    halves = []
    for own in (parts[: world_size // 2], parts[world_size // 2 :]):
        named = mean_gradient(BodyAndHead(), mean_loss, samples_of(own))
        halves.append({m: [g for name, g in named.items() if name.startswith(m)] for m in ("body", "head")})
    return halves[0], halves[1]


@pytest.mark.parametrize("case", SIZES)
def test_check_9_the_gradient_is_that_of_a_single_process(ranks, case):
    expected = mean_gradient(BodyAndHead(), mean_loss, samples_of(parts_of_ranks(case, len(ranks))))
    for found in ranks:
        for name, gradient in found[case]["gradients"].items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("case", SIZES)
def test_check_9_the_cosines_are_those_of_the_halves_in_a_single_process(ranks, case):
    expected = twin.cosine_fractions(*half_gradients(case, len(ranks)))
    for found in ranks:
        fractions = dict(zip(found[case]["modules"], (1 - found[case]["cosines"]).tolist(), strict=True))
        assert fractions == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("case", SIZES)
def test_sizes_and_weights_of_the_halves_count_samples(ranks, case):
    sizes, middle = [sum(own) for own in SIZES[case][len(ranks)]], len(ranks) // 2
    halves = torch.tensor([sum(sizes[:middle]), sum(sizes[middle:])], dtype=torch.float64)
    torch.testing.assert_close(ranks[0][case]["sizes"], halves)
    torch.testing.assert_close(ranks[0][case]["weights"], halves / halves.sum())


@pytest.mark.parametrize("case", SIZES)
def test_every_rank_holds_the_same_numbers_in_every_step(ranks, case):
    for found in ranks:
        for name in ("sizes", "weights", "sq_norms", "products"):
            assert torch.equal(found[case][name], ranks[0][case][name])
            torch.testing.assert_close(found[f"{case}, again"][name], found[case][name], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("case", SIZES)
def test_check_8_a_step_that_is_not_measured_is_the_plain_one_bit_for_bit(ranks, case):
    for found in ranks:
        for name, gradient in found[f"{case}, not measured"].items():
            assert torch.equal(gradient, found[f"{case}, plain"][name])


def test_check_8_steps_between_reduce_each_bucket_once_and_keep_nothing(ranks):
    world_size = len(ranks)
    for rank, found in enumerate(ranks):
        between, measured = found["collectives between"], found["collectives measured"]
        assert list(between) == [f"all_reduce over {world_size}"]
        num_buckets = between[f"all_reduce over {world_size}"]
        half = world_size // 2 if rank < world_size // 2 else world_size - world_size // 2
        across = 2 if world_size % 2 == 0 else 3
        expected = {f"all_gather over {world_size}": 1, f"all_reduce over {across}": num_buckets}
        if half > 1:
            key = f"all_reduce over {half}"
            expected[key] = expected.get(key, 0) + num_buckets
        assert measured == expected
        assert found["norms kept"] == 0


def test_check_14_a_head_that_one_rank_uses_does_not_hang_and_has_no_cosine(ranks):
    for found in ranks:
        inner, spare = found["spare"]["cosines"].tolist()
        assert -1 <= inner <= 1
        assert spare != spare


def test_check_10_ranks_and_accumulation_agree(ranks):
    """The halves of accumulation take turns and the first is the larger: its parts are ranks W/2, 0, W/2 + 1, 1, ..."""
    world_size, middle = len(ranks), len(ranks) // 2
    model = BodyAndHead().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    agvm = AGVM(optimizer, model, ["body", "head"], anchor="body", interval=2, momentum=0.5)
    source = MicroBatchHalves(model, agvm.module_prefixes)
    turns = [rank for place in range(middle + 1) for rank in (middle + place, place)]
    order = [rank for rank in dict.fromkeys(turns[: 2 * middle + world_size % 2]) if rank < world_size]
    for index in range(3):
        parts = [own[0] for own in parts_of_ranks("even", world_size, seed=index)]
        optimizer.zero_grad()
        is_due = agvm.is_due
        for rank in order:
            inputs, targets = stack(parts[rank])
            loss = mean_loss(model, inputs.double(), targets.double()) / world_size
            if is_due:
                with source.sub_batch(4):
                    loss.backward()
            else:
                loss.backward()
        if is_due:
            agvm.observe(source.finish())
        optimizer.step()
    assert agvm.scales["head"] != 1
    for found in ranks:
        assert found["agvm scales"] == pytest.approx(agvm.scales, rel=1e-10)
        for name, weight in model.state_dict().items():
            torch.testing.assert_close(found["agvm weights"][name], weight, rtol=1e-9, atol=1e-12)


def test_as_published_ranks_scale_as_the_official_hook_step_by_step(ranks):
    world_size = len(ranks)
    if world_size % 2:
        pytest.skip("the official hook needs an even number of ranks")
    model, hook = BodyAndHead().double(), twin.OfficialHook(world_size)
    for index in range(4):
        gradients = []
        for (part,) in parts_of_ranks("even", world_size, seed=index):
            inputs, targets = stack(part)
            model.zero_grad()
            mean_loss(model, inputs.double(), targets.double()).backward()
            gradients.append({m: [p.grad.clone() for p in getattr(model, m).parameters()] for m in ("body", "head")})
        scales = hook.iterate(gradients)
        for found in ranks:
            assert found["scales as published"][index] == pytest.approx(scales, rel=1e-9)
        mean = twin.mean(gradients)
        with torch.no_grad():
            for module, scale in scales.items():
                for parameter, grad in zip(getattr(model, module).parameters(), mean[module], strict=True):
                    parameter -= 0.05 * scale * grad
    assert scales["head"] != 1


def test_all_ranks_scale_alike(ranks):
    for found in ranks:
        assert found["agvm scales"] == ranks[0]["agvm scales"]
        assert found["agvm scales"]["head"] != 1
        for name, weight in found["agvm weights"].items():
            assert torch.equal(weight, ranks[0]["agvm weights"][name])


def test_check_11_a_gradient_that_overflows_on_one_rank_leaves_the_scales_of_all(ranks):
    for found in ranks:
        assert found["scales after overflow"] == {"body": 1.0, "head": 1.0}
        assert found["log after overflow"] == {"scale/body": 1.0, "scale/head": 1.0}


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("second hook", r"TypeError: the DistributedDataParallel model must have no communication hook yet"),
        ("finish without a part", r"RuntimeError: finish\(\) must follow at least one sub_batch\(\); got none"),
        ("under no_sync", r"RuntimeError: gradients must be averaged over ranks.*outside no_sync\(\)"),
        ("without no_sync", r"RuntimeError: the last sub_batch\(\) of a step alone must be reduced.*under no_sync\(\)"),
    ],
)
def test_misuse_is_refused_on_every_rank(ranks, case, message):
    for found in ranks:
        assert re.match(message, found[f"refused: {case}"]), found[f"refused: {case}"]


def test_after_refusals_the_source_can_be_used_again(ranks):
    expected = twin.cosine_fractions(*half_gradients("even", len(ranks)))
    assert ranks[0]["kept after a refusal"] == "0"
    found = ranks[0]["after refusals"]
    fractions = dict(zip(found["modules"], (1 - found["cosines"]).tolist(), strict=True))
    assert fractions == pytest.approx(expected, rel=1e-4)  # float32


def test_a_single_rank_is_refused_and_sent_to_micro_batches(ranks):
    message = r"ValueError: RankHalves needs at least 2 ranks; got 1\. Use anybatch\.stats\.MicroBatchHalves"
    assert re.match(message, ranks[0]["refused: one rank"])


def test_a_model_that_is_not_data_parallel_is_refused():
    with pytest.raises(TypeError, match=r"RankHalves needs a DistributedDataParallel model; got BodyAndHead"):
        RankHalves(BodyAndHead())
