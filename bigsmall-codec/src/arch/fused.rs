//! What the kernels have in common that decode to units at once: which forms of units there are,
//! and the way through the groups of blocks.

use bigsmall_format::internal::{Ahead, prefetch};

use crate::arch::portable::Portable;
use crate::head::Head;
use crate::kernels::{Job, Kernels as _, LANES, Planes};
use crate::planes::{GROUP, packed_len};
use crate::table::{AliasTable, Buckets};
use crate::units::{low_len, widen_lows};

/// Rows of a group.
pub(super) const ROWS: usize = GROUP / LANES;

/// Bytes of the high bits, of which `residual_bits` are the residual: those of one byte leave at
/// most 3 of 8.
pub(super) const fn high_bytes(residual_bits: u32) -> usize {
    if residual_bits > 3 { 2 } else { 1 }
}

/// The bits of a residual in its byte: the sign at the top, the others at the bottom.
pub(super) const fn residual_mask(residual_bits: u32) -> u8 {
    0x80 | ((1u16 << (residual_bits - 1)) - 1) as u8
}

/// Whether the window of units of one byte is the whole field: then a symbol is its field.
pub(super) const fn symbols_are_fields(unit: usize, residual_bits: u32, symbol_bits: u32) -> bool {
    unit == 1 && residual_bits + symbol_bits == 8
}

/// Checks what [`symbols_are_fields`] says, in debug builds.
pub(super) fn check_fields<const UNIT: usize, const RESIDUAL: u32, const BITS: u32>(head: &Head) {
    let same = |s: u8| head.field(s) == u16::from(s);
    debug_assert!(!symbols_are_fields(UNIT, RESIDUAL, BITS) || (0..1 << BITS).all(same));
}

/// Calls `$decode::<unit bytes, residual bits, symbol bits, blocks>` for the head's form and the
/// number of jobs, one of `$blocks`; 0 for others. Every backend has the forms that stand here. It
/// lists those that others lack: unit bytes, high bytes, residual bits, symbol bits.
macro_rules! fused_forms {
    (
        $decode:ident::<$($blocks:literal),*>
        ($head:ident, $jobs:ident, $planes:ident, $units:ident, $ahead:ident)
        $(, ($unit:literal, $high:literal, $residual:literal, $symbol:literal))*
    ) => {{
        macro_rules! form {
            ($of_unit:literal, $of_residual:literal, $of_symbol:literal) => {
                match $jobs.len() {
                    $($blocks => {
                        let jobs = $jobs.try_into().expect("as many jobs");
                        $decode::<$of_unit, $of_residual, $of_symbol, $blocks>(
                            $head, jobs, $planes, $units, $ahead,
                        )
                    })*
                    _ => 0,
                }
            };
        }
        let layout = &$head.layout;
        match (layout.unit_bytes, layout.high_bytes, layout.residual_bits, $head.symbol_bits) {
            // bf16 and f32.
            (2, 2, 7, 5) => form!(2, 7, 5),
            (4, 2, 7, 5) => form!(4, 7, 5),
            (2, 2, 6, 6) => form!(2, 6, 6),
            (4, 2, 6, 6) => form!(4, 6, 6),
            // f16.
            (2, 1, 2, 5) => form!(2, 2, 5),
            (2, 1, 1, 6) => form!(2, 1, 6),
            // fp8 with four exponent bits, and with five.
            (1, 1, 3, 5) => form!(1, 3, 5),
            (1, 1, 2, 6) => form!(1, 2, 6),
            (1, 1, 2, 5) => form!(1, 2, 5),
            (1, 1, 1, 6) => form!(1, 1, 6),
            $(($unit, $high, $residual, $symbol) => form!($unit, $residual, $symbol),)*
            _ => 0,
        }
    }};
}
pub(super) use fused_forms;

/// Does something for each of at most 4 blocks. Not a loop: with more than two rounds, compilers
/// keep the loop, and the states in memory.
macro_rules! each_block {
    ($n:ident, |$i:ident| $work:expr) => {{
        macro_rules! block {
            ($place:literal) => {
                if $place < $n {
                    let $i = $place;
                    $work;
                }
            };
        }
        block!(0);
        block!(1);
        block!(2);
        block!(3);
    }};
}
pub(super) use each_block;

/// Planes of low bits, at most, of the forms that there are: those of f32.
const MOST_PLANES: usize = 2;

/// One group of a block, as pointers: kernels would check lengths row by row.
pub(super) struct Group<'a> {
    /// The next word. At first there is one for each unit of the group.
    pub(super) words: *const u16,
    pub(super) table: &'a Buckets,
    /// The packed residuals of the group.
    pub(super) residual: *const u8,
    /// The planes of all its low bits, each of 256 bytes; not used if there are none.
    pub(super) lows: *const u8,
    /// Its units.
    pub(super) units: *mut u8,
    /// The units two groups later, or the last ones.
    soon: *const u8,
}

impl Group<'_> {
    /// Prefetches `len` of the bytes that are written two groups later, from `at` on.
    ///
    /// # Safety
    /// The units of a group have at least `at + len` bytes.
    #[inline(always)]
    pub(super) unsafe fn prefetch(&self, at: usize, len: usize) {
        // SAFETY: `soon` has as many bytes as the units, which nothing reads or writes meanwhile.
        prefetch(unsafe { std::slice::from_raw_parts(self.soon.add(at), len) });
    }
}

/// Calls `decode` with group after group of `N` blocks of that form, as many as all have planes and
/// units for and as no kernel would read past a block; returns their number. With each row `decode`
/// prefetches as many lines as it is told: many at once use up the line-fill buffers that the
/// kernel's own loads need.
#[inline(always)]
pub(super) fn walk<const UNIT: usize, const RESIDUAL: u32, const N: usize>(
    tables: &[AliasTable],
    jobs: &mut [Job<'_>; N],
    planes: &[Planes<'_>],
    units: &mut [&mut [u8]],
    mut ahead: Ahead<'_>,
    mut decode: impl FnMut(&mut [Group<'_>; N], &mut Ahead<'_>, usize),
) -> usize {
    let each_unit = UNIT * GROUP;
    let each_residual = packed_len(RESIDUAL);
    let low_bits = const {
        assert!(UNIT - high_bytes(RESIDUAL) <= MOST_PLANES);
        8 * (UNIT - high_bytes(RESIDUAL)) as u32
    };
    let mut n = usize::MAX;
    for (planes, units) in planes.iter().zip(&*units) {
        n = n.min(planes.residual.len() / each_residual).min(units.len() / each_unit);
        n = n.min(planes.widths.len());
    }
    let lines = ahead.lines_a_step(n * ROWS);
    let group_tables = jobs.each_ref().map(|job| &job.group_tables[job.group..]);
    let mut lows: [_; N] = std::array::from_fn(|i| planes[i].lows);
    // Planes of the groups that keep fewer low bits.
    let mut rooms = [[0; MOST_PLANES * GROUP]; N];
    let mut each = units.iter_mut();
    let mut groups: [Group<'_>; N] = std::array::from_fn(|i| {
        let units = each.next().expect("N blocks");
        Group {
            // In a damaged block the position may be past all words: then there is no group.
            words: jobs[i].words.get(2 * jobs[i].position..).unwrap_or(&[]).as_ptr().cast(),
            table: tables[0].buckets(),
            residual: planes[i].residual.as_ptr(),
            lows: lows[i].as_ptr(),
            soon: units.as_ptr(),
            units: units.as_mut_ptr(),
        }
    });
    let mut group = 0;
    while group < n && jobs.iter().all(Job::has_group) {
        // The last groups prefetch the units of the last one once more.
        let soon = (group + 2).min(n - 1) - group;
        for (this, of_block) in groups.iter_mut().zip(group_tables) {
            this.table = tables[usize::from(of_block[group])].buckets();
            this.soon = this.units.wrapping_add(soon * each_unit);
        }
        if low_bits > 0 {
            for (i, this) in groups.iter_mut().enumerate() {
                let width = u32::from(planes[i].widths[group]);
                let (packed, rest) = lows[i].split_at(low_len(width));
                this.lows = packed.as_ptr();
                if width < low_bits {
                    let planes = &mut rooms[i][..low_len(low_bits)];
                    widen_lows(packed, width, planes);
                    this.lows = planes.as_ptr();
                }
                lows[i] = rest;
            }
        }
        decode(&mut groups, &mut ahead, lines);
        for (this, job) in groups.iter_mut().zip(&mut *jobs) {
            job.position = (this.words as usize - job.words.as_ptr() as usize) / 2;
            this.residual = this.residual.wrapping_add(each_residual);
            this.units = this.units.wrapping_add(each_unit);
        }
        group += 1;
    }
    jobs.iter_mut().for_each(|job| job.group += group);
    group
}

/// Calls `decode` with group after group of the symbols of `N` jobs, at most `n`, as long as no
/// kernel would read past a block; returns their number. `decode` gets the number of the group and,
/// for each job, its table and its next word. There is one word for each symbol.
#[inline(always)]
pub(super) fn walk_symbols<const N: usize>(
    tables: &[AliasTable],
    jobs: &mut [Job<'_>; N],
    n: usize,
    mut decode: impl FnMut(usize, &[&AliasTable; N], &mut [*const u16; N]),
) -> usize {
    let mut done = 0;
    while done < n && jobs.iter().all(Job::has_group) {
        let of_group = jobs.each_ref().map(|job| &tables[usize::from(job.group_tables[job.group])]);
        let mut words = jobs.each_ref().map(|job| job.words[2 * job.position..].as_ptr().cast());
        decode(done, &of_group, &mut words);
        for (job, words) in jobs.iter_mut().zip(words) {
            job.position = (words as usize - job.words.as_ptr() as usize) / 2;
            job.group += 1;
        }
        done += 1;
    }
    done
}

/// Decodes the groups of every job after the first `done`, job by job, where `decode` decodes those
/// of one job as long as there are words for it: then the last groups of the block, with zeros
/// behind its words.
#[inline(always)]
pub(super) fn decode_rest(
    head: &Head,
    jobs: &mut [Job<'_>],
    symbols: &mut [&mut [u8]],
    done: usize,
    decode: impl Fn(&mut Job<'_>, &mut [[[u8; LANES]; ROWS]]) -> usize,
) {
    for (job, symbols) in jobs.iter_mut().zip(symbols) {
        let mut groups = &mut symbols.as_chunks_mut().0.as_chunks_mut().0[done..];
        let done = decode(job, groups);
        groups = &mut groups[done..];
        let done = job.with_last_words(|job| decode(job, groups)).unwrap_or(0);
        let rest = groups[done..].as_flattened_mut().as_flattened_mut();
        Portable.decode_symbols(head, std::slice::from_mut(job), &mut [rest]);
    }
}
