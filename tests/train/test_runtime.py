"""Where training runs, and what ranks agree on."""

import pytest
import torch
from train.small_workloads import CPU

from anybatch import InputError
from anybatch.train.runtime import Runtime


def test_without_a_process_group_there_is_one_rank():
    runtime = Runtime.detect("cpu")
    assert (runtime.device, runtime.rank, runtime.world_size) == (torch.device("cpu"), 0, 1)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", ":", "xpu:3"])
def test_a_device_that_is_not_there_is_refused(device):
    with pytest.raises(InputError, match=f"device must be one torch can use here; got '{device}'"):
        Runtime.detect(device)


def test_a_single_process_agrees_with_itself():
    assert CPU.sum([1.0, 2.0]) == CPU.max([1.0, 2.0]) == CPU.min([1.0, 2.0]) == [1.0, 2.0]
    assert CPU.all(True)
    assert not CPU.all(False)
