"""The largest micro-batch that trains: on an accelerator by real trials, on a CPU in a child process."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import Dataset, TensorDataset
from train.small_workloads import CPU, Stream, cross_entropy, labelled_vectors, vectors_workload

from anybatch import InputError, RunError
from anybatch.probing import child_trials
from anybatch.probing.memory import (
    MAX_TRIALS,
    free_bytes,
    largest_that_fits,
    measure_memory_limit,
)
from anybatch.probing.memory_trials import is_out_of_memory, worst_case_samples
from anybatch.train.progress import silent
from anybatch.train.runtime import Runtime
from anybatch.workloads import load_workload

# torch's device without storage trains like any other and is not a CPU: a stand-in for an accelerator
ACCELERATOR = Runtime(torch.device("meta"))
MEGABYTE = 10**6
EXAMPLES = Path(__file__).parents[2] / "examples"


def limit_of(workload, runtime=CPU, **arguments):
    return measure_memory_limit(workload, runtime, progress=silent, **arguments)


def failing_above(size, error):
    """Cross-entropy whose forward pass fails for larger batches."""

    def loss(model, batch):
        if len(batch[0]) > size:
            raise error
        return cross_entropy(model, batch)

    return loss


# the search


@given(limit=st.integers(0, 5000), first=st.integers(1, 3), upper=st.integers(3, 70_000))
def test_the_search_ends_close_below_the_limit_in_few_trials(limit, first, upper):
    tried = []

    def fits(size):
        tried.append(size)
        return size <= limit

    found = largest_that_fits(fits, range(first, upper + 1))
    assert len(tried) <= MAX_TRIALS
    assert all(first <= size <= upper for size in tried)
    assert len(set(tried)) == len(tried)
    if limit < first:
        assert found == 0
        assert tried == [first]
    else:
        assert found in tried
        assert found <= limit
        if limit < 4**6 * first or upper <= 4**6 * first:  # else the ten trials end before
            assert found >= min(limit, upper) / 1.25


def test_the_search_takes_all_where_all_fits():
    assert largest_that_fits(lambda size: True, range(1, 1438)) == 1437
    assert largest_that_fits(lambda size: True, range(1, 2)) == 1


def test_the_search_stops_after_the_trials_it_is_given():
    tried = []
    largest_that_fits(lambda size: tried.append(size) or size < 1000, range(1, 100_000), max_trials=4)
    assert tried == [1, 4, 16, 64]


# which errors are those of memory


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (ValueError("bad"), False),
    ],
)
def test_an_error_of_memory_is_told_from_others(error, is_memory):
    assert is_out_of_memory(error) is is_memory


# on an accelerator


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("CUDNN_STATUS_ALLOC_FAILED")],
    ids=["allocator", "cudnn"],
)
def test_an_accelerator_is_tried_until_its_allocator_refuses(error):
    told = []
    workload = vectors_workload(loss=failing_above(37, error))
    limit = measure_memory_limit(workload, ACCELERATOR, progress=lambda *call: told.append(call))
    assert 30 <= limit.max_micro_batch_size <= 37
    assert limit.limited_by == "memory"
    assert not limit.extrapolated
    assert len(limit.trials) == len(told) <= MAX_TRIALS
    sizes = [trial.micro_batch_size for trial in limit.trials]
    assert sizes == sorted(sizes)
    assert [trial.fits for trial in limit.trials] == [size <= 37 for size in sizes]
    assert [trial.peak_bytes is None for trial in limit.trials] == [size > 37 for size in sizes]
    assert f"{limit.max_micro_batch_size} samples fit" in limit.reason
    assert told[0] == ("memory", 0.1, "1 samples fit")


def test_an_accelerator_that_holds_the_data_is_limited_by_them():
    limit = limit_of(vectors_workload(), ACCELERATOR)
    assert (limit.max_micro_batch_size, limit.limited_by) == (96, "dataset")
    assert "all 96 samples of the training set fit at once" in limit.reason


def test_one_sample_that_does_not_fit_an_accelerator_is_refused():
    workload = vectors_workload(loss=failing_above(0, torch.OutOfMemoryError("CUDA out of memory.")))
    with pytest.raises(InputError, match=r"memory must hold one sample; got 1 MB, and it does not fit\. Give more"):
        limit_of(workload, ACCELERATOR, memory=MEGABYTE)


def test_another_error_on_an_accelerator_passes_through():
    workload = vectors_workload(loss=failing_above(3, RuntimeError("device-side assert triggered")))
    with pytest.raises(RuntimeError, match="device-side assert triggered"):
        limit_of(workload, ACCELERATOR)


def test_a_trial_takes_two_steps_and_an_evaluation():
    seen = []

    def loss(model, batch):
        seen.append((len(batch[0]), model.training, torch.is_grad_enabled()))
        return cross_entropy(model, batch)

    limit_of(vectors_workload(loss=loss, train_set=labelled_vectors(2)), ACCELERATOR)
    trial = [(1, True, True), (1, True, True), (1, False, False)]
    assert seen[:3] == trial
    assert len(seen) == 3 * 2


# on a CPU


def test_on_a_cpu_the_digits_are_the_limit():
    limit = limit_of(load_workload("digits"))
    assert (limit.max_micro_batch_size, limit.limited_by) == (1437, "dataset")
    sizes = [trial.micro_batch_size for trial in limit.trials]
    assert sizes == sorted(sizes)
    assert sizes[0] == 1
    assert all(trial.fits and trial.peak_bytes > 10 * MEGABYTE for trial in limit.trials)


def hungry(model, batch):
    """Hold about 4 MB a sample until the backward pass."""
    wide = (model(batch[0])[:, :1] * torch.ones(500_000)).sin()
    return wide.mean() + cross_entropy(model, batch)


def test_memory_just_above_the_baseline_limits_the_micro_batch():
    workload = vectors_workload(loss=hungry, train_set=labelled_vectors(4096))
    with pytest.raises(
        InputError, match=r"memory must hold one sample; got 1 MB, and training on it takes [\d.,]+ [MG]B"
    ):
        limit_of(workload, memory=MEGABYTE)
    baseline = limit_of(vectors_workload(train_set=labelled_vectors(2))).trials[0].peak_bytes
    memory = baseline + 200 * MEGABYTE
    limit = limit_of(workload, memory=memory)
    assert limit.limited_by == "memory"
    assert limit.limit_bytes == memory
    assert 6 <= limit.max_micro_batch_size <= 100
    assert all(trial.peak_bytes <= memory for trial in limit.trials if trial.fits)
    assert max(trial.micro_batch_size for trial in limit.trials if trial.fits) == limit.max_micro_batch_size


def kill_itself():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("die", [kill_itself, lambda: os._exit(3)], ids=["killed", "ended"])
def test_a_trial_that_dies_leaves_the_probe_alive_with_the_last_good_size(die):
    def loss(model, batch):
        if len(batch[0]) > 10:
            die()
        return cross_entropy(model, batch)

    limit = limit_of(vectors_workload(loss=loss))
    assert (limit.max_micro_batch_size, limit.limited_by) == (8, "memory")
    last = limit.trials[-1]
    assert (last.micro_batch_size, last.peak_bytes, last.fits) == (16, None, False)


def test_a_first_trial_that_dies_is_told_as_one_sample_that_does_not_fit():
    with pytest.raises(InputError, match=r"memory must hold one sample; .*it does not fit"):
        limit_of(vectors_workload(loss=lambda model, batch: os._exit(1)))


def test_a_refused_allocation_in_the_child_is_a_size_that_does_not_fit():
    error = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
    limit = limit_of(vectors_workload(loss=failing_above(5, error)))
    assert (limit.max_micro_batch_size, limit.limited_by) == (4, "memory")


def test_another_failure_in_the_child_is_told():
    with pytest.raises(RunError, match="training failed with ValueError: bad label"):
        limit_of(vectors_workload(loss=failing_above(2, ValueError("bad label"))))


def test_a_trial_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr("anybatch.probing.child_trials.TRIAL_TIMEOUT", 0.5)

    def loss(model, batch):
        time.sleep(60 if len(batch[0]) == 2 else 0)
        return cross_entropy(model, batch)

    with pytest.raises(RunError, match=r"a trial of 2 samples took over 0\.5 s in a process of its own"):
        limit_of(vectors_workload(loss=loss))


def test_a_refusal_in_the_child_reaches_the_parent():
    with pytest.raises(InputError, match=r"model of a Workload must return an nn\.Module"):
        limit_of(vectors_workload(model=lambda: None))


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells it on Linux alone")
def test_the_peak_of_a_new_process_is_not_its_parents():
    held = torch.ones(2**30, dtype=torch.uint8)
    script = "from anybatch.probing import child_trials; print(child_trials._peak_bytes())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) < held.numel()


DEPTH_OF_THREADS = 70  # above 60 nested calls of backward() autograd goes on in a thread, after which no fork may train

AFTER_A_NESTED_BACKWARD = """
import sys
import torch
from anybatch.probing.memory import measure_memory_limit
from anybatch.train.progress import silent
from anybatch.train.runtime import Runtime
from anybatch.workloads import load_workload

def nested(value, depth):
    hidden = torch.utils.checkpoint.checkpoint(nested, value, depth - 1, use_reentrant=True) if depth else value
    return hidden.tanh()

def main():
    nested(torch.ones(2, requires_grad=True), {depth}).sum().backward()
    limit = measure_memory_limit(load_workload(sys.argv[1]), Runtime.detect("cpu"), progress=silent)
    print(limit.limited_by, len(limit.trials))

{call}
"""


def probe_memory_after_a_nested_backward(tmp_path, spec, call="if __name__ == '__main__': main()"):
    script = tmp_path / "script.py"
    script.write_text(AFTER_A_NESTED_BACKWARD.format(depth=DEPTH_OF_THREADS, call=call))
    return subprocess.run([sys.executable, script, spec], capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("spec", ["digits", f"{EXAMPLES / 'my_workload.py'}:my_workload"])
def test_memory_is_tried_where_autograd_refuses_to_run_after_a_fork(spec, tmp_path):
    done = probe_memory_after_a_nested_backward(tmp_path, spec)
    limited_by, num_trials = done.stdout.split()
    assert limited_by in ("memory", "dataset")
    assert int(num_trials) > 1


def test_a_workload_that_cannot_reach_the_other_process_is_told_what_to_do(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import replace\nfrom anybatch.workloads import load_workload\n"
        "def mine():\n    digits = load_workload('digits')\n"
        "    return replace(digits, loss=lambda model, batch: digits.loss(model, batch))\n"
    )
    done = probe_memory_after_a_nested_backward(tmp_path, f"{file}:mine")
    assert "must pickle to be tried in a process of its own" in done.stderr
    assert "Use functions of a module instead of lambdas, or probe in a fresh process." in done.stderr


@pytest.mark.parametrize(
    ("files", "pickled", "message"),
    [
        (
            {},
            b"cbuiltins\nnothing_of_this_name\n.",
            r"read in a process of its own; AttributeError.*Define it in a file",
        ),
        ({"anybatch_user_gone": Path("gone.py")}, b"", r"read in a process of its own; gone\.py could not be loaded"),
    ],
)
def test_a_workload_that_the_other_process_cannot_read_is_told(files, pickled, message):
    here, there = multiprocessing.Pipe()
    here.send_bytes(pickled)
    child_trials._answer_pickled(there, files, CPU, 0)
    answer = here.recv()
    assert isinstance(answer, RunError)
    assert re.search(message, str(answer))


def test_a_script_without_a_guard_is_told_to_have_one(tmp_path):
    done = probe_memory_after_a_nested_backward(tmp_path, "digits", call="main()")
    assert "RunError: the process that tries memory ended with exit code 1 before a trial" in done.stderr
    assert "below `if __name__ == '__main__':`" in done.stderr


def test_trials_start_at_the_smallest_size_that_trains():
    workload = vectors_workload(model=lambda: nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3)))
    limit = limit_of(workload, min_micro_batch_size=2)
    assert limit.trials[0].micro_batch_size == 2
    with pytest.raises(InputError, match="memory must hold 2 samples"):
        limit_of(workload, min_micro_batch_size=2, memory=MEGABYTE)


def test_a_stream_is_searched_as_far_as_the_search_goes():
    limit = limit_of(vectors_workload(train_set=Stream(labelled_vectors(300))), ACCELERATOR)
    assert (limit.max_micro_batch_size, limit.limited_by) == (65_536, "search")
    assert limit.reason.endswith("the search ended there, more may fit")


def test_a_budget_that_ends_trials_is_said_with_the_straight_line():
    workload = vectors_workload(loss=hungry, train_set=labelled_vectors(100_000))
    limit = limit_of(workload, budget=1.5, memory=free_bytes(CPU) // 4)
    assert limit.extrapolated
    assert limit.max_micro_batch_size > limit.trials[-1].micro_batch_size
    assert f"tried to {limit.trials[-1].micro_batch_size}, the rest follows the straight line" in limit.reason


def test_the_child_leaves_the_random_state_alone():
    before = torch.random.get_rng_state()
    limit_of(vectors_workload())
    assert torch.equal(torch.random.get_rng_state(), before)


# worst-case samples


class Ragged(Dataset):
    """Samples of 1 to 50 elements, in many shapes."""

    def __len__(self):
        return 50

    def __getitem__(self, index):
        size = 1 + (index * 7) % 50
        tensor = torch.zeros(size)
        return [tensor, (tensor, 1), {"image": tensor, "name": "a"}, tensor.numpy()][index % 4]


def num_elements(sample):
    """What else a sample holds beside its tensor counts as one."""
    if isinstance(sample, dict):
        return len(sample["image"]) + 1
    return len(sample[0]) + 1 if isinstance(sample, tuple) else len(sample)


def test_trials_use_the_largest_samples():
    chosen = worst_case_samples(vectors_workload(train_set=Ragged(), base_batch_size=None), seed=0)
    sizes = sorted((num_elements(Ragged()[index]) for index in range(50)), reverse=True)
    assert [num_elements(sample) for sample in chosen] == sizes[:8]


def test_all_samples_are_taken_where_there_are_few():
    workload = vectors_workload(train_set=TensorDataset(torch.zeros(3, 2)), base_batch_size=None)
    assert len(worst_case_samples(workload, seed=0)) == 3


def test_free_memory_is_shared_among_the_ranks_of_a_machine(monkeypatch):
    alone = free_bytes(CPU)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_bytes(CPU) == pytest.approx(alone / 4, rel=0.2)
