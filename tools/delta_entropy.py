"""What a pair of safetensors files leaves to be coded: python3 tools/delta_entropy.py BASE NEW

Prints the share of weights that differ, and, in bits a weight, the entropy of their difference in
the order of floats (FORMAT.md section 10.4), H(d), and the same given the exponent of the base's
weight, H(d|e), with its share of the weights. Tables are made from the pair itself and cost
nothing. Of large differences the low bits, which are close to noise, are counted byte by byte
without the exponent, so that some 2^12 values are left for the tables. Needs NumPy.
"""

import json
import sys

import numpy as np

FIELDS = {"BF16": (np.uint16, 7, 8), "F16": (np.uint16, 10, 5), "F32": (np.uint32, 23, 8)}


def read(path):
    data = open(path, "rb").read()
    n = int.from_bytes(data[:8], "little")
    tensors = json.loads(data[8 : 8 + n])
    tensors.pop("__metadata__", None)
    body = data[8 + n :]
    return {k: (t["dtype"], body[slice(*t["data_offsets"])]) for k, t in tensors.items()}


def entropy(values):
    n = np.unique(values, return_counts=True)[1]
    return float((n * np.log2(n.sum() / n)).sum())


base, new = read(sys.argv[1]), read(sys.argv[2])
bits = total = changed = plain = given = 0
for name, (dtype, data) in new.items():
    word, shift, width = FIELDS[dtype]
    w = 8 * word().itemsize
    old, now = (np.frombuffer(d, word) for d in (base[name][1], data))
    top = word(1 << (w - 1))
    sign = old & top
    ordered = lambda x: np.where(x & top, ~x, x | top).astype(np.int64)
    d = ordered(now ^ sign) - ordered(old ^ sign)
    e = (old >> shift) & ((1 << width) - 1)
    low = max(0, int(np.percentile(np.abs(d), 98)).bit_length() - 11)
    lows = sum(entropy((d >> b) & 0xFF & ((1 << (low - b)) - 1)) for b in range(0, low, 8))
    plain += entropy(d >> low) + lows
    given += sum(entropy(d[e == x] >> low) for x in np.unique(e)) + lows
    changed += int((old != now).sum())
    total += d.size
    bits += w * d.size
    planes = [entropy(((old ^ now) >> b) & 0xFF) for b in range(0, w, 8)]
    noise = planes if total == d.size else [a + b for a, b in zip(noise, planes)]
print(f"{100 * changed / total:.3f} % of {total} weights differ")
print(f"H(d) {plain / total:.3f} bits")
print(f"H(d|e) {given / total:.3f} bits = {100 * given / bits:.2f} %")
print("bytes of the XOR, lowest first:", " ".join(f"{n / total:.2f}" for n in noise), "bits")
