"""Pages and deltas, in the memory of PyTorch and NumPy."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from bigsmall_rs import BigsmallError
from bigsmall_rs.deltas import apply_delta, changes, decode_delta, encode_delta
from bigsmall_rs.pages import Pages


def weights(n: int, seed: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(n, generator=random).to(dtype)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def test_pages_come_back_in_the_memory_of_the_caller() -> None:
    pages = Pages.train([weights(8192, i) for i in range(4)])
    assert pages.dtype == "BF16"
    again = pickle.loads(pickle.dumps(pages))
    odd = torch.randint(0, 256, (8000,), dtype=torch.uint8).view(torch.bfloat16)
    for page in (weights(8192, 9), weights(300, 10), odd, torch.empty(0, dtype=torch.bfloat16)):
        slot = bytearray(pages.max_encoded_len(page.nbytes))
        n = pages.encode_into(page, slot)
        assert n <= len(slot) and pages.page_len(slot) == page.nbytes
        assert pages.encode(page) == slot[:n] == again.encode(page)
        out = torch.ones_like(page)
        again.decode_into(memoryview(slot)[:n], out)
        assert same(out, page)
    assert len(pages.encode(weights(8192, 9))) < 0.75 * 16384


def test_pages_of_numpy_and_of_bytes() -> None:
    values = np.random.default_rng(1).standard_normal(4096).astype(ml_dtypes.bfloat16)
    pages = Pages.train([values])
    encoded = pages.encode(values)
    assert encoded == Pages.train([values.tobytes()], "BF16").encode(values.tobytes())
    out = np.zeros_like(values)
    pages.decode_into(np.frombuffer(encoded, np.uint8), out)
    assert out.tobytes() == values.tobytes()


def test_many_threads_code_pages() -> None:
    pages = Pages.train([weights(8192, 0)])

    def work(seed: int) -> bool:
        page = weights(8192, seed)
        out = torch.empty_like(page)
        pages.decode_into(pages.encode(page), out)
        return same(out, page)

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(64)))


def test_what_is_wrong_with_a_page() -> None:
    page = weights(8192, 1)
    pages, other = Pages.train([page]), Pages.train([page * 1000])
    encoded = pages.encode(page)
    with pytest.raises(BigsmallError) as wrong:
        other.decode_into(encoded, page.clone())
    assert wrong.value.rule == "PageTables"
    damaged = bytearray(encoded)
    damaged[len(damaged) // 2] ^= 1
    with pytest.raises(BigsmallError) as wrong:
        pages.decode_into(damaged, page.clone())
    assert wrong.value.rule == "PageChecksum"
    with pytest.raises(BigsmallError) as wrong:
        pages.decode_into(encoded, page[:100].clone())
    assert wrong.value.rule == "BufferLength"
    with pytest.raises(BigsmallError):
        pages.encode_into(page, bytearray(10))
    with pytest.raises(ValueError, match="BF16"):
        pages.encode(page.float())
    with pytest.raises(BufferError):
        pages.encode(page.reshape(64, 128).T)
    with pytest.raises(BufferError):
        pages.decode_into(encoded, bytes(page.nbytes))
    both = memoryview(bytearray(40_000))
    with pytest.raises(ValueError, match="overlap"):
        pages.encode_into(both[:16384], both[16000:])
    with pytest.raises(ValueError, match="dtype"):
        Pages.train([page.view(torch.uint8).numpy().tobytes()])
    with pytest.raises(BigsmallError):
        Pages.from_bytes(encoded)


DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_deltas(dtype: torch.dtype) -> None:
    old = weights(60_000, 1, dtype).reshape(200, 300)
    new = old.clone()
    new.reshape(-1)[1000:1100] = weights(100, 2, dtype)
    frame = encode_delta(new, old)
    assert len(frame) < 2000
    assert same(decode_delta(frame, old), new)
    live = {"w": old.clone(), "other": torch.zeros(3)}
    apply_delta({"w": frame}, live)
    assert same(live["w"], new)
    if dtype == torch.float8_e4m3fn:
        with pytest.raises(BigsmallError):
            changes(frame, old)
        return
    places, values = changes(frame, old)
    patched = old.clone().reshape(-1)
    patched[places] = values
    assert same(patched, new.reshape(-1)) and values.dtype == dtype
    assert torch.equal(places, places.sort().values)


def test_deltas_of_numpy() -> None:
    old = np.random.default_rng(1).standard_normal((50, 200), np.float32)
    new = old * np.float32(1.001)
    frame = encode_delta(new, old)
    assert decode_delta(frame, old).tobytes() == new.tobytes()
    places, values = changes(frame, old)
    assert np.array_equal(values, new.reshape(-1)[places])


VIEWS = [
    (np.arange(512, dtype="<f4"), np.arange(512, dtype=">f4")),
    (torch.ones(512), torch._neg_view(torch.ones(512))),
    (torch.ones(512, dtype=torch.complex64), torch.ones(512, dtype=torch.complex64).conj()),
]


@pytest.mark.parametrize(("plain", "view"), VIEWS)
def test_memory_that_does_not_hold_the_values(plain: Any, view: Any) -> None:
    frame = encode_delta(plain, plain)
    pages = Pages.train([plain])
    slot = pages.encode(plain)
    before = view[:].tolist()
    for work in (
        lambda: encode_delta(view, plain),
        lambda: encode_delta(plain, view),
        lambda: decode_delta(frame, view),
        lambda: apply_delta({"a": frame}, {"a": view}),
        lambda: changes(frame, view),
        lambda: Pages.train([view]),
        lambda: pages.encode(view),
        lambda: pages.decode_into(slot, view),
    ):
        with pytest.raises(BufferError):
            work()
    assert view.tolist() == before


def test_a_wrong_base_changes_nothing() -> None:
    old = {name: weights(40_000, i) for i, name in enumerate("abc")}
    new = {name: tensor * 1.01 for name, tensor in old.items()}
    frames: dict[str, Any] = {name: encode_delta(new[name], old[name]) for name in old}
    live = {name: tensor.clone() for name, tensor in old.items()}
    live["c"][39_999] = 7.0
    before = {name: tensor.clone() for name, tensor in live.items()}
    with pytest.raises(BigsmallError) as wrong:
        apply_delta(frames, live)
    assert wrong.value.rule == "BaseMismatch"
    assert all(same(live[name], before[name]) for name in live)
    with pytest.raises(BigsmallError):
        decode_delta(frames["c"], live["c"])
    live["c"] = old["c"].clone()
    damaged = bytearray(frames["c"])
    damaged[len(damaged) // 2] ^= 1
    with pytest.raises(BigsmallError):
        apply_delta(frames | {"c": damaged}, live)
    assert all(same(live[name], old[name]) for name in live)
    with pytest.raises(KeyError):
        apply_delta(frames, {"a": live["a"]})
    with pytest.raises(ValueError, match="expected BF16"):
        apply_delta(frames, live | {"c": live["c"].float()})
    with pytest.raises(ValueError, match='"a" and "b"'):
        apply_delta({"a": frames["a"], "b": frames["a"]}, {"a": live["a"], "b": live["a"]})
    apply_delta(frames, live)
    assert all(same(live[name], new[name]) for name in live)


def test_what_is_wrong_with_a_delta_names_the_tensor() -> None:
    old = np.random.default_rng(1).standard_normal((400, 500), np.float32)
    frame = encode_delta(old * np.float32(1.001), old)
    fixed = old.copy()
    fixed.flags.writeable = False
    for bad, live in (
        (frame[:20], old),
        (frame[:-1], old),
        (frame, old * 3),
        (memoryview(frame)[::2], old),
        (frame, fixed),
        (frame, old.T[::2].T),
        (frame, old.T),
        (frame, old.tolist()),
        (frame, old.astype(np.float16)),
    ):
        with pytest.raises((BigsmallError, BufferError, ValueError), match="layer.w") as wrong:
            apply_delta({"layer.w": bad}, {"layer.w": live})
        if isinstance(wrong.value, BigsmallError):
            assert wrong.value.tensor == "layer.w"
        assert str(wrong.value).count("layer.w") == 1
