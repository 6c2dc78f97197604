//! Merging with AVX2: 32 units at a time, in windows of 8. The place of a unit among those of its
//! class in the window is where a shuffle finds its value, behind the class's values of the windows
//! before.

use std::arch::x86_64::*;

use crate::delta::head::Head;

/// Units whose classes are found at once.
const UNITS: usize = 32;
/// Units of a window.
const WINDOW: usize = 8;
/// How often numbers of a window's units can be added as bytes.
const MOST_SUMS: usize = 255 / WINDOW;

/// The byte that counts the units of a class.
const fn lane_of(class: usize) -> usize {
    class % 2 * 4 + class / 2
}

/// What the class of a unit is computed with.
struct Divide {
    shift: __m128i,
    field: __m256i,
    /// [`Classes::steps`](crate::delta::classes::Classes::steps).
    less: __m256i,
    more: __m256i,
    last: __m256i,
}

impl Divide {
    #[inline]
    #[target_feature(enable = "avx2")]
    fn new<const BYTES: usize>(head: &Head) -> Divide {
        let [less, more, last] = head.classes.steps().map(|n| _mm256_set1_epi8(n as i8));
        Divide {
            shift: _mm_cvtsi32_si128(head.field.shift as i32),
            field: if BYTES == 2 {
                _mm256_set1_epi16(head.field.mask as i16)
            } else {
                _mm256_set1_epi32(head.field.mask as i32)
            },
            less,
            more,
            last,
        }
    }
}

/// The classes of 32 units, by windows: those of units of two bytes are the first, the third, the
/// second and the fourth.
///
/// # Safety
/// 32 units can be read.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn classes<const BYTES: usize>(divide: &Divide, base: *const u8) -> __m256i {
    let exponents = |i: usize| {
        // SAFETY: `BYTES` vectors are 32 units.
        let units = unsafe { _mm256_loadu_si256(base.add(32 * i).cast()) };
        let moved = if BYTES == 2 {
            _mm256_srl_epi16(units, divide.shift)
        } else {
            _mm256_srl_epi32(units, divide.shift)
        };
        _mm256_and_si256(moved, divide.field)
    };
    // Exponents of these dtypes have 8 bits or fewer.
    let exponents = if BYTES == 2 {
        _mm256_packus_epi16(exponents(0), exponents(1))
    } else {
        let pairs = [0, 2].map(|i| _mm256_packus_epi32(exponents(i), exponents(i + 1)));
        let packed = _mm256_packus_epi16(pairs[0], pairs[1]);
        _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))
    };
    let class = _mm256_adds_epu8(_mm256_subs_epu8(exponents, divide.less), divide.more);
    _mm256_min_epu8(class, divide.last)
}

/// For each unit its class, and in the low four bits how many of the window before it are of the
/// same one.
#[inline]
#[target_feature(enable = "avx2")]
fn ranks(class: __m256i) -> __m256i {
    // Never 0, which comes in from the side.
    let some = _mm256_add_epi8(class, _mm256_set1_epi8(1));
    let mut ranked = _mm256_slli_epi16::<4>(class);
    macro_rules! compare {
        ($($bits:literal)*) => {
            $(
                let equal = _mm256_cmpeq_epi8(some, _mm256_slli_epi64::<$bits>(some));
                ranked = _mm256_sub_epi8(ranked, equal);
            )*
        };
    }
    compare!(8 16 24 32 40 48 56);
    ranked
}

/// For each window how many units each class has, in the byte of [`lane_of`].
#[inline]
#[target_feature(enable = "avx2")]
fn counts(class: __m256i) -> __m256i {
    // Two classes at a time, in four bits each.
    let sums = [0, 2, 4, 6].map(|first| {
        let ones = _mm_cvtsi64_si128(0x1001i64 << (8 * first));
        let ones = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(ones), class);
        _mm256_sad_epu8(ones, _mm256_setzero_si256())
    });
    let low = _mm256_or_si256(sums[0], _mm256_slli_epi64::<8>(sums[1]));
    let high = _mm256_or_si256(sums[2], _mm256_slli_epi64::<8>(sums[3]));
    let sums = _mm256_or_si256(low, _mm256_slli_epi64::<16>(high));
    let nibbles = _mm256_set1_epi8(15);
    let even = _mm256_and_si256(sums, nibbles);
    let odd = _mm256_andnot_si256(nibbles, sums);
    _mm256_or_si256(even, _mm256_slli_epi64::<28>(odd))
}

/// Units from those of the base and their values, `turned` from values of mode 1.
#[inline]
#[target_feature(enable = "avx2")]
fn restore<const BYTES: usize, const MODES: bool>(
    base: __m256i,
    value: __m256i,
    turned: __m256i,
) -> __m256i {
    macro_rules! restore {
        ($sign:expr, $add:ident, $sra:expr, $right:expr, $left:expr) => {{
            let sign = $sign;
            let ordered = $add(value, _mm256_or_si256(base, sign));
            // All bits change where the number is negative, else the highest alone. Then the
            // base's sign.
            let kept = _mm256_andnot_si256(sign, $sra(ordered));
            let mut new = _mm256_xor_si256(ordered, _mm256_xor_si256(kept, _mm256_set1_epi32(-1)));
            if MODES {
                let back = _mm256_or_si256($right(value), $left(value));
                new = _mm256_blendv_epi8(new, back, turned);
            }
            _mm256_xor_si256(new, _mm256_and_si256(base, sign))
        }};
    }
    if BYTES == 2 {
        restore!(
            _mm256_set1_epi16(i16::MIN),
            _mm256_add_epi16,
            _mm256_srai_epi16::<15>,
            _mm256_srli_epi16::<1>,
            _mm256_slli_epi16::<15>
        )
    } else {
        restore!(
            _mm256_set1_epi32(i32::MIN),
            _mm256_add_epi32,
            _mm256_srai_epi32::<31>,
            _mm256_srli_epi32::<1>,
            _mm256_slli_epi32::<31>
        )
    }
}

/// Merges `n_units` units of `BYTES` bytes, which have `K` classes or fewer, some of them perhaps
/// of mode 1 with `MODES`.
///
/// # Safety
/// `n_units` is a multiple of 64; as many units can be read at `base` and written at `units`, which
/// may be the same place. There are [`MERGE_ROOM`](crate::kernels::MERGE_ROOM) values more than
/// units, and at least twice as many bytes of `scratch` as units.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn merge<const BYTES: usize, const K: usize, const MODES: bool>(
    head: &Head,
    values: *const u8,
    base: *const u8,
    units: *mut u8,
    scratch: *mut u8,
    n_units: usize,
) {
    // SAFETY: all places of units are below `n_units`, and 32 units are whole vectors. As many
    // units of a class are in the windows as were counted, so that its next value lies before the
    // first one of the next class, and a vector from there on ends within the room behind the
    // values.
    unsafe {
        let load = |from: *const u8| _mm256_loadu_si256(from.cast());
        if K == 1 {
            let turned = _mm256_set1_epi8(if MODES { -1 } else { 0 });
            for at in (0..n_units * BYTES).step_by(32) {
                let (base, value) = (load(base.add(at)), load(values.add(at)));
                let new = restore::<BYTES, MODES>(base, value, turned);
                _mm256_storeu_si256(units.add(at).cast(), new);
            }
            return;
        }
        let divide = Divide::new::<BYTES>(head);
        let widen = |counts: *const u8| _mm256_cvtepu8_epi32(_mm_loadl_epi64(counts.cast()));
        let mut sums = _mm256_setzero_si256();
        for first in (0..n_units).step_by(MOST_SUMS * UNITS) {
            let mut few = _mm256_setzero_si256();
            for unit in (first..n_units.min(first + MOST_SUMS * UNITS)).step_by(UNITS) {
                let class = classes::<BYTES>(&divide, base.add(unit * BYTES));
                let counts = counts(class);
                let ranked = scratch.add(2 * unit);
                _mm256_storeu_si256(ranked.cast(), ranks(class));
                _mm256_storeu_si256(ranked.add(UNITS).cast(), counts);
                few = _mm256_add_epi8(few, counts);
            }
            let mut bytes = [0u8; UNITS];
            _mm256_storeu_si256(bytes.as_mut_ptr().cast(), few);
            for window in bytes.as_chunks::<WINDOW>().0 {
                sums = _mm256_add_epi32(sums, widen(window.as_ptr()));
            }
        }
        let mut starts = [0u32; 8];
        _mm256_storeu_si256(starts.as_mut_ptr().cast(), sums);
        let mut sum = 0;
        for class in 0..8 {
            let n = &mut starts[lane_of(class)];
            sum += *n;
            *n = sum - *n;
        }
        let mut next = load(starts.as_ptr().cast());
        // For each window where the next value of each class is.
        let mut at = [[0u32; 8]; 4];
        let at = at.as_mut_ptr();
        // Volatile, so that it is read from memory: the compiler would take the lanes out of the
        // vector one by one.
        let from = |window: usize, class: usize| {
            let at = at.add(window).cast::<u32>().add(lane_of(class)).read_volatile();
            values.add(at as usize * BYTES)
        };
        for unit in (0..n_units).step_by(UNITS) {
            let ranked = scratch.add(2 * unit);
            for window in 0..4 {
                _mm256_storeu_si256(at.add(window).cast(), next);
                let place = if BYTES == 2 { [0, 2, 1, 3][window] } else { window };
                next = _mm256_add_epi32(next, widen(ranked.add(UNITS + WINDOW * place)));
            }
            let put = |vector: usize, value, turned| {
                let place = unit * BYTES + 32 * vector;
                let new = restore::<BYTES, MODES>(load(base.add(place)), value, turned);
                _mm256_storeu_si256(units.add(place).cast(), new);
            };
            let modes = |class: usize| if head.modes >> class & 1 == 1 { -1 } else { 0 };
            // Values of other classes are found as well: those of lower ones are not taken, and
            // those of higher ones are replaced.
            if BYTES == 2 {
                let ranked = load(ranked);
                let twice = _mm256_add_epi8(ranked, _mm256_and_si256(ranked, _mm256_set1_epi8(15)));
                let after = _mm256_add_epi8(twice, _mm256_set1_epi8(1));
                let places =
                    [_mm256_unpacklo_epi8(twice, after), _mm256_unpackhi_epi8(twice, after)];
                for (vector, places) in places.into_iter().enumerate() {
                    let (mut value, mut turned) = (_mm256_setzero_si256(), _mm256_setzero_si256());
                    for class in 0..K {
                        let place = _mm256_sub_epi8(places, _mm256_set1_epi8(16 * class as i8));
                        let low = _mm_loadu_si128(from(2 * vector, class).cast());
                        let high = _mm_loadu_si128(from(2 * vector + 1, class).cast());
                        let both = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(low), high);
                        let found = _mm256_shuffle_epi8(both, place);
                        value = _mm256_blendv_epi8(found, value, place);
                        if MODES {
                            let mode = _mm256_set1_epi8(modes(class));
                            turned = _mm256_blendv_epi8(mode, turned, place);
                        }
                    }
                    put(vector, value, turned);
                }
            } else {
                for window in 0..4 {
                    let places = widen(ranked.add(WINDOW * window));
                    let (mut value, mut turned) = (_mm256_setzero_si256(), _mm256_setzero_si256());
                    for class in 0..K {
                        let place = _mm256_sub_epi32(places, _mm256_set1_epi32(16 * class as i32));
                        let next = load(from(window, class));
                        let found = _mm256_permutevar8x32_epi32(next, place);
                        let pick = |new, old| {
                            _mm256_castps_si256(_mm256_blendv_ps(
                                _mm256_castsi256_ps(new),
                                _mm256_castsi256_ps(old),
                                _mm256_castsi256_ps(place),
                            ))
                        };
                        value = pick(found, value);
                        if MODES {
                            turned = pick(_mm256_set1_epi32(modes(class).into()), turned);
                        }
                    }
                    put(window, value, turned);
                }
            }
        }
    }
}
