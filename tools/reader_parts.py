"""What all parts of the reader need: conventions (FORMAT.md, section 1) and checksums (2)."""
import math
import struct
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
