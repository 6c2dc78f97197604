"""Arrays of NumPy from and to shards: the functions of `safetensors.numpy`.

BF16 and the 8-bit floats come as dtypes of the package ml_dtypes, which JAX uses as well.
"""

from __future__ import annotations

import builtins
import os
from typing import Any

from . import _bigsmall, _np
from ._file import File
from ._jobs import Base, Encoding, Level, Progress, Shown

__all__ = ["load", "load_file", "save", "save_file"]

Path = str | os.PathLike[str]


def load_file(
    filename: Path,
    *,
    base: Base = (),
    backend: str | None = None,
    progress: Progress | bool | None = None,
) -> dict[str, Any]:
    """All tensors of a shard or a folder of shards, in one parallel read.

    Memory: the tensors, and 32 MiB. `base` is as in `bigsmall_rs.open`, `progress` as in
    `File.get_tensors`. `backend` is for calls written for safetensors and means nothing: there is
    one way to read.

    Raises:
        BigsmallError: The file is damaged, or a dtype is unknown to NumPy and ml_dtypes.
        FileNotFoundError: There is nothing at `filename`.
    """
    with File(filename, "numpy", base=base) as file:
        return file.get_tensors(progress=progress)


def load(data: Any, *, base: Base = ()) -> dict[str, Any]:
    """All tensors of the shard in the bytes `data`."""
    with File.from_bytes(data, "numpy", base=base) as file:
        return file.get_tensors()


def save_file(
    tensor_dict: dict[str, Any],
    filename: Path,
    metadata: dict[str, str] | None = None,
    *,
    encoding: Encoding = "ans",
    level: Level = "default",
    progress: Progress | bool | None = None,
) -> None:
    """Saves arrays as a shard, which restores to what `safetensors.numpy.save_file` writes.

    An existing file is replaced once the new one is complete and checked. `progress` is as in
    `bigsmall_rs.compress`.

    Raises:
        BigsmallError: safetensors has no such dtype; writing failed.
        KeyboardInterrupt: Ctrl-C. An existing file is as it was.
    """
    tensors = [_np.given(name, array) for name, array in tensor_dict.items()]
    with Shown("save", progress) as callback:
        _bigsmall.save(filename, tensors, metadata, encoding, level, True, callback)


def save(
    tensor_dict: dict[str, Any],
    metadata: dict[str, str] | None = None,
    *,
    encoding: Encoding = "ans",
    level: Level = "default",
) -> builtins.bytes:
    """The shard that `save_file` writes, as bytes."""
    tensors = [_np.given(name, array) for name, array in tensor_dict.items()]
    return _bigsmall.save_bytes(tensors, metadata, encoding, level)
