//! Files that every reader must refuse, each with the rule that it breaks. Checksums are right,
//! unless they are what is wrong.

use bigsmall_codec::{Ans, Backend, Level};
use bigsmall_format::internal::xxh3;
use bigsmall_format::{
    Dtype, EncodedTensor, Result, Rule, TensorEncoding, TensorSpec, encode_tensor,
};
use bigsmall_tbe::{Tbe, Width};
use half::{bf16, f16};
use md5::{Digest as _, Md5};
use sha2::Sha256;

use super::{Xorshift, element, units, weights};
use crate::forge::{Forge, Frame, Record};

/// A file that must be refused.
#[derive(Debug)]
pub struct Refused {
    /// The file's name.
    pub name: String,
    /// The rule that it breaks.
    pub rule: Rule,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Every file that must be refused.
///
/// # Errors
/// Those of the encoders, on a bug.
///
/// # Panics
/// If a change of a bit that should break a rule does not.
pub fn refused() -> Result<Vec<Refused>> {
    let mut out = Vec::new();
    shards(&mut out);
    headers(&mut out);
    contents(&mut out)?;
    frames(&mut out);
    Ok(out)
}

/// The list of them: name, rule and class of each.
#[must_use]
pub(super) fn list(refused: &[Refused]) -> String {
    let line = |r: &Refused| format!("{} {:?} {:?}\n", r.name, r.rule, r.rule.class());
    refused.iter().map(line).collect()
}

const TWO: &str = concat!(
    r#"{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},"#,
    r#""b":{"dtype":"U8","shape":[3],"data_offsets":[3,6]}}"#
);

/// Two tensors of the bytes 1 2 3; the second shares the payload of the first.
fn two() -> Forge {
    let mut forge = Forge::new(TWO);
    let record = forge.add(0, &[], &[&[1, 2, 3]]);
    record.flags = 2;
    record.md5 = Some(Md5::digest([1, 2, 3]).into());
    forge.records.push(Record::shared(0));
    digest(&mut forge, &[1, 2, 3, 1, 2, 3]);
    forge
}

/// Sets the SHA-256 of the file that the shard restores to.
fn digest(forge: &mut Forge, data: &[u8]) {
    let digest = Sha256::new().chain_update((forge.header.len() as u64).to_le_bytes());
    forge.sha256 = digest.chain_update(&forge.header).chain_update(data).finalize().into();
}

/// A name, what is done to a sound file, and the rule that breaks.
type Case<T> = (&'static str, fn(&mut T), Rule);

/// The envelope, the index and its records.
const SHARDS: &[Case<Forge>] = &[
    ("magic-at-the-end", |f| f.magic[0] = 0, Rule::ShardMagic),
    ("magic-at-the-beginning", |f| f.prelude[7] = b'\r', Rule::ShardMagic),
    ("bytes-after", |f| f.after = vec![0; 8], Rule::ShardMagic),
    ("bytes-before", |f| f.before = vec![0; 8], Rule::IndexRange),
    ("version-0", |f| f.version = 0, Rule::VersionZero),
    ("version-65535", |f| f.version = 65_535, Rule::Version),
    ("required-feature", |f| f.required = 1 << 31, Rule::RequiredFeature),
    ("reserved-in-the-trailer", |f| f.reserved[5] = 1, Rule::ReservedNotZero),
    ("reserved-in-the-prelude", |f| f.prelude[15] = 3, Rule::ReservedNotZero),
    ("version-of-the-prelude", |f| f.prelude[8] = 2, Rule::ReservedNotZero),
    ("index-before-the-payloads", |f| f.index_offset = Some(8), Rule::IndexRange),
    ("index-too-long", |f| f.index_len = Some(u64::MAX), Rule::IndexRange),
    ("checksum-of-the-index", |f| f.checksum = Some(0x1234), Rule::IndexChecksum),
    ("records-without-bytes", |f| f.count = Some(1 << 20), Rule::IndexTruncated),
    ("one-record-counted", |f| f.count = Some(1), Rule::EntryCount),
    ("header-longer-than-the-index", |f| f.header_len = Some(1 << 40), Rule::IndexTruncated),
    ("bytes-after-the-records", |f| f.index_tail = vec![0; 8], Rule::IndexTrailing),
    ("too-many-tensors", |f| f.count = Some((1 << 20) + 1), Rule::TooManyTensors),
    ("flags-of-the-index", |f| f.flags = 2, Rule::ReservedNotZero),
    ("padding-of-the-header", |f| f.header_padding = b' ', Rule::PaddingNotZero),
    ("record-count", |f| f.records.push(Record::shared(0)), Rule::EntryCount),
    ("flags-of-a-record", |f| f.records[0].flags |= 1 << 7, Rule::ReservedNotZero),
    ("reserved-in-a-record", |f| f.records[0].reserved = 1, Rule::ReservedNotZero),
    ("place-of-a-payload", |f| f.records[0].place = 24, Rule::PayloadRange),
    ("length-of-a-payload", |f| f.records[0].length = 16, Rule::PayloadLength),
    ("payloads-beyond-the-index", payload_beyond, Rule::IndexRange),
    ("block-too-short", |f| f.records[0].lens[0] = 2, Rule::BlockLength),
    ("block-too-long", |f| f.records[0].lens[0] = 4103, Rule::BlockLength),
    ("shares-itself", |f| f.records[1].place = 1, Rule::SharedPayload),
    ("shares-a-shared-one", shares_shared, Rule::SharedPayload),
    ("shares-another-dtype", shares_another_dtype, Rule::SharedPayload),
    ("shared-with-an-encoding", |f| f.records[1].encoding = 1, Rule::ReservedNotZero),
    ("no-bases", |f| (f.required, f.bases) = (1, vec![0; 8]), Rule::BaseSection),
    ("hint-latin-1", |f| (f.required, f.bases) = (1, base(0, b"\xe9")), Rule::BaseSection),
    ("deep-base", |f| (f.required, f.bases) = (1, base(16, b"")), Rule::BaseDepth),
    ("delta-without-a-base", |f| f.records[0].encoding = 3, Rule::BaseRecord),
    ("raw-with-a-base", raw_with_a_base, Rule::BaseRecord),
    ("encoding-255", |f| f.records[0].encoding = 255, Rule::EncodingUnknown),
    ("tbe-of-u8", |f| f.records[0].encoding = 2, Rule::EncodingDtype),
    ("checksum-of-a-head", |f| f.records[0].head_hash ^= 1 << 63, Rule::HeadChecksum),
    ("checksum-of-a-block", |f| f.payloads[1] = 9, Rule::BlockChecksum),
    ("padding-of-a-block", padding_of_a_block, Rule::PaddingNotZero),
    ("padding-of-a-head", padding_of_a_head, Rule::PaddingNotZero),
    ("raw-with-a-head", raw_with_a_head, Rule::PayloadLength),
    ("raw-of-another-length", raw_of_another_length, Rule::BlockLength),
    ("md5", |f| f.records[0].md5 = Some([0; 16]), Rule::ContentDigest),
    ("sha-256", |f| f.sha256[31] ^= 1, Rule::ContentDigest),
];

fn shards(out: &mut Vec<Refused>) {
    for (name, damage, rule) in SHARDS {
        let mut forge = two();
        damage(&mut forge);
        out.push(Refused { name: format!("{name}.bs"), rule: *rule, bytes: forge.bytes() });
    }
    let mut other = |name: &str, rule, bytes| {
        out.push(Refused { name: name.into(), rule, bytes });
    };
    other("no-bytes.bs", Rule::ShardTooShort, vec![]);
    let magic = two().magic;
    other("magic-alone.bs", Rule::ShardTooShort, [[0; 8], magic].concat());
    other("python-package.bs", Rule::PythonPackageFile, [&b"BGSM"[..], &[1; 80]].concat());
    let header = TWO.as_bytes();
    let file = [&(header.len() as u64).to_le_bytes()[..], header, &[1, 2, 3, 1, 2, 3]].concat();
    other("safetensors.bs", Rule::SafetensorsFile, file);
    let mut empty_index = two();
    empty_index.index_offset = Some((16 + 8 + empty_index.index().len()) as u64);
    empty_index.index_len = Some(0);
    other("no-index.bs", Rule::IndexTruncated, empty_index.bytes());
}

/// A section of one base.
fn base(depth: u32, hint: &[u8]) -> Vec<u8> {
    let mut out = 1u64.to_le_bytes().to_vec();
    out.extend([7; 32]);
    out.extend(depth.to_le_bytes());
    out.extend((hint.len() as u32).to_le_bytes());
    out.extend(hint);
    out.resize(out.len().next_multiple_of(8), 0);
    out
}

fn raw_with_a_base(forge: &mut Forge) {
    (forge.required, forge.bases) = (1, base(0, b"hint"));
    forge.records[0].flags |= 4;
}

fn payload_beyond(forge: &mut Forge) {
    forge.payloads.extend([0; 8]);
}

fn shares_shared(forge: &mut Forge) {
    let c = r#","c":{"dtype":"U8","shape":[3],"data_offsets":[6,9]}}"#;
    forge.header.pop();
    forge.header.extend(c.bytes());
    forge.records.push(Record::shared(1));
}

fn shares_another_dtype(forge: &mut Forge) {
    let header = TWO.replace(r#""b":{"dtype":"U8""#, r#""b":{"dtype":"I8""#);
    forge.header = header.into_bytes();
}

fn padding_of_a_block(forge: &mut Forge) {
    forge.payloads[7] = 1;
    forge.records[0].hashes[0] = xxh3(&forge.payloads[..8]);
}

/// An ANS tensor whose head is not a multiple of 8 bytes long.
fn padding_of_a_head(forge: &mut Forge) {
    let head = ans_head();
    raw_again(forge, 1, &head, &[&[0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3]]);
    forge.payloads[head.len()] = 3;
}

/// A head of ANS for U8: 32 symbols, two tables, in both of which the first symbol has everything.
fn ans_head() -> Vec<u8> {
    let mut head = vec![0, 5, 8, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // Each in 140 bits: a frequency of 13 bits, 4096; then 31 frequencies of 0.
    head.push(13);
    head.extend([0; 16]);
    head.push(13 << 4);
    head.extend([0; 17]);
    head
}

fn raw_again(forge: &mut Forge, encoding: u8, head: &[u8], blocks: &[&[u8]]) {
    forge.payloads.clear();
    forge.records.clear();
    forge.add(encoding, head, blocks);
    forge.records.push(Record::shared(0));
}

fn raw_with_a_head(forge: &mut Forge) {
    raw_again(forge, 0, &[7], &[&[1, 2, 3]]);
}

fn raw_of_another_length(forge: &mut Forge) {
    raw_again(forge, 0, &[], &[&[1, 2, 3, 0]]);
}

/// Stored headers, each with a name and the rule that it breaks.
fn header_cases() -> Vec<(&'static str, String, Rule)> {
    let entry = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#"{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    let with =
        |more: &str| format!(r#"{{"w":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]{more}}}}}"#);
    let nested =
        |depth: usize| with(&format!(r#","x":{}{}"#, "[".repeat(depth - 2), "]".repeat(depth - 2)));
    let many: String = (0..65).map(|i| format!(r#","{i}":0"#)).collect();
    let twice = r#"{"w":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"#.to_owned()
        + r#""\u0077":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#;
    vec![
        ("space-first", format!(" {}", with("")), Rule::HeaderStart),
        ("an-array", "[]".into(), Rule::HeaderStart),
        ("cut-short", with("")[..20].into(), Rule::HeaderSyntax),
        ("text-after", with("") + "x", Rule::HeaderSyntax),
        ("lone-surrogate", with(r#","x":"\ud800""#), Rule::HeaderSyntax),
        ("too-deep", nested(101), Rule::HeaderSyntax),
        ("large-number", with(r#","x":-1e309"#), Rule::HeaderSyntax),
        ("shape-1.0", entry("U8", "[1.0]", "[0,1]"), Rule::HeaderSyntax),
        ("offset-1e0", entry("U8", "[1]", "[0,1e0]"), Rule::HeaderSyntax),
        ("offset-minus-0", entry("U8", "[1]", "[-0,1]"), Rule::HeaderSyntax),
        ("offset-2-64", entry("U8", "[1]", "[0,18446744073709551616]"), Rule::HeaderSyntax),
        ("metadata-number", r#"{"__metadata__":{"a":1}}"#.into(), Rule::HeaderSyntax),
        ("same-name", twice, Rule::HeaderDuplicate),
        ("same-key-inside", with(r#","x":{"a":1,"a":1}"#), Rule::HeaderDuplicate),
        ("no-offsets", r#"{"w":{"dtype":"U8","shape":[1]}}"#.into(), Rule::HeaderEntry),
        ("three-offsets", entry("U8", "[1]", "[0,1,1]"), Rule::HeaderEntry),
        ("65-other-fields", with(&many), Rule::HeaderEntry),
        ("65-dimensions", entry("U8", &format!("{:?}", [1; 65]), "[0,1]"), Rule::RankTooLarge),
        ("dtype", entry("F2", "[1]", "[0,1]"), Rule::DtypeUnknown),
        ("overflow", entry("U8", "[9223372036854775808,2]", "[0,0]"), Rule::ShapeOverflow),
        (
            "overflow-beside-0",
            entry("U8", "[0,4294967296,4294967296]", "[0,0]"),
            Rule::ShapeOverflow,
        ),
        ("half-a-byte", entry("F4", "[3]", "[0,1]"), Rule::SubByteTotal),
        ("gap", entry("U8", "[1]", "[1,2]"), Rule::DataRange),
        ("other-length", entry("U8", "[2]", "[0,1]"), Rule::DataRange),
    ]
}

fn headers(out: &mut Vec<Refused>) {
    for (name, json, rule) in header_cases() {
        let mut forge = Forge::new(&json);
        forge.add(0, &[], &[&[1]]);
        out.push(Refused { name: format!("header-{name}.bs"), rule, bytes: forge.bytes() });
    }
    let mut latin = Forge::new("{\"w\u{e9}\":0}");
    latin.header = b"{\"\xe9\":0}".to_vec();
    let name = "header-latin-1.bs".into();
    out.push(Refused { name, rule: Rule::HeaderSyntax, bytes: latin.bytes() });
}

/// Heads and blocks of ANS and TBE, with one bit changed.
fn contents(out: &mut Vec<Refused>) -> Result<()> {
    let mut random = Xorshift(0x2468_ace0_1357_9bdf);
    let r = &mut random;
    let ans = Ans::new(Level::Default).with_backend(Backend::Portable)?;
    let exceptions = units::<2>(700, |i| match i {
        5 | 300 => 0x0001,
        100 => 0x7fc1,
        _ => element(Dtype::BF16, r.weight() * 0.5),
    });
    let f32s = weights(r, Dtype::F32, 300, 0.1);
    // Low bits of three widths.
    let widths = units::<4>(3 * 1024, |i| {
        let weight = r.weight() * 0.3;
        let held = match i / 1024 {
            0 => weight,
            // From f32: how `half` rounds an f64 depends on its features.
            1 => bf16::from_f32(weight as f32).into(),
            _ => f16::from_f32(weight as f32).into(),
        };
        element(Dtype::F32, held)
    });
    let constant = units::<2>(200, |_| u64::from(bf16::ONE.to_bits()));
    let zeros = units::<2>(600, |i| u64::from(i % 7 == 0) * element(Dtype::BF16, r.weight()));
    let few = units::<1>(40, |_| r.below(200));
    // What repeats itself is coded by DEFLATE.
    let repeats = units::<1>(3000, |i| (i as u64 % 250) * (i as u64 % 250) / 7 % 256);
    use Rule as R;
    let cases = [
        (
            "exceptions",
            Dtype::BF16,
            exceptions,
            &[
                R::AnsHead,
                R::ReservedNotZero,
                R::FrequencyTable,
                R::PaddingNotZero,
                R::AnsBlockHeader,
                R::AnsBlockLength,
                R::AnsWords,
                R::AnsEndState,
                R::AnsException,
            ][..],
        ),
        ("f32", Dtype::F32, f32s, &[R::AnsHead, R::AnsBlockLength]),
        ("widths", Dtype::F32, widths, &[R::AnsTableId]),
        ("constant", Dtype::BF16, constant, &[R::ConstantBlock, R::AnsBlockHeader]),
        (
            "zeros",
            Dtype::BF16,
            zeros,
            &[R::ZeroMask, R::AnsBlockHeader, R::AnsBlockLength, R::PaddingNotZero],
        ),
        ("raw", Dtype::U8, few, &[R::AnsBlockHeader]),
        ("repeats", Dtype::U8, repeats, &[R::AnsDeflate]),
    ];
    for (name, dtype, bytes, rules) in cases {
        flips(&format!("ans-{name}"), &ans, dtype, &bytes, rules, out)?;
    }
    columns(&mut Xorshift(0x1357_9bdf_2468_ace0), out)?;
    frequency(out)?;
    let tbe = Tbe::new(Width::Three);
    let mut bytes = weights(r, Dtype::F8_E4M3, 600, 0.1);
    // Escapes: the exponents 15, 9 and 0.
    for (i, byte) in bytes.iter_mut().step_by(23).enumerate() {
        *byte = [0x7e, 0x48, 0x00][i % 3];
    }
    let rules = [
        R::TbeHead,
        R::ReservedNotZero,
        R::PaddingNotZero,
        R::TbeBlockLength,
        R::TbeEscapeStarts,
        R::TbeEscapeInWindow,
        R::TbeEscapeField,
    ];
    flips("tbe", &tbe, Dtype::F8_E4M3, &bytes, &rules, out)
}

/// For each of `rules` a shard with the tensor of those bytes, in whose head or block one bit is
/// changed: the first that breaks the rule.
fn flips(
    prefix: &str,
    encoding: &dyn TensorEncoding,
    dtype: Dtype,
    bytes: &[u8],
    rules: &[Rule],
    out: &mut Vec<Refused>,
) -> Result<()> {
    let n = bytes.len() as u64 / dtype.unit_bytes() as u64;
    let spec = TensorSpec::new("w", dtype, &[n])?;
    let sound = encode_tensor(encoding, &spec, &bytes)?;
    let head_len = sound.head().len();
    let whole = [sound.head(), sound.block(0)].concat();
    let mut left = rules.to_vec();
    for bit in 0..8 * whole.len() {
        let mut damaged = whole.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let (head, block) = damaged.split_at(head_len);
        let mut dst = vec![0; bytes.len()];
        let opened = encoding.open(&spec, head);
        let decoded = opened.and_then(|decoder| decoder.decode_blocks(&[block], &mut dst));
        let Err(error) = decoded else { continue };
        if let Some(at) = left.iter().position(|&rule| rule == error.rule()) {
            let rule = left.swap_remove(at);
            let name = format!("{prefix}-{}.bs", kebab(rule));
            out.push(Refused { name, rule, bytes: one(&sound, head, block, bytes) });
        }
    }
    assert!(left.is_empty(), "{prefix}: no bit breaks {left:?}");
    Ok(())
}

/// Columns that the head or the block cannot have.
fn columns(r: &mut Xorshift, out: &mut Vec<Refused>) -> Result<()> {
    let spec = TensorSpec::new("w", Dtype::BF16, &[24, 64])?;
    let scales = [1.0, 0.05, 0.002];
    let bytes = units::<2>(24 * 64, |i| element(Dtype::BF16, r.weight() * scales[i % 64 * 7 % 3]));
    let sound = encode_tensor(&Ans::new(Level::Small), &spec, &bytes)?;
    let (head, block) = (sound.head(), sound.block(0));
    assert_eq!((head[9], block[0]), (2, 5), "no columns");
    // Two bytes for their number and 3 bits for each, at the end of the head.
    let at = head.len() - 2 - 64 * 3 / 8;
    let with = |bytes: &[u8], at: usize, byte: u8| {
        let mut bytes = bytes.to_vec();
        bytes[at] = byte;
        bytes
    };
    let cases = [
        ("one", with(head, at, 0), block.to_vec(), Rule::AnsHead),
        ("most", with(head, at + 1, 0xff), block.to_vec(), Rule::AnsHead),
        ("first", head.to_vec(), with(block, 2, 64), Rule::AnsBlockHeader),
        ("within", head.to_vec(), with(block, 8, 0), Rule::AnsBlockHeader),
        ("none", with(&head[..at], 9, 0), block.to_vec(), Rule::AnsBlockHeader),
    ];
    for (name, head, block, rule) in cases {
        let name = format!("ans-columns-{name}.bs");
        out.push(Refused { name, rule, bytes: one(&sound, &head, &block, &bytes) });
    }
    Ok(())
}

/// A table in which one symbol has all of the frequency.
fn frequency(out: &mut Vec<Refused>) -> Result<()> {
    let spec = TensorSpec::new("w", Dtype::BF16, &[300])?;
    let bytes = units::<2>(300, |i| 0x3f80 + i as u64 % 7);
    let sound = encode_tensor(&Ans::default(), &spec, &bytes)?;
    // m = 1, 5 symbol bits, segments of 2^8 units, one table, base and first 0.
    let mut head = vec![1, 5, 8, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // 4096 = 2^12 has 13 bits, and of those below the highest all are 0.
    head.push(13);
    head.resize(14 + (12 + 32 * 4_usize).div_ceil(8), 0);
    let block = [&[0; 8][..], &bytes].concat();
    let bytes = one(&sound, &head, &block, &bytes);
    out.push(Refused { name: "ans-frequency-4096.bs".into(), rule: Rule::FrequencyTable, bytes });
    Ok(())
}

/// A shard of one tensor with that head and block.
fn one(tensor: &EncodedTensor, head: &[u8], block: &[u8], bytes: &[u8]) -> Vec<u8> {
    let spec = tensor.spec();
    let mut forge = Forge::new(&format!(
        r#"{{"w":{{"dtype":"{}","shape":{:?},"data_offsets":[0,{}]}}}}"#,
        spec.dtype(),
        spec.shape(),
        bytes.len()
    ));
    forge.add(tensor.encoding().code(), head, &[block]);
    digest(&mut forge, bytes);
    forge.bytes()
}

/// `AnsHead` as `head`, `PaddingNotZero` as `padding-not-zero`.
fn kebab(rule: Rule) -> String {
    let mut out = String::new();
    for c in format!("{rule:?}").chars() {
        if c.is_ascii_uppercase() && !out.is_empty() {
            out.push('-');
        }
        out.push(c.to_ascii_lowercase());
    }
    let short = out.strip_prefix("ans-").or_else(|| out.strip_prefix("tbe-"));
    short.map_or(out.clone(), str::to_owned)
}

/// Frames.
const FRAMES: &[Case<Frame>] = &[
    ("magic", |f| f.magic[7] = b'\r', Rule::FrameMagic),
    ("version-0", |f| f.version = 0, Rule::VersionZero),
    ("version-2", |f| f.version = 2, Rule::Version),
    ("encoding-255", |f| f.encoding = 255, Rule::EncodingUnknown),
    ("tbe-of-u8", |f| f.encoding = 2, Rule::EncodingDtype),
    ("65-dimensions", |f| f.rank = Some(65), Rule::RankTooLarge),
    ("long-name", |f| f.name_len = Some(65_537), Rule::NameTooLong),
    ("name-beyond-the-end", |f| f.name_len = Some(65_536), Rule::FrameTruncated),
    ("latin-1", |f| f.name = vec![0xe9], Rule::HeaderSyntax),
    ("padding-of-the-names", |f| f.padding = 1, Rule::PaddingNotZero),
    ("dtype", |f| f.dtype = b"u8".to_vec(), Rule::DtypeUnknown),
    ("overflow", |f| f.shape = vec![1 << 63, 2, 0], Rule::ShapeOverflow),
    ("half-a-byte", |f| f.dtype = b"F4".to_vec(), Rule::SubByteTotal),
    ("table-beyond-the-end", |f| f.shape = vec![1 << 59], Rule::FrameTruncated),
    ("padding-of-the-table", |f| f.lens_padding = 1, Rule::PaddingNotZero),
    ("block-too-short", |f| f.lens = vec![2], Rule::BlockLength),
    ("checksum", |f| f.checksum = Some(1), Rule::FrameChecksum),
    ("checksum-of-the-head", |f| f.head_hash = Some(0), Rule::HeadChecksum),
    ("checksum-of-a-block", |f| f.payload[0] = 2, Rule::BlockChecksum),
    ("cut-short", |f| f.payload.truncate(7), Rule::FrameTruncated),
    ("bytes-after", |f| f.after = vec![0], Rule::FrameTrailing),
];

fn frames(out: &mut Vec<Refused>) {
    for (name, damage, rule) in FRAMES {
        let mut frame = Frame::sound();
        damage(&mut frame);
        let name = format!("frame-{name}.frame");
        out.push(Refused { name, rule: *rule, bytes: frame.bytes() });
    }
}

/// Files that break two rules, with their names: every pair of the cases above. Which of them is
/// reported is a question of section 14 of FORMAT.md.
#[must_use]
pub fn twice_broken() -> Vec<(String, Vec<u8>)> {
    let mut out = Vec::new();
    for (first, damage, _) in SHARDS {
        for (second, damage_again, _) in SHARDS {
            let mut forge = two();
            damage(&mut forge);
            damage_again(&mut forge);
            out.push((format!("{first}+{second}.bs"), forge.bytes()));
        }
        for (second, json, _) in header_cases() {
            let mut forge = two();
            damage(&mut forge);
            forge.header = json.into_bytes();
            out.push((format!("{first}+header-{second}.bs"), forge.bytes()));
        }
    }
    // Two entries, each with a fault of its own, in both orders.
    let entry = |json: &str, name: &str| json.replacen("\"w\"", name, 1);
    let headers = header_cases();
    for (first, json, _) in &headers {
        for (second, json_again, _) in &headers {
            let whole = |json: &str| json.starts_with('{') && json.ends_with('}');
            if !whole(json) || !whole(json_again) {
                continue;
            }
            let (a, b) = (entry(json, "\"a\""), entry(json_again, "\"b\""));
            let both = format!("{},{}", &a[..a.len() - 1], &b[1..]);
            let name = format!("header-{first}+header-{second}.bs");
            out.push((name, Forge::new(&both).bytes()));
        }
    }
    for (first, damage, _) in FRAMES {
        for (second, damage_again, _) in FRAMES {
            let mut frame = Frame::sound();
            damage(&mut frame);
            damage_again(&mut frame);
            out.push((format!("{first}+{second}.frame"), frame.bytes()));
        }
    }
    out
}
