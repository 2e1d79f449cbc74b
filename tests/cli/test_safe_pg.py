"""`anybatch safe-pg`: what it writes, how it refuses bad input, and how it goes on after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path

import pytest
import torch

from anybatch.cli import launch, safe_pg_state
from anybatch.cli.main import app
from anybatch.rl import LQG, GaussianPolicy, SafePolicyGradient, SmoothingPolicyGradient

FILE = Path(__file__).with_name("my_tasks.py")
LQG1D = ("--env", "lqg1d", "--bound", "chebyshev", "--delta", "0.95", "--mode", "paper", "--seed", "1")
TASK = ("--discount", "0.9", "--horizon", "5", "--trajectories", "200", "--reward-bound", "2")


def mine(function):
    return f"{FILE}:{function}"


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run `anybatch safe-pg` in this process; return exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("ONCE", str(tmp_path / "once"))
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["anybatch", "safe-pg", *map(str, arguments)])
        code = launch.run(app)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def written(path):
    """A run's JSON without what differs from call to call."""
    found = json.loads(Path(path).read_text())
    return {name: value for name, value in found.items() if name != "environment"}


# what it does


def test_a_run_writes_what_the_loop_did(run, tmp_path):
    code, out, err = run(
        *LQG1D, "--trajectories", 30_000, "--json", "out.json", "--report", "r.html", "--records", "r.jsonl"
    )
    assert (code, err) == (0, "")
    found = written("out.json")
    loop = SafePolicyGradient(LQG(), GaussianPolicy(0.0), "chebyshev", delta=0.95, mode="paper", seed=1)
    expected = loop.run(30_000)
    assert found["final_performance"] == expected.final_performance
    assert [
        [update[name] for name in ("batch_size", "step_size", "performance", "measured_performance", "is_safe")]
        for update in found["iterations"]
    ] == [
        [update.batch_size, update.step_size, update.performance, update.measured_performance, update.is_safe]
        for update in expected.iterations
    ]
    assert found["worst_performance"] == found["first_performance"]
    assert found["partial"] is False
    lines = [json.loads(line) for line in Path("r.jsonl").read_text().splitlines()]
    assert lines == found["iterations"]
    assert f"Report: {tmp_path / 'r.html'}" in out
    assert "No deployed policy was worse than the first" in out
    assert Path("r.html").read_text().lstrip().lower().startswith("<!doctype html>")


def test_options_reach_the_loop_of_2017(run):
    options = {
        "--env": "lqg1d", "--trajectories": 4000, "--bound": "bernstein", "--estimator": "reinforce", "--delta": 0.25,
        "--range": "empirical", "--min-batch-size": 1000, "--max-batch-size": 1500, "--reward-bound": 5,
        "--feature-bound": 3, "--action-volume": 6, "--penalty": 7, "--discount": 0.8, "--horizon": 7, "--seed": 3,
        "--std": 0.5, "--mode": "safe", "--json": "out.json", "--num-workers": 2, "--early-end": "refuse",
    }  # fmt: skip
    code, _, err = run(*[word for option in options.items() for word in option], "--no-baseline")
    assert (code, err) == (0, "")
    found = written("out.json")
    asked = {
        "env": "lqg1d", "paper": "2017", "trajectories": 4000, "bound": "bernstein", "estimator": "reinforce",
        "delta": 0.25, "range": "empirical", "min_batch_size": 1000, "max_batch_size": 1500, "mode": "safe",
        "penalty": 7.0, "seed": 3, "baseline": False,
    }  # fmt: skip
    assert {name: found["settings"][name] for name in asked} == asked
    assert found["settings"]["shape"]["std"] == pytest.approx(0.5)
    constants = found["constants"]
    assert (constants["discount"], constants["horizon"], constants["action_volume"]) == (0.8, 7, 6.0)
    assert (constants["reward_bound"], constants["feature_bound"]) == (5.0, 3.0)
    assert {update["batch_size"] for update in found["iterations"]} <= {1000, 1500}


def test_options_reach_the_loop_of_2022(run):
    options = {
        "--env": "lqg1d", "--paper": 2022, "--trajectories": 2000, "--bound": "sample_chebyshev", "--delta": 0.25,
        "--rule": "published", "--mini-batch-size": 50, "--max-batch-size": 800, "--growth": 2, "--warm-start": 0.5,
        "--feature-norm-bound": 2.5, "--json": "out.json", "--seed": 4,
    }  # fmt: skip
    code, _, err = run(*[word for option in options.items() for word in option])
    assert (code, err) == (0, "")
    found = written("out.json")
    loop = SmoothingPolicyGradient(
        LQG(), GaussianPolicy(0.0), "sample_chebyshev", delta=0.25, rule="published", mini_batch_size=50,
        max_batch_size=800, growth=2, warm_start=0.5, feature_norm_bound=2.5, seed=4,
    )  # fmt: skip
    assert found["parameters"] == list(loop.run(2000).parameters)
    assert found["settings"]["rule"] == "published"
    assert found["settings"]["growth"] == 2
    assert any("published rule" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("env", "options"),
    [
        ("lqg", ("--range", "empirical")),
        ("cartpole-continuous", ("--horizon", "20", "--range", "empirical")),
        ("anybatch/LQG1D-v0", ()),
        ("Pendulum-v1", ("--discount", "0.9", "--horizon", "5", "--num-envs", "50")),
        ("CartPole-v1", ("--paper", "2022", "--discount", "0.9", "--horizon", "10", "--tolerance", "0.2")),
        (mine("good"), ("--discount", "0.9", "--horizon", "5")),
    ],
)
def test_every_kind_of_environment_runs(env, options, run):
    code, _, err = run("--env", env, "--trajectories", 200, "--json", "out.json", *options)
    assert (code, err) == (0, "")
    assert written("out.json")["num_trajectories"] >= 100


def test_constants_taken_from_data_make_the_guarantee_heuristic_everywhere(run):
    code, out, _ = run("--env", mine("good"), *TASK[:-2], "--json", "out.json", "--records", "r.jsonl")
    assert code == 0
    found = written("out.json")
    assert found["guarantee"] == "heuristic"
    assert {update["guarantee"] for update in found["iterations"]} == {"heuristic"}
    assert "estimated from data" in out
    assert "The guarantee is heuristic: reward_bound is estimated from data, feature_bound" in out


def test_a_policy_comes_from_a_function_a_file_or_the_state_of_a_run(run):
    torch.save(GaussianPolicy(-0.3).state_dict(), "policy.pt")
    for place, spec in enumerate((mine("start"), "policy.pt")):
        code, _, err = run(*LQG1D, "--trajectories", 3000, "--policy", spec, "--state", f"{place}.pt")
        assert (code, err) == (0, "")
    states = [torch.load(f"{place}.pt", weights_only=True) for place in range(2)]
    assert torch.equal(states[0]["policy"]["weights"], states[1]["policy"]["weights"])
    assert run(*LQG1D, "--trajectories", 3000, "--policy", "0.pt", "--json", "next.json")[0] == 0
    assert written("next.json")["iterations"][0]["performance"] == pytest.approx(
        LQG().performance(GaussianPolicy(states[0]["policy"]["weights"]))
    )


@pytest.mark.parametrize(("paper", "bound"), [("2017", "chebyshev"), ("2022", "sub_gaussian")])
def test_a_policy_class_of_the_users_own_runs_without_a_proof_or_an_exact_performance(paper, bound, run):
    options = ("--env", "lqg1d", "--policy", mine("own_policy"), "--paper", paper, "--bound", bound)
    sizes = ("--trajectories", 100, "--max-batch-size", 100)
    code, out, err = run(*options, "--estimator", "reinforce", "--no-baseline", *sizes, "--json", "out.json")
    assert (code, err) == (0, "")
    found = written("out.json")
    assert (found["guarantee"], found["final_performance"]) == ("heuristic", None)
    assert "The guarantee is heuristic: the bound is proven for GaussianPolicy and SoftmaxPolicy" in out
    assert "No exact performance is known" in out


def test_a_run_that_ends_before_its_budget_says_so(run):
    options = ("--env", "lqg", "--bound", "chebyshev", "--trajectories", 30_000)
    code, out, _ = run(*options, "--json", "out.json")
    assert code == 0
    assert "The run ended with 29900 of 30000 trajectories left: the next batch wants " in out
    assert written("out.json")["notes"][-1].startswith("the run ended with 29900 of 30000 trajectories left")


def test_a_policy_too_sharp_for_the_exact_performance_is_measured_and_says_so(run):
    code, out, _ = run("--env", "lqg1d", "--std", 0.001, "--trajectories", 200, "--json", "out.json")
    assert code == 0
    found = written("out.json")
    assert found["final_performance"] is None
    assert found["iterations"][0]["performance"] is None
    assert "compared by the mean returns of their batches: the exact performance of a clipped task must have a" in out
    assert "got 0.001" in found["notes"][-1] or "got 0.001" in found["notes"][-2]


def test_a_run_that_goes_beyond_its_budget_says_by_how_much(run):
    options = ("--env", "lqg1d", "--paper", 2022, "--max-batch-size", 5000, "--trajectories", 500)
    code, out, _ = run(*options, "--json", "out.json")
    assert code == 0
    note = "the run drew 5000 trajectories, 10 times the 500 asked for: an update that has begun is completed"
    assert written("out.json")["notes"][-1] == note
    assert note[1:] in out


# what it survives


def test_a_signal_saves_and_the_same_command_goes_on(run):
    options = ("--env", mine("interrupted"), *LQG1D[2:], "--trajectories", 20_000, "--records", "r.jsonl", "--json")
    code, out, err = run(*options, "stopped.json", "--state", "s.pt")
    assert code == 143
    assert err == "anybatch: stopped by SIGTERM after update 3; the state is saved, call again to go on.\n"
    assert "This run was ended at" in out
    assert written("stopped.json")["partial"] is True
    code, out, err = run(*options, "resumed.json", "--state", "s.pt")
    assert (code, err) == (0, "")
    assert "Going on after update 3 of s.pt." in out
    resumed = Path("r.jsonl").read_text()
    assert run(*options, "whole.json")[0] == 0
    assert written("resumed.json") == written("whole.json")
    assert resumed == Path("r.jsonl").read_text()


SHORT = ("--discount", "0.9", "--horizon", "5", "--max-batch-size", "100", "--trajectories", "500", "--json")


@pytest.mark.parametrize("task", ["signalled", "fragile"])
def test_a_signal_within_an_update_drops_it_and_the_same_command_goes_on(task, run):
    options = ("--env", mine(task), *SHORT)
    code, out, err = run(*options, "stopped.json", "--report", "r.html", "--state", "s.pt")
    assert code == 130
    dropped = ", without the 80 trajectories of update 2" if task == "signalled" else ""
    assert err.startswith(f"anybatch: stopped by SIGINT after update 1{dropped}; the state is saved, call again to go")
    assert "This run was ended at 100 of 500 trajectories." in out
    found = written("stopped.json")
    assert (found["partial"], found["num_trajectories"], len(found["iterations"])) == (True, 100, 1)
    assert Path("r.html").exists()
    assert run(*options, "resumed.json", "--state", "s.pt")[0] == 0
    assert run(*options, "whole.json")[0] == 0
    assert written("resumed.json") == written("whole.json")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (("--json", "a.json"), "--json keep the updates so far, but without --state none can follow."),
        ((), "no --state was named, nothing is kept."),
    ],
)
def test_a_stopped_run_says_what_is_kept(files, words, run):
    code, _, err = run("--env", mine("signalled"), *SHORT[:-1], *files)
    assert code == 130
    assert err == f"anybatch: stopped by SIGINT after update 1, without the 80 trajectories of update 2; {words}\n"


def test_a_second_signal_ends_what_is_under_way_and_the_rest_is_written(tmp_path, monkeypatch):
    flag = tmp_path / "once"
    monkeypatch.setenv("ONCE", str(flag))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    options = ["safe-pg", "--env", mine("endless"), *SHORT, "out.json"]
    command = [sys.executable, "-m", "anybatch", *options]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 60
        while not flag.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline().startswith("anybatch: SIGINT, the run stops after the trajectories under way")
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        words = "anybatch: stopped by SIGINT after update 1; --json keep the updates so far, but without --state none"
        assert process.stderr.read() == f"{words} can follow.\n"
    assert written(tmp_path / "out.json")["partial"] is True


def test_an_error_of_the_environment_leaves_the_updates_so_far(run):
    code, out, err = run("--env", mine("broken"), *SHORT, "out.json", "--report", "r.html", "--state", "s.pt")
    assert code == 1
    assert err == "anybatch: ValueError: the simulator is gone. Run again with --debug to see where.\n"
    assert "This run was ended at 100 of 500 trajectories." in out
    found = written("out.json")
    assert (found["partial"], len(found["iterations"])) == (True, 1)
    assert Path("r.html").exists()
    assert len(torch.load("s.pt", weights_only=True)["loop"]["iterations"]) == 1


def test_a_killed_process_goes_on_and_ends_as_one_that_was_not(run, tmp_path, monkeypatch):
    code = (
        "import sys; from anybatch.cli import safe_pg_state, launch; from anybatch.cli.main import app;"
        "safe_pg_state.SECONDS_BETWEEN_SAVES = 0.0; sys.exit(launch.run(app))"
    )
    options = [*LQG1D, "--trajectories", "600000", "--state", "s.pt"]
    process = subprocess.Popen([sys.executable, "-c", code, "safe-pg", *options], cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not (tmp_path / "s.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -9
    behind = len(torch.load("s.pt", weights_only=True)["loop"]["iterations"])
    assert behind < 150
    monkeypatch.setattr(safe_pg_state, "SECONDS_BETWEEN_SAVES", 0.0)
    code, out, _ = run(*options, "--json", "resumed.json")
    assert code == 0
    assert f"Going on after update {behind} of s.pt." in out
    assert run(*options[:-2], "--json", "whole.json")[0] == 0
    assert written("resumed.json") == written("whole.json")


def test_a_finished_run_does_nothing_again_and_goes_on_to_a_larger_budget(run, monkeypatch):
    short, long = ("--trajectories", 5000, "--state", "s.pt", "--json"), ("--trajectories", 15_000, "--json")
    assert run(*LQG1D, *short, "a.json")[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(SafePolicyGradient, "step", None)
        assert run(*LQG1D, *short, "b.json")[0] == 0
    assert written("a.json") == written("b.json")
    assert run(*LQG1D, *long, "c.json", "--state", "s.pt")[0] == 0
    assert run(*LQG1D, *long, "d.json")[0] == 0
    assert written("c.json") == written("d.json")


# what it refuses


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--env", "lqg1d", "--delta", "1"), "--delta must be"),
        (("--env", "lqg1d", "--delta", "-0.1"), "delta must be"),
        (("--env", "lqg1d", "--bound", "nope"), "--bound must be one of chebyshev, hoeffding, bernstein, student_t"),
        (("--env", "lqg1d", "--range", "nope"), "--range must be one of theoretical, empirical"),
        (
            ("--env", "lqg1d", "--min-batch-size", "90", "--max-batch-size", "50"),
            "--min-batch-size must be at most --max",
        ),
        (("--env", "lqg1d", "--min-batch-size", "900"), "--trajectories must hold the first batch; got 500 for"),
        (("--env", "lqg1d", "--reward-bound", "0"), "--reward-bound must be"),
        (("--env", "lqg1d", "--horizon", "0"), "--horizon must be"),
        (("--env", "lqg1d", "--discount", "1"), "--discount must be"),
        (("--env", "lqg1d", "--std", "0"), "--std must be positive"),
        (("--env", "lqg1d", "--growth", "2"), "--growth must be left alone with --paper 2017; got 2.0."),
        (("--env", "lqg1d", "--paper", "2022", "--mode", "paper"), "--mode must be left alone with --paper 2022"),
        (("--env", "lqg1d", "--paper", "2022", "--bound", "bounded_score"), "--bound must fit a Gaussian policy"),
        (("--env", "lqg1d", "--policy", mine("start"), "--std", "1"), "--std must be left alone with --policy"),
        (("--env", "lqg1d", "--policy", mine("no_policy")), "must return a policy, such as"),
        (("--env", "lqg1d", "--policy", mine("missing")), "has no function 'missing'"),
        (("--env", "lqg1d", "--policy", "gone.py:policy"), "policy file must exist"),
        (("--env", "lqg1d", "--policy", "gone.pt"), "such as mine.py:function; got gone.pt, which is no file."),
        (("--env", "lqg1d", "--policy", FILE), "my_tasks.py:function."),
        (("--env", "lqg1d", "--policy", FILE.parent), "which is no file."),
        (("--env", "lqg1d", "--policy", "mine"), "such as mine.py:function; got mine, which is no file."),
        (("--env", "lqg", "--policy", mine("start")), "the policy's weights must have 2 columns"),
        (("--env", "Nope-v0", *TASK), "--env must be lqg1d, lqg, cartpole-continuous, path/to/file.py:function or an"),
        (("--env", "nowhere_at_all:Nope-v0", *TASK), "No module named 'nowhere_at_all'"),
        (("--env", mine("raises"), *TASK), "raised ValueError: no licence"),
        (("--env", mine("start"), *TASK), "must return a gymnasium.vector.VectorEnv; got GaussianPolicy."),
        (("--env", "Pendulum-v1"), "--discount must be given for an environment that does not state it"),
        (("--env", "CartPole-v1", *TASK), "--paper must be 2022 for discrete actions, Discrete(2); got 2017."),
        (("--env", mine("not_a_number"), *TASK), "rewards must be finite; got nan at step 0"),
        (("--env", mine("unbounded"), *TASK), "--action-volume must be known for this bound"),
        (("--env", mine("short"), *TASK, "--early-end", "refuse"), "Pass --early-end pad to count nothing"),
        (("--env", "cartpole-continuous", "--early-end", "refuse"), "episodes must last to the horizon of 200 steps"),
        (("--env", "lqg1d", "--state", FILE), "my_tasks.py cannot be read as a saved state"),
        (("--env", "lqg1d", "--json", FILE / "x.json"), "cannot be written: its folder is a file"),
    ],
)
def test_bad_input_ends_in_a_sentence_and_exit_code_2(arguments, message, run):
    budget = () if "--trajectories" in arguments else ("--trajectories", 500)
    code, _, err = run(*arguments, *budget)
    assert code == 2, err
    assert message in err
    assert "Traceback" not in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("pair", [*combinations(("--json", "--records", "--report", "--state"), 2)])
def test_one_file_for_two_options_is_refused(pair, run, tmp_path):
    code, _, err = run("--env", "lqg1d", "--trajectories", 500, pair[0], "x", pair[1], tmp_path / "x")
    assert code == 2
    assert f"{pair[0]} and {pair[1]} must be different files; got {tmp_path / 'x'} for both." in err
    assert not Path("x").exists()


def test_the_state_of_another_run_is_refused(run):
    assert run(*LQG1D, "--trajectories", 4000, "--state", "s.pt")[0] == 0
    for other, what in (
        (("--delta", "0.5"), "got another delta"),
        (("--policy", mine("start")), "got another first_policy"),
        (("--env", mine("lqg")), "got another env"),
    ):
        code, _, err = run(*LQG1D, *other, "--trajectories", 4000, "--state", "s.pt")
        assert code == 2
        assert what in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--env", "lqg1d", "--reward-bound", "3", "--trajectories", 500),
            "a reward of size 4 exceeds the stated bound 3",
        ),
        (
            ("--env", "lqg1d", "--policy", mine("large_features"), "--feature-bound", "5", "--trajectories", 500),
            "a feature of size 6 exceeds the stated bound 5",
        ),
    ],
)
def test_a_stated_bound_that_is_exceeded_makes_the_guarantee_void_and_says_by_how_much(options, message, run):
    code, out, err = run(*options, "--json", "out.json")
    assert code == 0
    assert err.startswith(f"anybatch: {message}")
    assert "the guarantee is void" in err
    assert len(err.splitlines()) == 1
    assert written("out.json")["guarantee"] == "void"
    assert "The guarantee is void" in out
    assert "The guarantee had been heuristic before: " in out
    assert "guarantee is heuristic" not in out


def test_episodes_that_end_early_are_padded_and_counted(run):
    code, out, _ = run("--env", mine("short"), *TASK)
    assert code == 0
    assert "100 trajectories ended before the horizon and were padded with rewards of 0." in out


@pytest.mark.parametrize("missing", ["gymnasium", "numba"])
def test_a_missing_extra_is_said_in_a_sentence(missing):
    code = (
        f"import sys; sys.modules['{missing}'] = None; from importlib import util; found = util.find_spec;"
        f"util.find_spec = lambda name, *rest: None if name == '{missing}' else found(name, *rest);"
        "from anybatch.cli import launch; from anybatch.cli.main import app; sys.exit(launch.run(app))"
    )
    command = [sys.executable, "-c", code, "safe-pg", "--env", "lqg1d", "--trajectories", "100"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr == f"anybatch: anybatch.rl needs {missing}. Run: pip install 'anybatch[rl]'\n"


def test_help_says_what_delta_and_the_papers_are(run):
    code, out, _ = run("--help")
    assert code == 0
    for words in ("0.05 is cautious", "delta is per update", "Paper 2022 alone", "default: theoretical", "--early-end"):
        assert words in out


@pytest.mark.parametrize("name", ["mapped", "waving"])
def test_a_saved_policy_that_needs_code_is_not_taken_for_another(name, run, tmp_path):
    (tmp_path / "own.py").write_text(
        "import torch\n"
        "from anybatch.rl import GaussianPolicy\n\n\n"
        "class Waving(GaussianPolicy):\n    pass\n\n\n"
        "def waving():\n    return Waving(0.0)\n\n\n"
        "def mapped():\n    return GaussianPolicy(0.0, features=torch.tanh)\n"
    )
    state = str(tmp_path / "state.pt")
    task = ("--env", "lqg1d", "--bound", "chebyshev", "--trajectories", "200", "--feature-bound", "2")
    assert run(*task, "--policy", f"{tmp_path / 'own.py'}:{name}", "--state", state)[0] == 0
    code, _, error = run(*task, "--policy", state)
    assert code == 2
    assert "needs code that a saved state does not hold" in error


def test_a_policy_whose_state_could_not_be_read_again_is_refused_at_once(run, tmp_path):
    (tmp_path / "own.py").write_text(
        "import numpy as np\n"
        "from anybatch.rl import GaussianPolicy\n\n\n"
        "class Own(GaussianPolicy):\n"
        "    def state_dict(self):\n"
        "        return super().state_dict() | {'more': np.ones(3)}\n\n\n"
        "def own():\n    return Own(0.0)\n"
    )
    state = tmp_path / "state.pt"
    task = ("--env", "lqg1d", "--bound", "chebyshev", "--trajectories", "200")
    code, _, error = run(*task, "--policy", f"{tmp_path / 'own.py'}:own", "--state", str(state))
    assert code == 2
    assert "must hold tensors, plain numbers and text" in error
    assert "updates" not in error
    assert not list(tmp_path.glob("state*"))
