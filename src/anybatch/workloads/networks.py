"""What do the networks of Hoffer et al. 2017 look like?

Written after the authors' code (github.com/eladhoffer/bigBatch, and convNet.pytorch for AlexNet), with its parameter
counts. Differs: in the nets without a stated initialisation it is today's PyTorch default, a scale of 1 in batch norm
included; in 2017 that default was a uniform draw from 0 to 1.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn


class F1(nn.Module):
    """Five hidden layers of 512 with batch norm, for images of 784 pixels; 10 classes, 1,462,794 parameters.

    Example:
        >>> F1()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])

    Source:
        Keskar et al. 2017, arXiv:1609.04836, network F1; Hoffer et al. 2017.
    """

    def __init__(self) -> None:
        super().__init__()
        layers = [
            layer
            for num_in, num_out in pairwise((784, 512, 512, 512, 512, 512))
            for layer in (nn.Linear(num_in, num_out), nn.BatchNorm1d(num_out), nn.ReLU())
        ]
        self.hidden = nn.Sequential(*layers)
        self.head = nn.Linear(512, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return (N, 10) logits of (N, 1, 28, 28) images."""
        return self.head(self.hidden(images.flatten(1)))


class C1(nn.Module):
    """Two convolutions and two hidden layers with batch norm, for (3, 32, 32) images; 1,388,490 parameters.

    Args:
        num_classes: logits.

    Example:
        >>> C1()(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])

    Source:
        Keskar et al. 2017, arXiv:1609.04836, network C1; Hoffer et al. 2017.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(*_pooled_conv(3, 64), *_pooled_conv(64, 64), nn.Flatten())
        self.classifier = nn.Sequential(
            *_dropped_linear(64 * 7 * 7, 384), *_dropped_linear(384, 192), nn.Linear(192, num_classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return (N, num_classes) logits of (N, 3, 32, 32) images."""
        return self.classifier(self.features(images))


class C3(C1):
    """C1 with 100 classes; 1,405,860 parameters.

    Source:
        Keskar et al. 2017, arXiv:1609.04836; Hoffer et al. 2017, whose C3 is C1 with more outputs.
    """

    def __init__(self) -> None:
        super().__init__(num_classes=100)


class ResidualNet(nn.Module):
    """A residual net for (3, 32, 32) images: three stages of basic blocks, batch norm after each convolution.

    The shortcut between stages is a 1x1 convolution with batch norm. Weights of convolutions are normal with
    variance 2 / (k^2 channels out), scales of batch norm 1.

    Args:
        width: channels of the first convolution and stage; each later stage has twice as many.
        num_blocks: blocks per stage; the depth is 6 num_blocks + 2.
        num_classes: logits.

    Source:
        He et al. 2016, arXiv:1512.03385, section 4.2, with shortcuts B; Hoffer et al. 2017.
    """

    def __init__(self, width: int, num_blocks: int, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv_norm(3, width), nn.ReLU())
        widths = (width, width, 2 * width, 4 * width)
        self.stages = nn.Sequential(*(_stage(*sizes, num_blocks) for sizes in pairwise(widths)))
        self.head = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(4 * width, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Return (N, num_classes) logits of (N, 3, 32, 32) images."""
        return self.head(self.stages(self.stem(images)))


class ResNet44(ResidualNet):
    """Seven blocks per stage of 16, 32 and 64 channels; 10 classes, 661,338 parameters, 45 batch norms.

    Example:
        >>> ResNet44()(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self) -> None:
        super().__init__(width=16, num_blocks=7, num_classes=10)


class WResNet16x4(ResidualNet):
    """Two blocks per stage of 64, 128 and 256 channels; 100 classes, 2,800,804 parameters, 15 batch norms.

    Source:
        Hoffer et al. 2017, code. Differs from Zagoruyko and Komodakis 2016 as theirs does: activations after the
        addition, and a first convolution of 64 channels.
    """

    def __init__(self) -> None:
        super().__init__(width=64, num_blocks=2, num_classes=100)


class AlexNet(nn.Module):
    """AlexNet in one column with batch norm, for (3, 224, 224) images; 1,000 classes, 61,110,184 parameters.

    Batch norm stands before the activation in the first layer and in the classifier, and after it in the other
    convolutions.

    Source:
        Krizhevsky 2014, "One weird trick", arXiv:1404.5997; Hoffer et al. 2017, code.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=2, bias=False),
            nn.MaxPool2d(3, 2),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            *_active_conv(64, 192, size=5, pool=True),
            *_active_conv(192, 384),
            *_active_conv(384, 256),
            *_active_conv(256, 256, pool=True),
            nn.Flatten(),
        )
        self.classifier = nn.Sequential(
            *_dropped_linear(256 * 6 * 6, 4096), *_dropped_linear(4096, 4096), nn.Linear(4096, 1000)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return (N, 1000) logits of (N, 3, 224, 224) images."""
        return self.classifier(self.features(images))


class _Block(nn.Module):
    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        stride = 1 if num_in == num_out else 2
        self.residual = nn.Sequential(
            *_conv_norm(num_in, num_out, stride=stride), nn.ReLU(), *_conv_norm(num_out, num_out)
        )
        self.shortcut = (
            nn.Identity() if stride == 1 else nn.Sequential(*_conv_norm(num_in, num_out, size=1, stride=stride))
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.residual(x) + self.shortcut(x))


def _stage(num_in: int, num_out: int, num_blocks: int) -> nn.Sequential:
    return nn.Sequential(_Block(num_in, num_out), *(_Block(num_out, num_out) for _ in range(num_blocks - 1)))


def _conv_norm(num_in: int, num_out: int, *, size: int = 3, stride: int = 1) -> tuple[nn.Module, ...]:
    return nn.Conv2d(num_in, num_out, size, stride, padding=size // 2, bias=False), nn.BatchNorm2d(num_out)


def _pooled_conv(num_in: int, num_out: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(num_in, num_out, 5, padding=2, bias=False)
    return convolution, nn.MaxPool2d(3, 2), nn.BatchNorm2d(num_out), nn.ReLU()


def _active_conv(num_in: int, num_out: int, *, size: int = 3, pool: bool = False) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(num_in, num_out, size, padding=size // 2, bias=False)
    return convolution, *([nn.MaxPool2d(3, 2)] if pool else []), nn.ReLU(), nn.BatchNorm2d(num_out)


def _dropped_linear(num_in: int, num_out: int) -> tuple[nn.Module, ...]:
    return nn.Linear(num_in, num_out, bias=False), nn.BatchNorm1d(num_out), nn.ReLU(), nn.Dropout(0.5)
