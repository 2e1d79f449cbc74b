"""What does training at another batch size change?"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """Every change to a workload's own training, resolved to numbers. The default changes nothing.

    Attributes:
        lr_scale: factor on the rate of every parameter group.
        betas: of an Adam-like optimizer; None: its own.
        eps_factor: factor on an Adam-like optimizer's epsilon.
        stretch: epochs here for one of the workload's: on its schedule and its length.
        warmup_epochs: of linear warm-up, in epochs here.
        ghost_batch_size: samples that share batch norm's statistics; None: as the model has it.
        clip_norm: largest norm of the whole gradient, after averaging; None: no clipping.
        noise_variance: of multiplicative gradient noise.
        resets_momentum: whether the optimizer forgets its state at the start of each epoch, as the code published
            with Hoffer et al. 2017 does.
    """

    lr_scale: float = 1.0
    betas: tuple[float, ...] | None = None
    eps_factor: float = 1.0
    stretch: float = 1.0
    warmup_epochs: float = 0.0
    ghost_batch_size: int | None = None
    clip_norm: float | None = None
    noise_variance: float = 0.0
    resets_momentum: bool = False


AS_IT_IS = Plan()
