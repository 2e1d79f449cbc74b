"""How is an autograd function called without its signature being read anew each time?"""

from __future__ import annotations

import inspect
from typing import Any

import torch


class EagerFunction(torch.autograd.Function):
    """An autograd function whose `forward` has its signature at hand.

    `apply` binds its arguments by the signature of `forward` where there is a `setup_context`; reading that takes as
    long as an operation on a small tensor.
    """

    def __init_subclass__(cls) -> None:
        forward: Any = cls.forward
        if "forward" in vars(cls):
            forward.__signature__ = inspect.signature(forward)
