"""Which samples make which batch?

Every draw comes from (seed, purpose, epoch or draw, index), never from the global generators, so that neither worker
count nor ranks nor measuring in between move the order or the augmentation.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset, default_collate

from anybatch.errors import InputError
from anybatch.train.runtime import Runtime
from anybatch.workload import Workload

Key = tuple[int, int]
MicroBatch = tuple[Any, int]


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


def near_equal_parts(total: int, largest: int) -> list[int]:
    """Cut `total` into the fewest parts of at most `largest`, as equal as they get.

    Args:
        total: what is cut.
        largest: the most a part may hold.

    Returns:
        Sizes, the larger ones first.

    Example:
        >>> near_equal_parts(10, 4)
        [4, 3, 3]
    """
    count = -(-total // largest)
    return [total // count + (index < total % count) for index in range(count)]


def collate(workload: Workload, samples: list[Any]) -> Any:
    """Make a batch of samples, by the workload's own function or torch's."""
    return (workload.collate or default_collate)(samples)


class SampleDraws:
    """Samples drawn anew for each measurement, without replacement within one.

    A dataset without a length is read on from where the last draw ended; each of W ranks keeps every W-th sample.
    `stream_length` is how many this rank keeps of a pass, once a stream has ended.
    """

    def __init__(self, workload: Workload, runtime: Runtime, seed: int, purpose: str) -> None:
        self._workload = workload
        self._runtime = runtime
        self._seed = derive_seed(seed, purpose)
        self._dataset = _SeededDataset(workload.train_set, self._seed)
        self._num_draws = 0
        self._stream: Iterator[Any] = iter(())
        self._has_started = False
        self._num_read = 0
        self.stream_length: int | None = None

    def parts(self, sizes: Sequence[int], *, distinct: bool = True) -> list[MicroBatch]:
        """Draw this rank's parts; every rank asks for the same sizes and gets other samples.

        Args:
            sizes: samples per part.
            distinct: see `samples`.

        Returns:
            One (batch, number of samples) per size.

        Raises:
            InputError: more samples than the training set has.
        """
        samples = iter(self.samples(sum(sizes), distinct=distinct))
        return [(collate(self._workload, list(islice(samples, size))), size) for size in sizes]

    def samples(self, num_samples: int, *, distinct: bool = True) -> list[Any]:
        """Draw samples of this rank.

        Args:
            num_samples: how many for each rank.
            distinct: whether a draw larger than a stream is refused; else the stream is repeated.

        Returns:
            Samples as the dataset gives them.

        Raises:
            InputError: more samples than the training set has.
        """
        self._num_draws += 1
        total = num_samples * self._runtime.world_size
        population = self._workload.num_samples
        if population is None:
            return self._read(num_samples, distinct)
        if total > population:
            raise InputError(f"a draw of {total} samples must fit the training set; it has {population}.")
        draw = random.Random(derive_seed(self._seed, self._num_draws)).sample(range(population), total)
        first = self._runtime.rank * num_samples
        return self._dataset.__getitems__([(self._num_draws, index) for index in draw[first : first + num_samples]])

    def one_by_one(self, num_samples: int) -> Iterator[Any]:
        """Draw samples and fetch each when it is asked for; a stream shorter than the draw is repeated.

        Args:
            num_samples: at most so many.

        Yields:
            Samples as the dataset gives them.
        """
        self._num_draws += 1
        population = self._workload.num_samples
        if population is None:
            for _ in range(num_samples):
                yield from self._read(1, distinct=False)
            return
        for index in random.Random(derive_seed(self._seed, self._num_draws)).sample(range(population), num_samples):
            yield from self._dataset.__getitems__([(self._num_draws, index)])

    def _read(self, num_samples: int, distinct: bool) -> list[Any]:
        samples: list[Any] = []
        while len(samples) < num_samples:
            found = list(islice(self._stream, num_samples - len(samples)))
            samples += found
            self._num_read += len(found)
            if len(samples) < num_samples:
                self._start_again()
        if distinct and self.stream_length is not None and num_samples > self.stream_length:
            raise InputError(
                f"a draw of {num_samples} samples per rank must fit the stream; it ends after {self.stream_length}. "
                "Give the dataset a length, or more samples."
            )
        return samples

    def _start_again(self) -> None:
        if self._has_started:
            self.stream_length = self._num_read
            if not self._num_read:
                raise InputError("train_set must hold a sample for each rank; the stream is empty.")
        self._has_started, self._num_read = True, 0
        self._stream = _own_share(self._workload, self._runtime)


def step_batches(
    workload: Workload,
    runtime: Runtime,
    *,
    batch_size: int,
    micro_batch_size: int,
    seed: int,
    num_workers: int = 0,
) -> Iterator[list[MicroBatch]]:
    """Yield this rank's micro-batches of one optimizer step after another, epoch after epoch, without end.

    Args:
        workload: whose training set is shuffled anew each epoch; what is left of an epoch below one batch is
            dropped. A dataset without a length starts again when it ends, within a batch if need be.
        runtime: each of W ranks gets its share of every batch.
        batch_size: samples per step over all ranks.
        micro_batch_size: at most so many samples per forward pass.
        seed: of the order and of augmentation.
        num_workers: of the data loader.

    Yields:
        (batch, number of samples) per micro-batch, on the CPU.

    Raises:
        InputError: a batch larger than the training set, or smaller than the number of ranks.
    """
    if batch_size < runtime.world_size:
        raise InputError(f"batch_size must be at least the {runtime.world_size} ranks; got {batch_size}.")
    share = batch_size // runtime.world_size + (runtime.rank < batch_size % runtime.world_size)
    sizes = near_equal_parts(share, micro_batch_size)
    if workload.num_samples is None:
        micro_batches = _streamed(workload, runtime, sizes)
    elif batch_size > workload.num_samples:
        raise InputError(
            f"batch_size must be at most the training set's {workload.num_samples} samples; got {batch_size}."
        )
    else:
        order = _Order(workload.num_samples, runtime, batch_size, sizes, derive_seed(seed, "order"))
        micro_batches = iter(
            DataLoader(
                _SeededDataset(workload.train_set, derive_seed(seed, "augment")),
                batch_sampler=order,  # pyright: ignore[reportArgumentType]
                collate_fn=workload.collate,
                num_workers=num_workers,
                pin_memory=runtime.device.type == "cuda",
                generator=torch.Generator().manual_seed(derive_seed(seed, "workers")),
            )
        )
    while True:
        yield list(zip(islice(micro_batches, len(sizes)), sizes, strict=True))


class _Order:
    """Keys (epoch, index) of one rank's micro-batches, without end."""

    def __init__(self, num_samples: int, runtime: Runtime, batch_size: int, sizes: list[int], seed: int) -> None:
        self._num_samples = num_samples
        self._runtime = runtime
        self._batch_size = batch_size
        self._sizes = sizes
        self._seed = seed

    def __iter__(self) -> Iterator[list[Key]]:
        epoch = 0
        while True:
            generator = torch.Generator().manual_seed(derive_seed(self._seed, epoch))
            order = torch.randperm(self._num_samples, generator=generator)
            for batch in order.split(self._batch_size):
                if len(batch) == self._batch_size:
                    own = batch.tensor_split(self._runtime.world_size)[self._runtime.rank]
                    for part in own.split(self._sizes):
                        yield [(epoch, index) for index in part.tolist()]
            epoch += 1


class _SeededDataset(Dataset[Any]):
    """A dataset whose random augmentation depends on (seed, epoch, index) alone; leaves global generators alone."""

    def __init__(self, dataset: Dataset[Any], seed: int) -> None:
        self._dataset = dataset
        self._seed = seed
        self._draws_nothing = _draws_nothing(dataset)

    def __getitems__(self, keys: Sequence[Key]) -> list[Any]:
        """Return the samples of a batch; the data loader calls this, and the random states are saved once a batch."""
        if self._draws_nothing:
            return [self._dataset[index] for _, index in keys]
        before = torch.random.get_rng_state(), random.getstate(), np.random.get_state()
        try:
            return [self._seeded(*key) for key in keys]
        finally:
            torch.random.set_rng_state(before[0])
            random.setstate(before[1])
            np.random.set_state(before[2])

    def _seeded(self, epoch: int, index: int) -> Any:
        seed = derive_seed(self._seed, epoch, index)
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        return self._dataset[index]


def _draws_nothing(dataset: Dataset[Any]) -> bool:
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return isinstance(dataset, TensorDataset)


def _own_share(workload: Workload, runtime: Runtime) -> Iterator[Any]:
    assert isinstance(workload.train_set, IterableDataset)
    return islice(iter(workload.train_set), runtime.rank, None, runtime.world_size)


def _streamed(workload: Workload, runtime: Runtime, sizes: list[int]) -> Iterator[Any]:
    samples = _repeated(workload, runtime)
    while True:
        for size in sizes:
            yield collate(workload, list(islice(samples, size)))


def _repeated(workload: Workload, runtime: Runtime) -> Iterator[Any]:
    while True:
        is_empty = True
        for sample in _own_share(workload, runtime):
            is_empty = False
            yield sample
        if is_empty:
            raise InputError("train_set must hold a sample for each rank; the stream is empty.")
