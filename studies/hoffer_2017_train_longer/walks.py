"""Which law does the distance of the weights from their start follow, and does its slope keep with the batch?"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from cells import Cell, Found
from orderings import AT_1024, AT_4096, SMALL
from verdicts import Claim

from anybatch.decide import DistanceLaw, choose_distance_law, fit_distance_law
from anybatch.decide.distance_law import DECISIVE
from anybatch.stats.weight_distance import log_spaced
from anybatch.train.comparison import Run

SLOPE_WINDOWS = {1024: (50, 530), 4096: (20, 130)}  # updates at the first rate, of both batch sizes
STRAIGHT = 0.9  # R2 below which a walk is no line against log updates


def judge_laws(found: Found) -> list[Claim]:
    """Say which law the weights' walk follows at the first rate, and whether its slope keeps with the batch.

    Of all weights, and of the first tensor alone, which is what the authors' code measures.
    """
    cells = {key[1:3]: cell for key, cell in found.items() if key[3] == 1 and key[0] in (SMALL[0], AT_1024, AT_4096)}
    whole = _judge_law("log-law", "||w - w0||", {key: cell.laws for key, cell in cells.items()})
    first = _judge_law(
        "log-law-first", "the first tensor's ||w - w0||", {key: cell.first_laws for key, cell in cells.items()}
    )
    return [*whole, *first, *_judge_slopes(cells)]


def _judge_law(id_: str, what: str, laws: Mapping[tuple[str, int], Sequence[DistanceLaw]]) -> list[Claim]:
    known = {key: fits for key, fits in laws.items() if fits}
    if not known:
        return []
    totals = {key: sum(fit.aicc_difference for fit in fits) for key, fits in known.items()}
    better = [choose_distance_law([total]) for total in totals.values()]
    words = [
        f"{recipe} at {size}: {law} ({totals[recipe, size]:+.1f}; mean R2 "
        f"{statistics.mean(fit.r2_log for fit in fits):.3f} of the log, "
        f"{statistics.mean(fit.r2_power for fit in fits):.3f} of the power)"
        for ((recipe, size), fits), law in zip(known.items(), better, strict=True)
    ]
    claim = Claim(
        id_,
        f"F1, Fashion-MNIST: {what} grows as the logarithm of updates at the first rate, not as a power of them",
        "Figure 2, ResNet44 on CIFAR-10",
        "straight against log updates from 1,000 to 20,000",
        "; ".join(words),
        f"AICc of the power less that of the log, added over seeds; decisive from {DECISIVE:.1f}",
        min(map(len, known.values())),
        _joined(better),
    )
    return [claim]


def _joined(better: Sequence[str]) -> str:
    """Return the verdict on the logarithm, from the law that each cell's seeds tell together."""
    if not {"log", "power"} & set(better):
        return "undecided"
    return (
        "reproduced" if set(better) == {"log"} else "not" if better.count("power") > better.count("log") else "partly"
    )


def _judge_slopes(cells: dict[tuple[str, int], Cell]) -> list[Claim]:
    """Compare slopes over the same updates, since any curve that bends has another slope elsewhere."""
    claims = []
    for size, window in SLOPE_WINDOWS.items():
        wanted = {"SB": ("SB", 128), "LB": ("LB", size), "+GBN": ("+GBN", size)}
        if not all(key in cells and cells[key].runs and cells[key].laws for key in wanted.values()):
            continue
        laws = {name: [_law(run, window) for run in cells[key].runs] for name, key in wanted.items()}
        slopes = {name: [law.slope for law in fitted] for name, fitted in laws.items()}
        worst = min(law.r2_log for fitted in laws.values() for law in fitted)
        small, large, ghost = (statistics.mean(slopes[name]) for name in wanted)
        falls, returns = large < small, abs(ghost - small) < abs(large - small)
        if worst < STRAIGHT:  # what is no line has no slope to compare
            falls = returns = False
        sds = [f"{name} {statistics.stdev(v):.2f}" for name, v in slopes.items() if len(v) > 1]
        claims.append(
            Claim(
                f"slopes-{size}",
                f"F1, Fashion-MNIST: the slope falls with the batch ({size} for 128), and +LR with +GBN restores it",
                "Figure 2, ResNet44 on CIFAR-10",
                "2.05 at 128, 1.36 at 1024 before; 2.1 and 2.0 after",
                f"slope per ln t of SB {small:.2f}, LB {large:.2f}, +GBN {ghost:.2f}, all over updates {window}",
                "sd over seeds: " + (", ".join(sds) or "one seed") + f"; R2 of the worst line {worst:.2f}",
                min(map(len, slopes.values())),
                "reproduced" if falls and returns else "partly" if falls or returns else "not",
            )
        )
    return claims


def _law(run: Run, window: tuple[int, int]) -> DistanceLaw:
    lines = [line for line in run.distance if line["updates"] in set(log_spaced(run.updates))]
    updates, distances = zip(*[(line["updates"], line["distance"]) for line in lines], strict=True)
    return fit_distance_law(updates, distances, window)
