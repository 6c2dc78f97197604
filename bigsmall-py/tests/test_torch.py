"""Tensors and modules of PyTorch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import bigsmall_rs
import bigsmall_rs.torch as bt

safetensors = pytest.importorskip("safetensors.torch")

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.uint16,
    torch.int16,
    torch.uint32,
    torch.int32,
    torch.uint64,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e8m0fnu,
]



def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    flat = [t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
    return torch.equal(*flat)


def test_views_that_conjugate_or_negate(tmp_path: Path) -> None:
    numbers = torch.randn(6, 8, dtype=torch.complex64)
    tensors = {"conj": numbers.conj(), "neg": torch._neg_view(torch.randn(6, 8))}
    assert tensors["conj"].is_conj() and tensors["neg"].is_neg()
    bt.save_file(tensors, tmp_path / "m.bs")
    assert all(torch.equal(bt.load_file(tmp_path / "m.bs")[n], t) for n, t in tensors.items())
    module = nn.Module()
    module.register_buffer("plain", numbers)
    module.register_buffer("conj", numbers.conj())
    module.register_buffer("neg", torch._neg_view(torch.zeros(6, 8)))
    with pytest.raises(RuntimeError, match="share memory"):
        bt.save_model(module, tmp_path / "model.bs")
    bt.save_file({"plain": numbers, "neg": tensors["neg"], "conj": numbers.conj().clone()},
                 tmp_path / "m.bs")
    module.register_buffer("plain", torch.zeros_like(numbers))
    module.register_buffer("conj", torch.zeros_like(numbers).conj())
    bt.load_model(module, tmp_path / "m.bs")
    assert torch.equal(module.conj, numbers.conj()) and torch.equal(module.neg, tensors["neg"])


class Net(nn.Module):
    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.layers = nn.ModuleList([nn.Linear(16, 16) for _ in range(3)])
        self.register_buffer("steps", torch.arange(5))
        self.head = nn.Linear(16, 50, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.head(x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_and_slice(tmp_path: Path, dtype: torch.dtype) -> None:
    n = 2 if dtype == torch.bool else 256
    raw = torch.randint(0, n, (6 * 8 * dtype.itemsize,), dtype=torch.uint8)
    tensors = {
        "w": raw.view(dtype).reshape(6, 8),
        "scalar": raw[: dtype.itemsize].clone().view(dtype).reshape(()),
        "empty": torch.empty(0, 3, dtype=dtype),
    }
    bt.save_file(tensors, tmp_path / "m.bs", {"format": "pt"})
    safetensors.save_file(tensors, tmp_path / "m.safetensors", {"format": "pt"})
    found = bt.load_file(tmp_path / "m.bs")
    assert all(same(found[name], tensor) for name, tensor in tensors.items())
    bigsmall_rs.restore(tmp_path / "m.bs", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == (tmp_path / "m.safetensors").read_bytes()
    with bigsmall_rs.safe_open(tmp_path / "m.bs", framework="pt") as file:
        piece = file.get_slice("w")
        assert piece.dtype == dtype and piece.get_shape() == [6, 8]
        for index in (slice(1, 4), 2, (slice(None, None, 2), slice(3, 5)), (..., 1)):
            assert same(piece[index], tensors["w"][index])


def test_fp4_comes_in_pairs(tmp_path: Path) -> None:
    tensor = torch.randint(0, 256, (4, 8), dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    bt.save_file({"w": tensor}, tmp_path / "m.bs")
    with bigsmall_rs.open(tmp_path / "m.bs", "pt") as file:
        assert file.get_slice("w").get_shape() == [4, 16]
        assert file.get_slice("w").shape == (4, 8)
        found = file.get_tensor("w")
    assert found.dtype == tensor.dtype
    assert torch.equal(found.view(torch.uint8), tensor.view(torch.uint8))


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    weight = torch.zeros(4, 4)
    with pytest.raises(RuntimeError, match="share memory"):
        bt.save_file({"a": weight, "b": weight[1]}, tmp_path / "m.bs")
    with pytest.raises(ValueError, match="contiguous"):
        bt.save_file({"a": torch.arange(6).reshape(2, 3).T}, tmp_path / "m.bs")
    with pytest.raises(ValueError, match="sparse"):
        bt.save_file({"a": weight.to_sparse()}, tmp_path / "m.bs")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tied", [False, True])
def test_modules(tmp_path: Path, tied: bool) -> None:
    net, x = Net(tied), torch.arange(10)
    bt.save_model(net, tmp_path / "m.bs")
    other = Net(tied)
    place = other.layers[0].weight.data_ptr()
    assert bt.load_model(other, tmp_path / "m.bs") == (set(), [])
    assert torch.equal(net(x), other(x))
    assert other.layers[0].weight.data_ptr() == place, "decoded into the parameter itself"
    with torch.device("meta"):
        bare = Net(tied)
    bt.load_model(bare, tmp_path / "m.bs")
    assert torch.equal(net(x), bare(x))
    assert (bare.head.weight is bare.embed.weight) == tied
    half = Net(tied).to(torch.float64)
    bt.load_model(half, tmp_path / "m.bs")
    assert half.head.weight.dtype == torch.float64
    assert torch.equal(half.head.weight.float(), net.head.weight)


def test_names_and_shapes_that_do_not_fit(tmp_path: Path) -> None:
    bt.save_file({"weight": torch.zeros(3, 3), "more": torch.zeros(1)}, tmp_path / "m.bs")
    with pytest.raises(RuntimeError, match=r'state_dict: "bias"\n.*"more"'):
        bt.load_model(nn.Linear(3, 3), tmp_path / "m.bs")
    found = bt.load_model(nn.Linear(3, 3), tmp_path / "m.bs", strict=False)
    assert found == ({"bias"}, ["more"])
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        bt.load_model(nn.Linear(4, 3), tmp_path / "m.bs", strict=False)


def test_streaming(tmp_path: Path) -> None:
    net, x = Net(), torch.arange(10)
    bt.save_model(net, tmp_path / "m.bs")
    loader = bt.StreamingLoader(tmp_path / "m.bs", budget=64 << 20)
    assert loader.layers[1:4] == ["layers.0", "layers.1", "layers.2"] or len(loader) == 6
    for _ in range(2):
        seen: dict[str, torch.Tensor] = {}
        for layer, tensors in loader:
            assert all(bigsmall_rs.layer_of(name) == layer for name in tensors)
            seen |= tensors
        assert all(torch.equal(seen[name], t) for name, t in net.state_dict().items())
    for model in (Net, Net()):
        assert torch.equal(loader.load_model(model)(x), net(x))
    for _, tensors in loader:
        break
    with pytest.raises(bigsmall_rs.BigsmallError):
        bt.StreamingLoader(tmp_path / "m.bs", budget=1000)


PEAK = """
import sys, torch
import bigsmall_rs.torch as bt

def status(key):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key))

model = torch.nn.Module()
model.w = torch.nn.Parameter(torch.ones(6144, 16384))
loader = bt.StreamingLoader(sys.argv[1], budget=64 << 20)
before = status("VmRSS")
loader.load_model(model)
assert model.w[5, 1] == 1.5 and model.w[6143, 0] == 2
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_load_model_keeps_to_the_budget(tmp_path: Path) -> None:
    """192 MiB of bf16 go into float32, where they cannot be decoded directly."""
    weight = torch.zeros(6144, 16384, dtype=torch.bfloat16)
    weight[5, 1], weight[6143, 0] = 1.5, 2
    bt.save_file({"w": weight}, tmp_path / "m.bs")
    command = [sys.executable, "-c", PEAK, str(tmp_path / "m.bs")]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert int(found) < 80 << 20


def test_damage_is_found_while_streaming(tmp_path: Path) -> None:
    bt.save_file({f"layers.{i}.w": torch.randn(200, 200) for i in range(3)}, tmp_path / "m.bs")
    data = bytearray((tmp_path / "m.bs").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "m.bs").write_bytes(data)
    with pytest.raises(bigsmall_rs.BigsmallError) as error:
        list(bt.StreamingLoader(tmp_path / "m.bs"))
    assert error.value.tensor == "layers.1.w"


def test_lazy_state_dict(tmp_path: Path) -> None:
    net = Net()
    bt.save_model(net, tmp_path / "m.bs")
    lazy = bt.lazy_state_dict(tmp_path / "m.bs")
    assert lazy.keys() == net.state_dict().keys()
    assert all(torch.equal(lazy[name], t) for name, t in net.state_dict().items())
    with pytest.raises(KeyError):
        lazy["other"]
    other = Net()
    other.load_state_dict(dict(lazy))
    assert torch.equal(other.head.weight, net.head.weight)


def test_everything_reads_with_a_base(tmp_path: Path) -> None:
    old, net, x = Net(), Net(), torch.arange(10)
    net.load_state_dict({name: tensor + tensor / 128 for name, tensor in old.state_dict().items()})
    bt.save_model(old, tmp_path / "old.bs")
    safetensors.save_model(net, tmp_path / "new")
    path, base = tmp_path / "new.bs", tmp_path / "old.bs"
    (report,) = bigsmall_rs.compress(tmp_path / "new", path, base=base)["files"]
    assert report["delta_tensors"] > 0
    state = net.state_dict()
    streamed: dict[str, torch.Tensor] = {}
    for _, tensors in bt.StreamingLoader(path, base=base):
        streamed |= tensors
    for found in (
        bt.load_file(path, base=base),
        bt.load(path.read_bytes(), base=base),
        bt.lazy_state_dict(path, base=base),
        streamed,
    ):
        assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    other = Net()
    bt.load_model(other, path, base=base)
    assert torch.equal(other(x), net(x))
    assert torch.equal(bt.StreamingLoader(path, base=base).load_model(Net)(x), net(x))
    accelerate = pytest.importorskip("accelerate")
    with accelerate.init_empty_weights(include_buffers=False):
        bare = Net()
    assert torch.equal(bt.offload(bare, path, base=base)(x), net(x))
    with pytest.raises(bigsmall_rs.BigsmallError) as wrong:
        bt.load_file(path)
    assert wrong.value.rule == "BaseMissing"


def test_two_tensors_for_one_parameter(tmp_path: Path) -> None:
    bt.save_model(Net(), tmp_path / "m.bs")
    with pytest.raises(RuntimeError, match='Unexpected.*"head.weight"'):
        bt.load_model(Net(tied=True), tmp_path / "m.bs")


@pytest.mark.parametrize("tied", [False, True])
def test_offload(tmp_path: Path, tied: bool) -> None:
    accelerate = pytest.importorskip("accelerate")
    net, x = Net(tied), torch.arange(10)
    bt.save_model(net, tmp_path / "m.bs")
    with accelerate.init_empty_weights(include_buffers=False):
        bare = Net(tied)
    if tied:
        # Parameters that are registered inside are copies.
        bare.head.weight = bare.embed.weight
    bt.offload(bare, tmp_path / "m.bs")
    for _ in range(2):
        assert torch.equal(bare(x), net(x))
        assert all(p.device.type == "meta" for p in bare.parameters())
    lacking = Net()
    bt.save_file({"embed.weight": torch.zeros(50, 16)}, tmp_path / "part.bs")
    with pytest.raises(RuntimeError, match="lacks"):
        bt.offload(lacking, tmp_path / "part.bs")
