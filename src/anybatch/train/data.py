"""Which samples make which batch?

Every draw comes from (seed, purpose, epoch or draw, index), never from the global generators, so that neither worker
count nor ranks nor measuring in between move the order or the augmentation.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset, default_collate

from anybatch.apply.nested import map_nested
from anybatch.apply.sample_stream import Keys, SampleStream, StreamShares
from anybatch.errors import InputError
from anybatch.seeds import derive_seed, mix_seeds
from anybatch.train.randomness import kept_generators, seed_generators
from anybatch.train.runtime import Runtime
from anybatch.workload import Workload

MicroBatch = tuple[Any, int]
PartSizes = Callable[[int], list[int]]  # of the step that is so many after the first one


def to_device(batch: Any, device: torch.device) -> Any:
    """Move every tensor of a nested batch; whatever else it holds stays as it is.

    Args:
        batch: tensors, mutable mappings, lists, tuples, named tuples, dataclasses, or objects with a `to` method.
        device: where to.

    Returns:
        The same structure.
    """
    return map_nested(lambda leaf: _moved(leaf, device), batch, lambda value: hasattr(value, "to"))


def _moved(leaf: Any, device: torch.device) -> Any:
    return leaf.to(device, non_blocking=True) if isinstance(leaf, Tensor) else leaf.to(device)


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


def size_of(workload: Workload, batch: Any, num_samples: int) -> float:
    """Return what the loss of a batch averages over: its samples, or what `batch_size_of` counts."""
    return float(num_samples if workload.batch_size_of is None else workload.batch_size_of(batch))


class SampleDraws:
    """Samples drawn anew for each measurement, without replacement within one.

    A dataset without a length is read on from where the last draw ended; each of W ranks keeps every W-th sample.
    `stream_length` is how many this rank keeps of a pass, once a stream has ended.
    """

    def __init__(self, workload: Workload, runtime: Runtime, seed: int, purpose: str) -> None:
        self._workload = workload
        self._runtime = runtime
        self._seed = derive_seed(seed, purpose)
        self._dataset = SeededDataset(workload, workload.train_set, self._seed)
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
        return self._dataset.samples(_keys(self._num_draws, draw[first : first + num_samples]))

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
            yield from self._dataset.samples(_keys(self._num_draws, [index]))

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
    start: int = 0,
    least_parts: Callable[[int], int] = lambda step: 1,
) -> Iterator[list[MicroBatch]]:
    """Yield this rank's micro-batches of one optimizer step after another, epoch after epoch, without end.

    Args:
        workload: whose training set is shuffled anew each epoch; a batch may begin in one epoch and end in the next.
            A dataset without a length starts again when it ends.
        runtime: each of W ranks gets its share of every batch.
        batch_size: samples per step over all ranks.
        micro_batch_size: at most so many samples per forward pass.
        seed: of the order and of augmentation.
        num_workers: of the data loader.
        start: samples already seen by all ranks together, to go on from; a dataset without a length is read up to it.
        least_parts: number of a step from 0 -> micro-batches that it is cut into at least.

    Yields:
        (batch, number of samples) per micro-batch, on the CPU.

    Raises:
        InputError: a batch larger than the training set, or smaller than the number of ranks.
    """
    population = workload.num_samples
    shares = StreamShares(population or batch_size, batch_size, runtime.rank, runtime.world_size)

    def sizes_of(index: int) -> list[int]:
        least = least_parts(start // batch_size + index)
        return near_equal_parts(shares.size, min(micro_batch_size, -(-shares.size // least)))

    if population is None:
        micro_batches = _streamed(workload, runtime, sizes_of, start)
    else:
        stream = SampleStream(population, derive_seed(seed, "order"))
        micro_batches = iter(
            DataLoader(
                SeededDataset(workload, workload.train_set, derive_seed(seed, "augment")),
                batch_sampler=_micro_batch_keys(stream, shares, sizes_of, start),  # pyright: ignore[reportArgumentType]
                collate_fn=_as_it_is,
                num_workers=num_workers,
                pin_memory=runtime.device.type == "cuda",
                generator=torch.Generator().manual_seed(derive_seed(seed, "workers")),
            )
        )
    for sizes in map(sizes_of, count()):
        yield list(zip(islice(micro_batches, len(sizes)), sizes, strict=True))


def _micro_batch_keys(stream: SampleStream, shares: StreamShares, sizes_of: PartSizes, start: int) -> Iterator[Keys]:
    for index in count():
        first, _ = shares.of(start, index)
        for size in sizes_of(index):
            yield stream.between(first, first + size)
            first += size


def _as_it_is(batch: Any) -> Any:
    return batch


def _keys(epoch: int, indices: Sequence[int]) -> Keys:
    return Keys(np.full(len(indices), epoch, dtype=np.int64), np.asarray(indices, dtype=np.int64))


class SeededDataset(Dataset[Any]):
    """A dataset in whole batches, whose random draws depend on (seed, epoch, index) alone.

    A dataset with `fetch_batch(indices, seeds)` makes each batch by itself, in one call; of a `TensorDataset` the
    rows are gathered at once. Any other one is asked sample by sample with the global generators seeded for each, and
    they are put back afterwards.

    Args:
        workload: whose `collate` makes the batches.
        dataset: with a length.
        seed: of the draws.
    """

    def __init__(self, workload: Workload, dataset: Dataset[Any], seed: int) -> None:
        self._collate = workload.collate
        self._seed = seed
        self._subsets: list[NDArray[np.int64]] = []
        self._dataset: Any = dataset
        while type(self._dataset) is Subset:  # a subclass may do more than choose
            self._subsets.append(np.asarray(self._dataset.indices, dtype=np.int64))
            self._dataset = self._dataset.dataset

    def __getitems__(self, keys: Keys) -> Any:
        """Return the batch of these samples; the data loader calls this."""
        if self._collate is None and _makes_batches(self._dataset):
            return self._dataset.fetch_batch(self._places(keys), self._seeds(keys))
        if self._collate is None and type(self._dataset) is TensorDataset:
            places = torch.from_numpy(self._places(keys))
            return [tensor[places] for tensor in self._dataset.tensors]
        with kept_generators():
            samples = list(self._drawn(keys))
            return (self._collate or default_collate)(samples)

    def samples(self, keys: Keys) -> list[Any]:
        """Return the samples by themselves."""
        if type(self._dataset) is TensorDataset:
            return [self._dataset[place] for place in self._places(keys)]
        with kept_generators():
            return list(self._drawn(keys))

    def _drawn(self, keys: Keys) -> Iterator[Any]:
        for seed, place in zip(self._seeds(keys).tolist(), self._places(keys).tolist(), strict=True):
            seed_generators(seed)
            yield self._dataset[place]

    def _places(self, keys: Keys) -> NDArray[np.int64]:
        places = keys.indices
        for subset in self._subsets:
            places = subset[places]
        return places

    def _seeds(self, keys: Keys) -> NDArray[np.uint64]:
        epochs, which = np.unique(keys.epochs, return_inverse=True)
        of_epochs = np.array([derive_seed(self._seed, epoch) for epoch in epochs.tolist()], dtype=np.uint64)
        return mix_seeds(of_epochs[which], keys.indices)


def _makes_batches(dataset: Any) -> bool:
    """Return whether a dataset has `fetch_batch`, and no class below it has changed how a sample is made."""
    definers = [{"fetch_batch", "__getitem__"} & vars(kind).keys() for kind in type(dataset).__mro__]
    return "fetch_batch" in next((names for names in definers if names), ())


def _own_share(workload: Workload, runtime: Runtime) -> Iterator[Any]:
    assert isinstance(workload.train_set, IterableDataset)
    return islice(iter(workload.train_set), runtime.rank, None, runtime.world_size)


def _streamed(workload: Workload, runtime: Runtime, sizes_of: PartSizes, start: int) -> Iterator[Any]:
    samples = islice(_repeated(workload, runtime), start // runtime.world_size, None)
    for index in count():
        for size in sizes_of(index):
            yield collate(workload, list(islice(samples, size)))


def _repeated(workload: Workload, runtime: Runtime) -> Iterator[Any]:
    while True:
        is_empty = True
        for sample in _own_share(workload, runtime):
            is_empty = False
            yield sample
        if is_empty:
            raise InputError("train_set must hold a sample for each rank; the stream is empty.")
