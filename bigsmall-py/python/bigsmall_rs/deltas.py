"""Deltas: a tensor as differences from another one, such as weights after some steps of training
from those before.

    from bigsmall_rs.deltas import apply_delta, encode_delta

    frames = {name: encode_delta(new[name], old[name]) for name in new}    # bytes to send
    apply_delta(frames, model.state_dict())                                # where `old` is in use

Tensors are contiguous tensors of PyTorch in main memory, or arrays of NumPy, contiguous and
little-endian; views of PyTorch that conjugate or negate are refused. The GIL is released while they
are coded, on all cores. No other thread may write to them during a call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import _bigsmall
from ._frameworks import Framework, framework_of, memory

__all__ = ["apply_delta", "changes", "decode_delta", "encode_delta"]


def encode_delta(new: Any, base: Any) -> bytes:
    """`new` as differences from `base`, a tensor of the same dtype and shape; without the base
    where that is smaller.

    Raises:
        ValueError: The two differ in dtype or shape.
        BufferError: One of them is not such a tensor.
        BigsmallError: safetensors has no such dtype.
    """
    made = _of(new)
    dtype = made.name_of(new.dtype)
    shape = made.file_shape(dtype, new.shape)
    _check("base", base, dtype, shape)
    return _bigsmall.encode_delta(dtype, shape, memory(new), memory(base))


def decode_delta(frame: Any, base: Any) -> Any:
    """The tensor that `encode_delta(new, base)` was made of, bit by bit: a new one, of the
    framework of `base`.

    Raises:
        BigsmallError: `base` is another one than that of `encode_delta` (rule `"BaseMismatch"`), or
            the frame is damaged.
        ValueError: `base` has another dtype or shape than the frame.
    """
    dtype, shape = _spec(frame)
    made = _check("base", base, dtype, shape)
    out = made.empty(dtype, shape)
    _bigsmall.decode_delta(memory(frame), memory(base), made.buffer(out))
    return out


def apply_delta(frames: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
    """Makes tensors that are in use the new ones, in place: all of them or none.

    Every frame is checked and decoded aside, block by block, before the first tensor changes. After
    an error all tensors are as they were. Memory: one decoded block for each thread.

    Args:
        frames: What `encode_delta` returned, by name.
        tensors: At least those names, such as `module.state_dict()`. Others stay as they are.

    Raises:
        KeyError: A name of `frames` is not in `tensors`.
        ValueError: A tensor has another dtype or shape than its frame; two tensors overlap.
        BufferError: A tensor is not as described above.
        BigsmallError: A tensor is not the base of its frame (rule `"BaseMismatch"`), or a frame is
            damaged; `.tensor` says which.
    """
    deltas = []
    for name, frame in frames.items():
        live = tensors[name]
        try:
            dtype, shape = _spec(frame, name)
            _check(name, live, dtype, shape)
            deltas.append((name, memory(frame), memory(live)))
        except BufferError as error:
            raise BufferError(f"tensor {name!r}: {error}") from None
    _bigsmall.apply_deltas(deltas)


def changes(frame: Any, base: Any) -> tuple[Any, Any]:
    """What a frame changes in `base`: places, counted in elements from 0 and rising, and the new
    values there. Both are one-dimensional, of the framework of `base`; places are I64.

    Raises:
        BigsmallError: As in `decode_delta`; a dtype that is no float or integer of 8 to 64 bits.
    """
    dtype, shape = _spec(frame)
    made = _check("base", base, dtype, shape)
    places, values = _bigsmall.changes(memory(frame), memory(base))
    n = len(places) // 8
    found = made.empty("I64", (n,)), made.empty(dtype, (n,))
    for tensor, data in zip(found, (places, values)):
        memoryview(made.buffer(tensor))[:] = data
    return found


def _of(tensor: Any, name: str = "new") -> Framework:
    made = framework_of(tensor)
    if made is None:
        raise ValueError(f"{name}: expected a tensor of PyTorch or NumPy, found {type(tensor)}")
    return made


def _spec(frame: Any, name: str | None = None) -> tuple[str, tuple[int, ...]]:
    dtype, shape = _bigsmall.delta_spec(memory(frame), name)
    return dtype, tuple(shape)


def _check(name: str, tensor: Any, dtype: str, shape: tuple[int, ...]) -> Framework:
    """The tensor's framework. An error unless it has that dtype and shape."""
    made = _of(tensor, name)
    expected = dtype, made.own_shape(dtype, shape)
    found = made.name_of(tensor.dtype), tuple(tensor.shape)
    if found != expected:
        raise ValueError(
            f"{name}: expected {expected[0]} of {expected[1]}, found {found[0]} of {found[1]}"
        )
    return made
