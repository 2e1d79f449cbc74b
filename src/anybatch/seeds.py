"""How does every random draw come from (seed, purpose, epoch, index), and never from a global generator?"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed of (seed, purpose, epoch, index, ...), equal on every machine.

    Args:
        parts: what the draw is for.

    Returns:
        A non-negative integer.

    Example:
        >>> derive_seed(0, "train", 1) == derive_seed(0, "train", 1) != derive_seed(0, "train", 2)
        True
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def mix_seeds(seeds: NDArray[np.uint64] | int, counters: NDArray[np.integer] | int) -> NDArray[np.uint64]:
    """Return one seed per (seed, counter), for many at once.

    The pairs are run through the finalizer of SplitMix64, so that neighbouring counters give unrelated bits.

    Args:
        seeds: of shape (N,) or one for all.
        counters: of shape (N,) or one for all, such as the indices of samples.

    Returns:
        Of shape (N,).

    Example:
        >>> mix_seeds(7, np.arange(3)).shape
        (3,)

    Source:
        Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", section 4.
    """
    bits = (
        np.atleast_1d(np.asarray(seeds, dtype=np.uint64))
        + np.atleast_1d(np.asarray(counters)).astype(np.uint64) * GOLDEN
    )
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def uniforms(seeds: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return a number in [0, 1) of each seed.

    Args:
        seeds: from `mix_seeds`.

    Returns:
        Of the same shape.

    Example:
        >>> draws = uniforms(mix_seeds(7, np.arange(1000)))
        >>> bool(0.45 < draws.mean() < 0.55)
        True
    """
    return (seeds >> np.uint64(11)).astype(np.float64) * 2.0**-53
