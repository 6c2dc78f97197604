"""NumPy as a framework; dtypes that NumPy lacks come from ml_dtypes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ._errors import BigsmallError

_PLAIN: dict[str, Any] = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "U16": np.uint16,
    "I16": np.int16,
    "F16": np.float16,
    "U32": np.uint32,
    "I32": np.int32,
    "F32": np.float32,
    "U64": np.uint64,
    "I64": np.int64,
    "F64": np.float64,
    "C64": np.complex64,
}
_ML_DTYPES = {
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}
_NAMES = {np.dtype(type_).name: name for name, type_ in _PLAIN.items()}
_NAMES |= {type_: name for name, type_ in _ML_DTYPES.items()}


def dtype(name: str) -> Any:
    if name in _PLAIN:
        return np.dtype(_PLAIN[name])
    if name not in _ML_DTYPES:
        raise BigsmallError(f"NumPy has no dtype for {name}", rule="DtypeUnknown")
    try:
        import ml_dtypes
    except ImportError as error:
        raise ImportError(f"{name} in NumPy needs the package ml_dtypes") from error
    return np.dtype(getattr(ml_dtypes, _ML_DTYPES[name]))


def name_of(dtype: Any) -> str:
    """The safetensors name of a dtype of NumPy."""
    try:
        return _NAMES[np.dtype(dtype).name]
    except KeyError:
        message = f"safetensors has no dtype for {np.dtype(dtype)} of NumPy"
        raise BigsmallError(message, rule="DtypeUnknown") from None


def own_shape(dtype_name: str, shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(shape)


file_shape = own_shape


def empty(dtype_name: str, shape: Sequence[int]) -> Any:
    return np.empty(shape, dtype(dtype_name))


def buffer(tensor: Any) -> Any:
    if not tensor.flags.c_contiguous or tensor.dtype != tensor.dtype.newbyteorder("<"):
        raise BufferError("the array must be C-contiguous and little-endian")
    return tensor.reshape(-1).view(np.uint8)


def to_device(tensor: Any, device: Any) -> Any:
    if str(device) != "cpu":
        raise ValueError(f"NumPy has no device {device!r}")
    return tensor


def given(name: str, array: Any) -> tuple[str, str, Sequence[int], Any]:
    """The facts about an array that the extension module needs to save it."""
    if not isinstance(array, np.ndarray):
        raise BigsmallError(
            f"tensor {name!r}: expected an array of NumPy, found {type(array)}", "Argument"
        )
    dtype_name = name_of(array.dtype)
    kept = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return name, dtype_name, array.shape, buffer(kept)
