"""How tensors of a framework are made, filled and read.

A framework is a module with the functions of `Framework`: `_np` for NumPy, `_pt` for PyTorch.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Protocol

__all__ = ["Framework", "framework"]


class Framework(Protocol):
    """What is needed of a framework."""

    def empty(self, dtype: str, shape: Sequence[int]) -> Any:
        """A new tensor of that safetensors dtype and shape in main memory."""

    def buffer(self, tensor: Any) -> Any:
        """The memory of a contiguous tensor as a writable buffer of bytes."""

    def to_device(self, tensor: Any, device: Any) -> Any:
        """The tensor on that device."""

    def dtype(self, name: str) -> Any:
        """The framework's dtype of that safetensors name."""


_MODULES = {
    "pt": "_pt",
    "torch": "_pt",
    "pytorch": "_pt",
    "np": "_np",
    "numpy": "_np",
}


def framework(name: str) -> Framework:
    """The framework of that name: `"pt"` or `"numpy"`, or another spelling of them."""
    if name not in _MODULES:
        raise ValueError(f"framework {name!r} is not one of {', '.join(sorted(_MODULES))}")
    return importlib.import_module("." + _MODULES[name], __package__)
