"""How tensors of a framework are made, filled and read.

A framework is a module with the functions of `Framework`: `_np` for NumPy, `_pt` for PyTorch.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any, Protocol

__all__ = ["Framework", "framework", "framework_of", "memory"]


class Framework(Protocol):
    """What is needed of a framework."""

    def empty(self, dtype: str, shape: Sequence[int]) -> Any:
        """A new tensor of that safetensors dtype and shape in main memory."""

    def buffer(self, tensor: Any) -> Any:
        """The memory of a tensor as a writable buffer of bytes. A `BufferError` unless it is main
        memory that holds the values in order, little-endian."""

    def to_device(self, tensor: Any, device: Any) -> Any:
        """The tensor on that device."""

    def dtype(self, name: str) -> Any:
        """The framework's dtype of that safetensors name."""

    def name_of(self, dtype: Any) -> str:
        """The safetensors name of the framework's dtype."""

    def own_shape(self, dtype_name: str, shape: Sequence[int]) -> tuple[int, ...]:
        """The framework's shape of a tensor of that safetensors dtype and shape."""

    def file_shape(self, dtype_name: str, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape in a file of a tensor that has this one in the framework."""


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


def framework_of(tensor: Any) -> Framework | None:
    """The framework whose tensor it is; `None` for any other object. Imports no framework."""
    for module, name, own in (("torch", "Tensor", "pt"), ("numpy", "ndarray", "np")):
        found = sys.modules.get(module)
        if found is not None and isinstance(tensor, getattr(found, name)):
            return framework(own)
    return None


def memory(tensor: Any) -> Any:
    """The memory of a tensor of PyTorch, an array of NumPy, or any other object with a buffer.

    Raises:
        BufferError: As `Framework.buffer`.
    """
    made = framework_of(tensor)
    # Arrays of some dtypes export no buffer themselves.
    return tensor if made is None else made.buffer(tensor)
