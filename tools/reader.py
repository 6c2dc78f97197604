#!/usr/bin/env python3
"""Restores a safetensors file from a `.bs` shard: python3 reader.py FILE.bs OUT.safetensors

Written from FORMAT.md alone, with Python's standard library (3.9 or later), to be read beside it and to
check other readers against: the envelope and the index here, what everything needs in `basics.py`, the
encodings in `payloads.py`. Numbers in comments are sections of FORMAT.md. File and result are held in
memory. It sets none of the limits of section 1; everything else is checked.

Exit codes: 0 restored, 1 reading or writing failed, 2 wrong use, 3 corrupt, 4 unsupported.
"""
import hashlib
import json
import struct
import sys
from types import SimpleNamespace as Fields

from basics import (BLOCK_UNITS, Corrupt, Sections, Unsupported, block_sizes, padded, require,
                    require_checksum, require_zeros, tensor_bytes)
from payloads import decode_tensor


# 4. Shard: envelope

MAGIC = b"\x89bsmall\n"
VERSION = 1


def read_envelope(data):
    """Checks prelude and trailer; returns offset and bytes of the index."""
    if data[:4] == b"BGSM":
        raise Unsupported("a file of the Python package (PythonPackageFile)")
    if data[-8:] != MAGIC and data[8:9] == b"{":
        raise Unsupported("a safetensors file (SafetensorsFile)")
    require(len(data) >= 64, "ShardTooShort", f"{len(data)} bytes")
    offset, length, needed, _, version, reserved, checksum = struct.unpack("<QQIIH6sQ", data[-48:-8])
    require(data[-8:] == MAGIC, "ShardMagic", "there is no trailer")
    require(offset >= 16 and offset + length + 48 == len(data), "IndexRange",
            f"index of {length} bytes at {offset}")
    require_checksum(data[offset:-16], checksum, "IndexChecksum", "the index")
    require(version > 0, "VersionZero", "version 0")
    if version > VERSION or needed:
        raise Unsupported(f"version {version}, features {needed:#x} (Version, RequiredFeature)")
    require_zeros(reserved, "ReservedNotZero", "reserved field of the trailer")
    require(data[:8] == MAGIC, "ShardMagic", "there is no prelude")
    require(data[8:16] == bytes([1, 0, 0, 0, 0, 0, 0, 0]), "ReservedNotZero", "prelude after its magic")
    return offset, data[offset:-48]


# 5. Shard: index

def read_index(index, end):
    """Returns digest, stored header, and the records with their tensors, in the order of tensors."""
    sections = Sections(index, "IndexTruncated")
    header_length, digest, count, flags = sections.numbers("Q32sII")
    require(flags < 2, "ReservedNotZero", "flags of the index")
    header = sections.take(header_length, 8)
    tensors = read_stored_header(header)
    require(count == len(tensors), "EntryCount", f"{count} records for {len(tensors)} tensors")
    records, payload_end = [], 16
    for tensor in tensors:
        record = read_record(sections, tensor, records)
        if not record.shared:
            require(record.offset == payload_end, "PayloadRange", f"payload of {tensor.name!r}")
            payload_end += record.length
            require(payload_end <= end, "PayloadRange", f"payload of {tensor.name!r}")
        records.append(record)
    require(sections.left() == 0, "IndexTrailing", "bytes after the last record")
    require(payload_end == end, "IndexRange", "bytes between the last payload and the index")
    return digest, header, records


def read_stored_header(header):
    """Returns the tensors, in the order of their data."""
    require(header[:1] == b"{", "HeaderStart", "the stored header does not begin with {")
    try:
        found = json.loads(header.decode(), object_pairs_hook=json_object, parse_int=json_integer,
                           parse_constant=json_integer)
        json.dumps(found, ensure_ascii=False).encode()  # fails for lone surrogates
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"stored header: {error} (HeaderSyntax)") from None
    metadata = found.pop("__metadata__", {})
    require(isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values()),
            "HeaderEntry", "__metadata__ is not an object of strings")
    tensors = sorted((read_entry(*entry) for entry in found.items()), key=lambda t: (t.begin, t.end))
    ends = [0, *(tensor.end for tensor in tensors)]
    for tensor, begin in zip(tensors, ends):
        require(tensor.begin == begin and tensor.end == begin + tensor.size, "DataRange",
                f"tensor {tensor.name!r}")
    return tensors


def json_object(pairs):
    require(len(dict(pairs)) == len(pairs), "HeaderDuplicate", "a key stands twice")
    return dict(pairs)


def json_integer(text):
    """What is no integer of 64 bits becomes a float, which entries refuse; NaN and its like fail."""
    if text.lstrip("-").isdigit():
        return int(text) if text.isdigit() and len(text) <= 20 and int(text) < 2**64 else float(text)
    raise ValueError(f"{text} is no number")


def read_entry(name, entry):
    what = f"entry of {name!r}"
    require(isinstance(entry, dict) and len(entry) <= 3 + 64, "HeaderEntry", what)
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    require(isinstance(dtype, str) and isinstance(shape, list) and isinstance(offsets, list)
            and len(offsets) == 2, "HeaderEntry", what)
    require(all(type(number) is int for number in shape + offsets), "HeaderSyntax", what)
    size = tensor_bytes(dtype, shape)
    return Fields(name=name, dtype=dtype, size=size, begin=offsets[0], end=offsets[1])


def read_record(sections, tensor, earlier):
    what = f"record of {tensor.name!r}"
    encoding, flags, reserved, head, offset, length, checksum = sections.numbers("BBHIQQQ")
    require(flags < 4 and reserved == 0, "ReservedNotZero", what)
    record = Fields(tensor=tensor, shared=flags & 1, encoding=encoding, head=head, offset=offset,
                    length=length, checksum=checksum, md5=sections.take(16) if flags & 2 else None)
    if record.shared:
        require_zeros([encoding, head, length, checksum], "ReservedNotZero", what)
        require(offset < len(earlier), "SharedPayload", what)
        other = earlier[offset]
        require(not other.shared and other.tensor.dtype == tensor.dtype
                and other.tensor.size == tensor.size, "SharedPayload", what)
        return record
    require(tensor.size // (8 * BLOCK_UNITS) <= sections.left(), "IndexTruncated", what)
    sizes = block_sizes(tensor)
    lengths = sections.numbers(f"{len(sizes)}I", 8)
    record.blocks = list(zip(sizes, lengths, sections.numbers(f"{len(sizes)}Q")))
    require(all(min(size, 56) <= stored <= 2 * size + 4096 for size, stored in zip(sizes, lengths)),
            "BlockLength", what)
    require(length == sum(padded(part, 8) for part in (head, *lengths)), "PayloadLength", what)
    return record


def restore(data):
    """The bytes of the safetensors file that a shard holds."""
    end, index = read_envelope(data)
    digest, header, records = read_index(index, end)
    decoded = []
    for record in records:
        try:
            tensor = decoded[record.offset] if record.shared else decode_tensor(data, record)
            md5 = hashlib.md5(tensor, usedforsecurity=False).digest()
            require(record.md5 in (None, md5), "ContentDigest", "MD5 differs")
        except (Corrupt, Unsupported) as error:
            raise type(error)(f"tensor {record.tensor.name!r}: {error}") from None
        decoded.append(tensor)
    restored = b"".join([struct.pack("<Q", len(header)), header, *decoded])
    require(hashlib.sha256(restored).digest() == digest, "ContentDigest", "SHA-256 differs")
    return restored


def main(arguments):
    if len(arguments) != 2:
        print("usage: reader.py FILE.bs OUT.safetensors", file=sys.stderr)
        return 2
    source, target = arguments
    try:
        with open(source, "rb") as file:
            restored = restore(file.read())
        with open(target, "wb") as file:
            file.write(restored)
    except (Corrupt, Unsupported) as error:
        print(f"{source}: {type(error).__name__.lower()}: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{target}: {len(restored)} bytes, SHA-256 {hashlib.sha256(restored).hexdigest()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
