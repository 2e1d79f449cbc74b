"""Train a tiny segmenter at a large batch with AGVM: learning rates per module, from the noise of their gradients.

Run it with `python examples/agvm.py`.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

import anybatch
from anybatch.stats import MicroBatchHalves, find_predictor_modules


class Segmenter(nn.Module):
    """A backbone that halves the image twice and a classifier of its pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.ReLU()
        )
        self.classifier = nn.Conv2d(16, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return scores of two classes per pixel of a quarter of the height and width."""
        return self.classifier(self.backbone(images))


def make_scenes(count: int) -> tuple[Tensor, Tensor]:
    """Draw noisy images with a bright square each, and where it is."""
    masks = torch.zeros(count, 8, 8, dtype=torch.long)
    for mask, (row, column) in zip(masks, torch.randint(0, 5, (count, 2)).tolist(), strict=True):
        mask[row : row + 4, column : column + 4] = 1
    images = masks[:, None].float().repeat_interleave(4, 2).repeat_interleave(4, 3)
    return images + torch.randn(count, 1, 32, 32), masks


def main() -> None:
    """Train with four micro-batches a step and print each measurement."""
    torch.manual_seed(0)
    model = Segmenter()
    print(find_predictor_modules(model))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    agvm = anybatch.AGVM(optimizer, model, interval=10, momentum=0.8)
    source = MicroBatchHalves(model, agvm.module_prefixes)
    for step in range(60):
        is_due = agvm.is_due
        optimizer.zero_grad()
        for _ in range(4):
            images, masks = make_scenes(32)
            with source.sub_batch(size=32, weight=1 / 4) if is_due else nullcontext():
                (nn.functional.cross_entropy(model(images), masks) / 4).backward()
        if is_due:
            agvm.observe(source.finish())
            print(f"step {step}:", ", ".join(f"{name} {value:.3f}" for name, value in agvm.log().items()))
        optimizer.step()


if __name__ == "__main__":
    main()
