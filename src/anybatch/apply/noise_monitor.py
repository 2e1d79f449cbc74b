"""How large is the noise scale while a loop of the user's own goes on?"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from anybatch.decide.noise_scale import NoiseScale, estimate_noise_scale
from anybatch.errors import InputError
from anybatch.stats import GradientMoments, MicroBatches, ModulePrefixes, PerSample, Ranks
from anybatch.stats.geometry import choose_preconditioner
from anybatch.stats.groups import find_ddp, find_fully_sharded, group_parameters
from anybatch.stats.moments import Geometry

Source = Literal["auto", "micro_batches", "ranks", "per_sample"]
SOURCES = {"micro_batches": MicroBatches, "ranks": Ranks, "per_sample": PerSample}
FIELDS = ("sizes", "weights", "mean_of_sq_norms", "sq_norm_of_mean", "num_non_finite")
STATE_VERSION = 1


class NoiseMonitor:
    """Measure every so many steps of any loop, and do nothing on the steps between.

    Where a model is data-parallel over several ranks they are compared; where a step accumulates, its micro-batches,
    the only way under fully_shard; a step of one micro-batch on one device is measured by sample, which needs the
    forward pass inside `sub_batch()` too. Numerator and denominator of the noise scale are averaged over the last
    `window` measurements, each for itself.

    Args:
        model: what is trained; where there are ranks, in DistributedDataParallel or sharded by fully_shard.
        every: steps from one measurement to the next; the first step is never measured.
        window: measurements that are averaged.
        module_prefixes: see `group_parameters`.
        geometry: see `MicroBatches`.
        optimizer: see `MicroBatches`; before its first step nothing is measured.
        source: "micro_batches", "ranks" or "per_sample"; "auto" chooses at the first measurement, by what the step
            before it did. A loop that cuts its batch on measured steps alone, by `is_due`, says "micro_batches".
        sample_stride: where steps are measured by sample, every so many samples one is, see `PerSample`.
        per_module: whether `log()` holds the noise scale of each module too.
        population_size: see `estimate_noise_scale`.

    Raises:
        InputError: every or window are too small, an unknown source, or a geometry that does not fit the optimizer; at
            the first `finish()`, steps of one micro-batch under fully_shard, or on one device with batch norm in train
            mode.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(20, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        >>> monitor = NoiseMonitor(model, every=5)
        >>> for step in range(20):
        ...     inputs = torch.randn(32, 20)
        ...     optimizer.zero_grad()
        ...     with monitor.sub_batch(size=len(inputs)):
        ...         (model(inputs) - inputs.sum(1, keepdim=True)).square().mean().backward()
        ...     if monitor.finish():
        ...         figures = monitor.log()
        ...     optimizer.step()
        >>> monitor.num_measurements, figures["batch_size"]
        (4, 32.0)
    """

    def __init__(
        self,
        model: nn.Module,
        every: int = 50,
        *,
        window: int = 20,
        module_prefixes: ModulePrefixes | None = None,
        geometry: Geometry = "sgd",
        optimizer: Optimizer | None = None,
        source: Source = "auto",
        sample_stride: int = 8,
        per_module: bool = False,
        population_size: float | None = None,
    ) -> None:
        for name, value, least in (("every", every, 1), ("window", window, 2)):
            if value < least:
                raise InputError(f"{name} must be at least {least}; got {value}.")
        if source not in get_args(Source):
            raise InputError(f"source must be one of {', '.join(get_args(Source))}; got {source!r}.")
        self._model = model
        self._every = every
        self._module_prefixes: ModulePrefixes | None = module_prefixes
        self._geometry: Geometry = geometry
        self._optimizer = optimizer
        self._preconditioner = choose_preconditioner(geometry, optimizer)
        self._source_name = source
        self._sample_stride = sample_stride
        self._per_module = per_module
        self._population_size = population_size
        self._source: MicroBatches | Ranks | PerSample | None = None
        self._moments: deque[GradientMoments] = deque(maxlen=window)
        self._num_steps = 0
        self._num_parts = 0
        self._num_parts_before = 0
        self.num_measurements = 0

    @property
    def is_due(self) -> bool:
        """Whether the step that is under way is measured."""
        is_turn = self._num_steps > 0 and (self._num_steps + 1) % self._every == 0
        return is_turn and (self._preconditioner is None or self._preconditioner.has_state())

    @contextmanager
    def sub_batch(self, size: float, weight: float | None = None) -> Iterator[None]:
        """Hold one micro-batch's forward pass and `backward()`.

        Args:
            size: see `MicroBatches.sub_batch`.
            weight: see `MicroBatches.sub_batch`; `1 / K` for K micro-batches of equal weight.

        Yields:
            Nothing.

        Raises:
            InputError: the model and its loop have nothing to compare.
            RuntimeError: on a measured step, as for the source.
        """
        self._num_parts += 1
        if not self.is_due:
            yield
            return
        self._source = self._source or self._make_source()
        with self._source.sub_batch(size, weight):
            yield

    def finish(self, loss_scale: float | Tensor = 1.0) -> bool:
        """Close the step: after its last `backward()`, before unscaling, clipping and the optimizer's step.

        Args:
            loss_scale: AMP's factor, `grad_scaler.get_scale()`, which is taken out.

        Returns:
            Whether the step was measured, so that `log()` is new.

        Raises:
            InputError: at the first step, where steps of this kind cannot be measured; at a step that is due, where no
                part of it was inside `sub_batch()`.
            ValueError: as for the source, such as fewer than two micro-batches.
            RuntimeError: as for the source.
        """
        if self.is_due and not self._num_parts:
            raise InputError(
                "a measured step must have its forward pass and backward() inside monitor.sub_batch(size); got none in "
                f"step {self._num_steps + 1}. Hold each micro-batch so, at least where monitor.is_due."
            )
        is_measured = self.is_due and self._source is not None
        if is_measured:
            assert self._source is not None
            self._moments.append(self._source.finish(loss_scale))
            self.num_measurements += 1
        self._num_steps += 1
        self._num_parts_before, self._num_parts = self._num_parts, 0
        if self._num_steps == 1:
            self._check_measurable()
        return is_measured

    def noise_scale(self) -> NoiseScale | None:
        """Return the noise scale over the last measurements, None before the second one whose gradients are finite."""
        return self._estimate(per_module=True)

    def _estimate(self, per_module: bool) -> NoiseScale | None:
        if sum(not int(moments.num_non_finite) for moments in self._moments) < 2:
            return None
        return estimate_noise_scale(self._moments, population_size=self._population_size, per_module=per_module)

    def log(self) -> dict[str, float]:
        """Return what is known, as a flat dict of floats; a figure that is not known is left out.

        Returns:
            `noise_scale` with `noise_scale_low` and `noise_scale_high`, or `noise_scale_at_least` where the gradient
            does not stand out from its noise; `inverse_noise_scale`, which is always there and may be negative;
            `noise_scale/MODULE` on demand; `batch_size`; `batch_efficiency`, the
            progress of a step over that of one without noise, 1 / (1 + noise scale / batch size);
            `sample_efficiency`, that of a sample over one in a very small batch, 1 / (1 + batch size / noise scale).
            Empty before the second measurement.
        """
        noise = self._estimate(self._per_module)
        if noise is None:
            return {}
        batch_size = sum(float(moments.sizes.sum()) for moments in self._moments) / len(self._moments)
        share = None if noise.value is None else 1 / (1 + noise.value / batch_size)
        figures = {
            "noise_scale": noise.value,
            "noise_scale_low": noise.low if noise.value is not None else None,
            "noise_scale_high": noise.high,
            "noise_scale_at_least": noise.at_least if noise.value is None else None,
            "inverse_noise_scale": noise.inverse,
            "batch_size": batch_size,
            "batch_efficiency": share,
            "sample_efficiency": None if share is None else 1 - share,
        }
        figures |= {f"noise_scale/{name}": module.value for name, module in noise.modules.items()}
        return {name: float(value) for name, value in figures.items() if value is not None}

    def state_dict(self) -> dict[str, Any]:
        """Return the measurements of the window and the count of steps, of tensors and plain values.

        Raises:
            RuntimeError: in the middle of a measured step.
        """
        if self._num_parts:
            raise RuntimeError("state_dict() must be called between steps; a step is open. Call finish() first.")
        return {
            "version": STATE_VERSION,
            "num_steps": self._num_steps,
            "num_parts_before": self._num_parts_before,
            "num_measurements": self.num_measurements,
            "geometry": self._geometry,
            "modules": [list(moments.modules) for moments in self._moments][:1],
            "measurements": [{name: getattr(moments, name) for name in FIELDS} for moments in self._moments],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of `state_dict`.

        Args:
            state: of a monitor of the same model, modules and geometry.

        Raises:
            InputError: it has another geometry or other modules, or is of another version.
        """
        if state.get("version") != STATE_VERSION:
            raise InputError(f"state of the monitor must have version {STATE_VERSION}; got {state.get('version')}.")
        if state["geometry"] != self._geometry:
            raise InputError(
                f"state of the monitor must be of geometry {self._geometry!r}; got {state['geometry']!r}. "
                "Make the monitor as it was."
            )
        modules = list(group_parameters(self._model, self._module_prefixes))
        if state["modules"] and state["modules"][0] != modules:
            raise InputError(
                f"state of the monitor must be of the modules {', '.join(modules)}; got "
                f"{', '.join(state['modules'][0])}. Make the monitor as it was."
            )
        self._num_steps = state["num_steps"]
        self._num_parts_before = state["num_parts_before"]
        self.num_measurements = state["num_measurements"]
        self._moments.clear()
        for values in state["measurements"]:
            self._moments.append(GradientMoments(modules=tuple(state["modules"][0]), geometry=self._geometry, **values))

    def _make_source(self) -> MicroBatches | Ranks | PerSample:
        options: dict[str, Any] = {"geometry": self._geometry, "optimizer": self._optimizer}
        name = self._choose()
        if name == "per_sample":
            options["stride"] = self._sample_stride
        return SOURCES[name](self._model, self._module_prefixes, **options)

    def _choose(self) -> str:
        if self._source_name != "auto":
            return self._source_name
        ddp = find_ddp(self._model)
        if ddp is not None and dist.get_world_size(ddp.process_group) > 1:
            return "ranks"
        return "micro_batches" if self._num_parts_before > 1 else "per_sample"

    def _check_measurable(self) -> None:
        if self._choose() != "per_sample":
            return
        has_batch_norm = any(isinstance(module, _BatchNorm) and module.training for module in self._model.modules())
        if has_batch_norm or find_fully_sharded(self._model):
            where = "batch norm is in train mode" if has_batch_norm else "fully_shard shards the model"
            raise InputError(
                f"a step must have 2 micro-batches or more where {where}; got 1, whose samples cannot be told apart. "
                "Accumulate, or cut the batch where monitor.is_due and set source='micro_batches'."
            )
