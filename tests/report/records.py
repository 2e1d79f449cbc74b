"""Records as `ProbeResult` and `Comparison` give them in `to_dict()`: whole, interrupted, undetermined, hostile."""

import math
import statistics
from collections.abc import Sequence
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


def comparison_record(
    recipes: Sequence[str] = ("plain", "sqrt", "ghost", "regime"),
    batch_sizes: Sequence[int] = (128, 512, 4096),
    seeds: int = 3,
    lr_factors: Sequence[float] = (1.0,),
) -> dict[str, Any]:
    """Return the record of a comparison in which every run finished."""
    grid = [(recipe, size, factor) for recipe in recipes for size in batch_sizes for factor in lr_factors]
    runs = [_run(*place, seed, recipes) for place in grid for seed in range(seeds)]
    table = [_row([run for run in runs if _place(run) == place]) for place in grid]
    return {
        "version": "0.1.0",
        "workload": "fashion_mnist",
        "partial": False,
        "settings": {
            "batch_sizes": list(batch_sizes),
            "recipes": list(recipes),
            "seeds": seeds,
            "lr_factors": list(lr_factors),
            "base_batch_size": 128,
            "epochs": 40.0,
            "micro_batch_size": None,
            "autocast": None,
            "runs": "runs",
        },
        "environment": {"torch": "2.14.1", "python": "3.11", "device": "Intel Xeon", "num_threads": 2},
        "metric": {"name": "accuracy", "higher_is_better": True},
        "recipes": [
            {"name": name, "description": f"what {name} does to the base rate", "lr_rule": "sqrt", "clip_norm": None}
            for name in recipes
        ],
        "runs": runs,
        "table": _with_best(table),
        "warnings": ["the epochs of a batch of 4096 hold 14 updates only"],
    }


def partial_comparison() -> dict[str, Any]:
    """Return the record of a comparison that was interrupted in its last recipe, with one run that diverged.

    Of the runs that did not finish two are missing, the others are listed as unfinished.
    """
    record = comparison_record()
    for run in record["runs"][-3:]:
        _fail(run, "unfinished", None)
    del record["runs"][-5:-3]
    _fail(record["runs"][6], "diverged", "the training loss is not finite after 14 updates")
    return _with_table(record) | {"partial": True}


def diverged_comparison() -> dict[str, Any]:
    """Return the record of a comparison whose first recipe diverges at the largest batch size, with every seed."""
    record = comparison_record()
    for run in record["runs"]:
        if (run["recipe"], run["batch_size"]) == ("plain", 4096):
            _fail(run, "diverged", "the training loss is not finite after 14 updates")
    return _with_table(record)


def loss_comparison() -> dict[str, Any]:
    """Return the record of a comparison that is decided by a loss, with one seed."""
    record = comparison_record(seeds=1)
    for owner in (*record["runs"], *record["table"]):
        owner["metrics"] = {name: value for name, value in owner["metrics"].items() if name.endswith("loss")}
    for run in record["runs"]:
        for point in run["curve"]:
            del point["eval_accuracy"], point["train_accuracy"]
    record["metric"] = {"name": "loss", "higher_is_better": False}
    return _with_table(record)


def empty_comparison() -> dict[str, Any]:
    """Return the record of a comparison that was interrupted before its first run."""
    return comparison_record() | {"partial": True, "runs": [], "table": [], "warnings": []}


def hostile_comparison() -> dict[str, Any]:
    """Return a comparison whose every name, reason and setting tries to be markup."""
    attack = "<script>window.owned = true</script><img src=x onerror='window.owned = true'>%{x}" + "w" * 200
    record = comparison_record(recipes=("<b>plain</b>", attack))
    _fail(record["runs"][-1], "diverged", attack)
    record = _with_table(record) | {"workload": attack, "warnings": [attack]}
    record["recipes"][0] |= {"description": attack, attack: attack}
    record["settings"] |= {attack: attack}
    record["environment"] |= {"device": attack}
    return record


def _place(run: dict[str, Any]) -> tuple[str, int, float]:
    return run["recipe"], run["batch_size"], run["lr_factor"]


def _run(recipe: str, size: int, factor: float, seed: int, recipes: Sequence[str]) -> dict[str, Any]:
    rank = list(recipes).index(recipe)
    epochs = 40.0 * (min(size / 128, 4) if recipe == "regime" else 1)
    doublings = math.log2(size / 128)
    final = (
        0.903
        - 0.009 * doublings / (1 + rank)
        - 0.012 * abs(math.log2(factor) - 0.2 * doublings / (1 + rank))
        + 0.0013 * math.sin(7 * seed + 3 * rank + doublings)
    )
    samples = round(epochs * 60_000)
    curve = [_curve_point(final, samples * step / 20, size, rank, seed, step / 20) for step in range(1, 21)]
    last = curve[-1]
    return {
        "recipe": recipe,
        "batch_size": size,
        "seed": seed,
        "lr_factor": factor,
        "key": f"{recipe}-{size}-{factor}-{seed}",
        "status": "done",
        "reason": None,
        "metrics": {name: last[name] for name in last if name.startswith(("eval_", "train_"))},
        "updates": last["updates"],
        "samples": last["samples"],
        "seconds": samples / 4000 * (1 + 30 / size),
        "settings": {
            "lr": 0.1 * factor * (size / 128) ** 0.5,
            "lr_scale": (size / 128) ** 0.5,
            "epochs": epochs,
            "ghost_batch_size": None if recipe in {"plain", "sqrt"} else 128,
            "clip_norm": 5.0 if recipe == "regime" else None,
            "noise_variance": 0.0,
            "milestones": [epochs / 2, 3 * epochs / 4],
            "warmup_epochs": 0.0,
        },
        "curve": curve,
        **_distance(last["updates"], 2.2 - 0.15 * doublings / (1 + rank), seed),
    }


def _curve_point(final: float, samples: float, size: int, rank: int, seed: int, done: float) -> dict[str, Any]:
    epochs = samples / 60_000
    ceiling = 0.97 if done < 0.5 else 0.994 if done < 0.75 else 1.0
    learned = ceiling - 0.25 / (1 + epochs / (1 + 0.3 * math.log2(size / 128) / (1 + rank)))
    wave = 0.008 * math.sin(9 * epochs + 2 * seed + rank) * (1.02 - ceiling) / 0.05
    return {
        "updates": round(samples / size),
        "samples": round(samples),
        "epochs": samples / 60_000,
        "lr": 0.1,
        "train_loss": 0.03 + 3.0 * (1 - learned) + 5 * abs(wave),
        "train_accuracy": min(1.0, final * learned + 0.09 * learned + wave),
        "eval_loss": 0.31 + 1.6 * (1 - learned) + 2 * (0.903 - final),
        "eval_accuracy": final * learned + wave,
    }


def _distance(updates: int, slope: float, seed: int) -> dict[str, Any]:
    places = [t for t in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000) if t <= updates]
    intercept = 0.4 + 0.05 * seed
    law = {
        "intercept": intercept,
        "slope": slope,
        "coefficient": 1.3,
        "exponent": 0.3,
        "r2_log": 0.9968,
        "r2_power": 0.9612,
        "first_update": 20.0,
        "last_update": float(places[-1]),
        "num_points": len(places) - 4,
        "num_independent": len(places) - 4.0,
        "aicc_difference": 14.2,
        "better": "log",
        "reason": "R^2 of the log law is 0.997, that of the power law 0.961",
    }
    distances = [intercept + slope * math.log(t) + 0.4 * max(0, 3 - math.log(t)) for t in places]
    points = [{"updates": t, "distance": distance} for t, distance in zip(places, distances, strict=True)]
    return {"distance": points, "distance_law": law}


def _row(runs: list[dict[str, Any]]) -> dict[str, Any]:
    done = [run for run in runs if run["status"] == "done"]
    names = done[0]["metrics"] if done else []
    return {
        **{key: runs[0][key] for key in ("recipe", "batch_size", "lr_factor")},
        "num_seeds": len(runs),
        "num_diverged": sum(run["status"] == "diverged" for run in runs),
        "metrics": {name: _summary([run["metrics"][name] for run in done]) for name in names},
        **{key: statistics.fmean(run[key] for run in done or runs) for key in ("updates", "samples", "seconds")},
        "lr": runs[0]["settings"]["lr"],
        "is_untuned": runs[0]["lr_factor"] == 1,
        "is_best": False,
    }


def _summary(values: list[float]) -> dict[str, Any]:
    sd = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "sd": sd, "values": values}


def _with_best(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    best: dict[tuple[str, int], dict[str, Any]] = {}
    for row in table:
        place, name = (row["recipe"], row["batch_size"]), "eval_accuracy"
        known = row["metrics"].get(name) or row["metrics"].get("eval_loss")
        if known and (place not in best or known["mean"] > best[place]["metrics"][name]["mean"]):
            best[place] = row
    return [row | {"is_best": row is best.get((row["recipe"], row["batch_size"]))} for row in table]


def _with_table(record: dict[str, Any]) -> dict[str, Any]:
    places = dict.fromkeys(_place(run) for run in record["runs"])
    rows = [_row([run for run in record["runs"] if _place(run) == place]) for place in places]
    return record | {"table": _with_best(rows)}


def _fail(run: dict[str, Any], status: str, reason: str | None) -> None:
    kept = 1 if status == "diverged" else 6
    curve, law = run["curve"][:kept], None
    run |= {"status": status, "reason": reason, "metrics": {}, "curve": curve, "distance": [], "distance_law": law}
    run |= {"updates": curve[-1]["updates"], "samples": curve[-1]["samples"], "seconds": 3.0}
