"""How does the loss scatter over random directions from fresh weights? The random potential of section 2."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from parts import f1_plain
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from verdicts import Claim

from anybatch.apply.sample_stream import Keys
from anybatch.train.data import SeededDataset


def measure_potential(root: Path, num_directions: int, num_samples: int) -> dict[str, list[float]]:
    """Return how the loss scatters over random directions, against the distance from fresh weights.

    Args:
        root: of the data.
        num_directions: drawn on the unit sphere of all weights.
        num_samples: of the training set, not augmented.

    Returns:
        "distance" and "sd" of L(w0 + z v) over directions v, for z from 0 to 10.
    """
    workload = f1_plain(root)
    batch = SeededDataset(workload, workload.train_set, 0).__getitems__(
        Keys(np.zeros(num_samples, dtype=np.int64), np.arange(num_samples))
    )
    torch.manual_seed(0)
    model = workload.model()  # in train mode, as when the walk is on
    start = parameters_to_vector(model.parameters()).detach()
    distances = [float(z) for z in range(11)]
    losses = np.empty((num_directions, len(distances)))
    with torch.no_grad():
        for row in losses:
            direction = torch.randn_like(start)
            direction /= direction.norm()
            for column, distance in enumerate(distances):
                vector_to_parameters(start + distance * direction, model.parameters())
                row[column] = workload.loss(model, batch).item()
    return {"distance": distances, "sd": losses.std(0, ddof=1).tolist()}


def judge_potential(potential: dict[str, list[float]]) -> Claim:
    """Fit sd = c z^gam; the logarithmic walk of the weights needs gam = 1."""
    distance, sd = (np.array(potential[name][1:]) for name in ("distance", "sd"))
    gam, log_c = np.polyfit(np.log(distance), np.log(sd), 1)
    scatter = np.log(sd) - gam * np.log(distance) - log_c
    error = scatter.std(ddof=2) / np.log(distance).std() / math.sqrt(len(distance))
    return Claim(
        "potential",
        "F1, Fashion-MNIST: the sd of the loss grows linearly with the distance from fresh weights (gam = 1)",
        "section 2 and poster, ResNet44",
        "gam = 1: 0.001 at distance 0 to 0.0075 at 9",
        f"gam = {gam:.2f}; sd {sd[0]:.4f} at distance 1, {sd[8]:.4f} at 9",
        f"standard error of the fit {error:.2f}, one initialisation",
        1,
        "reproduced" if abs(gam - 1) < 2 * error else "partly" if abs(gam - 1) < 0.3 else "not",
    )
