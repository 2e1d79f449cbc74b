"""The character model: its text, its split, that no character sees what follows, and what its metric counts."""

import math
import sys

import pytest
import torch
from torch import nn

from anybatch import InputError
from anybatch.train.evaluate import evaluate
from anybatch.train.runtime import Runtime
from anybatch.workloads import load_workload
from anybatch.workloads.char_lm import (
    ALPHABET,
    CONTEXT,
    OTHER,
    BitsPerCharacter,
    CharTransformer,
    count_tokens,
    encode,
    next_character,
    read_text,
)


@pytest.fixture(scope="module")
def workload():
    return load_workload("char-lm")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return CharTransformer()


def windows(dataset):  # (inputs, targets)
    return dataset.tensors


def test_every_tenth_window_is_held_out_and_all_others_are_trained_on(workload):
    num_train, num_eval = workload.num_samples, len(workload.eval_set)
    assert num_train + num_eval == (len(read_text()) - 1) // CONTEXT
    assert num_eval == (num_train + num_eval) // 10
    assert windows(workload.train_set)[0].shape == (num_train, CONTEXT)
    first, ninth = windows(workload.train_set)[0][[0, 8]], windows(workload.eval_set)[0][0]
    text = encode(read_text())
    assert torch.equal(torch.cat([first[0], first[1], ninth]), torch.cat([text[:64], text[512:576], text[576:640]]))


def test_targets_are_the_characters_that_follow(workload):
    for dataset in (workload.train_set, workload.eval_set):
        inputs, targets = windows(dataset)
        assert torch.equal(inputs[:, 1:], targets[:, :-1])


def test_no_paragraph_comes_twice():
    paragraphs = read_text().split("\n\n")
    assert len(set(paragraphs)) == len(paragraphs) > 1000
    assert len(read_text()) > 200_000


def test_every_token_is_below_the_number_of_tokens_and_few_characters_share_the_last():
    tokens = encode(read_text())
    assert OTHER == len(ALPHABET) == 96
    assert tokens.min() == 0
    assert tokens.max() <= OTHER
    assert (tokens == OTHER).float().mean() < 0.01


def test_a_character_does_not_see_those_after_it(model):
    tokens = torch.randint(OTHER, (2, CONTEXT), generator=torch.Generator().manual_seed(1))
    changed = tokens.clone()
    changed[:, 40:] = (changed[:, 40:] + 1) % OTHER
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :40], after[:, :40])
    assert (before[:, 40:] - after[:, 40:]).abs().max() > 0.01


def test_a_character_sees_those_before_it_and_where_it_stands(model):
    tokens = torch.zeros(1, 8, dtype=torch.int64)
    other = tokens.clone()
    other[0, 0] = 5
    assert (model(tokens)[0, -1] - model(other)[0, -1]).abs().max() > 1e-3
    assert (model(tokens)[0, 0] - model(tokens)[0, 1]).abs().max() > 1e-3


def test_sizes_are_counted_in_tokens(workload):
    batch = tuple(tensor[:5] for tensor in windows(workload.train_set))
    assert workload.batch_size_of(batch) == count_tokens(batch) == 5 * CONTEXT


def test_the_loss_is_the_mean_over_characters(model):
    inputs, targets = torch.zeros(2, 4, dtype=torch.int64), torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    log_shares = model(inputs).log_softmax(-1)
    expected = -sum(log_shares[n, t, targets[n, t]] for n in range(2) for t in range(4)) / 8
    torch.testing.assert_close(next_character(model, (inputs, targets)), expected)


def test_vectors_are_not_decayed_and_the_rate_of_adam_can_be_scaled(workload, model):
    optimizer = workload.optimizer(model)
    decayed, kept = optimizer.param_groups
    assert {parameter.ndim for parameter in decayed["params"]} == {2}
    assert {parameter.ndim for parameter in kept["params"]} == {1}
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.01, 0)
    assert sum(len(group["params"]) for group in (decayed, kept)) == len(list(model.parameters()))
    assert optimizer.param_groups[0]["lr"] == 0.008


def test_bits_are_those_of_a_model_that_knows_nothing():
    uniform = lambda tokens: torch.zeros(*tokens.shape, 97)  # noqa: E731
    metric, other = BitsPerCharacter(), BitsPerCharacter()
    metric.update(uniform, (torch.zeros(3, 4, dtype=torch.int64), torch.ones(3, 4, dtype=torch.int64)))
    other.update(uniform, (torch.zeros(1, 4, dtype=torch.int64), torch.ones(1, 4, dtype=torch.int64)))
    metric.merge(other)
    assert metric.compute() == {"bits_per_character": pytest.approx(math.log2(97))}
    assert metric.num_characters == 16
    assert not BitsPerCharacter.higher_is_better
    assert math.isnan(BitsPerCharacter().compute()["bits_per_character"])


def test_batches_of_unequal_size_count_by_their_characters(model, workload):
    inputs, targets = windows(workload.eval_set)
    whole, parts = BitsPerCharacter(), BitsPerCharacter()
    with torch.no_grad():
        whole.update(model, (inputs[:12], targets[:12]))
        parts.update(model, (inputs[:3], targets[:3]))
        parts.update(model, (inputs[3:12], targets[3:12]))
    assert parts.compute() == pytest.approx(whole.compute(), rel=1e-5)


def test_some_steps_learn_more_than_how_often_characters_come(workload):
    torch.manual_seed(0)
    model = workload.model()
    optimizer = workload.optimizer(model)
    inputs, targets = windows(workload.train_set)
    rng = torch.Generator().manual_seed(0)
    for _ in range(60):
        chosen = torch.randint(len(inputs), (16,), generator=rng)
        optimizer.zero_grad()
        workload.loss(model, (inputs[chosen], targets[chosen])).backward()
        optimizer.step()
    shares = torch.bincount(targets.flatten(), minlength=97).double() / targets.numel()
    entropy = -(shares * shares.clamp(min=1e-12).log2()).sum().item()
    found = evaluate(workload, Runtime.detect("cpu"), model, batch_size=64, max_samples=200)["bits_per_character"]
    assert found < entropy - 0.3


def test_there_is_nothing_that_draws_or_keeps_statistics(model):
    assert not any(isinstance(module, nn.Dropout) for module in model.modules())
    assert not list(model.buffers())


def test_a_python_without_help_texts_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(InputError, match=r"'char-lm' needs pydoc_data, which this Python lacks. Use a full build"):
        load_workload("char-lm")
