"""The networks of Hoffer et al. 2017: sizes as counted in the published code, and how they begin."""

import math

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from anybatch.workloads.networks import C1, C3, F1, AlexNet, ResNet44, WResNet16x4

NETWORKS = {
    F1: (1_462_794, 5, (1, 28, 28), 10),
    C1: (1_388_490, 4, (3, 32, 32), 10),
    C3: (1_405_860, 4, (3, 32, 32), 100),
    ResNet44: (661_338, 45, (3, 32, 32), 10),
    WResNet16x4: (2_800_804, 15, (3, 32, 32), 100),
    AlexNet: (61_110_184, 7, (3, 224, 224), 1000),
}
each_network = pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.__name__)


@each_network
def test_sizes_are_the_published_ones(network):
    num_parameters, num_norms, shape, num_classes = NETWORKS[network]
    with torch.device("meta"):
        model = network()
        assert model.eval()(torch.zeros(2, *shape)).shape == (2, num_classes)
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters
    assert sum(isinstance(module, _BatchNorm) for module in model.modules()) == num_norms


@pytest.mark.parametrize("network", [F1, C1, C3, ResNet44, WResNet16x4], ids=lambda network: network.__name__)
def test_a_step_reaches_every_parameter(network):
    torch.manual_seed(0)
    model = network()
    logits = model(torch.randn(4, *NETWORKS[network][2]))
    nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("network", [ResNet44, WResNet16x4])
def test_convolutions_begin_with_the_variance_of_he_over_channels_out(network):
    torch.manual_seed(0)
    convolutions = [module for module in network().modules() if isinstance(module, nn.Conv2d)]
    for convolution in convolutions:
        size = convolution.kernel_size[0] ** 2
        expected = math.sqrt(2 / (size * convolution.out_channels))
        assert convolution.bias is None
        assert convolution.weight.std().item() == pytest.approx(expected, rel=0.1 if size > 1 else 0.2)


def test_the_first_weights_of_resnet44_have_the_expected_norm():
    torch.manual_seed(0)
    weights = [module.weight for module in ResNet44().modules() if isinstance(module, nn.Conv2d)]
    assert math.sqrt(sum(weight.square().sum().item() for weight in weights)) == pytest.approx(56.05, rel=0.02)


def test_scales_of_batch_norm_begin_at_one():
    for module in (module for network in (F1, C1, ResNet44) for module in network().modules()):
        if isinstance(module, _BatchNorm):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()


def test_shortcuts_between_stages_halve_the_image_and_others_pass_it_on():
    shortcuts = [block.shortcut for stage in ResNet44().stages for block in stage]
    strides = [shortcut[0].stride for shortcut in shortcuts if not isinstance(shortcut, nn.Identity)]
    assert (len(shortcuts), strides) == (21, [(2, 2), (2, 2)])


def test_batch_norm_of_alexnet_stands_where_the_published_code_has_it():
    with torch.device("meta"):
        features = AlexNet().features
    kinds = "".join(
        {"Conv2d": "c", "MaxPool2d": "p", "BatchNorm2d": "b", "ReLU": "r"}.get(type(m).__name__, "") for m in features
    )
    assert kinds == "cpbr" + "cprb" + "crb" + "crb" + "cprb"
