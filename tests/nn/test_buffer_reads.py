"""Compiled layers whose gradients depend on buffers that the pass moves: the same gradients as without a compiler."""

import copy

import pytest
import torch
from torch import nn

from anybatch.nn import (
    BatchRenorm2d,
    GroupKalmanNorm,
    KalmanNorm2d,
    MovingAverageBatchNorm2d,
    wire_kalman,
)
from anybatch.nn.buffer_reads import read_buffer

AT_ONCE = (0, 0, 0)
OPTIONS = {"dtype": torch.float64}


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def chain_of(layer) -> nn.Sequential:
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(6, 6, 3, padding=1, **OPTIONS) for _ in range(2)]
    model = nn.Sequential(convolutions[0], layer(), nn.ReLU(), convolutions[1], layer())
    assert wire_kalman(model, torch.zeros(8, 6, 5, 5).double()).priors == {"4": "1"}
    return model


def kalman() -> nn.Module:
    return chain_of(lambda: KalmanNorm2d(6, micro_batch_size=2, gain="adaptive", **OPTIONS))


def group_kalman() -> nn.Module:
    return chain_of(lambda: GroupKalmanNorm(2, 6, gain="adaptive", **OPTIONS))


def batch_renorm() -> nn.Module:
    return BatchRenorm2d(6, micro_batch_size=2, momentum=0.3, relaxation=AT_ONCE, **OPTIONS)


def relaxing_batch_renorm() -> nn.Module:
    return BatchRenorm2d(6, micro_batch_size=2, momentum=0.3, relaxation=(1, 5, 5), **OPTIONS)


def moving_average() -> nn.Module:
    return MovingAverageBatchNorm2d(6, micro_batch_size=2, num_averaged=2, warmup_updates=3, **OPTIONS)


def gradients(model: nn.Module, run) -> list[torch.Tensor]:
    model.zero_grad()
    x = draw(8, 6, 5, 5, seed=9).requires_grad_()
    (run(x) * draw(8, 6, 5, 5, seed=1)).sum().backward()
    return [x.grad, *(parameter.grad for parameter in model.parameters())]


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler hides it, unless warnings are errors
@pytest.mark.parametrize(
    ("make", "backend"),
    [
        (kalman, "aot_eager"),
        (group_kalman, "aot_eager"),
        (batch_renorm, "aot_eager"),
        (relaxing_batch_renorm, "aot_eager_decomp_partition"),
        (moving_average, "aot_eager_decomp_partition"),
    ],
)
def test_a_compiled_layer_has_the_gradients_of_the_statistics_it_read(make, backend):
    torch._dynamo.reset()
    model = make()
    for seed in range(3):
        model(1.5 * draw(8, 6, 5, 5, seed=seed) + draw(8, 6, 1, 1, seed=seed) + 0.3)
    twin = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for left, right in zip(gradients(model, compiled), gradients(twin, twin), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)
    for left, right in zip(model.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)


def test_a_buffer_that_is_read_under_a_compiler_is_a_copy():
    def read_and_move(buffer):
        read = read_buffer(buffer)
        buffer.add_(1)
        return read

    buffer = torch.zeros(3)
    compiled = torch.compile(read_and_move, fullgraph=True, backend="aot_eager")
    assert compiled(buffer).tolist() == [0, 0, 0]
    assert buffer.tolist() == [1, 1, 1]
