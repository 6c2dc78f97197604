//! Section 10 of FORMAT.md, written from its text: decodes blocks of encoding 3, one number at a
//! time.

use super::*;

/// What a block is decoded with.
#[derive(Clone, Debug)]
pub struct Head {
    dtype: Dtype,
    w: u32,
    log_segment: u32,
    classes: Classes,
    sparse: Classes,
    modes: u8,
    tables: Vec<Table>,
}

#[derive(Clone, Copy, Debug)]
struct Classes {
    n: i64,
    highest: i64,
}

#[derive(Clone, Debug)]
struct Table {
    k: u32,
    lo: u128,
    frequencies: Vec<u32>,
}

/// Exponent bits and mantissa bits; `None` for dtypes without an exponent.
fn float(dtype: Dtype) -> Option<(u32, u32)> {
    let bits = 8 * fields(dtype).0 as u32;
    match fields(dtype).2 {
        0 => None,
        e => Some((e, bits - 1 - e)),
    }
}

impl Head {
    /// Section 10.3.
    pub fn read(dtype: Dtype, bytes: &[u8]) -> Result<Head, Rule> {
        let one = Classes { n: 1, highest: 0 };
        if bytes.is_empty() {
            let (classes, sparse, tables) = (one, one, vec![]);
            return Ok(Head { dtype, w: 5, log_segment: 8, classes, sparse, modes: 0, tables });
        }
        let ensure = |ok: bool| if ok { Ok(()) } else { Err(Rule::DeltaHead) };
        ensure(bytes.len() >= 10)?;
        let two = |at: usize| i64::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
        ensure((5..=6).contains(&bytes[0]) && (8..=16).contains(&bytes[1]) && bytes[2] <= 8)?;
        let exponents = float(dtype).map_or(1, |(e, _)| 1 << e);
        let most = |n: i64| if float(dtype).is_some() { n } else { 1 };
        let classes = Classes { n: bytes[3].into(), highest: two(6) };
        let sparse = Classes { n: bytes[4].into(), highest: two(8) };
        ensure((1..=most(8)).contains(&classes.n) && (1..=most(16)).contains(&sparse.n))?;
        ensure(classes.highest < exponents && sparse.highest < exponents)?;
        ensure(i64::from(bytes[5]) < 1 << classes.n)?;
        let bits = 8 * fields(dtype).0 as u32;
        let mut reader = Reader::new(&bytes[10..]);
        let mut tables = vec![];
        for _ in 0..bytes[2] {
            let k = reader.pull(6).ok_or(Rule::DeltaHead)? as u32;
            ensure(k < bits)?;
            let lo = reader.pull(bits).ok_or(Rule::DeltaHead)?.into();
            let mut frequencies = vec![];
            for _ in 0..1 << bytes[0] {
                let length = reader.pull(4).ok_or(Rule::FrequencyTable)? as u32;
                frequencies.push(match length {
                    0 => 0,
                    _ => {
                        let low = reader.pull(length - 1).ok_or(Rule::FrequencyTable)?;
                        1 << (length - 1) | low as u32
                    }
                });
            }
            if frequencies.iter().sum::<u32>() != 4096 || frequencies.contains(&4096) {
                return Err(Rule::FrequencyTable);
            }
            tables.push(Table { k, lo, frequencies });
        }
        reader.finish(Rule::DeltaHead)?;
        let (w, log_segment) = (bytes[0].into(), bytes[1].into());
        Ok(Head { dtype, w, log_segment, classes, sparse, modes: bytes[5], tables })
    }

    fn bits(&self) -> u32 {
        8 * fields(self.dtype).0 as u32
    }

    fn class(&self, classes: Classes, base: u128) -> usize {
        let Some((e, m)) = float(self.dtype) else { return 0 };
        let exponent = (base >> m & ((1 << e) - 1)) as i64;
        (classes.n - 1).min(0.max(exponent + classes.n - 1 - classes.highest)) as usize
    }

    /// Section 10.4: the unit with that value.
    fn unit(&self, mode: u8, base: u128, value: u128) -> u128 {
        let (bits, top) = (self.bits(), 1u128 << (self.bits() - 1));
        let all = 2 * top - 1;
        let s = if float(self.dtype).is_some() { base & top } else { 0 };
        if mode == 1 {
            return (value >> 1 | (value & 1) << (bits - 1)) ^ s;
        }
        if float(self.dtype).is_none() {
            return (base + value) & all;
        }
        let order = |x: u128| if x < top { x + top } else { all - x };
        // Every number is o(x) of one x.
        let wanted = (order(base ^ s) + value) & all;
        let x = if wanted >= top { wanted - top } else { all - wanted };
        assert_eq!(order(x), wanted);
        x ^ s
    }
}

fn numbers(bytes: &[u8], unit_bytes: usize) -> Vec<u128> {
    let number = |unit: &[u8]| unit.iter().rev().fold(0, |n, &b| n << 8 | u128::from(b));
    bytes.chunks(unit_bytes).map(number).collect()
}

/// Section 10.5: the units of a block whose base's units are `base`.
pub fn decode(head: &Head, block: &[u8], base: &[u8]) -> Result<Vec<u8>, Rule> {
    let unit_bytes = fields(head.dtype).0;
    let of_base = numbers(base, unit_bytes);
    let units = match block.first() {
        None => return Ok(base.to_vec()),
        Some(0) => {
            let zeros = block.iter().skip(1).take(7).all(|&b| b == 0);
            return match block.len() == 8 + base.len() && zeros {
                true => Ok(block[8..].to_vec()),
                false => Err(Rule::DeltaBlock),
            };
        }
        Some(1) => decode_coded(head, block, &of_base)?,
        Some(2) => decode_sparse(head, Classes { n: 1, highest: 0 }, block, &of_base)?,
        Some(3) => decode_sparse(head, head.sparse, block, &of_base)?,
        Some(_) => return Err(Rule::DeltaBlock),
    };
    Ok(units.iter().flat_map(|unit| unit.to_le_bytes().into_iter().take(unit_bytes)).collect())
}

fn golomb(reader: &mut Reader, g: u32) -> Option<u128> {
    let length = reader.unary()?;
    if length > 63 {
        return None;
    }
    let a = 1u128 << length | u128::from(reader.pull(length as u32)?);
    Some((a - 1) << g | u128::from(reader.pull(g)?))
}

fn decode_sparse(
    head: &Head,
    classes: Classes,
    block: &[u8],
    base: &[u128],
) -> Result<Vec<u128>, Rule> {
    let mut units = base.to_vec();
    let mut reader = Reader::new(&block[1..]);
    for class in 0..classes.n as usize {
        let of_class: Vec<usize> =
            (0..base.len()).filter(|&i| head.class(classes, base[i]) == class).collect();
        let mut read = || -> Option<()> {
            let count = golomb(&mut reader, 0).filter(|&n| n <= of_class.len() as u128)?;
            if count == 0 {
                return Some(());
            }
            let q = reader.pull(5)? as u32;
            let t = reader.pull(4)? as u32;
            let g = reader.pull(4)? as u32;
            let rice = |reader: &mut Reader, q: u32| -> Option<u128> {
                Some(u128::from(reader.unary()?) << q | u128::from(reader.pull(q)?))
            };
            let mut run = rice(&mut reader, t).filter(|&run| run <= count)?;
            let mut next = 0;
            for left in (0..count).rev() {
                let rank = next + rice(&mut reader, q)?;
                next = rank + 1;
                let place = *of_class.get(usize::try_from(rank).ok()?)?;
                let negative = reader.pull(1)? == 1;
                let mut difference = 1;
                if run > 0 {
                    run -= 1;
                } else {
                    difference = golomb(&mut reader, g)? + 2;
                    if left > 0 {
                        run = rice(&mut reader, t).filter(|&run| run <= left)?;
                    }
                }
                let all = (1u128 << head.bits()) - 1;
                let value = if negative { difference.wrapping_neg() } else { difference } & all;
                units[place] = head.unit(0, base[place], value);
            }
            Some(())
        };
        read().ok_or(Rule::DeltaChanges)?;
    }
    reader.finish(Rule::DeltaChanges)?;
    Ok(units)
}

fn decode_coded(head: &Head, block: &[u8], base: &[u128]) -> Result<Vec<u128>, Rule> {
    let n_groups = base.len() / GROUP;
    if n_groups == 0 || head.tables.is_empty() {
        return Err(Rule::DeltaBlock);
    }
    let mut rest = block;
    let mut take = |n: usize| {
        let (taken, after) = rest.split_at_checked(n).ok_or(Rule::DeltaBlock)?;
        rest = after;
        Ok::<_, Rule>(taken)
    };
    let header = take(8)?;
    let carried = usize::from(header[1]);
    let n_words = u32::from_le_bytes(header[4..8].try_into().unwrap()) as usize;
    if carried > 64 || header[2..4] != [0, 0] || n_words > GROUP * n_groups {
        return Err(Rule::DeltaBlock);
    }
    let lengths = take(16)?;
    let bits: usize = lengths.iter().map(|&b| 32 + usize::from(b % 16 + b / 16)).sum();
    let mut reader = Reader::new(take(bits.div_ceil(8).next_multiple_of(4))?);
    let mut states: Vec<u32> = vec![];
    for lane in 0..LANES {
        let length = lengths[lane / 2] >> (lane % 2 * 4) & 15;
        let x = reader.pull(16).unwrap() as u32;
        let y = reader.pull(length.into()).unwrap() as u32;
        states.push((((1 << length) + y) << 16) + x);
    }
    let mut padding = reader.rest_is_padding(4);
    let words = take((2 * n_words).next_multiple_of(4))?;
    let words: Vec<u16> = words.chunks(2).map(|w| u16::from_le_bytes([w[0], w[1]])).collect();
    padding &= words[n_words..].iter().all(|&w| w == 0);
    let id_bits = ceil_log2(head.tables.len());
    let segments = (n_groups * GROUP).div_ceil(1 << head.log_segment);
    let mut reader = Reader::new(take((segments * id_bits as usize).div_ceil(32) * 4)?);
    let ids: Vec<usize> = (0..segments).map(|_| reader.pull(id_bits).unwrap() as usize).collect();
    if ids.iter().any(|&id| id >= head.tables.len()) {
        return Err(Rule::AnsTableId);
    }
    padding &= reader.rest_is_padding(4);
    if !padding {
        return Err(Rule::PaddingNotZero);
    }
    let table_of = |value: usize| &head.tables[ids[value >> head.log_segment]];
    let mut lows = vec![];
    for group in 0..n_groups {
        let k = table_of(group * GROUP).k;
        lows.extend(unpack_lows(take(32 * k as usize)?, k, k));
    }
    let tail =
        numbers(take(base.len() % GROUP * (head.bits() / 8) as usize)?, head.bits() as usize / 8);
    let mut extra = rest.to_vec();

    let aliases: Vec<Alias> = head.tables.iter().map(|t| alias(&t.frequencies)).collect();
    let mut symbols = vec![0; n_groups * GROUP];
    let mut used = 0;
    for row in 0..n_groups * GROUP / LANES {
        let alias = &aliases[ids[(row * LANES) >> head.log_segment]];
        for lane in 0..LANES {
            let (symbol, frequency, rank) = alias.slots[(states[lane] % 4096) as usize];
            let mut x = frequency * (states[lane] >> 12) + rank;
            if x < 1 << 16 {
                x = x << 16 | u32::from(*words.get(used).filter(|_| used < n_words).unwrap_or(&0));
                used += 1;
            }
            states[lane] = x;
            symbols[row * LANES + lane] = symbol as u32;
        }
    }
    if used != n_words {
        return Err(Rule::AnsWords);
    }
    let ends: Vec<u8> = states.iter().flat_map(|&x| (x as u16).to_le_bytes()).collect();
    if states.iter().any(|&x| x >> 16 != 1) || ends[carried..].iter().any(|&b| b != 0) {
        return Err(Rule::AnsEndState);
    }
    extra.extend(&ends[..carried]);

    let mut reader = Reader::new(&extra);
    let (near, logs) = (1u32 << (head.w - 1), 1u32 << (head.w - 2));
    let all = (1u128 << head.bits()) - 1;
    let mut values = vec![];
    for (i, &q) in symbols.iter().enumerate() {
        let table = table_of(i);
        let mut pull = |n: u32| reader.pull(n).map(i128::from).ok_or(Rule::DeltaBlock);
        let y = match q {
            _ if q < near => q.into(),
            _ if q == 2 * near - 1 => pull(head.bits() - table.k)?,
            _ if q < near + logs => i128::from(near) - 1 + (1 << (q - near)) + pull(q - near)?,
            _ => -((1 << (q - near - logs)) + pull(q - near - logs)?),
        };
        let value = table.lo as i128 + (y << table.k) + i128::from(lows[i]);
        values.push(value as u128 & all);
    }
    reader.finish(Rule::DeltaBlock)?;

    let mut values = values.into_iter();
    let mut units = base[..n_groups * GROUP].to_vec();
    for class in 0..head.classes.n as usize {
        for (unit, &base) in units.iter_mut().zip(base) {
            if head.class(head.classes, base) == class {
                *unit = head.unit(head.modes >> class & 1, base, values.next().unwrap());
            }
        }
    }
    units.extend(tail);
    Ok(units)
}
