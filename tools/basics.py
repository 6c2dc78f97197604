"""What reading a `.bs` shard needs first: sections 1 to 3 of FORMAT.md."""
import struct


class Corrupt(Exception):
    exit_code = 3


class Unsupported(Exception):
    exit_code = 4


def require(holds, rule, what):
    if not holds:
        raise Corrupt(f"{what} ({rule})")


# 1. Conventions: dtypes, padding, bit strings

DTYPE_BITS = {name: bits for bits, names in {
    4: "F4", 6: "F6_E2M3 F6_E3M2", 16: "BF16 F16 I16 U16", 32: "F32 I32 U32", 64: "F64 C64 I64 U64",
    8: "BOOL U8 I8 F8_E4M3 F8_E5M2 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ",
}.items() for name in names.split()}


def tensor_bytes(dtype, shape):
    if dtype not in DTYPE_BITS:
        raise Unsupported(f"dtype {dtype!r} (DtypeUnknown)")
    product = 1
    for dimension in filter(None, shape):
        product *= dimension
        require(product < 2**64 and product * DTYPE_BITS[dtype] < 2**63, "ShapeOverflow",
                f"shape {shape}")
    bits = 0 if 0 in shape else product * DTYPE_BITS[dtype]
    require(bits % 8 == 0, "SubByteTotal", f"{bits} bits in all")
    return bits // 8


def padded(length, multiple):
    return -(-length // multiple) * multiple


def require_zeros(values, rule, what):
    require(not any(values), rule, f"{what} is not zero")


class Sections:
    """Bytes that hold one section after the other; where they end early, `rule` is broken."""

    def __init__(self, data, rule):
        self.data, self.rule, self.at = data, rule, 0

    def left(self):
        return len(self.data) - self.at

    def take(self, length, multiple=1):
        start, whole = self.at, padded(length, multiple)
        require(whole <= self.left(), self.rule, f"{whole} bytes wanted, {self.left()} left")
        self.at += whole
        require_zeros(self.data[start + length:self.at], "PaddingNotZero", "padding")
        return self.data[start:start + length]

    def numbers(self, layout, multiple=1):
        return struct.unpack("<" + layout, self.take(struct.calcsize("<" + layout), multiple))

    def bit_string(self, bits, multiple):
        string = Bits(self.take(padded(bits, 8) // 8, multiple), self.rule)
        string.require_padding(bits)
        return string


class Bits:
    """A bit string; where it ends early or late, `rule` is broken."""

    def __init__(self, data, rule):
        self.data, self.rule, self.at = data, rule, 0

    def take(self, count):
        start, self.at = self.at, self.at + count
        require(self.at <= 8 * len(self.data), self.rule, "a bit string ends early")
        number = int.from_bytes(self.data[start >> 3:(self.at + 7) >> 3], "little")
        return number >> (start & 7) & ((1 << count) - 1)

    def ones(self, most):
        """Counts one bits up to the zero that ends them."""
        count = 0
        while self.take(1):
            count += 1
            require(count <= most, self.rule, f"more than {most} one bits in a row")
        return count

    def require_padding(self, bits):
        number = int.from_bytes(self.data, "little")
        require(number >> bits == 0, "PaddingNotZero", "end of a bit string")

    def finish(self):
        require(padded(self.at, 8) == 8 * len(self.data), self.rule, "bytes after a bit string")
        self.require_padding(self.at)


# 2. Checksums: XXH3 of 64 bits, seed 0, default secret

SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221"
    "b8084674f743248ee03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8a8"
    "fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb17"
    "0ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e")
MASK32, MASK64 = 2**32 - 1, 2**64 - 1
PRIME32 = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D
PRIME64 = (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63,
           0x27D4EB2F165667C5)


def u32(data, at):
    return int.from_bytes(data[at:at + 4], "little")


def u64(data, at):
    return int.from_bytes(data[at:at + 8], "little")


def secret_pair(at):
    return u64(SECRET, at) ^ u64(SECRET, at + 8)


def rotate(h, count):
    return (h << count | h >> (64 - count)) & MASK64


def fold(a, b):
    product = a * b
    return product & MASK64 ^ product >> 64


def mix(data, at, secret_at):
    return fold(u64(data, at) ^ u64(SECRET, secret_at), u64(data, at + 8) ^ u64(SECRET, secret_at + 8))


def avalanche(h, shifts, factors):
    h ^= h >> shifts[0]
    for shift, factor in zip(shifts[1:], factors):
        h = h * factor & MASK64
        h ^= h >> shift
    return h


def avalanche3(h):
    return avalanche(h & MASK64, (37, 32), (0x165667919E3779F9,))


def avalanche64(h):
    return avalanche(h, (33, 29, 32), PRIME64[1:3])


def xxh3(data):
    length = len(data)
    if length > 240:
        return xxh3_long(data, length)
    if length > 128:
        return xxh3_middle(data, length)
    if length > 16:
        return xxh3_17_to_128(data, length)
    return xxh3_short(data, length)


def xxh3_short(data, length):
    if length > 8:
        low, high = u64(data, 0) ^ secret_pair(24), u64(data, length - 8) ^ secret_pair(40)
        swapped = int.from_bytes(low.to_bytes(8, "little"), "big")
        return avalanche3(length + swapped + high + fold(low, high))
    if length > 3:
        h = (u32(data, length - 4) | u32(data, 0) << 32) ^ secret_pair(8)
        h = (h ^ rotate(h, 49) ^ rotate(h, 24)) * 0x9FB21C651E98DF25 & MASK64
        h = (h ^ (h >> 35) + length) * 0x9FB21C651E98DF25 & MASK64
        return h ^ h >> 28
    if length > 0:
        h = data[0] << 16 | data[length >> 1] << 24 | data[length - 1] | length << 8
        return avalanche64(h ^ u32(SECRET, 0) ^ u32(SECRET, 4))
    return avalanche64(secret_pair(56))


def xxh3_17_to_128(data, length):
    h = length * PRIME64[0]
    for i in range((length - 1) // 32 + 1):
        h += mix(data, 16 * i, 32 * i) + mix(data, length - 16 * (i + 1), 32 * i + 16)
    return avalanche3(h)


def xxh3_middle(data, length):
    h = avalanche3(length * PRIME64[0] + sum(mix(data, 16 * i, 16 * i) for i in range(8)))
    h += sum(mix(data, 16 * i, 16 * i - 125) for i in range(8, length // 16))
    return avalanche3(h + mix(data, length - 16, 119))


def xxh3_long(data, length):
    keys = [struct.unpack_from("<8Q", SECRET, 8 * i) for i in range(17)]
    lanes = [PRIME32[2], *PRIME64[:4], PRIME32[1], PRIME64[4], PRIME32[0]]
    unpack = struct.Struct("<8Q").unpack_from

    def add_stripe(at, key):  # sums stay below 2^70 between scrambles, where they are cut to 64 bits
        for i, (value, secret) in enumerate(zip(unpack(data, at), key)):
            lanes[i ^ 1] += value
            value ^= secret
            lanes[i] += (value & MASK32) * (value >> 32)

    for stripe in range((length - 1) // 64):
        add_stripe(64 * stripe, keys[stripe % 16])
        if stripe % 16 == 15:
            for i, secret in enumerate(keys[16]):
                lane = lanes[i] & MASK64
                lanes[i] = (lane ^ lane >> 47 ^ secret) * PRIME32[0] & MASK64
    add_stripe(length - 64, struct.unpack_from("<8Q", SECRET, 121))
    h = length * PRIME64[0]
    for i, secret in enumerate(struct.unpack_from("<8Q", SECRET, 11)):
        lanes[i] = lanes[i] & MASK64 ^ secret
    return avalanche3(h + sum(fold(lanes[i], lanes[i + 1]) for i in range(0, 8, 2)))


def require_checksum(data, stored, rule, what):
    require(xxh3(data) == stored, rule, f"checksum of {what} differs")


# 3. Units and blocks

BLOCK_UNITS = 131072
UNIT_BYTES = {**dict.fromkeys(DTYPE_BITS, 1), "BF16": 2, "F16": 2, "F32": 4, "F64": 8}
UNIT_LAYOUT = {1: "B", 2: "H", 4: "I", 8: "Q"}


def block_sizes(tensor):
    """The original bytes of every block."""
    whole = BLOCK_UNITS * UNIT_BYTES[tensor.dtype]
    return [min(whole, tensor.size - start) for start in range(0, tensor.size, whole)]
