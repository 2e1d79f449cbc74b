"""What have Kalman normalization of batches and of groups in common? The prior, its weight, and what is carried on."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from anybatch.errors import InputError
from anybatch.nn.buffer_reads import read_buffer
from anybatch.nn.carried_moments import Program, are_cut_off, needs_return
from anybatch.nn.kalman_correction import Correction, check_prior
from anybatch.nn.kalman_options import KalmanOptions
from anybatch.nn.moment_propagation import CannotPropagate
from anybatch.nn.moments import Moments, wide_dtype
from anybatch.nn.prior_weight import adaptive_prior_weight, moments_of_gain
from anybatch.nn.recomputation import Calls, is_computed_again
from anybatch.nn.split_normalization import SplitNormalized, normalize_splits, observe_splits

_ADDED_BY_A_PRIOR = ("prior_logit", "prior_scale", "prior_noise", "gain_moments")
_MOMENTUM_OF_GAIN = 0.1
_LOST_GRADIENT = (
    "a prior must be predicted within a checkpointed part where checkpoints are reentrant; got one from another part, "
    "through which no gradient flows. Pass use_reentrant=False to the checkpoint, or set detach_prior=True."
)


class LayerMoments(NamedTuple):
    """What a layer knew and settled on in its last pass.

    Attributes:
        observed: (S, C) moments of the micro-batches.
        prior: (S, C), or None where there was none.
        posterior: (S, C), what normalized.
        prior_weight: p, or None where there was no prior.
    """

    observed: Moments
    prior: Moments | None
    posterior: Moments
    prior_weight: Tensor | None

    def detached(self) -> LayerMoments:
        """Return the same values without their history, still asking for gradients where they did."""
        prior = None if self.prior is None else self.prior.detached()
        weight = None if self.prior_weight is None else self.prior_weight.detach()
        return LayerMoments(self.observed.detached(), prior, self.posterior.detached(), weight)


class LayerCall(NamedTuple):
    """What a call of a layer settled on, and which calls of the places before it that was taken from.

    Attributes:
        moments: observed, prior and posterior.
        num_calls: of each source of its prior, at that time.
    """

    moments: LayerMoments
    num_calls: tuple[int, ...]

    def detached(self) -> LayerCall:
        """Return the same values without their history."""
        return LayerCall(self.moments.detached(), self.num_calls)


class KalmanLayer(nn.Module, ABC):
    """Mixed in before a normalization layer.

    Attributes:
        options: the choices it was made with.
        program: how its prior is computed, where `wire_kalman` found a way.
        latest: its moments in the last training pass; in the study of errors, what to read.
        was_recorded: whether autograd was on in that pass.
        calls: of that pass, for checkpoints that compute one of them again.
    """

    options: KalmanOptions
    program: Program | None
    latest: LayerMoments | None
    was_recorded: bool = True
    weight: Any
    bias: Any
    eps: float
    prior_logit: nn.Parameter
    prior_scale: nn.Parameter
    prior_noise: nn.Parameter
    gain_moments: Tensor

    def _init_kalman(self, options: KalmanOptions) -> None:
        self.options = options
        self.program = None
        self.latest = None
        self.calls: Calls[LayerCall] = Calls()
        if options.prior is not None:
            self._add_prior_parameters()

    def wire(self, program: Program | None) -> None:
        """Give the layer a way to compute its prior, with what the prior needs to learn; None takes it away.

        Args:
            program: the way.
        """
        self.program = program
        self.latest = None
        if program is not None or self.options.prior is not None:
            self._add_prior_parameters()
        else:
            self.remove_prior_parameters()

    def go_on_from(self, other: KalmanLayer) -> None:
        """Adopt what the prior of a layer has learnt, as far as the choices are the same.

        Args:
            other: the layer that this one takes the place of.
        """
        names = []
        if (self.options.gain, self.options.prior_weight) == (other.options.gain, other.options.prior_weight):
            names += ["prior_logit", "gain_moments"]
        if self.options.transition == other.options.transition:
            names += ["prior_scale", "prior_noise"]
        for own, others in ((self._parameters, other._parameters), (self._buffers, other._buffers)):
            own.update({name: others[name] for name in names if name in others})

    def remove_prior_parameters(self) -> None:
        """Take away what the layer has beyond the normalization layer it stands for."""
        for name in _ADDED_BY_A_PRIOR:
            self._parameters.pop(name, None)
            self._buffers.pop(name, None)

    def _add_prior_parameters(self) -> None:
        num_channels = self._num_channels()
        like = self._like()
        if self.options.gain == "learned" and "prior_logit" not in self._parameters:
            logit = math.log(self.options.prior_weight / (1 - self.options.prior_weight))
            self.prior_logit = self._learned(torch.full((1,), logit, **like))
        if self.options.gain == "adaptive" and "gain_moments" not in self._buffers:
            self.register_buffer("gain_moments", torch.zeros(2, **like))
        if self.options.transition == "learned" and "prior_scale" not in self._parameters:
            self.prior_scale = self._learned(torch.ones(num_channels, **like))
            self.prior_noise = self._learned(torch.zeros(num_channels, **like))

    def _learned(self, start: Tensor) -> nn.Parameter:
        """Return a parameter that is frozen where the layer's own are."""
        own = [each for each in (self.weight, self.bias) if each is not None]
        return nn.Parameter(start, requires_grad=not own or any(each.requires_grad for each in own))

    def _like(self) -> dict[str, Any]:
        tensors = [each for each in (self.weight, getattr(self, "running_mean", None)) if each is not None]
        return {"device": tensors[0].device, "dtype": wide_dtype(tensors[0])} if tensors else {}

    @abstractmethod
    def _num_channels(self) -> int: ...

    @property
    def needs_prior(self) -> bool:
        """Whether moments are corrected in the present mode."""
        return self.training

    def clear(self) -> None:
        """Forget the last pass."""
        self.latest = None

    def seal(self) -> None:
        """Let go of the last pass's graph, and keep its values."""
        self.latest = None if self.latest is None else self.latest.detached()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "latest": None}

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        for name in _ADDED_BY_A_PRIOR:  # a checkpoint of the layer it stands for says nothing of these
            own = self._parameters.get(name, self._buffers.get(name))
            if own is not None and prefix + name not in state_dict:
                state_dict[prefix + name] = own.detach()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def output_moments(self, num_splits: int) -> Moments | None:
        """Return what later layers are predicted from: the moments of the output, in the layer's state space.

        Args:
            num_splits: S.

        Returns:
            (S, C), or None where the layer has not run in this pass. In the space "normalized" (1, C), as `eps` alone
            tells splits apart there, unless each of them is to draw a sample of its own.
        """
        settled = self._settled(num_splits)
        if settled is None or self.options.state_space == "raw":
            return None if settled is None else settled[1]
        observed, posterior = settled
        one = torch.ones_like(posterior.mean[:1])
        weight = one if self.weight is None else self.weight.to(one)[None]
        bias = torch.zeros_like(one) if self.bias is None else self.bias.to(one)[None]
        if self.options.state_space == "normalized":
            var = weight.square() * (posterior.var / (posterior.var + self.eps)).mean(0)
            num_rows = num_splits if self.options.transition == "sampled" else 1
            return Moments(bias.expand(num_rows, -1), var.expand(num_rows, -1), posterior.size)
        scale = weight * (posterior.var + self.eps).rsqrt()
        mean = bias + scale * (observed.mean - posterior.mean)
        return Moments(mean, scale.square() * observed.var, posterior.size)

    @property
    def is_cut_off(self) -> bool:
        """Whether no gradient flows back from `output_moments`; that to affine parameters, read anew, always does."""
        if self.latest is None or not self.needs_prior or self.options.state_space == "normalized":
            return False
        is_plain = self.latest.prior is None and self.options.state_space == "observed"  # then it is "normalized"
        return not is_plain and are_cut_off(self.latest.posterior, self.was_recorded)

    def _settled(self, num_splits: int) -> tuple[Moments, Moments] | None:
        """Return observed and posterior moments per channel; None where the layer has not run in this pass."""
        return None if self.latest is None else (self.latest.observed, self.latest.posterior)

    def _normalize(self, input: Tensor, num_splits: int, rule: Correction) -> SplitNormalized:
        """Normalize by the posterior moments and remember them."""
        with torch.autocast(input.device.type, enabled=False):
            before = self._go_back(input, num_splits) if is_computed_again() else None
            num_calls = () if self.program is None else self.program.num_calls()
            prior = self._prior(input, num_splits)
            weight = None if prior is None else self._prior_weight(input, before)
            of_prior = (None, None) if prior is None else prior[:2]
            normalized = normalize_splits(input, num_splits, rule, (self.weight, self.bias, *of_prior, weight))
        self.latest = LayerMoments(normalized.observed, prior, normalized.posterior, weight)
        self.was_recorded = torch.is_grad_enabled()
        self.calls.add(self.latest.observed.mean, LayerCall(self.latest, num_calls))
        return normalized

    @property
    def num_calls(self) -> int:
        """How often the layer was called in this pass."""
        return len(self.calls.held)

    def go_back_to(self, num_calls: int) -> None:
        """Hold what was settled on after so many calls, unless the last of them has been computed again itself.

        Args:
            num_calls: of this pass.
        """
        if needs_return(self.calls, num_calls, None if self.latest is None else self.latest.observed.mean):
            self.latest = self.calls.held[num_calls - 1][1].moments if num_calls else None

    def _go_back(self, input: Tensor, num_splits: int) -> LayerMoments | None:
        """Let the sources hold what they held at the call that is computed again; return what that one settled on."""
        if not self.calls.held:
            return self.latest
        is_only = len(self.calls.held) == 1
        seen = None if is_only else observe_splits(input.detach(), num_splits).mean
        call = self.calls.held[0][1] if seen is None else self.calls.take(seen)
        if self.program is not None:
            self.program.go_back_to(call.num_calls)
        return call.moments

    def _prior(self, input: Tensor, num_splits: int) -> Moments | None:
        options = self.options
        with torch.set_grad_enabled(torch.is_grad_enabled() and not options.detach_prior):
            prior = None if options.is_weightless else self._predicted(num_splits)
        if prior is not None and options.transition == "learned":
            var = self.prior_scale.square() * prior.var + nn.functional.softplus(self.prior_noise)
            prior = Moments(self.prior_scale * prior.mean, var, prior.size)
        if options.prior is not None:
            prior = options.prior(self, prior, observe_splits(input, num_splits))
        return None if prior is None else _checked(prior, num_splits, input)

    def _predicted(self, num_splits: int) -> Moments | None:
        """Return the predicted moments; None where nothing is known in this pass."""
        if self.program is None:
            return None
        self._warn_of_lost_gradient(self.program)
        try:
            return self.program.predict(num_splits)
        except CannotPropagate as error:
            raise InputError(
                f"a prior must have a rule at every step of its way; got {error}. Wire the model with example inputs "
                "of the size it trains on, or with a source behind that."
            ) from error

    def _warn_of_lost_gradient(self, program: Program) -> None:
        """Tell that a checkpointed part, computed again, is predicted from another one's pass, which is gone."""
        is_reentrant = is_computed_again() and torch.is_grad_enabled() and not self.was_recorded
        if is_reentrant and not self.options.detach_prior and program.is_cut_off:
            warnings.warn(_LOST_GRADIENT, stacklevel=2)

    def _prior_weight(self, input: Tensor, before: LayerMoments | None) -> Tensor:
        """Return p, one number; that of the call before where it is computed again."""
        if self.options.gain == "learned":
            return self.prior_logit.to(wide_dtype(input)).sigmoid()
        if self.options.gain == "fixed":
            return torch.full((1,), self.options.prior_weight, device=input.device, dtype=wide_dtype(input))
        if before is not None and before.prior_weight is not None:
            return before.prior_weight
        return adaptive_prior_weight(read_buffer(self.gain_moments), self.options.prior_weight).to(wide_dtype(input))

    @torch.no_grad()
    def _track_gain(self, input: Tensor, num_values: int) -> None:
        """Update what the adaptive gain is taken from; it serves the next pass."""
        if self.latest is not None and self.latest.prior is not None and self.options.gain == "adaptive":
            observed, prior = (self._as_blended(each) for each in (self.latest.observed, self.latest.prior))
            sample_means = _sample_means(input) if len(observed.mean) == 1 else None
            moments = moments_of_gain(observed, prior, num_values, sample_means)
            self.gain_moments.lerp_(moments.to(self.gain_moments), _MOMENTUM_OF_GAIN)

    def _as_blended(self, moments: Moments) -> Moments:
        """Return moments of channels as the layer blends them."""
        return moments


def _sample_means(input: Tensor) -> Tensor:
    return input.to(wide_dtype(input)).reshape(*input.shape[:2], -1).mean(2)


def _checked(prior: Moments, num_splits: int, input: Tensor) -> Moments:
    """Return a prior of the right shape in the type of the layer's statistics."""
    check_prior(prior, num_splits, input.shape[1])
    mean, var = (tensor.to(wide_dtype(input)).expand(num_splits, -1) for tensor in prior[:2])
    return Moments(mean, var, prior.size)
