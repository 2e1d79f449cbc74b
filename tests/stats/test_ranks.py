"""Data-parallel ranks: the same parts give the same numbers wherever they lie. Real processes, over gloo."""

import multiprocessing
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from reference.gradient_moments import ReferenceMoments, reference_moments
from stats import ranks_worker
from stats.nets import PART_SIZES, BodyAndHead, mean_loss, stack

from anybatch.stats import MicroBatches, Ranks

JOIN_TIMEOUT = 300.0  # seconds
PRELOADED = ["stats.ranks_worker", "torch.distributed.fsdp", "torch._dynamo"]  # what takes seconds to import
# float32 gradients, averaged over ranks in another order than on one device
FLOAT32 = {"rtol": 1e-5, "atol": 0.0}


def run_ranks(world_size: int, folder: Path, run: Callable[..., None] = ranks_worker.run) -> list[dict[str, Any]]:
    """Run the worker on every rank; return what each found. Processes that hang are killed."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    processes = [
        context.Process(target=run, args=(rank, world_size, store.port, str(folder))) for rank in range(world_size)
    ]
    deadline = time.monotonic() + JOIN_TIMEOUT
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()
    assert [process.exitcode for process in processes] == [0] * world_size
    found = [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(world_size)]
    errors = [f"rank {rank}: {result['error']}" for rank, result in enumerate(found) if "error" in result]
    assert not errors, "\n".join(errors)
    return found


@pytest.fixture(scope="module", params=[2, 3], ids=["2 ranks", "3 ranks"])
def ranks(request, tmp_path_factory) -> list[dict[str, Any]]:
    return run_ranks(request.param, tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def parts() -> list[list]:
    return ranks_worker.all_parts()


def assert_equals_twin(moments: dict[str, Any], twin: ReferenceMoments) -> None:
    for wanted, name in ((twin.A, "mean_of_sq_norms"), (twin.B, "sq_norm_of_mean")):
        ordered = torch.tensor([wanted[module] for module in moments["modules"]], dtype=torch.float64)
        torch.testing.assert_close(moments[name], ordered, **FLOAT32)


def assert_same_moments(left: dict[str, Any], right: dict[str, Any], **tolerance: float) -> None:
    assert left["modules"] == right["modules"]
    for name in left.keys() - {"modules"}:
        torch.testing.assert_close(left[name], right[name], **tolerance)


@pytest.mark.parametrize("spread", ["even", "uneven", "shuffled"])
def test_parts_give_the_numbers_of_one_device_however_they_are_spread(ranks, parts, spread):
    model = BodyAndHead()
    source = MicroBatches(model)
    for part in parts:
        with source.sub_batch(len(part)):
            (len(part) / sum(PART_SIZES) * mean_loss(model, *stack(part))).backward()
    alone = source.finish()
    moments = ranks[0][spread]["moments"]
    torch.testing.assert_close(moments["mean_of_sq_norms"], alone.mean_of_sq_norms, **FLOAT32)
    torch.testing.assert_close(moments["sq_norm_of_mean"], alone.sq_norm_of_mean, **FLOAT32)
    assert_equals_twin(moments, reference_moments(BodyAndHead(), mean_loss, parts))
    order = [PART_SIZES[i] for own in ranks_worker.SPREADS[len(ranks)][spread] for i in own]
    assert moments["sizes"].tolist() == order
    torch.testing.assert_close(moments["weights"], torch.tensor(order).double() / sum(order))


@pytest.mark.parametrize("spread", ["even", "uneven", "shuffled"])
def test_every_rank_holds_the_same_moments_in_every_step(ranks, spread):
    for found in ranks:
        first, again = found[spread]["moments"], found[f"{spread}, again"]["moments"]
        assert_same_moments(first, ranks[0][spread]["moments"], rtol=0.0, atol=0.0)
        # after its first step DDP orders gradients anew, and three numbers have more than one sum
        assert_same_moments(again, first, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("spread", ["even", "uneven", "shuffled"])
def test_the_loss_scale_is_taken_out_on_ranks(ranks, spread):
    # a power of two moves exponents only; compared with a step that is not the first either
    for found in ranks:
        scaled, again = found[f"{spread}, scaled"]["moments"], found[f"{spread}, again"]["moments"]
        assert_same_moments(scaled, again, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("spread", ["even", "uneven", "shuffled"])
def test_measuring_leaves_gradients_bit_for_bit_and_no_hooks(ranks, spread):
    for found in ranks:
        unmeasured = found[f"{spread}, not measured"]["gradients"]
        for name, gradient in found[spread]["gradients"].items():
            assert torch.equal(gradient, unmeasured[name]), name
        assert not found[f"{spread}, hooks"]


def test_the_default_weight_is_the_size_over_the_total_of_its_rank(ranks, parts):
    spread = ranks_worker.SPREADS[len(ranks)]["uneven"]
    order = [i for own in spread for i in own]
    weights = [PART_SIZES[i] / sum(PART_SIZES[j] for j in own) / len(ranks) for own in spread for i in own]
    moments = ranks[0]["default weights"]["moments"]
    assert_equals_twin(moments, reference_moments(BodyAndHead(), mean_loss, [parts[i] for i in order], weights))
    torch.testing.assert_close(moments["weights"], torch.tensor(weights, dtype=torch.float64))


def test_one_part_per_rank_has_equal_weights_whatever_its_size(ranks, parts):
    world_size = len(ranks)
    twin = reference_moments(
        BodyAndHead(), mean_loss, parts[:world_size], [1 / world_size] * world_size, {"all": ["body", "head"]}
    )
    moments = ranks[0]["plain"]["moments"]
    assert_equals_twin(moments, twin)
    assert moments["sizes"].tolist() == PART_SIZES[:world_size]
    assert moments["weights"].tolist() == pytest.approx([1 / world_size] * world_size)


def test_ranks_of_a_subgroup_are_counted_in_their_own_group(ranks, parts):
    if len(ranks) < 3:
        pytest.skip("needs a rank outside of the group")
    twin = reference_moments(BodyAndHead(), mean_loss, [parts[0], parts[2]], [0.5, 0.5])
    assert_equals_twin(ranks[0]["subgroup"]["moments"], twin)
    assert_same_moments(ranks[2]["subgroup"]["moments"], ranks[0]["subgroup"]["moments"], rtol=0.0, atol=0.0)


def test_a_part_that_is_not_finite_on_one_rank_is_counted_on_all(ranks):
    for found in ranks:
        moments = found["not finite"]["moments"]
        assert moments["num_non_finite"].item() == 1
        assert bool(moments["sq_norm_of_mean"].isnan().all())


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (
            "finish without a part",
            r"RuntimeError: finish\(\) must follow at least one sub_batch\(\); got none",
        ),
        (
            "last part under no_sync",
            r"RuntimeError: gradients must be averaged over ranks.*outside no_sync\(\)",
        ),
        (
            "MicroBatches",
            r"TypeError: MicroBatches measures one device; got a Distr.*Use anybatch\.stats\.Ranks",
        ),
        (
            "MicroBatches, wrapped",
            r"TypeError: MicroBatches measures one device; got a DistributedDataParallel",
        ),
    ],
)
def test_misuse_is_refused_on_every_rank(ranks, case, message):
    for found in ranks:
        assert re.match(message, found[f"refused: {case}"]), found[f"refused: {case}"]


def test_after_refusals_the_source_can_be_used_again(ranks, parts):
    world_size = len(ranks)
    twin = reference_moments(BodyAndHead(), mean_loss, parts[:world_size], [1 / world_size] * world_size)
    assert_equals_twin(ranks[0]["after refusals"]["moments"], twin)


def test_a_single_rank_is_refused_and_sent_to_micro_batches(ranks):
    message = r"ValueError: Ranks needs at least 2 ranks; got 1\. Use anybatch\.stats\.MicroBatches"
    assert re.match(message, ranks[0]["refused: one rank"])
    assert ranks[0]["MicroBatches of one rank"] == "nothing was refused"


def test_a_model_that_is_not_data_parallel_is_refused():
    with pytest.raises(TypeError, match=r"Ranks needs a DistributedDataParallel model; got BodyAndHead\. Wrap it"):
        Ranks(BodyAndHead())
