//! The test vectors of FORMAT.md section 7.6, read out of that file: neither can change without the other.

use bigsmall_format::{Dtype, EncodedTensor, TensorSpec, encode_tensor, xxh3};

use crate::Ans;
use crate::bits::{BitReader, BitWriter};
use crate::exceptions;
use crate::head::Head;
use crate::layout::Layout;
use crate::planes::{GROUP, pack, packed_len, spread, unpack};
use crate::table::{AliasTable, FrequencyTable};

/// The specification stands at the root of the repository and is no part of the published crate.
fn specification() -> Option<String> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let in_repository = root.join("crates/bigsmall-codec").exists();
    in_repository.then(|| std::fs::read_to_string(root.join("FORMAT.md")).unwrap())
}

/// The words of the vector `key`: behind `key:` in an indented line, and in the lines after it that are indented deeper. What
/// follows a `#` is comment.
fn vector<'a>(specification: &'a str, key: &str) -> Vec<&'a str> {
    let mut lines = specification.lines();
    let first = lines.by_ref().find_map(|line| {
        line.strip_prefix("    ")?.strip_prefix(key)?.strip_prefix(':')
    });
    let first = first.unwrap_or_else(|| panic!("FORMAT.md lacks the vector `{key}`"));
    let more = lines.take_while(|line| line.starts_with("        "));
    let code = |line: &'a str| line.split('#').next().unwrap_or("");
    std::iter::once(first).chain(more).flat_map(|line| code(line).split_whitespace()).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Compares what the code makes with the vectors, all of them before it fails.
#[derive(Default)]
struct Comparison {
    wrong: Vec<String>,
}

impl Comparison {
    fn check(&mut self, specification: &str, key: &str, ours: &str) {
        let theirs = vector(specification, key);
        let same = if key.starts_with("frame") || key.contains("bytes") || key.contains("begin") {
            theirs.concat() == ours
        } else {
            theirs == ours.split_whitespace().collect::<Vec<_>>()
        };
        if !same {
            self.wrong.push(format!("{key}: {ours}"));
        }
    }
}

fn numbers<T: std::fmt::Display>(of: impl IntoIterator<Item = T>) -> String {
    of.into_iter().map(|n| n.to_string()).collect::<Vec<_>>().join(" ")
}

#[test]
fn the_code_agrees_with_the_specification() {
    let Some(text) = specification() else { return };
    let mut compare = Comparison::default();

    // Frequency table and alias layout.
    let freqs: Vec<u32> = vector(&text, "frequencies").iter().map(|f| f.parse().unwrap()).collect();
    let mut bits = BitWriter::default();
    for &f in &freqs {
        let len = 32 - f.leading_zeros();
        bits.push(len, 4);
        bits.push(f & ((1 << len.saturating_sub(1)) - 1), len.saturating_sub(1));
    }
    let bytes = bits.finish();
    let table = FrequencyTable::read(&mut BitReader::new(&bytes), 32).unwrap();
    let mut written = BitWriter::default();
    table.write(&mut written);
    assert_eq!(written.finish(), bytes);
    compare.check(&text, "table bytes", &hex(&bytes));
    let alias = AliasTable::new(&table);
    compare.check(&text, "keep", &numbers((0..32).map(|b| alias.split[b] - 128 * b as u32)));
    compare.check(&text, "donor", &numbers(alias.donor.iter().map(|e| e.symbol)));
    let slots = [0, 1, 127, 128, 1279, 1280, 2000, 3000, 4095].map(|slot| {
        let word = alias.slots()[slot];
        format!("{slot}:{}:{}", word >> 24, word >> 12 & 0xfff)
    });
    compare.check(&text, "slots, as slot:symbol:rank", &slots.join(" "));

    // Planes.
    for n in 1..=8 {
        let values: [u8; GROUP] =
            std::array::from_fn(|i| spread((i * i / 8 % (1 << n)) as u8, n));
        let mut packed = vec![0; packed_len(n)];
        pack(&values, n, &mut packed);
        let mut back = [0; GROUP];
        unpack(&packed, n, &mut back);
        assert_eq!(back, values);
        compare.check(&text, &format!("packed {n}"), &format!("{:#018x}", xxh3(&packed)));
        if n == 3 {
            compare.check(&text, "packed 3 begins", &hex(&packed[..32]));
        }
    }
    let lows: Vec<u64> = (0..GROUP as u64).map(|i| i * 40503 % 2048 * 32).collect();
    let mut packed = Vec::new();
    crate::block::pack_lows(&lows, 16, 11, &mut packed);
    compare.check(&text, "low planes begin", &hex(&packed[..16]));
    compare.check(&text, "low planes", &format!("{:#018x}", xxh3(&packed)));

    // Exceptions.
    let layout = Layout::new(Dtype::BF16, 1).unwrap();
    let head = Head::new(1, layout, 5, (112, 112), 256, vec![], vec![table]);
    let listed: Vec<(u32, u16)> = vector(&text, "exceptions")
        .iter()
        .map(|pair| pair.split_once(':').unwrap())
        .map(|(position, field)| (position.parse().unwrap(), field.parse().unwrap()))
        .collect();
    let bytes = exceptions::write(&head, &listed, 3);
    compare.check(&text, "exception bytes", &hex(&bytes));
    let mut back = Vec::new();
    exceptions::read(&head, &bytes, 3, listed.len(), 512, |position, field| {
        back.push((position as u32, field));
        Ok(())
    })
    .unwrap();
    assert_eq!(back, listed);

    // A whole frame. Its bytes are what the encoder chose once; what counts is that they are read for ever.
    let units: Vec<u8> = (0..261u16)
        .map(|i| match i {
            7 => 0x0001,
            100 => 0x7fc1,
            _ => i % 2 << 15 | (240 + (i % 256).count_ones() as u16) << 6 | 29 * i % 64,
        })
        .flat_map(u16::to_le_bytes)
        .collect();
    let spec = TensorSpec::new("v", Dtype::BF16, &[261]).unwrap();
    let ours = encode_tensor(&Ans::default(), &spec, &units, 1).unwrap().to_bytes();
    compare.check(&text, "frame", &hex(&ours));
    assert!(compare.wrong.is_empty(), "FORMAT.md should say\n{}", compare.wrong.join("\n"));
    let frame: Vec<u8> = vector(&text, "frame")
        .concat()
        .as_bytes()
        .chunks(2)
        .map(|digits| u8::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap())
        .collect();
    let mut back = vec![0; units.len()];
    let tensor = EncodedTensor::from_bytes(&frame).unwrap();
    tensor.decode_bytes(&Ans::default(), 0..units.len() as u64, &mut back, 1).unwrap();
    assert_eq!(back, units);
}
