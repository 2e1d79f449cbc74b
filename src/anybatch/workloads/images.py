"""How are the images of a dataset in memory augmented and normalised, a batch at a time?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from anybatch.errors import InputError
from anybatch.seeds import mix_seeds, uniforms

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Indices = NDArray[np.int64]
Seeds = NDArray[np.uint64]
Pixels = NDArray[np.uint8]
TOP, LEFT, FLIP = range(3)  # which draw of a sample's seed decides what


class ImageTensors(Dataset[tuple[Tensor, Tensor]]):
    """Images in memory: padded and cropped at random, flipped at random, then normalised.

    (x / 255 - mean) / std, where x is a window of the padded image, mirrored with probability 1/2. The padding is
    normalised like the image.

    Args:
        images: uint8 of shape (N, C, H, W); not copied.
        labels: of shape (N, ...).
        mean: one per channel, of pixels between 0 and 1.
        std: one per channel.
        pad: pixels added on every side before a window of the original size is drawn; 0: no crop.
        fill: the padding's value before normalisation, 0 to 255.
        flip: whether images are mirrored left to right.

    Raises:
        InputError: an argument that cannot be used.

    Example:
        >>> image = torch.arange(9, dtype=torch.uint8).view(1, 1, 3, 3)
        >>> data = ImageTensors(image, torch.tensor([7]), mean=[0], std=[1 / 255], pad=1, flip=True)
        >>> images, labels = data.fetch_batch(np.array([0, 0]), np.array([7, 9], dtype=np.uint64))
        >>> images[:, 0].round().int().tolist()
        [[[0, 0, 0], [2, 1, 0], [5, 4, 3]], [[1, 2, 0], [4, 5, 0], [7, 8, 0]]]
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        pad: int = 0,
        fill: int = 0,
        flip: bool = False,
    ) -> None:
        _check(images, labels, mean, std, pad, fill)
        self.images = images
        self.labels = labels
        self._mean = torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1)
        self._std = torch.tensor(std, dtype=torch.float32).view(-1, 1, 1)
        self._pad = pad
        self._fill = fill
        self._flip = flip

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return one sample, augmented by a draw from torch's global generator where there is augmentation.

        Args:
            index: of the sample.

        Returns:
            The image, float32 of shape (C, H, W), and its label.
        """
        seed = np.zeros(1, dtype=np.uint64)
        if self._pad or self._flip:
            seed = torch.randint(2**63 - 1, (1,)).numpy().astype(np.uint64)
        images, labels = self.fetch_batch(np.array([index]), seed)
        return images[0], labels[0]

    def fetch_batch(self, indices: Indices, seeds: Seeds) -> tuple[Tensor, Tensor]:
        """Return a batch of samples, the augmentation of each being a function of its own seed.

        Args:
            indices: of the samples, of shape (n,).
            seeds: one per sample, of shape (n,).

        Returns:
            Images, float32 of shape (n, C, H, W), and labels of shape (n, ...).
        """
        pixels = self.images.numpy()[indices]
        if self._pad:
            pixels = self._cropped(pixels, seeds)
        if self._flip:
            mirrored = uniforms(mix_seeds(seeds, FLIP)) < 0.5
            pixels[mirrored] = pixels[mirrored][..., ::-1]
        images = torch.from_numpy(pixels).float().div_(255).sub_(self._mean).div_(self._std)
        return images, torch.from_numpy(self.labels.numpy()[indices])

    def _cropped(self, pixels: Pixels, seeds: Seeds) -> Pixels:
        pad, (num_images, num_channels, height, width) = self._pad, pixels.shape
        padded = np.full((num_images, num_channels, height + 2 * pad, width + 2 * pad), self._fill, dtype=np.uint8)
        padded[:, :, pad:-pad, pad:-pad] = pixels
        windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
        return windows[np.arange(num_images), :, self._offsets(seeds, TOP), self._offsets(seeds, LEFT)]

    def _offsets(self, seeds: Seeds, draw: int) -> Indices:
        return (uniforms(mix_seeds(seeds, draw)) * (2 * self._pad + 1)).astype(np.int64)


def _check(images: Tensor, labels: Tensor, mean: Sequence[float], std: Sequence[float], pad: int, fill: int) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise InputError(f"images must be uint8 of shape (N, C, H, W); got {images.dtype} of {tuple(images.shape)}.")
    if len(labels) != len(images):
        raise InputError(f"labels must be one per image; got {len(labels)} for {len(images)} images.")
    num_channels = images.shape[1]
    if len(mean) != num_channels or len(std) != num_channels or min(std) <= 0:
        raise InputError(
            f"mean and std must be one number per channel, std positive; got {list(mean)} and {list(std)} for "
            f"{num_channels} channels."
        )
    if pad < 0 or not 0 <= fill <= 255:
        raise InputError(f"pad must be 0 or more and fill a pixel from 0 to 255; got pad {pad} and fill {fill}.")
