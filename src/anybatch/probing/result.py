"""What a probe found, as one value: to JSON, to a page."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from anybatch.decide.noise_scale import NoiseScale
from anybatch.probing.input_check import ProbeWarning
from anybatch.probing.law import SampleLaw
from anybatch.probing.memory import MemoryLimit
from anybatch.probing.noise import NoiseCurve
from anybatch.probing.normalization import NormalizationError
from anybatch.probing.recommend import CurvePoint, DevicePoint, DiminishingReturns, Recommendation
from anybatch.probing.throughput import KNEE_SHARE, ThroughputCurve
from anybatch.probing.verification import Verification
from anybatch.train.plain import Exportable, plain


@dataclass(frozen=True)
class ProbeResult(Exportable):
    """Everything a probe measured and what it recommends; what it did not get to is None or empty.

    Attributes:
        workload: its name.
        settings: what the probe was asked for.
        environment: versions, device, threads, ranks.
        memory: the largest micro-batch.
        throughput: samples per second over micro-batch sizes.
        noise: the noise scale along the run and its mean.
        law: samples over batch size.
        curve: predicted time and samples over batch size.
        devices: predicted speed-up of several devices.
        diminishing_devices: from where on the efficiency is below one half.
        recommendation: the batch size and how to make it.
        normalization: how wrong batch norm's statistics are at the recommended micro-batch; None without batch norm.
        verification: the prediction against training at several batch sizes; see `verify`.
        warnings: what makes accumulation unequal to a large batch, or the advice uncertain.
        seconds: what each measurement cost, and the total.
        partial: whether the probe ended early.
    """

    workload: str
    settings: Mapping[str, Any]
    environment: Mapping[str, Any]
    memory: MemoryLimit | None = None
    throughput: ThroughputCurve | None = None
    noise: NoiseCurve | None = None
    law: SampleLaw | None = None
    curve: tuple[CurvePoint, ...] = ()
    devices: tuple[DevicePoint, ...] = ()
    diminishing_devices: DiminishingReturns | None = None
    recommendation: Recommendation | None = None
    normalization: NormalizationError | None = None
    verification: Verification | None = None
    warnings: tuple[ProbeWarning, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    partial: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: dicts, lists, strings and numbers; what is unbounded or unknown is None."""
        throughput, noise = self.throughput, self.noise
        record: dict[str, Any] = {
            "version": version("anybatch"),
            "workload": self.workload,
            "partial": self.partial,
            "settings": self.settings,
            "environment": self.environment,
            "memory": self.memory,
            "throughput": [] if throughput is None else throughput.points,
            "knee": None if throughput is None else _knee(throughput),
            "noise_scale": None if noise is None else _noise(noise),
            "law": self.law,
            "curve": self.curve,
            "devices": self.devices,
            "diminishing_devices": self.diminishing_devices,
            "recommendation": self.recommendation,
            "normalization": self.normalization,
            "verification": self.verification,
            "warnings": self.warnings,
            "seconds": self.seconds,
        }
        return plain(record)

    def to_page(self) -> str:
        """Return one self-contained HTML page that needs no network."""
        from anybatch.report.page import render_probe  # plotly takes a second to import

        return render_probe(self.to_dict())


def _knee(curve: ThroughputCurve) -> dict[str, Any]:
    return {"micro_batch_size": curve.knee, "share": KNEE_SHARE, "reason": curve.reason}


def _noise(curve: NoiseCurve) -> dict[str, Any]:
    points = [{"samples": point.num_samples, "loss": point.loss, **_scale(point.noise_scale)} for point in curve.points]
    return {
        **_scale(curve.average),
        "reason": curve.reason,
        "batch_size": curve.batch_size,
        "lr_scale": curve.lr_scale,
        "share_of_training": curve.share_of_training,
        "size_per_sample": curve.size_per_sample,
        "metrics": curve.metrics,
        "points": points,
        "runs": [_scale(run) for run in curve.runs],
    }


def _scale(noise: NoiseScale) -> dict[str, Any]:
    record = {f.name: getattr(noise, f.name) for f in dataclasses.fields(noise)}
    record["reason"] = noise.reason
    record["modules"] = {name: _scale(module) for name, module in noise.modules.items()}
    return record
