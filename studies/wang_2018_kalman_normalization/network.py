"""What does the residual net of the published code look like?"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anybatch.nn import Moments, propagation_rule

WIDTHS = (16, 32, 64)


class PreActivationNet(nn.Module):
    """A pre-activation residual net of 6n + 2 layers and 6n + 1 norms, with shortcuts of no weights (option A).

    The first unit has no norm at its entry, as it follows that of the first convolution; where the width changes, the
    shortcut is pooled by 2 x 2 and gets channels of zeros on both sides.

    Args:
        num_units: n, per stage.
        num_inputs: channels of the images.
        num_classes: logits.

    Source:
        Wang et al. 2018, the published code. Differs: PyTorch's padding of strided convolutions, and weights that are
        normal instead of truncated normal.
    """

    def __init__(self, num_units: int, num_inputs: int, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(num_inputs, WIDTHS[0], 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(WIDTHS[0])
        widths = [WIDTHS[0], *(width for width in WIDTHS for _ in range(num_units))]
        self.units = nn.Sequential(*(_Unit(*pair, is_first=not i) for i, pair in enumerate(pairwise(widths))))
        self.norm = nn.BatchNorm2d(WIDTHS[-1])
        self.head = nn.Linear(WIDTHS[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        maps = self.units(torch.relu(self.stem_norm(self.stem(images))))
        return self.head(torch.relu(self.norm(maps)).mean((2, 3)))


class _Unit(nn.Module):
    def __init__(self, num_in: int, num_out: int, *, is_first: bool) -> None:
        super().__init__()
        self.entry = nn.Identity() if is_first else nn.Sequential(nn.BatchNorm2d(num_in), nn.ReLU())
        self.conv1 = nn.Conv2d(num_in, num_out, 3, 1 if num_in == num_out else 2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(num_out)
        self.conv2 = nn.Conv2d(num_out, num_out, 3, padding=1, bias=False)
        self.num_zeros = (num_out - num_in) // 2
        self.add = Addition()

    def forward(self, maps: Tensor) -> Tensor:
        branch = self.conv2(torch.relu(self.norm1(self.conv1(self.entry(maps)))))
        if self.num_zeros:
            maps = F.pad(F.avg_pool2d(maps, 2), (0, 0, 0, 0, self.num_zeros, self.num_zeros))
        return self.add(maps, branch)


class Addition(nn.Module):
    """A sum that means and variances are added through, whatever their scale, as the published code does.

    By itself the package refuses to add raw moments of a normalized tensor to others: then 3 of 7 layers of a
    ResNet-8 have a prior in the state space "raw", and here the 6 of the published code.
    """

    def forward(self, maps: Tensor, branch: Tensor) -> Tensor:
        """Return the sum."""
        return maps + branch


@propagation_rule(Addition)
def through_addition(module: nn.Module, maps: Moments, branch: Moments) -> Moments:
    """Return the moments of the sum of independent maps."""
    return Moments(maps.mean + branch.mean, maps.var + branch.var, maps.size)
