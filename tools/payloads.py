"""Decodes the payloads of a `.bs` shard: sections 6 to 8 and 10 of FORMAT.md."""
import struct
from itertools import accumulate
from types import SimpleNamespace as Fields

from basics import (UNIT_BYTES, UNIT_LAYOUT, Bits, Corrupt, Sections, Unsupported, padded, require,
                    require_checksum, require_zeros)


# 6. Encodings

def decode_tensor(data, record):
    if record.encoding > 2:
        raise Unsupported(f"encoding {record.encoding} (EncodingUnknown)")
    payload = Sections(data[record.offset:record.offset + record.length], "PayloadLength")
    head = payload.take(record.head, 8)
    require_checksum(head, record.checksum, "HeadChecksum", "the head")
    read_head, decode_block = ((read_raw_head, decode_raw_block), (read_ans_head, decode_ans_block),
                               (read_tbe_head, decode_tbe_block))[record.encoding]
    spec = read_head(head, record.tensor.dtype)
    decoded = []
    for size, length, checksum in record.blocks:
        with_padding = payload.data[payload.at:payload.at + padded(length, 8)]
        require_checksum(with_padding, checksum, "BlockChecksum", f"block {len(decoded)}")
        decoded.append(decode_block(spec, payload.take(length, 8), size))
    return b"".join(decoded)


# 7. ANS

ANS_FLOATS = {  # 7.1: head bits, exponent bits
    "BF16": (16, 8), "F16": (8, 5), "F32": (16, 8), "F64": (16, 11), "F8_E4M3": (8, 4),
    "F8_E4M3FNUZ": (8, 4), "F8_E5M2": (8, 5), "F8_E5M2FNUZ": (8, 5)}


def read_ans_head(head, dtype):
    """7.2. Adds of every table the fields that it codes, and for 4096 slots field, frequency, rank."""
    sections = Sections(head, "AnsHead")
    m, w, log_segment, tables, base, first, k, reserved, *widths = sections.numbers("4B2H6B")
    head_bits, exponent_bits = ANS_FLOATS.get(dtype, (8, 8))
    spec = Fields(unit_bytes=UNIT_BYTES[dtype], low_bits=8 * UNIT_BYTES[dtype] - head_bits,
                  field_bits=exponent_bits + m, residual_bits=head_bits - exponent_bits - m, base=base,
                  symbol_bits=w, segment_groups=1 << max(0, log_segment - 8), widths=widths[:k])
    top, fields_end = base + (1 << w), 1 << spec.field_bits
    require(m == 0 or dtype in ANS_FLOATS and spec.residual_bits >= 1, "AnsHead", f"m is {m}")
    require(5 <= w <= min(8, spec.field_bits), "AnsHead", f"{w} symbol bits")
    require(8 <= log_segment <= 16 and 1 <= tables <= 8, "AnsHead", "segments or tables")
    require(top <= fields_end and first < fields_end and (first == base or not base <= first < top),
            "AnsHead", f"window from {base}, first {first}")
    require(1 <= k <= 4 and widths[0] == spec.low_bits if spec.low_bits else k == 0, "AnsHead",
            f"{k} low widths")
    require(spec.widths == sorted(set(spec.widths), reverse=True), "AnsHead", "low widths do not fall")
    require_zeros([reserved, *widths[k:]], "ReservedNotZero", "reserved field of an ANS head")
    bits = Bits(sections.take(sections.left()), "AnsHead")
    symbol_fields = [first, *range(base + 1, top)]
    frequencies = [read_frequencies(bits, w) for _ in range(tables)]
    bits.finish()
    spec.slots = [[(symbol_fields[s], table[s], rank) for s, rank in alias_layout(table)]
                  for table in frequencies]
    spec.coded = [{field for field, _, _ in slots} for slots in spec.slots]
    return spec


def read_frequencies(bits, symbol_bits):
    """7.3."""
    frequencies = []
    for _ in range(1 << symbol_bits):
        length = bits.take(4)
        require(length <= 13, "FrequencyTable", f"frequency of {length} bits")
        frequencies.append(1 << (length - 1) | bits.take(length - 1) if length else 0)
    require(sum(frequencies) == 4096, "FrequencyTable", "a sum is not 4096")
    return frequencies


def alias_layout(frequencies):
    """7.3: symbol and rank of every slot."""
    count = len(frequencies)
    size = 4096 // count
    left, keep, donor = list(frequencies), count * [size], list(range(count))
    small = [s for s in range(count) if left[s] < size]
    large = [s for s in range(count) if left[s] >= size]
    while small and large:
        s, giver = small.pop(), large[-1]
        keep[s], donor[s] = left[s], giver
        left[giver] -= size - left[s]
        if left[giver] < size:
            small.append(large.pop())
    ranks, slots = count * [0], []
    for b in range(count):
        for s in keep[b] * [b] + (size - keep[b]) * [donor[b]]:
            slots.append((s, ranks[s]))
            ranks[s] += 1
    return slots


def unpack(packed, n):
    """7.4, packing: 256 values of n bits. Rows of 32 bytes are handled as one number."""
    highest, others = 1 << (n - 1), (1 << (n - 1)) - 1
    in_place = bytes(byte & others | (highest if byte & 128 else 0) for byte in range(256))
    rows = [int.from_bytes(packed[32 * k:32 * k + 32], "little") for k in range(n)]
    ones = int.from_bytes(32 * b"\1", "little")
    spread = [sum((row >> bit & ones) << k for k, row in enumerate(rows)) for bit in range(n - 1, 7)]
    return packed.translate(in_place) + b"".join(row.to_bytes(32, "little") for row in spread)


def read_low_planes(sections, low_bits, width):
    """7.4, low planes: the low bits of the units of a group."""
    lows, n = 256 * [0], width % 8
    for b in range(width // 8):
        lows = [low | byte << 8 * b for low, byte in zip(lows, sections.take(256))]
    if n:
        lows = [low | high << (width - n) for low, high in zip(lows, unpack(sections.take(32 * n), n))]
    return [low << (low_bits - width) for low in lows]


def decode_ans_block(spec, block, size):
    """7.5."""
    require(len(block) >= 8, "AnsBlockLength", f"{len(block)} bytes")
    require(block[0] <= 2, "AnsBlockHeader", f"kind {block[0]}")
    if block[0] == 2:
        return decode_ans_sections(spec, Sections(block, "AnsBlockLength"), size)
    content = block[8:]
    require_zeros(block[1:8], "AnsBlockHeader", "reserved field of a block")
    if block[0] == 0:
        require(len(content) == size, "AnsBlockLength", "length of a raw block")
        return content
    repeated = content[:spec.unit_bytes] * (size // spec.unit_bytes)
    require(len(content) == 56 and size >= 64 and repeated[:56] == content, "ConstantBlock", "content")
    return repeated


def decode_ans_sections(spec, sections, size):
    groups, tail = divmod(size // spec.unit_bytes, 256)
    _, rice, exceptions, word_count = sections.numbers("BBHI")
    require(rice <= 15 and groups >= 1 and word_count <= 256 * groups, "AnsBlockHeader",
            f"{groups} groups, {word_count} words, Rice parameter {rice}")
    states = read_states(sections)
    words = sections.numbers(f"{word_count}H", 4)
    tables, widths = read_ids(sections, spec, groups)
    lows = [low for width in widths for low in read_low_planes(sections, spec.low_bits, width)]
    residual_length = 32 * spec.residual_bits * groups
    carried = min(64, residual_length)
    residual = sections.take(residual_length - carried)
    codes = sections.take(max(0, sections.left() - tail * spec.unit_bytes))
    fields = decode_lanes(states, words, [spec.slots[table] for table in tables])
    residual += read_carried(states, carried)
    replace_exceptions(spec, Bits(codes, "AnsException"), exceptions, rice, tables, fields)
    return join_units(spec, fields, residual, lows) + sections.take(tail * spec.unit_bytes)


def read_states(sections):
    lengths = [half for byte in sections.take(16) for half in (byte & 15, byte >> 4)]
    bits = sections.bit_string(512 + sum(lengths), 4)
    return [bits.take(16) | (1 << length | bits.take(length)) << 16 for length in lengths]


def read_ids(sections, spec, groups):
    """For every group the number of its table, and its low width if there are low bits."""
    segments = -(-groups // spec.segment_groups)
    counts = [len(spec.slots), len(spec.widths) or 1]
    bits = [(count - 1).bit_length() for count in counts]
    string = sections.bit_string(segments * sum(bits), 4)
    ids = [[string.take(n) for _ in range(segments)] for n in bits]
    require(all(max(of) < count for of, count in zip(ids, counts)), "AnsTableId", "id of a segment")
    tables, widths = ([of[g // spec.segment_groups] for g in range(groups)] for of in ids)
    return tables, [spec.widths[width] for width in widths] if spec.widths else []


def decode_lanes(states, words, slots_of_groups):
    """The fields of all groups; leaves the end states in `states`."""
    fields, stream, lanes = [], iter(words), range(32)
    next_word = stream.__next__
    try:
        for slots in slots_of_groups:
            for _ in range(8):
                row = []
                for lane in lanes:
                    state = states[lane]
                    field, frequency, rank = slots[state & 4095]
                    state = frequency * (state >> 12) + rank
                    if state < 65536:
                        state = state << 16 | next_word()
                    states[lane] = state
                    row.append(field)
                fields += [field for pair in zip(row[:16], row[16:]) for field in pair]
    except StopIteration:
        raise Corrupt("words are missing (AnsWords)") from None
    require(next(stream, None) is None, "AnsWords", "words are left over")
    return fields


def read_carried(states, length):
    numbers = [state - 65536 for state in states]
    require(all(0 <= z < 65536 for z in numbers) and not any(numbers[length // 2:]), "AnsEndState",
            "end state of a lane")
    return struct.pack("<32H", *numbers)[:length]


def replace_exceptions(spec, bits, count, rice, tables, fields):
    position = -1
    for _ in range(count):
        position += 1 + (bits.ones(len(fields)) << rice | bits.take(rice))
        require(position < len(fields), "AnsException", f"position {position}")
        field = read_exception_field(spec, bits)
        require(0 <= field < 1 << spec.field_bits and field not in spec.coded[tables[position // 256]],
                "AnsException", f"field {field} of unit {position}")
        fields[position] = field
    bits.finish()


def read_exception_field(spec, bits):
    if bits.take(1) == 0:
        return spec.base - 1 - read_distance(bits)
    if bits.take(1) == 0:
        return spec.base + (1 << spec.symbol_bits) + read_distance(bits)
    return spec.base + bits.take(spec.symbol_bits)


def read_distance(bits):
    length = bits.ones(12)
    a = 1 << length | bits.take(length)
    return 2 * (a - 1) | bits.take(1)


def join_units(spec, fields, residual, lows):
    """7.1: units of their fields, packed residuals and low bits."""
    r, units = spec.residual_bits, fields
    if r:
        groups = (unpack(residual[at:at + 32 * r], r) for at in range(0, len(residual), 32 * r))
        below, sign = (1 << (r - 1)) - 1, spec.field_bits + r - 1
        placed = [(value >> (r - 1)) << sign | value & below for value in range(1 << r)]
        units = [field << (r - 1) | placed[value] for field, value in zip(fields, b"".join(groups))]
    if spec.low_bits:
        units = [unit << spec.low_bits | low for unit, low in zip(units, lows)]
    return struct.pack(f"<{len(units)}{UNIT_LAYOUT[spec.unit_bytes]}", *units)


# 8. TBE payloads

TBE_FLOATS = {  # 8.1: exponent bits, mantissa bits, others in bitmaps
    "BF16": (8, 7, 0), "F16": (5, 10, 3), "F8_E4M3": (4, 3, 4), "F8_E5M2": (5, 2, 3)}
SPREAD = [sum((byte >> i & 1) << 8 * i for i in range(8)) for byte in range(256)]


def read_tbe_head(head, dtype):
    """8.2."""
    require(dtype in TBE_FLOATS, "EncodingDtype", f"TBE of {dtype}")
    require(len(head) == 8 and head[0] in (3, 4), "TbeHead", "width")
    width, base = head[:2]
    require(base <= (1 << TBE_FLOATS[dtype][0]) - ((1 << width) - 1), "TbeHead", f"base {base}")
    require_zeros(head[2:], "ReservedNotZero", "reserved field of a TBE head")
    return Fields(dtype=dtype, width=width, base=base)


def decode_tbe_block(spec, block, size):
    """8.3."""
    e, m, x = TBE_FLOATS[spec.dtype]
    unit_bytes, width, base = UNIT_BYTES[spec.dtype], spec.width, spec.base
    n, escape = size // unit_bytes, (1 << width) - 1
    sections = Sections(block, "TbeBlockLength")
    in_bitmaps = read_bitmaps(sections, width + x, n)
    codes = [bits & escape for bits in in_bitmaps]
    others = [bits >> width for bits in in_bitmaps]
    if unit_bytes == 2:
        others = [high << 8 | low for high, low in zip(others, sections.take(n, 8))]
    counts = [codes[at:at + 512].count(escape) for at in range(0, n, 512)]
    starts = sections.numbers(f"{len(counts)}I", 8)
    require(starts == tuple(accumulate(counts, initial=0))[:-1], "TbeEscapeStarts", "escape starts")
    escapes = sections.take(sections.left())
    require(len(escapes) == sum(counts), "TbeBlockLength", f"{len(escapes)} escapes of {sum(counts)}")
    for exponent in set(escapes):
        require(not base <= exponent < base + escape, "TbeEscapeInWindow", f"escape {exponent}")
        require(exponent < 1 << e, "TbeEscapeField", f"escape {exponent}")
    following = iter(escapes)
    exponents = [next(following) if code == escape else base + code for code in codes]
    units = [(other >> m) << (e + m) | exponent << m | other & ((1 << m) - 1)
             for other, exponent in zip(others, exponents)]
    return struct.pack(f"<{n}{UNIT_LAYOUT[unit_bytes]}", *units)


def read_bitmaps(sections, count, n):
    """For every weight its bit of each bitmap, that of the first bitmap lowest."""
    bitmaps, bits = sections.take(8 * count * -(-n // 64)), bytearray()
    for tile in range(0, len(bitmaps), 8 * count):
        for at in range(tile, tile + 8):
            eight_weights = sum(SPREAD[bitmaps[at + 8 * j]] << j for j in range(count))
            bits += eight_weights.to_bytes(8, "little")
    require_zeros(bits[n:], "PaddingNotZero", "rest of the last tile")
    return bits[:n]


# 10. Raw

def read_raw_head(head, _):
    require(not head, "PayloadLength", "a raw payload has a head")


def decode_raw_block(_, block, size):
    require(len(block) == size, "BlockLength", "length of a raw block")
    return block
