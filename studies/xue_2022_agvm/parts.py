"""Which trainings does the study consist of? Recipes, and the parts in the order of their worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from noise import Measure, NoiseRun
from tasks import Size

from anybatch import LayerwiseRecipe, ModuleRates, NormRecipe, Recipe

BASE, MIDDLE, LARGE = 16, 64, 256
PUBLISHED_UPDATES = 1840  # of Faster R-CNN at 1024, where AGVM is measured every 10
GRID, BEYOND = (0.5, 1.0, 2.0), (0.125, 0.25, 4.0, 8.0)
BASE_GRID, BEYOND_BASE = (1.0, 3.0, 10.0), (0.1, 0.3, 30.0, 100.0)
RIVAL_GRID, BEYOND_RIVAL = (0.25, 1.0, 4.0), (1 / 64, 1 / 16, 16.0, 64.0)
DEFAULT = Measure()

AT_BASE = Recipe("SGD", "the workload's own")
PLAIN = LayerwiseRecipe(
    "plain scaling",
    "square-root rate; warm-up, and clipping around its end, in the shares of the published recipes",
    lr_rule="sqrt",
    warmup_share=1 / 8,
    warmup_start=0.001,
    clip_norm=1.0,
    clip_share=(0.1, 0.15),
)
LARS = replace(PLAIN, name="LARS", optimizer="lars", clip_norm=None, clip_share=None)
LAMB = replace(PLAIN, name="LAMB", optimizer="lamb", clip_norm=None, clip_share=None)


def agvm(size: Size, batch_size: int, name: str = "AGVM", **options: object) -> LayerwiseRecipe:
    """Return plain scaling with AGVM, whose moving average covers the same share of the training as in the paper.

    There scales are measured every 10 of 1840 updates with momentum 0.97, a half-life of an eighth of the training. In
    a training of fewer updates the interval shrinks with them, to 1, and from there the momentum.

    Args:
        size: of the training.
        batch_size: its batch size.
        name: of the recipe.
        options: other fields of `ModuleRates`.

    Returns:
        The recipe.
    """
    num_updates = size.num_train * size.epochs / batch_size
    interval = max(1, round(10 * num_updates / PUBLISHED_UPDATES))
    momentum = 0.97 ** (PUBLISHED_UPDATES / 10 / (num_updates / interval))
    rates = ModuleRates(**{"interval": interval, "momentum": momentum, **options})  # pyright: ignore[reportArgumentType]
    return replace(PLAIN, name=name, agvm=rates, agvm_share=0.14)


@dataclass(frozen=True)
class Part:
    """Some rows of the study: recipes at one batch size, first one seed over a grid of rates, then more at the best.

    Attributes:
        task: one of `tasks.NAMES`.
        batch_size: samples per step.
        recipes: tried.
        seeds: at the best rate; seed 0 chooses it.
        lr_factors: the grid.
        beyond: factors that are tried one by one while the best one is at the edge of those that were.
        size: how much.
        tunes_base: whether the rate that is found here is the one of SGD at 16 that all later parts of the task start
            from.
        factor_of: a step; the factor is the best one of its AGVM, and there is no grid.
        micro_batch_size: samples per forward pass; batch norm sees no more, with AGVM and without.
    """

    task: str
    batch_size: int
    recipes: Sequence[Recipe]
    size: Size
    seeds: int = 3
    lr_factors: Sequence[float] = GRID
    beyond: Sequence[float] = BEYOND
    tunes_base: bool = False
    factor_of: str | None = None
    micro_batch_size: int = 128


@dataclass(frozen=True)
class Followed:
    """A training whose noise is measured.

    Attributes:
        task: one of `tasks.NAMES`.
        run: how it goes.
        size: how much.
    """

    task: str
    run: NoiseRun
    size: Size


@dataclass(frozen=True)
class Cause:
    """A change of what should make heads quiet.

    Attributes:
        variant: "proposals", or of RetinaNet "shared head", "head per level" or "no pyramid".
        size: of the training before it, or of the changed model.
        batch_size: its batch size.
        measure: how much.
        num_points: of RetinaNet, measurements on the way; every second or so lies where the rate is at its top.
    """

    variant: str
    size: Size
    batch_size: int = 64
    measure: Measure = DEFAULT
    num_points: int = 8


@dataclass(frozen=True)
class Control:
    """The final scales of a step's AGVM, at its best rate and without it, of one seed.

    Attributes:
        of: the step; recipe, sizes and rate are those of its plain scaling.
    """

    of: str


Step = Part | Followed | Cause | Control
SEGMENTATION = Size(num_train=4096, num_eval=512, epochs=12)
DETECTION = Size(num_train=2048, num_eval=256, epochs=8)
ONE = (1.0,)


def _base(task: str, size: Size, micro_batch_size: int) -> dict[str, Part]:
    """Return the workload's own recipe at 16, whose rate is to be found."""
    grid = {"lr_factors": BASE_GRID, "beyond": BEYOND_BASE, "tunes_base": True}
    return {f"{task} at 16": Part(task, BASE, [AT_BASE], size, micro_batch_size=micro_batch_size, **grid)}


def _scaled(task: str, size: Size, batch_size: int, micro_batch_size: int) -> dict[str, Part]:
    """Return plain scaling and AGVM at a batch size."""
    recipes = [PLAIN, agvm(size, batch_size)]
    return {f"{task} at {batch_size}": Part(task, batch_size, recipes, size, micro_batch_size=micro_batch_size)}


def _at_half_the_rate(task: str, size: Size, batch_size: int, micro_batch_size: int) -> dict[str, Part]:
    ((name, part),) = _scaled(task, size, batch_size, micro_batch_size).items()
    return {f"{name}, half the rate": replace(part, lr_factors=(0.5,), beyond=())}


def _with_as_few_updates(
    task: str, size: Size, smaller: Sequence[int], batch_size: int, micro_batch_size: int
) -> dict[str, Part]:
    """Return plain scaling at smaller batches, ended after the updates of a large one: the images alone differ."""
    return {
        f"{task} at {each}, as few updates as {batch_size}": Part(
            task,
            each,
            [PLAIN],
            replace(size, epochs=size.epochs * each / batch_size),
            micro_batch_size=micro_batch_size,
        )
        for each in smaller
    }


def _rivals(task: str, size: Size, batch_size: int, micro_batch_size: int) -> dict[str, Part]:
    grid = {"seeds": 1, "lr_factors": RIVAL_GRID, "beyond": BEYOND_RIVAL}
    part = Part(task, batch_size, [LARS, LAMB], size, micro_batch_size=micro_batch_size, **grid)
    return {f"{task}, LARS and LAMB at {batch_size}": part}


def _ablations(size: Size) -> Part:
    variants = {
        "anchor: pyramid": {"anchor": "fpn"},
        "anchor: head": {"anchor": "semantic_head"},
        "no moving average": {"momentum": 0.0},
        "interval 5": {"interval": 5, "momentum": 0.85},
        "as published, 10 and 0.97": {"interval": 10, "momentum": 0.97},
    }
    recipes = [agvm(size, LARGE, name, **options) for name, options in variants.items()]
    return Part("segmentation", LARGE, recipes, size, 1, ONE, factor_of="segmentation at 256")


def _estimators(size: Size) -> Part:
    """Return both estimators on the same micro-batches: eighths, so that batch norm sees 32 images with either."""
    recipes = [agvm(size, LARGE, "cosine of 2"), agvm(size, LARGE, "moments of 8", estimator="moments", num_parts=8)]
    return Part("segmentation", LARGE, recipes, size, 1, ONE, factor_of="segmentation at 256", micro_batch_size=32)


def _norms(size: Size) -> Part:
    kinds = [
        Recipe("BN", lr_rule="linear"),
        NormRecipe("GN", lr_rule="linear", norm="group", norm_options={"num_groups": 8}),
        NormRecipe("KN", lr_rule="linear", norm="kalman"),
    ]
    return Part("segmentation", 2, kinds, size, 2, ONE)


QUICK_SIZE = Size(num_train=1024, num_eval=128, epochs=4)
QUICK_MEASURE = Measure(large=256, num_small=4, num_normalized=2)
SMOKE_SIZE = Size(num_train=64, num_eval=4, epochs=0.5)
SMALLER = {2: 2, BASE: 8, MIDDLE: 16, LARGE: 16}
VARIANTS = ("proposals", "shared head", "head per level", "no pyramid")


def _followed(
    task: str,
    size: Size,
    measure: Measure,
    micro_batch_size: int,
    num_points: int = 12,
    names: Sequence[str] = ("SGD at 16", "plain scaling at 256", "AGVM at 256"),
) -> dict[str, Step]:
    runs: dict[str, tuple[int, Recipe]] = {
        "SGD at 16": (BASE, AT_BASE),
        "plain scaling at 256": (LARGE, PLAIN),
        "AGVM at 256": (LARGE, agvm(size, LARGE)),
    }
    more = (size.epochs, num_points, measure, micro_batch_size)
    return {f"noise of {task}, {name}": Followed(task, NoiseRun(*runs[name], *more), size) for name in names}


# in the order of their worth, so that an early end leaves whole claims
FULL: dict[str, Step] = {
    **_base("segmentation", SEGMENTATION, 128),
    **_scaled("segmentation", SEGMENTATION, LARGE, 128),
    **_followed("segmentation", SEGMENTATION, Measure(num_normalized=4), 128, 24),
    "controls at 256": Control("segmentation at 256"),
    **_at_half_the_rate("segmentation", SEGMENTATION, LARGE, 128),
    **_with_as_few_updates("segmentation", SEGMENTATION, (BASE, MIDDLE), LARGE, 128),
    **_scaled("segmentation", SEGMENTATION, MIDDLE, 32),
    **_base("detection", DETECTION, 64),
    **_scaled("detection", DETECTION, MIDDLE, 32),
    **_at_half_the_rate("detection", DETECTION, MIDDLE, 32),
    **_with_as_few_updates("detection", DETECTION, (BASE,), MIDDLE, 32),
    **_followed("instances", DETECTION, DEFAULT, 64, names=("SGD at 16",)),  # Faster R-CNN fails at 256
    **{f"cause: {variant}": Cause(variant, replace(DETECTION, epochs=4)) for variant in VARIANTS},
    "ablations": _ablations(SEGMENTATION),
    "estimators at 256": _estimators(SEGMENTATION),
    **_rivals("segmentation", SEGMENTATION, LARGE, 128),
    "norms at 2": _norms(replace(SEGMENTATION, epochs=4)),
    **_rivals("detection", DETECTION, MIDDLE, 32),
}
QUICK: dict[str, Step] = {
    "segmentation at 16": Part("segmentation", BASE, [AT_BASE], QUICK_SIZE, lr_factors=(3.0,), tunes_base=True),
    "segmentation at 256": Part("segmentation", LARGE, [PLAIN, agvm(QUICK_SIZE, LARGE)], QUICK_SIZE, lr_factors=ONE),
    **_followed("segmentation", QUICK_SIZE, QUICK_MEASURE, 128, 4),
    "cause: proposals": Cause("proposals", Size(512, 64, 2), measure=replace(QUICK_MEASURE, num_normalized=0)),
}


def smoke(step: Step) -> Step:
    """Return a step that takes seconds."""
    if isinstance(step, Control):
        return step
    if isinstance(step, Part):
        return replace(
            step,
            size=SMOKE_SIZE,
            batch_size=SMALLER[step.batch_size],
            seeds=min(step.seeds, 2),
            lr_factors=step.lr_factors[:1],
            beyond=(),
            micro_batch_size=8,
        )
    if isinstance(step, Followed):
        measure = Measure(32, 32, 1, min(1, step.run.measure.num_normalized))
        run = replace(step.run, batch_size=SMALLER[step.run.batch_size], epochs=0.5, num_points=2, measure=measure)
        return replace(step, size=SMOKE_SIZE, run=run)
    return replace(step, size=SMOKE_SIZE, batch_size=SMALLER[step.batch_size], measure=Measure(32, 32, 1), num_points=2)
