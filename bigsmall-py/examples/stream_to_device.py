"""Streams a model to a device layer by layer and prints the peak of main memory.

    python stream_to_device.py [MODEL.bs] [DEVICE]

Without an argument a model of 400 MB is made on the spot. Layers are dropped as a program that
runs them one by one would drop them.
"""

import resource
import sys
import tempfile
import time
from pathlib import Path

import torch

from bigsmall_rs.torch import StreamingLoader, save_file


def make(path: Path) -> None:
    layers = {f"layers.{i}.weight": torch.randn(8192, 3072).bfloat16() * 0.02 for i in range(4)}
    save_file(layers | {f"layers.{i + 4}.weight": t * 0.5 for i, t in enumerate(layers.values())},
              path)


def peak() -> float:
    """The most main memory that this process has had, in MiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(sys.argv[1] if len(sys.argv) > 1 else temporary + "/model.bs")
        if len(sys.argv) == 1:
            import multiprocessing

            # In another process, so that its memory does not count.
            maker = multiprocessing.get_context("spawn").Process(target=make, args=(path,))
            maker.start()
            maker.join()
        device = sys.argv[2] if len(sys.argv) > 2 else "cpu"
        before, begin, total = peak(), time.perf_counter(), 0
        for name, tensors in StreamingLoader(path, device=device):
            n = sum(t.numel() * t.element_size() for t in tensors.values())
            total += n
            print(f"{name}: {n / 2**20:.0f} MiB")
        seconds = time.perf_counter() - begin
        print(f"{total / 2**20:.0f} MiB in {seconds:.1f} s")
        print(f"peak of main memory: {peak() - before:.0f} MiB over that of importing torch")


if __name__ == "__main__":
    main()
