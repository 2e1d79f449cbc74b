"""Measure the noise scale inside a training loop of your own: three lines around `backward()`.

Run it with `python examples/measure_in_your_loop.py`.
"""

from __future__ import annotations

import torch

from anybatch.decide import estimate_noise_scale
from anybatch.stats import MicroBatches


def main() -> None:
    """Train a linear model with gradient accumulation and print the noise scale of each stretch of steps."""
    torch.manual_seed(0)
    truth = torch.randn(20, 1)
    model = torch.nn.Linear(20, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    source = MicroBatches(model)
    for _ in range(3):
        moments = []
        for _ in range(20):
            optimizer.zero_grad()
            for _ in range(4):
                inputs = torch.randn(8, 20)
                targets = inputs @ truth + torch.randn(8, 1)
                loss = torch.nn.functional.mse_loss(model(inputs), targets)
                with source.sub_batch(size=8, weight=1 / 4):
                    (loss / 4).backward()
            moments.append(source.finish())
            optimizer.step()
        print(estimate_noise_scale(moments).reason)


if __name__ == "__main__":
    main()
