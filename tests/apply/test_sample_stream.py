"""One order of samples, cut by any batch size, shared by any ranks, read from any position."""

from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from anybatch import InputError
from anybatch.apply import SampleStream, StreamBatchSampler
from anybatch.apply.sample_stream import StreamShares


def pairs(stream, start, stop):
    keys = stream.between(start, stop)
    return list(zip(keys.epochs.tolist(), keys.indices.tolist(), strict=True))


@given(num_samples=st.integers(1, 40), seed=st.integers(0, 5), epoch=st.integers(0, 4))
def test_every_epoch_is_a_permutation_with_its_number(num_samples, seed, epoch):
    found = pairs(SampleStream(num_samples, seed), epoch * num_samples, (epoch + 1) * num_samples)
    assert sorted(found) == [(epoch, index) for index in range(num_samples)]


@given(num_samples=st.integers(1, 30), cuts=st.lists(st.integers(0, 90), min_size=1, max_size=6))
def test_stretches_of_one_stream_join_whatever_the_order_of_asking(num_samples, cuts):
    whole = pairs(SampleStream(num_samples, 0), 0, 100)
    stream = SampleStream(num_samples, 0)
    bounds = [0, *sorted(cuts), 100]
    stretches = list(pairwise(bounds))
    found = {stretch: pairs(stream, *stretch) for stretch in reversed(stretches)}
    assert [pair for stretch in stretches for pair in found[stretch]] == whole


def test_epochs_and_seeds_have_orders_of_their_own():
    stream = SampleStream(50, 0)
    orders = [tuple(stream.between(epoch * 50, epoch * 50 + 50).indices) for epoch in range(3)]
    orders.append(tuple(SampleStream(50, 1).between(0, 50).indices))
    assert len(set(orders)) == 4


@given(
    num_samples=st.integers(1, 30),
    data=st.data(),
    start=st.integers(0, 70),
    seed=st.integers(0, 3),
)
def test_any_batch_size_cuts_the_same_stream_from_any_start(num_samples, data, start, seed):
    batch_size = data.draw(st.integers(1, num_samples))
    sampler = StreamBatchSampler(num_samples, batch_size, seed=seed, start=start, num_batches=4)
    batches = list(sampler)
    assert [len(batch) for batch in batches] == [batch_size] * 4
    found = [index for batch in batches for index in batch]
    assert found == SampleStream(num_samples, seed).between(start, start + 4 * batch_size).indices.tolist()
    assert list(sampler) == batches
    gone_on = StreamBatchSampler(num_samples, batch_size, seed=seed, start=start + 2 * batch_size, num_batches=2)
    assert list(gone_on) == batches[2:]


@given(data=st.data(), num_samples=st.integers(1, 40), start=st.integers(0, 50), index=st.integers(0, 9))
def test_ranks_partition_each_batch_in_near_equal_shares(data, num_samples, start, index):
    batch_size = data.draw(st.integers(1, num_samples))
    world_size = data.draw(st.integers(1, batch_size))
    shares = [StreamShares(num_samples, batch_size, rank, world_size) for rank in range(world_size)]
    stretches = [share.of(start, index) for share in shares]
    bounds = [stretches[0][0], *[last for _, last in stretches]]
    assert stretches == list(pairwise(bounds))
    assert bounds[0] == start + index * batch_size
    assert bounds[-1] == bounds[0] + batch_size
    assert [last - first for first, last in stretches] == [share.size for share in shares]
    assert max(share.size for share in shares) - min(share.size for share in shares) <= 1


def test_a_sampler_of_each_rank_feeds_a_data_loader():
    options = {"batch_size": 5, "num_batches": 4, "seed": 2}
    whole = list(StreamBatchSampler(12, **options))
    loaders = [
        DataLoader(range(12), batch_sampler=StreamBatchSampler(12, rank=rank, world_size=2, **options))
        for rank in range(2)
    ]
    assert [len(loader) for loader in loaders] == [4, 4]
    for batch, first, second in zip(whole, *loaders, strict=True):
        assert first.tolist() + second.tolist() == batch


def test_a_sampler_without_an_end_goes_on_and_has_no_length():
    sampler = StreamBatchSampler(3, 2)
    assert len(list(islice(sampler, 100))) == 100
    with pytest.raises(TypeError, match="a sampler without num_batches has no length"):
        len(sampler)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 11}, r"batch_size must be at most the training set's 10 samples; got 11\."),
        ({"batch_size": 2, "world_size": 3}, r"batch_size must be at least the 3 ranks; got 2\."),
        ({"batch_size": 0}, r"batch_size must be at least the 1 ranks; got 0\."),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        StreamBatchSampler(10, **options)
