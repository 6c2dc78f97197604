"""Models of diffusers: outputs equal to those from the original folder, bit by bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import bigsmall_rs
from bigsmall_rs.torch import StreamingLoader

diffusers = pytest.importorskip("diffusers")

from bigsmall_rs.diffusers import from_pretrained  # noqa: E402


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny UNet in bf16, in several shards; `.bs` beside it is the compressed."""
    folder = tmp_path_factory.mktemp("unet") / "unet"
    torch.manual_seed(1)
    model = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="200KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    bigsmall_rs.compress(folder, folder.with_suffix(".bs"))
    return folder


def output(model: Any) -> torch.Tensor:
    random = torch.Generator().manual_seed(2)
    noise = torch.randn(2, 4, 8, 8, generator=random).to(model.dtype)
    text = torch.randn(2, 5, 16, generator=random).to(model.dtype)
    with torch.no_grad():
        return model(noise, 500, text).sample


def equal(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), name
    assert torch.equal(output(a), output(b))
    assert not a.training


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16], ids=str)
def test_unet(unet: Path, dtype: torch.dtype | None) -> None:
    cls = diffusers.UNet2DConditionModel
    theirs = cls.from_pretrained(unet, torch_dtype=dtype)
    equal(from_pretrained(unet.with_suffix(".bs"), cls, torch_dtype=dtype), theirs)
    loader = StreamingLoader(unet.with_suffix(".bs"), budget=64 << 20)
    equal(loader.load_model(cls, torch_dtype=dtype), theirs)


def test_a_base(unet: Path, tmp_path: Path) -> None:
    cls = diffusers.UNet2DConditionModel
    model = cls.from_pretrained(unet, torch_dtype=torch.bfloat16)
    with torch.no_grad():
        model.conv_in.bias += 1
    model.save_pretrained(tmp_path / "new")
    bigsmall_rs.compress(tmp_path / "new", tmp_path / "new.bs", base=unet)
    equal(from_pretrained(tmp_path / "new.bs", torch_dtype=torch.bfloat16, base=unet), model.eval())
    loader = StreamingLoader(tmp_path / "new.bs", base=unet)
    equal(loader.load_model(cls, torch_dtype=torch.bfloat16), model)


def test_no_class_is_that_of_the_config(unet: Path) -> None:
    theirs = diffusers.UNet2DConditionModel.from_pretrained(unet)
    equal(from_pretrained(unet.with_suffix(".bs")), theirs)
    assert torch.get_default_dtype() == torch.float32


def test_modules_that_stay_float32(unet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cls = diffusers.UNet2DConditionModel
    monkeypatch.setattr(cls, "_keep_in_fp32_modules", ["conv_norm_out"], raising=False)
    ours = from_pretrained(unet.with_suffix(".bs"), cls, torch_dtype=torch.bfloat16)
    theirs = cls.from_pretrained(unet, torch_dtype=torch.bfloat16)
    dtypes = {name: tensor.dtype for name, tensor in theirs.state_dict().items()}
    assert {name: tensor.dtype for name, tensor in ours.state_dict().items()} == dtypes
    assert dtypes["conv_norm_out.weight"] == torch.float32


def test_errors(unet: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        from_pretrained(tmp_path / "missing")
    with pytest.raises(bigsmall_rs.BigsmallError, match="folder"):
        from_pretrained(next(unet.with_suffix(".bs").glob("*.bs")))
    with pytest.raises(RuntimeError, match="size mismatch"):
        from_pretrained(unet.with_suffix(".bs"), block_out_channels=(16, 64))
