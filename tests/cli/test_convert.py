"""`anybatch convert`: the table of layers, weights that load into the other model, and refusals."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from anybatch import Workload
from anybatch.cli import launch
from anybatch.cli.main import app
from anybatch.nn import convert

FILE = Path(__file__)


def normed(**changes):
    fields = {
        "model": lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)),
        "train_set": TensorDataset(torch.randn(20, 6), torch.zeros(20).long()),
        "loss": lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
        "optimizer": lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
        **changes,
    }
    return Workload(**fields)


def without_norms():
    return normed(model=lambda: nn.Linear(6, 3))


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command; return exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["anybatch", "convert", *map(str, arguments)])
        code = launch.run(app)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.mark.parametrize("kind", ["ghost", "batch_renorm", "moving_average", "group", "layer", "sync", "kalman"])
def test_a_dry_run_prints_the_table_of_layers(run, kind):
    code, out, err = run(f"{FILE}:normed", "--to", kind, "--dry-run")
    assert (code, err) == (0, "")
    first, row, *_ = out.splitlines()
    assert first == f"layers replaced: 1, kind: {kind}"
    assert row.split()[0] == "1"


def test_options_reach_the_layers(run):
    options = ["--option", "micro_batch_size=2", "--option", "relaxation=0,10,20", "--option", "r_max=2.5"]
    code, out, _ = run(f"{FILE}:normed", "--to", "batch_renorm", "--dry-run", *options)
    assert code == 0
    assert "micro_batch_size=2, r_max=2.5, d_max=5.0, relaxation=(0, 10, 20))" in out
    code, out, _ = run(f"{FILE}:normed", "--to", "moving_average", "--dry-run", "--option", "centered_weights=true")
    assert "note: weights are centred in 1 layers: 0" in out


@pytest.mark.parametrize(("names", "count"), [("0", 1), ("0,3", 2)])
def test_layers_to_center_may_be_named(run, names, count):
    code, out, _ = run(f"{FILE}:normed", "--to", "moving_average", "--dry-run", "--option", f"centered_weights={names}")
    assert code == 0
    assert f"note: weights are centred in {count} layers: {', '.join(names.split(','))}" in out


class Detector(nn.Module):
    """A traceable body, and a head that is not."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(6, 4)
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8))
        self.head = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 3))

    def forward(self, features):
        body = self.body(self.stem(features))
        return self.head(body) if float(body.detach().sum()) < 1e9 else body


def of_parts():
    return normed(model=Detector)


def test_a_part_of_a_model_is_converted_alone(run, tmp_path):
    path = tmp_path / "out.pt"
    code, out, err = run(f"{FILE}:of_parts", "--to", "kalman", "--part", "body", "--save", path)
    assert (code, err) == (0, "")
    assert out.startswith("layers replaced: 2, kind: kalman")
    assert "layers with a prior: 1 of 2" in out
    assert torch.load(path, weights_only=True).keys() - Detector().state_dict().keys() == {"body.4.prior_logit"}
    code, out, _ = run(f"{FILE}:of_parts", "--to", "group", "--part", "head.0", "--save", path)
    assert code == 0
    assert out.startswith("layers replaced: 1, kind: group")
    gone = Detector().state_dict().keys() - torch.load(path, weights_only=True).keys()
    assert gone == {f"head.0.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}


@pytest.mark.parametrize("name", ["neck", ""])
def test_a_part_that_is_not_there_is_refused(run, name):
    code, _, err = run(f"{FILE}:of_parts", "--to", "ghost", "--part", name, "--dry-run")
    assert code == 2
    said = " ".join(err.split())
    assert f"--part must name a module of the model; got '{name}'. It consists of stem, body, head." in said


def test_a_model_without_batch_norm_says_so(run):
    code, out, _ = run(f"{FILE}:without_norms", "--to", "group", "--dry-run")
    assert code == 0
    assert "there is no batch normalization in it, so nothing to replace" in out


class Sharing(nn.Module):
    """One norm under two names, a head that is called by keyword, and parts that are not called."""

    def __init__(self):
        super().__init__()
        self.norm1 = nn.BatchNorm1d(6)
        self.norm2 = self.norm1
        self.head = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3))
        self.unused = nn.ModuleList([nn.BatchNorm1d(6)])

    def forward(self, features):
        return self.head(input=self.norm2(self.norm1(features)))


def sharing():
    return normed(model=Sharing)


def test_a_part_that_is_shared_stays_shared(run, tmp_path):
    assert run(f"{FILE}:sharing", "--to", "group", "--part", "norm2", "--save", tmp_path / "o.pt")[0] == 0
    assert not [
        name for name in torch.load(tmp_path / "o.pt", weights_only=True) if "norm" in name and "running" in name
    ]


@pytest.mark.parametrize("part", ["head", "unused"])
def test_a_part_whose_inputs_are_not_known_is_refused_where_they_are_needed(run, part):
    code, _, err = run(f"{FILE}:sharing", "--to", "kalman", "--part", part, "--dry-run")
    assert code == 2
    assert "--part must name a module that is called with positional arguments alone" in err
    assert f"'{part}' is not. Name the module around it." in err
    assert run(f"{FILE}:sharing", "--to", "group", "--part", part, "--dry-run")[0] == 0


def by_keyword(model, batch):
    return nn.functional.cross_entropy(model(features=batch[0]), batch[1])


def called_by_keyword():
    return normed(model=Detector, loss=by_keyword)


def test_a_model_whose_inputs_are_not_known_is_refused_with_what_to_do(run):
    code, _, err = run(f"{FILE}:called_by_keyword", "--to", "kalman", "--dry-run")
    assert code == 2
    assert "the loss must call the model with positional arguments alone" in err
    assert "name a part that is called so with --part" in err
    assert run(f"{FILE}:called_by_keyword", "--to", "kalman", "--part", "body", "--dry-run")[0] == 0


def test_a_part_that_is_a_norm_is_a_first_norm(run):
    code, out, _ = run(f"{FILE}:of_parts", "--to", "kalman", "--part", "body.1", "--dry-run")
    assert code == 0
    assert "first norm: nothing is known of the model's input" in out


def test_a_converted_checkpoint_loads_into_the_converted_model(run, tmp_path):
    model = normed().model()
    torch.save(model.state_dict(), tmp_path / "in.pt")
    code, _, err = run(
        f"{FILE}:normed", "--to", "group", "--checkpoint", tmp_path / "in.pt", "--save", tmp_path / "out.pt"
    )
    assert (code, err) == (0, "")
    other = convert(normed().model(), "group").model
    other.load_state_dict(torch.load(tmp_path / "out.pt", weights_only=True))
    assert torch.equal(other[1].weight, model[1].weight)
    assert torch.equal(other[0].weight, model[0].weight)


WAYS_BACK = {
    "kalman": [],
    "kalman with other tensors": ["gain=adaptive", "transition=learned"],
    "moving_average": [],
    "moving_average with other tensors": ["num_averaged=4", "centered_weights=true"],
    "ghost": [],
    "sync": [],
}


def deep():
    return normed(
        model=lambda: nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
        )
    )


@pytest.mark.parametrize("way", WAYS_BACK)
def test_a_converted_checkpoint_comes_back_to_batch_norm(run, tmp_path, way):
    kind, options = way.split()[0], [part for option in WAYS_BACK[way] for part in ("--option", option)]
    first, plain = deep().model(), deep().model()
    torch.save(first.state_dict(), tmp_path / "in.pt")
    there = ["--to", kind, *options, "--checkpoint", tmp_path / "in.pt", "--save", tmp_path / "kind.pt"]
    assert run(f"{FILE}:deep", *there)[0] == 0
    settings = [part.replace("--option", "--checkpoint-option") for part in options]
    back = ["--to", "batch", "--checkpoint", tmp_path / "kind.pt", "--checkpoint-kind", kind, *settings]
    code, out, err = run(f"{FILE}:deep", *back, "--save", tmp_path / "out.pt")
    assert (code, err) == (0, "")
    assert out.startswith("layers replaced: 2, kind: batch")
    plain.load_state_dict(torch.load(tmp_path / "out.pt", weights_only=True))
    if "centered_weights=true" in options:
        convert(first, "moving_average", centered_weights=True)
    x = torch.randn(4, 6)
    torch.testing.assert_close(plain.eval()(x), first.eval()(x))


def test_a_converted_checkpoint_goes_on_to_the_same_kind_with_what_it_learnt(run, tmp_path):
    model = convert(deep().model(), "kalman", sources={"4": [["1", torch.relu, "3"]]}).model
    model[4].prior_logit.data.fill_(0.7)
    torch.save(model.state_dict(), tmp_path / "in.pt")
    saved = ["--checkpoint", tmp_path / "in.pt", "--checkpoint-kind", "kalman"]
    code, out, _ = run(f"{FILE}:deep", "--to", "kalman", *saved, "--save", tmp_path / "out.pt")
    assert code == 0
    assert "layers with a prior: 1 of 2" in out
    assert torch.load(tmp_path / "out.pt", weights_only=True)["4.prior_logit"].item() == pytest.approx(0.7)


@pytest.mark.parametrize("part", ["body", "body.4"])
def test_a_checkpoint_of_a_converted_part_comes_back(run, tmp_path, part):
    command = [f"{FILE}:of_parts", "--part", part]
    assert run(*command, "--to", "kalman", "--save", tmp_path / "kind.pt")[0] == 0
    back = ["--to", "batch", "--checkpoint", tmp_path / "kind.pt", "--checkpoint-kind", "kalman"]
    assert run(*command, *back, "--save", tmp_path / "out.pt")[0] == 0
    assert torch.load(tmp_path / "out.pt", weights_only=True).keys() == Detector().state_dict().keys()


def test_a_checkpoint_of_another_kind_is_refused_with_the_option_that_names_it(run, tmp_path):
    run(f"{FILE}:deep", "--to", "kalman", "--save", tmp_path / "kind.pt")
    code, _, err = run(f"{FILE}:deep", "--to", "batch", "--checkpoint", tmp_path / "kind.pt", "--dry-run")
    said = " ".join(err.split())
    assert code == 2
    assert 'the checkpoint must fit the workload\'s model; Unexpected key(s) in state_dict: "4.prior_logit".' in said
    assert "name what batch norm was by --checkpoint-kind" in said


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--to", "group"], "convert must be given --dry-run, to show what would be done, or --save FILE; give one"),
        (["--to", "group", "--dry-run", "--save", "x.pt"], "convert must be given --dry-run"),
        (["--to", "instance", "--dry-run"], "'instance' is not one of 'ghost', 'batch'"),
        (["--to", "group", "--dry-run", "--option", "num_groups"], "--option must be name=value, such as"),
        (["--to", "group", "--dry-run", "--option", "num_groups=3"], "num_groups must divide the channels of every"),
        (["--to", "batch", "--dry-run", "--option", "x=1"], "options of kind 'batch' must be none; got x"),
        (["--to", "group", "--dry-run", "--option", "num_groups=two"], "num_groups must divide the channels of every"),
        (
            ["--to", "batch", "--dry-run", "--checkpoint-kind", "kalman"],
            "--checkpoint-kind must come with --checkpoint",
        ),
        (["--to", "batch", "--dry-run", "--checkpoint-option", "gain=fixed"], "--checkpoint-option must come with"),
        (["--to", "kalman", "--dry-run", "--option", "prior_weight=abc"], "prior_weight must be between 0 and 1; got"),
        (["--to", "kalman", "--dry-run", "--option", "ratio_limit=abc"], "ratio_limit must be positive; got 'abc'"),
        (["--to", "kalman", "--dry-run", "--option", "detach_prior=maybe"], "detach_prior must be True or False; got"),
        (["--to", "kalman", "--dry-run", "--option", "sources=bn1"], "sources must map names of layers to lists of"),
        (["--to", "batch_renorm", "--dry-run", "--option", "r_max=abc"], "r_max must be at least 1; got 'abc'"),
        (
            ["--to", "batch_renorm", "--dry-run", "--option", "momentum=none"],
            "momentum must be between 0 and 1",
        ),
        (
            ["--to", "sync", "--dry-run", "--option", "process_group=3"],
            "process_group must be a process group",
        ),
        (
            ["--to", "moving_average", "--dry-run", "--option", "centered_weights=stem"],
            "layer 'stem' must be a",
        ),
    ],
)
def test_bad_arguments_are_refused_with_exit_code_2(run, arguments, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(f"{FILE}:normed", *arguments)
    assert code == 2
    assert told in err
    assert not list(tmp_path.iterdir())
