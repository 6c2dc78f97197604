"""PyTorch as a framework. Nothing of CUDA is imported."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch

from ._errors import BigsmallError

_TYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "F16": "float16",
    "BF16": "bfloat16",
    "U32": "uint32",
    "I32": "int32",
    "F32": "float32",
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F4": "float4_e2m1fn_x2",
}
_NAMES = {getattr(torch, t): name for name, t in _TYPES.items() if hasattr(torch, t)}


def dtype(name: str) -> torch.dtype:
    found = getattr(torch, _TYPES.get(name, ""), None)
    if not isinstance(found, torch.dtype):
        raise BigsmallError(f"this PyTorch has no dtype for {name}", rule="DtypeUnknown")
    return found


def name_of(dtype: torch.dtype) -> str:
    """The safetensors name of a dtype of PyTorch."""
    if dtype not in _NAMES:
        raise BigsmallError(f"safetensors has no dtype for {dtype}", rule="DtypeUnknown")
    return _NAMES[dtype]


def own_shape(dtype_name: str, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape in PyTorch: two F4 make one element, so that the last dimension is halved."""
    if dtype_name != "F4":
        return tuple(shape)
    if not shape or shape[-1] % 2:
        message = f"PyTorch holds F4 in pairs, so that the last dimension of {shape} must be even"
        raise BigsmallError(message, rule="SubByteTotal")
    return (*shape[:-1], shape[-1] // 2)


def file_shape(dtype_name: str, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape in a file; the inverse of `own_shape`."""
    if dtype_name != "F4" or not shape:
        return tuple(shape)
    return (*shape[:-1], 2 * shape[-1])


def empty(dtype_name: str, shape: Sequence[int]) -> torch.Tensor:
    return torch.empty(own_shape(dtype_name, shape), dtype=dtype(dtype_name), device="cpu")


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether the memory holds the values in order. Some views conjugate or negate what is read."""
    return tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()


def buffer(tensor: torch.Tensor) -> Any:
    if tensor.device.type != "cpu" or not is_plain(tensor):
        raise BufferError(
            "the tensor must be contiguous, in main memory and no conjugated or negated view"
        )
    n = tensor.numel() * tensor.element_size()
    if n == 0:
        return memoryview(bytearray())
    # Without NumPy, for every dtype. An array of ctypes exports no strides; the cast adds them.
    # The caller keeps the tensor while the buffer is in use.
    return memoryview((ctypes.c_ubyte * n).from_address(tensor.data_ptr())).cast("B")


def place(device: Any) -> torch.device:
    """A number is that of a device of CUDA."""
    return torch.device(f"cuda:{device}" if isinstance(device, int) else device)


def to_device(tensor: torch.Tensor, device: Any) -> torch.Tensor:
    to = place(device)
    return tensor if to.type == "cpu" else tensor.to(to)


def given(name: str, tensor: Any) -> tuple[tuple[str, str, Sequence[int], Any], Any]:
    """What the extension module wants to know of a tensor that is to be saved, and what must be
    kept until it has been."""
    if not isinstance(tensor, torch.Tensor):
        raise ValueError(
            f"Key `{name}` is invalid, expected torch.Tensor but received {type(tensor)}"
        )
    if tensor.layout != torch.strided:
        raise ValueError(
            f"You are trying to save a sparse tensor: `{name}`. A shard holds dense tensors alone; "
            "use `.to_dense()` first."
        )
    if not tensor.is_contiguous():
        raise ValueError(
            f"You are trying to save a non contiguous tensor: `{name}`. Call `.contiguous()` "
            "first, or use save_model(..., force_contiguous=True)."
        )
    dtype_name = name_of(tensor.dtype)
    kept = tensor.detach().cpu().resolve_conj().resolve_neg()
    return (name, dtype_name, file_shape(dtype_name, tensor.shape), buffer(kept)), kept
