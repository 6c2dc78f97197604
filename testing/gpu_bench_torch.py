#!/usr/bin/env python3
"""Times torch's bf16 matmul (cuBLAS on NVIDIA, hipBLASLt on AMD), for a table of gpu_bench.

    python3 gpu_bench_torch.py gpu.json [-o joined.json]

As in gpu_bench: 5 runs to warm up, then the median of 20. There are enough copies of the weights
to exceed four times the cache (--cache-mb).
"""

import argparse
import json


def median_us(torch, weights, x, runs=20, warm_ups=5):
    begin = [torch.cuda.Event(enable_timing=True) for _ in range(runs + warm_ups)]
    end = [torch.cuda.Event(enable_timing=True) for _ in range(runs + warm_ups)]
    for i in range(runs + warm_ups):
        begin[i].record()
        torch.matmul(x, weights[i % len(weights)].t())
        end[i].record()
    torch.cuda.synchronize()
    times = sorted(b.elapsed_time(e) * 1e3 for b, e in list(zip(begin, end))[warm_ups:])
    return times[len(times) // 2]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", help="what gpu_bench --json wrote")
    parser.add_argument("-o", "--output", help="write the joined table as JSON")
    parser.add_argument("--cache-mb", type=int, default=80)
    options = parser.parse_args()

    import torch

    if not torch.cuda.is_available():
        parser.error("torch sees no GPU")
    result = json.load(open(options.result))
    device = torch.cuda.get_device_name()
    print(f"gpu_bench: {result['device']}\ntorch {torch.__version__}: {device}\n")

    torch_us = {}
    rows = [row for row in result["rows"] if row["batch"]]
    for shape in dict.fromkeys((row["rows"], row["cols"]) for row in rows):
        m, k = shape
        copies = max(1, min(64, -(-4 * (options.cache_mb << 20) // (2 * m * k))))
        weights = [torch.randn(m, k, device="cuda", dtype=torch.bfloat16) for _ in range(copies)]
        for batch in dict.fromkeys(r["batch"] for r in rows if (r["rows"], r["cols"]) == shape):
            x = torch.randn(batch, k, device="cuda", dtype=torch.bfloat16)
            torch_us[m, k, batch] = median_us(torch, weights, x)
        del weights

    print(
        f"{'shape':>12} {'batch':>5} {'kernel':>14} {'us':>11}"
        f" {'torch us':>11} {'vs torch':>8} {'vs plain':>8}"
    )
    for row in rows:
        m, k, batch = row["rows"], row["cols"], row["batch"]
        row["torch_us"] = torch_us[m, k, batch]
        row["vs_torch"] = row["torch_us"] / row["us"]
        print(
            f"{f'{m}x{k}':>12} {batch:>5} {row['kernel']:>14} {row['us']:>11.1f}"
            f" {row['torch_us']:>11.1f} {row['vs_torch']:>8.3f} {row['vs_plain'] or 0:>8.3f}"
        )
    if options.output:
        result["torch_device"] = device
        json.dump(result, open(options.output, "w"), indent=1)


if __name__ == "__main__":
    main()
