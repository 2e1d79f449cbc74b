"""Records of a probe whose prediction was checked."""

from typing import Any

from report.records import complete_record

SIZES = (8, 16, 32, 64, 128, 2600)


def verified_record(skipped: int | None = None) -> dict[str, Any]:
    """Return the record of a verified probe; `skipped` is a size that was not measured."""
    points = [_point(size) for size in SIZES if size != skipped]
    reason = "it would take about 99 s, and 12 s are left of the budget"
    return complete_record() | {
        "verification": {
            "target": {"loss": 0.177, "start_loss": 2.31, "samples": 1672.5, "reason": "5% of the way down is left"},
            "points": points,
            "predicted": [_predicted(size) for size in (1, 2, 4, *SIZES)],
            "skipped": [] if skipped is None else [{"batch_size": skipped, "reason": reason}],
            "law": {
                "examples": 1000.0,
                "critical_batch_size": 24.2,
                "low": 16.5,
                "high": 35.2,
                "residuals": [0.02] * len(points),
                "confidence": 0.95,
                "reason": "the law is within 2% of all sizes",
            },
            "predicted_critical_batch_size": 37.6,
            "whole_critical_batch_size": 60.6,
            "ratio": 1.55,
            "verdict": "confirmed",
            "recommended": 32,
            "largest": 2600,
            "fastest": 32,
            "time_of_recommended": 1.0,
            "time_of_largest": {"value": 9.2, "low": 8.1, "high": 10.3},
            "slowdown": 1.1,
            "sentence": "Recommended 32: 0.36 s to target; the largest that fits, 2600: 9.2x slower.",
            "reason": "on the way to this loss the predicted critical batch size, 37.6, is 1.5 times the measured one",
            "budget": 120.0,
            "spent": 86.3,
        }
    }


def _point(size: int) -> dict[str, Any]:
    samples = 1000 * (1 + size / 24.2)
    return {
        "batch_size": size,
        "micro_batch_size": size,
        "lr_scale": 0.5,
        "is_bracketed": size != 128,
        "rates": [{"lr_scale": 0.5, "samples": samples, "status": "reached"}],
        "num_runs": 3,
        **_band("samples", samples),
        **_band("seconds", samples * (1 + 40 / size) / 1e4),
    }


def _predicted(size: int) -> dict[str, Any]:
    samples = 1100 * (1 + size / 37.6)
    return {"batch_size": size, **_band("samples", samples), **_band("seconds", samples * (1 + 40 / size) / 1e4)}


def _band(name: str, value: float) -> dict[str, float]:
    return {name: value, f"{name}_low": 0.9 * value, f"{name}_high": 1.2 * value}
