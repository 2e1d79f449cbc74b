"""A model is looked at and left as it was; what torch.fx cannot trace costs the layers beside it no prior."""

import copy
import pickle

import pytest
import torch
from torch import nn

from anybatch.errors import InputError
from anybatch.nn import Moments, convert, propagation_rule, wire_kalman
from anybatch.nn.moment_propagation import find_propagation_rule

EXAMPLE = torch.zeros(4, 3, 8, 8)


def images(seed: int = 1) -> torch.Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def around(*parts: nn.Module) -> nn.Sequential:
    """A network of two norms with parts of eight channels in between."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), *parts, nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
    )


def kalman(model: nn.Module, **options):
    return convert(model, "kalman", example_inputs=EXAMPLE, micro_batch_size=2, **options)


# ------------------------------------------------------------------------------------------- left as it was


class Centred(nn.Module):
    """Keeps a moving average of its input, in a buffer that is assigned anew."""

    def __init__(self):
        super().__init__()
        self.register_buffer("center", torch.zeros(8))
        self.register_buffer("num_passes", torch.zeros(()))
        self.seen = []

    def forward(self, x):
        self.num_passes += 1
        self.seen.append(x)
        self.center = 0.9 * self.center + 0.1 * x.detach().mean((0, 2, 3))
        return x - self.center.view(1, -1, 1, 1)


class Branching(Centred):
    """What torch.fx cannot trace."""

    def forward(self, x):
        return super().forward(x) if x.shape[0] > 0 else x


class Counting(nn.Module):
    """What runs on values alone."""

    def forward(self, x):
        for _ in range(len(torch.nonzero(x > 1e9))):
            x = x + 1
        return x


def weight_normalized() -> nn.Module:
    with pytest.warns(FutureWarning, match="weight_norm"):
        return nn.utils.weight_norm(nn.Conv2d(8, 8, 1))


PARTS = {
    "traced": Centred,
    "opaque": Branching,
    "opaque with norm": lambda: nn.Sequential(Branching(), nn.BatchNorm2d(8)),
    "run on values": lambda: nn.Sequential(Branching(), Counting()),
    "weight norm": weight_normalized,
    "spectral norm": lambda: nn.utils.spectral_norm(nn.Conv2d(8, 8, 1)),
    "spectral parametrization": lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 8, 1)),
}


def holdings(model: nn.Module) -> dict[str, torch.Tensor]:
    """All tensors that the modules hold, by name: parameters, buffers, plain attributes."""
    plain = {
        f"{name}.{attribute}": value
        for name, module in model.named_modules()
        for attribute, value in vars(module).items()
        if isinstance(value, torch.Tensor)
    }
    return {**dict(model.named_parameters()), **dict(model.named_buffers()), **plain}


@pytest.mark.parametrize("fails", [False, True], ids=["converted", "refused"])
@pytest.mark.parametrize("part", list(PARTS))
def test_a_conversion_leaves_the_tensors_of_all_modules_as_they_were(part, fails):
    model = around(PARTS[part]())
    model(images())
    if fails:
        model.append(nn.Linear(1, 1))  # which the shapes do not fit
    before = holdings(model)
    values = {name: tensor.detach().clone() for name, tensor in before.items()}
    if fails:
        with pytest.raises(InputError, match="example_inputs must run through Sequential"):
            kalman(model)
    else:
        kalman(model, gain="fixed")
    found = holdings(model)
    assert found.keys() == before.keys()
    assert all(found[name] is tensor for name, tensor in before.items())
    assert all(torch.equal(found[name], value) for name, value in values.items())


@pytest.mark.parametrize("part", [Centred, Branching])
def test_lists_that_modules_fill_keep_what_they_had(part):
    model = around(part())
    model(images())
    seen = list(model[3].seen)
    kalman(model)
    assert [id(each) for each in model[3].seen] == [id(each) for each in seen]


@pytest.mark.parametrize("part", list(PARTS))
def test_a_converted_model_trains_on_real_tensors_and_can_be_saved(part):
    model = around(PARTS[part]())
    kalman(model)
    loss = model(images()).square().mean()
    loss.backward()
    assert type(loss) is torch.Tensor
    assert type(model[0].weight.grad) is torch.Tensor
    pickle.dumps(model.state_dict())


def test_lazy_layers_are_to_see_a_batch_first():
    model = around().append(nn.LazyConv2d(2, 1))
    with pytest.raises(InputError, match=r"'5.weight' must have its shape before the model is traced; got a lazy one"):
        kalman(model)
    model(images())
    assert type(model[5].weight) is nn.Parameter
    assert kalman(model).priors == {"4": "1"}


class Shifted(nn.Module):
    """Adds a tensor that is no attribute of any module."""

    def __init__(self):
        super().__init__()
        self.size = 8

    def forward(self, x):
        return x + torch.full((1, self.size, 1, 1), 3.0)


def test_a_constant_of_a_forward_takes_part_in_the_prior_and_leaves_no_attribute():
    model = around(Shifted())
    attributes = set(vars(model))
    conversion = kalman(model, gain="fixed")
    assert conversion.priors == {"5": "1"}
    assert set(vars(model)) == attributes
    plain = around(nn.Identity())
    kalman(plain, gain="fixed")
    other = copy.deepcopy(model)
    for each in (model, plain, other):
        each(images())
    shift = 3 * model[4].weight.sum((1, 2, 3))
    found, without = model[5].latest.prior.mean, plain[5].latest.prior.mean
    torch.testing.assert_close(found, without + shift)
    torch.testing.assert_close(other[5].latest.prior.mean, found)


# ------------------------------------------------------------------------------------------- only the leaf is a cut


class Doubling(nn.Module):
    """What torch.fx cannot trace, with or without a parameter that it shares."""

    def __init__(self, scale: nn.Parameter | None = None):
        super().__init__()
        self.scale = scale

    def forward(self, x):
        scaled = x if self.scale is None else x * self.scale
        return 2 * scaled if x.shape[0] > 0 else x


class Block(nn.Module):
    def __init__(self, scale: nn.Parameter | None = None):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.op = Doubling(scale)
        self.scale = scale
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)

    def forward(self, x):
        x = self.op(self.bn1(self.conv1(x)).relu())
        return self.bn2(self.conv2(x if self.scale is None else x * self.scale))


@pytest.mark.parametrize("scale", [None, nn.Parameter(torch.ones(8, 1, 1))], ids=["plain", "shared parameter"])
def test_a_module_that_cannot_be_traced_takes_no_other_out_of_the_graph(scale):
    conversion = kalman(around(nn.Sequential(Block(scale), Block(scale))))
    assert list(conversion.priors) == ["3.0.bn1", "3.0.bn2", "3.1.bn1", "3.1.bn2", "5"]
    assert list(conversion.cuts) == ["behind 3.0.op", "behind 3.1.op"]
    assert list(conversion.fallbacks) == ["1"]


# ------------------------------------------------------------------------------------------- modes


class Dropping(nn.Module):
    """Drops by function, in its own mode or always."""

    def __init__(self, drop=None, **keywords):
        super().__init__()
        self.drop, self.keywords = drop, keywords

    def forward(self, x):
        if self.drop is None:
            return nn.functional.dropout(x, 0.5, **self.keywords)
        return self.drop(x, self.training)


def by_keyword(x, training):
    return nn.functional.dropout(x, p=0.5, training=training)


@torch.fx.wrap
def dropped(x, training):
    return nn.functional.dropout(x, 0.5, training)


@propagation_rule(dropped)
def _dropped(input: Moments, training: bool) -> Moments:
    return find_propagation_rule(nn.functional.dropout).propagate(input, 0.5, training)


def by_position(x, training):
    return dropped(x, training)


def variance_of_prior(model: nn.Module) -> torch.Tensor:
    torch.manual_seed(2)
    model(images())
    return model[5].latest.prior.var


@pytest.mark.parametrize("drop", [by_keyword, by_position])
@pytest.mark.parametrize("was_training", [True, False])
def test_a_dropout_by_function_is_predicted_in_the_mode_that_its_module_runs_in(drop, was_training):
    wanted, found = around(nn.Dropout(0.5)), around(Dropping(drop))
    for model in (wanted, found):
        kalman(model.train(was_training), gain="fixed")
    for mode in (True, False):
        for model in (wanted, found):
            model.train()[3].train(mode)
        torch.testing.assert_close(variance_of_prior(found), variance_of_prior(wanted))
    copied = copy.deepcopy(found.train())
    found[3].eval()
    torch.testing.assert_close(variance_of_prior(copied), variance_of_prior(wanted.train()))


@pytest.mark.parametrize("keywords", [{}, {"training": True}], ids=["default", "constant"])
def test_a_dropout_that_is_always_on_is_predicted_so(keywords):
    wanted, found = around(nn.Dropout(0.5)), around(Dropping(**keywords))
    for model in (wanted, found):
        kalman(model.eval(), gain="fixed")
        model.train()
    wanted, found[3] = variance_of_prior(wanted), found[3].eval()
    torch.testing.assert_close(variance_of_prior(found), wanted)


class Headed(nn.Module):
    """Has an auxiliary head, in training alone."""

    def __init__(self):
        super().__init__()
        self.body, self.head = around(), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x = self.body(x)
        return (x, self.head(x)) if self.training else x


class Targeted(Headed):
    """Wants targets, in training alone."""

    def forward(self, x, targets=None):
        x = self.body(x)
        return [x - target for target in targets] if self.training else x


@pytest.mark.parametrize(
    ("model", "where"),
    [(Headed(), "the model"), (Targeted(), "the model"), (around(Dropping(lambda x, mode: -x if mode else x)), "'3'")],
)
def test_a_forward_that_is_another_one_in_training_is_told_of_where_it_was_not_converted_in_training(model, where):
    model.eval()
    conversion = kalman(model)
    assert not any(module.training for module in model.modules())
    (note,) = [note for note in str(conversion).splitlines() if "in training" in note]
    assert note.startswith(f"note: the forward of {where} is another one in training than in evaluation")
    assert wire_kalman(model, EXAMPLE).notes == conversion.notes[-1:]


@pytest.mark.parametrize("model", [Headed().train(), around(Dropping(by_keyword), nn.Dropout()).eval()])
def test_where_the_forward_is_the_one_of_training_nothing_is_told(model):
    assert "in training" not in str(kalman(model))
