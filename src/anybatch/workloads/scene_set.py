"""Which picture, and which boxes, masks and classes, does a seed make? Scenes of small items for dense prediction."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import Dataset

from anybatch.errors import InputError
from anybatch.seeds import derive_seed

BACKGROUND = 0
MIN_VISIBLE = 0.25  # of an item's own pixels: below it the item is not annotated, and not drawn either
MAX_TRIES = 20
ITEM_THRESHOLD = 24  # a pixel of an item is what is brighter, of 255

Target = dict[str, Tensor]
Window = tuple[slice, slice]
Sample = tuple[Tensor, Target]


@dataclass(frozen=True)
class Layout:
    """What a scene looks like.

    Attributes:
        size: height and width, in pixels.
        num_items: fewest and most items that are tried.
        item_sizes: smallest and largest side of an item, in pixels; log-uniform between them.
        noise: standard deviation of the pixel noise, of pixels between 0 and 1.

    Raises:
        InputError: a range that is empty, or items larger than the scene.
    """

    size: int = 96
    num_items: tuple[int, int] = (2, 7)
    item_sizes: tuple[int, int] = (14, 48)
    noise: float = 0.05

    def __post_init__(self) -> None:
        for name in ("num_items", "item_sizes"):
            low, high = getattr(self, name)
            if not 1 <= low <= high:
                raise InputError(f"{name} of a Layout must be (fewest, most), from 1; got {(low, high)}.")
        if self.item_sizes[1] > self.size:
            raise InputError(f"item_sizes of a Layout must fit its size {self.size}; got {self.item_sizes}.")


class SceneSet(Dataset[Sample]):
    """Scenes of several items each, with scales, overlaps and a textured background.

    Scene i is a function of (seed, i) alone. Later items cover earlier ones; masks are what is seen, boxes their
    extent, and an item of which less than a quarter would be seen is left out.

    Args:
        images: of the items, uint8 of shape (M, 1, h, w), bright on black.
        labels: of the items, int64 of shape (M,), from 0.
        num_scenes: the length.
        seed: of all draws.
        layout: what a scene looks like.

    Raises:
        InputError: items that are not uint8 of one channel, or no scene at all.

    Example:
        >>> items = torch.full((3, 1, 28, 28), 200, dtype=torch.uint8)
        >>> scenes = SceneSet(items, torch.tensor([0, 1, 2]), num_scenes=4, seed=0)
        >>> image, target = scenes[0]
        >>> tuple(image.shape), sorted(target)
        ((3, 96, 96), ['boxes', 'labels', 'masks', 'semantic'])

    Source:
        anybatch's choice: it has what makes module gradients differ in detection (proposals, levels, masks) at a size
        that a CPU trains.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, *, num_scenes: int, seed: int, layout: Layout | None = None
    ) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 1 or len(images) != len(labels):
            raise InputError(
                f"images must be uint8 of shape (M, 1, h, w), labels one per image; got {images.dtype} of "
                f"{tuple(images.shape)} and {len(labels)} labels."
            )
        if num_scenes < 1:
            raise InputError(f"num_scenes must be at least 1; got {num_scenes}.")
        self.layout = layout or Layout()
        self._images = images
        self._labels = labels.tolist()
        self._num_scenes = num_scenes
        self._seed = seed

    def __len__(self) -> int:
        return self._num_scenes

    def __getitem__(self, index: int) -> Sample:
        """Return one scene.

        Args:
            index: of the scene.

        Returns:
            The image, float32 of shape (3, H, W) between 0 and 1, and its target: `boxes` (K, 4) as x1, y1, x2, y2 in
            pixels, `labels` (K,) from 1, `masks` uint8 (K, H, W), `semantic` int64 (H, W) with 0 as background. The
            instances are disjoint, so `masks` and `semantic` are a panoptic annotation too.

        Raises:
            IndexError: no such scene.
        """
        if not 0 <= index < self._num_scenes:
            raise IndexError(index)
        draws = np.random.default_rng(derive_seed(self._seed, "scene", index))
        scene = _Scene(_background(draws, self.layout.size))
        low, high = self.layout.num_items
        for _ in range(int(draws.integers(low, high + 1))):
            self._add_item(draws, scene)
        noisy = scene.canvas + draws.normal(0, self.layout.noise, scene.canvas.shape)
        return torch.from_numpy(noisy.clip(0, 1)).float(), _annotate(scene)

    def _add_item(self, draws: np.random.Generator, scene: _Scene) -> None:
        for _ in range(MAX_TRIES):
            which = int(draws.integers(len(self._labels)))
            pixels = _resized(self._images[which, 0], self._draw_side(draws))
            top, left = draws.integers(0, self.layout.size - len(pixels) + 1, 2)
            window = slice(top, top + len(pixels)), slice(left, left + len(pixels))
            if scene.add(pixels, window, self._labels[which] + 1, draws.uniform(0.4, 1.0, (3, 1, 1))):
                return

    def _draw_side(self, draws: np.random.Generator) -> int:
        low, high = np.log(self.layout.item_sizes)
        return round(float(np.exp(draws.uniform(low, high))))


@dataclass
class _Scene:
    """A canvas (3, H, W), who owns each of its pixels (0: nobody, k: item k) and what the items are."""

    canvas: NDArray[np.float64]
    labels: list[int] = field(default_factory=list)
    areas: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.owner = np.zeros(self.canvas.shape[1:], dtype=np.int64)

    def add(self, pixels: NDArray[np.float64], window: Window, label: int, colour: NDArray[np.float64]) -> bool:
        """Draw an item unless too little of another one would stay visible; return whether it was drawn."""
        shape = pixels > ITEM_THRESHOLD / 255
        num_owned = np.bincount(self.owner.ravel(), minlength=len(self.labels) + 1)[1:]
        num_covered = np.bincount(self.owner[window][shape], minlength=len(self.labels) + 1)[1:]
        if not shape.any() or (num_owned - num_covered < MIN_VISIBLE * np.array(self.areas)).any():
            return False
        self.labels.append(label)
        self.areas.append(int(shape.sum()))
        self.owner[window][shape] = len(self.labels)
        area = (slice(None), *window)
        self.canvas[area] = np.where(shape, colour * pixels, self.canvas[area])
        return True


def _background(draws: np.random.Generator, size: int) -> NDArray[np.float64]:
    """Return a coloured grating under soft blobs, (3, size, size), darker than most items."""
    blobs = torch.from_numpy(draws.normal(0, 0.12, (1, 3, 6, 6)))
    soft = interpolate(blobs, size=(size, size), mode="bilinear", align_corners=True)[0].numpy()
    angle, phase, period = draws.uniform(0, np.pi), draws.uniform(0, 2 * np.pi), draws.uniform(6, 30)
    rows, columns = np.mgrid[:size, :size]
    waves = np.sin(2 * np.pi * (np.cos(angle) * columns + np.sin(angle) * rows) / period + phase)
    return draws.uniform(0.1, 0.5, (3, 1, 1)) + soft + draws.uniform(0, 0.12) * waves


def _resized(image: Tensor, side: int) -> NDArray[np.float64]:
    scaled = interpolate(image[None, None].double() / 255, size=(side, side), mode="bilinear", antialias=True)
    return scaled[0, 0].numpy()


def _annotate(scene: _Scene) -> Target:
    ids = np.arange(1, len(scene.labels) + 1)
    masks = scene.owner == ids[:, None, None]
    labels = np.array([BACKGROUND, *scene.labels])
    return {
        "boxes": torch.tensor([_extent(mask) for mask in masks], dtype=torch.float32).reshape(-1, 4),
        "labels": torch.from_numpy(labels[1:]),
        "masks": torch.from_numpy(masks.astype(np.uint8)),
        "semantic": torch.from_numpy(labels[scene.owner]),
    }


def _extent(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Return x1, y1, x2, y2 of what is set, the far ends exclusive."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
