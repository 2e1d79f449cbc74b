"""A small model of two modules, its loss and samples, shared by the tests of the sources."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

PART_SIZES = [3, 1, 5, 2, 6, 4]


class BodyAndHead(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.body = nn.Linear(4, 5)
        self.head = nn.Linear(5, 2)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(inputs)))


def mean_loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return (model(inputs) - targets).square().mean()


def make_samples(num_samples: int, seed: int = 1, shape: Sequence[int] = (4,)) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(*shape, generator=generator), 1 + torch.randn(2, generator=generator)) for _ in range(num_samples)
    ]


def split(samples: list, sizes: Sequence[int]) -> list[list]:
    assert len(samples) == sum(sizes)
    parts, start = [], 0
    for size in sizes:
        parts.append(samples[start : start + size])
        start += size
    return parts


def stack(part: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    inputs, targets = zip(*part, strict=True)
    return torch.stack(inputs), torch.stack(targets)
