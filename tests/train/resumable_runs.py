"""Runs with everything that a kill could lose, and the processes that train them."""

import json
import multiprocessing
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import Dataset, TensorDataset
from train.small_workloads import CPU, Regularized, cross_entropy, labelled_vectors, vectors_workload

from anybatch import Workload
from anybatch.train.plan import LayerwisePlan, ModuleRates, Plan
from anybatch.train.run import RunSettings, run_training
from anybatch.train.run_folder import RunFolder
from anybatch.train.runtime import Runtime
from anybatch.train.stop import StopRequest

JOIN_TIMEOUT = 90.0  # seconds; a process that hangs is killed
EVERYTHING = Plan(lr_scale=0.5, warmup_epochs=1.0, ghost_batch_size=8, clip_norm=1.0, noise_variance=1.0)


class Jittered(Dataset[Any]):
    """Vectors with noise from each of the three global generators."""

    def __init__(self) -> None:
        self.vectors = labelled_vectors()

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, index: int) -> Any:
        inputs, label = self.vectors[index]
        return inputs * (0.9 + 0.2 * random.random()) + 0.1 * torch.randn(6) + 0.1 * np.random.rand(), label


def jittered_workload(**changes: Any) -> Workload:
    """Batch norm, dropout, augmentation, momentum and a scheduler of torch."""
    fields = {
        "model": Regularized,
        "train_set": Jittered(),
        "eval_set": TensorDataset(*labelled_vectors()[:40]),
        "optimizer": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3),
        "schedule": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 7, 0.8),
        "epochs": 66,
        **changes,
    }
    return vectors_workload(**fields)


def settings_of(**changes: Any) -> RunSettings:
    return RunSettings(**{"batch_size": 16, "seed": 3, "plan": EVERYTHING, "num_evaluations": 12, **changes})


def train_jittered(folder: Path, num_calls: Any, checkpoint_seconds: float, deadly_call: int | None = None) -> None:
    """Train in a process of its own that counts its steps, and sends itself two signals if asked to."""
    torch.set_num_threads(1)

    def loss(model, batch):
        num_calls.value += model.training
        if num_calls.value == deadly_call:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        return cross_entropy(model, batch)

    with StopRequest() as stop:
        run_training(
            jittered_workload(loss=loss),
            CPU,
            settings_of(),
            RunFolder(folder),
            stop=stop,
            checkpoint_seconds=checkpoint_seconds,
        )


def processes() -> Any:
    """Return a context whose processes are forked from one that has imported torch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["anybatch.train.run", "torch._dynamo"])
    return context


def run_on_ranks(world_size: int, store_port: int, rank: int, folder: Path) -> None:
    """Run every case of `CASES` as one rank and save what came out."""
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", store_port, is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    runtime = Runtime(torch.device("cpu"), rank, world_size)
    found = {name: case(runtime, folder / name) for name, case in CASES.items()}
    (folder / f"rank{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def without_batch_norm(runtime: Runtime, folder: Path) -> Any:
    workload = rank_workload(lambda: nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)))
    return run_training(workload, runtime, settings_of(plan=Plan(clip_norm=0.5)), RunFolder(folder))


def accumulated(runtime: Runtime, folder: Path) -> Any:
    workload = rank_workload(lambda: nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)))
    settings = settings_of(plan=Plan(clip_norm=0.5), micro_batch_size=3, batch_size=15)
    return run_training(workload, runtime, settings, RunFolder(folder))


def at_rates_of_modules(runtime: Runtime, folder: Path) -> Any:
    workload = replace(
        rank_workload(lambda: nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))), module_prefixes=["0", "2"]
    )
    plan = LayerwisePlan(agvm=ModuleRates(interval=3, momentum=0.5, start_step=2), clip_norm=0.5)
    return run_training(workload, runtime, settings_of(plan=plan), RunFolder(folder))


def ghosts_of_a_share(runtime: Runtime, folder: Path) -> Any:
    settings = settings_of(plan=Plan(ghost_batch_size=8), takes_eval_loss=False)
    return run_training(normalized_workload(), runtime, settings, RunFolder(folder))


def normalized_workload() -> Workload:
    return rank_workload(lambda: nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 3)))


def normalized_by_rank(runtime: Runtime, folder: Path) -> Any:
    found = run_training(normalized_workload(), runtime, settings_of(plan=Plan()), RunFolder(folder))
    return {"folder": str(folder), **found}


def resumed(runtime: Runtime, folder: Path) -> Any:
    """Stop by a signal on the last rank alone, and go on."""
    workload = rank_workload(lambda: nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)))
    stop = StopRequest()
    if runtime.rank == runtime.world_size - 1:
        stop.signal = signal.SIGTERM
    settings, words = settings_of(plan=Plan(clip_norm=0.5)), ""
    try:
        run_training(workload, runtime, settings, RunFolder(folder), stop=stop)
    except RuntimeError as error:
        words = str(error)
    return {"words": words, **run_training(workload, runtime, settings, RunFolder(folder))}


def rank_workload(model: Any) -> Workload:
    return jittered_workload(model=lambda: model().double(), epochs=8, collate=in_double)


def in_double(samples: Any) -> Any:
    inputs, labels = zip(*samples, strict=True)
    return torch.stack(inputs).double(), torch.stack(labels)


CASES = {
    case.__name__: case
    for case in (without_batch_norm, accumulated, at_rates_of_modules, ghosts_of_a_share, normalized_by_rank, resumed)
}


def wait_until(condition: Any, seconds: float = JOIN_TIMEOUT) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.0005)
    return bool(condition())
