"""Which modules does a detector or segmenter have?

Recognised by the names of their attributes are the models of torchvision (Faster, Mask and Keypoint R-CNN, RetinaNet,
FCOS, SSD, DeepLabV3, FCN, LR-ASPP), MMDetection and MMSegmentation, and Detectron2. The pyramid is a module of its own,
also where it lies inside `backbone`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from anybatch.errors import InputError
from anybatch.stats.groups import group_parameters, unwrap

# what holds the backbone proper where `backbone` has a pyramid beside it: torchvision, Detectron2
_INNER_BACKBONES = ("body", "bottom_up")
_MODULES = {
    "neck": "fpn",
    "rpn_head": "rpn",
    "proposal_generator": "rpn",
    "bbox_head": "head",
    "sem_seg_head": "semantic_head",
    "aux_classifier": "aux_classifier",
    "auxiliary_head": "aux_classifier",
}
_HEADS_OF_REGIONS = {"box": "box_head", "bbox": "box_head", "mask": "mask_head", "keypoint": "keypoint_head"}


@dataclass(frozen=True)
class PredictorModules:
    """Which parts of a model make up which module.

    Attributes:
        model: name of its class.
        prefixes: module -> prefixes of its parameters' names, for `group_parameters`.
        num_parameters: module -> how many trainable numbers it has.
    """

    model: str
    prefixes: dict[str, tuple[str, ...]]
    num_parameters: dict[str, int]

    def __str__(self) -> str:
        """Return a table of what went where."""
        width = max(map(len, self.num_parameters))
        rows = [
            f"  {name:<{width}}  {count:>11,}  {', '.join(self.prefixes[name])}"
            for name, count in self.num_parameters.items()
        ]
        return "\n".join([f"modules of {self.model}: {len(rows)}", *rows])


def find_predictor_modules(model: nn.Module) -> PredictorModules:
    """Return the modules of a detector or segmenter: backbone, fpn, rpn, box_head, mask_head, head, classifier, ...

    Args:
        model: with a child `backbone` and others beside it, or with one child that is such a model, as a panoptic one
            that holds a detector; wrapped or not. A child with a name that is not known is a module of that name.

    Returns:
        The modules; every trainable parameter is in exactly one.

    Raises:
        InputError: there is no `backbone`, or nothing beside it.

    Example:
        >>> from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_fpn
        >>> model = fasterrcnn_mobilenet_v3_large_fpn(weights=None, weights_backbone=None)
        >>> print(find_predictor_modules(model))
        modules of FasterRCNN: 4
          backbone    2,971,952  backbone.body
          fpn         1,467,392  backbone.fpn
          rpn           609,355  rpn
          box_head   14,362,055  roi_heads.box_head, roi_heads.box_predictor

    Source:
        Modules as in the figures of Xue et al. 2022, arXiv:2210.11078; its code has no semantic head and takes
        torchvision's pyramid as part of the backbone. The head of a detector of one stage is one module.
    """
    inner = unwrap(model)
    prefixes: dict[str, list[str]] = {}
    for prefix, module in _parts(inner):
        prefixes.setdefault(module, []).append(prefix)
    if "backbone" not in prefixes or len(prefixes) < 2:
        raise InputError(
            f"the model must have a backbone and other children beside it; {type(inner).__name__} has "
            f"{', '.join(prefixes) or 'none'}. Pass module_prefixes."
        )
    table = {name: tuple(found) for name, found in prefixes.items()}
    groups = group_parameters(inner, table)
    counts = {name: sum(p.numel() for p in groups.get(name, [])) for name in table}
    return PredictorModules(type(inner).__name__, table, counts)


def _parts(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield every part's prefix and module; parts are children, or children of `backbone` and of heads of regions."""
    inner = _find_inner(model)
    for name in _held(model):
        child = getattr(model, name)
        if name == "backbone":
            yield from _parts_of_backbone(child)
        elif name == inner:
            yield from ((f"{name}.{prefix}", module) for prefix, module in _parts(child))
        elif name in ("roi_heads", "roi_head"):
            yield from ((f"{name}.{part}", _module_of_region_head(part)) for part in _held(child))
        else:
            yield name, _MODULES.get(name, name)


def _find_inner(model: nn.Module) -> str | None:
    """Return the only child with a backbone, of a model that has none itself."""
    found = [name for name, child in model.named_children() if "backbone" in _held(child)]
    return found[0] if len(found) == 1 and "backbone" not in _held(model) else None


def _parts_of_backbone(backbone: nn.Module) -> Iterator[tuple[str, str]]:
    names = _held(backbone)
    inner = [name for name in names if name in _INNER_BACKBONES]
    if not inner and "extra" not in names:
        yield "backbone", "backbone"
        return
    for name in names:
        beside = name == "extra" if not inner else name not in inner  # SSD's layers beyond its backbone are `extra`
        yield f"backbone.{name}", "fpn" if beside else "backbone"


def _module_of_region_head(part: str) -> str:
    return _HEADS_OF_REGIONS.get(part.split("_")[0], part) if part.count("_") == 1 else part


def _held(module: nn.Module) -> list[str]:
    """Return the names of children and own parameters that hold parameters, in the order of the model."""
    return list(dict.fromkeys(name.split(".")[0] for name, _ in module.named_parameters()))
