"""How is a workload found: by a built-in name, or as path/to/file.py:function?"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from anybatch.errors import AnybatchError, InputError
from anybatch.registry import WORKLOADS
from anybatch.workload import Workload

PREFIX = "anybatch_user_"  # of the modules that users' files become


def load_workload(spec: str, data_root: str | Path | None = None) -> Workload:
    """Build a workload from its name.

    Args:
        spec: a built-in name, or `path/to/file.py:function`, a function that returns a Workload.
        data_root: handed to the function where it takes a `data_root`.

    Returns:
        The workload; a user's own is named after its spec unless it has a name.

    Raises:
        InputError: no such name, file or function; the file or function raises; or what it returns is no Workload.

    Example:
        >>> load_workload("digits").base_batch_size
        32
    """
    function = _function(spec)
    arguments = {}
    if data_root is not None:
        if "data_root" not in inspect.signature(function).parameters:
            raise InputError(f"workload {spec!r} takes no data root. Leave --data-root out.")
        arguments["data_root"] = data_root
    try:
        workload = function(**arguments)
    except Exception as error:
        if isinstance(error, AnybatchError):
            raise
        raise InputError(f"{spec} raised {type(error).__name__}: {error}") from error
    if not isinstance(workload, Workload):
        raise InputError(f"{spec} must return an anybatch.Workload; got {type(workload).__name__}.")
    return replace(workload, name=spec) if workload.name == "workload" else workload


def _function(spec: str) -> Callable[..., Any]:
    if spec in WORKLOADS:
        module_name, function_name = WORKLOADS[spec].split(":")
        return getattr(importlib.import_module(module_name), function_name)
    if not _names_a_function(spec):
        known = ", ".join(WORKLOADS)
        raise InputError(f"workload must be one of {known}, or path/to/file.py:function; got {spec!r}.")
    return load_function(spec, "workload")


def load_function(spec: str, what: str) -> Callable[..., Any]:
    """Return a function of a user's file.

    Args:
        spec: `path/to/file.py:function`.
        what: it makes, for the messages.

    Returns:
        The function.

    Raises:
        InputError: no such file or function, or the file raises.
    """
    if not _names_a_function(spec):
        raise InputError(f"{what} must be path/to/file.py:function; got {spec!r}.")
    path_text, _, function_name = spec.rpartition(":")
    module = _module(Path(path_text), what)
    function = getattr(module, function_name, None)
    if not callable(function):
        found = [name for name, value in vars(module).items() if inspect.isfunction(value)]
        raise InputError(f"{path_text} has no function {function_name!r}. It has {', '.join(found) or 'none'}.")
    return function


def _names_a_function(spec: str) -> bool:
    path_text, colon, _ = spec.rpartition(":")
    return bool(colon) and path_text.endswith(".py")


def _module(path: Path, what: str) -> Any:
    if not path.is_file():
        raise InputError(f"{what} file must exist; {path} does not.")
    return load_again(f"{PREFIX}{what}_{path.stem}", path)


def loaded_files() -> dict[str, Path]:
    """Return the users' files that are loaded, by the names of their modules."""
    modules = [(name, module) for name, module in sys.modules.items() if name.startswith(PREFIX)]
    return {name: Path(module.__file__).resolve() for name, module in modules if module.__file__ is not None}


def load_again(name: str, path: Path) -> Any:
    """Load a user's file as a module of that name, so that what was pickled of it is found in another process.

    Args:
        name: of `loaded_files`.
        path: of the file.

    Returns:
        The module.

    Raises:
        InputError: the file raises.
    """
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    folder = str(path.parent.resolve())
    if folder not in sys.path:  # and it stays, as for a script, since functions import too
        sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"{path} could not be loaded: {type(error).__name__}: {error}") from error
    return module
