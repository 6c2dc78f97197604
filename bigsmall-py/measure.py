#!/usr/bin/env python3
"""Measures loading, in the wheel that is installed: CPU time and peak memory.

    python measure.py load       # load_file, against safetensors' own
    python measure.py offload    # a forward pass with weights that stay compressed, against plain

Both make a Llama of 876 MB (bf16, random normal weights, four shards) in a temporary folder
(`--dir` says where) and compress it. Every number is from a process of its own. Runs of all kinds
take turns, so that a busy machine slows down all of them; each ratio is of two neighbouring runs.
CPU time is that of all threads, user and system. Memory is the peak of the resident memory, less
what was resident before: Python, PyTorch and the libraries. The files are in the page cache.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHAPE = dict(
    vocab_size=32000,
    hidden_size=1536,
    intermediate_size=4096,
    num_hidden_layers=12,
    num_attention_heads=12,
    num_key_value_heads=12,
    max_position_embeddings=128,
)


def tensors_of(model: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a Llama's tensors."""
    hidden, inner = model["hidden_size"], model["intermediate_size"]
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (model["vocab_size"], hidden)}
    for i in range(model["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        for name in "qkvo":
            found[f"{layer}self_attn.{name}_proj.weight"] = (hidden, hidden)
        for name in ("gate", "up"):
            found[f"{layer}mlp.{name}_proj.weight"] = (inner, hidden)
        found[f"{layer}mlp.down_proj.weight"] = (hidden, inner)
        found[f"{layer}input_layernorm.weight"] = (hidden,)
        found[f"{layer}post_attention_layernorm.weight"] = (hidden,)
    found["model.norm.weight"] = (hidden,)
    found["lm_head.weight"] = (model["vocab_size"], hidden)
    return found


def make(folder: Path) -> None:
    """Writes the model to `folder/plain`, and compressed to `folder/small`."""
    import torch
    from safetensors.torch import save_file

    import bigsmall_rs

    plain = folder / "plain"
    plain.mkdir()
    torch.manual_seed(1)
    tensors = tensors_of(SHAPE)
    total = sum(2 * torch.Size(shape).numel() for shape in tensors.values())
    n_shards, done, shards = 4, 0, [{} for _ in range(4)]  # type: ignore[var-annotated]
    for name, shape in tensors.items():
        weight = torch.randn(shape) * 0.02 if len(shape) > 1 else torch.ones(shape)
        shards[min(done * n_shards // total, n_shards - 1)][name] = weight.to(torch.bfloat16)
        done += 2 * weight.numel()
    names = {}
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05}-of-{n_shards:05}.safetensors"
        save_file(shard, plain / file, {"format": "pt"})
        names |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": total}, "weight_map": names}
    (plain / "model.safetensors.index.json").write_text(json.dumps(index))
    config = SHAPE | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (plain / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    report = bigsmall_rs.compress(plain, folder / "small")
    print(f"{total / 1e6:.0f} MB of bf16 in {n_shards} shards, compressed to {report['ratio']:.3f}")


def status(key: str) -> float:
    """A line of /proc/self/status, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024
    raise KeyError(key)


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def load_ours(folder: Path) -> Any:
    from bigsmall_rs.torch import load_file

    return load_file(folder / "small")


def load_safetensors(folder: Path) -> Any:
    """With `pread`. With `mmap`, its default, nothing is read before it is used."""
    from safetensors.torch import load_file

    found = {}
    for path in sorted((folder / "plain").glob("*.safetensors")):
        found |= load_file(path, backend="pread")
    return found


def forward(folder: Path, offloaded: bool) -> Any:
    """A forward pass over 2 x 8 tokens."""
    import torch
    from transformers import AutoConfig, LlamaForCausalLM

    if not offloaded:
        model = LlamaForCausalLM.from_pretrained(folder / "plain", dtype=torch.bfloat16)
    else:
        from accelerate import init_empty_weights

        from bigsmall_rs.torch import offload

        with init_empty_weights(include_buffers=False):
            config = AutoConfig.from_pretrained(folder / "plain")
            model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
        offload(model.eval(), folder / "small")
    with torch.no_grad():
        return model(torch.arange(16).reshape(2, 8)).logits


KINDS: dict[str, dict[str, Callable[[Path], Any]]] = {
    "load": {
        "bigsmall": load_ours,
        "safetensors": load_safetensors,
    },
    "offload": {
        "offload": lambda folder: forward(folder, True),
        "plain": lambda folder: forward(folder, False),
    },
}


def one(command: str, kind: str, folder: Path) -> None:
    """One run, in this process. Prints its numbers as JSON."""
    import torch

    import bigsmall_rs.torch  # noqa: F401
    import safetensors.torch  # noqa: F401

    if command == "offload":
        import accelerate  # noqa: F401
        import transformers.models.llama.modeling_llama  # noqa: F401
    torch.ones(1)
    before, used, start = status("VmRSS"), cpu(), time.perf_counter()
    kept = KINDS[command][kind](folder)
    used, elapsed = cpu() - used, time.perf_counter() - start
    print(json.dumps({"cpu": used, "elapsed": elapsed, "peak": status("VmHWM") - before}))
    del kept


def run(command: str, kind: str, folder: Path) -> dict[str, float]:
    arguments = [sys.executable, __file__, command, "--dir", str(folder), "--one", kind]
    found = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout
    return json.loads(found.splitlines()[-1])  # type: ignore[no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("command", choices=sorted(KINDS))
    parser.add_argument("--dir", type=Path, help="where the model is made, and kept")
    parser.add_argument("--runs", type=int, default=5, help="runs of each kind")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments.command, arguments.one, arguments.dir)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.dir or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "small").exists():
            make(folder)
        kinds = list(KINDS[arguments.command])
        for kind in kinds:
            run(arguments.command, kind, folder)  # Fills the page cache.
        rounds = [
            {kind: run(arguments.command, kind, folder) for kind in kinds}
            for _ in range(arguments.runs)
        ]
    print(f"{'median of ' + str(arguments.runs):20}  CPU s  elapsed s  peak MiB")
    for kind in kinds:
        mid = {k: statistics.median(r[kind][k] for r in rounds) for k in rounds[0][kind]}
        print(f"{kind:20} {mid['cpu']:6.2f} {mid['elapsed']:10.2f} {mid['peak']:9.0f}")
    first, *others = kinds
    for kind in others:
        ratios = (statistics.median(r[first][k] / r[kind][k] for r in rounds) for k in
                  ("cpu", "elapsed", "peak"))
        print("{:20} {:6.2f} {:10.2f} {:9.3f}".format(f"ratio to {kind}"[:20], *ratios))


if __name__ == "__main__":
    main()
