//! FORMAT.md section 7.7, from its text.

use bigsmall_codec::{Dtype, Rule};
use bigsmall_format::internal::xxh3;

use super::{GROUP, Head, decode, fields};

/// The units of every block of a page.
pub fn cut(n_units: usize) -> Vec<usize> {
    let groups = n_units / GROUP;
    let blocks = match (n_units, groups) {
        (0, _) => return vec![],
        (_, ..16) => 1,
        _ => 2 * n_units.div_ceil(131_072),
    };
    let mut units = vec![256 * (groups / blocks); blocks];
    units[0] = n_units - units[1..].iter().sum::<usize>();
    units
}

/// A page of these blocks, with a right checksum.
pub fn page(head: &[u8], byte_len: u32, blocks: &[Vec<u8>]) -> Vec<u8> {
    let mut out = vec![0; 8];
    out.extend(byte_len.to_le_bytes());
    out.extend(&xxh3(head).to_le_bytes()[..4]);
    blocks.iter().for_each(|block| out.extend((block.len() as u32).to_le_bytes()));
    out.resize(out.len().next_multiple_of(8), 0);
    for block in blocks {
        out.extend(block);
        out.resize(out.len().next_multiple_of(8), 0);
    }
    seal(&mut out);
    out
}

/// Renews the checksum.
pub fn seal(page: &mut [u8]) {
    let checksum = xxh3(&page[8..]);
    page[..8].copy_from_slice(&checksum.to_le_bytes());
}

/// The bytes that a page holds.
pub fn read(dtype: Dtype, head: &[u8], page: &[u8]) -> Result<Vec<u8>, Rule> {
    let ensure = |ok: bool, rule: Rule| if ok { Ok(()) } else { Err(rule) };
    let number =
        |at: usize| page.get(at..at + 4).map(|b| u32::from_le_bytes(b.try_into().unwrap()));
    ensure(page.len() >= 16, Rule::PageLength)?;
    ensure(xxh3(&page[8..]).to_le_bytes() == page[..8], Rule::PageChecksum)?;
    ensure(number(12) == Some(xxh3(head) as u32), Rule::PageTables)?;
    let byte_len = number(8).unwrap() as usize;
    let unit_bytes = fields(dtype).0;
    ensure(
        byte_len.is_multiple_of(unit_bytes) && byte_len / unit_bytes <= 1 << 24,
        Rule::PageLength,
    )?;
    let cut = cut(byte_len / unit_bytes);
    let mut at = 16 + (4 * cut.len()).next_multiple_of(8);
    let padding = page.get(16 + 4 * cut.len()..at).ok_or(Rule::PageLength)?;
    ensure(padding.iter().all(|&b| b == 0), Rule::PaddingNotZero)?;
    let head = Head::read(dtype, head)?;
    let mut out = vec![];
    for (i, &n_units) in cut.iter().enumerate() {
        let len = number(16 + 4 * i).unwrap() as usize;
        let end = at + len.next_multiple_of(8);
        let block = page.get(at..end).ok_or(Rule::PageLength)?;
        let (block, padding) = block.split_at(len);
        ensure(padding.iter().all(|&b| b == 0), Rule::PaddingNotZero)?;
        out.extend(decode(&head, block, n_units)?);
        at = end;
    }
    ensure(at == page.len(), Rule::PageLength)?;
    Ok(out)
}
