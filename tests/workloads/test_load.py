"""A workload is found by its name or in a user's file, and what goes wrong is said."""

import pytest

from anybatch import InputError, Workload
from anybatch.workloads import load_workload

GOOD = """
import torch
from torch import nn
from torch.utils.data import TensorDataset
from anybatch import Workload

def tiny(data_root="none"):
    return Workload(
        model=lambda: nn.Linear(4, 2),
        train_set=TensorDataset(torch.zeros(10, 4)),
        loss=lambda model, batch: model(batch[0]).mean(),
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
        name={name!r} if data_root == "none" else str(data_root),
    )

def without_root():
    return tiny()

def number():
    return 5

def broken():
    raise OSError("disk on fire")

def refused():
    return Workload(model=None, train_set=[1, 2], loss=print, optimizer=print)

def demanding(path):
    return tiny()

constant = 3
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my_workload.py"
    path.write_text(GOOD.replace("{name!r}", "'workload'"))
    return path


def test_a_function_of_a_file_is_called_and_names_its_workload(file):
    workload = load_workload(f"{file}:tiny")
    assert isinstance(workload, Workload)
    assert workload.name == f"{file}:tiny"


def test_a_workload_that_has_a_name_keeps_it(file):
    file.write_text(GOOD.replace("{name!r}", "'mine'"))
    assert load_workload(f"{file}:tiny").name == "mine"


def test_the_data_root_reaches_a_function_that_takes_one(file, tmp_path):
    assert load_workload(f"{file}:tiny", data_root=tmp_path).name == str(tmp_path)
    with pytest.raises(InputError, match=r"without_root' takes no data root. Leave --data-root out"):
        load_workload(f"{file}:without_root", data_root=tmp_path)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("missing", r"my_workload\.py has no function 'missing'. It has tiny, without_root, number"),
        ("constant", r"my_workload\.py has no function 'constant'"),
        ("number", r"my_workload\.py:number must return an anybatch\.Workload; got int"),
        ("broken", r"my_workload\.py:broken raised OSError: disk on fire"),
        ("refused", r"^model of a Workload must be a function; got NoneType\.$"),
        ("demanding", r"raised TypeError: demanding\(\) missing 1 required positional argument: 'path'"),
    ],
)
def test_a_function_that_gives_no_workload_is_told(file, function, message):
    with pytest.raises(InputError, match=message):
        load_workload(f"{file}:{function}")


@pytest.mark.parametrize("spec", ["digit", "digits.py", "file.py", "file.txt:f", ""])
def test_an_unknown_name_is_told_with_the_known_ones(spec):
    with pytest.raises(
        InputError, match=r"must be one of digits, fashion-mnist, .* or path/to/file\.py:function; got "
    ):
        load_workload(spec)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(InputError, match=r"workload file must exist; .*none\.py does not"):
        load_workload(f"{tmp_path / 'none.py'}:f")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import no_such_package_anywhere", "could not be loaded: ModuleNotFoundError: No module named 'no_such_pack"),
        ("def f(:", "could not be loaded: SyntaxError"),
        ("1 / 0", "could not be loaded: ZeroDivisionError: division by zero"),
    ],
)
def test_a_file_that_cannot_be_loaded_is_told_with_its_error(tmp_path, text, message):
    (tmp_path / "w.py").write_text(text)
    with pytest.raises(InputError, match=message):
        load_workload(f"{tmp_path / 'w.py'}:f")


def test_a_file_may_import_what_lies_beside_it(tmp_path, file):
    (tmp_path / "beside_my_workload.py").write_text(file.read_text())
    (tmp_path / "w.py").write_text("from beside_my_workload import tiny")
    assert isinstance(load_workload(f"{tmp_path / 'w.py'}:tiny"), Workload)


def test_a_function_may_import_what_lies_beside_its_file(tmp_path, file):
    (tmp_path / "late_my_workload.py").write_text(file.read_text())
    (tmp_path / "w.py").write_text("def late():\n    from late_my_workload import tiny\n    return tiny()")
    assert isinstance(load_workload(f"{tmp_path / 'w.py'}:late"), Workload)
