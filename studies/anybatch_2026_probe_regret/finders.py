"""Which batch size do other tools advise? Their rules: what they measure is the largest size that fits."""

from __future__ import annotations

LIGHTNING_START, LIGHTNING_MOST, LIGHTNING_TRIALS = 2, 8192, 25
ACCELERATE_START = 128

SOURCES = {
    "Lightning": "BatchSizeFinder of Lightning 2.6, mode power: from 2 on doubled up to what fits, the training set or "
    "8192",
    "Accelerate": "find_executable_batch_size: the size that one starts with, 128 by default, smaller where that "
    "does not fit",
    "largest": "the largest that fits, at most the training set",
}


def lightning(largest: int, num_samples: int) -> int:
    """Return what doubling until memory ends comes to.

    Args:
        largest: that fits.
        num_samples: in the training set.

    Returns:
        Samples per step.

    Example:
        >>> lightning(100, 1437), lightning(10**6, 1437), lightning(10**6, 60_000)
        (64, 1437, 8192)
    """
    size = LIGHTNING_START
    for _ in range(LIGHTNING_TRIALS):
        larger = min(2 * size, num_samples, LIGHTNING_MOST)
        if larger == size or larger > largest:
            break
        size = larger
    return size


def accelerate(largest: int, num_samples: int) -> int:
    """Return what halving from the default comes to.

    Args:
        largest: that fits.
        num_samples: in the training set.

    Returns:
        Samples per step.

    Example:
        >>> accelerate(10**6, 60_000), accelerate(100, 60_000)
        (128, 64)
    """
    size = ACCELERATE_START
    while size > largest:
        size //= 2
    return min(size, num_samples)


def advised(largest: int, num_samples: int) -> dict[str, int]:
    """Return each tool's batch size."""
    return {
        "Lightning": lightning(largest, num_samples),
        "Accelerate": accelerate(largest, num_samples),
        "largest": min(largest, num_samples),
    }
