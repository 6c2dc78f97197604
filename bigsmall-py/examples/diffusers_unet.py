"""Compresses the UNet of a diffusion model, loads it and takes one step, with the outputs of the
original.

    pip install bigsmall-rs diffusers accelerate safetensors torch
    python diffusers_unet.py              # a tiny random UNet, made on the spot
    python diffusers_unet.py pipeline/unet
"""

import sys
import tempfile
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

import bigsmall_rs
from bigsmall_rs.torch import StreamingLoader

with tempfile.TemporaryDirectory() as temporary:
    if len(sys.argv) > 1:
        folder = Path(sys.argv[1])
    else:
        folder = Path(temporary, "unet")
        UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=8,
            norm_num_groups=8,
        ).to(torch.bfloat16).save_pretrained(folder)

    small = Path(temporary, "unet.bs")
    report = bigsmall_rs.compress(folder, small)
    print(f"compressed to {report['ratio']:.3f} of its size")

    # For a pipeline: DiffusionPipeline.from_pretrained("pipeline/", unet=unet).
    loader = StreamingLoader(small)
    unet = loader.load_model(UNet2DConditionModel, torch_dtype=torch.bfloat16)
    original = UNet2DConditionModel.from_pretrained(folder, torch_dtype=torch.bfloat16)

    size, context = unet.config.sample_size, unet.config.cross_attention_dim
    noise = torch.randn(1, unet.config.in_channels, size, size, dtype=torch.bfloat16)
    text = torch.randn(1, 8, context, dtype=torch.bfloat16)
    with torch.no_grad():
        ours, theirs = (model(noise, 500, text).sample for model in (unet, original))
    assert torch.equal(ours, theirs)
    print("outputs are identical")
