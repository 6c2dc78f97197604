//! Encoding: the halves of the states of 32 lanes as in decoding, four blocks interleaved: the
//! states of a row are divided for every block first, then the slots are found. States are divided
//! as floats. The slots of at most 64 symbols are found in registers, those of more in memory.
//!
//! As in decoding, the functions that a row consists of are always inlined, and their callers must
//! have the instructions.

use std::arch::x86_64::*;

use crate::arch::fused::{ROWS, each_block};
use crate::arch::x86_64::avx512::decode::{States, look_up};
use crate::head::Head;
use crate::kernels::{EncodeJob, LANES};
use crate::table::{EncodeWords, RankSlots, RankedSlots, TOTAL};

/// What coding a row of symbols needs of its table.
struct Row {
    /// 16 times the frequencies.
    freq: __m512i,
    /// Where the slots begin, if they are in memory.
    first: __m512i,
    /// 1 / frequency as floats, in the order of [`unpack`].
    inverse: [__m512i; 2],
}

/// Puts lower and upper halves together to 32-bit numbers: lanes 0 to 3 of each 8 in the first
/// vector, the others in the second one.
///
/// # Safety
/// The machine must have the instructions.
#[inline(always)]
unsafe fn unpack(lower: __m512i, upper: __m512i) -> [__m512i; 2] {
    // SAFETY: as the caller promises.
    unsafe { [_mm512_unpacklo_epi16(lower, upper), _mm512_unpackhi_epi16(lower, upper)] }
}

/// The lower and the upper halves of the vectors of [`unpack`].
///
/// # Safety
/// The machine must have the instructions.
#[inline(always)]
unsafe fn pack(of: [__m512i; 2]) -> [__m512i; 2] {
    HALVES.each_ref().map(|places| {
        // SAFETY: as the caller promises; 32 places are one vector.
        unsafe {
            let places = _mm512_loadu_si512(places.as_ptr().cast());
            _mm512_permutex2var_epi16(of[0], places, of[1])
        }
    })
}

/// Where the lower halves of the lanes are in the vectors of [`unpack`], and the upper ones.
static HALVES: [[u16; LANES]; 2] = {
    let mut places = [[0; LANES]; 2];
    let mut lane = 0;
    while lane < LANES {
        let place = (lane / 8 * 8 + lane % 4 * 2 + lane / 4 % 2 * LANES) as u16;
        places[0][lane] = place;
        places[1][lane] = place + 1;
        lane += 1;
    }
    places
};

/// Looks a row of symbols up.
///
/// # Safety
/// The machine must have the instructions.
#[inline(always)]
unsafe fn look_up_row<const BITS: u32>(table: &EncodeWords, symbols: __m256i) -> Row {
    // SAFETY: as the caller promises.
    unsafe {
        let symbols = _mm512_cvtepu8_epi16(symbols);
        // No closure: it has no target features, and a large one is not inlined.
        let [lower, upper] = table.inverse.each_ref();
        let lower = look_up::<BITS, _>(lower, symbols);
        let inverse = unpack(lower, look_up::<BITS, _>(upper, symbols));
        let first = match BITS {
            ..=6 => _mm512_setzero_si512(),
            _ => look_up::<BITS, _>(&table.first, symbols),
        };
        Row { freq: look_up::<BITS, _>(&table.freq, symbols), first, inverse }
    }
}

/// Looks up 32 indices of 16 bits in a table of bytes. Of an index the upper 9 bits do not matter,
/// of what is found the upper 8 mean nothing.
///
/// # Safety
/// The machine must have the instructions.
#[inline(always)]
unsafe fn look_up_byte(table: &[u8; 128], index: __m512i) -> __m512i {
    // SAFETY: 128 bytes are two vectors.
    unsafe {
        let first = _mm512_loadu_si512(table.as_ptr().cast());
        let second = _mm512_loadu_si512(table.as_ptr().add(64).cast());
        _mm512_permutex2var_epi8(first, index, second)
    }
}

/// The slots of ranks, found in `ROUNDS` steps of search: as many as the table takes, or more.
/// Where a rank is too large by a frequency, because a quotient was one too small, 2^12 is added to
/// the slot. `freq` are the frequencies.
///
/// # Safety
/// The machine must have the instructions.
#[inline(always)]
unsafe fn find_slots<const BITS: u32, const ROUNDS: usize>(
    table: &RankSlots,
    symbols: __m512i,
    freq: __m512i,
    rank: __m512i,
) -> __m512i {
    // SAFETY: as the caller promises.
    unsafe {
        let more = _mm512_cmpge_epu16_mask(rank, freq);
        let rank = _mm512_mask_sub_epi16(rank, more, rank, freq);
        let number = _mm512_add_epi16(rank, look_up::<BITS, _>(&table.to_number, symbols));
        let mut run = look_up_byte(&table.runs, _mm512_srli_epi16::<{ RankSlots::SHIFT }>(number));
        for (k, ends) in table.ends.iter().enumerate().take(ROUNDS).rev() {
            let after = _mm512_cmpge_epu16_mask(number, look_up::<BITS, _>(ends, run));
            run = _mm512_mask_add_epi16(run, after, run, _mm512_set1_epi16(1 << k));
        }
        let slot = _mm512_add_epi16(number, look_up::<BITS, _>(&table.to_slot, run));
        // The others lie in their symbol's bucket.
        let own = _mm512_cmplt_epu16_mask(rank, look_up::<BITS, _>(&table.own, symbols));
        let bucket = match BITS {
            5 => _mm512_slli_epi16::<7>(symbols),
            _ => _mm512_slli_epi16::<6>(symbols),
        };
        let slot = _mm512_mask_add_epi16(slot, own, bucket, rank);
        _mm512_mask_add_epi16(slot, more, slot, _mm512_set1_epi16(TOTAL as i16))
    }
}

/// Loads 32 slots from memory one by one, which takes less time than gathers, from places of which
/// the upper bits do not matter.
///
/// # Safety
/// The machine must have the instructions.
#[inline(always)]
unsafe fn load_slots(slots: &RankedSlots, at: __m512i) -> __m512i {
    // SAFETY: as the caller promises; 32 places are one vector. They are below 2 * TOTAL, so there
    // is a slot at each.
    unsafe {
        let at = _mm512_and_si512(at, _mm512_set1_epi16(2 * TOTAL as i16 - 1));
        let mut fours = [0u64; LANES / 4];
        _mm512_storeu_si512(fours.as_mut_ptr().cast(), at);
        for four in &mut fours {
            let at = *four;
            let a = u64::from(*slots.get_unchecked(usize::from(at as u16)));
            let b = u64::from(*slots.get_unchecked(usize::from((at >> 16) as u16)));
            let c = u64::from(*slots.get_unchecked(usize::from((at >> 32) as u16)));
            let d = u64::from(*slots.get_unchecked((at >> 48) as usize));
            *four = a | b << 16 | c << 32 | d << 48;
        }
        _mm512_loadu_si512(fours.as_ptr().cast())
    }
}

/// A row whose states are divided, and whose slots are to be found.
#[derive(Clone, Copy)]
struct Coding {
    symbols: __m256i,
    /// 16 times the frequencies.
    freq: __m512i,
    /// Where the slots begin, if they are in memory.
    first: __m512i,
    /// The lower halves of the states that are divided.
    lower: __m512i,
    /// The quotients as [`unpack`] orders them, at most one too small.
    quotient: [__m512i; 2],
}

impl Coding {
    /// Gives the words of lanes whose states would grow too large, and divides. The first `room`
    /// of `words` are free.
    ///
    /// # Safety
    /// 32 words must be free, or as many as there are symbols left. The machine must have the
    /// instructions.
    #[inline(always)]
    unsafe fn divide<const BITS: u32>(
        x: &States,
        table: &EncodeWords,
        symbols: __m256i,
        words: *mut u16,
        room: &mut usize,
    ) -> Coding {
        // SAFETY: as the caller promises.
        unsafe {
            let Row { freq, first, inverse } = look_up_row::<BITS>(table, symbols);
            let full = _mm512_cmpge_epu16_mask(x.upper, freq);
            let n = full.count_ones() as usize;
            *room -= n;
            _mm512_mask_storeu_epi16(
                words.add(*room).cast(),
                ((1u64 << n) - 1) as u32,
                _mm512_maskz_compress_epi16(full, x.lower),
            );
            let lower = _mm512_mask_mov_epi16(x.lower, full, x.upper);
            let upper = _mm512_mask_mov_epi16(x.upper, full, _mm512_setzero_si512());
            let whole = unpack(lower, upper);
            let quotient = std::array::from_fn(|i| {
                let whole = _mm512_cvtepu32_ps(whole[i]);
                _mm512_cvttps_epu32(_mm512_mul_ps(whole, _mm512_castsi512_ps(inverse[i])))
            });
            Coding { symbols, freq, first, lower, quotient }
        }
    }

    /// The new states: quotient * 2^12 + slot.
    ///
    /// # Safety
    /// The machine must have the instructions.
    #[inline(always)]
    unsafe fn finish<const BITS: u32, const ROUNDS: usize>(self, table: &EncodeWords) -> States {
        // SAFETY: as the caller promises.
        unsafe {
            let [low, high] = pack(self.quotient);
            let freq = _mm512_srli_epi16::<4>(self.freq);
            let rank = _mm512_sub_epi16(self.lower, _mm512_mullo_epi16(low, freq));
            let slot = if BITS <= 6 {
                let symbols = _mm512_cvtepu8_epi16(self.symbols);
                find_slots::<BITS, ROUNDS>(&table.ranks, symbols, freq, rank)
            } else {
                let slots = table.slots.as_ref().expect("more than 64 symbols");
                load_slots(slots, _mm512_add_epi16(self.first, rank))
            };
            let top = _mm512_slli_epi16::<12>(low);
            let lower = _mm512_add_epi16(top, slot);
            // There is a carry where the top bit was set and is not any more.
            let carry = _mm512_srli_epi16::<15>(_mm512_andnot_si512(lower, top));
            States { upper: _mm512_add_epi16(_mm512_shldi_epi16::<12>(high, low), carry), lower }
        }
    }
}

/// Encodes one group of each of `N` blocks, last row to first.
///
/// # Safety
/// Of the words as many must be free as the groups have symbols.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,popcnt")]
#[allow(clippy::undocumented_unsafe_blocks)] // not seen through macros
unsafe fn encode_group<const N: usize, const BITS: u32, const ROUNDS: usize>(
    states: &mut [States; N],
    words: &[*mut u16; N],
    room: &mut [usize; N],
    tables: &[&EncodeWords; N],
    groups: &[&[[u8; LANES]; ROWS]; N],
) {
    // SAFETY: as the caller promises; a row is 32 bytes.
    unsafe {
        for row in (0..ROWS).rev() {
            let none = _mm512_setzero_si512();
            let symbols = _mm256_setzero_si256();
            let mut coding =
                [Coding { symbols, freq: none, first: none, lower: none, quotient: [none; 2] }; N];
            each_block!(N, |i| {
                let symbols = _mm256_loadu_si256(groups[i][row].as_ptr().cast());
                let (x, room) = (&states[i], &mut room[i]);
                coding[i] = Coding::divide::<BITS>(x, tables[i], symbols, words[i], room);
            });
            each_block!(N, |i| states[i] = coding[i].finish::<BITS, ROUNDS>(tables[i]));
        }
    }
}

/// Encodes the last groups of each block, as many as the shortest one has, and takes them off: of
/// the words those before `begin` are free.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,popcnt")]
pub(super) fn encode<const N: usize>(head: &Head, jobs: &mut [EncodeJob<'_>; N]) {
    assert!(jobs.iter().all(|job| *job.begin <= job.words.len()), "free words");
    assert!(jobs.iter().all(|job| *job.begin >= job.symbols.len()), "a word a symbol");
    let groups = jobs.each_ref().map(|job| {
        let rows = job.symbols.as_chunks::<LANES>().0;
        rows.as_chunks::<ROWS>().0
    });
    let group_tables = jobs.each_ref().map(|job| job.group_tables);
    let mut states = jobs.each_ref().map(|job| States::load(job.states));
    let mut room = jobs.each_ref().map(|job| *job.begin);
    let words = jobs.each_mut().map(|job| job.words.as_mut_ptr());
    let mut left = groups.map(<[_]>::len);
    for _ in 0..left.into_iter().min().unwrap_or(0) {
        left = left.map(|left| left - 1);
        let tables = std::array::from_fn(|i| head.encode_words(group_tables[i][left[i]]));
        let groups = std::array::from_fn(|i| &groups[i][left[i]]);
        macro_rules! group {
            ($bits:literal, $rounds:literal) => {{
                let (states, room) = (&mut states, &mut room);
                // SAFETY: there is a word for each symbol.
                unsafe { encode_group::<N, $bits, $rounds>(states, &words, room, &tables, &groups) }
            }};
        }
        // Most tables take one step of search or two, none more than six.
        let rounds = tables.iter().map(|table| table.ranks.rounds).max().unwrap_or(0);
        match (head.symbol_bits, rounds) {
            (5, ..=1) => group!(5, 1),
            (5, 2) => group!(5, 2),
            (5, _) => group!(5, 6),
            (6, ..=1) => group!(6, 1),
            (6, 2) => group!(6, 2),
            (6, _) => group!(6, 6),
            (7, _) => group!(7, 0),
            _ => group!(8, 0),
        }
    }
    for (i, job) in jobs.iter_mut().enumerate() {
        states[i].store(job.states);
        *job.begin = room[i];
        job.symbols = groups[i][..left[i]].as_flattened().as_flattened();
    }
}
