#!/usr/bin/env python3
"""Restores a safetensors file from a `.bs` shard, or the bytes of a tensor from a frame:

    python3 reader.py FILE OUT
    python3 reader.py TABLES PAGE OUT    decodes a page with its tables
    python3 reader.py --check FILE...    says of each file whether it is sound, or why not

A shard with bases needs them: --base=BASE.safetensors, once for each.

Written from FORMAT.md alone, with Python's standard library (3.9 or later). It is meant to be read
beside FORMAT.md, and to check other readers. Comments name its sections, errors its rules. File and
result are held in memory. All rules are checked before anything is written.
Exit codes: 0 restored or sound, 1 reading or writing failed, 2 wrong use, 3 corrupt, 4 unsupported,
5 beyond a limit.
"""
import hashlib
import json
import math
import struct
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

# 1. Conventions
UNSUPPORTED = {"PythonPackageFile", "SafetensorsFile", "Version", "RequiredFeature",
               "EncodingUnknown", "DtypeUnknown"}
LIMITS = {"IndexTooLarge": 2**30, "HeaderTooLarge": 100_000_000, "TooManyTensors": 2**20,
          "RankTooLarge": 64, "NameTooLong": 65_536, "BaseDepth": 16}
EXIT_CODES = {"usage": 2, "corrupt": 3, "unsupported": 4, "limit": 5}

class Refused(Exception):
    """Its arguments: the rule, what was found, and the tensor if any."""
    @property
    def rule(self):
        return self.args[0]
    @property
    def kind(self):  # the class of the rule
        if self.rule == "BaseMissing":
            return "usage"
        if self.rule in UNSUPPORTED:
            return "unsupported"
        return "limit" if self.rule in LIMITS else "corrupt"

def require(holds, rule, found):
    if not holds:
        raise Refused(rule, found)

def limit(rule, found):
    require(found <= LIMITS[rule], rule, found)

class Source:
    """Reads fields one after the other from bytes. If the bytes end early, `rule` is broken."""
    def __init__(self, data, rule):
        self.data, self.rule, self.bit = data, rule, 0
    def left(self):
        return len(self.data) - self.bit // 8
    def bits(self, n):  # the next n bits of a bit string, as a number
        start, self.bit = self.bit, self.bit + n
        require(self.bit <= 8 * len(self.data), self.rule, f"{n} bits are not there")
        taken = int.from_bytes(self.data[start // 8:(self.bit + 7) // 8], "little")
        return taken >> start % 8 & (1 << n) - 1
    def ones(self, most):  # counts one bits up to the zero that ends them
        n = 0
        while self.bits(1):
            n += 1
        require(n <= most, self.rule, f"{n} one bits in a row")
        return n
    def take(self, length, multiple=1):  # the next bytes, which are padded to a multiple
        taken = self.bits(8 * length).to_bytes(length, "little")
        self.pad(multiple)
        return taken
    def pad(self, multiple):
        require(self.bits(-self.bit % (8 * multiple)) == 0, "PaddingNotZero",
                f"before byte {self.bit // 8}")
    def numbers(self, layout, multiple=1):
        return struct.unpack("<" + layout, self.take(struct.calcsize("<" + layout), multiple))

DTYPE_BITS = {name: bits for bits, names in {
    4: "F4", 6: "F6_E2M3 F6_E3M2", 16: "BF16 F16 I16 U16", 32: "F32 I32 U32", 64: "F64 C64 I64 U64",
    8: "BOOL U8 I8 F8_E4M3 F8_E5M2 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ",
}.items() for name in names.split()}
UNIT_BYTES = {**dict.fromkeys(DTYPE_BITS, 1), "BF16": 2, "F16": 2, "F32": 4, "F64": 8}  # section 3

# 2. Checksums: XXH3 of 64 bits, seed 0, with the secret of its specification
SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
    "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
    "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
    "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e"
    "2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e")
MASK, P1, P2, P3 = 2**64 - 1, 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
LANES = 0xC2B2AE3D, P1, P2, P3, 0x85EBCA77C2B2AE63, 0x85EBCA77, 0x27D4EB2F165667C5, 0x9E3779B1

def word(data, at, size=8):
    return int.from_bytes(data[at:at + size], "little")
def key(at):
    return word(SECRET, at) ^ word(SECRET, at + 8)
def fold(a, b):
    return a * b & MASK ^ a * b >> 64
def mix(data, at, key_at):
    return fold(word(data, at) ^ word(SECRET, key_at),
                word(data, at + 8) ^ word(SECRET, key_at + 8))

def stir(h, steps=(37, 0x165667919E3779F9, 32)):  # steps are shifts and factors in turn
    h &= MASK
    for i, step in enumerate(steps):
        h = h * step & MASK if i % 2 else h ^ h >> step
    return h

def xxh3(data):
    n = len(data)
    if n <= 3:
        ends = (data[0] << 16 | data[n // 2] << 24 | data[-1] | n << 8) if n else 0
        return stir(ends ^ (word(SECRET, 0, 4) ^ word(SECRET, 4, 4) if n else key(56)),
                    [33, P2, 29, P3, 32])
    if n <= 8:
        h = (word(data, 0, 4) << 32 | word(data, n - 4, 4)) ^ key(8)
        h = (h ^ (h << 49 | h >> 15) ^ (h << 24 | h >> 40)) * 0x9FB21C651E98DF25 & MASK
        return stir((h ^ (h >> 35) + n) * 0x9FB21C651E98DF25, [28])
    if n <= 16:
        low, high = word(data, 0) ^ key(24), word(data, n - 8) ^ key(40)
        return stir(n + int.from_bytes(low.to_bytes(8, "little"), "big") + high + fold(low, high))
    if n <= 128:
        return stir(n * P1 + sum(mix(data, 16 * i, 32 * i) + mix(data, n - 16 * i - 16, 32 * i + 16)
                                 for i in range((n + 31) // 32)))
    if n <= 240:
        h = stir(n * P1 + sum(mix(data, i, i) for i in range(0, 128, 16)))
        return stir(h + sum(mix(data, i, i - 125) for i in range(128, n - 15, 16))
                    + mix(data, n - 16, 119))
    keys = [struct.unpack_from("<8Q", SECRET, at) for at in (*range(0, 136, 8), 121, 11)]
    stripes = [(64 * i, keys[i % 16]) for i in range((n - 1) // 64)] + [(n - 64, keys[17])]
    lanes = LANES
    for i, (at, secrets) in enumerate(stripes, 1):
        values = struct.unpack_from("<8Q", data, at)
        mixed = [value ^ secret for value, secret in zip(values, secrets)]
        lanes = [lanes[j] + values[j ^ 1] + (mixed[j] & 0xFFFFFFFF) * (mixed[j] >> 32)
                 for j in range(8)]
        if i % 16 == 0 and i < len(stripes):
            lanes = [(stir(lane, [47]) ^ secret) * LANES[7] & MASK
                     for lane, secret in zip(lanes, keys[16])]
    ends = [lane & MASK ^ secret for lane, secret in zip(lanes, keys[18])]
    return stir(n * P1 + sum(map(fold, ends[::2], ends[1::2])))

def measure(name, dtype, shape):  # 1. Dtypes and shapes; the dtype is known
    elements = math.prod(filter(None, shape))
    require(elements < 2**64 and elements * DTYPE_BITS[dtype] < 2**63, "ShapeOverflow", shape)
    size, bits_over = divmod(0 if 0 in shape else elements * DTYPE_BITS[dtype], 8)
    require(bits_over == 0, "SubByteTotal", shape)
    return SimpleNamespace(name=name, dtype=dtype, shape=shape, size=size)

# 4. Shard: envelope
MAGIC = b"\x89bsmall\n"

def read_envelope(data):  # returns payloads, index, and required and ignorable features
    if data[-8:] != MAGIC:
        require(data[:4] != b"BGSM", "PythonPackageFile", data[:4])
        require(data[8:9] != b"{", "SafetensorsFile", data[:9])
    require(len(data) >= 64, "ShardTooShort", f"{len(data)} bytes")
    require(data[-8:] == MAGIC, "ShardMagic", data[-8:])
    trailer = struct.unpack("<QQIIH6sQ", data[-48:-8])
    offset, length, required, ignorable, version, reserved, checksum = trailer
    require(offset >= 16 and offset + length + 48 == len(data), "IndexRange",
            f"{length} bytes at {offset}")
    limit("IndexTooLarge", length)
    require(xxh3(data[offset:-16]) == checksum, "IndexChecksum", "another checksum")
    require(version > 0, "VersionZero", version)
    require(version <= 1, "Version", version)
    require(required <= 1, "RequiredFeature", f"{required:#x}")
    require(not any(reserved), "ReservedNotZero", "in the trailer")
    payloads = Source(data[16:offset], "PayloadRange")
    index = Source(data[offset:-48], "IndexTruncated")
    return payloads, index, required, ignorable

def check_prelude(data):
    require(data[:8] == MAGIC, "ShardMagic", data[:8])
    require(data[8:16] == b"\1" + bytes(7), "ReservedNotZero", data[8:16])

# 5. Shard: index
def restore(data, given=()):  # returns the safetensors file that a shard holds; `given` are bases
    payloads, index, required, ignorable = read_envelope(data)
    header_length, digest, n, flags = index.numbers("Q32sII")
    require(flags < 2, "ReservedNotZero", "flags of the index")
    limit("TooManyTensors", n)
    require(header_length <= index.left(), "IndexTruncated", f"{header_length} bytes of header")
    limit("HeaderTooLarge", header_length)
    header = index.take(header_length, 8)
    bases = read_bases(index) if required & 1 else []
    require(32 * n <= index.left(), "IndexTruncated", f"{n} records")
    limit("BaseDepth", max((depth + 1 for _, depth, _ in bases), default=0))
    tensors = read_header(header)
    require(n == len(tensors), "EntryCount", f"{n} records for {len(tensors)} tensors")
    end = 16
    for place, tensor in enumerate(tensors):
        end = about(tensor, read_record, index, tensors, place, end, bases)
    require(ignorable or index.left() == 0, "IndexTrailing", f"{index.left()} bytes")
    require(end == 16 + payloads.left(), "IndexRange", f"payloads end at {end}")
    for tensor in tensors:
        require(tensor.encoding in ENCODINGS, "EncodingUnknown",
                f"{tensor.encoding} in {tensor.name!a}")
    check_prelude(data)
    given = {hashlib.sha256(file).digest(): file for file in given}
    for tensor in tensors:
        about(tensor, read_tensor, tensor, payloads, given)
    restored = b"".join([struct.pack("<Q", len(header)), header,
                         *(tensor.content for tensor in tensors)])
    require(hashlib.sha256(restored).digest() == digest, "ContentDigest", "another SHA-256")
    return restored

def about(tensor, do, *arguments):  # has an error name the tensor
    try:
        return do(*arguments)
    except Refused as error:
        raise Refused(*error.args, tensor.name) from None

def read_record(index, tensors, place, begin, bases):  # 5.1; returns where the next payload begins
    tensor = tensors[place]
    encoding, flags, reserved, head_length, offset, length, checksum = index.numbers("BBHIQQQ")
    require(flags < 32 and reserved == 0, "ReservedNotZero", f"flags {flags}")
    tensor.md5 = index.take(16) if flags & 2 else None
    tensor.encoding, tensor.owner = encoding, None
    has_base, tensor.inherited, renamed = flags & 4, flags & 8, flags & 16
    require((encoding == 3) == bool(has_base), "BaseRecord", f"encoding {encoding}, flags {flags}")
    require(not flags & 1 if has_base else not flags & 24, "BaseRecord", f"flags {flags}")
    tensor.base = None
    if has_base:  # 10.1
        number, name_length = index.numbers("II")
        require(number < len(bases) and (renamed or not name_length), "BaseRecord", number)
        try:
            name = index.take(name_length, 8).decode() if renamed else tensor.name
            tensor.base = bases[number], name
        except UnicodeDecodeError as error:
            raise Refused("BaseRecord", error) from None
    if tensor.inherited:
        require(head_length == offset == length == checksum == 0, "ReservedNotZero",
                "inherited record")
        tensor.sizes, tensor.head_length, none = block_sizes(tensor, index), 0, xxh3(b"")
        tensor.lengths, tensor.head_checksum = [0 for _ in tensor.sizes], none
        tensor.checksums = [none for _ in tensor.sizes]
        tensor.base_checksums = index.numbers(f"{len(tensor.sizes)}Q")
        return begin
    if flags & 1:  # 5.2
        tensor.owner = tensors[offset] if offset < place else tensor
        alike = (tensor.owner.dtype, tensor.owner.size) == (tensor.dtype, tensor.size)
        alone = tensor.owner is not tensor and not tensor.owner.owner and not tensor.owner.inherited
        require(alike and alone, "SharedPayload", offset)
        require(encoding == head_length == length == checksum == 0, "ReservedNotZero",
                "shared record")
        return begin
    require(offset == begin, "PayloadRange", offset)
    read_block_table(index, tensor, head_length, checksum, encoding)
    require(length == tensor.payload_length, "PayloadLength", length)
    return begin + length

def block_sizes(tensor, source):  # 3: the original bytes of each block; 8 bytes or more for each
    starts = range(0, tensor.size, 131072 * UNIT_BYTES[tensor.dtype])
    require(8 * len(starts) <= source.left(), source.rule, f"{len(starts)} blocks")
    return [min(starts.step, tensor.size - start) for start in starts]

def read_block_table(source, tensor, head_length, head_checksum, encoding):  # 5.1, also of a frame
    tensor.head_length, tensor.head_checksum = head_length, head_checksum
    tensor.sizes = block_sizes(tensor, source)
    tensor.lengths = source.numbers(f"{len(tensor.sizes)}I", 8)
    tensor.checksums = source.numbers(f"{len(tensor.sizes)}Q")
    if encoding == 3:  # 10.1
        tensor.base_checksums = source.numbers(f"{len(tensor.sizes)}Q")
    for size, length in zip(tensor.sizes, tensor.lengths):
        least = 0 if encoding == 3 else min(size, 56)
        require(least <= length <= 2 * size + 4096, "BlockLength", f"{length} for {size}")
    tensor.payload_length = sum(part + -part % 8 for part in (head_length, *tensor.lengths))

def read_tensor(tensor, payloads, given=()):  # reads a payload and decodes it
    if tensor.owner:
        tensor.content = tensor.owner.content
    else:
        head = payloads.take(tensor.head_length, 8)
        blocks = [payloads.take(length, 8) for length in tensor.lengths]
        require(xxh3(head) == tensor.head_checksum, "HeadChecksum", "another checksum")
        for i, block in enumerate(blocks):
            checksum = xxh3(block + bytes(-len(block) % 8))
            require(checksum == tensor.checksums[i], "BlockChecksum", f"block {i}")
        decode, beside = ENCODINGS[tensor.encoding], tensor.sizes
        if tensor.encoding == 3:
            beside = read_base(tensor, given)
        tensor.content = b"".join(decode(head, tensor.dtype, zip(blocks, beside)))
    md5 = hashlib.md5(tensor.content, usedforsecurity=False).digest()
    require(tensor.md5 in (None, md5), "ContentDigest", "MD5")

# 12. The header of a safetensors file; 14 has the order
def read_header(header):  # returns the tensors in the order of their data
    require(header[:1] == b"{", "HeaderStart", header[:1])
    try:
        entries = json.loads(header.decode(), object_pairs_hook=json_object, parse_int=json_number,
                             parse_float=json_number, parse_constant=json_number)
        json.dumps(entries, ensure_ascii=False).encode()  # fails for lone surrogates
    except (ValueError, RecursionError) as error:
        raise Refused("HeaderSyntax", error) from None
    require(depth(entries) <= 100, "HeaderSyntax", "nested too deeply")
    metadata = entries.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    require(type(metadata) is dict and {*map(type, metadata.values())} <= {str}, "HeaderSyntax",
            metadata)
    for name, entry in entries.items():
        check_entry(name, entry)
    for name, entry in entries.items():
        limit("NameTooLong", len(name.encode()))
        limit("RankTooLarge", len(entry["shape"]))
    for name, entry in entries.items():
        require(entry["dtype"] in DTYPE_BITS, "DtypeUnknown", f"{entry['dtype']!a} of {name!a}")
    tensors = []
    for name, entry in entries.items():
        tensors.append(measure(name, entry["dtype"], entry["shape"]))
        tensors[-1].begin, tensors[-1].end = entry["data_offsets"]
    tensors.sort(key=lambda tensor: (tensor.begin, tensor.end))
    for tensor, begin in zip(tensors, [0, *(tensor.end for tensor in tensors)]):
        require(tensor.begin == begin and tensor.end == begin + tensor.size, "DataRange",
                tensor.name)
    return tensors

def json_object(pairs):
    require(len(dict(pairs)) == len(pairs), "HeaderDuplicate", [name for name, _ in pairs])
    return dict(pairs)

def json_number(text):
    require(math.isfinite(float(text)), "HeaderSyntax", text)
    return int(text) if text.isdigit() else float(text)

def depth(value):  # of nested objects and arrays
    deepest, level = 0, [value]
    while level := [value for value in level if type(value) in (dict, list)]:
        deepest += 1
        inner = [value.values() if type(value) is dict else value for value in level]
        level = [value for values in inner for value in values]
    return deepest

def check_entry(name, entry):
    require(type(entry) is dict, "HeaderSyntax", name)
    has_all = len({"dtype", "shape", "data_offsets", *entry}) == len(entry)
    require(has_all and len(entry) <= 3 + 64, "HeaderEntry", name)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    require([type(dtype), type(shape), type(offsets)] == [str, list, list], "HeaderSyntax", name)
    whole = all(type(number) is int and number < 2**64 for number in shape + offsets)
    require(whole, "HeaderSyntax", name)
    require(len(offsets) == 2, "HeaderEntry", name)

# 9. Frames
FRAME_MAGIC = b"\x89bsmlT\r\n"

def read_frame(data):  # returns the bytes of the tensor
    tensor, source = read_description(data)
    read_tensor(tensor, source)
    return tensor.content

def read_description(data):  # returns what a frame says of its tensor, and its payload
    source = Source(data, "FrameTruncated")
    require(source.take(8) == FRAME_MAGIC, "FrameMagic", data[:8])
    version, = source.numbers("B")
    require(version > 0, "VersionZero", version)
    require(version <= 1, "Version", version)
    encoding, dtype_length, rank, head_length, name_length, head_checksum = source.numbers("3BIQQ")
    limit("RankTooLarge", rank)
    limit("NameTooLong", name_length)
    shape = source.numbers(f"{rank}Q")
    names = source.take(dtype_length), source.take(name_length)
    source.pad(8)
    try:
        dtype, name = (name.decode() for name in names)
    except UnicodeDecodeError as error:
        raise Refused("HeaderSyntax", error) from None
    require(dtype in DTYPE_BITS, "DtypeUnknown", dtype)
    tensor = measure(name, dtype, shape)
    read_block_table(source, tensor, head_length, head_checksum, encoding)
    described = xxh3(data[:source.bit // 8])
    require(source.numbers("Q") == (described,), "FrameChecksum", "another checksum")
    require(encoding in ENCODINGS, "EncodingUnknown", encoding)
    found = f"{source.left()} bytes of payload"
    require(source.left() >= tensor.payload_length, "FrameTruncated", found)
    require(source.left() == tensor.payload_length, "FrameTrailing", found)
    tensor.encoding, tensor.shape, tensor.owner, tensor.md5 = encoding, shape, None, None
    return tensor, source

# 6. Encodings
def decode_raw(head, _, blocks):
    require(not head, "PayloadLength", "a raw payload with a head")
    for block, size in blocks:
        require(len(block) == size, "BlockLength", f"{len(block)} bytes for {size}")
        yield block

# 7. ANS
# High bits, exponent bits.
ANS_FLOATS = {"BF16": (16, 8), "F16": (8, 5), "F32": (16, 8), "F64": (16, 11), "F8_E4M3": (8, 4),
              "F8_E4M3FNUZ": (8, 4), "F8_E5M2": (8, 5), "F8_E5M2FNUZ": (8, 5)}

def decode_ans(head, dtype, blocks):
    source = Source(head, "AnsHead")
    ans = read_ans_head(source, dtype)
    require(source.left() == 0, "AnsHead", f"{source.left()} bytes after the tables")
    for block, size in blocks:
        yield decode_ans_block(ans, block, size)

def read_ans_head(source, dtype, flags=3):  # 7.1, 7.2; `flags` may be set
    ans, source.rule = SimpleNamespace(unit_bytes=UNIT_BYTES[dtype]), "AnsHead"
    m, ans.w, log_segment, n_tables, ans.base, first, k, more, *widths = source.numbers("4B2H6B")
    high_bits, exponent_bits = ANS_FLOATS.get(dtype, (8, 8))
    ans.field_bits, ans.r = exponent_bits + m, high_bits - exponent_bits - m
    require(m == 0 or dtype in ANS_FLOATS and ans.r >= 1, "AnsHead", f"m {m}")
    require(5 <= ans.w <= min(8, ans.field_bits), "AnsHead", f"{ans.w} symbol bits")
    require(8 <= log_segment <= 16 and 1 <= n_tables <= 8, "AnsHead",
            f"{log_segment}, {n_tables} tables")
    ans.top, fields = ans.base + (1 << ans.w), range(1 << ans.field_bits)
    outside = first in fields and not ans.base <= first < ans.top
    require(ans.top <= len(fields) and (first == ans.base or outside), "AnsHead",
            f"{ans.base}, {first}")
    require(more <= flags and not any(widths[k:]), "ReservedNotZero", "in an ANS head")
    ans.low_bits, ans.widths = 8 * ans.unit_bytes - high_bits, widths[:k] or [0]
    falling = ans.widths[0] == ans.low_bits and ans.widths == sorted(set(ans.widths), reverse=True)
    require(falling and k <= (4 if ans.low_bits else 0), "AnsHead", f"{k} low widths {ans.widths}")
    symbols, source.rule = [first, *range(ans.base + 1, ans.top)], "FrequencyTable"
    ans.segment = 1 << log_segment - 8
    ans.tables = [read_table(source, symbols) for _ in range(n_tables)]
    source.pad(1)
    source.rule, ans.columns = "AnsHead", []
    if more & 2:
        n, = source.numbers("H")
        require(n >= 1, "AnsHead", "one column")
        ans.columns = [source.bits(3) for _ in range(n + 1)]
        source.pad(1)
    ans.masks = read_ans_head(source, "U8", flags=0) if more & 1 else None
    return ans

def read_table(source, fields):  # 7.3; returns field, frequency and rank of every slot
    symbols, size, frequencies = range(len(fields)), 4096 // len(fields), []
    for _ in symbols:
        bits = source.bits(4)
        require(bits <= 13, "FrequencyTable", f"frequency of {bits} bits")
        frequencies.append(1 << bits - 1 | source.bits(bits - 1) if bits else 0)
    require(sum(frequencies) == 4096, "FrequencyTable", f"sum {sum(frequencies)}")
    left, keep, donor = list(frequencies), [size for _ in symbols], list(symbols)
    small, large = [s for s in symbols if left[s] < size], [s for s in symbols if left[s] >= size]
    while small and large:
        s, giver = small.pop(), large[-1]
        keep[s], donor[s] = left[s], giver
        left[giver] -= size - left[s]
        if left[giver] < size:
            small.append(large.pop())
    slots = [s for b in symbols for s in keep[b] * [b] + (size - keep[b]) * [donor[b]]]
    ranks = [iter(range(4096)) for _ in symbols]
    return [(fields[s], frequencies[s], next(ranks[s])) for s in slots]

def unpack(packed, n):  # 7.4: 256 values of n bits
    values = [byte >> 7 << n - 1 | byte & (1 << n - 1) - 1 for byte in packed]
    for bit in range(n - 1, 7):
        values += [sum((packed[32 * k + c] >> bit & 1) << k for k in range(n)) for c in range(32)]
    return values

def read_low_planes(source, low_bits, v):  # 7.4: the low bits of the units of a group
    planes = [source.take(256) for _ in range(v // 8)] + [unpack(source.take(32 * (v % 8)), v % 8)]
    return [sum(part << 8 * b for b, part in enumerate(unit)) << low_bits - v
            for unit in zip(*planes)]

def decode_ans_block(ans, block, size):  # 7.5, kinds 0, 1 and 2
    if block[:1] == b"\3":
        return decode_zeros(ans, block, size)
    if block[:1] == b"\4":
        return decode_deflate(block, size)
    if block[:1] == b"\5":
        return decode_columns(ans, block, size)
    source = Source(block, "AnsBlockLength")
    kind, q, exceptions, n_words = source.numbers("BBHI")
    require(kind == 2 or kind < 2 and not q | exceptions | n_words, "AnsBlockHeader", block[:8])
    if kind == 0:
        require(source.left() == size, "AnsBlockLength", f"{source.left()} bytes for {size}")
        return block[8:]
    if kind == 1:
        decoded = block[8:8 + ans.unit_bytes] * (size // ans.unit_bytes)
        require(size >= 64 and decoded[:56] == block[8:], "ConstantBlock", block[8:])
        return decoded
    groups, tail = divmod(size, 256 * ans.unit_bytes)
    require(groups >= 1 and q <= 15 and n_words <= 256 * groups, "AnsBlockHeader", block[:8])
    lengths = [half for byte in source.take(16) for half in (byte & 15, byte >> 4)]
    states = [source.bits(16) | (1 << length | source.bits(length)) << 16 for length in lengths]
    source.pad(4)
    words = source.numbers(f"{n_words}H", 4)
    tables = read_ids(source, ans.tables, groups, ans.segment)
    widths = read_ids(source, ans.widths, groups, ans.segment)
    source.pad(4)
    lows = [low for v in widths for low in read_low_planes(source, ans.low_bits, v)]
    carried = min(64, 32 * ans.r * groups)
    packed = source.take(32 * ans.r * groups - carried)
    require(source.left() >= tail, "AnsBlockLength", f"{source.left()} bytes for the tail")
    codes = Source(source.take(source.left() - tail), "AnsException")
    fields = decode_lanes(states, words, tables)
    ends = [state - 65536 for state in states]
    require(all(0 <= z < 65536 for z in ends) and not any(ends[carried // 2:]), "AnsEndState", ends)
    packed = Source(packed + struct.pack("<32H", *ends)[:carried], "AnsBlockLength")
    patch_exceptions(ans, codes, exceptions, q, tables, fields)
    residuals = [value for _ in range(groups) for value in unpack(packed.take(32 * ans.r), ans.r)]
    # The number of residual bits below the field. The sign is above the field.
    below = max(0, ans.r - 1)
    units = [((residual >> below << ans.field_bits | field) << below | residual & (1 << below) - 1)
             << ans.low_bits | low for field, residual, low in zip(fields, residuals, lows)]
    return b"".join(unit.to_bytes(ans.unit_bytes, "little") for unit in units) + source.take(tail)

def decode_zeros(ans, block, size):  # 7.5.3
    source, n = Source(block, "AnsBlockLength"), size // ans.unit_bytes
    _, reserved, mask_length, k = source.numbers("BBHI")
    require(ans.masks and reserved == 0 and n >= 256 and 1 <= k < n, "AnsBlockHeader", block[:8])
    parts = source.take(mask_length, 8), source.take(source.left())
    require(all(part[:1] in (b"\0", b"\1", b"\2", b"\4") for part in parts), "AnsBlockHeader",
            "the kinds within")
    mask = int.from_bytes(decode_ans_block(ans.masks, parts[0], (n + 7) // 8), "little")
    require(mask < 1 << n, "PaddingNotZero", "in a mask")
    require(bin(mask).count("1") == k, "ZeroMask", f"{k} units")
    others = Source(decode_ans_block(ans, parts[1], k * ans.unit_bytes), "ZeroMask")
    return b"".join(others.take(ans.unit_bytes) if mask >> i & 1 else bytes(ans.unit_bytes)
                    for i in range(n))

def decode_deflate(block, size):  # 7.5.4
    require(56 <= len(block) < 8 + size, "AnsBlockLength", f"{len(block)} bytes for {size}")
    require(not any(block[1:8]), "AnsBlockHeader", block[:8])
    stream = zlib.decompressobj(-15)
    try:
        decoded = stream.decompress(block[8:], size + 1)
    except zlib.error as error:
        raise Refused("AnsDeflate", error) from None
    require(stream.eof and len(decoded) == size, "AnsDeflate", f"{len(decoded)} bytes for {size}")
    padding = stream.unused_data
    require(not padding or len(block) == 56, "AnsDeflate", f"{len(padding)} bytes after the stream")
    require(not any(padding), "PaddingNotZero", "after a stream")
    return decoded

def decode_columns(ans, block, size):  # 7.5.5
    source, n, d = Source(block, "AnsBlockLength"), size // ans.unit_bytes, len(ans.columns)
    _, zero, first, zeros = source.numbers("BBHI")
    within = source.take(source.left())
    sound = first < d and not zero | zeros and within[:1] == b"\2"
    require(sound, "AnsBlockHeader", block[:9])
    units = Source(decode_ans_block(ans, within, size), "AnsBlockLength")
    decoded = n * [b""]
    for i in sorted(range(n), key=lambda i: ans.columns[(first + i) % d]):
        decoded[i] = units.take(ans.unit_bytes)
    return b"".join(decoded)

def read_ids(source, choices, groups, segment):  # what is chosen for every group, by its segment
    ids = [source.bits((len(choices) - 1).bit_length()) for _ in range(0, groups, segment)]
    require(max(ids) < len(choices), "AnsTableId", max(ids))
    return [choices[ids[g // segment]] for g in range(groups)]

def decode_lanes(states, words, tables):  # returns all fields; end states remain in `states`
    fields, used = [], 0
    # Zeros for every word that can be asked for, so that it is enough to count the used words.
    supply = words + 256 * len(tables) * (0,)
    for table in tables:
        for _ in range(8):
            row = 32 * [0]
            for lane, state in enumerate(states):
                field, frequency, rank = table[state % 4096]
                state = frequency * (state >> 12) + rank
                if state < 65536:
                    state, used = state << 16 | supply[used], used + 1
                states[lane], row[2 * lane if lane < 16 else 2 * lane - 31] = state, field
            fields += row
    require(used == len(words), "AnsWords", f"{used} words used of {len(words)}")
    return fields

def patch_exceptions(ans, codes, exceptions, q, tables, fields):
    position = -1
    for _ in range(exceptions):
        position += 1 + (codes.ones(len(fields)) << q | codes.bits(q))
        require(position < len(fields), "AnsException", f"position {position}")
        side = codes.bits(1) and 1 + codes.bits(1)  # of the window: 0 below, 1 above, 2 inside
        if side == 2:
            field = ans.base + codes.bits(ans.w)
        else:
            n = codes.ones(12)
            distance = 2 * ((1 << n | codes.bits(n)) - 1) + codes.bits(1)
            field = ans.top + distance if side else ans.base - 1 - distance
        coded = any(field == of for of, _, _ in tables[position // 256])
        require(0 <= field < 1 << ans.field_bits and not coded, "AnsException", f"field {field}")
        fields[position] = field
    codes.pad(1)
    require(codes.left() == 0, "AnsException", f"{codes.left()} bytes after the last")

# 7.7 Pages
def read_tables(frame):  # returns dtype and head
    tensor, source = read_description(frame)
    are_tables = (tensor.encoding, tensor.shape, tensor.name) == (1, (0,), "")
    require(are_tables, "PageTables", f"encoding {tensor.encoding}, shape {tensor.shape}")
    head = source.take(tensor.head_length, 8)
    require(xxh3(head) == tensor.head_checksum, "HeadChecksum", "another checksum")
    return tensor.dtype, head

def read_page(tables, page):  # returns the bytes that the page holds
    dtype, head = read_tables(tables)
    source, unit_bytes = Source(page, "PageLength"), UNIT_BYTES[dtype]
    checksum, size, of_tables = source.numbers("QII")
    require(xxh3(page[8:]) == checksum, "PageChecksum", "another checksum")
    require(xxh3(head) % 2**32 == of_tables, "PageTables", "other tables")
    n = size // unit_bytes
    require(size % unit_bytes == 0 and n <= 2**24, "PageLength", f"{size} bytes")
    groups = n // 256
    blocks = 0 if n == 0 else 1 if groups < 16 else 2 * -(-n // 131072)
    sizes = blocks * [256 * (groups // max(1, blocks)) * unit_bytes]
    sizes[:1] = [size - sum(sizes[1:])] if blocks else []
    lengths = source.numbers(f"{blocks}I", 8)
    stored = [(source.take(length, 8), size) for length, size in zip(lengths, sizes)]
    require(source.left() == 0, "PageLength", f"{source.left()} bytes after the last block")
    return b"".join(decode_ans(head, dtype, stored))

# 8. TBE
TBE_FLOATS = {"BF16": (8, 7, 0), "F16": (5, 10, 3), "F8_E4M3": (4, 3, 4), "F8_E5M2": (5, 2, 3)}

def decode_tbe(head, dtype, blocks):
    require(dtype in TBE_FLOATS, "EncodingDtype", dtype)
    e, m, x = TBE_FLOATS[dtype]
    require(len(head) == 8 and head[0] in (3, 4), "TbeHead", head)
    w, base, *reserved = head
    escape = (1 << w) - 1
    require(base + escape <= 1 << e, "TbeHead", f"base {base}")
    require(not any(reserved), "ReservedNotZero", "in a TBE head")
    for block, size in blocks:
        source, n = Source(block, "TbeBlockLength"), size // UNIT_BYTES[dtype]
        tiles = [source.numbers(f"{w + x}Q") for _ in range(0, n, 64)]
        bits = [sum((word >> i & 1) << j for j, word in enumerate(tile)) for tile in tiles
                for i in range(64)]
        require(not any(bits[n:]), "PaddingNotZero", "in the last tile")
        codes, others = [b & escape for b in bits[:n]], [b >> w for b in bits[:n]]
        if UNIT_BYTES[dtype] == 2:
            others = [high << 8 | low for high, low in zip(others, source.take(n, 8))]
        starts = source.numbers(f"{-(-n // 512)}I", 8)
        require(starts == tuple(codes[:at].count(escape) for at in range(0, n, 512)),
                "TbeEscapeStarts", n)
        escapes = source.take(source.left())
        require(len(escapes) == codes.count(escape), "TbeBlockLength", f"{len(escapes)} escapes")
        for exponent in set(escapes):
            require(not 0 <= exponent - base < escape, "TbeEscapeInWindow", exponent)
            require(exponent < 1 << e, "TbeEscapeField", exponent)
        rest = iter(escapes)
        exponents = [next(rest) if code == escape else base + code for code in codes]
        units = [((o >> m << e) + exponent << m) + o % (1 << m)
                 for o, exponent in zip(others, exponents)]
        yield b"".join(unit.to_bytes(UNIT_BYTES[dtype], "little") for unit in units)

# 10. Bases and deltas
def read_bases(index):  # 10.1; returns SHA-256, depth and hint of each
    count, = index.numbers("Q")
    require(1 <= count <= index.left() // 40, "BaseSection", f"{count} bases")
    bases = []
    for _ in range(count):
        digest, depth, hint_length = index.numbers("32sII")
        try:
            bases.append((digest, depth, index.take(hint_length, 8).decode()))
        except UnicodeDecodeError as error:
            raise Refused("BaseSection", error) from None
    return bases

def read_base(tensor, given):  # 10.2; returns the blocks of the base as the tensor sees it
    (digest, _, hint), name = tensor.base or ((None, 0, "of a frame"), "")
    require(digest in given, "BaseMissing", hint)
    data = given[digest]
    begin = 8 + word(data, 0)
    bases = [base for base in read_header(data[8:begin]) if base.name == name]
    require(bases, "BaseRecord", f"no tensor {name!a}")
    content = data[begin + bases[0].begin:begin + bases[0].end]
    return check_base(tensor, see_base(tensor, bases[0], content))

def see_base(tensor, base, content):
    elements = [math.prod(t.shape) for t in (tensor, base)]
    rows = tensor.shape and base.shape and tensor.shape[1:] == base.shape[1:]
    floats = {tensor.dtype, base.dtype} <= set(IEEE_FLOATS)
    alike = elements[0] == elements[1] or rows
    require(alike and (tensor.dtype == base.dtype or floats), "BaseRecord",
            f"{base.dtype} {base.shape}")
    if tensor.dtype != base.dtype:
        sizes = [DTYPE_BITS[t.dtype] // 8 for t in (base, tensor)]
        content = b"".join(convert(word(content, at, sizes[0]), base.dtype, tensor.dtype)
                           .to_bytes(sizes[1], "little") for at in range(0, len(content), sizes[0]))
    return content[:tensor.size].ljust(tensor.size, b"\0")

def check_base(tensor, base):
    step = 131072 * UNIT_BYTES[tensor.dtype]
    blocks = [base[at:at + step] for at in range(0, len(base), step)]
    for i, block in enumerate(blocks):
        require(xxh3(block) == tensor.base_checksums[i], "BaseMismatch", f"block {i}")
    return blocks

# Exponent bits, mantissa bits.
IEEE_FLOATS = {"F64": (11, 52), "F32": (8, 23), "F16": (5, 10), "BF16": (8, 7), "F8_E5M2": (5, 2)}

def convert(bits, from_dtype, to_dtype):  # 10.2: a float of another dtype
    (e, m), (to_e, to_m) = IEEE_FLOATS[from_dtype], IEEE_FLOATS[to_dtype]
    sign, mantissa = bits >> e + m << to_e + to_m, bits & (1 << m) - 1
    exponent = bits >> m & (1 << e) - 1
    infinity = (1 << to_e) - 1 << to_m
    if exponent == (1 << e) - 1:
        quiet = mantissa << 64 >> 64 + m - to_m | 1 << to_m - 1 if mantissa else 0
        return sign | infinity | quiet
    # The value in units of the smallest number of the wider of both ranges.
    value = (mantissa | (exponent > 0) << m) << max(exponent, 1) - 1
    ulp = (1 << e - 1) - (1 << to_e - 1) + m - to_m  # its logarithm, for the smallest numbers
    value, ulp = (value << max(0, -ulp), max(0, ulp))
    shift = max(0, value.bit_length() - ulp - to_m - 1)
    drop = ulp + shift
    kept, rest = value >> drop, value & (1 << drop) - 1
    kept += drop > 0 and (rest > 1 << drop - 1 or rest == 1 << drop - 1 and kept & 1)
    return sign | min(kept + (shift << to_m), infinity)

def decode_delta(head, dtype, blocks):  # 10.3; `blocks` come with those of the base
    delta = SimpleNamespace(unit_bytes=UNIT_BYTES[dtype], bits=8 * UNIT_BYTES[dtype], w=5, modes=0,
                            tables=[], classes=(1, 0), sparse=(1, 0))
    delta.exponent = ANS_FLOATS.get(dtype, (0, 0))[1]  # its bits
    if head:
        source = Source(head, "DeltaHead")
        delta.w, log_segment, n, k, k_sparse, delta.modes, top, top_sparse = source.numbers("6B2H")
        delta.classes, delta.sparse = (k, top), (k_sparse, top_sparse)
        most = (8, 16) if delta.exponent else (1, 1)
        sound = delta.w in (5, 6) and 8 <= log_segment <= 16 and n <= 8
        sound = sound and 1 <= k <= most[0] and 1 <= k_sparse <= most[1] and delta.modes >> k == 0
        require(sound and max(top, top_sparse) < 1 << delta.exponent, "DeltaHead", head[:10])
        delta.segment = 1 << log_segment - 8
        for _ in range(n):
            source.rule = "DeltaHead"
            shift, lo = source.bits(6), source.bits(delta.bits)
            require(shift < delta.bits, "DeltaHead", f"shift {shift}")
            source.rule = "FrequencyTable"
            delta.tables.append((shift, lo, read_table(source, range(1 << delta.w))))
        source.pad(1)
        require(source.left() == 0, "DeltaHead", f"{source.left()} bytes after the tables")
    for block, base in blocks:
        yield decode_delta_block(delta, block, base)

def delta_class(delta, classes, base):  # 10.3
    n, top = classes
    exponent = base >> delta.bits - 1 - delta.exponent & (1 << delta.exponent) - 1
    return min(n - 1, max(0, exponent + n - 1 - top))

def delta_unit(delta, mode, base, value):  # 10.4: the unit with that value
    top = 1 << delta.bits - 1
    sign = base & top if delta.exponent else 0
    if mode:
        return (value >> 1 | (value & 1) << delta.bits - 1) ^ sign
    if not delta.exponent:
        return (base + value) % (2 * top)
    ordered = ((base ^ sign) + top + value) % (2 * top)
    return (ordered - top if ordered >= top else 2 * top - 1 - ordered) ^ sign

def decode_delta_block(delta, block, base):  # 10.5
    source, kind = Source(block, "DeltaBlock"), block[:1]
    if kind in (b"", b"\0"):
        sound = not kind or len(block) == 8 + len(base) and not any(block[:8])
        require(sound, "DeltaBlock", block[:8])
        return block[8:] if kind else base
    require(kind in (b"\1", b"\2", b"\3"), "DeltaBlock", kind)
    of_base = [word(base, at, delta.unit_bytes) for at in range(0, len(base), delta.unit_bytes)]
    if kind == b"\1":
        units = decode_coded(delta, source, of_base)
    else:
        units = decode_sparse(delta, Source(block[1:], "DeltaChanges"), kind == b"\3", of_base)
    return b"".join(unit.to_bytes(delta.unit_bytes, "little") for unit in units)

def decode_coded(delta, source, base):
    groups = len(base) // 256
    _, carried, zero, n_words = source.numbers("BBHI")
    sound = groups >= 1 and delta.tables and carried <= 64 and not zero and n_words <= 256 * groups
    require(sound, "DeltaBlock", source.data[:8])
    lengths = [half for byte in source.take(16) for half in (byte & 15, byte >> 4)]
    states = [source.bits(16) | (1 << length | source.bits(length)) << 16 for length in lengths]
    source.pad(4)
    words = source.numbers(f"{n_words}H", 4)
    tables = read_ids(source, delta.tables, groups, delta.segment)
    source.pad(4)
    lows = [low for shift, _, _ in tables for low in read_low_planes(source, shift, shift)]
    units = base[:256 * groups] + [word(source.take(delta.unit_bytes), 0, delta.unit_bytes)
                                   for _ in base[256 * groups:]]
    extra = source.take(source.left())
    symbols = decode_lanes(states, words, [slots for _, _, slots in tables])
    ends = [state - 65536 for state in states]
    require(all(0 <= z < 65536 for z in ends), "AnsEndState", ends)
    ends = struct.pack("<32H", *ends)
    require(not any(ends[carried:]), "AnsEndState", ends)
    source = Source(extra + ends[:carried], "DeltaBlock")
    values, near = [], 1 << delta.w - 1
    for i, (symbol, low) in enumerate(zip(symbols, lows)):
        shift, lo, _ = tables[i // 256]
        side, log = divmod(symbol - near, near // 2)
        if symbol < near:
            y = symbol
        elif symbol == 2 * near - 1:
            y = source.bits(delta.bits - shift)
        else:
            y = 1 << log | source.bits(log)
            y = -y if side else near - 1 + y
        values.append((lo + (y << shift) + low) % (1 << delta.bits))
    source.pad(1)
    require(source.left() == 0, "DeltaBlock", f"{source.left()} bytes after the extra bits")
    classes = [delta_class(delta, delta.classes, unit) for unit in base[:256 * groups]]
    order = sorted(range(256 * groups), key=lambda i: classes[i])
    for i, value in zip(order, values):
        units[i] = delta_unit(delta, delta.modes >> classes[i] & 1, base[i], value)
    return units

def decode_sparse(delta, source, by_class, base):
    k = delta.sparse[0] if by_class else 1
    members, units = [[] for _ in range(k)], list(base)
    for i, unit in enumerate(base):
        members[delta_class(delta, delta.sparse, unit) if by_class else 0].append(i)
    def rice(q):
        return source.ones(len(source.data) * 8) << q | source.bits(q)
    def golomb(order):
        n = source.ones(63)
        return (1 << n | source.bits(n)) - 1 << order | source.bits(order)
    for places in members:
        count, rank = golomb(0), -1
        require(count <= len(places), "DeltaChanges", f"{count} changes of {len(places)} units")
        q, t, g = (source.bits(5), source.bits(4), source.bits(4)) if count else (0, 0, 0)
        run = rice(t) if count else 0
        require(run <= count, "DeltaChanges", f"run {run}")
        for left in reversed(range(count)):
            rank += 1 + rice(q)
            require(rank < len(places), "DeltaChanges", f"rank {rank} of {len(places)}")
            sign, run = source.bits(1), run - 1
            size = 1 if run >= 0 else golomb(g) + 2
            if run < 0 and left:
                run = rice(t)
                require(run <= left, "DeltaChanges", f"run {run}")
            place = places[rank]
            value = (-size if sign else size) % (1 << delta.bits)
            units[place] = delta_unit(delta, 0, base[place], value)
    source.pad(1)
    require(source.left() == 0, "DeltaChanges", f"{source.left()} bytes after the last change")
    return units

ENCODINGS = {0: decode_raw, 1: decode_ans, 2: decode_tbe, 3: decode_delta}

def read(file, given=()):
    data = Path(file).read_bytes()
    is_frame = data[:8] == FRAME_MAGIC or str(file).endswith(".frame")
    return read_frame(data) if is_frame else restore(data, given)

def check(files):  # prints a line for each; returns the exit code of the first that is refused
    code = 0
    for file in files:
        try:
            print(f"{file}: sound, {len(read(file))} bytes")
        except Refused as error:
            print(f"{file}: {error.kind}: {error.rule}")
            code = code or EXIT_CODES[error.kind]
    return code

def main(arguments):
    bases = [name[7:] for name in arguments if name.startswith("--base=")]
    arguments = [name for name in arguments if not name.startswith("--base=")]
    if len(arguments) < 2 or arguments[0] != "--check" and len(arguments) > 3:
        print("usage: reader.py FILE OUT, reader.py TABLES PAGE OUT, or reader.py --check FILE...",
              file=sys.stderr)
        return 2
    *names, out = arguments
    try:
        if names[0] == "--check":
            return check(arguments[1:])
        files = [Path(name).read_bytes() for name in names]
        given = [Path(name).read_bytes() for name in bases]
        restored = read(*names, given) if len(names) == 1 else read_page(*files)
        Path(out).write_bytes(restored)
    except Refused as error:
        rule, *what = error.args
        print(f"{' '.join(names)}: {error.kind}: {rule} {what!a}", file=sys.stderr)
        return EXIT_CODES[error.kind]
    except OSError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{out}: {len(restored)} bytes, SHA-256 {hashlib.sha256(restored).hexdigest()}")
    return 0

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
