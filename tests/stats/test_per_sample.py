"""Samples of a batch, told apart without their gradients: equal to the loop over samples, or refused with a reason."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference.gradient_moments import reference_moments
from reference.sample_norms import sample_sq_norms
from stats.nets import BodyAndHead, make_samples, mean_loss, split, stack
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from anybatch.errors import InputError
from anybatch.stats import PerSample, sample_gradients
from anybatch.workloads.char_lm import CharTransformer

BAR = 1e-5  # of the largest sample's norm: what the issue asks for


def bumpy_loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """A mean over samples, nonlinear in the outputs."""
    outputs = model(inputs).flatten(1)
    return ((outputs - targets[:, :1]).square() + outputs.sin()).mean(1).mean()


def samples_of(inputs: Tensor) -> list[tuple[Tensor, Tensor]]:
    targets = torch.linspace(-1, 1, len(inputs))[:, None]
    return list(zip(inputs, targets, strict=True))


def assert_equals_loop(model: nn.Module, inputs: Tensor, loss=bumpy_loss, bar: float = BAR) -> None:
    samples = samples_of(inputs)
    names = [name for name, _ in model.named_parameters()]
    source = PerSample(model, names)
    wanted = sample_sq_norms(model, loss, samples)
    for _ in range(2):  # the second time samples are known to be apart
        model.zero_grad()
        with source.sub_batch(len(samples)):
            loss(model, *stack(samples)).backward()
        found = source.sample_sq_norms() * len(samples) ** 2
        source.finish()
        for index, name in enumerate(names):
            error = (found[:, index] - wanted[name]).abs().max()
            assert error <= bar * wanted[name].max(), name


# ------------------------------------------------------------------------------------------- layers, drawn


@given(
    shape=st.lists(st.integers(1, 6), max_size=2),
    widths=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    num_samples=st.integers(2, 4),
    bias=st.booleans(),
    most=st.sampled_from([1, 2**20]),
)
def test_linear_layers_equal_the_loop(shape, widths, num_samples, bias, most):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(widths[0], widths[1], bias=bias), nn.Tanh(), nn.Linear(widths[1], 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample_gradients, "MOST_ELEMENTS", most)  # one sample at a time, or all at once
        assert_equals_loop(model, torch.randn(num_samples, *shape, widths[0]))


CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@given(
    num_axes=st.sampled_from([1, 2, 3]),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.sampled_from([0, 1, 2, "same", "valid"]),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2, 4]),
    channels=st.sampled_from([4, 8]),
    mode=st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
    bias=st.booleans(),
    extra=st.integers(0, 2),
)
def test_convolutions_equal_the_loop(num_axes, kernel, stride, padding, dilation, groups, channels, mode, bias, extra):
    torch.manual_seed(0)
    stride = 1 if padding == "same" else stride
    first = CONVOLUTIONS[num_axes](4, channels, kernel, stride, padding, dilation, groups, bias=bias, padding_mode=mode)
    sizes = [5 + extra + axis for axis in range(num_axes)]
    assert_equals_loop(
        nn.Sequential(first, nn.Tanh(), CONVOLUTIONS[num_axes](channels, 2, 1)), torch.randn(3, 4, *sizes)
    )


@given(
    num_rows=st.integers(1, 6),
    width=st.integers(1, 5),
    length=st.integers(0, 6),
    padding_idx=st.sampled_from([None, 0]),
    sparse=st.booleans(),
    seed=st.integers(0, 9),
)
def test_embeddings_with_repeated_rows_equal_the_loop(num_rows, width, length, padding_idx, sparse, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Embedding(num_rows, width, padding_idx, sparse=sparse), nn.Tanh(), nn.Linear(width, 2))
    shape = (3, length) if length else (3,)
    assert_equals_loop(model, torch.randint(0, num_rows, shape))


@pytest.mark.parametrize("positions", [1, 3, 500])
def test_short_and_long_sequences_take_the_way_that_costs_less_and_agree(positions, monkeypatch):
    torch.manual_seed(0)
    taken = []
    plain = sample_gradients.MatrixUse.grads
    monkeypatch.setattr(sample_gradients.MatrixUse, "grads", lambda self, part: taken.append(part) or plain(self, part))
    assert_equals_loop(nn.Linear(40, 50), torch.randn(3, positions, 40))
    assert bool(taken) == (positions == 500)  # the gradient itself is made for long ones alone


NORMS = {
    "layer norm": (nn.LayerNorm(4), (3, 5, 4)),
    "layer norm over two axes": (nn.LayerNorm([5, 4]), (3, 2, 5, 4)),
    "layer norm without bias": (nn.LayerNorm(4, bias=False), (3, 4)),
    "rms norm": (nn.RMSNorm(4), (3, 5, 4)),
    "group norm": (nn.GroupNorm(2, 4), (3, 4, 5, 5)),
    "group norm of vectors": (nn.GroupNorm(2, 4), (3, 4)),
    "instance norm": (nn.InstanceNorm2d(4, affine=True), (3, 4, 5, 5)),
    "batch norm of vectors": (nn.BatchNorm1d(4).eval(), (3, 4)),
    "batch norm of sequences": (nn.BatchNorm1d(4).eval(), (3, 4, 5)),
    "batch norm of pictures": (nn.BatchNorm2d(4).eval(), (3, 4, 5, 5)),
    "batch norm of volumes": (nn.BatchNorm3d(4).eval(), (3, 4, 3, 3, 3)),
}


@pytest.mark.parametrize("name", NORMS)
def test_normalization_layers_equal_the_loop(name):
    torch.manual_seed(0)
    layer, shape = copy.deepcopy(NORMS[name][0]), NORMS[name][1]
    with torch.no_grad():
        for tensor in (*layer.parameters(), *layer.buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 2.0)
    # a squared norm that the layer itself cancels is small beside what it is the difference of
    assert_equals_loop(nn.Sequential(layer, nn.Tanh()), torch.randn(shape), bar=BAR)


# ------------------------------------------------------------------------------------------- whole models


class Cell(nn.Module):
    """One cell at every step of a sequence."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell, self.head = cell, nn.Linear(5, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = inputs.new_zeros(len(inputs), 5)
        for step in inputs.unbind(1):
            hidden = self.cell(step, hidden)
        return self.head(hidden)


class Recurrent(nn.Module):
    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.inner, self.head = nn.LSTM(4, 5, batch_first=batch_first), nn.Linear(5, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.inner(inputs)[0])


class Words(nn.Module):
    """A transformer; its head is tied to the words, functionally or as a module; positions are learned."""

    def __init__(self, tie: str = "module", positions: str = "row", dropout: float = 0.0) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 8)
        self.places = nn.Parameter(torch.randn(1, 6, 8)) if positions == "parameter" else nn.Embedding(9, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=dropout, batch_first=True)
        self.head = nn.Linear(8, 11, bias=False)
        if tie == "module":
            self.head.weight = self.words.weight
        elif tie == "function":
            self.head = None
        self.positions = positions

    def forward(self, inputs: Tensor) -> Tensor:
        places = self.places
        if self.positions != "parameter":
            index = torch.arange(inputs.shape[1])
            places = self.places(index[None] if self.positions == "row" else index)
        hidden = self.layer(self.words(inputs) + places)
        return F.linear(hidden, self.words.weight) if self.head is None else self.head(hidden)


class Odd(nn.Module):
    """A parametrized layer, a scale, a token in front, and one layer used three times."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.utils.parametrizations.weight_norm(nn.Linear(4, 5))
        self.scale, self.token = nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(1, 1, 5))
        self.again = nn.Linear(5, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.cat([self.token.expand(len(inputs), -1, -1), self.first(inputs) * self.scale], 1)
        return torch.tanh(self.again(hidden)) + self.again(self.again(hidden)).mean(1, keepdim=True)


class ByHand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.tanh(inputs @ self.inner.weight.T) + self.inner(inputs)


class Checkpointed(nn.Module):
    def __init__(self, use_reentrant: bool) -> None:
        super().__init__()
        self.first, self.head, self.use_reentrant = nn.Linear(4, 4), nn.Linear(4, 2), use_reentrant

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(checkpoint(lambda x: self.first(x).tanh(), inputs, use_reentrant=self.use_reentrant))


WORDS = torch.randint(0, 11, (4, 6), generator=torch.Generator().manual_seed(0))
SQUARE = torch.randint(0, 11, (6, 6), generator=torch.Generator().manual_seed(0))
MODELS = {
    "recurrent cell": (lambda: Cell(nn.GRUCell(4, 5)), torch.randn(3, 6, 4)),
    "lstm": (Recurrent, torch.randn(3, 6, 4)),
    "words tied as a module": (Words, WORDS),
    "words tied in a function": (lambda: Words("function"), WORDS),
    "words not tied": (lambda: Words("not", "vector"), WORDS),
    "as many samples as positions": (lambda: Words("module", "vector"), SQUARE),
    "positions as a parameter": (lambda: Words("module", "parameter"), WORDS),
    "odd uses": (Odd, torch.randn(3, 6, 4)),
    "a weight used by hand and in its layer": (ByHand, torch.randn(3, 4)),
    "checkpointed": (lambda: Checkpointed(False), torch.randn(3, 4)),
    "transposed convolution": (lambda: nn.Sequential(nn.ConvTranspose2d(4, 3, 3), nn.PReLU()), torch.randn(3, 4, 5, 5)),
    "in place": (lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(True), nn.Linear(4, 2)), torch.randn(3, 4)),
    "char-lm": (CharTransformer, torch.randint(0, 97, (5, 64), generator=torch.Generator().manual_seed(0))),
}


@pytest.mark.parametrize("name", MODELS)
def test_whole_models_equal_the_loop(name):
    torch.manual_seed(0)
    make, inputs = MODELS[name]
    assert_equals_loop(make(), inputs)


class KeyedTwice(nn.Module):
    """Attention used twice; the gradient of the keys' bias is zero but for rounding, however it is summed."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.keys, self.values = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, hidden: Tensor) -> Tensor:
        for _ in range(2):
            hidden = hidden + F.scaled_dot_product_attention(
                self.queries(hidden), self.keys(hidden), self.values(hidden)
            )
        return hidden


def test_a_gradient_that_is_zero_but_for_rounding_is_not_taken_for_samples_that_see_each_other():
    torch.manual_seed(0)
    model = KeyedTwice()
    source = PerSample(model, ["queries", "keys.weight", "keys.bias", "values"])
    with source.sub_batch(5):
        model(torch.randn(5, 6, 8)).square().mean().backward()
    norms = source.sample_sq_norms().sum(0)
    assert norms[2] < 1e-10 * norms[1]


# ------------------------------------------------------------------------------------------- the step


def test_moments_are_those_of_parts_of_one_sample():
    model, samples = BodyAndHead(), make_samples(9)
    source = PerSample(model)
    for part in split(samples, [4, 5]):
        with source.sub_batch(len(part)):
            (mean_loss(model, *stack(part)) * len(part) / 9).backward()
    moments = source.finish()
    twin = reference_moments(model, mean_loss, [[sample] for sample in samples])
    assert moments.sizes.tolist() == [1.0] * 9
    for index, module in enumerate(moments.modules):
        assert moments.mean_of_sq_norms[index].item() == pytest.approx(twin.A[module], rel=1e-5)
        assert moments.sq_norm_of_mean[index].item() == pytest.approx(twin.B[module], rel=1e-5)


def test_equal_shares_of_unequal_parts_are_weighed_as_they_are():
    model, samples = BodyAndHead(), make_samples(9)
    source = PerSample(model)
    for part in split(samples, [3, 6]):
        with source.sub_batch(len(part), weight=0.5):
            (mean_loss(model, *stack(part)) / 2).backward()
    moments = source.finish()
    weights = [1 / 6] * 3 + [1 / 12] * 6
    twin = reference_moments(model, mean_loss, [[sample] for sample in samples], weights)
    torch.testing.assert_close(moments.weights, torch.tensor(weights).double())
    assert moments.mean_of_sq_norms[0].item() == pytest.approx(twin.A["body"], rel=1e-5)


def test_the_loss_scale_is_taken_out():
    model, samples = BodyAndHead(), make_samples(6)
    source, found = PerSample(model), []
    for scale in (1.0, 65536.0):
        model.zero_grad()
        with source.sub_batch(6):
            (scale * mean_loss(model, *stack(samples))).backward()
        found.append(source.finish(scale))
    torch.testing.assert_close(found[0].mean_of_sq_norms, found[1].mean_of_sq_norms, rtol=1e-12, atol=0.0)


def test_measuring_leaves_no_trace():
    torch.manual_seed(0)
    plain = Words()
    measured = copy.deepcopy(plain)
    samples = samples_of(WORDS)
    bumpy_loss(plain, *stack(samples)).backward()
    state = torch.get_rng_state()
    with PerSample(measured).sub_batch(4):
        bumpy_loss(measured, *stack(samples)).backward()
    assert torch.equal(torch.get_rng_state(), state)
    for left, right in zip(plain.parameters(), measured.parameters(), strict=True):
        assert torch.equal(left.grad, right.grad)
        assert not right._backward_hooks
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in measured.modules())


def test_bfloat16_autocast_is_within_its_digits():
    torch.manual_seed(0)
    model, inputs = Odd(), torch.randn(4, 6, 4)
    samples = samples_of(inputs)

    def loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = model(inputs)
        return bumpy_loss(lambda _: outputs.float(), inputs, targets)

    source = PerSample(model)
    with source.sub_batch(4):
        loss(model, *stack(samples)).backward()
    exact = sample_sq_norms(model, bumpy_loss, samples)
    found = source.sample_sq_norms()[:, source.modules.index("again")] * 16
    torch.testing.assert_close(found, exact["again.weight"] + exact["again.bias"], rtol=0.05, atol=0.0)  # 8 bits


def test_unused_parameters_count_as_zero_and_infinite_gradients_are_told():
    model = nn.ModuleDict({"used": nn.Linear(2, 1), "unused": nn.Linear(2, 1)})
    source = PerSample(model)
    inputs = torch.tensor([[1.0, 2.0], [math.inf, 1.0], [0.0, 1.0]])
    with source.sub_batch(3):
        model["used"](inputs).sum(1).mean().backward()
    moments = source.finish()
    assert int(moments.num_non_finite) == 1
    assert moments.mean_of_sq_norms[1].item() == 0.0


# ------------------------------------------------------------------------------------------- what is refused


class JoinsSamples(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs)
        return self.head(hidden - hidden.mean(0))


class AddedAndMultiplied(nn.Module):
    """A table for all samples whose second use is not an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.places, self.first = nn.Embedding(3, 4), nn.Linear(4, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        places = self.places(torch.arange(3))
        return torch.tanh(self.first(inputs) + places) * places.exp()


class Constant(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs, weight):
        ctx.save_for_backward(inputs)
        return inputs * weight

    @staticmethod
    def backward(ctx, grad):
        return grad, (grad * ctx.saved_tensors[0]).sum(0)


class CustomFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))

    def forward(self, inputs: Tensor) -> Tensor:
        return Constant.apply(inputs, self.weight)


REFUSED = {
    "train-mode batch norm": (lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), (5, 4), "batch norm in train"),
    "a mean over the batch": (JoinsSamples, (5, 4), "'first.* joins samples"),
    "a table that is not added alone": (AddedAndMultiplied, (5, 3, 4), "'places.weight' .* not the sum of the samples"),
    "samples along the second axis": (lambda: Recurrent(False), (6, 6, 4), "'inner.weight_.h_l0' cannot be told"),
    "another number of rows": (lambda: nn.Sequential(nn.Flatten(0, 1), nn.Linear(4, 2)), (5, 3, 4), "does not tell"),
    "a custom function": (CustomFunction, (5, 4), "no operation with it was seen"),
    "reentrant checkpoint": (lambda: Checkpointed(True), (5, 4), "no operation with it was seen"),
    "a random module": (
        lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
        (5, 3, 4),
        "MultiheadAttention cannot be run sample by sample",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_told_apart_is_refused_with_the_reason(name):
    torch.manual_seed(0)
    make, shape, reason = REFUSED[name]
    model, inputs = make(), torch.randn(shape, requires_grad=True)
    source = PerSample(model)
    with pytest.raises(RuntimeError, match=reason), source.sub_batch(shape[0]):
        model(inputs).square().mean().backward()
    assert not any(module._forward_hooks for module in model.modules())
    assert not any(parameter._backward_hooks for parameter in model.parameters())


def test_a_second_backward_is_refused():
    model = nn.Linear(3, 2)

    def forward_and_backward() -> None:
        model(torch.randn(4, 3)).square().mean().backward()

    def twice() -> None:
        with PerSample(model).sub_batch(4):
            forward_and_backward()
            forward_and_backward()

    with pytest.raises(RuntimeError, match="one was reached twice"):
        twice()


def test_a_penalty_on_the_weights_is_refused():
    model = nn.Linear(3, 2)
    source = PerSample(model)
    with pytest.raises(RuntimeError, match="does not tell samples apart"), source.sub_batch(4):
        (model(torch.randn(4, 3)).square().mean() + model.weight.square().sum()).backward()


def test_a_forward_pass_outside_is_refused():
    model = nn.Linear(3, 2)
    loss = model(torch.randn(4, 3)).square().mean()
    with pytest.raises(RuntimeError, match="the forward pass must run inside"), PerSample(model).sub_batch(4):
        loss.backward()


def test_an_embedding_that_counts_over_the_batch_is_refused():
    model = nn.Embedding(4, 2, scale_grad_by_freq=True)
    with pytest.raises(RuntimeError, match="scale_grad_by_freq"), PerSample(model).sub_batch(3):
        model(torch.tensor([0, 1, 1])).square().mean().backward()


def test_a_compiled_model_and_broken_sizes_are_refused():
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._orig_mod = nn.Linear(2, 1)

    with pytest.raises(TypeError, match="compiled model"):
        PerSample(Wrapper())
    source = PerSample(nn.Linear(2, 1))
    with pytest.raises(InputError, match=r"whole number of samples; got 2\.5"), source.sub_batch(2.5):
        pass
    with pytest.raises(InputError, match="stride must be at least 1; got 0"):
        PerSample(nn.Linear(2, 1), stride=0)
    with pytest.raises(RuntimeError, match="at least one sub_batch"):
        source.finish()
