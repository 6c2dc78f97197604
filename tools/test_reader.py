#!/usr/bin/env python3
"""Checks the reader against the test vectors of FORMAT.md and the files in goldens/."""
import hashlib
import re
import struct
import unittest
from pathlib import Path
from types import SimpleNamespace

import reader
import reader_blocks as blocks
import reader_deltas as deltas
import reader_parts as parts

ROOT = Path(__file__).resolve().parent.parent
GOLDENS = ROOT / "goldens"
LINES = (ROOT / "FORMAT.md").read_text(encoding="utf-8").splitlines()


def vector(name):
    """The words after `name:` in FORMAT.md and in the lines indented deeper, without comments."""
    start = next(i for i, line in enumerate(LINES) if line.startswith(f"    {name}:"))
    words = LINES[start][len(f"    {name}:"):].split()
    for line in LINES[start + 1:]:
        if not line.startswith(8 * " "):
            break
        words += line.split("#")[0].split()
    return words


def hex_vector(name):
    return bytes.fromhex("".join(vector(name)))


def number_vector(name):
    return [int(word, 0) for word in vector(name)]


def pack(values, n):
    """7.4, bit by bit."""
    packed = bytearray(32 * n)
    for k in range(n):
        for c in range(32):
            own = values[32 * k + c]
            byte = (own >> (n - 1)) << 7 | own & ((1 << (n - 1)) - 1)
            for t in range(8 - n):
                byte |= (values[32 * (n + t) + c] >> k & 1) << (n - 1 + t)
            packed[32 * k + c] = byte
    return bytes(packed)


class Vectors(unittest.TestCase):
    def test_xxh3(self):
        for length in (0, 3, 7, 16, 100, 200, 240, 2000):
            stored = number_vector(f"xxh3 of {length} bytes")
            self.assertEqual([parts.xxh3(bytes(31 * i % 256 for i in range(length)))], stored,
                             length)

    def test_blocks(self):
        examples = [re.fullmatch(r"    (\d+) units: (\d+) blocks?, the last of (\d+)", line)
                    for line in LINES]
        examples = [[int(number) for number in match.groups()] for match in examples if match]
        self.assertEqual(len(examples), 7)
        for n, count, last in examples:
            tensor = SimpleNamespace(dtype="BF16", size=2 * n)
            full = reader.block_bytes(tensor)
            self.assertEqual((-(-tensor.size // full), tensor.size - (count - 1) * full),
                             (count, 2 * last), n)

    def test_zeros(self):
        ans = SimpleNamespace(unit_bytes=2, masks=SimpleNamespace(unit_bytes=1))
        units = [0x3F80 + i if i % 32 == 5 else 0 for i in range(260)]
        decoded = blocks.decode_ans_block(ans, hex_vector("zeros block"), 520)
        self.assertEqual(decoded, struct.pack("<260H", *units))

    def test_deflate(self):
        decoded = blocks.decode_deflate(hex_vector("deflate block"), 300)
        self.assertEqual(decoded, bytes(i % 10 for i in range(300)))

    def test_table(self):
        frequencies = number_vector("frequencies")
        source = parts.Source(hex_vector("table bytes"), "table")
        table = blocks.read_table(source, range(32))
        source.pad(1)
        self.assertEqual(source.left(), 0)
        for slot, symbol, rank in (map(int, word.split(":")) for word in
                                   vector("slots, as slot:symbol:rank")):
            self.assertEqual(table[slot], (symbol, frequencies[symbol], rank))
        keep, donor = number_vector("keep"), number_vector("donor")
        for slot, (symbol, _, _) in enumerate(table):
            bucket = slot // 128
            self.assertEqual(symbol, bucket if slot % 128 < keep[bucket] else donor[bucket])

    def test_packing(self):
        for n in range(1, 9):
            values = bytes(i * i // 8 % (1 << n) for i in range(256))
            packed = pack(values, n)
            self.assertEqual([parts.xxh3(packed)], number_vector(f"packed {n}"))
            self.assertEqual(blocks.unpack(packed, n), list(values))
        begins = hex_vector("packed 3 begins")
        self.assertEqual(pack([i * i // 8 % 8 for i in range(256)], 3)[:len(begins)], begins)

    def test_low_planes(self):
        lows = [32 * (40503 * i % 2048) for i in range(256)]
        planes = bytes(low >> 5 & 255 for low in lows) + pack([low >> 13 for low in lows], 3)
        begin = hex_vector("low planes begin")
        self.assertEqual(planes[:len(begin)], begin)
        self.assertEqual([parts.xxh3(planes)], number_vector("low planes"))
        self.assertEqual(blocks.read_low_planes(parts.Source(planes, "planes"), 16, 11), lows)

    def test_exceptions(self):
        stored = [tuple(map(int, word.split(":")))
                  for word in vector("exceptions, as position:field")]
        ans = SimpleNamespace(base=112, top=144, w=5, field_bits=9)
        fields = 512 * [None]
        codes = parts.Source(hex_vector("exception bytes"), "exceptions")
        blocks.patch_exceptions(ans, codes, len(stored), 3, [[], []], fields)
        self.assertEqual([(i, field) for i, field in enumerate(fields) if field is not None],
                         stored)

    def test_tbe(self):
        starts = [i for i, line in enumerate(LINES) if re.match("    .* width [34] base ", line)]
        self.assertEqual(len(starts), 5)
        for start in starts:
            dtype, _, width, _, base = LINES[start].split()
            size = parts.UNIT_BYTES[dtype]
            values = [int(word, 16) for word in LINES[start + 1].split()[1:]]
            block = LINES[start + 2].split()[1:]
            for line in LINES[start + 3:]:  # the rest of the block is indented deeper
                if not line.startswith(8 * " "):
                    break
                block += line.split()
            block = bytes.fromhex("".join(block))
            head = bytes([int(width), int(base), 0, 0, 0, 0, 0, 0])
            decoded = b"".join(blocks.decode_tbe(head, dtype, [(block, size * len(values))]))
            self.assertEqual(decoded, b"".join(value.to_bytes(size, "little") for value in values),
                             dtype)

    def test_frame(self):
        ones = [bin(i % 256).count("1") for i in range(261)]
        units = [(i % 2) << 15 | (240 + ones[i]) << 6 | 29 * i % 64 for i in range(261)]
        units[7], units[100] = 0x0001, 0x7fc1
        self.assertEqual(reader.read_frame(hex_vector("frame")), struct.pack("<261H", *units))

    def test_delta(self):
        base = struct.pack("<260H", *(0x3C00 + 37 * i % 0x280 | i % 2 << 15 for i in range(260)))
        units = list(struct.unpack("<260H", base))
        units = [unit + i * i // 8 % 5 for i, unit in enumerate(units)]
        units[9], units[200] = 0x0000, 0xFF80
        coded, sparse, by_class = (hex_vector(f"delta {name} block")
                                   for name in ("coded", "sparse", "by class"))
        head = hex_vector("delta head")
        decode = lambda block: b"".join(deltas.decode_delta(head, "BF16", [(block, base)]))
        self.assertEqual(decode(coded), struct.pack("<260H", *units))
        few = list(struct.unpack("<260H", base))
        few[3], few[77], few[259] = few[3] + 1, few[77] - 2, few[259] + 40
        self.assertEqual(decode(sparse), struct.pack("<260H", *few))
        self.assertEqual(decode(by_class), struct.pack("<260H", *few))
        self.assertEqual(decode(b""), base)

    def test_page(self):
        tables, page = hex_vector("tables"), hex_vector("page")
        self.assertEqual(reader.read_page(tables, page), struct.pack("<3H", 0x3F80, 0xBF80, 0))
        for damaged, sound in ((page, False), (tables, True)):
            for bit in range(8 * len(damaged)):
                changed = bytearray(damaged)
                changed[bit // 8] ^= 1 << bit % 8
                with self.assertRaises(parts.Refused, msg=f"bit {bit}"):
                    changed = bytes(changed)
                    reader.read_page(*((changed, page) if sound else (tables, changed)))

    def test_shard(self):
        self.assertEqual(reader.restore(hex_vector("shard"))[-3:], b"\1\2\3")

    def test_no_bit_of_a_shard_changes_unnoticed(self):
        shard = hex_vector("shard")
        for bit in range(8 * len(shard)):
            damaged = bytearray(shard)
            damaged[bit // 8] ^= 1 << bit % 8
            with self.assertRaises(parts.Refused, msg=f"bit {bit}") as refused:
                reader.restore(bytes(damaged))
            self.assertEqual(refused.exception.kind, "corrupt", f"bit {bit}")


class Goldens(unittest.TestCase):
    def test_pages(self):
        tables, pages = (GOLDENS / "pages.tables").read_bytes(), list(GOLDENS.glob("*.page"))
        self.assertGreaterEqual(len(pages), 5)
        for page in pages:
            with self.subTest(page.name):
                plain = page.with_suffix(".bytes").read_bytes()
                self.assertEqual(reader.read_page(tables, page.read_bytes()), plain)

    def test_deltas(self):
        delta = (GOLDENS / "deltas.delta").read_bytes()
        base = reader.restore((GOLDENS / "deltas-base.bs").read_bytes())
        digest = hashlib.sha256(reader.restore(delta, [b"another", base])).hexdigest()
        sums = (GOLDENS / "SHA256SUMS").read_text(encoding="utf-8")
        self.assertIn(f"{digest}  deltas.safetensors\n", sums)
        with self.assertRaises(parts.Refused) as refused:
            reader.restore(delta, [base[:-1]])
        self.assertEqual(refused.exception.rule, "BaseMissing")

    def test_chain(self):
        """A shard with two bases, of which one has the other as its base."""
        base = reader.restore((GOLDENS / "chain-base.bs").read_bytes())
        middle = reader.restore((GOLDENS / "chain-middle.delta").read_bytes(), [base])
        self.assertEqual(middle, (GOLDENS / "chain-middle.safetensors").read_bytes())
        last = (GOLDENS / "chain.delta").read_bytes()
        self.assertEqual(reader.restore(last, [base, middle]),
                         (GOLDENS / "chain.safetensors").read_bytes())
        for given in ([base], [middle]):
            with self.assertRaises(parts.Refused) as refused:
                reader.restore(last, given)
            self.assertEqual(refused.exception.rule, "BaseMissing")

    def test_delta_frame(self):
        frame = (GOLDENS / "delta.frame").read_bytes()
        base = (GOLDENS / "ans.values").read_bytes()
        self.assertEqual(reader.read_frame(frame, base), (GOLDENS / "delta.values").read_bytes())
        for wrong, rule in ((None, "BaseMissing"), (base[2:] + base[:2], "BaseMismatch")):
            with self.assertRaises(parts.Refused) as refused:
                reader.read_frame(frame, wrong)
            self.assertEqual(refused.exception.rule, rule)

    def test_goldens(self):
        sums = (GOLDENS / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
        self.assertTrue(sums)
        for digest, name in (line.split() for line in sums):
            with self.subTest(name):
                ending = ".bs" if name.endswith(".safetensors") else ".frame"
                encoded = (GOLDENS / name).with_suffix(ending)
                if encoded.with_suffix(".delta").exists():  # test_deltas, test_chain
                    continue
                base = [(GOLDENS / "ans.values").read_bytes()] if name == "delta.values" else []
                self.assertEqual(hashlib.sha256(reader.read(encoded, base)).hexdigest(), digest)

    def test_refused(self):
        """Each under its own rule, with the class that FORMAT.md gives to it."""
        rules = (GOLDENS / "refused" / "RULES").read_text(encoding="utf-8").splitlines()
        self.assertGreater(len(rules), 100)
        for name, rule, kind in (line.split() for line in rules):
            with self.subTest(name):
                with self.assertRaises(parts.Refused) as refused:
                    reader.read(GOLDENS / "refused" / name)
                found = refused.exception
                self.assertEqual((found.rule, found.kind), (rule, kind.lower()))

    def test_classes(self):
        """The reader has the rules of other classes than Corrupt that section 17 lists."""
        rows = [line.split(" | ") for line in LINES if line.startswith("| `")]
        rows = [row for row in rows if len(row) == 4 and row[2] not in ("13", "15")]
        kinds = {row[0].strip("| `"): row[1].lower() for row in rows}
        for kind, names in (("unsupported", parts.UNSUPPORTED), ("limit", set(parts.LIMITS))):
            self.assertEqual({name for name, of in kinds.items() if of == kind}, names)


if __name__ == "__main__":
    unittest.main()
