"""Every kind of conversion on networks as they are used: what is kept, what is told, and the way back."""

import copy
import warnings
from typing import get_args

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from anybatch.errors import InputError
from anybatch.nn import (
    BatchRenorm2d,
    GhostBatchNorm2d,
    Kind,
    MovingAverageBatchNorm1d,
    MovingAverageBatchNorm2d,
    convert,
)
from anybatch.nn.conversion_targets import BATCH_TYPES, OWN_TYPES, TARGETS
from anybatch.nn.optimizer_rebinding import rebind

torchvision = pytest.importorskip("torchvision")
# kinds that keep the running statistics, and evaluate as BatchNorm does
KEEPING = tuple(kind for kind in TARGETS if kind not in ("batch", "group", "group_kalman", "layer", "sync"))
DROPPING = ("group", "layer", "group_kalman")
WIRED = tuple(kind for kind, target in TARGETS.items() if target.is_wired)
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def images(num_samples=2, size=32):
    return torch.randn(num_samples, 3, size, size, generator=torch.Generator().manual_seed(0))


def trained_a_little(model):
    """Statistics and parameters that differ from those of a fresh layer."""
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, BATCH_TYPES):
                for tensor in (module.weight, module.running_var):
                    tensor.copy_(0.5 + torch.rand(tensor.shape, generator=rng))
                for tensor in (module.bias, module.running_mean):
                    tensor.copy_(0.1 * torch.randn(tensor.shape, generator=rng))
    return model


def converted(model, kind, size=32, **options):
    """Convert with an image for those kinds that follow one through the model."""
    return convert(model, kind, example_inputs=images(2, size) if kind in WIRED else None, **options)


def small_model():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, eps=0.01, momentum=0.3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(8)
    )
    model.append(nn.BatchNorm1d(8))
    model(images(4, 8))
    return trained_a_little(model)


# ------------------------------------------------------------------------------------------- the table


def test_the_table_has_every_kind_and_each_has_a_layer_for_every_dimension():
    assert tuple(TARGETS) == get_args(Kind)
    for target in TARGETS.values():
        assert len(target.types) == 3
    assert not set(OWN_TYPES) & set(BATCH_TYPES)


# ------------------------------------------------------------------------------------------- networks

NETWORKS = {
    "resnet18": (lambda: torchvision.models.resnet18(), 20),
    "resnet50": (lambda: torchvision.models.resnet50(), 53),
    "densenet121": (lambda: torchvision.models.densenet121(), 121),
    "mobilenet_v3_small": (lambda: torchvision.models.mobilenet_v3_small(), 34),
    "efficientnet_b0": (lambda: torchvision.models.efficientnet_b0(), 49),
    "faster_rcnn_backbone": (lambda: torchvision.models.detection.fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None).backbone, 53),
    "deeplabv3": (lambda: torchvision.models.segmentation.deeplabv3_resnet50(
        weights=None, weights_backbone=None), 60),
    "fcn": (lambda: torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None), 54),
}  # fmt: skip


def output_of(model, x):
    output = model(x)
    return torch.cat([each.flatten() for each in output.values()]) if isinstance(output, dict) else output


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    make, num_norms = NETWORKS[request.param]
    torch.manual_seed(0)
    return trained_a_little(make()).eval(), num_norms


@torch.no_grad()
def test_networks_convert_to_every_kind_and_come_back_to_what_they_were(network):
    original, num_norms = network
    model = copy.deepcopy(original)
    wanted = output_of(model, images())
    for kind in KEEPING:
        conversion = converted(model, kind)
        assert len(conversion.replaced) == num_norms
        assert torch.equal(output_of(model, images()), wanted), kind
        assert not any(module.training for module in model.modules())
        assert output_of(model.train(), images(8)).isfinite().all()
        model.eval().load_state_dict(original.state_dict(), strict=False)
    assert len(convert(model, "batch").replaced) == num_norms
    assert torch.equal(output_of(model, images()), wanted)
    assert model.state_dict().keys() == original.state_dict().keys()
    assert repr(model) == repr(original)


@torch.no_grad()
@pytest.mark.parametrize("kind", DROPPING)
def test_networks_lose_their_statistics_to_group_norm_and_are_told(network, kind):
    model = copy.deepcopy(network[0])
    before = dict(model.named_parameters())
    conversion = converted(model, kind)
    assert len(conversion.replaced) == network[1]
    after = dict(model.named_parameters())
    assert all(parameter is after[name] for name, parameter in before.items())
    assert len(after) == len(before) or kind in WIRED
    assert not any(name.endswith(STATISTICS) for name in model.state_dict())
    assert "the running statistics have no home in GroupNorm" in str(conversion)
    assert output_of(model, images()).isfinite().all()


def test_a_network_without_batch_norm_says_so():
    model = torchvision.models.convnext_tiny()
    conversion = convert(model, "group")
    assert conversion.replaced == ()
    assert "note: there is no batch normalization in it, so nothing to replace" in str(conversion)


@pytest.mark.parametrize("name", ["resnet18", "resnet26d"])
def test_networks_of_timm_convert(name):
    timm = pytest.importorskip("timm")
    model = timm.create_model(name).eval()
    wanted = model(images())
    num_norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    for kind in KEEPING:
        assert len(converted(model, kind).replaced) == num_norms
        assert torch.equal(model(images()), wanted)
    assert len(convert(model, "batch").replaced) == num_norms


# ------------------------------------------------------------------------------------------- batch norm that activates


def activated_model(act_layer=nn.ReLU, **options):
    """Two of timm's layers that normalize, drop and activate."""
    layers = pytest.importorskip("timm.layers")
    torch.manual_seed(0)
    norms = [layers.BatchNormAct2d(8, eps=0.01, act_layer=act_layer, **options) for _ in range(2)]
    return trained_a_little(nn.Sequential(nn.Conv2d(3, 8, 3), norms[0], nn.Conv2d(8, 8, 3), norms[1]))


@torch.no_grad()
@pytest.mark.parametrize(
    "name", ["resnetv2_50", "skresnet18", "efficientnet_b0", "mobilenetv3_small_050", "densenet121"]
)
def test_networks_of_timm_whose_norms_activate_convert_and_come_back(name):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    original = trained_a_little(timm.create_model(name)).eval()
    model = copy.deepcopy(original)
    wanted = model(images())
    num_norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    for kind in ("ghost", "kalman", "sync"):
        assert len(converted(model, kind).replaced) == num_norms
        assert torch.equal(model(images()), wanted), kind
        model.load_state_dict(original.state_dict())
    assert len(convert(model, "batch").replaced) == num_norms
    assert torch.equal(model(images()), wanted)
    assert repr(model) == repr(original)


@pytest.mark.parametrize("kind", [*KEEPING, "sync"])
def test_a_norm_that_activates_keeps_its_tensors_activation_and_names(kind):
    model = activated_model(act_layer=nn.LeakyReLU, drop_layer=nn.Dropout).eval()
    old, names = model[1], model.state_dict().keys()
    wanted = model(images(4, 8))
    assert converted(model, kind, 8).replaced == ("1", "3")
    new = model[1]
    assert (new.act, new.drop, new.eps) == (old.act, old.drop, 0.01)
    assert all(getattr(new, name) is getattr(old, name) for name in ("weight", "bias", *STATISTICS))
    assert names <= model.state_dict().keys()
    assert torch.equal(copy.deepcopy(model)(images(4, 8)), wanted)
    convert(model, "batch")
    assert type(model[1]) is type(old)
    assert vars(model[1]).keys() == vars(old).keys()
    assert torch.equal(model(images(4, 8)), wanted)


@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_norm_that_activates_trains_and_activates_under_every_kind(kind):
    model = activated_model()
    conversion = converted(model, kind, 8)
    if kind == "sync":  # which trains on accelerators alone
        model.eval()
    output = model(images(4, 8))
    assert (output >= 0).all()
    assert (output == 0).any()
    output.square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert len(str(conversion).splitlines()) >= 1 + len(conversion.replaced)
    assert all("ReLU" in row for row in str(conversion).splitlines()[1 : 1 + len(conversion.replaced)])


def test_options_of_a_norm_that_activates_are_kept():
    model = activated_model()
    convert(model, "ghost", ghost_batch_size=2)
    convert(model, "ghost", running_update="average")
    assert (model[1].ghost_batch_size, model[1].running_update) == (2, "average")
    assert isinstance(model[1], GhostBatchNorm2d)


@pytest.mark.parametrize("kind", WIRED)
@pytest.mark.parametrize("sources", [None, {"3": [["1", "2"]]}])
def test_a_prior_counts_the_activation_of_the_norm_before_it(kind, sources):
    model = activated_model(drop_layer=nn.Dropout2d)
    plain = nn.Sequential(model[0], nn.BatchNorm2d(8, eps=0.01), nn.ReLU(), model[2], nn.BatchNorm2d(8, eps=0.01))
    plain[1].load_state_dict(model[1].state_dict())
    plain[4].load_state_dict(model[3].state_dict())
    model[1].drop.p = 0.0
    priors = []
    for each, path in ((model, sources), (plain, sources and {"4": [["1", "2", "3"]]})):
        inputs = images(4, 8) if sources is None else None
        conversion = convert(each, kind, example_inputs=inputs, sources=path)
        assert (len(conversion.priors), conversion.cuts) == (1, {})
        each(images(4, 8))
        priors.append(each[-1].latest.prior)
    torch.testing.assert_close(priors[0].mean, priors[1].mean)
    torch.testing.assert_close(priors[0].var, priors[1].var)


class Square(nn.Module):
    def __init__(self, inplace=False):
        super().__init__()

    def forward(self, input):
        return input.square()


def test_behind_a_norm_whose_activation_has_no_rule_is_a_cut():
    model = activated_model(act_layer=Square)
    conversion = converted(model, "kalman", 8)
    assert conversion.cuts == {"behind 1": "no rule for Square, the activation of the layer"}
    assert conversion.priors == {"3": "behind 1"}
    model(images(4, 8))
    hidden = model[1](model[0](images(4, 8)))
    assert model[3].latest.prior is not None
    assert (hidden >= 0).all()
    with pytest.raises(InputError, match="must begin at a layer whose activation has a propagation rule; got no rule"):
        convert(model, "kalman", sources={"3": [["1", "2"]]})


@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_network_of_timm_that_works_in_place_trains_under_every_kind(kind):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("seresnet18", num_classes=3)
    converted(model, kind)
    model(images(4)).square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


# ------------------------------------------------------------------------------------------- what is kept


@pytest.mark.parametrize("kind", KEEPING)
def test_tensors_settings_hooks_and_modes_are_kept(kind):
    model = small_model().eval()
    model[5].train()
    model[1].weight.requires_grad_(False)
    seen = []
    handle = model[1].register_forward_hook(lambda module, inputs, output: seen.append(type(module)))
    old = model[1]
    tensors = [old.weight, old.bias, old.running_mean, old.running_var, old.num_batches_tracked]
    converted(model, kind, 8)
    new = model[1]
    kept = [new.weight, new.bias, new.running_mean, new.running_var, new.num_batches_tracked]
    assert all(each is other for each, other in zip(tensors, kept, strict=True))
    assert (new.eps, new.momentum, new.training, model[5].training) == (0.01, 0.3, False, True)
    assert not new.weight.requires_grad
    model(images(4, 8))
    assert seen == [type(new)]
    handle.remove()
    model(images(4, 8))
    assert len(seen) == 1


@pytest.mark.parametrize("kind", [*KEEPING, *DROPPING, "sync"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_new_tensors_have_the_dtype_and_device_of_the_old(kind, dtype):
    model = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)).to("meta", dtype)
    convert(model, kind, example_inputs=torch.zeros(2, 8, 4, 4, device="meta", dtype=dtype))
    tensors = [*model.parameters(), *(tensor for tensor in model.buffers() if tensor.is_floating_point())]
    assert all(tensor.device.type == "meta" for tensor in model.state_dict().values())
    assert model[0].weight.dtype == dtype
    assert all(tensor.dtype in (dtype, torch.promote_types(dtype, torch.float32)) for tensor in tensors)


@pytest.mark.parametrize("kind", [*KEEPING, *DROPPING])
def test_an_optimizer_and_an_average_of_the_weights_go_on(kind):
    model = small_model()
    average = torch.optim.swa_utils.AveragedModel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(images(4, 8)).square().sum().backward()
    optimizer.step()
    conversion = converted(model, kind, 8, optimizer=optimizer)
    has_others = kind not in ("ghost", "batch_renorm")  # than the tensors of BatchNorm
    assert ("convert an average of the weights too" in str(conversion)) == has_others
    if has_others:
        converted(average.module, kind, 8)
    weight = model[1].weight.detach().clone()
    momentum = optimizer.state[model[1].weight]["momentum_buffer"].clone()
    optimizer.zero_grad()
    model(images(4, 8)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model[1].weight, weight)
    assert not torch.equal(optimizer.state[model[1].weight]["momentum_buffer"], momentum)
    assert all(parameter.grad is not None for group in optimizer.param_groups for parameter in group["params"])
    average.update_parameters(model)


@pytest.mark.parametrize("kind", KEEPING)
def test_checkpoints_go_to_batch_norm_and_come_from_it(kind):
    model, plain = small_model(), small_model()
    conversion = converted(model, kind, 8)
    model.load_state_dict(plain.state_dict())
    model(images(4, 8))
    added = sorted({name.split(".")[-1] for name in model.state_dict().keys() - plain.state_dict().keys()})
    told = f"checkpoints hold {', '.join(added)} too: for batch norm, save them after convert(model, 'batch')"
    assert (told in str(conversion)) == bool(added)
    convert(model, "batch")
    plain.load_state_dict(model.state_dict())
    assert torch.equal(plain.eval()(images(4, 8)), model.eval()(images(4, 8)))


def test_a_conversion_back_says_that_averages_have_other_tensors_and_nothing_of_checkpoints():
    model = small_model()
    converted(model, "kalman", 8)
    told = str(convert(model, "batch"))
    assert "convert an average of the weights" in told
    assert "checkpoints" not in told
    assert "average" not in str(convert(model, "ghost"))


def test_options_of_a_kind_reach_its_layers_and_momentum_may_be_given():
    model = small_model()
    convert(model, "batch_renorm", micro_batch_size=2, relaxation=(0, 1, 2), momentum=0.01)
    assert (model[1].micro_batch_size, model[1].relaxation, model[1].momentum) == (2, (0, 1, 2), 0.01)
    convert(model, "moving_average", num_averaged=4)
    assert (model[1].num_averaged, model[1].micro_batch_size, model[1].momentum) == (4, None, 0.01)
    assert not hasattr(model[1], "relaxation")


OPTIONS = {
    "ghost": ({"ghost_batch_size": 2, "running_update": "average"}, {"ghost_batch_size": 4}),
    "kalman": ({"micro_batch_size": 2, "state_space": "raw", "prior_weight": 0.9}, {"gain": "fixed"}),
    "group_kalman": ({"num_groups": 2, "state_space": "raw", "prior_weight": 0.9}, {"gain": "fixed"}),
    "batch_renorm": ({"micro_batch_size": 2, "r_max": 2.0, "relaxation": (0, 1, 2), "momentum": 0.5}, {"d_max": 1.0}),
    "moving_average": ({"micro_batch_size": 2, "num_averaged": 4, "momentum": 0.5}, {"r_max": 2.0}),
}


def options_of(layer):
    return {**vars(layer), **vars(getattr(layer, "options", nn.Module()))}


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_layer_of_the_kind_keeps_the_options_that_are_not_given(kind):
    first, then = OPTIONS[kind]
    model = small_model()
    converted(model, kind, 8, **first)
    converted(model, kind, 8, **then)
    for layer in (model[1], model[5]):
        found = options_of(layer)
        assert {name: found[name] for name in (*first, *then)} == {**first, **then}
        model(images(4, 8))


def test_a_layer_of_the_kind_keeps_what_its_prior_has_learnt():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    converted(model, "kalman", 8, optimizer=optimizer, transition="learned")
    learnt = dict(model[4].named_parameters())
    conversion = converted(model, "kalman", 8, optimizer=optimizer, micro_batch_size=2)
    assert "prior_scale" in learnt
    assert all(parameter is learnt[name] for name, parameter in model[4].named_parameters())
    assert conversion.notes == ()
    converted(model, "kalman", 8, optimizer=optimizer, transition="analytic")
    assert model[4].prior_logit is learnt["prior_logit"]
    assert not hasattr(model[4], "prior_scale")
    converted(model, "kalman", 8, optimizer=optimizer, prior_weight=0.8)
    assert model[4].prior_logit.sigmoid().item() == pytest.approx(0.8)
    converted(model, "kalman", 8, optimizer=optimizer, gain="adaptive")
    assert not hasattr(model[4], "prior_logit")
    model[4].gain_moments.fill_(0.5)
    converted(model, "kalman", 8, optimizer=optimizer, micro_batch_size=4)
    assert model[4].gain_moments.tolist() == [0.5, 0.5]
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert {id(parameter) for parameter in held} == {id(parameter) for parameter in model.parameters()}


def test_splits_and_micro_batches_take_each_others_place_and_none_is_the_default():
    model = small_model()
    for given, splits, size in (
        ({"micro_batch_size": 2}, 1, 2), ({"splits": 2}, 2, None), ({}, 2, None), ({"micro_batch_size": 4}, 1, 4),
        ({"micro_batch_size": None}, 1, None),
    ):  # fmt: skip
        converted(model, "kalman", 8, **given)
        assert (model[1].options.splits, model[1].options.micro_batch_size) == (splits, size)
    converted(model, "ghost", ghost_batch_size=2)
    converted(model, "ghost", ghost_batch_size=None)
    assert model[1].ghost_batch_size == 32


def test_each_kind_converts_over_to_each_other_and_takes_new_options():
    model = small_model().eval()
    wanted = model(images(4, 8))
    for kind in KEEPING:
        for other in KEEPING:
            converted(model, kind, 8)
            assert converted(model, other, 8).replaced == ("1", "5")
            assert type(model[1]) is TARGETS[other].types[1]
            assert torch.equal(model(images(4, 8)), wanted)


# ------------------------------------------------------------------------------------------- frozen batch norm


@pytest.mark.parametrize("kind", ["batch", *KEEPING, *DROPPING])
def test_frozen_batch_norm_is_replaced_and_its_weights_stay_frozen(kind):
    frozen = torchvision.ops.FrozenBatchNorm2d(8, eps=0.01)
    for tensor in frozen.buffers():
        tensor.uniform_(0.5, 1.5)
    model = nn.Sequential(frozen).eval()
    x = torch.randn(4, 8, 3, 3)
    wanted = model(x)
    assert convert(model, kind, example_inputs=x).replaced == ("0",)
    assert not any(parameter.requires_grad for parameter in (model[0].weight, model[0].bias))
    assert model[0].weight.data_ptr() == frozen.weight.data_ptr()
    assert model[0].eps == 0.01
    if kind not in DROPPING:
        torch.testing.assert_close(model(x), wanted)
        assert model[0].running_mean is frozen.running_mean


def test_the_backbone_of_a_pretrained_detector_is_replaced():
    model = torchvision.models.resnet18(norm_layer=torchvision.ops.FrozenBatchNorm2d).eval()
    wanted = model(images())
    assert len(convert(model, "ghost").replaced) == 20
    torch.testing.assert_close(model(images()), wanted)


# ------------------------------------------------------------------------------------------- groups


def test_group_norm_chooses_its_groups_by_the_channels_of_a_layer():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(16), nn.BatchNorm2d(512))
    convert(model, "group")
    assert [layer.num_groups for layer in model] == [1, 4, 32]
    fresh = nn.Sequential(nn.BatchNorm2d(16))
    assert convert(fresh, "group", num_groups=8).model[0].num_groups == 8


def test_groups_that_do_not_divide_are_refused_before_anything_changes():
    model = nn.Sequential(nn.BatchNorm2d(8), nn.BatchNorm2d(10))
    with pytest.raises(InputError, match=r"num_groups must divide .*; got 4 for 10\. Choose 2 or 5, or leave it out"):
        convert(model, "group", num_groups=4)
    assert type(model[0]) is nn.BatchNorm2d


def test_sync_batch_norm_is_torchs_own_and_comes_back():
    model = small_model().append(nn.Unflatten(1, (8, 1, 1, 1))).append(nn.BatchNorm3d(8, momentum=None)).eval()
    original, tensors = repr(model), model.state_dict(keep_vars=True)
    wanted = model(images(4, 8))
    convert(model, "sync")
    assert type(model[1]) is type(model[5]) is type(model[7]) is nn.SyncBatchNorm
    assert torch.equal(model(images(4, 8)), wanted)
    model = copy.deepcopy(model)
    assert convert(model, "sync").replaced == convert(model, "ghost").replaced == ("1", "5", "7")
    assert type(model[1]) is GhostBatchNorm2d
    convert(model, "sync")
    assert convert(model, "batch").replaced == ("1", "5", "7")
    assert repr(model) == original
    assert vars(model[1]).keys() == vars(nn.BatchNorm2d(8)).keys()
    assert model.state_dict().keys() == tensors.keys()
    assert torch.equal(model(images(4, 8)), wanted)


def test_sync_batch_norm_of_another_hand_is_left_alone_and_told():
    model = nn.Sequential(nn.SyncBatchNorm(8))
    with pytest.raises(InputError, match=r"layer '0' must be exactly .*; got SyncBatchNorm\."):
        convert(model, "ghost")
    conversion = convert(model, "batch")
    assert conversion.replaced == ()
    assert "note: SyncBatchNorm does not say how many dimensions it had: 1 stay as they are" in str(conversion)


@pytest.mark.parametrize("kind", ["group", "layer"])
def test_the_way_back_from_group_norm_says_why_there_is_none(kind):
    model = small_model()
    convert(model, kind)
    for to in ("batch", "ghost"):
        conversion = convert(model, to)
        assert conversion.replaced == ()
        assert f"note: GroupNorm keeps no running statistics, so its 2 layers cannot become {to!r}" in str(conversion)
    assert "GroupNorm" not in str(convert(model, kind))


# ------------------------------------------------------------------------------------------- centred weights


def test_moving_averages_with_centred_weights_go_and_come_back():
    model = small_model()
    parameters = list(model.parameters())
    conversion = convert(model, "moving_average", centered_weights=True)
    assert parametrize.is_parametrized(model[0])
    assert parametrize.is_parametrized(model[4])
    assert "note: weights are centred in 2 layers: 0, 4" in str(conversion)
    assert {id(parameter) for parameter in model.parameters()} == {id(parameter) for parameter in parameters}
    wanted = model.eval()(images(4, 8))
    conversion = convert(model, "batch")
    assert "2 layers with centred weights have plain ones of the same values again" in str(conversion)
    assert all(each is other for each, other in zip(model.parameters(), parameters, strict=True))
    torch.testing.assert_close(model(images(4, 8)), wanted)


def test_weights_to_center_may_be_named_and_bad_names_are_refused_before_anything_changes():
    model = small_model()
    with pytest.raises(InputError, match="layer '2' must be a convolution or a linear layer to be centred; got ReLU"):
        convert(model, "moving_average", centered_weights=["0", "2"])
    assert type(model[1]) is nn.BatchNorm2d
    convert(model, "moving_average", centered_weights=["4"])
    assert not parametrize.is_parametrized(model[0])
    assert isinstance(model[5], MovingAverageBatchNorm1d)


def test_a_converted_moving_average_goes_on_with_the_mean_it_had():
    model = small_model()
    mean = model[1].running_mean.clone()
    convert(model, "moving_average")
    assert isinstance(model[1], MovingAverageBatchNorm2d)
    model(images(4, 8))
    assert torch.equal(model[1].running_mean, mean)


# ------------------------------------------------------------------------------------------- optimizers


class Gained(nn.BatchNorm1d):
    def __init__(self, num_features):
        super().__init__(num_features)
        self.gain = nn.Parameter(torch.ones(()))


def test_an_optimizer_takes_new_parameters_into_the_group_of_their_layer_and_forgets_gone_ones():
    old, new, body = nn.BatchNorm1d(3), Gained(3), nn.Linear(3, 3)
    new.weight, new.bias = old.weight, old.bias
    groups = [{"params": list(body.parameters())}, {"params": list(old.parameters()), "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.1)
    assert rebind(optimizer, {old: new}) == ["1 parameters added, 0 removed, in the optimizer too"]
    assert any(each is new.gain for each in optimizer.param_groups[1]["params"])
    new.gain.grad = torch.ones(())
    optimizer.step()
    assert new.gain in optimizer.state
    assert rebind(optimizer, {new: old}) == ["0 parameters added, 1 removed, in the optimizer too"]
    assert new.gain not in optimizer.state
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 2]
    assert "pass it as optimizer=" in rebind(None, {old: new})[0]
    assert rebind(optimizer, {old: old}) == []


def kalman_with(optimizer_type=torch.optim.SGD, *, groups=None, named=False, scheduled=False, **settings):
    """A small model converted with its optimizer; groups are settings of the body's and of the norms' parameters."""
    model = small_model()
    norms = [parameter for index in (1, 5) for parameter in model[index].parameters()]
    body = [parameter for index in (0, 4) for parameter in model[index].parameters()]
    params = list(model.named_parameters() if named else model.parameters())
    if groups is not None:
        params = [{"params": each, **own} for each, own in zip((body, norms), groups, strict=True)]
    optimizer = optimizer_type(params, lr=0.1, **settings)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10) if scheduled else None
    conversion = converted(model, "kalman", 8, optimizer=optimizer)
    held = [group for group in optimizer.param_groups if any(each is model[5].prior_logit for each in group["params"])]
    return model, optimizer, scheduler, conversion, held


def test_gains_get_a_group_of_their_own_without_weight_decay():
    model, optimizer, _, conversion, held = kalman_with(torch.optim.AdamW, weight_decay=0.1, betas=(0.8, 0.9))
    assert held == optimizer.param_groups[1:]
    assert len(held[0]["params"]) == 1
    assert (held[0]["weight_decay"], held[0]["lr"], held[0]["betas"]) == (0.0, 0.1, (0.8, 0.9))
    assert optimizer.param_groups[0]["weight_decay"] == 0.1
    assert "a new group of the optimizer holds them, without weight decay: make a scheduler" in str(conversion)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    model(images(4, 8)).square().sum().backward()
    optimizer.step(), scheduler.step()
    converted(model, "kalman", 8, optimizer=optimizer)
    converted(model, "batch", optimizer=optimizer)
    assert [len(group["params"]) for group in optimizer.param_groups] == [8, 0]


@pytest.mark.parametrize(
    ("groups", "place"),
    [
        ([{"weight_decay": 0.1}, {"weight_decay": 0.0}], 1),  # the norm's own
        ([{"weight_decay": 0.0}, {"weight_decay": 0.1}], 0),  # of the same settings otherwise
        ([{"weight_decay": 0.0, "lr": 0.3}, {"weight_decay": 0.1}], 2),  # of another rate, so a new one
    ],
)
def test_gains_join_a_group_without_weight_decay_that_agrees_otherwise(groups, place):
    _, optimizer, _, conversion, held = kalman_with(groups=groups, momentum=0.9)
    assert held[0] is optimizer.param_groups[place]
    assert (held[0]["weight_decay"], held[0]["lr"]) == (0.0, 0.1)
    assert len(optimizer.param_groups) == max(2, place + 1)
    assert ("a new group" in str(conversion)) == (place == 2)


def test_gains_join_the_group_of_their_layer_where_a_scheduler_holds_the_groups():
    model, optimizer, scheduler, conversion, held = kalman_with(weight_decay=0.1, scheduled=True)
    assert held == optimizer.param_groups
    assert "a scheduler holds the optimizer's groups, so that weight decay concerns them: convert" in str(conversion)
    model(images(4, 8)).square().sum().backward()
    optimizer.step(), scheduler.step()


def test_an_optimizer_loads_its_earlier_state_once_the_model_is_converted_back():
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    state = optimizer.state_dict()
    converted(model, "kalman", 8, optimizer=optimizer)
    assert len(optimizer.param_groups) == 2
    converted(model, "batch", optimizer=optimizer)
    optimizer.load_state_dict(state)
    assert [len(group["params"]) for group in optimizer.param_groups] == [len(list(model.parameters()))]


def test_an_optimizer_of_named_parameters_learns_the_names_of_gains():
    model, optimizer, _, _, held = kalman_with(weight_decay=0.1, named=True)
    assert held[0]["param_names"] == ["5.prior_logit"]
    converted(model, "batch", optimizer=optimizer)
    names = [name for name, _ in model.named_parameters()]
    assert [group["param_names"] for group in optimizer.param_groups] == [names]
    model, optimizer, _, _, held = kalman_with(named=True)
    assert dict(zip(held[0]["param_names"], held[0]["params"], strict=True)) == dict(model.named_parameters())


def held_by(optimizer):
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def convolutions():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)
    )


@pytest.mark.parametrize("options", [{}, {"transition": "learned"}])
def test_what_a_frozen_layer_would_learn_is_frozen(options):
    model = convolutions()
    model[4].requires_grad_(False)
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.1)
    trained = held_by(optimizer)
    conversion = converted(model, "kalman", 8, optimizer=optimizer, **options)
    assert "4" in conversion.priors
    assert not any(parameter.requires_grad for parameter in model[4].parameters())
    assert held_by(optimizer) == trained == {id(each) for each in model.parameters() if each.requires_grad}


def test_what_a_layer_learns_whose_bias_alone_is_trained_is_learnt():
    model = small_model()
    model[5].weight.requires_grad_(False)
    converted(model, "kalman", 8)
    assert model[5].prior_logit.requires_grad


def test_the_gain_of_a_frozen_batch_norm_is_frozen():
    frozen = torchvision.ops.FrozenBatchNorm2d
    model = nn.Sequential(nn.Conv2d(3, 8, 3), frozen(8), nn.ReLU(), nn.Conv2d(8, 8, 3), frozen(8))
    converted(model, "kalman")
    assert not model[4].prior_logit.requires_grad


def test_an_optimizer_that_does_not_train_a_layer_does_not_get_its_gain():
    model = convolutions()
    optimizer = torch.optim.SGD(model[5].parameters(), lr=0.1)
    trained = held_by(optimizer)
    notes = converted(model, "kalman", 8, optimizer=optimizer, transition="learned").notes
    told = "3 parameters added (4.prior_logit, 4.prior_scale, 4.prior_noise) stay out of the optimizer, which holds no"
    assert notes[0].startswith(told)
    assert held_by(optimizer) == trained
    assert model[4].prior_logit.requires_grad


def test_an_optimizer_of_matrices_alone_does_not_get_a_gain():
    model = small_model()
    model[1], model[5] = nn.BatchNorm2d(8, affine=False), nn.BatchNorm1d(8, affine=False)
    matrices, others = ([each for each in model.parameters() if (each.dim() > 1) == wanted] for wanted in (True, False))
    optimizer = torch.optim.SGD(matrices, lr=0.1)
    conversion = converted(model, "kalman", 8, optimizer=optimizer)
    assert "1 parameters added (5.prior_logit) stay out of the optimizer" in str(conversion)
    optimizer = torch.optim.SGD([{"params": matrices}, {"params": others}], lr=0.1)
    converted(model, "batch")
    converted(model, "kalman", 8, optimizer=optimizer)
    assert any(each is model[5].prior_logit for each in optimizer.param_groups[1]["params"])


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="of newer PyTorch")
def test_muon_goes_on_with_its_matrices():
    model = small_model()
    optimizer = torch.optim.Muon([each for each in model.parameters() if each.dim() == 2], lr=0.1)
    converted(model, "kalman", 8, optimizer=optimizer)
    model(images(4, 8)).square().sum().backward()
    optimizer.step()
    assert len(held_by(optimizer)) == 1


def test_an_optimizer_of_another_model_is_refused():
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(InputError, match="optimizer must hold parameters of the model; got SGD without any"):
        convert(small_model(), "ghost", optimizer=optimizer)


# ------------------------------------------------------------------------------------------- refusals


def test_wrapped_and_compiled_models_are_refused():
    for wrapped, found in (
        (nn.DataParallel(small_model()), "the model must be .*; got DataParallel"),
        (torch.compile(small_model(), backend="eager"), "the model must be .*; got OptimizedModule"),
        (nn.Sequential(torch.compile(small_model(), backend="eager")), "module '0' must be .*; got OptimizedModule"),
        (compiled_in_place(small_model()), "the model must be converted before it is compiled; got a compiled one"),
        (nn.Sequential(nn.BatchNorm1d(3), scripted()), "module '1' must be .*; got a scripted module"),
    ):
        with pytest.raises(InputError, match=found):
            convert(wrapped, "ghost")


def compiled_in_place(model):
    model.compile(backend="eager")
    return model


def scripted():
    with warnings.catch_warnings(action="ignore"):  # of a way that is on its way out
        return torch.jit.script(nn.Linear(3, 3))


def test_a_model_under_data_parallel_training_is_refused(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(small_model())
        with pytest.raises(InputError, match=r"the model must be converted before it is wrapped .*; got Distributed"):
            convert(model, "ghost")
        assert type(model.module[1]) is nn.BatchNorm2d
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("kind", ["batch_renorm", "moving_average"])
def test_layers_that_need_statistics_are_refused_without(kind):
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=False))
    told = f"layer '1' must have running statistics to become '{kind}'; got track_running_stats=False"
    with pytest.raises(InputError, match=told):
        convert(model, kind)
    assert type(model[0]) is nn.BatchNorm2d


@pytest.mark.parametrize("kind", TARGETS)
def test_options_of_another_kind_are_refused_with_those_it_has(kind):
    target = TARGETS[kind]
    known = ", ".join((*target.options, *target.model_options))
    wanted = f"must be {'among ' + known if known else 'none'}; got ghosts"
    with pytest.raises(InputError, match=f"options of kind '{kind}' {wanted}"):
        convert(small_model(), kind, ghosts=4)


@pytest.mark.parametrize(
    ("kind", "options", "told"),
    [
        ("kalman", {"prior_weight": "abc"}, "prior_weight must be between 0 and 1; got 'abc'"),
        ("kalman", {"sources": [("5", [["1"]])]}, "sources must map names of layers to lists of paths; got a list"),
        ("group_kalman", {"num_groups": 2.0}, "num_groups must divide the channels of every layer; got 2.0 for 8"),
        ("group", {"num_groups": 2.0}, "num_groups must divide the channels of every layer; got 2.0 for 8"),
        ("group", {"num_groups": "two"}, "num_groups must divide .*; got 'two' for 8. Choose 1 or 2 or 4 or 8"),
        ("group", {"num_groups": True}, "num_groups must divide .*; got True for 8. Choose 1 or 2 or 4 or 8"),
        ("batch_renorm", {"r_max": "abc"}, "r_max must be at least 1; got 'abc'"),
        ("batch_renorm", {"d_max": [1.0]}, r"d_max must be at least 0; got \[1.0\]"),
        ("batch_renorm", {"momentum": "none"}, "momentum must be between 0 and 1, or None; got 'none'"),
        ("moving_average", {"r_max": "abc"}, "r_max must be at least 1; got 'abc'"),
        (
            "moving_average",
            {"centered_weights": 3.5},
            "centered_weights must be True, False or names of .*; got 3.5",
        ),
        ("moving_average", {"centered_weights": [0]}, r"centered_weights must be .* names of layers; got \[0\]"),
        ("sync", {"process_group": 3}, "process_group must be a process group of torch.distributed; got 3"),
    ],
)
def test_options_of_another_type_are_refused_before_anything_changes(kind, options, told):
    model = small_model()
    before = dict(model.named_modules())
    with pytest.raises(InputError, match=told):
        converted(model, kind, 8, **options)
    assert dict(model.named_modules()) == before


def test_one_layer_to_center_may_be_named_alone():
    model = small_model().append(nn.Sequential(nn.Linear(8, 3)))
    convert(model, "moving_average", centered_weights="6.0")
    assert parametrize.is_parametrized(model[6][0])
    assert not parametrize.is_parametrized(model[0])


def test_an_option_of_none_is_the_default():
    model = small_model()
    convert(model, "ghost", ghost_batch_size=None)
    assert isinstance(model[1], GhostBatchNorm2d)
    assert model[1].ghost_batch_size == 32
    convert(model, "batch_renorm", micro_batch_size=None)
    assert isinstance(model[1], BatchRenorm2d)
