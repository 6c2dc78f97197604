//! Prepares a bf16 tensor in ANS form (FORMAT.md section 7) for the kernel `rans`: the unchanged
//! payload, and separate arrays of tables, states and offsets. [`AnsView`] has validated all of it,
//! except for the words and the end states, which the kernel checks.
#![warn(clippy::unwrap_used)]

use std::borrow::Cow;

use bigsmall_codec::{AliasBucket, AliasEntry, AnsBlock, AnsView, CodedBlock, store_raw};
use bigsmall_format::{EncodedTensor, EncodingId, Error, MAX_BLOCK_UNITS, Result, Rule};

/// Units of a group.
const GROUP: usize = 256;
/// Words that describe a block: see [`AnsPlan::blocks`].
pub(crate) const BLOCK_WORDS: usize = 8 + 32 + MAX_BLOCK_UNITS / GROUP / 4;
// As `rans.wgsl` has it.
const _: () = assert!(BLOCK_WORDS == 168);

/// A tensor in ANS form, laid out for the kernel `rans`.
pub(crate) struct AnsPlan {
    /// Mantissa bits in the coded field.
    pub(crate) m: u32,
    pub(crate) symbol_bits: u32,
    /// The field of a symbol s > 0 is base + s.
    pub(crate) base: u32,
    /// The field of symbol 0.
    pub(crate) first: u32,
    pub(crate) n_units: u64,
    /// Units of a full block.
    pub(crate) block_units: usize,
    /// For each block 8 words: kind (0 raw, 1 constant, 2 coded), number of groups, byte offset of
    /// the words, number of words, byte offset of the residual (raw: of the values; constant: the
    /// value itself), number of units, two spare. Then 32 states, then the table index of each
    /// group, a byte each.
    pub(crate) blocks: Vec<u32>,
    /// For each table and bucket 5 words: split; frequency | symbol << 16 and rank minus slot of
    /// the bucket's own symbol; the same two for its donor.
    pub(crate) tables: Vec<u32>,
    /// The index of a unit, and the field that replaces the decoded one; or, with bit 31 set, the
    /// whole unit.
    pub(crate) patches: Vec<[u32; 2]>,
}

impl AnsPlan {
    /// Prepares a BF16 tensor. It must be shorter than 2 GiB both encoded and decoded, since the
    /// kernel counts bytes in 31 bits.
    ///
    /// # Errors
    /// Those of [`AnsView`].
    pub(crate) fn new(tensor: &EncodedTensor) -> Result<Self> {
        let spec = tensor.spec();
        let view = AnsView::new(tensor)?;
        let mut plan = AnsPlan {
            m: view.mantissa_bits(),
            symbol_bits: view.symbol_bits(),
            base: u32::from(view.base()),
            first: u32::from(view.first()),
            n_units: spec.n_units(),
            block_units: spec.block_units(),
            blocks: Vec::with_capacity(view.n_blocks() as usize * BLOCK_WORDS),
            tables: view
                .tables()
                .flat_map(|table| table.buckets())
                .flat_map(bucket_words)
                .collect(),
            patches: Vec::new(),
        };
        for index in 0..view.n_blocks() {
            let n_units = spec.block_byte_len(index) as u32 / 2;
            match view.block(index)? {
                AnsBlock::Raw { offset, .. } => {
                    plan.blocks.extend([0, 0, 0, 0, offset as u32, n_units]);
                }
                AnsBlock::Constant { unit } => {
                    let unit = unit.iter().rev().fold(0, |unit, &b| unit << 8 | u32::from(b));
                    plan.blocks.extend([1, 0, 0, 0, unit, n_units]);
                }
                AnsBlock::Coded(block) => {
                    plan.coded(&block, n_units, index as u32 * spec.block_units() as u32);
                }
                // `readable` left none.
                _ => {
                    let kinds = "a block that is raw, constant or entropy coded";
                    return Err(Error::new(Rule::SpecMismatch).expected(kinds));
                }
            }
            plan.blocks.resize((index as usize + 1) * BLOCK_WORDS, 0);
        }
        Ok(plan)
    }

    fn coded(&mut self, block: &CodedBlock<'_>, n_units: u32, first_unit: u32) {
        let n_words = block.words().len() as u32;
        self.blocks.extend([2, block.n_groups() as u32, block.words_offset() as u32, n_words]);
        self.blocks.extend([block.residual_offset() as u32, n_units, 0, 0]);
        self.blocks.extend(block.states());
        self.blocks.extend(
            block
                .group_tables()
                .chunks(4)
                .map(|four| four.iter().rev().fold(0, |word, &table| word << 8 | u32::from(table))),
        );
        self.patches.extend(
            block.exceptions().map(|e| [first_unit + e.position as u32, u32::from(e.field)]),
        );
        let tail = first_unit + (block.n_groups() * GROUP) as u32;
        let units = block.tail().as_chunks::<2>().0.iter().map(|u| u16::from_le_bytes(*u));
        self.patches.extend((tail..).zip(units).map(|(at, unit)| [at, u32::from(unit) | 1 << 31]));
    }
}

/// The tensor without blocks that the kernel does not read: they are decoded here, on the host, and
/// stored raw. As it is if it has none, or another encoding.
///
/// # Errors
/// Those of decoding.
pub(crate) fn readable(tensor: &EncodedTensor) -> Result<Cow<'_, EncodedTensor>> {
    if tensor.encoding() != EncodingId::Ans {
        return Ok(Cow::Borrowed(tensor));
    }
    store_raw(tensor, |block| {
        matches!(block, AnsBlock::Raw { .. } | AnsBlock::Constant { .. } | AnsBlock::Coded(_))
    })
}

/// A bucket as the words of [`AnsPlan::tables`].
fn bucket_words(AliasBucket { split, own, donor, .. }: AliasBucket) -> [u32; 5] {
    let side =
        |e: AliasEntry| [u32::from(e.freq) | u32::from(e.symbol) << 16, i32::from(e.delta) as u32];
    let ([own, own_delta], [donor, donor_delta]) = (side(own), side(donor));
    [split, own, own_delta, donor, donor_delta]
}

#[cfg(test)]
mod tests {
    use bigsmall_codec::{Ans, Level};
    use bigsmall_format::{Dtype, TensorSpec, encode_tensor};

    use super::*;

    /// Blocks of a kind that the kernel does not support are sent to it decoded.
    #[test]
    fn other_kinds_are_decoded() {
        let pruned = |i: u32| if i.is_multiple_of(3) { 0x3c00 + i as u16 % 64 } else { 0 };
        // In the second half the same 250 units over and over.
        let unit = |i: u32| if i < 100_352 { pruned(i) } else { 0x3c00 + (i % 250) as u16 };
        let units: Vec<u8> = (0..200_000u32).flat_map(|i| unit(i).to_le_bytes()).collect();
        let spec = TensorSpec::new("pruned", Dtype::BF16, &[1000, 200]).expect("a valid shape");
        let tensor = encode_tensor(&Ans::default(), &spec, &units).expect("a valid tensor");
        assert_eq!([0, 1, 2].map(|i| tensor.block(i)[0]), [3, 3, 4], "masks, and DEFLATE");
        assert!(AnsPlan::new(&tensor).is_err());
        let decoded = readable(&tensor).expect("a valid tensor");
        assert_eq!([0, 1, 2].map(|i| decoded.block(i)[0]), [0; 3]);
        AnsPlan::new(&decoded).expect("blocks that the kernel reads");
        let mut back = vec![0; units.len()];
        decoded.decode_bytes(&Ans::default(), 0..400_000, &mut back).expect("a valid tensor");
        assert!(back == units);
        assert!(matches!(readable(&decoded), Ok(Cow::Borrowed(_))));
    }

    /// Units in the order of the classes of their columns go back to their places on the host.
    #[test]
    fn columns_are_decoded() {
        let noise = |i: u32| i.wrapping_mul(0x9e37_79b9) >> 24;
        let unit = |i: u32| (0x3c00 + i % 200 * 7 % 5 * 0x100 + noise(i)) as u16;
        let units: Vec<u8> = (0..200_000u32).flat_map(|i| unit(i).to_le_bytes()).collect();
        let spec = TensorSpec::new("columns", Dtype::BF16, &[1000, 200]).expect("a valid shape");
        let small = Ans::new(Level::Small);
        let tensor = encode_tensor(&small, &spec, &units).expect("a valid tensor");
        assert_eq!([0, 1, 2, 3].map(|i| tensor.block(i)[0]), [5; 4], "columns");
        assert!(AnsPlan::new(&tensor).is_err());
        let decoded = readable(&tensor).expect("a valid tensor");
        assert_eq!([0, 1, 2, 3].map(|i| decoded.block(i)[0]), [0; 4]);
        AnsPlan::new(&decoded).expect("blocks that the kernel reads");
        let mut back = vec![0; units.len()];
        decoded.decode_bytes(&Ans::default(), 0..400_000, &mut back).expect("a valid tensor");
        assert!(back == units);
    }
}
