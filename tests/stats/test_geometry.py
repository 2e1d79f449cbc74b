"""Adam's geometry: norms are weighed with the optimizer's own second moments, in every source."""

import pytest
import torch
from reference.gradient_moments import mean_gradient, moments_of_gradients
from reference.sample_norms import adam_factor
from stats.nets import BodyAndHead, make_samples, mean_loss, split, stack
from torch import nn

from anybatch.decide import estimate_noise_scale
from anybatch.errors import InputError
from anybatch.stats import GradientMoments, MicroBatches, PerSample
from anybatch.stats.geometry import AdamPreconditioner, choose_preconditioner

BETAS, EPS = (0.8, 0.9), 1e-3
ADAMS = {
    "Adam": torch.optim.Adam,
    "AdamW": torch.optim.AdamW,
    "NAdam": torch.optim.NAdam,
    "RAdam": torch.optim.RAdam,
}


def trained(make=torch.optim.Adam, num_steps: int = 3, **options) -> tuple[BodyAndHead, torch.optim.Optimizer]:
    """A model after some steps, its gradients empty."""
    model = BodyAndHead()
    optimizer = make(model.parameters(), lr=0.01, betas=BETAS, eps=EPS, **options)
    for seed in range(num_steps):
        optimizer.zero_grad()
        mean_loss(model, *stack(make_samples(8, seed))).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


@pytest.mark.parametrize("name", ADAMS)
def test_the_preconditioner_is_that_of_the_algorithm(name):
    model, optimizer = trained(ADAMS[name])
    for parameter in model.parameters():
        wanted = adam_factor(optimizer, parameter, BETAS, EPS)
        torch.testing.assert_close(AdamPreconditioner(optimizer)(parameter).double(), wanted, rtol=1e-5, atol=0.0)


def test_amsgrad_takes_the_largest_second_moments():
    model, optimizer = trained(amsgrad=True)
    weight = model.body.weight
    optimizer.state[weight]["max_exp_avg_sq"] *= 16
    plain = adam_factor(optimizer, weight, BETAS, 0.0)
    optimizer.state[weight]["exp_avg_sq"] = optimizer.state[weight]["max_exp_avg_sq"]
    largest = adam_factor(optimizer, weight, BETAS, EPS)
    assert not torch.allclose(plain, largest)
    torch.testing.assert_close(AdamPreconditioner(optimizer)(weight).double(), largest, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("source_type", [MicroBatches, PerSample])
def test_moments_are_those_of_the_weighed_gradients(source_type):
    model, optimizer = trained()
    samples = make_samples(12, seed=7)
    parts = split(samples, [5, 7])
    source = source_type(model, geometry="adam", optimizer=optimizer)
    for part in parts:
        with source.sub_batch(len(part)):
            (mean_loss(model, *stack(part)) * len(part) / 12).backward()
    moments = source.finish()
    pieces = parts if source_type is MicroBatches else [[sample] for sample in samples]
    factors = {name: adam_factor(optimizer, p, BETAS, EPS) for name, p in model.named_parameters()}
    gradients = [
        {name: grad * factors[name] for name, grad in mean_gradient(model, mean_loss, piece).items()}
        for piece in pieces
    ]
    sizes = [len(piece) for piece in pieces]
    twin = moments_of_gradients(gradients, sizes, sizes)
    assert moments.geometry == "adam"
    for index, module in enumerate(moments.modules):
        assert moments.mean_of_sq_norms[index].item() == pytest.approx(twin.A[module], rel=1e-5)
        assert moments.sq_norm_of_mean[index].item() == pytest.approx(twin.B[module], rel=1e-5)


class Deep(nn.Module):
    """Every way in which samples are told apart: sequences, pictures, words, norms, a layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm = nn.Embedding(7, 4), nn.LayerNorm(4)
        self.twice, self.conv = nn.Linear(4, 4), nn.Conv1d(4, 6, 3, groups=2)
        self.lstm, self.head = nn.LSTM(6, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, inputs):
        hidden = self.twice(torch.tanh(self.twice(self.norm(self.words(inputs)))))
        hidden = self.lstm(self.conv(hidden.mT).mT)[0]
        return self.head(hidden[:, -1])


def test_every_kind_of_layer_is_weighed_by_sample():
    torch.manual_seed(0)
    model = Deep()
    optimizer = torch.optim.Adam(model.parameters(), betas=BETAS, eps=EPS)
    samples = [(torch.randint(0, 7, (6,)), torch.randn(2)) for _ in range(6)]
    mean_loss(model, *stack(samples)).backward()
    optimizer.step()
    optimizer.zero_grad()
    names = [name for name, _ in model.named_parameters()]
    source = PerSample(model, names, geometry="adam", optimizer=optimizer)
    with source.sub_batch(6):
        mean_loss(model, *stack(samples)).backward()
    found = source.sample_sq_norms() * 36
    for index, (name, parameter) in enumerate(model.named_parameters()):
        factor = adam_factor(optimizer, parameter, BETAS, EPS)
        for row, sample in enumerate(samples):
            wanted = (mean_gradient(model, mean_loss, [sample])[name] * factor).square().sum().item()
            assert found[row, index].item() == pytest.approx(wanted, rel=1e-4, abs=1e-5 * found[:, index].max().item())


def test_with_second_moments_all_alike_the_noise_scale_is_sgds():
    model, optimizer = trained()
    for state in optimizer.state.values():
        state["exp_avg_sq"].fill_(0.04)
    noise = {}
    for geometry in ("sgd", "adam"):
        source = MicroBatches(model, geometry=geometry, optimizer=optimizer)
        steps = []
        for seed in range(4):
            model.zero_grad()
            for part in split(make_samples(12, seed), [4, 8]):
                with source.sub_batch(len(part)):
                    (mean_loss(model, *stack(part)) * len(part) / 12).backward()
            steps.append(source.finish())
        noise[geometry] = estimate_noise_scale(steps)
    assert noise["adam"].inverse == pytest.approx(noise["sgd"].inverse, rel=1e-4)
    assert (noise["sgd"].geometry, noise["adam"].geometry) == ("sgd", "adam")
    assert noise["adam"].modules["body"].geometry == "adam"
    assert "in Adam's geometry" in noise["adam"].reason
    assert "Adam" not in noise["sgd"].reason


def test_before_the_first_step_there_is_nothing_to_weigh_with():
    model, optimizer = trained(num_steps=0)
    assert not AdamPreconditioner(optimizer).has_state()
    source = MicroBatches(model, geometry="adam", optimizer=optimizer)
    with (
        pytest.raises(RuntimeError, match=r"second moments.* Measure after the optimizer's first step"),
        source.sub_batch(8),
    ):
        mean_loss(model, *stack(make_samples(8))).backward()
    assert not optimizer.state  # looking for state makes none


def test_an_optimizer_without_second_moments_is_refused_by_what_it_keeps():
    """Adamax has betas and eps, and a largest gradient where Adam has a mean square."""
    model, optimizer = trained(torch.optim.Adamax)
    assert AdamPreconditioner(optimizer).has_state()
    with pytest.raises(RuntimeError, match=r"second moments, `exp_avg_sq` with `step`; got none"):
        AdamPreconditioner(optimizer)(model.body.weight)


def test_what_the_optimizer_does_not_hold_counts_nothing():
    model, optimizer = trained()
    assert not AdamPreconditioner(optimizer)(BodyAndHead().body.weight).any()
    del optimizer.param_groups[0]["params"][0]  # the body's weight, as where a head is trained alone
    assert not AdamPreconditioner(optimizer)(model.body.weight).any()
    assert AdamPreconditioner(optimizer)(model.head.weight).all()


@pytest.mark.parametrize(("make", "decay"), [(torch.optim.Adam, 1e-3), (torch.optim.AdamW, 1e-2)])
def test_decay_does_not_let_words_that_were_never_seen_drown_the_others(make, decay):
    """With Adam's own decay their second moments are tiny and not zero: factors of 1 / (decay |w|)."""
    torch.manual_seed(0)
    words = nn.Embedding(50, 4)
    optimizer = make(words.parameters(), weight_decay=decay)
    for _ in range(20):
        optimizer.zero_grad()
        (words(torch.randint(25, (64,))) - 1).square().sum(1).mean().backward()
        optimizer.step()
    factor = AdamPreconditioner(optimizer)(words.weight)
    assert factor[25:].max() < 8 * factor[:25].mean()


def test_what_adam_has_seen_no_gradient_of_counts_no_more_than_the_floor_lets_it():
    """A word of the first time counts as if its second moment were a small part of the others'; a module nothing."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"words": nn.Embedding(5, 3), "head": nn.Linear(3, 2), "late": nn.Linear(3, 2)})
    optimizer = torch.optim.Adam(model.parameters(), betas=BETAS, eps=1e-8)

    def loss(words, late):
        hidden = model["words"](words)
        return (model["head"](hidden) + (model["late"](hidden) if late else 0)).square().mean()

    loss(torch.tensor([0, 1, 2]), False).backward()
    optimizer.step()
    optimizer.zero_grad()
    source = MicroBatches(model, geometry="adam", optimizer=optimizer)
    parts = [torch.tensor([0, 1, 4]), torch.tensor([2, 2, 3])]
    for words in parts:
        with source.sub_batch(3):
            (loss(words, True) / 2).backward()
    found = dict(zip(source.modules, source.finish().mean_of_sq_norms.tolist(), strict=True))
    wanted = 0.0
    for words in parts:
        optimizer.zero_grad()
        loss(words, True).backward()
        factor = adam_factor(optimizer, model["words"].weight, BETAS, 1e-8)
        wanted += (model["words"].weight.grad * factor).square().sum().item() / 2
    assert found["words"] == pytest.approx(wanted, rel=1e-5)
    assert found["late"] == 0.0
    assert found["head"] > 0.0


def test_geometry_and_optimizer_must_fit():
    model = nn.Linear(2, 1)
    with pytest.raises(InputError, match="must come with the optimizer"):
        MicroBatches(model, geometry="adam")
    with pytest.raises(InputError, match=r"must have betas and eps.*got SGD"):
        PerSample(model, geometry="adam", optimizer=torch.optim.SGD(model.parameters()))
    with pytest.raises(InputError, match="geometry must be one of sgd, adam; got 'lion'"):
        choose_preconditioner("lion", None)


def test_steps_of_two_geometries_are_not_averaged():
    gradients = {"all": torch.tensor([[1.0, 0.0], [0.0, 2.0]])}
    plain = GradientMoments.from_gradients(gradients, [1, 1])
    other = GradientMoments.from_parts(("all",), [1, 1], [1, 1], torch.ones(2, 1), torch.ones(1), "adam")
    with pytest.raises(ValueError, match=r"same geometry; got \['adam', 'sgd'\]"):
        estimate_noise_scale([plain, other])
