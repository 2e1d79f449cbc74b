"""Records as `ProbeResult.to_dict()` gives them: a whole run, an interrupted one, an undetermined one."""

from typing import Any

CRITICAL = 28.1
LOADER_LIMIT = 14_000.0


def complete_record() -> dict[str, Any]:
    """Return the record of a run in which everything was measured."""
    return {
        "version": "0.1.0",
        "workload": "digits",
        "partial": False,
        "settings": {"seed": 0, "device": "cpu", "objective": "time", "confidence": 0.95, "data_root": None},
        "environment": {
            "torch": "2.14.1",
            "python": "3.11",
            "device": "Intel Xeon",
            "num_threads": 2,
            "world_size": 1,
        },
        "memory": _memory(),
        "throughput": [_throughput(2**power) for power in range(11)],
        "knee": {
            "micro_batch_size": 64,
            "share": 0.9,
            "reason": "64 is the smallest micro-batch with 90 % of the best throughput",
        },
        "noise_scale": _noise_scale(),
        "law": {
            "critical_batch_size": CRITICAL,
            "low": 24.0,
            "high": 33.0,
            "reason": "beyond 28.1 samples per batch, more samples buy less than they cost",
        },
        "curve": [_prediction(2**power) for power in range(2, 13)],
        "devices": [_devices(count) for count in (1, 2, 4, 8, 16, 32)],
        "diminishing_devices": {
            "devices": 8,
            "reason": "from 8 devices on, each one more adds less than half of its own speed",
        },
        "recommendation": _recommendation(),
        "warnings": [
            {
                "cause": "BatchNorm in train mode",
                "message": "Statistics of a micro-batch of 32 differ from those of the whole batch",
                "relative_difference": 0.12,
            },
            {
                "cause": "Adam",
                "message": "The noise scale is in SGD's geometry.",
                "relative_difference": None,
            },
        ],
        "seconds": {
            "memory": 3.1,
            "throughput": 10.2,
            "accumulation": 0.3,
            "noise_scale": 12.1,
            "total": 26.0,
        },
    }


def partial_record() -> dict[str, Any]:
    """Return the record of a run that was interrupted after its memory was measured."""
    nothing: dict[str, Any] = dict.fromkeys(("knee", "noise_scale", "law", "recommendation", "diminishing_devices"))
    unfinished = {"partial": True, "throughput": [], "curve": [], "devices": [], "warnings": []}
    return complete_record() | nothing | unfinished | {"seconds": {"memory": 3.1, "total": 3.4}}


def undetermined_record() -> dict[str, Any]:
    """Return a record whose noise scale has no upper end, nor has what follows from it."""
    record = complete_record()
    noise = record["noise_scale"]
    for estimate in (noise, *noise["points"], *noise["modules"].values()):
        estimate |= {"verdict": "undetermined", "high": None}
    noise |= {"value": None, "reason": "the interval has no upper end after 40 steps"}
    for name in ("relative_time", "relative_samples"):
        for point in record["curve"]:
            point[f"{name}_high"] = None
    record["recommendation"] |= {"batch_size_high": None, "lr_scale": None}
    record["recommendation"]["reasons"]["lr_scale"] = "the workload names no base batch size to scale from"
    record["law"] |= {"critical_batch_size": None, "high": None, "reason": "the noise scale has no upper end"}
    return record


def single_point_record() -> dict[str, Any]:
    """Return a record with one point of everything, on one device."""
    record = complete_record()
    record["diminishing_devices"] = None
    for name in ("throughput", "curve", "devices"):
        record[name] = record[name][:1]
    record["memory"]["trials"] = record["memory"]["trials"][:1]
    record["noise_scale"]["points"] = record["noise_scale"]["points"][:1]
    return record


def hostile_record() -> dict[str, Any]:
    """Return a record whose every name, reason and setting tries to be markup."""
    record = complete_record()
    attack = "<script>window.owned = true</script><img src=x onerror='window.owned = true'>" + "w" * 200
    estimate = record["noise_scale"]["modules"]["features"]
    record["noise_scale"]["modules"]["<img src=x>"] = estimate
    for point in record["noise_scale"]["points"]:
        point["modules"] = {"<a href=x>": estimate, "</script>": estimate}
    record["recommendation"]["reasons"]["batch_size"] = attack
    record["recommendation"]["settings"][attack] = attack
    record["warnings"][0] = {"cause": attack, "message": attack, "relative_difference": None}
    record["settings"][attack] = attack
    record["environment"]["device"] = attack
    for owner in (record["noise_scale"], record["law"], record["memory"], record["knee"]):
        owner["reason"] = attack
    return record | {"workload": attack, "seconds": {attack: 1.0}}


def _memory() -> dict[str, Any]:
    sizes = [1, 4, 16, 64, 256, 1024, 4096]
    trials = [{"micro_batch_size": n, "peak_bytes": 4.1e8 + 6e6 * n, "fits": True} for n in sizes[:-1]]
    return {
        "max_micro_batch_size": 2600,
        "limited_by": "memory",
        "limit_bytes": 16_000_000_000,
        "extrapolated": False,
        "trials": [*trials, {"micro_batch_size": sizes[-1], "peak_bytes": None, "fits": False}],
        "reason": "4096 samples ran out of memory and 2600 did not",
    }


def _throughput(size: int) -> dict[str, Any]:
    rate = 21_000 * size / (size + 7)
    return {
        "micro_batch_size": size,
        "samples_per_second": rate,
        "samples_per_second_low": 0.94 * rate,
        "samples_per_second_high": 1.05 * rate,
        "samples_per_second_with_loader": 1 / (1 / rate + 1 / (3 * LOADER_LIMIT)),
        "seconds_per_step": size / rate,
    }


def _estimate(value: float, spread: float = 0.18) -> dict[str, Any]:
    low, high = value * (1 - spread), value * (1 + spread)
    return {"value": value, "low": low, "high": high, "at_least": 1.03 * low, "verdict": "measured"}


def _noise_scale() -> dict[str, Any]:
    points = [
        (0, 2.3, 3.1),
        (3200, 1.6, 6.0),
        (6400, 1.1, 11.5),
        (9600, 0.7, 19.0),
        (12800, 0.5, 25.0),
        (16000, 0.42, 28.1),
    ]
    modules = {"features": _estimate(41.3, 0.3), "classifier": _estimate(12.7, 0.2)}
    return {
        "value": CRITICAL,
        "low": 24.0,
        "high": 33.0,
        "at_least": 24.9,
        "verdict": "measured",
        "steps_to_settle": None,
        "target": "training_set",
        "confidence": 0.95,
        "reason": "both norms are known to a tenth after 40 steps",
        "modules": modules | {"norm": {**_estimate(9.4), "value": None, "high": None, "verdict": "undetermined"}},
        "points": [
            {
                "samples": samples,
                "loss": loss,
                **_estimate(value),
                "modules": {"features": _estimate(1.5 * value), "classifier": _estimate(0.45 * value)},
            }
            for samples, loss, value in points
        ],
    }


def _prediction(size: int) -> dict[str, Any]:
    samples = (1 + size / CRITICAL) / (1 + 32 / CRITICAL)
    time = samples * (1 + 40 / size) / (1 + 40 / 32)
    return {
        "batch_size": size,
        "micro_batch_size": min(size, 2048),
        "accumulation_steps": max(1, size // 2048),
        "relative_time": time,
        "relative_time_low": 0.9 * time,
        "relative_time_high": 1.12 * time,
        "relative_samples": samples,
        "relative_samples_low": 0.93 * samples,
        "relative_samples_high": 1.08 * samples,
    }


def _devices(count: int) -> dict[str, Any]:
    speedup = count / (1 + (count - 1) / 9)
    return {
        "devices": count,
        "batch_size": 32 * count,
        "micro_batch_size": 32,
        "speedup": speedup,
        "speedup_low": 0.9 * speedup,
        "speedup_high": 1.1 * speedup,
        "efficiency": speedup / count,
    }


def _recommendation() -> dict[str, Any]:
    return {
        "batch_size": 32,
        "micro_batch_size": 16,
        "accumulation_steps": 2,
        "batch_size_low": 16,
        "batch_size_high": 48,
        "lr_scale": 0.5,
        "lr_rule": "linear",
        "reasons": {
            "batch_size": "32 has the least predicted time; 16 to 48 are as good within the uncertainty",
            "micro_batch_size": "16 fits and reaches 70 % of the best throughput",
            "accumulation_steps": "2 micro-batches of 16 make a batch of 32",
            "lr_scale": "the base rate was tuned at 64, and 32 / 64 = 0.5",
        },
        "settings": {
            "PyTorch": "loader = DataLoader(train_set, batch_size=16)\naccumulation_steps = 2\n",
            "Hugging Face": "TrainingArguments(per_device_train_batch_size=16, max_steps=2_000)",
            "Lightning": "Trainer(accumulate_grad_batches=2)\n",
        },
    }
