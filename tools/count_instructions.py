#!/usr/bin/env python3
"""Counts the instructions of the kernels: of bigsmall-tbe for 64 weights, of bigsmall-codec for 32.

Compiles the crates for x86-64 and for 64-bit Arm to assembly (`rustup target add` both; no linker
is needed) and prints two tables: for each kernel the instructions of its loop over rows or tiles.
Of products, loops in that loop (over escapes beyond the usual ones) and shifted tiles are not
counted.
"""

import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGETS = ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"]
# Names of dtypes in symbols: their mantissa bits; then the extra bitmaps.
DTYPES = [
    ("bf16", "m7_", "j0_"),
    ("f16", "ma_", "j3_"),
    ("E4M3", "m3_", "j4_"),
    ("E5M2", "m2_", "j3_"),
]
FUSED = r"\s(vfmadd\w+|fmla)\b"
LOOK_UP = r"\s(vpermw|vpermi2w|vpermt2w|vpshufb|tbl)\b"
TO_INTEGERS = r"\s(vcvttps2udq|fcvtzu)\b"


def assembly(crate, target):
    """The functions of a crate: the lines of each by its symbol."""
    env = {**os.environ, "RUSTFLAGS": "-C symbol-mangling-version=v0 -C codegen-units=1"}
    command = ["cargo", "rustc", "-q", "--release", "-p", crate, "--lib"]
    command += ["--target", target, "--", "--emit", "asm"]
    subprocess.run(command, cwd=ROOT, env=env, check=True)
    name = crate.replace("-", "_")
    files = (ROOT / "target" / target / "release/deps").glob(f"{name}-*.s")
    text = max(files, key=lambda f: f.stat().st_mtime).read_text()
    functions = re.findall(r"^(_R\w+):\n(.*?)^\.Lfunc_end", text, re.M | re.S)
    return {name: body.splitlines() for name, body in functions}


def loops(lines):
    """The instructions of a function, and the first and last one of each loop, shortest first."""
    labels, code = {}, []
    for line in lines:
        if label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = len(code)
        elif re.match(r"\s+[a-z]", line):
            code.append(line)
    found = []
    for end, line in enumerate(code):
        jump = re.match(r"\s+(?:j\w+|b|b\.\w+|cbn?z|tbn?z)\s.*?(\.L\w+)$", line)
        if jump and labels.get(jump[1], end + 1) <= end:
            found.append((labels[jump[1]], end))
    return code, sorted(found, key=lambda loop: loop[1] - loop[0])


def count(functions, symbol, marker, least):
    """The instructions of the shortest loop with so many that match the marker, for one tile."""
    for name, lines in functions.items():
        if not re.search(symbol, name):
            continue
        code, found = loops(lines)
        marks = lambda loop: sum(bool(re.search(marker, c)) for c in code[loop[0] : loop[1] + 1])
        for loop in found:
            if (n := marks(loop)) >= least:
                inner = [x for x in found if loop[0] < x[0] and x[1] < loop[1] and marks(x) == 0]
                within = {i for x in inner for i in range(x[0], x[1] + 1)}
                return (loop[1] - loop[0] + 1 - len(within)) * least / n
    raise SystemExit(f"no loop of {symbol}")


def rows(functions, symbol, marker, least):
    """The instructions of loops over rows that have nothing in common, shortest first."""
    for name, lines in functions.items():
        if re.search(symbol, name):
            code, found = loops(lines)
            taken = []
            for begin, end in found:
                marks = sum(bool(re.search(marker, c)) for c in code[begin : end + 1])
                if marks >= least and all(end < a or b < begin for a, b in taken):
                    taken.append((begin, end))
            if taken:
                return [end - begin + 1 for begin, end in taken]
    raise SystemExit(f"no loop of {symbol}")


def row(name, *counts):
    print(f"| {name} | " + " | ".join(f"{count:.0f}" for count in counts) + " |")


def codec():
    x86, arm = (assembly("bigsmall-codec", target) for target in TARGETS)
    print("| 32 weights | avx512 | avx2 | neon |\n|---|---|---|---|")
    # Blocks that are decoded at once, and how many vectors 32 symbols take.
    backends = [(x86, "avx512", 4, 1), (x86, "avx2", 2, 2), (arm, "neon", 2, 2)]
    # Bytes of a unit, bits of its residual and of a symbol, look-ups in a vector of symbols.
    for name, unit, residual, bits, least in [
        ("bf16", 2, 7, 5, 4),
        ("f32", 4, 7, 5, 4),
        ("f16, 32 symbols", 2, 2, 5, 4),
        ("f16, 64 symbols", 2, 1, 6, 4),
        ("E4M3, 32 symbols", 1, 3, 5, 3),
        ("E5M2, 64 symbols", 1, 1, 6, 3),
    ]:
        counts = []
        for functions, backend, blocks, vectors in backends:
            # A number that occurs before is written as a reference to it.
            n = r"KB\w+_" if blocks == unit else f"Kj{blocks}_"
            symbol = f"{backend}.*decode_fusedKj{unit}_Km{residual}_Km{bits}_{n}E"
            if not any(re.search(symbol, name) for name in functions):
                # The compiler put it into its caller, with the one for a single block.
                symbol = f"{backend}.*Kernels12decode_fused"
            # Of residuals that are rows of bytes and rows of bits the latter come last.
            counts.append(rows(functions, symbol, LOOK_UP, least * blocks * vectors)[-1] / blocks)
        row(f"decode {name}", *counts)
    # Tables of 32 symbols come first, with the fewest steps of search. AVX-512 encodes four blocks
    # at once.
    avx512 = rows(x86, "avx5126encode6encodeKj4_", TO_INTEGERS, 8)[0] / 4
    avx2 = rows(x86, "avx26encode", r"\svpmuludq\b", 8)[0]
    neon = rows(arm, "neon.*Kernels6encode", TO_INTEGERS, 8)[0]
    row("encode 32 symbols", avx512, avx2, neon)


def main():
    codec()
    print()
    x86, arm = (assembly("bigsmall-tbe", target) for target in TARGETS)

    def products(name, kernel):
        backends = [(x86, "avx512", 4), (x86, "avx2", 8), (arm, "neon", 16)]
        row(name, *(count(f, f"{b}8products.*{kernel}", FUSED, least) for f, b, least in backends))

    print("| product of 64 weights | avx512 | avx2 | neon |\n|---|---|---|---|")
    for dtype, m, _ in DTYPES:
        products(f"{dtype}, plain", f"dot_plain_implK{m}")
    avx2 = count(x86, "avx28products.*dot_nibbles_impl", FUSED, 8)
    neon = count(arm, "neon8products.*dot_nibbles_impl", FUSED, 16)
    # With AVX-512 the kernel of AVX2 runs.
    row("bf16, nibbles", avx2, avx2, neon)
    # Two tiles in each round.
    pairs = count(x86, "avx5128products.*sum_of_pairs_impl", FUSED, 4)
    print(f"| bf16, pairs | {pairs:.0f} | | |")
    for dtype, m, x in DTYPES:
        for w, bitmaps in [("3", "three"), ("4", "four")]:
            # A number that occurs before is written as a reference to it.
            again = rf"(Kj{w}_|KB\w+_)"
            avx512 = count(x86, f"avx512.*dot_tbe_implK{m}Kj{w}_Kb1_", FUSED, 4)
            avx2 = count(x86, f"avx2.*dot_gfniK{m}K{x}{again}Kb1_", FUSED, 8)
            neon = count(arm, f"neon.*dot_tbe_implK{m}K{x}{again}E", FUSED, 16)
            # The compiler makes one function of equal ones.
            equal = "(ma_|m2_)" if m == "ma_" else m
            neon += count(arm, f"neon.*exponentsK{equal}Kj{w}_", r"\stbl\b", 4 * int(w))
            row(f"{dtype}, {bitmaps} bitmaps", avx512, avx2, neon)


main()
