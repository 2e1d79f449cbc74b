"""Saved weights get into a model, however they were saved."""

import pickle

import pytest
import torch
from torch import nn
from train.small_workloads import weights_of

from anybatch import InputError
from anybatch.train.checkpoint import load_weights, put_weights


@pytest.fixture
def saved():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def prefixed(prefix, state):
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize(
    "layout",
    [
        lambda state: state,
        lambda state: {"model": state, "optimizer": {"lr": 0.1}},
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model_state_dict": state},
        lambda state: prefixed("module.", state),
        lambda state: prefixed("_orig_mod.", state),
        lambda state: {"state_dict": prefixed("module._orig_mod.", state)},
        lambda state: prefixed("_orig_mod.module.", state),
    ],
    ids=["bare", "model", "state_dict", "model_state_dict", "ddp", "compiled", "ddp of compiled", "compiled ddp"],
)
def test_weights_are_found_bare_or_nested_and_without_wrappers(saved, layout, tmp_path):
    torch.save(layout(saved.state_dict()), tmp_path / "weights.pt")
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    put_weights(model, load_weights(tmp_path / "weights.pt"))
    assert torch.equal(weights_of(model), weights_of(saved))


def test_weights_get_into_a_compiled_model(saved, tmp_path):
    torch.save(saved.state_dict(), tmp_path / "weights.pt")
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    put_weights(torch.compile(model), load_weights(tmp_path / "weights.pt"))
    assert torch.equal(weights_of(model), weights_of(saved))


def test_a_model_whose_own_part_is_called_model_is_read_as_a_bare_state(tmp_path):
    model = nn.ModuleDict({"model": nn.Linear(2, 1)})
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    assert list(load_weights(tmp_path / "weights.pt")) == ["model.weight", "model.bias"]


def write_text(path):
    path.write_text("these are not weights\n")


def write_nothing(path):
    path.write_bytes(b"")


def write_half(path):
    torch.save({"weight": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:500])


def write_pickle(path):
    path.write_bytes(pickle.dumps({"weight": [1, 2]}))


def write_module(path):
    torch.save(nn.Linear(2, 1), path)


@pytest.mark.parametrize("write", [write_text, write_nothing, write_half, write_pickle, write_module])
def test_a_file_that_cannot_be_used_is_told_in_one_line(write, tmp_path):
    path = tmp_path / "weights.pt"
    write(path)
    with pytest.raises(InputError, match=r"^checkpoint .*weights\.pt (cannot be read|must hold) [^\n\x1b]*\.$"):
        load_weights(path)


@pytest.mark.parametrize(("name", "why"), [("missing.pt", "No such file or directory"), ("", "Is a directory")])
def test_a_path_without_a_file_is_told_with_its_cause(name, why, tmp_path):
    with pytest.raises(InputError, match=rf"checkpoint .* cannot be read: {why}\.$"):
        load_weights(tmp_path / name)


@pytest.mark.parametrize("value", [[1, 2], {}, {"epoch": 3}, {"weight": torch.zeros(2), "epoch": 3}, torch.zeros(3)])
def test_a_file_without_a_state_is_refused(value, tmp_path):
    torch.save(value, tmp_path / "weights.pt")
    with pytest.raises(InputError, match="must hold names with their tensors"):
        load_weights(tmp_path / "weights.pt")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (nn.Sequential(nn.Linear(3, 2)), r"checkpoint must fit the workload's model; Unexpected key.*1\.weight"),
        (nn.Linear(3, 2), "checkpoint must fit the workload's model; Missing key.*weight"),
        (nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)), r"size mismatch for 0\.weight"),
    ],
)
def test_weights_of_another_model_are_refused(saved, other, message):
    with pytest.raises(InputError, match=message):
        put_weights(other, saved.state_dict())
