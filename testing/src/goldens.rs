//! The golden files as the current encoder writes them: one shard for every feature of the format,
//! with the safetensors file to which it is restored; frames, with the bytes of their tensors; and
//! files that must be refused.
//!
//! `cargo run -p bigsmall-testing --bin write_goldens` compares them with the folder `goldens`;
//! with `-- --write` it replaces the files that differ. Files of a released version are never
//! replaced: a newer encoder adds files with new names.

mod refused;

use std::path::{Path, PathBuf};

use bigsmall_codec::{Ans, Level};
use bigsmall_format::internal::Assembler;
use bigsmall_format::{
    Dtype, Error, Header, Limits, MAX_BLOCK_UNITS, Raw, Result, TensorEncoding, TensorSpec,
    encode_tensor,
};
use bigsmall_tbe::{Tbe, Width};
use half::{bf16, f16};
use md5::{Digest as _, Md5};
use sha2::Sha256;

use crate::golden_bases::golden_bases;
use crate::golden_deltas::golden_deltas;
use crate::golden_pages::golden_pages;
use crate::oracle::ans as oracle;

pub use refused::{Refused, refused, twice_broken};

/// A shard or a frame, and its original.
#[derive(Debug)]
pub struct Golden {
    /// The file's name.
    pub name: String,
    /// The shard or the frame.
    pub bytes: Vec<u8>,
    /// The name of the original.
    pub original_name: String,
    /// The safetensors file, or the bytes of the tensor.
    pub original: Vec<u8>,
}

impl Golden {
    /// Whether the original is stored beside it. For a large one only the SHA-256 is stored.
    #[must_use]
    pub fn keeps_original(&self) -> bool {
        self.original.len() <= 60_000
    }
}

/// How a tensor is stored.
enum Store {
    Raw,
    Ans(Level),
    Tbe(Width),
    /// With the payload of an earlier tensor.
    Share(usize),
}
use Store::Share;

impl Store {
    fn encoding(&self) -> Box<dyn TensorEncoding> {
        match *self {
            Store::Raw | Share(_) => Box::new(Raw),
            Store::Ans(level) => Box::new(Ans::new(level)),
            Store::Tbe(width) => Box::new(Tbe::new(width)),
        }
    }
}

const ANS: Store = Store::Ans(Level::Default);
const SMALL: Store = Store::Ans(Level::Small);

struct Tensor {
    /// The name as it is written in the header, with its escapes.
    name: String,
    dtype: Dtype,
    shape: Vec<u64>,
    bytes: Vec<u8>,
    store: Store,
}

fn tensor(name: &str, dtype: Dtype, shape: &[u64], bytes: Vec<u8>, store: Store) -> Tensor {
    Tensor { name: name.into(), dtype, shape: shape.into(), bytes, store }
}

/// A tensor of one dimension, with the number of elements that the bytes fill.
fn vector(name: &str, dtype: Dtype, bytes: Vec<u8>, store: Store) -> Tensor {
    let n = bytes.len() as u64 * 8 / u64::from(dtype.bits());
    tensor(name, dtype, &[n], bytes, store)
}

/// The entries of a header, for data in the given order.
fn entries(tensors: &[Tensor]) -> Vec<String> {
    let mut at = 0;
    let entry = |t: &Tensor| {
        let begin = at;
        at += t.bytes.len();
        let Tensor { name, dtype, shape, .. } = t;
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{begin},{at}]}}"#)
    };
    tensors.iter().map(entry).collect()
}

/// A shard of `tensors`, which are in the order of their data, with the header `json`.
fn shard(
    name: &'static str,
    json: Option<String>,
    tensors: &[Tensor],
    md5: bool,
) -> Result<Golden> {
    let data: Vec<u8> = tensors.iter().flat_map(|t| t.bytes.iter().copied()).collect();
    let (json, mut writer) = match json {
        Some(json) => {
            let writer = Assembler::new(Vec::new(), json.clone().into_bytes(), data.len() as u64)?;
            (json.into_bytes(), writer)
        }
        None => {
            let specs: Result<Vec<_>> =
                tensors.iter().map(|t| TensorSpec::new(&t.name, t.dtype, &t.shape)).collect();
            let specs = specs?;
            (Header::synthesise(&specs)?, Assembler::synthesised(Vec::new(), &specs)?)
        }
    };
    let specs = Header::parse(&json, data.len() as u64, &Limits::default())?;
    for (spec, t) in specs.tensors().iter().zip(tensors) {
        let digest = md5.then(|| Md5::digest(&t.bytes).into());
        if let Share(earlier) = t.store {
            writer.share(earlier, digest)?;
            continue;
        }
        let encoded = encode_tensor(&*t.store.encoding(), spec, &t.bytes)?;
        writer.tensor(&encoded, digest)?;
    }
    let mut original = (json.len() as u64).to_le_bytes().to_vec();
    original.extend(json);
    original.extend(data);
    let bytes = writer.finish(Sha256::digest(&original).into())?;
    let (name, original_name) = (format!("{name}.bs"), format!("{name}.safetensors"));
    Ok(Golden { name, bytes, original_name, original })
}

/// A shard with a plain header.
fn plain(name: &'static str, tensors: &[Tensor]) -> Result<Golden> {
    shard(name, Some(format!("{{{}}}", entries(tensors).join(","))), tensors, false)
}

/// xorshift64, with integers only. The golden files were made from this sequence; with
/// [`crate::Random`] their bytes would change.
struct Xorshift(u64);

impl Xorshift {
    fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: u64) -> u64 {
        (self.bits() >> 20) % n
    }

    /// Approximately normally distributed with a standard deviation of about 0.6. All sums and
    /// products are exact, so every machine draws the same numbers.
    fn weight(&mut self) -> f64 {
        (0..4).map(|_| self.below(1 << 16) as f64).sum::<f64>() / 65536.0 - 2.0
    }
}

/// The bits of a number in a dtype of 8 bits or more.
fn element(dtype: Dtype, value: f64) -> u64 {
    match dtype {
        Dtype::BF16 => bf16::from_f64(value).to_bits().into(),
        Dtype::F16 => f16::from_f64(value).to_bits().into(),
        Dtype::F32 => (value as f32).to_bits().into(),
        Dtype::F64 => value.to_bits(),
        Dtype::C64 => {
            let half = u64::from((value as f32).to_bits());
            half << 32 | half ^ 0x8000_0000
        }
        // The upper byte of an F16, with one exponent bit less and a bias that is smaller by 8.
        Dtype::F8_E5M2 | Dtype::F8_E5M2FNUZ => u64::from(f16::from_f64(value).to_bits() >> 8),
        Dtype::F8_E4M3 | Dtype::F8_E4M3FNUZ => {
            let bits = f16::from_f64(value).to_bits();
            let magnitude = ((bits & 0x7fff) >> 7).saturating_sub(8 << 3).min(0x7e);
            u64::from(bits >> 8 & 0x80 | magnitude)
        }
        Dtype::F8_E8M0 => u64::from((value as f32).to_bits() >> 23 & 0xff),
        Dtype::BOOL => u64::from(value > 0.0),
        _ => (value * 40.0) as i64 as u64,
    }
}

/// `n` weights, or `n` bytes of four-bit codes for a dtype of less than 8 bits.
fn weights(random: &mut Xorshift, dtype: Dtype, n: usize, scale: f64) -> Vec<u8> {
    let mut out = Vec::new();
    for _ in 0..n {
        let value = random.weight() * scale;
        match dtype.bits() / 8 {
            0 => out.push((random.below(4) << 4 | random.below(5)) as u8),
            width => out.extend(&element(dtype, value).to_le_bytes()[..width as usize]),
        }
    }
    out
}

fn units<const N: usize>(n: usize, mut unit: impl FnMut(usize) -> u64) -> Vec<u8> {
    (0..n).flat_map(|i| unit(i).to_le_bytes().into_iter().take(N).collect::<Vec<_>>()).collect()
}

/// Every golden file.
///
/// # Errors
/// Those of the encoders, on a bug.
pub fn goldens() -> Result<Vec<Golden>> {
    let mut random = Xorshift(0x1234_5678_9abc_def1);
    let r = &mut random;
    let mut out = Vec::new();

    // Every dtype, raw and as ANS. 288 bytes are a whole number of elements of each dtype.
    let of_every_dtype = |r: &mut Xorshift, store: fn() -> Store, bytes: usize| {
        let one = |&dtype: &Dtype| {
            let width = (dtype.bits() as usize / 8).max(1);
            vector(dtype.name(), dtype, weights(r, dtype, bytes / width, 1.0), store())
        };
        Dtype::ALL.iter().map(one).collect::<Vec<_>>()
    };
    out.push(plain("raw-dtypes", &of_every_dtype(r, || Store::Raw, 48))?);
    let mut tensors = of_every_dtype(r, || ANS, 288);
    // Floats long enough for a group and a tail.
    for dtype in [Dtype::BF16, Dtype::F16, Dtype::F32, Dtype::F64] {
        let name = format!("{dtype} group");
        tensors.push(vector(&name, dtype, weights(r, dtype, 300, 0.02), ANS));
    }
    out.push(plain("ans-dtypes", &tensors)?);

    // Rows of different scales have separate tables.
    let mut rows = Vec::new();
    for i in 0..48 {
        let scale = [1.0, 0.4, 0.11, 0.03][i / 2 % 4];
        rows.extend(weights(r, Dtype::BF16, 256, scale));
    }
    let rows = tensor("rows", Dtype::BF16, &[48, 256], rows, ANS);
    let three = units::<1>(12 * 1024, |i| match i / 1024 % 3 {
        0 => r.below(3),
        1 => 100 + r.below(4),
        _ => 200 + r.below(2) * r.below(2),
    });
    // Half of the segments are alike, so one of four clusters stays empty.
    let alike = units::<1>(8 * 1024, |i| match i / 1024 % 4 {
        0 | 1 => (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 62,
        2 => 100 + i as u64 * i as u64 % 7,
        _ => 200 + i as u64 / 3 % 2,
    });
    let bytes = [("bytes", three), ("alike", alike)];
    let [three, alike] = bytes.map(|(name, units)| vector(name, Dtype::U8, units, ANS));
    out.push(plain("ans-tables", &[rows, three, alike])?);

    // Mantissa bits that can be predicted.
    let skewed = |r: &mut Xorshift, m: u64| {
        units::<2>(1500, |_| {
            let exponent = 120 + u64::from((r.bits() | 64).trailing_zeros());
            let top = if r.below(16) == 0 { 1 << (7 - m) } else { 0 };
            exponent << 7 | top | r.below(1 << (7 - m)) | r.below(2) << 15
        })
    };
    let e5m2 = units::<1>(260, |_| (12 + r.below(3)) << 2 | r.below(2) << 7);
    let (m2, m3) = (skewed(r, 2), skewed(r, 3));
    let tensors = [
        vector("m = 2", Dtype::BF16, m2, SMALL),
        vector("m = 3", Dtype::BF16, m3, SMALL),
        vector("one bit of residual", Dtype::F8_E5M2, e5m2, SMALL),
    ];
    out.push(plain("ans-mantissa", &tensors)?);

    // Exceptions on both sides of the window and inside it; zeros take the code of its lowest
    // field.
    let odd = |i: usize, w: u64| match i {
        5 | 700 => 0x0001,
        100 | 101 => 0x7fc1,
        300 => 0xffff,
        // Rare values that are close to the others.
        400 | 900 => 117 << 7,
        _ => w,
    };
    let mut of_bf16 = |scale: f64| element(Dtype::BF16, r.weight() * scale);
    let exceptions = units::<2>(1100, |i| odd(i, of_bf16(0.5)));
    // Without the smallest fields, none takes the place of the window's lowest one.
    let above = units::<2>(700, |i| match i {
        5 => of_bf16(0.5),
        _ => odd(i, of_bf16(0.5)),
    });
    let zeros = units::<2>(1100, |i| if i % 3 == 0 { 0 } else { odd(i, of_bf16(0.5)) });
    let tensors = [
        vector("exceptions", Dtype::BF16, exceptions, ANS),
        vector("zeros", Dtype::BF16, zeros, ANS),
        vector("above", Dtype::BF16, above, ANS),
    ];
    out.push(plain("ans-exceptions", &tensors)?);

    // Low bits that end in zeros, segment by segment.
    let narrowed = |i: usize, w: f64| match i / 1024 % 4 {
        0 => w,
        1 => f64::from(bf16::from_f64(w)),
        2 => f64::from(f16::from_f64(w)),
        _ => f64::from(w as f32),
    };
    let f32s = units::<4>(4200, |i| element(Dtype::F32, narrowed(i, r.weight() * 0.3)));
    let f64s = units::<8>(4200, |i| element(Dtype::F64, narrowed(i, r.weight() * 0.3)));
    let f16s = units::<2>(2100, |i| {
        element(Dtype::F16, r.weight()) & if i < 1024 { 0xffff } else { 0xffc0 }
    });
    let tensors = [
        vector("f32", Dtype::F32, f32s, ANS),
        vector("f64", Dtype::F64, f64s, ANS),
        vector("f16", Dtype::F16, f16s, ANS),
    ];
    out.push(plain("ans-low-bits", &tensors)?);

    // Several blocks: coded and constant; and one unit less or more than a single block may have.
    let skewed = |r: &mut Xorshift, n: usize| units::<1>(n, |_| u64::from(r.below(120) == 0) * 7);
    let mut mixed = skewed(r, MAX_BLOCK_UNITS);
    mixed.extend([42; MAX_BLOCK_UNITS]);
    mixed.extend(units::<1>(777, |_| r.bits()));
    let mut pair = skewed(r, 2 * MAX_BLOCK_UNITS);
    pair.extend(skewed(r, 700));
    let whole = skewed(r, MAX_BLOCK_UNITS);
    let (one_less, one_more) = (skewed(r, MAX_BLOCK_UNITS - 1), skewed(r, MAX_BLOCK_UNITS + 1));
    let mut constant = units::<2>(2 * MAX_BLOCK_UNITS, |_| 0x3f80);
    constant.extend(weights(r, Dtype::BF16, 600, 1.0));
    let tensors = [
        vector("mixed", Dtype::U8, mixed, ANS),
        vector("pair", Dtype::I16, pair, ANS),
        vector("whole", Dtype::U8, whole, ANS),
        vector("one less", Dtype::I8, one_less, ANS),
        vector("one more", Dtype::BOOL, one_more, ANS),
        vector("constant", Dtype::BF16, constant, ANS),
        vector("raw", Dtype::U8, vec![9; MAX_BLOCK_UNITS / 64], Store::Raw),
    ];
    out.push(plain("ans-blocks", &tensors)?);

    // Masks of zeros, from a separate sequence of random numbers.
    out.push(masks()?);

    // What repeats itself, likewise.
    out.push(repeated()?);

    // Columns of different scales, likewise.
    out.push(columns()?);
    out.push(masks_and_columns()?);

    // TBE.
    for (name, width) in [("tbe3", Width::Three), ("tbe4", Width::Four)] {
        let dtypes = [Dtype::BF16, Dtype::F16, Dtype::F8_E4M3, Dtype::F8_E5M2];
        let one = |dtype: Dtype| {
            tensor(dtype.name(), dtype, &[7, 99], weights(r, dtype, 693, 0.1), Store::Tbe(width))
        };
        let mut tensors: Vec<_> = dtypes.into_iter().map(one).collect();
        tensors.push(vector("one", Dtype::BF16, vec![0x80, 0x3f], Store::Tbe(width)));
        tensors.push(vector("none", Dtype::F16, vec![], Store::Tbe(width)));
        out.push(plain(name, &tensors)?);
    }

    // Extreme shapes.
    let bytes = |r: &mut Xorshift, n| units::<1>(n, |_| r.bits());
    let tensors = [
        tensor("scalar", Dtype::F32, &[], bytes(r, 4), Store::Raw),
        tensor("scalar, ANS", Dtype::BF16, &[], bytes(r, 2), ANS),
        tensor("nothing", Dtype::F32, &[0], vec![], Store::Raw),
        tensor("nothing, ANS", Dtype::BF16, &[0], vec![], ANS),
        tensor("nothing of three dimensions", Dtype::I64, &[2, 0, 3], vec![], Store::Raw),
        tensor("ones", Dtype::U8, &[1; 64], bytes(r, 1), ANS),
        tensor("odd begin", Dtype::F64, &[2, 1], bytes(r, 16), Store::Raw),
        tensor("four bits", Dtype::F4, &[2, 3, 1], bytes(r, 3), ANS),
        tensor("six bits", Dtype::F6_E3M2, &[4, 5], bytes(r, 15), Store::Raw),
        tensor("constant", Dtype::I32, &[4, 4], vec![0; 64], ANS),
        tensor("too short for a constant", Dtype::I32, &[3, 5], vec![0; 60], ANS),
    ];
    out.push(plain("shapes", &tensors)?);

    // One payload for several tensors, one with another shape; each with an MD5.
    let tied = weights(r, Dtype::BF16, 320, 0.05);
    let tensors = [
        tensor("embed", Dtype::BF16, &[32, 10], tied.clone(), ANS),
        vector("raw", Dtype::U8, bytes(r, 20), Store::Raw),
        tensor("head", Dtype::BF16, &[32, 10], tied.clone(), Share(0)),
        tensor("flat", Dtype::BF16, &[320], tied, Share(0)),
        vector("nothing", Dtype::U8, vec![], Store::Raw),
        vector("nothing again", Dtype::U8, vec![], Share(4)),
    ];
    let json = format!("{{{}}}", entries(&tensors).join(","));
    out.push(shard("shared-md5", Some(json), &tensors, true)?);

    // A header made by the writer.
    let tensors = [
        tensor("a", Dtype::BF16, &[2, 150], weights(r, Dtype::BF16, 300, 0.05), ANS),
        tensor("", Dtype::F16, &[2], bytes(r, 4), Store::Raw),
        tensor("\n\u{1b}[31m", Dtype::I64, &[1], bytes(r, 8), Store::Raw),
    ];
    out.push(shard("synthesised", None, &tensors, true)?);

    // Names that are not identifiers.
    let names = [
        "",
        r"NUL \u0000 inside",
        r"line\nfeed and tab\t",
        r"\u001b[31mred\u001b[0m",
        "é",
        "e\u{301}",
        r"\u0041\ud83d\ude00",
        "モデル.層.0",
        "../../x",
        r"C:\\windows\\x",
        r#"quote \" and backslash \\"#,
        "dtype",
        "\u{202e}reversed",
        "\u{7f}",
    ];
    let mut tensors: Vec<_> =
        names.iter().map(|name| vector(name, Dtype::U8, bytes(r, 2), Store::Raw)).collect();
    tensors.push(vector(&"long ".repeat(300), Dtype::U8, bytes(r, 2), Store::Raw));
    out.push(plain("names", &tensors)?);

    // A header in an unusual order, with everything else that safetensors allows.
    let tensors = [
        vector("z", Dtype::U8, bytes(r, 3), Store::Raw),
        vector("m", Dtype::U8, vec![], Store::Raw),
        vector("a", Dtype::U8, vec![], Store::Raw),
        vector("k", Dtype::F32, bytes(r, 8), Store::Raw),
    ];
    let e = entries(&tensors);
    let json = format!(
        "{{ {},\n\t\"__metadata__\" : {{\"format\":\"pt\",\"\":\"\\u00e9 \\\"x\\\"\"}}\
         , {},{},{} }}  \r\n ",
        e[3].replace('}', r#","quant":{"bits":[4,-1.5e3,null,true],"of":{"a":{},"b":[]}}}"#),
        e[1],
        e[0],
        e[2]
    );
    out.push(shard("header", Some(json), &tensors, false)?);
    let json = r#"{"__metadata__":{"only":"this"}}"#.to_owned();
    out.push(shard("no-tensors", Some(json), &[], false)?);
    out.extend(frames()?);
    Ok(out)
}

/// Frames of every encoding, in a sequence of random numbers of their own.
fn frames() -> Result<Vec<Golden>> {
    let mut random = Xorshift(0x1122_3344_5566_7788);
    let r = &mut random;
    let f16s = weights(r, Dtype::F16, 700, 0.1);
    // Four blocks, of which three are constant.
    let mut blocks = vec![7; MAX_BLOCK_UNITS];
    blocks.extend(units::<1>(300, |i| r.below(3) * (i as u64 % 2)));
    let tensors = [
        ("raw", tensor("w", Dtype::I16, &[3], vec![1, 0, 2, 0, 3, 0], Store::Raw)),
        ("ans", tensor("層.0", Dtype::BF16, &[3, 200], weights(r, Dtype::BF16, 600, 0.1), ANS)),
        ("tbe3", tensor("t", Dtype::F16, &[7, 100], f16s, Store::Tbe(Width::Three))),
        ("blocks", vector("blocks", Dtype::U8, blocks, ANS)),
        ("scalar", tensor("", Dtype::F32, &[], vec![0, 0, 128, 63], Store::Raw)),
        ("nothing", tensor("", Dtype::BF16, &[0, 3], vec![], ANS)),
    ];
    let frame = |(name, t): &(&str, Tensor)| {
        let spec = TensorSpec::new(&t.name, t.dtype, &t.shape)?;
        Ok(Golden {
            name: format!("{name}.frame"),
            bytes: encode_tensor(&*t.store.encoding(), &spec, &t.bytes)?.to_bytes(),
            original_name: format!("{name}.values"),
            original: t.bytes.clone(),
        })
    };
    tensors.iter().map(frame).collect()
}

/// Tensors with many zeros: pruned, rows that are zero, masks of every kind.
fn masks() -> Result<Golden> {
    let mut random = Xorshift(0x0f1e_2d3c_4b5a_6978);
    let r = &mut random;
    // Two of every four weights are zero, as in a model pruned by magnitude.
    let mut pruned = Vec::new();
    for _ in 0..1100 {
        let [a, b] = [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]][r.below(6) as usize];
        for i in 0..4 {
            let weight = element(Dtype::BF16, r.weight() * 0.02);
            let unit = if i == a || i == b { 0 } else { weight };
            pruned.extend(&unit.to_le_bytes()[..2]);
        }
    }
    let mut untouched = Vec::new();
    for _ in 0..50 {
        let zero = r.below(5) > 0;
        let row = weights(r, Dtype::F32, 64, 1e-6);
        untouched.extend(row.iter().map(|&byte| if zero { 0 } else { byte }));
    }
    let mut some = |dtype: Dtype, n: usize, one_in: u64| {
        let width = dtype.unit_bytes();
        let mut out = Vec::new();
        for _ in 0..n {
            let unit = element(dtype, r.weight());
            let unit = if r.below(one_in) == 0 { unit } else { 0 };
            out.extend(&unit.to_le_bytes()[..width]);
        }
        out
    };
    let half = some(Dtype::F16, 3000, 2);
    let f64s = some(Dtype::F64, 1003, 4);
    // Negative zero does not count as zero.
    let e4m3 = some(Dtype::F8_E4M3, 6000, 9).into_iter().enumerate();
    let e4m3 = e4m3.map(|(i, byte)| if i % 50 == 0 { 0x80 } else { byte }).collect();
    let mut blocks = some(Dtype::BF16, MAX_BLOCK_UNITS, 80);
    blocks.extend(weights(r, Dtype::BF16, 700, 1.0));
    // A constant mask, and equal values for all other units.
    let alike = units::<4>(4096, |i| u64::from(i % 2 == 0) * 0x3f80_0000);
    plain(
        "ans-zeros",
        &[
            vector("2:4", Dtype::BF16, pruned, ANS),
            tensor("untouched rows", Dtype::F32, &[50, 64], untouched, ANS),
            vector("half", Dtype::F16, half, ANS),
            vector("f64", Dtype::F64, f64s, SMALL),
            vector("e4m3", Dtype::F8_E4M3, e4m3, ANS),
            vector("blocks", Dtype::BF16, blocks, ANS),
            vector("alike", Dtype::F32, alike, ANS),
        ],
    )
}

/// Matrices whose columns have different scales: filters of a convolution, and four blocks of
/// which three begin within a row.
fn columns() -> Result<Golden> {
    let mut random = Xorshift(0x2d3c_4b5a_6978_8796);
    let r = &mut random;
    let mut scaled = |dtype: Dtype, shape: &[u64], scales: &[f64]| {
        let inner: u64 = shape[1..].iter().product();
        let columns: Vec<f64> =
            (0..inner).map(|_| scales[r.below(scales.len() as u64) as usize]).collect();
        let rows = (0..shape[0]).flat_map(|_| &columns);
        let each = rows.map(|scale| element(dtype, r.weight() * scale));
        each.flat_map(|unit| unit.to_le_bytes().into_iter().take(dtype.unit_bytes()))
            .collect::<Vec<u8>>()
    };
    let scales = [1.0, 0.3, 0.06, 0.015, 0.004];
    let f32s = scaled(Dtype::F32, &[20, 80], &scales);
    let halves = scaled(Dtype::F16, &[40, 64], &[1.0, 0.05, 0.002]);
    let filters = scaled(Dtype::BF16, &[40, 8, 3, 3], &scales);
    // One power of two in each column, of either sign: a large block that takes few bytes.
    let of_blocks = TensorSpec::new("blocks", Dtype::F8_E5M2, &[350, 380])?;
    assert_ne!(of_blocks.block_units() % 380, 0);
    let blocks = units::<1>(350 * 380, |i| {
        let exponent = 8 + i as u64 % 380 * 5 % 7 * 2;
        r.below(2) << 7 | exponent << 2
    });
    plain(
        "ans-columns",
        &[
            tensor("f32", Dtype::F32, &[20, 80], f32s, SMALL),
            tensor("f16", Dtype::F16, &[40, 64], halves, SMALL),
            tensor("filters", Dtype::BF16, &[40, 8, 3, 3], filters, SMALL),
            tensor("blocks", Dtype::F8_E5M2, &[350, 380], blocks, SMALL),
        ],
    )
}

/// A tensor whose head has both masks and columns: blocks with zeros, and one of columns. Our
/// encoder never uses both, so the second block and the head are put together here.
fn masks_and_columns() -> Result<Golden> {
    let mut random = Xorshift(0x3c4b_5a69_7887_96a5);
    let r = &mut random;
    const COLUMNS: usize = 24;
    let classes: Vec<u8> = (0..COLUMNS).map(|i| (i * 5 % 8) as u8).collect();
    let spec = TensorSpec::new("masks and columns", Dtype::BF16, &[5800, COLUMNS as u64])?;
    let full = spec.block_units();
    // Rows begin anywhere in a block.
    let first = full % COLUMNS;
    assert_ne!(first, 0);
    let mut zeros = |n: usize| {
        units::<2>(n, |i| match i % 128 {
            5 => element(Dtype::BF16, r.weight() * 0.1),
            _ => 0,
        })
    };
    let (before, after) = (zeros(full), zeros(spec.n_units() as usize - 2 * full));
    let columns = units::<2>(full, |i| {
        let class = classes[(first + i) % COLUMNS];
        element(Dtype::BF16, r.weight() / f64::from(1 << class))
    });
    let order = oracle::order_of_classes(&classes, first, columns.len() / 2);
    let ordered: Vec<u8> = order.iter().flat_map(|i| columns[2 * i..][..2].to_vec()).collect();
    let coded = encode_tensor(&Ans::default(), &spec, &[&before[..], &ordered, &after].concat())?;
    let mut head = oracle::Head::read(spec.dtype(), coded.head()).map_err(Error::new)?;
    let kinds = [0, 1, 2, 3].map(|i| coded.block(i)[0]);
    assert!(head.mask.is_some() && kinds == [3, 2, 3, 3], "masks, and a coded block: {kinds:?}");
    head.columns = classes;
    let mut blocks = [0, 1, 2, 3].map(|i| coded.block(i).to_vec());
    blocks[1] = oracle::columns_block(first, coded.block(1));
    let encoded = oracle::seal(&spec, &head.write(), &blocks)?;
    let bytes = [before, columns, after].concat();
    let json = Header::synthesise(std::slice::from_ref(&spec))?;
    let original = [&(json.len() as u64).to_le_bytes()[..], &json, &bytes].concat();
    let mut writer = Assembler::synthesised(Vec::new(), &[spec])?;
    writer.tensor(&encoded, None)?;
    Ok(Golden {
        name: "ans-masks-and-columns.bs".into(),
        bytes: writer.finish(Sha256::digest(&original).into())?,
        original_name: "ans-masks-and-columns.safetensors".into(),
        original,
    })
}

/// Indices, masks, equal rows.
fn repeated() -> Result<Golden> {
    let mut random = Xorshift(0x4b5a_6978_8796_a5b4);
    let r = &mut random;
    let group_of = units::<4>(20_000, |i| i as u64 / 128);
    let positions = units::<8>(512, |i| i as u64);
    let mask = units::<4>(96 * 96, |i| if i % 96 <= i / 96 { 0x3f80_0000 } else { 0 });
    let causal = units::<1>(300 * 300, |i| u64::from(i % 300 <= i / 300));
    let rows: Vec<Vec<u8>> = (0..3).map(|_| weights(r, Dtype::BF16, 200, 0.1)).collect();
    let equal: Vec<u8> = (0..60).flat_map(|i| rows[i / 7 % 3].clone()).collect();
    // Rows that are zero; of the others most are equal. So both parts of the block repeat
    // themselves.
    let row = |i: usize, r: &mut Xorshift| match i % 8 {
        7 => weights(r, Dtype::F16, 320, 1.0),
        i if i % 2 == 0 => vec![0; 640],
        i => rows[i / 2 % 3].repeat(2)[..640].to_vec(),
    };
    let untouched: Vec<u8> = (0..200).flat_map(|i| row(i, r)).collect();
    // So short a stream that zeros follow it.
    let short = units::<1>(1100, |i| [3, 1, 4, 1, 5, 9, 2, 6, 5, 3][i % 10]);
    // Blocks that repeat themselves, the last of them not to its end.
    let mut blocks = units::<1>(MAX_BLOCK_UNITS, |i| i as u64 / 1000);
    blocks.extend(weights(r, Dtype::I8, 2000, 1.0));
    plain(
        "ans-deflate",
        &[
            vector("group indices", Dtype::I32, group_of, ANS),
            vector("positions", Dtype::I64, positions, ANS),
            tensor("mask", Dtype::F32, &[96, 96], mask, ANS),
            tensor("causal", Dtype::BOOL, &[300, 300], causal, SMALL),
            tensor("equal rows", Dtype::BF16, &[60, 200], equal, ANS),
            tensor("untouched rows", Dtype::F16, &[200, 320], untouched, ANS),
            vector("short", Dtype::U8, short, ANS),
            vector("blocks", Dtype::I8, blocks, ANS),
        ],
    )
}

/// The SHA-256 of every original, in the format of `sha256sum`.
fn sums<'a>(goldens: impl Iterator<Item = &'a Golden>) -> String {
    let line = |g: &Golden| {
        let digest: String =
            Sha256::digest(&g.original).iter().map(|b| format!("{b:02x}")).collect();
        format!("{digest}  {}\n", g.original_name)
    };
    goldens.map(line).collect()
}

/// The folder of the golden files in this repository.
#[must_use]
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../goldens")
}

/// The name and contents of every file in that folder.
///
/// # Panics
/// If a page or a delta cannot be encoded, or without `ans.frame`, on a bug.
#[must_use]
pub fn files(goldens: &[Golden], refused: &[Refused]) -> Vec<(String, Vec<u8>)> {
    let frame = goldens.iter().find(|g| g.name == "ans.frame").expect("a frame");
    let mut with_bases = Vec::from(golden_deltas().expect("deltas are encoded"));
    with_bases.extend(golden_bases(&frame.original).expect("deltas are encoded"));
    let all = || goldens.iter().chain(&with_bases);
    let mut files = vec![("SHA256SUMS".to_owned(), sums(all()).into_bytes())];
    for golden in all() {
        files.push((golden.name.clone(), golden.bytes.clone()));
        if golden.keeps_original() {
            files.push((golden.original_name.clone(), golden.original.clone()));
        }
    }
    files.extend(golden_pages().expect("pages are encoded"));
    files.push(("refused/RULES".to_owned(), refused::list(refused).into_bytes()));
    files.extend(refused.iter().map(|r| (format!("refused/{}", r.name), r.bytes.clone())));
    files
}
