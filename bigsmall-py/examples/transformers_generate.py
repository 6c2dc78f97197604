"""Generates text from a compressed model of transformers, and compares it with the original.

Without an argument a small random Llama is made on the spot.
"""

import sys
import tempfile
from pathlib import Path

import torch
import transformers

import bigsmall_rs
from bigsmall_rs.transformers import from_pretrained


def small_llama(folder: Path) -> None:
    config = transformers.LlamaConfig(
        vocab_size=1000,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
    )
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else temporary + "/model")
        if len(sys.argv) == 1:
            small_llama(folder)
        compressed = Path(temporary) / "model.bs"
        report = bigsmall_rs.compress(folder, compressed)
        print(f"compressed to {100 * report['ratio']:.1f} %")
        auto = transformers.AutoModelForCausalLM
        prompt = torch.tensor([[1, 17, 42]])
        outputs = [
            model.generate(prompt, max_new_tokens=20, do_sample=False)
            for model in (from_pretrained(compressed, auto), auto.from_pretrained(folder))
        ]
        print(outputs[0].tolist())
        assert torch.equal(*outputs)
        print("the same tokens as from the original")


main()
