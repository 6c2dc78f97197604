//! Merging with AVX-512: 64 units at a time. The units of each class are the bits of one word, and
//! an expansion takes the next values of the class to them.

use std::arch::x86_64::*;

use crate::delta::head::Head;

/// Units whose classes are found at once.
const UNITS: usize = 64;

/// What the class of a unit is computed with.
struct Divide {
    shift: __m128i,
    field: __m512i,
    /// [`Classes::steps`](crate::delta::classes::Classes::steps).
    less: __m512i,
    more: __m512i,
    last: __m512i,
}

impl Divide {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn new<const BYTES: usize>(head: &Head) -> Divide {
        let [less, more, last] = head.classes.steps().map(|n| _mm512_set1_epi8(n as i8));
        Divide {
            shift: _mm_cvtsi32_si128(head.field.shift as i32),
            field: if BYTES == 2 {
                _mm512_set1_epi16(head.field.mask as i16)
            } else {
                _mm512_set1_epi32(head.field.mask as i32)
            },
            less,
            more,
            last,
        }
    }
}

/// Where the bytes of 64 units are after vectors were packed, each eight of them in reverse.
const fn packed_places(unit_bytes: usize) -> [u8; UNITS] {
    let (of_lane, of_vector) = (16 / unit_bytes, 64 / unit_bytes);
    let mut places = [0; UNITS];
    let mut i = 0;
    while i < UNITS {
        let unit = i ^ 7;
        let (vector, lane) = (unit / of_vector, unit % of_vector / of_lane);
        places[i] = (lane * 16 + vector * of_lane + unit % of_lane) as u8;
        i += 1;
    }
    places
}

static PACKED: [[u8; UNITS]; 2] = [packed_places(2), packed_places(4)];

/// The places of the bytes of a matrix of 8 times 8 in its transpose.
static TRANSPOSED: [u8; 64] = {
    let mut places = [0; 64];
    let mut i = 0;
    while i < 64 {
        places[i] = (i % 8 * 8 + i / 8) as u8;
        i += 1;
    }
    places
};

/// For each class which of 64 units belong to it, a word of 64 bits.
///
/// # Safety
/// 64 units can be read.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,gfni")]
unsafe fn members<const BYTES: usize>(divide: &Divide, base: *const u8) -> __m512i {
    // SAFETY: `BYTES` vectors are 64 units; the tables are one vector each.
    unsafe {
        let exponents = |i: usize| {
            let units = _mm512_loadu_si512(base.add(64 * i).cast());
            let moved = if BYTES == 2 {
                _mm512_srl_epi16(units, divide.shift)
            } else {
                _mm512_srl_epi32(units, divide.shift)
            };
            _mm512_and_si512(moved, divide.field)
        };
        // Exponents of these dtypes have 8 bits or fewer.
        let packed = if BYTES == 2 {
            _mm512_packus_epi16(exponents(0), exponents(1))
        } else {
            let pairs = [0, 2].map(|i| _mm512_packus_epi32(exponents(i), exponents(i + 1)));
            _mm512_packus_epi16(pairs[0], pairs[1])
        };
        let places = _mm512_loadu_si512(PACKED[BYTES / 4].as_ptr().cast());
        let exponents = _mm512_permutexvar_epi8(places, packed);
        let class = _mm512_adds_epu8(_mm512_subs_epu8(exponents, divide.less), divide.more);
        let class = _mm512_min_epu8(class, divide.last);
        let bits = _mm512_set1_epi64(0x8040_2010_0804_0201u64 as i64);
        // One bit in each of eight bytes, and then the transpose of these eight times eight bits.
        let bit = _mm512_shuffle_epi8(_mm512_maskz_mov_epi64(0x55, bits), class);
        let members = _mm512_gf2p8affine_epi64_epi8::<0>(bits, bit);
        _mm512_permutexvar_epi8(_mm512_loadu_si512(TRANSPOSED.as_ptr().cast()), members)
    }
}

/// How many bits of each word of 64 bits are set in its bytes of `bytes`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn count_in(counts: __m512i, bytes: i64) -> __m512i {
    let counts = _mm512_and_si512(counts, _mm512_set1_epi64(bytes));
    _mm512_sad_epu8(counts, _mm512_setzero_si512())
}

/// How many bits of each byte are set.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn count_bits(bytes: __m512i) -> __m512i {
    let nibbles = _mm512_set1_epi8(15);
    let of_nibble =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    let low = _mm512_and_si512(bytes, nibbles);
    let high = _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), nibbles);
    let count = |nibbles| _mm512_shuffle_epi8(of_nibble, nibbles);
    _mm512_add_epi8(count(low), count(high))
}

/// Units from those of the base and their values, the lanes `turned` from values of mode 1.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi2")]
fn restore<const BYTES: usize, const MODES: bool>(
    base: __m512i,
    value: __m512i,
    turned: u32,
) -> __m512i {
    if BYTES == 2 {
        let sign = _mm512_set1_epi16(i16::MIN);
        let ordered = _mm512_add_epi16(value, _mm512_or_si512(base, sign));
        // All bits change where the number is negative, else the highest alone. Then the base's
        // sign.
        let kept = _mm512_andnot_si512(sign, _mm512_srai_epi16::<15>(ordered));
        let mut new = _mm512_xor_si512(ordered, _mm512_xor_si512(kept, _mm512_set1_epi32(-1)));
        if MODES {
            let back = _mm512_shldi_epi16::<15>(value, value);
            new = _mm512_mask_blend_epi16(turned, new, back);
        }
        _mm512_xor_si512(new, _mm512_and_si512(base, sign))
    } else {
        let sign = _mm512_set1_epi32(i32::MIN);
        let ordered = _mm512_add_epi32(value, _mm512_or_si512(base, sign));
        let kept = _mm512_andnot_si512(sign, _mm512_srai_epi32::<31>(ordered));
        let mut new = _mm512_xor_si512(ordered, _mm512_xor_si512(kept, _mm512_set1_epi32(-1)));
        if MODES {
            new = _mm512_mask_blend_epi32(turned as u16, new, _mm512_ror_epi32::<1>(value));
        }
        _mm512_xor_si512(new, _mm512_and_si512(base, sign))
    }
}

/// Merges `n_units` units of `BYTES` bytes, which have `K` classes or fewer, some of them perhaps
/// of mode 1 with `MODES`.
///
/// # Safety
/// `n_units` is a multiple of 64; as many units can be read at `base` and written at `units`, which
/// may be the same place. There are [`MERGE_ROOM`](crate::kernels::MERGE_ROOM) values more than
/// units, and at least as many bytes of `scratch` as units.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,gfni")]
pub(super) unsafe fn merge<const BYTES: usize, const K: usize, const MODES: bool>(
    head: &Head,
    values: *const u8,
    base: *const u8,
    units: *mut u8,
    scratch: *mut u8,
    n_units: usize,
) {
    // SAFETY: all places of units are below `n_units`, and the vectors of 64 units are whole. The
    // masks of a class have as many bits as were counted, so that its next value lies before the
    // first one of the next class, and a vector from there on ends within the room behind the
    // values.
    unsafe {
        if K == 1 {
            let turned = if MODES { !0 } else { 0 };
            for at in (0..n_units * BYTES).step_by(64) {
                let base = _mm512_loadu_si512(base.add(at).cast());
                let value = _mm512_loadu_si512(values.add(at).cast());
                let new = restore::<BYTES, MODES>(base, value, turned);
                _mm512_storeu_si512(units.add(at).cast(), new);
            }
            return;
        }
        let divide = Divide::new::<BYTES>(head);
        let mut sums = _mm512_setzero_si512();
        for unit in (0..n_units).step_by(UNITS) {
            let members = members::<BYTES>(&divide, base.add(unit * BYTES));
            _mm512_storeu_si512(scratch.add(unit).cast(), members);
            sums = _mm512_add_epi64(sums, count_in(count_bits(members), -1));
        }
        let mut starts = [0u64; 8];
        _mm512_storeu_si512(starts.as_mut_ptr().cast(), sums);
        let mut sum = 0;
        for n in &mut starts {
            sum += *n;
            *n = sum - *n;
        }
        let mut next = _mm512_loadu_si512(starts.as_ptr().cast());
        // For each part of 64 units where the next value of each class is.
        let mut at = [[0u64; 8]; BYTES];
        let at = at.as_mut_ptr();
        for unit in (0..n_units).step_by(UNITS) {
            let members = scratch.add(unit);
            let counts = count_bits(_mm512_loadu_si512(members.cast()));
            for part in 0..BYTES {
                let before = if part == 0 { 0 } else { (1 << (64 / BYTES * part)) - 1 };
                let next = _mm512_add_epi64(next, count_in(counts, before));
                _mm512_storeu_si512(at.add(part).cast(), next);
            }
            next = _mm512_add_epi64(next, count_in(counts, -1));
            for part in 0..BYTES {
                let (mut value, mut turned) = (_mm512_setzero_si512(), 0);
                for class in 0..K {
                    // Volatile, so that it is read from memory: the compiler would take the lanes
                    // out of the vector one by one.
                    let at = at.add(part).cast::<u64>().add(class).read_volatile();
                    let from = _mm512_loadu_si512(values.add(at as usize * BYTES).cast());
                    let of_class = members.add(8 * class).cast::<u8>();
                    let expanded = if BYTES == 2 {
                        let mask = of_class.cast::<u32>().add(part).read_unaligned();
                        if MODES && head.modes >> class & 1 == 1 {
                            turned |= mask;
                        }
                        _mm512_maskz_expand_epi16(mask, from)
                    } else {
                        let mask = of_class.cast::<u16>().add(part).read_unaligned();
                        if MODES && head.modes >> class & 1 == 1 {
                            turned |= u32::from(mask);
                        }
                        _mm512_maskz_expand_epi32(mask, from)
                    };
                    value = _mm512_or_si512(value, expanded);
                }
                let place = (unit + 64 / BYTES * part) * BYTES;
                let base = _mm512_loadu_si512(base.add(place).cast());
                let new = restore::<BYTES, MODES>(base, value, turned);
                _mm512_storeu_si512(units.add(place).cast(), new);
            }
        }
    }
}
