"""Halves of gradient accumulation: the numbers of the slow twin, one copy of the gradient, and no trace."""

import contextlib
import gc

import pytest
import torch
from reference import agvm as twin
from reference.gradient_moments import mean_gradient
from stats.nets import PART_SIZES, BodyAndHead, make_samples, mean_loss, split, stack
from torch import nn

from anybatch.stats import HalfBatches, MicroBatches, MicroBatchHalves
from anybatch.stats.half_batches import join_parts

# gradients and their squared norms in float32
FLOAT32 = {"rtol": 2e-6, "atol": 0.0}


@pytest.fixture
def model() -> BodyAndHead:
    return BodyAndHead()


@pytest.fixture
def parts() -> list[list]:
    return split(make_samples(sum(PART_SIZES)), PART_SIZES)


def accumulate(source, model, parts, weights=None, loss_scale=1.0):
    total = sum(map(len, parts))
    for index, part in enumerate(parts):
        factor = len(part) / total if weights is None else weights[index]
        with source.sub_batch(len(part), None if weights is None else factor):
            (loss_scale * factor * mean_loss(model, *stack(part))).backward()
    return source.finish(loss_scale)


def half_gradients(model, parts, weights=None):
    halves = []
    for side in (0, 1):
        own = [mean_gradient(model, mean_loss, part) for part in parts[side::2]]
        factors = [float(len(part)) for part in parts[side::2]] if weights is None else weights[side::2]
        total = {name: sum(f * g[name] for f, g in zip(factors, own, strict=True)) / sum(factors) for name in own[0]}
        halves.append({m: [g for name, g in total.items() if name.startswith(m)] for m in ("body", "head")})
    return halves


def fractions_of(halves: HalfBatches) -> dict[str, float]:
    return dict(zip(halves.modules, (1 - halves.cosines()).tolist(), strict=True))


@pytest.mark.parametrize("num_parts", [2, 3, 5, 6])
@pytest.mark.parametrize("weights", [None, [0.3, 0.1, 0.25, 0.05, 0.2, 0.1]], ids=["by size", "any weights"])
def test_halves_take_turns_and_equal_the_slow_twin_also_with_an_odd_number(model, parts, num_parts, weights):
    parts, weights = parts[:num_parts], weights and weights[:num_parts]
    halves = accumulate(MicroBatchHalves(model), model, parts, weights)
    first, second = half_gradients(model, parts, weights)
    assert fractions_of(halves) == pytest.approx(twin.cosine_fractions(first, second), abs=2e-6)
    for index, module in enumerate(halves.modules):
        a, b = twin.flat(first[module]), twin.flat(second[module])
        assert halves.sq_norms[:, index].tolist() == pytest.approx([twin.dot(a, a), twin.dot(b, b)], rel=2e-6)
        scale = halves.sq_norms[:, index].sum().item()
        assert halves.products[index].item() == pytest.approx(twin.dot(a, b), abs=5e-6 * scale)


def test_sizes_and_weights_of_halves_follow_their_parts(model, parts):
    halves = accumulate(MicroBatchHalves(model), model, parts[:5])
    assert halves.sizes.tolist() == pytest.approx([3 + 5 + 6, 1 + 2])
    assert halves.weights.tolist() == pytest.approx([14 / 17, 3 / 17])


def test_a_part_of_any_weight_counts_as_much_as_it_says():
    size, factor = join_parts([4, 4], [0.9, 0.1])
    assert factor == pytest.approx(1.0)
    assert size == pytest.approx(4 / (0.81 + 0.01))


def test_two_parts_have_the_moments_of_the_two_halves(model, parts):
    halves = accumulate(MicroBatchHalves(model), model, parts[:2])
    model.zero_grad()
    moments = accumulate(MicroBatches(model), model, parts[:2])
    of_halves = halves.moments()
    torch.testing.assert_close(of_halves.mean_of_sq_norms, moments.mean_of_sq_norms, **FLOAT32)
    torch.testing.assert_close(of_halves.sq_norm_of_mean, moments.sq_norm_of_mean, **FLOAT32)
    torch.testing.assert_close(of_halves.sizes, moments.sizes)
    torch.testing.assert_close(of_halves.weights, moments.weights)


def test_check_11_the_loss_scale_is_taken_out(model, parts):
    source = MicroBatchHalves(model)
    plain = accumulate(source, model, parts)
    model.zero_grad()
    scaled = accumulate(source, model, parts, loss_scale=65536.0)
    assert torch.equal(scaled.sq_norms, plain.sq_norms)
    assert torch.equal(scaled.products, plain.products)


def test_preconditioned_halves_equal_the_slow_twin(model, parts):
    factors = {p: torch.rand(p.shape, generator=torch.Generator().manual_seed(9)) + 0.1 for p in model.parameters()}
    halves = accumulate(MicroBatchHalves(model, None, factors.get), model, parts)
    by_name = {m: [factors[p] for p in getattr(model, m).parameters()] for m in ("body", "head")}
    first, second = (
        {m: [g * f for g, f in zip(half[m], by_name[m], strict=True)] for m in half}
        for half in half_gradients(model, parts)
    )
    assert fractions_of(halves) == pytest.approx(twin.cosine_fractions(first, second), abs=2e-6)
    assert fractions_of(halves) != pytest.approx(twin.cosine_fractions(*half_gradients(model, parts)), abs=1e-4)


def test_a_part_that_is_the_other_half_again_has_cosine_one(model, parts):
    halves = accumulate(MicroBatchHalves(model), model, [parts[0], parts[0]])
    assert halves.cosines().tolist() == pytest.approx([1.0, 1.0], abs=1e-6)


def test_a_frozen_module_and_one_without_a_gradient_have_no_cosine(model, parts):
    source = MicroBatchHalves(model)
    model.head.requires_grad_(False)
    cosines = accumulate(source, model, parts).cosines()
    assert cosines[0].isfinite()
    assert cosines[1].isnan()


def test_bfloat16_gradients_are_split_in_float32(parts):
    """Half precision rounds each gradient to 8 bits; the difference of two such sums is not rounded anew."""
    model = BodyAndHead().to(torch.bfloat16)
    source = MicroBatchHalves(model)
    for part in parts[:2]:
        inputs, targets = stack(part)
        with source.sub_batch(len(part), 0.5):
            (0.5 * mean_loss(model, inputs.bfloat16(), targets.bfloat16())).backward()
    halves = source.finish()
    assert halves.sq_norms.dtype == torch.float64
    assert bool((halves.cosines().abs() <= 1 + 1e-6).all())


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 3, sparse=True)
        self.head = nn.Linear(3, 2)

    def forward(self, inputs):
        return self.head(self.embedding(inputs).mean(1))


def test_sparse_gradients_equal_dense_ones():
    found = []
    for sparse in (True, False):
        torch.manual_seed(0)
        model = Words()
        model.embedding.sparse = sparse
        parts = [[(torch.randint(0, 6, (4,)), torch.randn(2)) for _ in range(3)] for _ in range(4)]
        found.append(accumulate(MicroBatchHalves(model), model, parts))
    torch.testing.assert_close(found[0].cosines(), found[1].cosines(), rtol=0, atol=2e-6)


# ------------------------------------------------------------------------------------------- no trace


def live_tensors_of_shape(shape) -> int:
    gc.collect()
    return sum(type(o) in (torch.Tensor, nn.Parameter) and o.shape == tuple(shape) for o in gc.get_objects())


def test_check_8_one_copy_of_the_gradient_while_measuring_and_none_at_other_times():
    model = nn.Linear(37, 41, bias=False)
    source = MicroBatchHalves(model)
    inputs = torch.ones(2, 37)
    model(inputs).square().mean().backward()
    assert model.weight.grad is not None
    assert live_tensors_of_shape((41, 37)) == 2  # the parameter and its gradient
    model.zero_grad()
    for _ in range(4):
        with source.sub_batch(2):
            model(inputs).square().mean().backward()
        assert live_tensors_of_shape((41, 37)) == 3
        assert not model.weight._backward_hooks
    source.finish()
    assert live_tensors_of_shape((41, 37)) == 2


def test_a_run_that_is_measured_is_bit_for_bit_the_run_that_is_not(parts):
    ends = []
    for measure in (True, False):
        model = BodyAndHead()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        source = MicroBatchHalves(model) if measure else None
        for _ in range(3):
            optimizer.zero_grad()
            for part in parts:
                with source.sub_batch(len(part)) if source else contextlib.nullcontext():
                    (len(part) / 21 * mean_loss(model, *stack(part))).backward()
            if source:
                source.finish()
            optimizer.step()
        ends.append(model.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_after_an_exception_in_a_part_the_source_can_be_used_again(model, parts):
    source = MicroBatchHalves(model)
    with source.sub_batch(3):
        mean_loss(model, *stack(parts[0])).backward()
    with pytest.raises(KeyboardInterrupt), source.sub_batch(5):
        raise KeyboardInterrupt
    assert not source._first_half  # no copy of the gradient outlives it
    model.zero_grad()
    halves = accumulate(source, model, parts)
    assert fractions_of(halves) == pytest.approx(twin.cosine_fractions(*half_gradients(model, parts)), abs=2e-6)


# ------------------------------------------------------------------------------------------- refusals


def test_one_part_alone_is_refused_and_the_source_can_be_used_again(model, parts):
    source = MicroBatchHalves(model)
    with pytest.raises(ValueError, match=r"two halves need at least 2 sub-batches; got 1\. Accumulate 2 or more"):
        accumulate(source, model, parts[:1])
    model.zero_grad()
    accumulate(source, model, parts)


def test_finish_without_a_part_is_refused(model):
    with pytest.raises(RuntimeError, match=r"finish\(\) must follow at least one sub_batch\(\); got none"):
        MicroBatchHalves(model).finish()


def test_sharded_parameters_are_refused(model):
    model.head.weight.placements = ()
    with pytest.raises(TypeError, match=r"must be whole tensors on each rank; got sharded ones \(FSDP or DTensor\)"):
        MicroBatchHalves(model)


def test_halves_of_different_modules_are_refused():
    with pytest.raises(ValueError, match=r"both halves must have the same modules; got \['a'\] and \['b'\]"):
        HalfBatches.from_gradients({"a": torch.ones(2)}, {"b": torch.ones(2)})


@pytest.mark.parametrize("sizes", [(1.0,), (1.0, 0.0), (1.0, float("nan")), (1.0, 1.0, 1.0)])
def test_sizes_that_are_not_two_positive_numbers_are_refused(sizes):
    norms = torch.ones(2, 1)
    with pytest.raises(ValueError, match="sizes of half-batches must be two positive numbers; got"):
        HalfBatches.from_sums(["a"], sizes, [1.0, 1.0], norms, norms[0])
    with pytest.raises(ValueError, match="weights of half-batches must be two positive numbers; got"):
        HalfBatches.from_sums(["a"], [1.0, 1.0], sizes, norms, norms[0])
