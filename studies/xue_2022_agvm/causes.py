"""Is it the pyramid and the proposals that make heads quiet? Noise while they are taken away or multiplied."""

from __future__ import annotations

from pathlib import Path

from noise import CPU, NoiseRun, Point, follow, measure_modules
from parts import AT_BASE, Cause
from tasks import make_workload, one_stage, set_num_proposals

from anybatch import Workload
from anybatch.seeds import derive_seed
from anybatch.train.data import SampleDraws
from anybatch.train.loop import start_training, train
from anybatch.train.plain import plain
from anybatch.train.preserve import preserved
from anybatch.train.randomness import seed_generators
from anybatch.train.run_folder import RunFolder

PROPOSALS = (8, 16, 32, 64, 128, 256)


def change(cause: Cause, root: Path, rate: float, folder: RunFolder) -> list[Point]:
    """Return the noise of each module under a change of what should make heads quiet.

    Args:
        cause: what is changed.
        root: of the data.
        rate: of detection at 16.
        folder: of this step alone.

    Returns:
        With proposals one point per count of them, at the same weights and on the same images; else the points along a
        training of the changed model.
    """
    if cause.variant == "proposals":
        return _with_proposals(make_workload("detection", root, cause.size, rate), cause)
    workload = one_stage(root, cause.size, cause.variant, rate)
    return follow(
        workload, NoiseRun(cause.batch_size, AT_BASE, cause.size.epochs, cause.num_points, cause.measure), folder
    )


def _with_proposals(workload: Workload, cause: Cause) -> list[Point]:
    training = start_training(workload, CPU, seed=0)
    num_updates = round(cause.size.num_train * cause.size.epochs / cause.batch_size)
    steps = train(workload, CPU, training, batch_size=cause.batch_size, seed=0)
    while training.num_steps < num_updates:
        next(steps)
    found = []
    for count in PROPOSALS:
        set_num_proposals(training.model, count)
        draws = SampleDraws(workload, CPU, 0, "noise of proposals")
        with preserved(training.model):
            seed_generators(derive_seed(0, "proposals"))
            point = measure_modules(workload, training.model.train(), draws, cause.measure)
        found.append(plain({"proposals": count, **point}))
    return found
