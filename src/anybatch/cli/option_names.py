"""What are the arguments called on the command line that a message names as Python has them?"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from anybatch.errors import InputError

OTHER_NAMES = {"num_trajectories": "trajectories"}
CLASSES = {"SafePolicyGradient": "--paper 2017", "SmoothingPolicyGradient": "--paper 2022"}
FLAGS = ("baseline",)


@contextmanager
def naming_options(names: Iterable[str]) -> Iterator[None]:
    """Let refusals of arguments name options; see `with_option_names`.

    Args:
        names: of the arguments that are options.

    Yields:
        Nothing.

    Raises:
        InputError: what was raised, in other words.
    """
    try:
        yield
    except InputError as error:
        error.args = (with_option_names(str(error), names),)
        raise


def with_option_names(message: str, names: Iterable[str]) -> str:
    """Return a message with options in the place of arguments.

    A name of several words is an argument wherever it stands; one of a single word, which may be a plain word too,
    where it is given a value or is what the message begins with.

    Args:
        message: of an error.
        names: of the arguments that are options.

    Returns:
        The message.

    Example:
        >>> with_option_names("delta must be below 1; take early_end='pad' or a smaller delta.", ["delta", "early_end"])
        '--delta must be below 1; take --early-end pad or a smaller delta.'
    """
    known = {name: name for name in names} | OTHER_NAMES
    argument = rf"(?<![\w/.-])({'|'.join(map(re.escape, known))})"
    message = re.sub(rf"{argument}=(['\"]?)(\w+)\2", lambda found: _with_value(known[found[1]], found[3]), message)
    message = re.sub(rf"^{argument}(?= must )", lambda found: _option(known[found[1]]), message)
    message = re.sub(
        rf"{argument}(?![\w/(=-]|\.\w)",
        lambda found: _option(known[found[1]]) if "_" in found[1] else found[1],
        message,
    )
    return re.sub(rf"\b({'|'.join(CLASSES)})\b", lambda found: CLASSES[found[1]], message)


def _with_value(name: str, value: str) -> str:
    if name in FLAGS:
        return f"--{'' if value == 'True' else 'no-'}{name}"
    return f"{_option(name)} {value}"


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
