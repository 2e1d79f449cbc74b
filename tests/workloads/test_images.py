"""Images in memory: a batch equals its samples one by one, and each sample's draws are its seed's alone."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from torchvision.transforms import functional

from anybatch import InputError
from anybatch.seeds import mix_seeds, uniforms
from anybatch.workloads.images import ImageTensors

MEAN, STD = (0.5, 0.3, 0.1), (0.2, 0.25, 0.5)


def images(num_images=20, channels=3, height=6, width=5):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (num_images, channels, height, width), dtype=torch.uint8, generator=generator)


def dataset(**options):
    return ImageTensors(images(), torch.arange(20), **{"mean": MEAN, "std": STD} | options)


def seeds(count):
    return mix_seeds(7, np.arange(count))


def augmented(image, seed, *, pad, fill, flip):
    """The slow obvious twin: a random window of the padded (C, H, W) image, mirrored or not, as nested lists."""
    num_channels, height, width = image.shape

    def draw(which):
        return float(uniforms(mix_seeds(np.array([seed], dtype=np.uint64), which))[0])

    top, left = int(draw(0) * (2 * pad + 1)) - pad, int(draw(1) * (2 * pad + 1)) - pad
    mirrored = flip and draw(2) < 0.5

    def pixel(channel, row, column):
        column = width - 1 - column if mirrored else column
        row, column = row + top, column + left
        return int(image[channel, row, column]) if 0 <= row < height and 0 <= column < width else fill

    return [[[pixel(c, row, col) for col in range(width)] for row in range(height)] for c in range(num_channels)]


@given(pad=st.integers(0, 6), fill=st.integers(0, 255), flip=st.booleans(), first=st.integers(0, 2**40))
def test_a_batch_is_what_the_twin_makes_of_each_image(pad, fill, flip, first):
    data = dataset(pad=pad, fill=fill, flip=flip, mean=[0, 0, 0], std=[1 / 255] * 3)
    indices, own = np.array([3, 0, 19, 3, 7]), mix_seeds(first, np.arange(5))
    batch, labels = data.fetch_batch(indices, own)
    for image, index, seed in zip(batch, indices, own, strict=True):
        expected = augmented(data.images[index], seed, pad=pad, fill=fill, flip=flip)
        assert image.round().int().tolist() == expected
    assert labels.tolist() == indices.tolist()


def test_without_augmentation_an_image_is_what_torchvision_makes_of_it():
    batch, _ = dataset().fetch_batch(np.arange(20), seeds(20))
    expected = torch.stack([functional.normalize(image.float() / 255, MEAN, STD) for image in images()])
    assert (batch.dtype, batch.shape) == (torch.float32, (20, 3, 6, 5))
    assert torch.equal(batch, expected)


def test_a_sample_depends_on_its_own_seed_alone():
    data = dataset(pad=2, flip=True)
    indices, own = np.arange(20), seeds(20)
    whole, _ = data.fetch_batch(indices, own)
    order = np.random.default_rng(0).permutation(20)
    shuffled, labels = data.fetch_batch(indices[order], own[order])
    assert torch.equal(shuffled, whole[order])
    assert labels.tolist() == order.tolist()
    alone = torch.cat([data.fetch_batch(indices[i : i + 1], own[i : i + 1])[0] for i in range(20)])
    assert torch.equal(alone, whole)


def test_every_window_and_both_sides_are_equally_frequent():
    image = torch.zeros(1, 1, 3, 3, dtype=torch.uint8)
    image[0, 0, 1] = torch.tensor([1, 2, 3])
    data = ImageTensors(image, torch.zeros(1), mean=[0], std=[1 / 255], pad=1, flip=True)
    num_draws = 18_000
    batch, _ = data.fetch_batch(np.zeros(num_draws, dtype=np.int64), seeds(num_draws))
    _, counts = np.unique(batch.numpy().reshape(num_draws, -1), axis=0, return_counts=True)
    expected = num_draws / 18
    assert len(counts) == 18
    assert ((counts - expected) ** 2 / expected).sum() < 40  # chi-squared with 17 degrees: 99.9% are below 40.8


def test_a_fetch_changes_neither_the_images_nor_the_generators():
    data = dataset(pad=2, flip=True)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    data.fetch_batch(np.arange(20), seeds(20))
    assert torch.equal(data.images, images())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    dataset()[3]
    assert torch.equal(torch.get_rng_state(), before[0])


def test_a_single_sample_draws_from_the_global_generator():
    data = dataset(pad=2, flip=True)
    torch.manual_seed(0)
    first, label = data[4]
    others = [data[4][0] for _ in range(20)]
    torch.manual_seed(0)
    assert torch.equal(data[4][0], first)
    assert any(not torch.equal(other, first) for other in others)
    assert (first.shape, label.item()) == ((3, 6, 5), 4)
    torch.manual_seed(0)
    own = torch.randint(2**63 - 1, (1,)).numpy().astype(np.uint64)
    assert torch.equal(data.fetch_batch(np.array([4]), own)[0][0], first)


def test_it_is_a_dataset_of_torch():
    data = dataset()
    assert len(data) == 20
    batches = list(DataLoader(data, batch_size=8))
    assert [len(labels) for _, labels in batches] == [8, 8, 4]
    assert torch.equal(torch.cat([batch for batch, _ in batches]), data.fetch_batch(np.arange(20), seeds(20))[0])
    with pytest.raises(IndexError):
        data[20]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": images().float()}, r"must be uint8 of shape \(N, C, H, W\); got torch.float32 of \(20, 3, 6, 5\)"),
        ({"images": images()[:, 0]}, r"must be uint8 of shape \(N, C, H, W\); got torch.uint8 of \(20, 6, 5\)"),
        ({"labels": torch.arange(19)}, "labels must be one per image; got 19 for 20 images"),
        ({"mean": [0.5]}, r"mean and std must be one number per channel.*; got \[0.5\] and .* for 3 channels"),
        ({"std": [1.0]}, "mean and std must be one number per channel"),
        ({"std": [1.0, 0.0, 1.0]}, "one number per channel, std positive; got"),
        ({"pad": -1}, "pad must be 0 or more and fill a pixel from 0 to 255; got pad -1 and fill 0"),
        ({"fill": 256}, "pad must be 0 or more and fill a pixel from 0 to 255; got pad 0 and fill 256"),
    ],
)
def test_what_cannot_be_used_is_refused(change, message):
    arguments = {"images": images(), "labels": torch.arange(20), "mean": MEAN, "std": STD} | change
    with pytest.raises(InputError, match=message):
        ImageTensors(**arguments)
