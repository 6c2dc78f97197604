"""Arrays of NumPy: what is saved comes back, and restores to what safetensors writes."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

import bigsmall_rs
from bigsmall_rs.numpy import load, load_file, save, save_file

DTYPES = [
    *map(np.dtype, "?bBhHiIqQefdF"),
    np.dtype(ml_dtypes.bfloat16),
    np.dtype(ml_dtypes.float8_e4m3fn),
    np.dtype(ml_dtypes.float8_e5m2),
]
shapes = st.lists(st.integers(0, 40), max_size=3).map(tuple)


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    dtype, shape = draw(st.sampled_from(DTYPES)), draw(shapes)
    n = int(np.prod(shape)) * dtype.itemsize
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = random.integers(0, 2 if dtype == bool else 256, n, np.uint8)
    return values.view(dtype).reshape(shape)


@st.composite
def parts(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[slice | int, ...]:
    index: list[slice | int] = []
    for n in shape[: draw(st.integers(0, len(shape)))]:
        ends = st.none() | st.integers(-n - 2, n + 2)
        if n and draw(st.booleans()):
            index.append(draw(st.integers(-n, n - 1)))
        else:
            step = draw(st.none() | st.integers(-3, 3).filter(bool))
            index.append(slice(draw(ends), draw(ends), step))
    return tuple(index)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.text(min_size=1, max_size=8), arrays(), max_size=4))
def test_round_trips(tensors: dict[str, np.ndarray]) -> None:
    found = load(save(tensors))
    assert found.keys() == tensors.keys()
    assert all(same(found[name], array) for name, array in tensors.items())


@settings(max_examples=200, deadline=None)
@given(st.data(), arrays())
def test_slices(data: st.DataObject, array: np.ndarray) -> None:
    index = data.draw(parts(array.shape))
    file = bigsmall_rs.File.from_bytes(save({"a": array}))
    assert same(np.asarray(file.get_slice("a")[index]), np.asarray(array[index]))


def test_a_file_restores_to_that_of_safetensors(
    tmp_path: Path, tensors: dict[str, np.ndarray]
) -> None:
    save_file(tensors, tmp_path / "m.bs", {"format": "np"})
    safetensors.numpy.save_file(tensors, tmp_path / "m.safetensors", {"format": "np"})
    bigsmall_rs.restore(tmp_path / "m.bs", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == (tmp_path / "m.safetensors").read_bytes()
    save_file({"a": np.ones(3)}, tmp_path / "m.bs")
    assert list(load_file(tmp_path / "m.bs")) == ["a"]


def test_orders_of_memory_and_of_bytes() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    for given_array in (array.T, array[:, ::2], array.astype(">f4"), array.T.astype(">i8")):
        assert np.array_equal(load(save({"a": given_array}))["a"], given_array)


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    for wrong in (np.array(["text"]), np.array([object()]), [1, 2], np.zeros(2, np.complex128)):
        with pytest.raises(bigsmall_rs.BigsmallError):
            save_file({"a": wrong}, tmp_path / "m.bs")
    assert list(tmp_path.iterdir()) == []
