"""A first look at a workload: losses that cannot be used, and what makes accumulation unequal to a large batch."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset, default_collate
from train.small_workloads import (
    CPU,
    Regularized,
    Stream,
    cross_entropy,
    labelled_vectors,
    vectors_workload,
)

from anybatch import InputError, RunError
from anybatch.probing.input_check import check_input
from anybatch.train.data import SampleDraws
from anybatch.train.loop import start_training
from anybatch.workloads import load_workload


def causes(workload) -> list[str]:
    return [warning.cause for warning in check_input(workload, CPU).warnings]


def images(num_samples=32):
    rng = torch.Generator().manual_seed(0)
    return TensorDataset(
        torch.randn(num_samples, 1, 6, 6, generator=rng), torch.randint(3, (num_samples,), generator=rng)
    )


def conv_net():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def conv_workload(**changes):
    return vectors_workload(model=conv_net, train_set=images(), **changes)


def contrastive(model, batch):
    """Each sample against all others of the batch."""
    out = nn.functional.normalize(model(batch[0]), dim=1)
    return nn.functional.cross_entropy(out @ out.T / 0.5, torch.arange(len(out)))


def masked_mean(model, batch):
    counts = (batch[1] > 0).float()
    losses = nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")
    return (losses * counts).sum() / counts.sum()


def gradient_by_hand(model, loss, batches) -> Tensor:
    """The mean of the batches' gradients."""
    total = None
    for batch in batches:
        found = torch.autograd.grad(loss(model, batch), list(model.parameters()))
        flat = torch.cat([grad.flatten() for grad in found]).double() / len(batches)
        total = flat if total is None else total + flat
    return total


def relative_difference_by_hand(workload) -> float:
    samples = SampleDraws(workload, CPU, 0, "check").samples(8)
    model = start_training(workload, CPU, seed=0).model
    whole = gradient_by_hand(model, workload.loss, [default_collate(samples)])
    halves = gradient_by_hand(model, workload.loss, [default_collate(samples[:4]), default_collate(samples[4:])])
    return float((halves - whole).norm() / whole.norm())


# refused


@pytest.mark.parametrize(
    ("loss", "kind", "message"),
    [
        (
            lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum"),
            InputError,
            r"the loss is sum-reduced: it doubles when the batch is doubled. Return the mean over samples",
        ),
        (
            lambda model, batch: -cross_entropy(model, batch) * len(batch[0]),
            InputError,
            "sum-reduced",
        ),
        (lambda model, batch: cross_entropy(model, batch) * float("nan"), RunError, "loss is nan on the first batch"),
        (lambda model, batch: cross_entropy(model, batch) / 0, RunError, "loss is inf on the first batch, before any"),
        (
            lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none"),
            InputError,
            r"must return a scalar; got shape \(2,\)\. Take the mean over samples",
        ),
        (lambda model, batch: cross_entropy(model, batch).item(), InputError, "must return a scalar Tensor; got float"),
        (lambda model, batch: None, InputError, "must return a scalar Tensor; got NoneType"),
        (lambda model, batch: cross_entropy(model, batch).detach(), InputError, "it has no gradient"),
        (lambda model, batch: batch[0].mean(), InputError, "must depend on the model's parameters"),
    ],
    ids=["sum", "negative sum", "nan", "infinite", "vector", "number", "nothing", "detached", "without model"],
)
def test_a_loss_that_cannot_be_used_is_refused(loss, kind, message):
    with pytest.raises(kind, match=message):
        check_input(vectors_workload(loss=loss), CPU)


def test_a_sum_is_seen_under_batch_norm_too():
    def summed(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")

    with pytest.raises(InputError, match="sum-reduced"):
        check_input(conv_workload(loss=summed), CPU)


def test_a_loss_of_zero_is_not_taken_for_a_sum():
    workload = vectors_workload(loss=lambda model, batch: 0 * cross_entropy(model, batch))
    assert check_input(workload, CPU).min_micro_batch_size == 1


# nothing to warn of


def with_dropout():
    return nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.5), nn.Linear(16, 3), nn.Dropout1d(0.2))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model": with_dropout},
        {"model": lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3))},
        {"loss": masked_mean, "batch_size_of": lambda batch: float((batch[1] > 0).sum())},
        {"train_set": Stream(labelled_vectors(20))},
        {"train_set": labelled_vectors(3), "base_batch_size": None},
        {"train_set": labelled_vectors(2), "base_batch_size": None},
    ],
    ids=["linear", "dropout", "layer norm", "masked mean with its counts", "stream", "3 samples", "2 samples"],
)
def test_a_clean_workload_has_nothing_to_warn_of(changes):
    found = check_input(vectors_workload(**changes), CPU)
    assert found.warnings == ()
    assert found.min_micro_batch_size == 1


def test_the_digits_have_nothing_to_warn_of():
    assert causes(load_workload("digits")) == []


# warned of


def test_batch_norm_is_warned_of_with_the_difference_it_makes():
    workload = conv_workload()
    (warning,) = check_input(workload, CPU).warnings
    assert warning.cause == "BatchNorm in train mode"
    assert warning.message.startswith("1 batch norms take their statistics from each micro-batch")
    assert warning.relative_difference == pytest.approx(relative_difference_by_hand(workload), rel=1e-4)
    assert warning.relative_difference > 0.01


def test_batch_norm_in_eval_mode_is_not_warned_of():
    class Frozen(nn.Sequential):
        def train(self, mode=True):
            return super().train(False)

    assert causes(vectors_workload(model=lambda: Frozen(*conv_net()), train_set=images())) == []


@pytest.mark.parametrize("loss", [contrastive, masked_mean], ids=["contrastive", "masked mean"])
def test_a_loss_that_couples_samples_is_warned_of_with_the_difference_it_makes(loss):
    workload = vectors_workload(loss=loss)
    (warning,) = check_input(workload, CPU).warnings
    assert warning.cause == "the loss couples samples"
    assert warning.relative_difference == pytest.approx(relative_difference_by_hand(workload), rel=1e-4)


def test_batch_norm_and_a_coupled_loss_are_told_apart():
    def loss(model, batch):
        return cross_entropy(model, batch) + 0.01 * contrastive(model, batch)

    assert causes(conv_workload(loss=loss)) == ["BatchNorm in train mode", "the loss couples samples"]


def test_draws_outside_dropout_layers_are_told_apart():
    def noisy(model, batch):
        return cross_entropy(model, (batch[0] + torch.randn_like(batch[0]), batch[1]))

    assert causes(vectors_workload(loss=noisy)) == ["random draws"]


# the smallest micro-batch


@pytest.mark.parametrize(
    ("model", "smallest"),
    [
        (lambda: nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3)), 2),
        (Regularized, 2),
        (lambda: nn.Linear(6, 3), 1),
    ],
    ids=["batch norm last", "batch norm and dropout", "linear"],
)
def test_batch_norm_on_vectors_needs_two_samples(model, smallest):
    found = check_input(vectors_workload(model=model), CPU)
    assert found.min_micro_batch_size == smallest
    assert bool(found.warnings) == (smallest == 2)


def test_batch_norm_on_images_trains_on_one_sample():
    assert check_input(conv_workload(), CPU).min_micro_batch_size == 1


def test_batch_norm_on_vectors_with_too_few_samples_to_compare_is_not_judged():
    workload = vectors_workload(
        model=Regularized, train_set=labelled_vectors(3), base_batch_size=None, loss=cross_entropy
    )
    found = check_input(workload, CPU)
    assert (found.min_micro_batch_size, found.warnings) == (2, ())


def test_another_value_error_of_the_model_passes_through():
    def loss(model, batch):
        if len(batch[0]) == 1:
            raise ValueError("a batch of one is beneath me")
        return cross_entropy(model, batch)

    with pytest.raises(ValueError, match="beneath me"):
        check_input(vectors_workload(loss=loss), CPU)


def test_the_check_repeats():
    first, second = (check_input(conv_workload(), CPU, seed=1).warnings for _ in range(2))
    assert first == second
    differences = [check_input(conv_workload(), CPU, seed=seed).warnings[0].relative_difference for seed in range(3)]
    assert all(one != other for one, other in pairwise(differences))


@pytest.mark.parametrize(("most", "causes"), [(4, []), (2, []), (1, ["not checked"])])
def test_the_check_is_halved_until_it_fits_in_memory(most, causes):
    """Batches of more than `most` samples are halved until they fit; where two do not fit it says so."""

    def loss(model, batch):
        if len(batch[0]) > most and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return cross_entropy(model, batch)

    found = check_input(vectors_workload(loss=loss), CPU)
    assert [warning.cause for warning in found.warnings] == causes
