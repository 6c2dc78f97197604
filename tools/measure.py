#!/usr/bin/env python3
"""Measures the command on one file, for docs/performance.md: measure.py BIGSMALL FILE [RUNS]

Shared machines change their speed from minute to minute. So every rate is compared with another
one, measured at the same time: decoding with memcpy, encoding and whole programs with a pass of
SHA-256 over the file. Prints the median of RUNS (default 7) runs, and the best one.
"""
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time

program, file = sys.argv[1:3]
runs = int(sys.argv[3]) if len(sys.argv) > 3 else 7
with open(file, "rb") as f:
    data = f.read()


def seconds(work):
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def sha256():
    return seconds(lambda: hashlib.sha256(data).digest())


def call(*args, refused=0):
    done = subprocess.run([program, *args], capture_output=True, text=True)
    if done.returncode not in (0, refused):
        sys.exit(done.stderr)
    return done.stdout


def median(values):
    return sorted(values)[len(values) // 2]


def line(name, middle, unit, best):
    print(f"{name:24} {middle:6.2f} {unit}, best {best:.2f}", flush=True)


def bench(name, *args):
    decode, encode, matvec, passes = [], [], [], []
    for _ in range(runs):
        passes.append(sha256())
        # Exit code 4: this machine does not support the backend.
        printed = call("bench", file, "--json", *args, refused=4)
        if not printed:
            return
        found = json.loads(printed)
        decode.append(found["decode_vs_memcpy"])
        encode.append(found["encode_gbps"] * 1e9 / len(data))
        if found["matvec_vs_plain"]:
            matvec.append(found["matvec_vs_plain"])
    line(f"{name}, decode", median(decode), "of memcpy", max(decode))
    line(f"{name}, encode", median(encode) * median(passes), "of SHA-256's rate",
         max(encode) * min(passes))
    if matvec:
        line(f"{name}, matvec", median(matvec), "of plain bf16", max(matvec))


with tempfile.TemporaryDirectory(dir=os.path.dirname(os.path.abspath(file))) as folder:
    shard, back = os.path.join(folder, "a.bs"), os.path.join(folder, "a.safetensors")
    passes, taken = [], {"compress": [], "verify": [], "restore": []}
    for _ in range(runs):
        for path in shard, back:
            if os.path.exists(path):
                os.remove(path)
        passes.append(sha256())
        taken["compress"].append(seconds(lambda: call("compress", file, "-o", shard)))
        taken["verify"].append(seconds(lambda: call("verify", shard)))
        taken["restore"].append(seconds(lambda: call("restore", shard, "-o", back)))
    for name, times in taken.items():
        line(name, median(times) / median(passes), "SHA-256 passes", min(times) / min(passes))
    unit = median(passes)
    print(f"a SHA-256 pass takes {unit:.3f} s, {len(data) / 1e9 / unit:.2f} GB/s")

for backend in "avx512", "avx2", "neon", "portable":
    bench(f"ans {backend}", "--threads", "1", "--backend", backend)
bench("ans two threads", "--threads", "2")
for encoding in "tbe3", "tbe4":
    for backend in "avx512", "avx2", "neon", "portable":
        options = "--threads", "1", "--encoding", encoding, "--backend", backend
        bench(f"{encoding} {backend}", *options)
