//! The sections of a coded block (FORMAT.md section 10.5): the only parser of them. Every part is
//! checked before it is used, but for the words, the end states and the extra bits, which only
//! decoding can check.
#![warn(clippy::unwrap_used)]

use bigsmall_format::{Error, Result, Rule};

use super::head::Head;
use crate::bits::BitReader;
use crate::block::{HEADER, MAX_GROUPS, read_states};
use crate::kernels::LANES;
use crate::planes::GROUP;
use crate::units::low_len;

/// Bytes of extra bits that the end states carry, at most: 16 bits a lane.
pub(crate) const CARRIED: usize = 2 * LANES;

/// The sections of a coded block, each of its exact length.
pub(crate) struct Sections<'a> {
    pub(crate) n_groups: usize,
    pub(crate) states: [u32; LANES],
    /// Everything from the words to the end of the block, so that a backend may read past the last
    /// word.
    pub(crate) from_words: &'a [u8],
    pub(crate) n_words: usize,
    pub(crate) group_tables: [u8; MAX_GROUPS],
    pub(crate) lows: &'a [u8],
    pub(crate) tail: &'a [u8],
    /// The extra bits without the bytes that the end states carry.
    pub(crate) extra: &'a [u8],
    /// How many bytes these carry.
    pub(crate) n_carried: usize,
}

impl<'a> Sections<'a> {
    /// Reads the sections of a block of `n_units` units.
    pub(crate) fn read(head: &Head, block: &'a [u8], n_units: usize) -> Result<Sections<'a>> {
        let length = |expected: usize| {
            Error::new(Rule::DeltaBlock)
                .expected(format!("{expected} bytes or more"))
                .found(block.len())
        };
        let n_groups = n_units / GROUP;
        let (&[_, n_carried, r0, r1, w0, w1, w2, w3], mut rest) =
            block.split_first_chunk::<HEADER>().ok_or_else(|| length(HEADER))?;
        let n_words = u32::from_le_bytes([w0, w1, w2, w3]) as usize;
        let n_carried = usize::from(n_carried);
        let wrong = |at: u64, expected: String, found: usize| {
            Error::new(Rule::DeltaBlock).at(at).expected(expected).found(found)
        };
        if n_groups == 0 || head.tables.is_empty() {
            return Err(wrong(0, "256 units or more, and a head with tables".into(), n_units));
        }
        if n_carried > CARRIED || r0 != 0 || r1 != 0 {
            return Err(wrong(1, format!("at most {CARRIED}, and zeros"), n_carried));
        }
        if n_words > n_groups * GROUP {
            return Err(wrong(4, format!("at most {} words", n_groups * GROUP), n_words));
        }
        let mut take = |n: usize| {
            let (taken, after) =
                rest.split_at_checked(n).ok_or_else(|| length(block.len() - rest.len() + n))?;
            rest = after;
            Ok::<_, Error>((taken, after))
        };
        let (lengths, _) = take(LANES / 2)?;
        let n_bits: usize =
            lengths.iter().map(|&b| 32 + usize::from(b >> 4) + usize::from(b & 15)).sum();
        let (states, from_words) = take(n_bits.div_ceil(8).next_multiple_of(4))?;
        let states = read_states(lengths, states, Rule::DeltaBlock)?;
        let (words, _) = take((2 * n_words).next_multiple_of(4))?;
        let n_segments = n_groups.div_ceil(head.segment_groups());
        let id_bits = n_segments * head.table_id_bits() as usize;
        let (ids, _) = take(id_bits.div_ceil(8).next_multiple_of(4))?;
        let mut group_tables = [0; MAX_GROUPS];
        let mut bits = BitReader::new(ids);
        for segment in group_tables[..n_groups].chunks_mut(head.segment_groups()) {
            let id = bits.pull(head.table_id_bits()).unwrap_or(0);
            if id as usize >= head.tables.len() {
                return Err(Error::new(Rule::AnsTableId)
                    .expected(format!("below {}", head.tables.len()))
                    .found(id));
            }
            segment.fill(id as u8);
        }
        bits.finish(4, Rule::DeltaBlock)?;
        if words[2 * n_words..].iter().any(|&b| b != 0) {
            return Err(Error::new(Rule::PaddingNotZero));
        }
        let shift = |&id: &u8| head.tables[usize::from(id)].shift;
        let (lows, _) = take(group_tables[..n_groups].iter().map(|id| low_len(shift(id))).sum())?;
        let (tail, extra) = take((n_units - n_groups * GROUP) * head.unit_bytes)?;
        Ok(Sections {
            n_groups,
            states,
            from_words,
            n_words,
            group_tables,
            lows,
            tail,
            extra,
            n_carried,
        })
    }
}
