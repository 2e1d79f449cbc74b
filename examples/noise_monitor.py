"""Watch the noise scale in a training loop of your own: four lines, here written as JSON lines.

Run it with `python examples/noise_monitor.py`.
"""

from __future__ import annotations

import json

import torch

import anybatch


def main() -> None:
    """Train a small network by single batches on one device and print what the monitor knows every 20 steps."""
    torch.manual_seed(0)
    truth = torch.randn(20, 1)
    model = torch.nn.Sequential(torch.nn.Linear(20, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.001)
    monitor = anybatch.NoiseMonitor(model, every=20, geometry="adam", optimizer=optimizer)
    for step in range(400):
        inputs = torch.randn(64, 20)
        targets = inputs @ truth + 0.3 * torch.randn(64, 1)
        optimizer.zero_grad()
        with monitor.sub_batch(size=len(inputs)):
            torch.nn.functional.mse_loss(model(inputs), targets).backward()
        if monitor.finish():
            print(json.dumps({"step": step + 1, **monitor.log()}))
        optimizer.step()


if __name__ == "__main__":
    main()
