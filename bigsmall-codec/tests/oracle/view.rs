//! What [`AnsView`] gives, compared with what the oracle finds in the same bytes.

use bigsmall_codec::{AnsBlock, AnsView, CodedBlock, EncodedTensor, Rule};

use super::{
    Bits, Block, GROUP, Head, alias, ceil_log2, decode, fields, sections, within_columns, zeros,
};

/// The view accepts every block that the oracle decodes, with the same contents, and refuses what
/// the oracle refuses before it decodes lanes. The rule of a refused tensor, the first if several
/// are broken, or of one that only decoding refuses.
pub fn check(tensor: &EncodedTensor, same_rule: bool, what: &str) -> Result<(), Rule> {
    let spec = tensor.spec();
    let head = Head::read(spec.dtype(), tensor.head());
    let view = match (AnsView::new(tensor), &head) {
        (Ok(view), Ok(_)) => view,
        (Err(error), Err(rule)) => {
            assert_eq!(error.tensor(), Some(spec.name()), "{what}");
            assert!(!same_rule || error.rule() == *rule, "{what}: {error:?} {rule:?}");
            return Err(error.rule());
        }
        (view, _) => panic!("{what}: {view:?}, the oracle {head:?}"),
    };
    let head = head.unwrap();
    check_head(&view, &head, what);
    let mut outcome = Ok(());
    for index in 0..view.n_blocks() {
        let bytes = tensor.block(index);
        let n_units = spec.block_byte_len(index) / spec.dtype().unit_bytes();
        let decoded = decode(&head, bytes, n_units);
        match (view.block(index), decoded) {
            (Ok(block), Ok(units)) => {
                check_block(&head, tensor, bytes, n_units, &block, Some(&units), what);
            }
            (Ok(block), Err(rule @ (Rule::AnsWords | Rule::AnsEndState))) => {
                check_block(&head, tensor, bytes, n_units, &block, None, what);
                outcome = outcome.and(Err(rule));
            }
            // What only a decoded mask or stream can break.
            (
                Ok(AnsBlock::Zeros(_) | AnsBlock::Deflate { .. }),
                Err(rule @ (Rule::ZeroMask | Rule::PaddingNotZero | Rule::AnsDeflate)),
            ) => {
                outcome = outcome.and(Err(rule));
            }
            (Err(error), Err(rule)) => {
                // Decoding lanes comes before the exceptions, and the view does without it.
                let lanes = matches!(rule, Rule::AnsWords | Rule::AnsEndState);
                let expected = if lanes { Rule::AnsException } else { rule };
                assert!(!same_rule || error.rule() == expected, "{what}: {error:?} {rule:?}");
                assert_eq!(error.tensor(), Some(spec.name()), "{what}");
                let place = tensor.table().padded_block_range(index);
                assert!(error.offset().is_some_and(|at| place.contains(&at)), "{what}: {error:?}");
                outcome = outcome.and(Err(rule));
            }
            (Ok(block), Err(rule)) => panic!("{what}: {block:?}, the oracle {rule:?}"),
            (Err(error), Ok(_)) => panic!("{what}: {error:?}, the oracle decodes it"),
        }
    }
    assert_eq!(view.block(view.n_blocks()).unwrap_err().rule(), Rule::RangeOutOfBounds);
    outcome
}

fn check_head(view: &AnsView<'_>, head: &Head, what: &str) {
    let fields = [
        (view.mantissa_bits(), head.m),
        (view.symbol_bits(), head.w),
        (view.base().into(), head.base),
        (view.first().into(), head.first),
        (view.residual_bits(), head.residual_bits()),
        (view.low_bits(), head.low_bits()),
        (view.segment_units() as u32, 1 << head.log_segment),
        (view.tables().len() as u32, head.tables.len() as u32),
    ];
    assert!(fields.iter().all(|(found, expected)| found == expected), "{what}: {fields:?}");
    assert_eq!(view.column_classes(), head.columns, "{what}");
    for (table, freqs) in view.tables().zip(&head.tables) {
        assert!(table.frequencies().iter().map(|&f| u32::from(f)).eq(freqs.iter().copied()));
        let alias = alias(freqs);
        let c = 4096 / freqs.len() as u32;
        for (b, bucket) in (0..).zip(table.buckets()) {
            assert_eq!(bucket.split, c * b + alias.keep[b as usize], "{what}");
            for slot in c * b..c * (b + 1) {
                let entry = if slot < bucket.split { bucket.own } else { bucket.donor };
                let rank = slot as i32 + i32::from(entry.delta);
                let found = (usize::from(entry.symbol), u32::from(entry.freq), rank as u32);
                assert_eq!(found, alias.slots[slot as usize], "{what}: slot {slot}");
            }
        }
        assert_eq!(table.buckets().len(), freqs.len());
    }
}

/// `units` are those of a block that decodes.
fn check_block(
    head: &Head,
    tensor: &EncodedTensor,
    bytes: &[u8],
    n_units: usize,
    block: &AnsBlock<'_>,
    units: Option<&[u8]>,
    what: &str,
) {
    match block {
        AnsBlock::Raw { units: found, offset } => {
            assert_eq!((bytes[0], &bytes[8..]), (0, *found), "{what}");
            assert!(units.is_none_or(|units| units == *found), "{what}");
            assert!(tensor.payload()[*offset as usize..].starts_with(found), "{what}");
        }
        AnsBlock::Constant { unit } => {
            assert_eq!(unit.len(), fields(head.dtype).0);
            assert_eq!((bytes[0], &bytes[8..8 + unit.len()]), (1, *unit), "{what}");
            assert!(units.is_none_or(|units| units == unit.repeat(n_units)), "{what}");
        }
        AnsBlock::Coded(block) => {
            check_sections(head, tensor, block, sections(head, bytes, n_units).unwrap(), what);
            assert_eq!(block.n_groups(), n_units / GROUP);
        }
        AnsBlock::Deflate { stream, offset } => {
            assert_eq!((bytes[0], &bytes[8..]), (4, *stream), "{what}");
            assert!(tensor.payload()[*offset as usize..].starts_with(stream), "{what}");
        }
        AnsBlock::Zeros(block) => {
            let (mask, others, k) = zeros(bytes, n_units).unwrap();
            assert_eq!(block.n_others(), k, "{what}");
            let found = block.mask().unwrap();
            let mask_head = head.mask.as_ref().unwrap();
            check_block(mask_head, tensor, mask, n_units.div_ceil(8), &found, None, what);
            check_block(head, tensor, others, k, &block.others().unwrap(), None, what);
        }
        AnsBlock::Columns(block) => {
            let (first, within) = within_columns(head, bytes).unwrap();
            assert_eq!(block.first_column(), first, "{what}");
            let coded = block.within().unwrap();
            check_sections(head, tensor, &coded, sections(head, within, n_units).unwrap(), what);
        }
        _ => panic!("{what}: {block:?}"),
    }
}

fn check_sections(
    head: &Head,
    tensor: &EncodedTensor,
    block: &CodedBlock<'_>,
    expected: Block,
    what: &str,
) {
    // Written again from what the view gives, the sections are the same bytes.
    let mut found = Block { header: vec![2, 0, 0, 0, 0, 0, 0, 0], ..Block::default() };
    found.set_states(block.states());
    let words: Vec<u16> = block.words().iter().map(|w| u16::from_le_bytes(*w)).collect();
    found.set_words(&words);
    let exceptions: Vec<_> = block.exceptions().map(|e| (e.position, u32::from(e.field))).collect();
    assert_eq!(exceptions.len(), block.n_exceptions(), "{what}");
    found.set_exceptions(head, &exceptions, expected.header[1].into());
    let groups = (1usize << head.log_segment) / GROUP;
    let mut ids = Bits::default();
    for tables in block.group_tables().chunks(groups) {
        assert!(tables.iter().all(|t| *t == tables[0]), "{what}");
        ids.push(tables[0].into(), ceil_log2(head.tables.len()));
    }
    assert_eq!(block.group_low_widths().len(), block.n_groups());
    for widths in block.group_low_widths().chunks(groups) {
        assert!(widths.iter().all(|w| *w == widths[0]), "{what}");
        match head.low_widths.iter().position(|w| *w == widths[0]) {
            Some(id) => ids.push(id as u64, ceil_log2(head.low_widths.len())),
            None => assert!(head.low_bits() == 0 && widths[0] == 0, "{what}"),
        }
    }
    found.ids = ids.bytes(4);
    found.lows = block.low_planes().to_vec();
    found.residual = block.residual().to_vec();
    found.tail = block.tail().to_vec();
    assert!(found.bytes() == expected.bytes(), "{what}: {found:?} {expected:?}");
    let all = block.n_groups() * 32 * head.residual_bits() as usize;
    assert_eq!(block.residual().len() + block.carried_len(), all, "{what}");
    for (part, offset) in [
        (block.words().as_flattened(), block.words_offset()),
        (block.low_planes(), block.low_planes_offset()),
        (block.residual(), block.residual_offset()),
    ] {
        // The same bytes, not only equal ones.
        let place = &tensor.payload()[offset as usize..][..part.len()];
        assert!(part.is_empty() || std::ptr::eq(place, part), "{what}");
        assert_eq!(offset % 4, 0);
    }
}
