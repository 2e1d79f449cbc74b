"""Which methods and built-in workloads there are, where they live, and one line on each. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Stage = Literal["measure", "decide", "apply", "use"]


@dataclass(frozen=True)
class Card:
    """One line about a method.

    Attributes:
        name: as users say it.
        stage: what it does with a batch's gradient.
        where: the import path of its entry point.
        summary: one line.
        source: paper, or whose choice.
    """

    name: str
    stage: Stage
    where: str
    summary: str
    source: str


METHODS: tuple[Card, ...] = (
    Card(
        "MicroBatches",
        "measure",
        "anybatch.stats.MicroBatches",
        "gradient moments per module from gradient accumulation on one device",
        "McCandlish et al. 2018",
    ),
    Card(
        "Ranks",
        "measure",
        "anybatch.stats.Ranks",
        "the same moments from data-parallel ranks",
        "McCandlish et al. 2018",
    ),
    Card(
        "weight distance",
        "measure",
        "anybatch.stats.WeightDistance",
        "how far the weights have walked from where they started, whole and per tensor",
        "Hoffer et al. 2017",
    ),
    Card(
        "noise scale",
        "decide",
        "anybatch.decide.estimate_noise_scale",
        "how many samples one gradient deserves, with a confidence set that may be unbounded",
        "McCandlish et al. 2018; Fieller 1954",
    ),
    Card(
        "rate scaling",
        "decide",
        "anybatch.decide.scale_learning_rate",
        "what becomes of a tuned rate at another batch size",
        "Goyal et al. 2017; Hoffer et al. 2017; Malladi et al. 2022",
    ),
    Card(
        "regime",
        "decide",
        "anybatch.decide.large_batch_regime",
        "rate, schedule, epochs, ghost batch and noise for a batch that grows",
        "Hoffer et al. 2017",
    ),
    Card(
        "distance law",
        "decide",
        "anybatch.decide.fit_distance_law",
        "whether the weights walk as the logarithm of updates or as a power of them",
        "Hoffer et al. 2017",
    ),
    Card(
        "ghost batch norm",
        "apply",
        "anybatch.nn.GhostBatchNorm2d",
        "batch norm over parts of the batch, in one pass",
        "Hoffer et al. 2017",
    ),
    Card(
        "convert",
        "apply",
        "anybatch.nn.convert",
        "the norms of an existing model replaced, its parameters kept",
        "anybatch",
    ),
    Card(
        "gradient noise",
        "apply",
        "anybatch.apply.GradientNoise",
        "the noise of a small batch on the gradient of a large one, instead of a larger rate",
        "Hoffer et al. 2017",
    ),
    Card(
        "sample stream",
        "apply",
        "anybatch.apply.StreamBatchSampler",
        "batches of any size cut from one order of samples",
        "anybatch",
    ),
    Card(
        "sample scheduler",
        "apply",
        "anybatch.apply.SampleScheduler",
        "any schedule of torch counted in samples, so that the batch size does not move it",
        "anybatch; Hoffer et al. 2017",
    ),
    Card(
        "probe",
        "use",
        "anybatch.probe",
        "memory, speed and noise of a workload joined in one recommended batch size",
        "anybatch; law of McCandlish et al. 2018",
    ),
    Card(
        "compare",
        "use",
        "anybatch.compare",
        "recipes over batch sizes: trained, resumed, put side by side",
        "anybatch; Hoffer et al. 2017",
    ),
)

WORKLOADS: dict[str, str] = {
    "digits": "anybatch.workloads.digits:digits",
    "fashion-mnist": "anybatch.workloads.fashion_mnist:fashion_mnist_mlp",
    "fashion-mnist-resnet": "anybatch.workloads.fashion_mnist:fashion_mnist_resnet",
    "f1-mnist": "anybatch.workloads.mnist:f1_mnist",
    "f1-fashion-mnist": "anybatch.workloads.mnist:f1_fashion_mnist",
    "c1-cifar10": "anybatch.workloads.cifar:c1_cifar10",
    "resnet44-cifar10": "anybatch.workloads.cifar:resnet44_cifar10",
    "c3-cifar100": "anybatch.workloads.cifar:c3_cifar100",
    "wresnet16-4-cifar100": "anybatch.workloads.cifar:wresnet16_4_cifar100",
    "alexnet-imagenet": "anybatch.workloads.imagenet:alexnet_imagenet",
    "scenes-faster-rcnn": "anybatch.workloads.scenes:scenes_faster_rcnn",
    "scenes-mask-rcnn": "anybatch.workloads.scenes:scenes_mask_rcnn",
    "scenes-retinanet": "anybatch.workloads.scenes:scenes_retinanet",
    "scenes-semantic-fpn": "anybatch.workloads.scenes:scenes_semantic_fpn",
    "scenes-panoptic-fpn": "anybatch.workloads.scenes:scenes_panoptic_fpn",
}
