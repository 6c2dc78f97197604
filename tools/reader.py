#!/usr/bin/env python3
"""Restores a safetensors file from a `.bs` shard, or the bytes of a tensor from a frame:

    python3 reader.py FILE OUT
    python3 reader.py TABLES PAGE OUT    decodes a page with its tables
    python3 reader.py --check FILE...    says of each file whether it is sound, or why not

A shard with bases needs them: --base=BASE.safetensors, once for each. A frame of differences needs
the bytes of its base: --base=BYTES.

Written from FORMAT.md alone, with Python's standard library (3.9 or later). It is meant to be read
beside FORMAT.md, and to check other readers. Comments name its sections, errors its rules. Blocks
are decoded in `reader_blocks.py` and `reader_deltas.py`. File and result are held in memory. All
rules are checked before anything is written.
Exit codes: 0 restored or sound, 1 reading or writing failed, 2 wrong use, 3 corrupt, 4 unsupported,
5 beyond a limit.
"""
import hashlib
import json
import math
import struct
import sys
from pathlib import Path

from reader_blocks import decode_ans, decode_tbe
from reader_deltas import IEEE_FLOATS, convert, decode_delta
from reader_parts import (DTYPE_BITS, EXIT_CODES, UNIT_BYTES, Refused, Source, limit, measure,
                          require, word, xxh3)

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

def block_bytes(tensor):  # 3: the original bytes of a full block
    n = tensor.size // UNIT_BYTES[tensor.dtype]
    equal = 2**17 < n <= 2**22
    return UNIT_BYTES[tensor.dtype] * (1024 * -(-n // (4096 * -(-n // 2**19))) if equal else 2**17)

def block_sizes(tensor, source):  # 3: the original bytes of each block; 8 bytes or more for each
    starts = range(0, tensor.size, block_bytes(tensor))
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

def read_tensor(tensor, payloads, given):  # reads a payload and decodes it
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

def read_frame(data, base=None):  # returns the bytes of the tensor; `base` are those of its base
    tensor, source = read_description(data)
    read_tensor(tensor, source, base)
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
    tensor.base = None
    return tensor, source

# 6. Encodings
def decode_raw(head, _, blocks):
    require(not head, "PayloadLength", "a raw payload with a head")
    for block, size in blocks:
        require(len(block) == size, "BlockLength", f"{len(block)} bytes for {size}")
        yield block

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
    if not tensor.base:  # of a frame, which does not name it
        require(given is not None, "BaseMissing", "of a frame")
        if len(given) != tensor.size:  # the caller's error
            raise ValueError(f"a base of {len(given)} bytes, not {tensor.size}")
        return check_base(tensor, given)
    (digest, _, hint), name = tensor.base
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
    step = block_bytes(tensor)
    blocks = [base[at:at + step] for at in range(0, len(base), step)]
    for i, block in enumerate(blocks):
        require(xxh3(block) == tensor.base_checksums[i], "BaseMismatch", f"block {i}")
    return blocks

ENCODINGS = {0: decode_raw, 1: decode_ans, 2: decode_tbe, 3: decode_delta}

def read(file, given=()):
    data = Path(file).read_bytes()
    is_frame = data[:8] == FRAME_MAGIC or str(file).endswith(".frame")
    return read_frame(data, *given[:1]) if is_frame else restore(data, given)

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
