"""A run's folder: whole files or none, one holder at a time, and a sentence for whatever is wrong with it."""

import json
import multiprocessing
import sys

import pytest
import torch

from anybatch import InputError
from anybatch.errors import RunError
from anybatch.train.run_folder import RunFolder

STATE = {"training": {"weights": torch.arange(3.0)}, "record": {"updates": 1}}
FULL = "cannot be written: No space left on device. Finished runs are kept; make room, or choose another folder"


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run")


def fill_disk(folder, name):
    """Let the next write of a file end as on a full disk."""
    folder.path.mkdir(exist_ok=True)
    (folder.path / f"{name}.part").symlink_to("/dev/full")


# what is kept


def test_a_new_folder_is_empty_and_is_not_made_by_reading(folder):
    assert folder.result() is None
    assert folder.checkpoint() is None
    assert not folder.path.exists()


def test_a_checkpoint_comes_back_as_it_was_saved_and_the_last_one_counts(folder):
    folder.save_checkpoint({**STATE, "record": {"updates": 0}})
    folder.save_checkpoint(STATE)
    found = folder.checkpoint()
    assert found is not None
    assert found["record"] == {"updates": 1}
    assert torch.equal(found["training"]["weights"], STATE["training"]["weights"])


def test_finishing_leaves_result_and_weights_and_no_checkpoint(folder):
    folder.save_checkpoint(STATE)
    folder.finish({"status": "done", "loss": None}, {"weight": torch.ones(2)})
    assert folder.checkpoint() is None
    assert folder.result() == {"status": "done", "loss": None}
    assert torch.equal(torch.load(folder.path / "weights.pt", weights_only=True)["weight"], torch.ones(2))
    assert sorted(path.name for path in folder.path.iterdir()) == ["result.json", "weights.pt"]


def test_a_run_that_goes_on_drops_the_metrics_it_had_not_saved(folder):
    lines = [{"updates": count, "loss": 1 / count} for count in range(1, 5)]
    folder.set_metrics(lines[:2])
    for line in lines[2:]:
        folder.add_metrics(line)
    assert [json.loads(text) for text in folder.metrics_path.read_text().splitlines()] == lines
    with folder.metrics_path.open("ab") as file:
        file.write(b'{"updates": 5, "lo')  # a kill
    folder.set_metrics(lines[:3])
    folder.add_metrics(lines[3])
    assert [json.loads(text) for text in folder.metrics_path.read_text().splitlines()] == lines


def test_what_a_kill_left_half_written_is_not_read(folder):
    folder.save_checkpoint(STATE)
    (folder.path / "checkpoint.pt.part").write_bytes(b"half")
    (folder.path / "result.json.part").write_text('{"sta')
    assert folder.checkpoint()["record"] == {"updates": 1}
    assert folder.result() is None
    folder.save_checkpoint({**STATE, "record": {"updates": 2}})
    assert folder.checkpoint()["record"] == {"updates": 2}


def test_a_write_that_fails_leaves_the_file_that_was_there(folder):
    folder.save_checkpoint(STATE)
    with pytest.raises(ZeroDivisionError):
        folder._write("checkpoint.pt", lambda file: file.write(bytes(1 // 0)))
    assert folder.checkpoint()["record"] == {"updates": 1}
    assert not (folder.path / "checkpoint.pt.part").exists()


def test_the_configuration_may_be_claimed_again_if_it_is_the_same(folder):
    folder.claim({"seed": 0, "sizes": (1, 2)})
    folder.claim({"sizes": [1, 2], "seed": 0})
    assert json.loads((folder.path / "config.json").read_text()) == {"seed": 0, "sizes": [1, 2]}


# who holds it


def hold(path, is_held, may_end):
    with RunFolder(path).lock() as is_ours:
        assert is_ours
        is_held.set()
        may_end.wait(60)


@pytest.mark.skipif(sys.platform == "win32", reason="files are not locked there")
def test_one_process_holds_a_run_until_it_ends_or_is_killed(folder):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["anybatch.train.run"])
    is_held, may_end = context.Event(), context.Event()
    process = context.Process(target=hold, args=(folder.path, is_held, may_end))
    process.start()
    try:
        assert is_held.wait(60)
        with folder.lock() as is_ours:
            assert not is_ours
    finally:
        process.kill()
        process.join()
    with folder.lock() as is_ours:
        assert is_ours
    with folder.lock() as is_ours:
        assert is_ours


# what is told


def test_a_folder_of_another_run_is_refused_with_what_differs(folder):
    folder.claim({"seed": 0, "batch_size": 16, "lr": 0.1})
    with pytest.raises(InputError, match=r"run must hold this run; it holds one with another batch_size, lr\. Choose"):
        folder.claim({"seed": 0, "batch_size": 32, "lr": 0.2})
    with pytest.raises(InputError, match="one with another momentum"):
        folder.claim({"seed": 0, "batch_size": 16, "lr": 0.1, "momentum": 0.9})
    assert json.loads((folder.path / "config.json").read_text())["batch_size"] == 16


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 half a zip"])
def test_a_checkpoint_that_cannot_be_read_is_told(content, folder):
    folder.path.mkdir()
    (folder.path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"checkpoint\.pt cannot be read\. Delete it to start this run again\.$"):
        folder.checkpoint()


def test_a_truncated_checkpoint_is_told(folder):
    folder.save_checkpoint({"weights": torch.zeros(10_000)})
    path = folder.path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(InputError, match=r"checkpoint\.pt cannot be read"):
        folder.checkpoint()


def test_a_checkpoint_with_code_in_it_is_refused(folder):
    folder.path.mkdir()
    torch.save({"training": print}, folder.path / "checkpoint.pt")
    with pytest.raises(InputError, match=r"checkpoint\.pt cannot be read"):
        folder.checkpoint()


@pytest.mark.parametrize("content", ["", "{", '{"status": "do'])
def test_a_result_that_cannot_be_read_is_told(content, folder):
    folder.path.mkdir()
    (folder.path / "result.json").write_text(content)
    with pytest.raises(InputError, match=r"result\.json cannot be read\. Delete it to start this run again\.$"):
        folder.result()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /dev/full")
@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("config.json", lambda folder: folder.claim({"seed": 0})),
        ("metrics.jsonl", lambda folder: folder.set_metrics([{"updates": 1}])),
        ("result.json", lambda folder: folder.finish({}, {})),
    ],
)
def test_a_full_disk_is_told_with_the_file(name, write, folder):
    fill_disk(folder, name)
    with pytest.raises(RunError, match=rf"{name} {FULL}"):
        write(folder)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /dev/full")
def test_a_checkpoint_on_a_full_disk_is_told_and_the_one_before_is_kept(folder):
    folder.save_checkpoint(STATE)
    fill_disk(folder, "checkpoint.pt")
    with pytest.raises(RunError, match=r"checkpoint\.pt cannot be written: .+\. Finished runs are kept; make room"):
        folder.save_checkpoint({"weights": torch.zeros(100_000)})
    assert folder.checkpoint()["record"] == {"updates": 1}
    assert not (folder.path / "checkpoint.pt.part").is_symlink()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /dev/full")
def test_a_line_of_metrics_on_a_full_disk_is_told(folder):
    folder.path.mkdir()
    folder.metrics_path.symlink_to("/dev/full")
    with pytest.raises(RunError, match=rf"metrics\.jsonl {FULL}"):
        folder.add_metrics({"updates": 1})


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    folder = RunFolder(tmp_path / "file" / "run")
    with pytest.raises(RunError, match=r"cannot be written: Not a directory\. Finished runs are kept"):
        folder.save_checkpoint(STATE)
    with pytest.raises(RunError, match=r"cannot be written: Not a directory"), folder.lock():
        pass


def test_a_folder_below_a_file_holds_nothing(tmp_path):
    (tmp_path / "file").touch()
    folder = RunFolder(tmp_path / "file" / "run")
    assert folder.result() is None
    assert folder.checkpoint() is None


def test_tensorboard_that_is_not_installed_is_told(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match=r"TensorBoard is not installed\. Run: pip install 'anybatch\[tensorboard\]'"):
        RunFolder(tmp_path, board=True)


class Board:
    """What TensorBoard would have got."""

    def __init__(self, path):
        self.path = path
        self.scalars = []
        self.is_open = True

    def add_scalar(self, name, value, step):
        self.scalars.append((name, value, step))

    def close(self):
        self.is_open = False


def test_figures_are_written_for_tensorboard_where_asked_for(monkeypatch, folder):
    boards = []

    def opened(path):
        boards.append(Board(path))
        return boards[-1]

    monkeypatch.setattr("anybatch.train.run_folder._board_writer", lambda: opened)
    folder = RunFolder(folder.path, board=True)
    folder.set_metrics([])
    folder.add_metrics({"updates": 3, "eval_loss": 0.5, "tensors": {"weight": 1.0}})
    folder.add_metrics({"updates": 4, "eval_loss": 0.25})
    folder.finish({}, {})
    (board,) = boards
    assert board.path == str(folder.path / "tensorboard")
    assert board.scalars == [("eval_loss", 0.5, 3), ("eval_loss", 0.25, 4)]
    assert not board.is_open
