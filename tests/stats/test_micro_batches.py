"""Gradient accumulation on one device: the numbers equal the slow twin, and measuring leaves no trace."""

import contextlib
import gc
import weakref
from collections.abc import Callable, Sequence

import pytest
import torch
from reference.gradient_moments import ReferenceMoments, moments_of_gradients, reference_moments
from stats.nets import PART_SIZES, BodyAndHead, make_samples, mean_loss, split, stack
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from anybatch.stats import GradientMoments, MicroBatches

# gradients in float32, squared norms added up in float32: a few units in the seventh digit each
FLOAT32 = {"rtol": 2e-6, "atol": 0.0}


def accumulate(
    source: MicroBatches,
    model: nn.Module,
    parts: Sequence[list],
    weights: Sequence[float] | None = None,
    loss: Callable[..., Tensor] = mean_loss,
    loss_scale: float = 1.0,
) -> GradientMoments:
    """Run one accumulation step by the book: default weights are size / total."""
    total = sum(len(part) for part in parts)
    for index, part in enumerate(parts):
        factor = len(part) / total if weights is None else weights[index]
        with source.sub_batch(len(part), None if weights is None else factor):
            (loss_scale * factor * loss(model, *stack(part))).backward()
    return source.finish(loss_scale)


def assert_equals_twin(moments: GradientMoments, twin: ReferenceMoments, **tolerance: float) -> None:
    tolerance = tolerance or FLOAT32
    assert set(moments.modules) == set(twin.A)
    for wanted, got in ((twin.A, moments.mean_of_sq_norms), (twin.B, moments.sq_norm_of_mean)):
        ordered = torch.tensor([wanted[module] for module in moments.modules], dtype=torch.float64)
        torch.testing.assert_close(got, ordered, **tolerance)


@pytest.fixture
def model() -> BodyAndHead:
    return BodyAndHead()


@pytest.fixture
def parts() -> list[list]:
    return split(make_samples(sum(PART_SIZES)), PART_SIZES)


# ------------------------------------------------------------------------------------------- the numbers


def test_moments_of_unequal_micro_batches_equal_the_twin(model, parts):
    moments = accumulate(MicroBatches(model), model, parts)
    twin = reference_moments(model, mean_loss, parts)
    assert_equals_twin(moments, twin)
    assert moments.sizes.tolist() == PART_SIZES
    for index, module in enumerate(moments.modules):
        # differences of A and B: relative to the larger of the two they keep their digits
        rounding = 1e-5 * (twin.A[module] + twin.B[module]) / (twin.a - twin.b)
        assert moments.grad_var_trace()[index].item() == pytest.approx(twin.trace(module), abs=rounding)
        assert moments.grad_sq_norm()[index].item() == pytest.approx(twin.sq_norm(module), abs=rounding)


@pytest.mark.parametrize(
    "weights",
    [[1.0] * 6, [1 / 6] * 6, [0.3, 0.1, 0.25, 0.05, 0.2, 0.1], [3.0, 1.0, 1.0, 0.5, 2.0, 1.0]],
    ids=["unscaled losses", "equal shares", "any shares", "any factors"],
)
def test_every_convention_of_scaling_the_loss_equals_the_twin(model, parts, weights):
    moments = accumulate(MicroBatches(model), model, parts, weights)
    assert_equals_twin(moments, reference_moments(model, mean_loss, parts, weights))
    torch.testing.assert_close(moments.weights, torch.tensor(weights).double() / sum(weights))


def test_the_default_weight_is_the_size_over_the_total(model, parts):
    by_default = accumulate(MicroBatches(model), model, parts)
    model.zero_grad()
    stated = accumulate(MicroBatches(model), model, parts, [len(part) / sum(PART_SIZES) for part in parts])
    torch.testing.assert_close(by_default.mean_of_sq_norms, stated.mean_of_sq_norms, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(by_default.weights, stated.weights, rtol=1e-12, atol=0.0)


def test_reading_one_convention_as_another_is_a_different_number(model, parts):
    source = MicroBatches(model)
    for part in parts:  # losses unscaled, but not said so
        with source.sub_batch(len(part)):
            mean_loss(model, *stack(part)).backward()
    misread = source.finish()
    twin = reference_moments(model, mean_loss, parts, [1.0] * 6)
    assert misread.sq_norm_of_mean[0].item() > 10 * twin.B["body"]


def test_explicit_groups_are_measured_apart(model, parts):
    prefixes = {"weights": ["body.weight", "head.weight"], "biases": ["body.bias", "head.bias"]}
    moments = accumulate(MicroBatches(model, prefixes), model, parts)
    assert moments.modules == ("weights", "biases")
    assert_equals_twin(moments, reference_moments(model, mean_loss, parts, prefixes=prefixes))


def test_float64_models_are_measured_in_float64(model, parts):
    model = model.double()
    parts = [[(inputs.double(), targets.double()) for inputs, targets in part] for part in parts]
    moments = accumulate(MicroBatches(model), model, parts)
    assert_equals_twin(moments, reference_moments(model, mean_loss, parts), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("scale", [65536.0, torch.tensor(65536.0)], ids=["number", "tensor"])
def test_the_loss_scale_is_taken_out(model, parts, scale):
    plain = accumulate(MicroBatches(model), model, parts)
    model.zero_grad()
    scaled = accumulate(MicroBatches(model), model, parts, loss_scale=scale)
    # a power of two moves exponents only
    assert torch.equal(scaled.mean_of_sq_norms, plain.mean_of_sq_norms)
    assert torch.equal(scaled.sq_norm_of_mean, plain.sq_norm_of_mean)


def test_the_source_starts_anew_after_finish(model, parts):
    source = MicroBatches(model)
    accumulate(source, model, parts)
    model.zero_grad()
    again = accumulate(source, model, parts[:3])
    assert_equals_twin(again, reference_moments(model, mean_loss, parts[:3]))


def test_zeroed_gradients_are_as_good_as_none(model, parts):
    source = MicroBatches(model)
    accumulate(source, model, parts)
    model.zero_grad(set_to_none=False)
    assert_equals_twin(accumulate(source, model, parts), reference_moments(model, mean_loss, parts))


def captured(model: nn.Module, parts: list, loss: Callable[..., Tensor]) -> list[dict[str, Tensor]]:
    """Return what each part's own backward() leaves in p.grad, its factor taken out."""
    total = sum(len(part) for part in parts)
    gradients = []
    for part in parts:
        model.zero_grad()
        (len(part) / total * loss(model, *stack(part))).backward()
        gradients.append({name: p.grad.double() * total / len(part) for name, p in model.named_parameters()})
    model.zero_grad()
    return gradients


def test_under_bfloat16_autocast_the_norms_are_of_what_lands_in_the_gradient(model, parts):
    def loss(model, inputs, targets):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return nn.functional.mse_loss(model(inputs).float(), targets)

    moments = accumulate(MicroBatches(model), model, parts, loss=loss)
    model.zero_grad()
    gradients = captured(model, parts, loss)
    assert_equals_twin(moments, moments_of_gradients(gradients, PART_SIZES, PART_SIZES))
    exact = reference_moments(model, mean_loss, parts)
    # bfloat16 has 8 bits: the same step without autocast differs in the third digit, not by more
    assert moments.mean_of_sq_norms[0].item() == pytest.approx(exact.A["body"], rel=0.03)
    assert moments.mean_of_sq_norms[0].item() != pytest.approx(exact.A["body"], rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gradients_are_summed_in_float32(dtype):
    model = nn.Linear(256, 64, bias=False).to(dtype)
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(4, 256, generator=generator).to(dtype) for _ in range(2)]
    source, own_norms = MicroBatches(model), []
    for inputs in batches:
        with source.sub_batch(4, weight=1):
            model(inputs).float().square().mean().backward()
    moments = source.finish()
    for inputs in batches:
        model.zero_grad()
        model(inputs).float().square().mean().backward()
        own_norms.append(model.weight.grad.double().square().sum().item())
    # 16,384 squares in float32, against an error of percents if the sum itself were in half precision
    assert moments.mean_of_sq_norms.item() == pytest.approx(sum(own_norms) / 2, rel=1e-5)


class WithUnused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used = BodyAndHead()
        self.unused = nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.used(inputs)


def test_unused_parameters_count_as_zero(parts):
    model = WithUnused()
    moments = accumulate(MicroBatches(model), model, parts)
    assert_equals_twin(moments, reference_moments(model, mean_loss, parts))
    assert moments.mean_of_sq_norms[1].item() == 0.0
    assert model.unused.weight.grad is None


class TwoHeads(nn.Module):
    """The second head is used by inputs whose first entry is positive, alone."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.first, self.second = nn.Linear(4, 2), nn.Linear(4, 2)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.second(inputs) if bool(inputs[0, 0] > 0) else self.first(inputs)


def test_parameters_used_by_some_parts_alone_count_as_zero_in_the_others():
    model, samples = TwoHeads(), make_samples(40)
    positive = [sample for sample in samples if sample[0][0] > 0]
    negative = [sample for sample in samples if sample[0][0] <= 0]
    parts = [positive[:3], negative[:5], positive[3:5]]
    moments = accumulate(MicroBatches(model), model, parts)
    assert_equals_twin(moments, reference_moments(model, mean_loss, parts))


class _StopsGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs, weight):
        return inputs + 0 * weight.sum()

    @staticmethod
    def backward(ctx, grad):
        return grad, None


def test_a_parameter_whose_gradient_a_custom_function_leaves_out_counts_as_zero(model, parts):
    def loss(model, inputs, targets):
        return (
            (_StopsGradient.apply(model.head(torch.tanh(inputs @ model.body.weight.T)), model.body.bias) - targets)
            .square()
            .mean()
        )

    moments = accumulate(MicroBatches(model), model, parts, loss=loss)
    assert model.body.bias.grad is None
    assert_equals_twin(moments, reference_moments(model, loss, parts))


def test_parameters_frozen_later_count_as_zero(model, parts):
    source = MicroBatches(model)
    accumulate(source, model, parts)
    model.zero_grad()
    model.body.requires_grad_(False)
    moments = accumulate(source, model, parts)
    twin = reference_moments(model, mean_loss, parts)
    assert moments.mean_of_sq_norms[0].item() == 0.0
    assert moments.mean_of_sq_norms[1].item() == pytest.approx(twin.A["head"], rel=2e-6)
    assert moments.sq_norm_of_mean[1].item() == pytest.approx(twin.B["head"], rel=2e-6)


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 3, sparse=True)
        self.head = nn.Linear(3, 2)
        with torch.no_grad():
            self.embedding.weight.copy_(torch.randn(6, 3, generator=torch.Generator().manual_seed(5)))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.embedding(inputs).mean(1))


def test_sparse_gradients_with_repeated_rows_equal_the_twin():
    model, generator = Words(), torch.Generator().manual_seed(2)
    samples = [
        (torch.randint(0, 6, (4,), generator=generator), torch.randn(2, generator=generator))
        for _ in range(sum(PART_SIZES))
    ]
    parts, source = split(samples, PART_SIZES), MicroBatches(model)
    for zero_grad in ({"set_to_none": True}, {"set_to_none": False}):
        moments = accumulate(source, model, parts)
        assert model.embedding.weight.grad.is_sparse
        assert_equals_twin(moments, reference_moments(model, mean_loss, parts))
        model.zero_grad(**zero_grad)
    assert_equals_twin(accumulate(source, model, parts), reference_moments(model, mean_loss, parts))


class Picture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.conv(inputs).relu().mean((2, 3)))


def test_channels_last_gradients_equal_the_twin():
    torch.manual_seed(0)
    model = Picture()
    parts = split(make_samples(12, shape=(3, 6, 6)), [5, 3, 4])
    twin = reference_moments(model, mean_loss, parts)
    model = model.to(memory_format=torch.channels_last)

    def loss(model, inputs, targets):
        return mean_loss(model, inputs.contiguous(memory_format=torch.channels_last), targets)

    moments = accumulate(MicroBatches(model), model, parts, loss=loss)
    assert not model.conv.weight.grad.is_contiguous()
    assert_equals_twin(moments, twin, rtol=1e-5, atol=0.0)  # the convolution itself rounds in float32


class Checkpointed(nn.Module):
    """The body runs twice, each time behind a checkpoint or not."""

    def __init__(self, use_reentrant: bool | None, num_uses: int = 2) -> None:
        super().__init__()
        self.inner = BodyAndHead()
        self.square = nn.Linear(5, 5)
        with torch.no_grad():
            self.square.weight.copy_(torch.randn(5, 5, generator=torch.Generator().manual_seed(4)))
            self.square.bias.zero_()
        self.use_reentrant, self.num_uses = use_reentrant, num_uses

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.inner.body(inputs)
        for _ in range(self.num_uses):
            if self.use_reentrant is None:
                hidden = torch.tanh(self.square(hidden))
            else:
                hidden = checkpoint(lambda h: torch.tanh(self.square(h)), hidden, use_reentrant=self.use_reentrant)
        return self.inner.head(hidden)


def test_activation_checkpointing_changes_nothing(parts):
    plain, checkpointed = Checkpointed(None), Checkpointed(False)
    wanted = accumulate(MicroBatches(plain), plain, parts)
    got = accumulate(MicroBatches(checkpointed), checkpointed, parts)
    assert torch.equal(got.mean_of_sq_norms, wanted.mean_of_sq_norms)
    assert torch.equal(got.sq_norm_of_mean, wanted.sq_norm_of_mean)


def test_reentrant_checkpointing_of_a_module_used_once_is_exact(parts):
    plain, checkpointed = Checkpointed(None, num_uses=1), Checkpointed(True, num_uses=1)
    wanted = accumulate(MicroBatches(plain), plain, parts)
    got = accumulate(MicroBatches(checkpointed), checkpointed, parts)
    assert torch.equal(got.mean_of_sq_norms, wanted.mean_of_sq_norms)


def test_reentrant_checkpointing_of_a_shared_module_is_refused(parts):
    model = Checkpointed(True)
    with pytest.raises(RuntimeError, match=r"reached twice.*with activation checkpointing set use_reentrant=False"):
        accumulate(MicroBatches(model), model, parts)


def test_a_compiled_model_is_measured(model, parts):
    compiled = torch.compile(model, backend="eager")
    moments = accumulate(MicroBatches(compiled), compiled, parts)
    assert_equals_twin(moments, reference_moments(model, mean_loss, parts))


def test_a_part_that_is_not_finite_is_counted(model, parts):
    parts[2][0] = (torch.full((4,), float("nan")), parts[2][0][1])
    moments = accumulate(MicroBatches(model), model, parts)
    assert moments.num_non_finite.item() == 1
    assert bool(moments.mean_of_sq_norms.isnan().all())


# ------------------------------------------------------------------------------------------- no trace


class WithState(nn.Module):
    """Batch norm has buffers, dropout draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = BodyAndHead()
        self.norm, self.dropout = nn.BatchNorm1d(5), nn.Dropout(0.3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.inner.head(self.dropout(self.norm(self.inner.body(inputs))))


def train_three_steps(measure: bool) -> tuple[dict[str, Tensor], list[Tensor], Tensor]:
    torch.manual_seed(11)
    model = WithState()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    source = MicroBatches(model) if measure else None
    parts = split(make_samples(14), [3, 6, 5])
    for _ in range(3):
        optimizer.zero_grad()
        for part in parts:
            with source.sub_batch(len(part)) if source else contextlib.nullcontext():
                (len(part) / 14 * mean_loss(model, *stack(part))).backward()
        if source:
            source.finish().grad_sq_norm()
        optimizer.step()
    return model.state_dict(), [p.grad for p in model.parameters()], torch.get_rng_state()


def test_a_run_that_is_measured_is_bit_for_bit_the_run_that_is_not():
    with torch.random.fork_rng():
        (state, grads, rng), (state_off, grads_off, rng_off) = (
            train_three_steps(True),
            train_three_steps(False),
        )
    assert state.keys() == state_off.keys()
    assert all(torch.equal(state[name], state_off[name]) for name in state)
    assert all(torch.equal(on, off) for on, off in zip(grads, grads_off, strict=True))
    assert torch.equal(rng, rng_off)


def live_tensors_of_shape(shape: Sequence[int]) -> int:
    gc.collect()
    return sum(type(o) in (Tensor, nn.Parameter) and o.shape == tuple(shape) for o in gc.get_objects())


def test_no_gradient_outlives_its_part():
    model = nn.Linear(37, 41, bias=False)
    source, seen = MicroBatches(model), []
    model.weight.register_hook(lambda grad: seen.append(weakref.ref(grad)))
    for index in range(3):
        with source.sub_batch(2):
            model(torch.ones(2, 37)).square().mean().backward()
        assert live_tensors_of_shape((41, 37)) == 2  # the parameter and its gradient
        if index:  # the first gradient lives on as p.grad
            assert seen[-1]() is None
    source.finish()
    assert live_tensors_of_shape((41, 37)) == 2


@pytest.mark.parametrize("measure", [False, True])
def test_the_first_gradient_becomes_p_grad_without_a_copy(measure):
    model, addresses = nn.Linear(37, 41, bias=False), []
    model.weight.register_hook(lambda grad: addresses.append(grad.data_ptr()))
    with MicroBatches(model).sub_batch(2) if measure else contextlib.nullcontext():
        model(torch.ones(2, 37)).square().mean().backward()
    assert addresses == [model.weight.grad.data_ptr()]


def has_hooks(model: nn.Module) -> bool:
    return any(parameter._backward_hooks for parameter in model.parameters())


def test_hooks_live_inside_a_part_only(model, parts):
    source = MicroBatches(model)
    assert not has_hooks(model)
    for part in parts:
        with source.sub_batch(len(part)):
            assert has_hooks(model)
            mean_loss(model, *stack(part)).backward()
        assert not has_hooks(model)


def test_after_an_exception_in_a_part_the_source_can_be_used_again(model, parts):
    source = MicroBatches(model)
    with source.sub_batch(3):
        mean_loss(model, *stack(parts[0])).backward()
    with pytest.raises(KeyboardInterrupt), source.sub_batch(5):
        raise KeyboardInterrupt
    assert not has_hooks(model)
    model.zero_grad()
    assert_equals_twin(accumulate(source, model, parts), reference_moments(model, mean_loss, parts))


# ------------------------------------------------------------------------------------------- refusals


def backward(model: nn.Module, part: list) -> None:
    mean_loss(model, *stack(part)).backward()


def test_two_backward_calls_in_one_part_are_refused_and_leave_no_hooks(model, parts):
    source = MicroBatches(model)
    with (  # noqa: PT012
        pytest.raises(RuntimeError, match=r"one backward\(\) that reaches each parameter once; one was reached twice"),
        source.sub_batch(4),
    ):
        backward(model, parts[0])
        backward(model, parts[1])
    assert not has_hooks(model)
    model.zero_grad()
    assert_equals_twin(accumulate(source, model, parts), reference_moments(model, mean_loss, parts))


def test_a_part_without_backward_is_refused(model):
    with (
        pytest.raises(RuntimeError, match=r"must hold one backward\(\); no gradient arrived\. Move it inside"),
        MicroBatches(model).sub_batch(4),
    ):
        pass


def test_gradients_that_do_not_reach_p_grad_are_refused(model, parts):
    with (
        pytest.raises(RuntimeError, match=r"must leave its gradients in p\.grad.*Use loss\.backward"),
        MicroBatches(model).sub_batch(3),
    ):
        torch.autograd.grad(mean_loss(model, *stack(parts[0])), list(model.parameters()))


def test_an_optimizer_that_steps_inside_backward_is_refused(model, parts):
    def step(parameter: nn.Parameter) -> None:
        with torch.no_grad():
            parameter -= 0.1 * parameter.grad

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    with (
        pytest.raises(RuntimeError, match=r"the parameters as they are; it did not.*steps after finish\(\)"),
        MicroBatches(model).sub_batch(3),
    ):
        backward(model, parts[0])


def test_gradients_present_before_the_first_part_are_refused(model, parts):
    backward(model, parts[0])
    with (
        pytest.raises(RuntimeError, match=r"must be empty before the first sub_batch.*optimizer\.zero_grad"),
        MicroBatches(model).sub_batch(3),
    ):
        pass


TOUCH = {
    "zero_grad": lambda model: model.zero_grad(),
    "zero_grad in place": lambda model: model.zero_grad(set_to_none=False),
    "clip_grad_norm_": lambda model: nn.utils.clip_grad_norm_(model.parameters(), 1e-3),
    "clip_grad_value_": lambda model: nn.utils.clip_grad_value_(model.parameters(), 1e-3),
    "step": lambda model: torch.optim.SGD(model.parameters(), lr=0.1).step(),
    "step of Adam": lambda model: torch.optim.AdamW(model.parameters(), lr=0.1).step(),
    "a backward outside": lambda model: model(torch.ones(1, 4)).sum().backward(),
    "replaced gradients": lambda model: setattr(model.body.weight, "grad", model.body.weight.grad.clone()),
}


@pytest.mark.parametrize("touch", TOUCH.values(), ids=TOUCH.keys())
@pytest.mark.parametrize(
    "goes_on", [lambda source: source.sub_batch(5).__enter__(), MicroBatches.finish], ids=["part", "finish"]
)
def test_touching_gradients_or_parameters_during_the_step_is_refused(model, parts, touch, goes_on):
    source = MicroBatches(model)
    for part in parts[:2]:
        with source.sub_batch(len(part)):
            backward(model, part)
    touch(model)
    with pytest.raises(
        RuntimeError, match=r"must stay as backward\(\) left them.*Unscale, clip, step and zero_grad after"
    ):
        goes_on(source)
    model.zero_grad()
    assert_equals_twin(accumulate(source, model, parts), reference_moments(model, mean_loss, parts))


def test_unscaling_before_finish_is_refused(model, parts):
    scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)
    source, optimizer = MicroBatches(model), torch.optim.SGD(model.parameters(), lr=0.1)
    for part in parts:
        with source.sub_batch(len(part)):
            scaler.scale(len(part) / 21 * mean_loss(model, *stack(part))).backward()
    scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="Unscale, clip, step and zero_grad after finish"):
        source.finish(65536.0)


def test_finish_without_a_part_is_refused(model, parts):
    source = MicroBatches(model)
    with pytest.raises(RuntimeError, match=r"finish\(\) must follow at least one sub_batch\(\); got none"):
        source.finish()
    accumulate(source, model, parts)
    with pytest.raises(RuntimeError, match="got none"):
        source.finish()


def test_one_part_alone_is_refused_and_the_source_can_be_used_again(model, parts):
    source = MicroBatches(model)
    with pytest.raises(ValueError, match="at least 2 sub-batches; got 1"):
        accumulate(source, model, parts[:1])
    model.zero_grad()
    assert_equals_twin(accumulate(source, model, parts), reference_moments(model, mean_loss, parts))


@pytest.mark.parametrize("first", [None, 0.5])
def test_a_weight_for_some_parts_alone_is_refused(model, parts, first):
    source = MicroBatches(model)
    with source.sub_batch(3, weight=first):
        backward(model, parts[0])
    second = 0.5 if first is None else None
    with (
        pytest.raises(ValueError, match="weight must be given for every part of a step or for none; got a mixture"),
        source.sub_batch(1, weight=second),
    ):
        pass


@pytest.mark.parametrize("bad", [0, -3, float("inf"), float("nan")])
def test_sizes_and_weights_must_be_positive_and_finite(model, bad):
    source = MicroBatches(model)
    with (
        pytest.raises(ValueError, match=f"size must be positive and finite; got {bad}"),
        source.sub_batch(bad),
    ):
        pass
    with (
        pytest.raises(ValueError, match=f"weight must be positive and finite; got {bad}"),
        source.sub_batch(3, weight=bad),
    ):
        pass


def test_sharded_parameters_are_refused(model):
    model.head.weight.placements = ()
    with pytest.raises(TypeError, match=r"must be whole tensors on each rank; got sharded ones \(FSDP or DTensor\)"):
        MicroBatches(model)


def test_models_that_the_first_fsdp_shards_are_refused(model):
    model.__class__ = type("FullyShardedDataParallel", (type(model),), {})
    with pytest.raises(TypeError, match="must be whole tensors on each rank"):
        MicroBatches(model)
