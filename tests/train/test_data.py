"""Which samples make which batch: the same whatever the workers, the ranks or the global generators are."""

import random
from itertools import chain, islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset, Subset, TensorDataset
from train.small_workloads import CPU, Indices, Stream, labelled_vectors, simulated_ranks, vectors_workload

from anybatch import InputError
from anybatch.seeds import derive_seed
from anybatch.train.data import SampleDraws, near_equal_parts, step_batches


class Augmented(Dataset):
    """Sample i is i and a draw from each of the three global generators."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return index, torch.rand(()).item(), random.random(), np.random.rand()


def steps(workload, count, runtime=CPU, **arguments) -> list[list]:
    """The first steps, each a list of micro-batches as lists of samples."""
    options = {"batch_size": 4, "micro_batch_size": 4, "seed": 0, **arguments}
    return [
        [torch.as_tensor(batch).tolist() if isinstance(batch, torch.Tensor) else batch for batch, _ in step]
        for step in islice(step_batches(workload, runtime, **options), count)
    ]


def indices_workload(num_samples=10):
    return vectors_workload(train_set=Indices(num_samples), base_batch_size=None)


def stream_workload(num_samples):
    return vectors_workload(train_set=Stream(Indices(num_samples)), base_batch_size=None)


def augmented_workload():
    return vectors_workload(train_set=Augmented(), base_batch_size=None, collate=list)


def global_states():
    return torch.random.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())


def test_the_order_comes_from_the_seed_alone():
    workload = indices_workload()
    torch.manual_seed(1)
    random.seed(1)
    first = steps(workload, 5)
    torch.manual_seed(2)
    random.seed(2)
    assert steps(workload, 5) == first
    assert steps(workload, 5, seed=1) != first


def flattened(drawn) -> list:
    return [index for step in drawn for part in step for index in part]


def test_epochs_follow_one_another_and_each_holds_every_sample_once():
    seen = flattened(steps(indices_workload(10), 5))  # two epochs in five batches of 4
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]


@pytest.mark.parametrize("batch_size", [1, 3, 7, 10])
@pytest.mark.parametrize("make", [indices_workload, augmented_workload])
def test_any_batch_size_cuts_the_same_stream(make, batch_size):
    whole = flattened(steps(make(), 5, batch_size=4))
    cut = flattened(steps(make(), 20 // batch_size, batch_size=batch_size, micro_batch_size=batch_size))
    assert cut == whole[: len(cut)]


@pytest.mark.parametrize("make", [indices_workload, augmented_workload])
def test_loading_goes_on_from_any_sample(make):
    whole = flattened(steps(make(), 7))
    assert flattened(steps(make(), 4, start=12)) == whole[12:]


def test_a_stream_goes_on_from_any_sample():
    whole = flattened(steps(stream_workload(10), 6))
    assert flattened(steps(stream_workload(10), 3, start=12)) == whole[12:]


class Fetched(Indices):
    """A dataset that makes its own batches."""

    def fetch_batch(self, indices, seeds):
        return torch.from_numpy(indices), torch.from_numpy(seeds % 1000)


def test_a_dataset_may_make_its_batches_itself():
    workload = vectors_workload(train_set=Fetched(10), base_batch_size=None)
    batches = [step[0][0] for step in islice(step_batches(workload, CPU, batch_size=4, micro_batch_size=4, seed=0), 5)]
    assert torch.cat([indices for indices, _ in batches]).tolist() == flattened(steps(indices_workload(10), 5))
    draws = torch.cat([seeds for _, seeds in batches]).tolist()
    assert len(set(draws)) > 15  # of 20, each its own
    again = next(step_batches(workload, CPU, batch_size=4, micro_batch_size=4, seed=0, start=4))[0][0]
    assert torch.equal(again[1], batches[1][1])


def test_a_subset_of_such_a_dataset_makes_the_same_batches():
    workload = vectors_workload(train_set=Subset(Fetched(20), range(10, 20)), base_batch_size=None)
    indices, _ = next(step_batches(workload, CPU, batch_size=10, micro_batch_size=10, seed=0))[0][0]
    assert sorted(indices.tolist()) == list(range(10, 20))


class Shifted(TensorDataset):
    def __getitem__(self, index):
        return tuple(tensor + 100 for tensor in super().__getitem__(index))


class ShiftedSubset(Subset):
    def __getitem__(self, index):
        return super().__getitem__(index) + 100

    def __getitems__(self, indices):
        return [self[index] for index in indices]


class Overridden(Fetched):
    def __getitem__(self, index):
        return index + 100


@pytest.mark.parametrize(
    "dataset",
    [Shifted(torch.arange(8)), ShiftedSubset(Indices(8), range(8)), Overridden(8)],
    ids=lambda d: type(d).__name__,
)
def test_a_subclass_that_makes_its_own_samples_is_asked_for_them(dataset):
    batch, _ = next(step_batches(vectors_workload(train_set=dataset), CPU, batch_size=8, micro_batch_size=8, seed=0))[0]
    assert torch.as_tensor(batch[0] if isinstance(batch, list) else batch).min() >= 100


class RandomCollate:
    """Augments whole batches, as mix-up does."""

    def __call__(self, samples):
        return [sample + np.random.rand() for sample in samples]


def test_what_collate_draws_depends_on_the_seed_alone():
    workload = vectors_workload(train_set=Indices(10), base_batch_size=None, collate=RandomCollate())
    first = steps(workload, 5)
    np.random.seed(3)
    assert steps(workload, 5) == first
    assert steps(workload, 3, start=8) == first[2:]
    assert steps(workload, 5, num_workers=1) == first


def test_micro_batches_cut_a_batch_and_change_nothing_else():
    workload = indices_workload(20)
    whole = steps(workload, 3, batch_size=10, micro_batch_size=10)
    cut = steps(workload, 3, batch_size=10, micro_batch_size=4)
    assert [[len(part) for part in step] for step in cut] == [[4, 3, 3]] * 3
    assert [list(chain(*step)) for step in cut] == [step[0] for step in whole]


@pytest.mark.parametrize(("batch_size", "world_size"), [(8, 2), (7, 2), (7, 3), (3, 3)])
@pytest.mark.parametrize("make", [indices_workload, augmented_workload])
def test_ranks_together_hold_the_batch_of_one_process(make, batch_size, world_size):
    workload = make()
    alone = steps(workload, 4, batch_size=batch_size, micro_batch_size=batch_size)
    ranks = simulated_ranks(world_size)
    shares = [steps(workload, 4, rank, batch_size=batch_size, micro_batch_size=2) for rank in ranks]
    for index, step in enumerate(alone):
        joined = [sample for share in shares for part in share[index] for sample in part]
        assert joined == step[0]


@pytest.mark.parametrize("make", [indices_workload, augmented_workload])
def test_worker_processes_change_nothing(make):
    workload = make()
    assert steps(workload, 4, num_workers=1) == steps(workload, 4, num_workers=0)


def test_augmentation_depends_on_seed_epoch_and_index_alone():
    workload = augmented_workload()

    def drawn(**arguments):
        batches = steps(workload, 6, **arguments)  # two epochs of 3 batches
        found = {}
        for number, step in enumerate(batches):
            for index, *values in step[0]:
                found[number // 3, index] = tuple(values)
        return found

    first = drawn()
    assert len(first) == 24
    torch.manual_seed(7)
    random.seed(7)
    np.random.seed(7)
    assert drawn() == first
    assert drawn(num_workers=1) == first
    assert len({value for values in first.values() for value in values}) == 72  # all draws differ
    assert not set(drawn(seed=1).values()) & set(first.values())


def test_loading_leaves_the_global_generators_alone():
    before = global_states()
    steps(augmented_workload(), 7)
    steps(augmented_workload(), 2, num_workers=1)
    SampleDraws(augmented_workload(), CPU, 0, "test").samples(5)
    assert global_states() == before


def test_a_failing_sample_leaves_the_global_generators_alone():
    class Broken(Augmented):
        def __getitem__(self, index):
            super().__getitem__(index)
            raise OSError("no such image")

    before = global_states()
    with pytest.raises(OSError, match="no such image"):
        steps(vectors_workload(train_set=Broken(), base_batch_size=None), 1)
    assert global_states() == before


@pytest.mark.parametrize(
    ("arguments", "world_size", "message"),
    [
        ({"batch_size": 11}, 1, "batch_size must be at most the training set's 10 samples; got 11"),
        ({"batch_size": 2}, 3, "batch_size must be at least the 3 ranks; got 2"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(arguments, world_size, message):
    with pytest.raises(InputError, match=message):
        steps(indices_workload(), 1, simulated_ranks(world_size)[0], **arguments)


def test_a_stream_starts_again_within_a_batch():
    workload = stream_workload(10)
    assert steps(workload, 3, micro_batch_size=2) == [[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8, 9], [0, 1]]]


def test_ranks_share_a_stream():
    workload = stream_workload(8)
    shares = [steps(workload, 2, runtime) for runtime in simulated_ranks(2)]
    assert shares == [[[[0, 2]], [[4, 6]]], [[[1, 3]], [[5, 7]]]]


def test_an_empty_stream_is_refused():
    message = "train_set must hold a sample for each rank; the stream is empty"
    with pytest.raises(InputError, match=message):
        steps(stream_workload(0), 1)
    with pytest.raises(InputError, match=message):
        SampleDraws(stream_workload(0), CPU, 0, "test").samples(1)


def test_a_draw_may_repeat_a_stream_where_samples_need_not_be_distinct():
    draws = SampleDraws(stream_workload(3), CPU, 0, "test")
    assert draws.samples(7, distinct=False) == [0, 1, 2, 0, 1, 2, 0]
    assert draws.stream_length == 3


def test_draws_are_new_each_time_without_repeats_and_disjoint_over_ranks():
    workload = indices_workload(12)
    draws = [SampleDraws(workload, runtime, 0, "test") for runtime in simulated_ranks(2)]
    first, second = ([draw.samples(6) for draw in draws] for _ in range(2))
    for drawn in (first, second):
        assert sorted(chain(*drawn)) == list(range(12))
    assert first != second
    again = SampleDraws(workload, simulated_ranks(2)[0], 0, "test")
    assert [again.samples(6), again.samples(6)] == [first[0], second[0]]
    assert SampleDraws(workload, simulated_ranks(2)[0], 0, "other").samples(6) != first[0]


def test_parts_of_a_draw_have_the_sizes_asked_for():
    parts = SampleDraws(vectors_workload(), CPU, 0, "test").parts([5, 3])
    assert [(len(inputs), len(labels), size) for (inputs, labels), size in parts] == [(5, 5, 5), (3, 3, 3)]


def test_a_draw_beyond_the_training_set_is_refused():
    with pytest.raises(InputError, match="draw of 14 samples must fit the training set; it has 12"):
        SampleDraws(indices_workload(12), simulated_ranks(2)[0], 0, "test").samples(7)


def test_draws_from_a_stream_go_on_where_the_last_one_ended():
    draws = SampleDraws(stream_workload(10), CPU, 0, "test")
    assert [draws.samples(4), draws.samples(4), draws.samples(4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1]]
    with pytest.raises(InputError, match="draw of 25 samples per rank must fit the stream; it ends after 10"):
        draws.samples(25)


@given(total=st.integers(1, 500), largest=st.integers(1, 500))
def test_near_equal_parts_are_few_and_near_equal(total, largest):
    parts = near_equal_parts(total, largest)
    assert sum(parts) == total
    assert max(parts) <= largest
    assert max(parts) - min(parts) <= 1
    assert parts == sorted(parts, reverse=True)
    assert (len(parts) - 1) * largest < total


def test_seeds_tell_purposes_apart_and_never_change():
    assert derive_seed(0, "order") == 7267664299586512972
    seeds = {derive_seed(seed, purpose, epoch) for seed in range(3) for purpose in ("a", "b") for epoch in range(3)}
    assert len(seeds) == 18
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_vectors_do_not_share_the_seeding_of_augmentation():
    """A TensorDataset draws nothing, so its samples come as they are."""
    data = labelled_vectors()
    (inputs, labels), _ = SampleDraws(vectors_workload(train_set=data), CPU, 0, "test").parts([96])[0]
    assert sorted(inputs.sum(1).tolist()) == sorted(data.tensors[0].sum(1).tolist())
    assert labels.sum() == data.tensors[1].sum()
