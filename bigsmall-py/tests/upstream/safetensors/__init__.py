"""A stand-in for the package safetensors that reads and writes shards: its tests run against it."""

from dataclasses import dataclass
from typing import Any

from bigsmall_rs import BigsmallError as SafetensorError
from bigsmall_rs import File, _bigsmall
from bigsmall_rs import safe_open as safe_open

__version__ = "0.8.0"
_safe_open_handle = File


@dataclass
class TensorSpec:
    dtype: str
    shape: list[int]
    data_ptr: int
    data_len: int


def _given(tensors: dict[str, Any]) -> list[Any]:
    found = []
    for name, tensor in tensors.items():
        if isinstance(tensor, TensorSpec):
            raise SafetensorError("addresses are not taken")
        found.append((name, tensor["dtype"], tensor["shape"], tensor["data"]))
    return found


def serialize(tensors: dict[str, Any], metadata: dict[str, str] | None = None) -> bytes:
    return _bigsmall.save_bytes(_given(tensors), metadata, "ans", "default")


def serialize_file(tensors: Any, path: str, metadata: dict[str, str] | None = None) -> None:
    _bigsmall.save(path, _given(tensors), metadata, "ans", "default", True)
