"""What all normalization layers refuse alike, and what all of them survive."""

import pickle

import pytest
import torch

from anybatch.errors import InputError
from anybatch.nn import BatchRenorm2d, GhostBatchNorm2d, GroupKalmanNorm, KalmanNorm2d, MovingAverageBatchNorm2d

LAYERS = {
    "ghost": GhostBatchNorm2d,
    "kalman": KalmanNorm2d,
    "group kalman": lambda channels, **options: GroupKalmanNorm(2, channels, **options),
    "batch renorm": BatchRenorm2d,
    "moving average": MovingAverageBatchNorm2d,
}


@pytest.mark.parametrize("eps", [-1.0, "a", None, float("nan")])
@pytest.mark.parametrize("name", LAYERS)
def test_eps_that_keeps_no_variance_above_zero_is_refused(name, eps):
    with pytest.raises(InputError, match="eps must be"):
        LAYERS[name](4, eps=eps)


@pytest.mark.parametrize("momentum", ["a", 2.0])
@pytest.mark.parametrize("name", [name for name in LAYERS if name != "group kalman"])
def test_a_momentum_that_is_no_share_is_refused(name, momentum):
    with pytest.raises(InputError, match="momentum must be"):
        LAYERS[name](4, momentum=momentum)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_that_compiles_itself_is_pickled(name):
    layer = LAYERS[name](4)
    layer.compile(backend="eager")
    batch = torch.randn(4, 4, 3, 3)
    again = pickle.loads(pickle.dumps(layer))
    torch.testing.assert_close(again(batch), LAYERS[name](4)(batch))
