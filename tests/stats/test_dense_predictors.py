"""Every published family of detectors and segmenters falls into its modules, each parameter once."""

import pytest
import torch
from torch import nn
from torchvision.models import detection, segmentation

from anybatch.stats import find_predictor_modules, group_parameters

REGIONS = {
    "backbone": ("backbone.body",),
    "fpn": ("backbone.fpn",),
    "rpn": ("rpn",),
    "box_head": ("roi_heads.box_head", "roi_heads.box_predictor"),
}
DENSE = {"backbone": ("backbone.body",), "fpn": ("backbone.fpn",), "head": ("head",)}
SEGMENTER = {"backbone": ("backbone",), "classifier": ("classifier",)}
AUXILIARY = SEGMENTER | {"aux_classifier": ("aux_classifier",)}
TORCHVISION = {
    "fasterrcnn_resnet50_fpn": REGIONS,
    "fasterrcnn_mobilenet_v3_large_fpn": REGIONS,
    "maskrcnn_resnet50_fpn": REGIONS | {"mask_head": ("roi_heads.mask_head", "roi_heads.mask_predictor")},
    "keypointrcnn_resnet50_fpn": REGIONS
    | {"keypoint_head": ("roi_heads.keypoint_head", "roi_heads.keypoint_predictor")},
    "retinanet_resnet50_fpn": DENSE,
    "fcos_resnet50_fpn": DENSE,
    "ssd300_vgg16": {
        "backbone": ("backbone.scale_weight", "backbone.features"),
        "fpn": ("backbone.extra",),
        "head": ("head",),
    },
    "ssdlite320_mobilenet_v3_large": {
        "backbone": ("backbone.features",),
        "fpn": ("backbone.extra",),
        "head": ("head",),
    },
    "deeplabv3_mobilenet_v3_large": AUXILIARY,
    "fcn_resnet50": AUXILIARY,
    "lraspp_mobilenet_v3_large": SEGMENTER,
}


def tree(**children) -> nn.ModuleDict:
    """A model of nested names; a number is a layer of that width."""
    return nn.ModuleDict(
        {name: nn.Linear(child, 1) if isinstance(child, int) else tree(**child) for name, child in children.items()}
    )


def check_each_parameter_once(model, found):
    groups = group_parameters(model, found.prefixes)
    members = [id(parameter) for group in groups.values() for parameter in group]
    assert sorted(members) == sorted(id(parameter) for parameter in model.parameters() if parameter.requires_grad)
    assert {name: sum(p.numel() for p in group) for name, group in groups.items()} == found.num_parameters


@pytest.mark.parametrize(("name", "prefixes"), TORCHVISION.items(), ids=TORCHVISION)
def test_models_of_torchvision_are_recognised(name, prefixes):
    make = getattr(detection if hasattr(detection, name) else segmentation, name)
    with torch.device("meta"):  # names and shapes alone
        model = make(weights=None, weights_backbone=None, **({"aux_loss": True} if prefixes is AUXILIARY else {}))
    found = find_predictor_modules(model)
    assert found.prefixes == prefixes
    check_each_parameter_once(model, found)


MADE_UP = {
    "MMDetection, two stages": (
        tree(backbone=3, neck=2, rpn_head=2, roi_head={"bbox_head": 2, "mask_head": 3, "mask_iou_head": 4}),
        {
            "backbone": ("backbone",),
            "fpn": ("neck",),
            "rpn": ("rpn_head",),
            "box_head": ("roi_head.bbox_head",),
            "mask_head": ("roi_head.mask_head",),
            "mask_iou_head": ("roi_head.mask_iou_head",),
        },
    ),
    "MMDetection, panoptic": (
        tree(backbone=3, neck=2, rpn_head=2, roi_head={"bbox_head": {"0": 2, "1": 2}}, semantic_head=3),
        {
            "backbone": ("backbone",),
            "fpn": ("neck",),
            "rpn": ("rpn_head",),
            "box_head": ("roi_head.bbox_head",),
            "semantic_head": ("semantic_head",),
        },
    ),
    "MMDetection, one stage": (
        tree(backbone=3, neck=2, bbox_head=4),
        {"backbone": ("backbone",), "fpn": ("neck",), "head": ("bbox_head",)},
    ),
    "MMSegmentation": (
        tree(backbone=3, decode_head=2, auxiliary_head=4),
        {"backbone": ("backbone",), "decode_head": ("decode_head",), "aux_classifier": ("auxiliary_head",)},
    ),
    "Detectron2, panoptic": (
        tree(
            backbone={"fpn_lateral2": 2, "fpn_output2": 2, "bottom_up": {"stem": 3}, "top_block": 1},
            proposal_generator={"rpn_head": 2},
            roi_heads={"box_head": 2, "box_predictor": 2, "mask_head": 2},
            sem_seg_head=3,
        ),
        {
            "fpn": ("backbone.fpn_lateral2", "backbone.fpn_output2", "backbone.top_block"),
            "backbone": ("backbone.bottom_up",),
            "rpn": ("proposal_generator",),
            "box_head": ("roi_heads.box_head", "roi_heads.box_predictor"),
            "mask_head": ("roi_heads.mask_head",),
            "semantic_head": ("sem_seg_head",),
        },
    ),
    "a detector with a head beside it": (
        tree(instances={"backbone": {"body": 3, "fpn": 2}, "rpn": 2, "roi_heads": {"box_head": 2}}, semantic_head=3),
        {
            "backbone": ("instances.backbone.body",),
            "fpn": ("instances.backbone.fpn",),
            "rpn": ("instances.rpn",),
            "box_head": ("instances.roi_heads.box_head",),
            "semantic_head": ("semantic_head",),
        },
    ),
    "a head of another name": (
        tree(backbone=3, depth_decoder=2),
        {"backbone": ("backbone",), "depth_decoder": ("depth_decoder",)},
    ),
}


@pytest.mark.parametrize(("model", "prefixes"), MADE_UP.values(), ids=MADE_UP)
def test_attribute_names_of_other_libraries_are_recognised(model, prefixes):
    found = find_predictor_modules(model)
    assert found.prefixes == prefixes
    check_each_parameter_once(model, found)


def test_wrappers_are_looked_through_and_frozen_layers_are_not_counted():
    model, _ = MADE_UP["MMDetection, one stage"]
    wrapped = nn.Module()
    wrapped._orig_mod = model
    model["backbone"].bias.requires_grad_(False)
    found = find_predictor_modules(wrapped)
    model["backbone"].bias.requires_grad_(True)
    assert found.num_parameters == {"backbone": 3, "fpn": 3, "head": 5}


def test_a_backbone_that_is_frozen_whole_counts_nothing():
    model = tree(backbone=3, head=2)
    model["backbone"].requires_grad_(False)
    assert find_predictor_modules(model).num_parameters == {"backbone": 0, "head": 3}


@pytest.mark.parametrize(
    ("model", "children"),
    [(tree(trunk=3, head=2), "trunk, head"), (tree(backbone=3), "backbone"), (nn.Module(), "none")],
    ids=["no backbone", "backbone alone", "empty"],
)
def test_a_model_that_is_no_dense_predictor_is_refused(model, children):
    with pytest.raises(
        ValueError, match=rf"must have a backbone and other children beside it; \w+ has {children}\. Pass"
    ):
        find_predictor_modules(model)
