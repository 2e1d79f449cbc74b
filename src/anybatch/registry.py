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
        "PerSample",
        "measure",
        "anybatch.stats.PerSample",
        "the same moments from the samples of a single batch, without their gradients",
        "Goodfellow 2015; Li et al. 2022; Bu et al. 2022",
    ),
    Card(
        "half-batches",
        "measure",
        "anybatch.stats.MicroBatchHalves",
        "how alike the gradients of a batch's two halves are, per module, from gradient accumulation",
        "Xue et al. 2022",
    ),
    Card(
        "halves of the ranks",
        "measure",
        "anybatch.stats.RankHalves",
        "the same from data-parallel ranks, no gradient gathered",
        "Xue et al. 2022",
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
        "AGVM scales",
        "decide",
        "anybatch.decide.agvm_scales",
        "factors on the rates of a model's modules that align the noise of their gradients",
        "Xue et al. 2022",
    ),
    Card(
        "distance law",
        "decide",
        "anybatch.decide.fit_distance_law",
        "whether the weights walk as the logarithm of updates or as a power of them",
        "Hoffer et al. 2017",
    ),
    Card(
        "safe step",
        "decide",
        "anybatch.decide.choose_safe_step",
        "step size and next batch size of a policy gradient, so that it improves with a stated probability",
        "Papini et al. 2017",
    ),
    Card(
        "smoothing step",
        "decide",
        "anybatch.decide.choose_smoothing_step",
        "the same along the whole gradient, for a probability that holds over the whole run",
        "Papini et al. 2022",
    ),
    Card(
        "samples law",
        "decide",
        "anybatch.decide.fit_samples_law",
        "how the samples to a target grow with the batch size, fitted to finished trainings",
        "McCandlish et al. 2018",
    ),
    Card(
        "ghost batch norm",
        "apply",
        "anybatch.nn.GhostBatchNorm2d",
        "batch norm over parts of the batch, in one pass",
        "Hoffer et al. 2017",
    ),
    Card(
        "batch renormalization",
        "apply",
        "anybatch.nn.BatchRenorm2d",
        "batch norm that trains with its running statistics, within limits that widen",
        "Ioffe 2017",
    ),
    Card(
        "moving-average batch norm",
        "apply",
        "anybatch.nn.MovingAverageBatchNorm2d",
        "batch norm for tiny batches, with the last few micro-batches' statistics forward and backward",
        "Yan et al. 2020",
    ),
    Card(
        "Kalman normalization",
        "apply",
        "anybatch.nn.KalmanNorm2d",
        "batch norm of one or two samples, corrected by moments foretold along the network",
        "Wang et al. 2018",
    ),
    Card(
        "group Kalman normalization",
        "apply",
        "anybatch.nn.GroupKalmanNorm",
        "group norm, corrected in the same way",
        "Wang et al. 2018",
    ),
    Card(
        "convert",
        "apply",
        "anybatch.nn.convert",
        "the norms of an existing model replaced by any of these or torch's, its parameters kept",
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
        "AGVM",
        "apply",
        "anybatch.AGVM",
        "detectors and segmenters at huge batches: any optimizer's steps at those rates",
        "Xue et al. 2022",
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
        "noise monitor",
        "apply",
        "anybatch.NoiseMonitor",
        "the noise scale every so many steps of any loop: four lines, nothing on the steps between",
        "anybatch; McCandlish et al. 2018",
    ),
    Card(
        "probe",
        "use",
        "anybatch.probe",
        "memory, speed and noise of a workload joined in one recommended batch size",
        "anybatch; law of McCandlish et al. 2018",
    ),
    Card(
        "safe policy gradient",
        "use",
        "anybatch.rl.SafePolicyGradient",
        "a policy updated by safe steps: each update improves it with a stated probability",
        "Papini et al. 2017",
    ),
    Card(
        "smoothing policy gradient",
        "use",
        "anybatch.rl.SmoothingPolicyGradient",
        "the same with one probability for the whole run, strict or relaxed",
        "Papini et al. 2022",
    ),
    Card(
        "verify",
        "use",
        "anybatch.verify",
        "the probe's advice beside what training to a target takes, each size at its own best rate",
        "anybatch",
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
    "char-lm": "anybatch.workloads.char_lm:char_lm",
    "scenes-faster-rcnn": "anybatch.workloads.scenes:scenes_faster_rcnn",
    "scenes-mask-rcnn": "anybatch.workloads.scenes:scenes_mask_rcnn",
    "scenes-retinanet": "anybatch.workloads.scenes:scenes_retinanet",
    "scenes-semantic-fpn": "anybatch.workloads.scenes:scenes_semantic_fpn",
    "scenes-panoptic-fpn": "anybatch.workloads.scenes:scenes_panoptic_fpn",
    "coco-faster-rcnn": "anybatch.workloads.coco:coco_faster_rcnn",
    "coco-mask-rcnn": "anybatch.workloads.coco:coco_mask_rcnn",
    "coco-retinanet": "anybatch.workloads.coco:coco_retinanet",
}
