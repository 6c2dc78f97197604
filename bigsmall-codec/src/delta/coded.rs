//! The sections of a coded block (FORMAT.md section 10.5): the only parser of them. Every part is
//! checked before it is used, but for the words, the end states and the extra bits, which only
//! decoding can check.
#![warn(clippy::unwrap_used)]

use bigsmall_format::{Error, Result, Rule};

use super::head::Head;
use crate::block::{CARRIED, Cut, HEADER, MAX_GROUPS};
use crate::kernels::LANES;
use crate::planes::GROUP;
use crate::units::low_len;

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
        let n_groups = n_units / GROUP;
        let mut cut = Cut::new(block, Rule::DeltaBlock);
        let fixed = cut.take(HEADER)?;
        let n_words = u32::from_le_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]) as usize;
        let n_carried = usize::from(fixed[1]);
        let wrong = |at: u64, expected: String, found: usize| {
            Error::new(Rule::DeltaBlock).at(at).expected(expected).found(found)
        };
        if n_groups == 0 || head.tables.is_empty() {
            return Err(wrong(0, "256 units or more, and a head with tables".into(), n_units));
        }
        if n_carried > CARRIED || fixed[2..4] != [0, 0] {
            return Err(wrong(1, format!("at most {CARRIED}, and zeros"), n_carried));
        }
        if n_words > n_groups * GROUP {
            return Err(wrong(4, format!("at most {} words", n_groups * GROUP), n_words));
        }
        let states = cut.take_states()?;
        let from_words = cut.take_words(n_words)?;
        let n_segments = n_groups.div_ceil(head.segment_groups());
        let mut bits = cut.take_bits(n_segments * head.table_id_bits() as usize)?;
        let mut group_tables = [0; MAX_GROUPS];
        for segment in group_tables[..n_groups].chunks_mut(head.segment_groups()) {
            let id = bits.pull(head.table_id_bits()).unwrap_or(0);
            if id as usize >= head.tables.len() {
                return Err(Error::new(Rule::AnsTableId)
                    .expected(format!("below {}", head.tables.len()))
                    .found(id));
            }
            segment.fill(id as u8);
        }
        let shift = |&id: &u8| head.tables[usize::from(id)].shift;
        let lows = cut.take(group_tables[..n_groups].iter().map(|id| low_len(shift(id))).sum())?;
        let tail = cut.take((n_units - n_groups * GROUP) * head.unit_bytes)?;
        Ok(Sections {
            n_groups,
            states,
            from_words,
            n_words,
            group_tables,
            lows,
            tail,
            extra: cut.rest,
            n_carried,
        })
    }
}
