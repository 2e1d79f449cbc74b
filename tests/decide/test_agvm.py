"""Noise fractions and scales: the numbers of the digest, the slow twin, the official hook, and what keeps a scale."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import agvm as twin

from anybatch.decide import (
    agvm_scales,
    measure_noise_fractions,
    precondition_as_published,
    precondition_like_adam,
)
from anybatch.stats import GradientMoments, HalfBatches

MODULES = {"backbone": [(4, 3), (5,)], "fpn": [(2, 2)], "head": [(3,), (2, 3), (1,)]}
fractions = st.floats(1e-6, 2.0)


def random_gradient(generator, signal=1.0, noise=1.0):
    true = {m: [signal * torch.ones(shape, dtype=torch.float64) for shape in shapes] for m, shapes in MODULES.items()}
    return {
        m: [t + noise * torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in tensors]
        for m, tensors in true.items()
    }


def whole(gradient):
    return {module: torch.cat([t.flatten() for t in tensors]) for module, tensors in gradient.items()}


def halves_of(first, second, sizes=(1.0, 1.0)):
    return HalfBatches.from_gradients(whole(first), whole(second), sizes)


# ------------------------------------------------------------------------------------------- noise fractions


def test_check_1_two_vectors_and_the_product_from_norms_alone():
    first, second = torch.tensor([3.0, 4.0]), torch.tensor([4.0, 3.0])
    halves = HalfBatches.from_sums(["all"], [1, 1], [0.5, 0.5], torch.tensor([[6.25], [6.25]]), torch.tensor([24.5]))
    assert halves.products.item() == 24
    assert halves.cosines().item() == pytest.approx(0.96, abs=1e-15)
    assert measure_noise_fractions(halves)["all"] == pytest.approx(0.04, abs=1e-15)
    variance_of_mean = (first - second).square().sum().item() / 4
    assert variance_of_mean == pytest.approx(first.square().sum().item() * 0.04 / 2, rel=1e-6)


@pytest.mark.parametrize(("snr", "expected"), [(0.01, 0.99), (0.1, 0.91), (1, 0.50), (10, 0.091), (100, 0.0099)])
def test_check_4_the_fraction_is_one_over_one_plus_the_signal_to_noise_ratio(snr, expected):
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(60):
        noise = torch.randn(2, 2000, generator=generator, dtype=torch.float64) / math.sqrt(2000)  # tr S_half = 1
        first, second = noise + math.sqrt(snr / 2000)
        halves = HalfBatches.from_gradients({"all": first}, {"all": second})
        found.append(measure_noise_fractions(halves)["all"])
    std_error = torch.tensor(found).std().item() / math.sqrt(len(found))
    assert sum(found) / len(found) == pytest.approx(1 / (1 + snr), abs=4 * std_error)
    assert sum(found) / len(found) == pytest.approx(expected, abs=0.006)


def test_check_5_moments_of_four_parts():
    parts = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, 0.0]])
    moments = GradientMoments.from_gradients({"all": parts}, [1, 1, 1, 1])
    assert (moments.mean_of_sq_norms.item(), moments.sq_norm_of_mean.item()) == (2.0, 1.25)
    assert moments.grad_sq_norm().item() == pytest.approx(1.0)
    assert measure_noise_fractions(moments)["all"] == pytest.approx(1 / 3, rel=1e-14)


@pytest.mark.parametrize("seed", range(5))
def test_check_5_moments_of_two_halves_are_the_product_over_the_mean_square(seed):
    generator = torch.Generator().manual_seed(seed)
    first, second = random_gradient(generator), random_gradient(generator)
    halves = halves_of(first, second)
    found = measure_noise_fractions(halves.moments())
    for index, module in enumerate(halves.modules):
        expected = 1 - halves.products[index] / halves.sq_norms[:, index].mean()
        assert found[module] == pytest.approx(min(expected.item(), 1.0), rel=1e-10)  # |g|^2 is at least 0


@pytest.mark.parametrize("sizes", [(1.0, 1.0), (3.0, 5.0)])
@pytest.mark.parametrize("noise", [0.1, 1.0, 10.0])
def test_cosines_equal_the_slow_twin_whatever_the_sizes(sizes, noise):
    generator = torch.Generator().manual_seed(1)
    first, second = random_gradient(generator, noise=noise), random_gradient(generator, noise=noise)
    found = measure_noise_fractions(halves_of(first, second, sizes))
    assert found == pytest.approx(twin.cosine_fractions(first, second), rel=1e-11)


@pytest.mark.parametrize("num_parts", [2, 3, 4, 7])
def test_moment_fractions_equal_the_slow_twin_for_any_size_of_equal_parts(num_parts):
    generator = torch.Generator().manual_seed(2)
    parts = [random_gradient(generator) for _ in range(num_parts)]
    stacked = {module: torch.stack([whole(part)[module] for part in parts]) for module in MODULES}
    moments = GradientMoments.from_gradients(stacked, [8] * num_parts)
    assert measure_noise_fractions(moments) == pytest.approx(twin.moment_fractions(parts), rel=1e-10)


def test_moments_scatter_less_than_the_cosine_of_the_same_parts():
    generator = torch.Generator().manual_seed(3)
    by_cosine, by_moments = [], []
    for _ in range(300):
        parts = 0.3 + torch.randn(16, 40, generator=generator, dtype=torch.float64)
        halves = HalfBatches.from_gradients({"all": parts[::2].mean(0)}, {"all": parts[1::2].mean(0)})
        by_cosine.append(measure_noise_fractions(halves)["all"])
        moments = GradientMoments.from_gradients({"all": parts}, [1] * 16)
        by_moments.append(measure_noise_fractions(moments)["all"])
    assert torch.tensor(by_moments).std() < 0.8 * torch.tensor(by_cosine).std()


def test_a_fraction_predicts_itself_at_another_batch_size():
    """s = 1 / (1 + B / (2 B_i)) with B_i the module's noise scale: the bridge to `estimate_noise_scale`."""
    generator = torch.Generator().manual_seed(4)
    noise_scale, batch_size = 50.0, 64  # |g|^2 = 1, tr(S_1) = 50
    found = []
    for _ in range(200):
        noise = torch.randn(2, 1000, generator=generator, dtype=torch.float64)
        first, second = 1 / math.sqrt(1000) + noise * math.sqrt(noise_scale / 1000 / (batch_size / 2))
        halves = HalfBatches.from_gradients({"all": first}, {"all": second}, (batch_size / 2, batch_size / 2))
        found.append(measure_noise_fractions(halves)["all"])
    assert sum(found) / len(found) == pytest.approx(1 / (1 + batch_size / (2 * noise_scale)), abs=0.01)


def test_halves_with_a_negative_cosine_have_a_fraction_above_one():
    halves = HalfBatches.from_gradients({"all": torch.tensor([1.0, 0.5])}, {"all": torch.tensor([-1.0, 0.5])})
    assert measure_noise_fractions(halves)["all"] == pytest.approx(1.6)


def test_a_module_without_a_gradient_has_no_fraction_and_as_published_counts_as_noise():
    empty, full = torch.zeros(2), torch.ones(2)
    halves = HalfBatches.from_gradients({"one": empty, "both": empty}, {"one": full, "both": empty})
    assert all(math.isnan(fraction) for fraction in measure_noise_fractions(halves).values())
    assert measure_noise_fractions(halves, as_published=True) == {"one": 1.0, "both": 1.0}
    assert math.isnan(measure_noise_fractions(halves.moments())["both"])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_has_no_fraction(bad):
    halves = HalfBatches.from_gradients({"all": torch.tensor([1.0, bad])}, {"all": torch.ones(2)})
    for measurement in (halves, halves.moments()):
        assert math.isnan(measure_noise_fractions(measurement)["all"])


# ------------------------------------------------------------------------------------------- scales


def test_check_2_the_ratio_is_clamped_before_its_root():
    given = dict(zip("abcdef", (1.2, 0.6, 0.4, 0.05, 2.0, 3.0), strict=True))
    found = agvm_scales(given, anchor="a", momentum=0.0)
    assert list(found.values()) == pytest.approx([1, 1.414213, 1.732049, 3.162278, 0.774597, 0.707107], abs=1e-6)


def test_check_3_the_moving_average_after_three_measurements():
    given, found = {"a": 1.2, "b": 0.6, "c": 0.4}, None
    for _ in range(3):
        found = agvm_scales(given, anchor="a", previous=found)
    assert list(found.values()) == pytest.approx([1, 1.036172, 1.063928], abs=1e-6)


@pytest.mark.parametrize(("updates", "reached"), [(1, 0.030), (10, 0.263), (23, 0.504), (33, 0.634), (100, 0.952)])
def test_check_3_how_far_the_moving_average_has_come(updates, reached):
    found = None
    for _ in range(updates):
        found = agvm_scales({"a": 1.0, "b": 0.1}, anchor="a", previous=found)
    end = agvm_scales({"a": 1.0, "b": 0.1}, anchor="a", momentum=0.0)["b"]
    assert (found["b"] - 1) / (end - 1) == pytest.approx(reached, abs=6e-4)


@given(
    st.lists(st.dictionaries(st.sampled_from("abcd"), fractions), max_size=5),
    st.floats(0, 0.999),
    st.floats(0.1, 1.0),
    st.floats(1.0, 20.0),
)
def test_scales_equal_the_slow_twin(measurements, momentum, low, high):
    found = expected = dict.fromkeys("abcd", 1.0)
    for given_fractions in measurements:
        found = agvm_scales(given_fractions, "a", found, momentum, (low, high))
        expected = twin.scales(given_fractions, "a", expected, momentum, low, high)
    assert found == pytest.approx(expected, rel=1e-12)
    assert found["a"] == 1
    assert all(math.sqrt(low) * (1 - 1e-9) <= scale <= math.sqrt(high) * (1 + 1e-9) for scale in found.values())


@given(fractions, st.floats(0, 0.999))
def test_equal_fractions_leave_every_scale_at_exactly_one(fraction, momentum):
    found = None
    for _ in range(5):
        found = agvm_scales({"a": fraction, "b": fraction, "c": fraction}, "a", found, momentum)
    assert found == {"a": 1.0, "b": 1.0, "c": 1.0}


@pytest.mark.parametrize("bad", [None, 0.0, -0.1, math.nan, math.inf])
def test_a_module_that_is_missing_zero_or_not_finite_keeps_its_scale(bad):
    given = {"a": 0.5, "b": 0.1} | ({} if bad is None else {"c": bad})
    found = agvm_scales(given, "a", {"a": 1.0, "b": 1.0, "c": 1.7})
    assert found["c"] == 1.7
    assert found["b"] > 1


@pytest.mark.parametrize("bad", [None, 0.0, math.nan, math.inf])
def test_without_the_anchor_every_module_keeps_its_scale(bad):
    given = {"b": 0.1} | ({} if bad is None else {"a": bad})
    assert agvm_scales(given, "a", {"a": 1.0, "b": 1.3}) == {"a": 1.0, "b": 1.3}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"anchor": "trunk"}, r"anchor must be a module; got 'trunk'\. The modules are a, b"),
        ({"momentum": 1.0}, r"momentum must be at least 0 and below 1; got 1\.0"),
        ({"momentum": -0.1}, r"momentum must be at least 0 and below 1; got -0\.1"),
        ({"clamp": (2.0, 1.0)}, r"clamp must be two positive numbers that ascend; got \(2\.0, 1\.0\)"),
        ({"clamp": (0.0, 1.0)}, "clamp must be two positive numbers that ascend"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        agvm_scales({"a": 0.5, "b": 0.1}, **({"anchor": "a"} | arguments))


# ------------------------------------------------------------------------------------------- as the official hook


@pytest.mark.parametrize("world_size", [2, 4, 8])
@pytest.mark.parametrize("beta2", [None, 0.999], ids=["sgd", "adam"])
def test_scales_are_those_of_the_official_hook_step_by_step(world_size, beta2):
    generator = torch.Generator().manual_seed(5)
    hook, found = twin.OfficialHook(world_size, beta2=beta2, eps=1e-6), None
    second = {m: [t.square() for t in tensors] for m, tensors in random_gradient(generator).items()}

    def shown(gradient):
        if beta2 is None:
            return gradient
        return {
            m: [precondition_as_published(g, second[m][i], beta2, 1e-6, world_size) for i, g in enumerate(tensors)]
            for m, tensors in gradient.items()
        }

    for step in range(12):
        ranks = [random_gradient(generator, noise=2.0 / (1 + step)) for _ in range(world_size)]
        if step == 7:  # no positives for the head in one half
            for rank in ranks[: world_size // 2]:
                rank["head"] = [torch.zeros_like(t) for t in rank["head"]]
        if step == 9:  # the head's halves are equal
            for rank in ranks:
                rank["head"] = [torch.ones_like(t) for t in rank["head"]]
        first, last = (shown(twin.mean(half)) for half in (ranks[: world_size // 2], ranks[world_size // 2 :]))
        measured = measure_noise_fractions(halves_of(first, last), as_published=True)
        found = agvm_scales(measured, "backbone", found, as_published=True)
        assert found == pytest.approx(hook.iterate(ranks, second), rel=1e-10), step
    assert found["backbone"] == 1
    assert len({round(scale, 6) for scale in found.values()}) == 3


@pytest.mark.parametrize("fraction", [0.0, -1e-17])
def test_equal_halves_keep_a_scale_and_as_published_take_it_to_the_clamp(fraction):
    fractions = {"backbone": 0.5, "head": fraction}
    for as_published, expected in ((False, 1.0), (True, 10**0.5)):
        scales = agvm_scales(fractions, "backbone", momentum=0.0, as_published=as_published)
        assert scales == pytest.approx({"backbone": 1.0, "head": expected})
    scales = agvm_scales({"backbone": 0.0, "head": 0.5}, "backbone", momentum=0.0, as_published=True)
    assert scales == pytest.approx({"backbone": 1.0, "head": 0.5**0.5})


def test_adam_preconditioned_halves_share_one_denominator():
    second = torch.tensor([4.0, 0.0])
    factor = precondition_like_adam(second, beta2=0.25, eps=0.5)
    assert factor.tolist() == pytest.approx([1 / 1.5, 0.0], rel=1e-6)  # of the second there was no gradient yet
    assert second.tolist() == [4.0, 0.0]
    grad = torch.tensor([3.0, 1.0])
    torch.testing.assert_close(precondition_as_published(grad, second, 0.25, 0.5, 10**9)[0], (grad * factor)[0])
    written = grad / ((0.25 * second + 0.75 * grad**2).sqrt() + 0.5)
    torch.testing.assert_close(precondition_as_published(grad, second, 0.25, 0.5), written)
