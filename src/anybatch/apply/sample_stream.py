"""How does any batch size get its samples from the same order?"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Sampler

from anybatch.errors import InputError
from anybatch.seeds import derive_seed


class Keys(NamedTuple):
    """Which samples: of each its epoch and its index, of shape (N,)."""

    epochs: NDArray[np.int64]
    indices: NDArray[np.int64]


class SampleStream:
    """One endless order of samples: every epoch a permutation of its own, one after another.

    A batch is a stretch of it, whatever its size, so batches of 32 and of 4096 see the same samples in the same order
    and a run goes on from any position. A batch may begin in one epoch and end in the next; none is dropped.

    Args:
        num_samples: of the training set.
        seed: of the order.

    Example:
        >>> stream = SampleStream(10, seed=0)
        >>> sorted(stream.between(0, 10).indices.tolist())
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """

    def __init__(self, num_samples: int, seed: int) -> None:
        self._num_samples = num_samples
        self._seed = seed
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def between(self, start: int, stop: int) -> Keys:
        """Return the samples at positions from `start` up to `stop`."""
        stretches = [Keys(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))] if start == stop else []
        while start < stop:
            epoch, place = divmod(start, self._num_samples)
            indices = self._order_of(epoch)[place : place + stop - start]
            stretches.append(Keys(np.full(len(indices), epoch), indices))
            start += len(indices)
        return stretches[0] if len(stretches) == 1 else Keys(*map(np.concatenate, zip(*stretches, strict=True)))

    def _order_of(self, epoch: int) -> NDArray[np.int64]:
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(derive_seed(self._seed, epoch))
            self._order = torch.randperm(self._num_samples, generator=generator).numpy()
            self._epoch = epoch
        return self._order


class StreamBatchSampler(Sampler[list[int]]):
    """Cut batches of any size from one stream of samples, for a `DataLoader` of your own.

    Args:
        num_samples: of the training set.
        batch_size: samples per step over all ranks.
        seed: of the order.
        start: samples already seen, to go on from.
        num_batches: how many; None: without end.
        rank: whose share of each batch it is.
        world_size: number of ranks.

    Raises:
        InputError: a batch that is larger than the training set or smaller than the number of ranks.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> loader = DataLoader(range(10), batch_sampler=StreamBatchSampler(10, batch_size=4, num_batches=5))
        >>> [len(batch) for batch in loader]
        [4, 4, 4, 4, 4]
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        seed: int = 0,
        start: int = 0,
        num_batches: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.shares = StreamShares(num_samples, batch_size, rank, world_size)
        self._stream = SampleStream(num_samples, seed)
        self._start = start
        self._num_batches = num_batches

    def __len__(self) -> int:
        if self._num_batches is None:
            raise TypeError("a sampler without num_batches has no length")
        return self._num_batches

    def __iter__(self) -> Iterator[list[int]]:
        for index in count() if self._num_batches is None else range(self._num_batches):
            yield self._stream.between(*self.shares.of(self._start, index)).indices.tolist()


class StreamShares:
    """Which stretch of the stream is one rank's share of a batch?

    Args:
        num_samples: of the training set.
        batch_size: samples per step over all ranks.
        rank: whose share it is.
        world_size: number of ranks; the first ones get one sample more where the batch cannot be cut equally.

    Raises:
        InputError: a batch that is larger than the training set or smaller than the number of ranks.
    """

    def __init__(self, num_samples: int, batch_size: int, rank: int, world_size: int) -> None:
        if batch_size < world_size:
            raise InputError(f"batch_size must be at least the {world_size} ranks; got {batch_size}.")
        if batch_size > num_samples:
            raise InputError(
                f"batch_size must be at most the training set's {num_samples} samples; got {batch_size}. Choose a "
                "smaller one."
            )
        whole, rest = divmod(batch_size, world_size)
        self.batch_size = batch_size
        self.size = whole + (rank < rest)
        self._offset = rank * whole + min(rank, rest)

    def of(self, start: int, index: int) -> tuple[int, int]:
        """Return (from, to) of the share in batch `index` after position `start`."""
        first = start + index * self.batch_size + self._offset
        return first, first + self.size
