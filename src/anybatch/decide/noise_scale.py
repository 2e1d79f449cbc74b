"""How many samples does one gradient deserve?

The noise scale is tr(S) / |G|^2: the trace of the covariance of one sample's gradient over the squared norm of the
true gradient, in samples. A batch well below it is mostly noise; samples beyond it buy little.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from anybatch.stats.moments import GradientMoments, MeasuredGeometry

Target = Literal["training_set", "population"]
Verdict = Literal["measured", "undetermined"]
Array = NDArray[np.float64]
SMALLEST_NOISE = 1e-12


@dataclass(frozen=True)
class NoiseScale:
    """A noise scale with its confidence set.

    Attributes:
        value: ratio of averages, in samples; None where undetermined.
        low: lower end of the confidence set.
        high: upper end; None where the set has none.
        verdict: "undetermined" where the set is unbounded, the gradient not being distinguishable from zero, or
            empty, the squared norm being significantly negative.
        at_least: one-sided lower confidence limit, the number to quote where undetermined; None where the set is
            empty.
        steps_to_settle: at least so many steps like these would bound the set; None where it is bounded or empty.
        inverse: |G|^2 / tr(S), which is finite and may be negative: the quantity to average over a run.
        inverse_std_error: its standard error.
        num_steps: steps that were used.
        num_skipped: steps left out because a gradient was not finite.
        confidence: of `low` to `high`, and of `at_least`.
        target: what the true gradient belongs to: "training_set" or "population".
        modules: the same for every module; empty for a module itself.
        geometry: "sgd": tr(S) / |G|^2; "adam": tr(P S) / (G^T P G), see `AdamPreconditioner`.
    """

    value: float | None
    low: float
    high: float | None
    verdict: Verdict
    at_least: float | None
    steps_to_settle: int | None
    inverse: float
    inverse_std_error: float
    num_steps: int
    num_skipped: int
    confidence: float
    target: Target
    modules: Mapping[str, NoiseScale] = field(default_factory=dict)
    geometry: MeasuredGeometry = "sgd"

    @property
    def reason(self) -> str:
        """One sentence on the value or on why there is none."""
        percent = f"{100 * self.confidence:.4g}%"
        steps = f"{self.num_steps} steps"
        if self.value is not None:
            text = f"{self.value:.3g} samples, {percent} interval {self.low:.3g} to {self.high:.3g}, from {steps}"
        elif self.inverse == 0:
            text = f"there is no gradient over {steps}"
        elif self.at_least is None:
            text = (
                f"over {steps} the squared norm came out negative: the gradient drowns in its noise, or the samples "
                "of a step are not independent"
            )
        else:
            text = (
                f"at least {self.at_least:.3g} samples ({percent}): over {steps} the gradient is not distinguishable "
                f"from zero; at least {self.steps_to_settle} such steps would settle it"
            )
        skipped = f"; {self.num_skipped} steps with gradients that are not finite were left out"
        geometry = {"sgd": "", "adam": "; in Adam's geometry"}.get(self.geometry, "; of preconditioned gradients")
        return text + geometry + (skipped if self.num_skipped else "")

    def in_units_of(self, size: float) -> NoiseScale:
        """Return the same noise scale in a larger unit, such as samples of `size` tokens each.

        Args:
            size: how many of today's units one new unit has.

        Returns:
            A noise scale whose values are divided by `size`.
        """
        return replace(
            self,
            value=None if self.value is None else self.value / size,
            low=self.low / size,
            high=None if self.high is None else self.high / size,
            at_least=None if self.at_least is None else self.at_least / size,
            inverse=self.inverse * size,
            inverse_std_error=self.inverse_std_error * size,
            modules={name: module.in_units_of(size) for name, module in self.modules.items()},
        )


@dataclass(frozen=True)
class _Setting:
    confidence: float
    target: Target
    num_skipped: int
    geometry: MeasuredGeometry


def estimate_noise_scale(
    list_of_moments: Sequence[GradientMoments],
    confidence: float = 0.95,
    *,
    target: Target = "training_set",
    population_size: float | None = None,
    replacement: bool = False,
    per_module: bool = True,
) -> NoiseScale:
    """Estimate the noise scale of the model and of every module from several steps at the same weights.

    The ratio of averages over steps, with Fieller's confidence set: all r for which mean(T - r G) is within
    t(n - 1) standard errors of zero, T and G being the steps' unbiased estimates of the trace and of the squared
    norm. The set is unbounded exactly when the squared norm is not significantly positive; then there is no
    value, only a lower limit. Steps that slide along a short stretch of training give the average over it.

    Args:
        list_of_moments: one per step, from at least 2 steps of about equal size; samples are drawn anew for each.
        confidence: of the set; between 0 and 1.
        target: "training_set": the gradient over the samples drawn from; "population": over what the training
            set was itself drawn from (valid while the weights do not depend on it, so early in training).
            Without `population_size` the two are the same.
        population_size: how many samples the training set has, in the unit of `sizes`; None for a stream.
        replacement: whether samples within a step were drawn with replacement from the training set.
        per_module: whether to estimate the modules' too, which takes as long for each as for the model.

    Returns:
        The noise scale in samples (or in the unit of `sizes`), in the geometry of the moments.

    Raises:
        ValueError: fewer than 2 finite steps, steps with different modules or geometries, a `population_size` of at
            most 1 or smaller than a step drawn without replacement, an unknown target, or a confidence outside (0, 1).

    Example:
        >>> import torch
        >>> from anybatch.stats import GradientMoments
        >>> rng = torch.Generator().manual_seed(0)
        >>> def step():  # a true gradient of squared norm 1, noise of trace 100 per sample: noise scale 100
        ...     grads = 0.1 + torch.randn(4, 100, generator=rng, dtype=torch.float64) / 32**0.5
        ...     return GradientMoments.from_gradients({"all": grads}, sizes=[32, 32, 32, 32])
        >>> noise = estimate_noise_scale([step() for _ in range(20)])
        >>> print(f"{noise.value:.0f} ({noise.low:.0f} to {noise.high:.0f}), {noise.verdict}")
        109 (97 to 124), measured

    Source:
        McCandlish et al. 2018, arXiv:1812.06162, equation 2.8 and appendix A.1; Fieller 1954 for the set. Differs:
        unequal parts, a confidence set instead of a moving average, and the correction for small training sets.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1; got {confidence}.")
    if target not in get_args(Target):
        raise ValueError(f"target must be one of {', '.join(get_args(Target))}; got {target!r}.")
    modules = {moments.modules for moments in list_of_moments}
    if len(modules) > 1:
        raise ValueError(f"all steps must have the same modules; got {sorted(modules)}.")
    geometries = {moments.geometry for moments in list_of_moments}
    if len(geometries) > 1:
        raise ValueError(f"all steps must have the same geometry; got {sorted(geometries)}.")
    finite = [moments for moments in list_of_moments if not int(moments.num_non_finite)]
    num_skipped = len(list_of_moments) - len(finite)
    if len(finite) < 2:
        skipped = f", and {num_skipped} with gradients that are not finite" if num_skipped else ""
        raise ValueError(f"a noise scale needs at least 2 steps; got {len(finite)}{skipped}. Measure more steps.")
    setting = _Setting(confidence, target, num_skipped, finite[0].geometry)
    trace, sq_norm = _steps(finite)
    trace, sq_norm = _correct_for_population(finite, trace, sq_norm, target, population_size, replacement)
    names = finite[0].modules if per_module else ()
    each = {name: _fieller(trace[:, index], sq_norm[:, index], setting) for index, name in enumerate(names)}
    return _fieller(trace.sum(1), sq_norm.sum(1), setting, each)


def average_noise_scale(noise_scales: Sequence[NoiseScale], weights: Sequence[float] | None = None) -> NoiseScale:
    """Average noise scales measured at several points of a run: the harmonic mean.

    Training from one loss to the next costs E (1 + B / noise scale) samples at batch size B, so over a run it is
    the inverse noise scale that averages. Points where the gradient was not significant take part with their
    inverse, whatever its sign.

    Args:
        noise_scales: one per point, with the same modules.
        weights: one per point; how much of the run it stands for, measured in small-batch samples. Default: equal.

    Returns:
        The harmonic mean; its interval has the points' own errors alone, neither the run's randomness nor what
        lies between the points.

    Raises:
        ValueError: no noise scale; different modules, targets, confidences or geometries; or weights that do not fit.

    Source:
        McCandlish et al. 2018, arXiv:1812.06162, appendix D, read as a mean over the run.
    """
    if not noise_scales:
        raise ValueError("an average needs at least 1 noise scale; got none.")
    _check_alike(noise_scales)
    shares = np.asarray([1.0] * len(noise_scales) if weights is None else weights, dtype=float)
    if shares.shape != (len(noise_scales),) or not (shares >= 0).all() or not shares.sum() > 0:
        raise ValueError(f"weights must be {len(noise_scales)} numbers of at least 0; got {list(shares)}.")
    noise_scales = [scale for scale, share in zip(noise_scales, shares, strict=True) if share]
    shares = shares[shares > 0] / shares.sum()
    each = {
        name: _harmonic_mean([scale.modules[name] for scale in noise_scales], shares)
        for name in noise_scales[0].modules
    }
    return _harmonic_mean(noise_scales, shares, each)


def pool_runs(noise_scales: Sequence[NoiseScale]) -> NoiseScale:
    """Join the means of independent runs of one workload: their harmonic mean, with the error that runs show.

    Args:
        noise_scales: of `average_noise_scale`, one per run with a seed of its own; at least 2.

    Returns:
        The mean; its interval is from the spread between runs, which holds the points' errors too.

    Raises:
        ValueError: fewer than two runs, or different modules, targets, confidences or geometries.
    """
    if len(noise_scales) < 2:
        raise ValueError(f"the spread between runs needs at least 2 runs; got {len(noise_scales)}.")
    _check_alike(noise_scales)
    each = {name: _mean_of_runs([scale.modules[name] for scale in noise_scales]) for name in noise_scales[0].modules}
    return _mean_of_runs(noise_scales, each)


def _check_alike(noise_scales: Sequence[NoiseScale]) -> None:
    for name in ("modules", "target", "confidence", "geometry"):
        found = {tuple(value) if name == "modules" else value for value in (getattr(s, name) for s in noise_scales)}
        if len(found) > 1:
            raise ValueError(f"all noise scales must have the same {name}; got {sorted(found)}.")


def _steps(list_of_moments: Sequence[GradientMoments]) -> tuple[Array, Array]:
    trace = np.stack([moments.grad_var_trace().cpu().numpy() for moments in list_of_moments])
    sq_norm = np.stack([moments.grad_sq_norm().cpu().numpy() for moments in list_of_moments])
    return trace.astype(float), sq_norm.astype(float)


def _correct_for_population(
    list_of_moments: Sequence[GradientMoments],
    trace: Array,
    sq_norm: Array,
    target: Target,
    size: float | None,
    replacement: bool,
) -> tuple[Array, Array]:
    # Disjoint draws from N samples have covariance -S / N between them, S being the spread with N - 1 in the
    # denominator; the plain estimates then have the expectations S and |G|^2 - S / N, which are the population's.
    if size is None:
        return trace, sq_norm
    if not 1 < size < math.inf:
        raise ValueError(f"population_size must be a number above 1; got {size}. Leave it out for a stream.")
    largest = max(float(moments.sizes.sum()) for moments in list_of_moments)
    if not replacement and largest > size * (1 + 1e-9):
        raise ValueError(
            f"a step drawn without replacement must fit the population; got {largest:g} samples of {size:g}."
        )
    if replacement and target == "population":
        spread = trace * size / (size - 1)
        return spread, sq_norm - spread / size
    if not replacement and target == "training_set":
        return trace * (size - 1) / size, sq_norm + trace / size
    return trace, sq_norm


def _fieller(
    trace: Array, sq_norm: Array, setting: _Setting, modules: Mapping[str, NoiseScale] | None = None
) -> NoiseScale:
    n = len(trace)
    mean_trace, mean_sq_norm = float(trace.mean()), float(sq_norm.mean())
    covariance = np.cov(trace, sq_norm) / n
    set_ = _fieller_set(mean_trace, mean_sq_norm, covariance, _t_quantile((1 + setting.confidence) / 2, n - 1))
    one_sided = _fieller_set(mean_trace, mean_sq_norm, covariance, _t_quantile(setting.confidence, n - 1))
    noise = max(mean_trace, SMALLEST_NOISE * abs(mean_sq_norm))  # rounding can make no noise negative
    inverse = mean_sq_norm / noise if noise else 0.0
    residual = sq_norm - inverse * trace
    return _noise_scale(
        setting,
        value=noise / mean_sq_norm if mean_sq_norm else None,
        interval=set_,
        at_least=one_sided[0],
        steps_to_settle=_steps_to_settle(sq_norm, setting.confidence),
        inverse=inverse,
        inverse_std_error=float(residual.std(ddof=1) / math.sqrt(n) / noise) if noise else 0.0,
        num_steps=n,
        modules=modules,
    )


def _fieller_set(trace: float, sq_norm: float, covariance: Array, quantile: float) -> tuple[float | None, float | None]:
    """Return the ends of {r >= 0: (trace - r sq_norm)^2 <= q^2 var(trace - r sq_norm)}; None where there is none.

    With a, b, c the coefficients of a r^2 - 2 b r + c <= 0. A squared norm that is significantly negative has no
    r at all: both ends are None.
    """
    a = float(sq_norm**2 - quantile**2 * covariance[1, 1])
    b = float(trace * sq_norm - quantile**2 * covariance[0, 1])
    c = float(trace**2 - quantile**2 * covariance[0, 0])
    root = math.sqrt(max(b * b - a * c, 0.0))
    if a > 0 and sq_norm > 0:
        return max((b - root) / a, 0.0), (b + root) / a
    if a > 0:
        return None, None
    lower = c / (b + root) if c > 0 and b + root > 0 else 0.0
    return lower, None


def _steps_to_settle(sq_norm: Array, confidence: float) -> int:
    """Return how many steps make the mean of `sq_norm` significant, if it is the upper limit of what it may be.

    With a mean that is itself positive the mean is taken; else the upper limit, and the number is the least.
    """
    n = len(sq_norm)
    spread = float(sq_norm.std(ddof=1))
    quantile = _t_quantile((1 + confidence) / 2, n - 1)
    mean = float(sq_norm.mean())
    if mean <= 0:
        mean = max(mean + quantile * spread / math.sqrt(n), 1e-12 * spread)
    return n if spread == 0 else max(n + 1, math.ceil((quantile * spread / mean) ** 2))


def _harmonic_mean(
    noise_scales: Sequence[NoiseScale], shares: Array, modules: Mapping[str, NoiseScale] | None = None
) -> NoiseScale:
    variances = (shares * [scale.inverse_std_error for scale in noise_scales]) ** 2
    freedom = _welch_freedom(variances, [scale.num_steps - 1 for scale in noise_scales])
    mean = float(shares @ [scale.inverse for scale in noise_scales])
    return _from_inverse(noise_scales, mean, math.sqrt(variances.sum()), freedom, modules)


def _mean_of_runs(noise_scales: Sequence[NoiseScale], modules: Mapping[str, NoiseScale] | None = None) -> NoiseScale:
    inverses = np.array([scale.inverse for scale in noise_scales])
    n = len(inverses)
    std_error = float(inverses.std(ddof=1)) / math.sqrt(n)
    return _from_inverse(noise_scales, float(inverses.mean()), std_error, n - 1, modules)


def _from_inverse(
    noise_scales: Sequence[NoiseScale],
    inverse: float,
    std_error: float,
    freedom: float,
    modules: Mapping[str, NoiseScale] | None,
) -> NoiseScale:
    first = noise_scales[0]
    two_sided = _t_quantile((1 + first.confidence) / 2, freedom) * std_error
    one_sided = _t_quantile(first.confidence, freedom) * std_error
    num_steps = sum(scale.num_steps for scale in noise_scales)
    needed = (two_sided / inverse) ** 2 * num_steps if inverse > 0 else math.inf
    return _noise_scale(
        _Setting(first.confidence, first.target, sum(scale.num_skipped for scale in noise_scales), first.geometry),
        value=1 / inverse if inverse else None,
        interval=(_inverse(inverse + two_sided), _inverse(inverse - two_sided)),
        at_least=_inverse(inverse + one_sided),
        steps_to_settle=max(num_steps + 1, math.ceil(needed)) if math.isfinite(needed) else 2 * num_steps,
        inverse=inverse,
        inverse_std_error=std_error,
        num_steps=num_steps,
        modules=modules,
    )


def _noise_scale(
    setting: _Setting,
    *,
    value: float | None,
    interval: tuple[float | None, float | None],
    at_least: float | None,
    steps_to_settle: int,
    inverse: float,
    inverse_std_error: float,
    num_steps: int,
    modules: Mapping[str, NoiseScale] | None,
) -> NoiseScale:
    low, high = interval
    measured = high is not None
    return NoiseScale(
        value=value if measured else None,
        low=low or 0.0,
        high=high,
        verdict="measured" if measured else "undetermined",
        at_least=low if at_least is None else at_least,
        steps_to_settle=None if measured or low is None else steps_to_settle,
        inverse=inverse,
        inverse_std_error=inverse_std_error,
        num_steps=num_steps,
        num_skipped=setting.num_skipped,
        confidence=setting.confidence,
        target=setting.target,
        modules=modules or {},
        geometry=setting.geometry,
    )


def _inverse(value: float) -> float | None:
    return 1 / value if value > 0 else None


def _welch_freedom(variances: Array, freedoms: Sequence[int]) -> float:
    """Return the Welch-Satterthwaite degrees of freedom of a sum of independent estimates."""
    total = variances.sum()
    return float(total**2 / (variances**2 / freedoms).sum()) if total > 0 else float(sum(freedoms))


def _t_quantile(probability: float, freedom: float) -> float:
    from scipy.special import stdtrit  # slow to import, so only where it is used

    return float(stdtrit(freedom, probability))
