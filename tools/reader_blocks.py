"""The blocks of ANS (FORMAT.md, section 7) and of TBE (8)."""
import struct
import zlib
from types import SimpleNamespace

from reader_parts import UNIT_BYTES, Refused, Source, require, word

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
        require(bits <= 12, "FrequencyTable", f"frequency of {bits} bits")
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
    own = [slot % size < keep[slot // size] for slot in range(4096)]
    ranks = [iter(range(keep[s], 4096)) for s in symbols]
    return [(fields[s], frequencies[s], slot % size if own[slot] else next(ranks[s]))
            for slot, s in enumerate(slots)]

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
                states[lane], row[lane] = state, field
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
