"""The blocks of deltas (FORMAT.md, sections 10.2 to 10.5)."""
import struct
from types import SimpleNamespace

from reader_blocks import ANS_FLOATS, decode_lanes, read_ids, read_low_planes, read_table
from reader_parts import UNIT_BYTES, Source, require, word

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
