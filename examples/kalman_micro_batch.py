"""Train with two samples per normalization: batch norm, and Kalman normalization in its place.

Run it with `python examples/kalman_micro_batch.py`; it takes some seconds.
"""

from __future__ import annotations

import torch
from torch import nn

from anybatch.nn import KalmanNorm2d, wire_kalman

MICRO_BATCH_SIZE = 2


def main() -> None:
    """Give a small network Kalman normalization, train it, and show what the prior makes of two samples' moments."""
    torch.manual_seed(0)
    model = network()
    print(wire_kalman(model, example_inputs=torch.zeros(8, 1, 12, 12)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(60):
        images, labels = stripes(32)
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 19:
            print(f"step {step + 1}: loss {loss.item():.3f}")
    show_errors(model)
    with torch.no_grad():
        images, labels = stripes(512)
        correct = (model.eval()(images).argmax(1) == labels).float().mean()
    print(f"accuracy in evaluation: {correct:.3f}")


def network() -> nn.Sequential:
    """Return three convolutions whose norms see two samples at a time."""
    layers: list[nn.Module] = []
    for before, after in ((1, 8), (8, 16), (16, 16)):
        norm = KalmanNorm2d(after, micro_batch_size=MICRO_BATCH_SIZE)
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), norm, nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))


def stripes(num_samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return noisy images of horizontal and of vertical stripes, and which is which."""
    labels = torch.randint(2, (num_samples,))
    wave = torch.sin(torch.arange(12.0) + 6 * torch.rand(num_samples, 1))
    across = wave[:, None, :].expand(-1, 12, -1)
    images = torch.where(labels[:, None, None] == 0, across, across.mT)
    return (images + torch.randn_like(images))[:, None], labels


def show_errors(model: nn.Module) -> None:
    """Print how far micro-batches' means are from the whole batch's, before and after the correction."""
    for name, layer in model.named_modules():
        if isinstance(layer, KalmanNorm2d) and layer.latest is not None and layer.latest.prior is not None:
            observed, prior, posterior, weight = layer.latest
            whole = observed.pooled()
            assert prior is not None
            assert weight is not None
            errors = [
                ((each.mean - whole.mean).square() / whole.var).mean().sqrt().item() for each in (observed, prior)
            ]
            spread = (posterior.mean.var(0) / whole.var).mean().sqrt().item()
            print(
                f"layer {name}: weight of the prior {weight.item():.2f}; error of means in standard deviations: "
                f"observed {errors[0]:.2f}, prior {errors[1]:.2f}; spread of the posterior {spread:.2f}"
            )


if __name__ == "__main__":
    main()
