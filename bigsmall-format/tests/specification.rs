//! FORMAT.md and this crate say the same: vectors, rules and limits are read out of that file.
#![allow(clippy::unwrap_used)]

use bigsmall_format::internal::xxh3;
use bigsmall_format::*;
use bigsmall_testing::specification::{self, hex, vector};

#[test]
fn checksums() {
    let text = specification::text();
    let mut wrong = Vec::new();
    for n in [0usize, 3, 7, 16, 100, 200, 240, 2000] {
        let bytes: Vec<u8> = (0..n).map(|i| (31 * i) as u8).collect();
        let ours = format!("xxh3 of {n} bytes: {:#018x}", xxh3(&bytes));
        if !text.contains(&format!("    {ours}\n")) {
            wrong.push(ours);
        }
    }
    assert!(wrong.is_empty(), "FORMAT.md should say\n{}", wrong.join("\n"));
}

#[test]
fn a_whole_shard() {
    let text = specification::text();
    let spec = TensorSpec::new("w", Dtype::U8, &[3]).unwrap();
    let encoded = encode_tensor(&Raw, &spec, &vec![1, 2, 3]).unwrap();
    let mut writer = internal::Assembler::synthesised(Vec::new(), &[spec]).unwrap();
    let md5 = 0x5289_df73_7df5_7326_fcdd_2259_7afb_1facu128;
    writer.tensor(&encoded, Some(md5.to_be_bytes())).unwrap();
    // SHA-256 of the length 56, `{"w":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}`, three
    // spaces, 1 2 3.
    let sha256 = [
        0xb2, 0x4b, 0x5d, 0x9f, 0x29, 0xa0, 0x2e, 0x3e, 0x7b, 0xc9, 0x69, 0x55, 0x4d, 0x23, 0xb7,
        0xe7, 0xdf, 0x98, 0x94, 0x19, 0x30, 0xbb, 0xe4, 0xef, 0x10, 0x81, 0x83, 0xd9, 0x8f, 0xa1,
        0xed, 0x96,
    ];
    let shard = writer.finish(sha256).unwrap();
    assert_eq!(vector(&text, "shard").concat(), hex(&shard));
    assert_eq!(Shard::open(shard).unwrap().sha256(), sha256);
}

/// The examples of section 3, and that equal blocks are as the text around them says.
#[test]
fn blocks_of_tensors() {
    let text = specification::text();
    let blocks = |n: u64| {
        let spec = TensorSpec::new("w", Dtype::U8, &[n]).unwrap();
        let (n_blocks, full) = (spec.n_blocks(), spec.block_units() as u64);
        let last = spec.block_byte_len(n_blocks - 1) as u64;
        assert_eq!((n_blocks - 1) * full + last, n, "{n}");
        assert!(last <= full && full <= MAX_BLOCK_UNITS as u64, "{n}");
        (n_blocks, full, last)
    };
    let mut examples = 0;
    for line in specification::section(&text, "3").lines() {
        let Some((n, rest)) = line.split_once(" units: ") else { continue };
        let (n_blocks, rest) = rest.split_once(" block").unwrap();
        let (_, last) = rest.split_once(", the last of ").unwrap();
        let number = |text: &str| text.trim().parse::<u64>().unwrap();
        let (found, _, found_last) = blocks(number(n));
        assert_eq!((found, found_last), (number(n_blocks), number(last)), "{line}");
        examples += 1;
    }
    assert_eq!(examples, 7);
    let near = (1..=32u64).flat_map(|i| (i << 17) - 300..(i << 17) + 300);
    for n in near.filter(|n| (MAX_BLOCK_UNITS as u64 + 1..=1 << 22).contains(n)) {
        let (n_blocks, full, last) = blocks(n);
        assert_eq!((n_blocks, full % 1024), (n.div_ceil(1 << 19) * 4, 0), "{n}");
        // Every other block has at most 1023 units more than its share.
        assert!(last + 1024 * n_blocks > full, "{n}");
    }
}

/// The table of all rules has the rules and classes of the code, and the sections that it names
/// have the rules. Those of sections 13 and 15 are compared in `bigsmall-io`.
#[test]
fn rules() {
    let text = specification::text();
    let rows = specification::rules(&text);
    let of_model = |row: &&specification::Row| matches!(row.sections[..], ["13" | "15"]);
    let mut found: Vec<_> = rows
        .iter()
        .filter(|row| !of_model(row))
        .map(|row| (row.rule.to_owned(), row.class.to_owned()))
        .collect();
    // Not about the bytes of a shard or frame: the machine, and what a caller asks for.
    let elsewhere = [Rule::Memory, Rule::BackendMissing, Rule::EncodingRefuses];
    let of_bytes = |rule: &&Rule| {
        matches!(rule.class(), Class::Corrupt | Class::Unsupported | Class::Limit)
            && !elsewhere.contains(rule)
    };
    let mut expected: Vec<_> = Rule::ALL
        .iter()
        .filter(of_bytes)
        .map(|rule| (format!("{rule:?}"), format!("{:?}", rule.class())))
        .collect();
    found.sort();
    expected.sort();
    assert_eq!(found, expected);

    for row in &rows {
        for number in &row.sections {
            let section = specification::section(&text, number);
            let name = format!("`{}`", row.rule);
            assert!(section.contains(&name), "section {number} lacks {name}");
        }
    }
    // What stands in the text is a rule.
    let named = text.split('`').skip(1).step_by(2).filter(|word| {
        word.starts_with(|c: char| c.is_ascii_uppercase())
            && word.chars().all(|c| c.is_ascii_alphanumeric())
            && word.contains(|c: char| c.is_ascii_lowercase())
    });
    for name in named {
        assert!(rows.iter().any(|row| row.rule == name), "`{name}` is not in the table");
    }
}

#[test]
fn numbers() {
    let text = specification::text();
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let limits = Limits::default();
    assert_eq!((limits.max_header_bytes, limits.max_index_bytes), (100_000_000, 1 << 30));
    assert_eq!((limits.max_tensors, limits.max_rank, limits.max_name_bytes), (1 << 20, 64, 65_536));
    assert_eq!(MAX_BLOCK_UNITS, 131_072);
    for sentence in [
        "| bytes of the index of a shard | 2^30 | `IndexTooLarge` |",
        "| bytes of a safetensors header | 100,000,000 | `HeaderTooLarge` |",
        "| tensors of a file | 2^20 | `TooManyTensors` |",
        "| dimensions of a tensor | 64 | `RankTooLarge` |",
        "in UTF-8, after escapes are resolved | 65,536 | `NameTooLong` |",
        "| up to 2^17, and above 2^22 | 2^17 = 131,072 |",
    ] {
        assert!(text.contains(sentence), "FORMAT.md lacks `{sentence}`");
    }
    for &dtype in Dtype::ALL {
        let place = text.find(&format!("{dtype}")).unwrap_or_else(|| panic!("{dtype}"));
        let before = &text[..place];
        let bits = before.rfind(" bits: ").map(|at| before[..at].rsplit(' ').next().unwrap());
        assert_eq!(bits, Some(&*dtype.bits().to_string()), "{dtype}");
    }
}
