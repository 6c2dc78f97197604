//! The fuzz targets. Each takes any bytes and compares the library's result with an oracle. The
//! programs in `fuzz/` call them. The test `replay` runs them over the corpora without a fuzzer.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a target fails by panicking

mod delta;
mod page;

use std::path::PathBuf;
use std::sync::OnceLock;

use bigsmall_codec::{Ans, Backend, Level};
use bigsmall_format::internal::Assembler;
use bigsmall_format::{
    Class, Dtype, EncodedTensor, EncodingId, Error, Header, Limits, MAX_BLOCK_UNITS, Raw, Result,
    Rule, Shard, ShardWriter, TensorEncoding, TensorSpec, encode_tensor,
};
use bigsmall_tbe::{Tbe, View, Width};

use crate::Random;
use crate::oracle::ans::{self, Copying};
use crate::oracle::tbe;
use crate::trials::{Encodings, Seals, decode_all, rewrite};

pub use delta::delta_block;
pub use page::page;

/// The largest restored size of a shard in a target.
const MOST: u64 = 16 << 20;

/// Reads choices from the front of the input, and zeros after its end.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn u8(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }

    fn bytes(&mut self, n: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(n.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// `n` bytes: the input repeated, with a small change in each repetition.
    fn fill(&mut self, n: usize) -> Vec<u8> {
        let wanted = usize::from(self.u16());
        let pattern = self.bytes(wanted);
        let step = self.u8();
        let round = |i: usize| step.wrapping_mul((i / pattern.len().max(1)) as u8);
        let byte = |i: usize| pattern.get(i % pattern.len().max(1)).copied().unwrap_or(0);
        (0..n).map(|i| byte(i) ^ round(i)).collect()
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[usize::from(self.u8()) % all.len()]
    }
}

fn backends() -> impl Iterator<Item = Backend> {
    bigsmall_codec::backends()
}

fn rule<T>(result: &Result<T>) -> Option<Rule> {
    result.as_ref().err().map(Error::rule)
}

/// The classes of errors that may refuse a file.
fn assert_refused(error: &Error) {
    assert!(
        matches!(error.class(), Class::Corrupt | Class::Unsupported | Class::Limit),
        "{error:?}"
    );
    assert!(!error.to_string().chars().any(char::is_control), "{error}");
}

/// Opens a shard in every way and checks that the results agree.
fn judge_shard(bytes: &[u8]) -> Option<Vec<u8>> {
    let opened = Shard::open(bytes);
    assert_eq!(rule(&opened), rule(&Shard::open(Copying(bytes))));
    let shard = match opened {
        Ok(shard) => shard,
        Err(error) => {
            assert_refused(&error);
            return None;
        }
    };
    // Payloads follow each other without gaps from the prelude to the index.
    let mut at = 16;
    for i in 0..shard.tensors().len() {
        let range = shard.payload_range(i).unwrap();
        match shard.entry(i).unwrap().shares() {
            Some(owner) => assert_eq!(range, shard.payload_range(owner).unwrap()),
            None => {
                assert_eq!(range.start, at);
                at = range.end;
            }
        }
    }
    assert_eq!(at + shard.index_len() + 48, bytes.len() as u64);
    // The stored header is also valid in a safetensors file.
    let header = shard.header();
    let again = Header::parse(shard.header_json(), header.data_len(), &Limits::default());
    assert_eq!(&again.unwrap(), header);
    let encodings = backends().map(|b| Encodings::new(b).unwrap());
    let mut first: Option<Result<Vec<u8>>> = None;
    for encodings in encodings {
        let found = decode_all(bytes, &encodings, MOST);
        let first = first.get_or_insert_with(|| decode_all(Copying(bytes), &encodings, MOST));
        assert_eq!(rule(&found), rule(first));
        assert!(found.as_ref().ok() == first.as_ref().ok(), "backends read different values");
    }
    match first.unwrap() {
        Ok(file) => {
            let ignorable = &bytes[bytes.len() - 28..bytes.len() - 24];
            if !shard.is_synthesised() && ignorable == [0; 4] {
                assert!(rewrite(&shard).unwrap() == bytes, "one shard, two ways to write it");
            }
            Some(file)
        }
        Err(error) => {
            assert_refused(&error);
            None
        }
    }
}

/// Any bytes as a shard, and the same bytes with the right magic and a recomputed index checksum.
pub fn shard_open(data: &[u8]) {
    judge_shard(data);
    if let Some(trailer) = data.len().checked_sub(48) {
        let mut sealed = data.to_vec();
        sealed[trailer + 40..].copy_from_slice(b"\x89bsmall\n");
        let offset = u64::from_le_bytes(sealed[trailer..trailer + 8].try_into().unwrap());
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(trailer + 32);
        let sum = bigsmall_format::internal::xxh3(&sealed[from..trailer + 32]);
        sealed[trailer + 32..trailer + 40].copy_from_slice(&sum.to_le_bytes());
        judge_shard(&sealed);
    }
}

fn edit(input: &mut Input<'_>, bytes: &mut Vec<u8>) {
    if bytes.is_empty() {
        return;
    }
    // Half of the edits are near the end, where the index is.
    let at = usize::from(input.u16()) % bytes.len();
    let at = if input.u8() & 1 == 0 { at } else { bytes.len() - 1 - at };
    let n = usize::from(input.u8()) % 8 + 1;
    let end = bytes.len().min(at + n);
    match input.u8() % 8 {
        0 => bytes[at] ^= 1 << (input.u8() % 8),
        1 => bytes[at] = input.u8(),
        2 => bytes[at..end].fill(0),
        3 => bytes[at..end].fill(0xff),
        4 => bytes[at] = bytes[at].wrapping_add(1),
        5 => bytes[at] = bytes[at].wrapping_sub(1),
        6 => {
            let from = usize::from(input.u16()) % (bytes.len() - (end - at) + 1);
            bytes.copy_within(from..from + (end - at), at);
        }
        _ => {
            let new = input.bytes(n);
            bytes.splice(at..at, new.iter().copied());
        }
    }
}

/// A valid shard of a few small tensors, edited in one to three places. The edit must be detected.
/// With every checksum recomputed, it must be an error, or a shard of other values on which all
/// readers agree.
pub fn structured_shard(data: &[u8]) {
    let mut input = Input(data);
    let n_tensors = 1 + input.u8() % 3;
    let mut tensors: Vec<(EncodedTensor, bool)> = Vec::new();
    let mut last = Vec::new();
    for i in 0..n_tensors {
        let dtype = input.one_of(Dtype::ALL);
        let units = usize::from(input.u16()) % 1100 / 24 * 24;
        let bytes = match input.u8() % 4 {
            0 => last.clone(),
            _ => input.fill(units * dtype.unit_bytes()),
        };
        let n = bytes.len() as u64 * 8 / u64::from(dtype.bits());
        let Ok(spec) = TensorSpec::new(&format!("t{i}"), dtype, &[n]) else { return };
        if spec.byte_len() != bytes.len() as u64 {
            return;
        }
        let ans = Ans::new(input.one_of(&[Level::Fast, Level::Default, Level::Small]));
        let tbe = Tbe::new(input.one_of(&[Width::Three, Width::Four]));
        let encoding: &dyn TensorEncoding = match input.u8() % 3 {
            0 => &Raw,
            1 if tbe.supports(dtype) => &tbe,
            _ => &ans,
        };
        let shared = !last.is_empty() && last == bytes && input.u8() & 1 == 1;
        tensors.push((encode_tensor(encoding, &spec, &bytes).unwrap(), shared));
        last = bytes;
    }
    let specs: Vec<TensorSpec> = tensors.iter().map(|(t, _)| t.spec().clone()).collect();
    let json = Header::synthesise(&specs).unwrap();
    let data_len = specs.iter().map(TensorSpec::byte_len).sum();
    let mut writer = Assembler::new(Vec::new(), json, data_len).unwrap();
    for (i, (tensor, shared)) in tensors.iter().enumerate() {
        if *shared && writer.share(i - 1, None).is_ok() {
            continue;
        }
        writer.tensor(tensor, None).unwrap();
    }
    let sound = writer.finish([0; 32]).unwrap();
    assert!(judge_shard(&sound).is_some(), "what is written is read");
    let seals = Seals::of(&sound).unwrap();

    let mut damaged = sound.clone();
    for _ in 0..1 + input.u8() % 3 {
        edit(&mut input, &mut damaged);
    }
    if damaged != sound {
        assert!(judge_shard(&damaged).is_none(), "damage goes unnoticed");
    }
    seals.renew(&mut damaged);
    judge_shard(&damaged);
}

fn spec(dtype: Dtype, n_units: usize) -> TensorSpec {
    let bits = (n_units * dtype.unit_bytes() * 8) as u64;
    TensorSpec::new("h", dtype, &[bits / u64::from(dtype.bits())]).unwrap()
}

const ANS_DTYPES: [Dtype; 7] =
    [Dtype::BF16, Dtype::F16, Dtype::F32, Dtype::F64, Dtype::F8_E4M3, Dtype::F8_E5M2, Dtype::U8];

fn decode_ans(ans: &Ans, spec: &TensorSpec, head: &[u8], block: &[u8]) -> Result<Vec<u8>> {
    let decoder = ans.open(spec, head)?;
    let mut dst = vec![0x5a; spec.byte_len() as usize];
    decoder.decode_blocks(&[block], &mut dst)?;
    Ok(dst)
}

/// Any bytes as the head of an ANS tensor, including frequency tables. The oracle must accept or
/// refuse the same heads. An accepted head must be written back to the same bytes, and must work
/// for coding.
pub fn frequency_table(data: &[u8]) {
    let mut input = Input(data);
    let dtype = input.one_of(&ANS_DTYPES);
    let (salt, head_bytes) = (input.u8(), input.0);
    let oracle = ans::Head::read(dtype, head_bytes);
    let small = spec(dtype, 512);
    for backend in backends() {
        let opened = Ans::default().with_backend(backend).unwrap().open(&small, head_bytes);
        assert_eq!(opened.is_ok(), oracle.is_ok(), "{:?}, {:?}", rule(&opened), oracle.err());
        if let Err(error) = opened {
            assert_eq!(error.class(), Class::Corrupt);
        }
    }
    let Ok(head) = oracle else { return };
    // G-03, G-04
    assert_eq!(head.write(), head_bytes, "one head, two ways to write it");
    let mut units = Random::new(u64::from(salt)).bytes(small.byte_len() as usize);
    if salt & 1 == 1 {
        units.fill(salt);
    }
    // No exception is farther from the window than this.
    let reach = head.base.saturating_sub(16_000)..head.base + 16_000;
    for unit in units.chunks_mut(dtype.unit_bytes()) {
        let (field, residual, low) = head.split(unit);
        if !reach.contains(&field) {
            unit.copy_from_slice(&head.join(head.base, residual, low));
        }
    }
    let low_widths = vec![0; 2];
    let tables = vec![usize::from(salt) % head.tables.len(), 0];
    let choices = ans::Choices { tables, low_widths, q: 2, begin: vec![] };
    let block = ans::encode(&head, &units, &choices).bytes();
    for backend in backends() {
        let ans = Ans::default().with_backend(backend).unwrap();
        let found = decode_ans(&ans, &small, head_bytes, &block).unwrap();
        assert!(found == units, "{backend:?}");
    }
}

/// Valid heads of every dtype and level, as the encoder writes them.
fn heads() -> &'static [(Dtype, Vec<u8>)] {
    static HEADS: OnceLock<Vec<(Dtype, Vec<u8>)>> = OnceLock::new();
    HEADS.get_or_init(|| {
        let mut heads = Vec::new();
        for dtype in ANS_DTYPES {
            for (level, rows) in [(Level::Default, 1), (Level::Small, 8)] {
                let mut random = Random::new(7 + rows);
                let n = 5000;
                let bytes: Vec<u8> = (0..n)
                    .flat_map(|i| {
                        let scale = 0.001 * (1 + i as u64 * rows / n as u64) as f64;
                        let value = f64::from(random.signed() + random.signed()) * scale;
                        // The second head of each dtype includes a head for masks.
                        let value = if rows > 1 && i % 3 != 0 { 0.0 } else { value };
                        let bits = match dtype {
                            Dtype::BF16 => u64::from((value as f32).to_bits() >> 16),
                            Dtype::F16 => u64::from((value as f32).to_bits() >> 13 & 0xffff),
                            Dtype::F32 => u64::from((value as f32).to_bits() & 0xffff_f000),
                            Dtype::F64 => value.to_bits(),
                            _ => (value * 20_000.0) as i64 as u64 & 0xff,
                        };
                        bits.to_le_bytes().into_iter().take(dtype.unit_bytes())
                    })
                    .collect();
                let plan = Ans::new(level).plan(&spec(dtype, n), &bytes).unwrap();
                heads.push((dtype, plan.head().to_vec()));
            }
        }
        // The same with columns, of all classes and then of a few.
        for i in 0..heads.len() {
            let (dtype, head) = &heads[i];
            let mut head = ans::Head::read(*dtype, head).unwrap();
            head.columns =
                (0..77 + 300 * i).map(|column| (column * column % 11 % 8) as u8).collect();
            heads.push((*dtype, head.write()));
        }
        heads
    })
}

/// The bits in the last byte of a mask that follow the bit of the last unit.
fn mask_padding(n_units: usize) -> usize {
    8 * n_units.div_ceil(8) - n_units
}

/// An ANS block: any bytes, or a valid block with edits. Every backend must agree with the oracle.
pub fn ans_block(data: &[u8]) {
    let mut input = Input(data);
    let (dtype, head_bytes) = &heads()[usize::from(input.u8()) % heads().len()];
    let head = ans::Head::read(*dtype, head_bytes).unwrap();
    let n_units = usize::from(input.u16()) % 1500 + 1;
    let spec = spec(*dtype, n_units);
    let block = if input.u8() & 1 == 0 {
        input.0.to_vec()
    } else {
        let units = input.fill(n_units * dtype.unit_bytes());
        let pick = usize::from(input.u8());
        let choices = ans::Choices {
            tables: (0..8).map(|i| (pick + i) % head.tables.len()).collect(),
            low_widths: vec![0; 8],
            q: u32::from(input.u8()) % 16,
            begin: vec![],
        };
        let encode = |units: &[u8]| match units.len() / dtype.unit_bytes() {
            0..256 => [&[0; 8], units].concat(),
            _ => ans::encode(&head, units, &choices).bytes(),
        };
        let mut block = encode(&units);
        if head.mask.is_some() && n_units >= 256 && input.u8() & 1 == 1 {
            let mut mask = input.fill(n_units.div_ceil(8));
            if let Some(last) = mask.last_mut() {
                *last &= 0xff >> mask_padding(n_units);
            }
            let n_others = mask.iter().map(|byte| byte.count_ones()).sum::<u32>() as usize;
            let others = encode(&units[..n_others * dtype.unit_bytes()]);
            block = ans::zeros_block(&[&[0; 8], &mask[..]].concat(), &others, n_others);
        }
        if !head.columns.is_empty() && n_units >= 256 && input.u8() & 1 == 1 {
            let first = usize::from(input.u16()) % (head.columns.len() + 1);
            let order = ans::order_of_classes(&head.columns, first, n_units);
            let unit_bytes = dtype.unit_bytes();
            let ordered = order.iter().flat_map(|&i| &units[i * unit_bytes..][..unit_bytes]);
            block = ans::columns_block(first, &encode(&ordered.copied().collect::<Vec<_>>()));
        }
        if input.u8() & 1 == 1 {
            let level = input.u8() % 11;
            block = ans::deflate_block(&miniz_oxide::deflate::compress_to_vec(&units, level));
        }
        for _ in 0..input.u8() % 4 {
            edit(&mut input, &mut block);
        }
        block
    };
    let expected = ans::decode(&head, &block, n_units);
    let mut first = None;
    for backend in backends() {
        let ans = Ans::default().with_backend(backend).unwrap();
        let found = decode_ans(&ans, &spec, head_bytes, &block);
        if let Err(error) = &found {
            assert_eq!(error.class(), Class::Corrupt, "{error:?}");
        }
        let found = found.map_err(|e| e.rule());
        assert!(
            found.as_ref().ok() == expected.as_ref().ok(),
            "{backend:?}: {:?}, the oracle: {:?}",
            found.err(),
            expected.err()
        );
        assert_eq!(first.get_or_insert(found.clone()).as_ref().err(), found.as_ref().err());
    }
}

/// A TBE payload: any bytes, or a valid payload with edits. If it is accepted, every reader and the
/// oracle must read the same values, and it must be the only encoding of them with that head.
pub fn tbe_view(data: &[u8]) {
    let mut input = Input(data);
    let dtype = input.one_of(&tbe::DTYPES);
    let n = usize::from(input.u16()) % 1500 + 1;
    let spec = spec(dtype, n);
    let mut head = vec![0; 8];
    let (block, width, base) = if input.u8() & 1 == 0 {
        let bytes = input.bytes(8);
        head[..bytes.len()].copy_from_slice(bytes);
        (input.0.to_vec(), usize::from(head[0]), head[1])
    } else {
        let width = usize::from(input.u8() % 2) + 3;
        let window = (1u32 << width) - 1;
        let bases = (1u32 << tbe::fields(dtype).0) - window + 1;
        let base = (u32::from(input.u8()) % bases) as u8;
        let values = tbe::values(dtype, &input.fill(n * dtype.unit_bytes()));
        let mut block = tbe::encode_block(dtype, width, base, &values);
        for _ in 0..input.u8() % 4 {
            edit(&mut input, &mut block);
        }
        (head[0], head[1]) = (width as u8, base);
        (block, width, base)
    };
    let mut first: Option<std::result::Result<Vec<u8>, Rule>> = None;
    for backend in bigsmall_tbe::backends() {
        let encoding = Tbe::default().with_backend(backend).unwrap();
        let mut dst = vec![0x5a; spec.byte_len() as usize];
        let found = encoding.open(&spec, &head).and_then(|decoder| {
            decoder.decode_blocks(&[&block], &mut dst)?;
            Ok(dst)
        });
        if let Err(error) = &found {
            assert_eq!(error.class(), Class::Corrupt, "{error:?}");
        }
        let found = found.map_err(|e| e.rule());
        let first = first.get_or_insert_with(|| found.clone());
        assert!(*first == found, "{backend:?}: {:?}, {:?}", found.err(), first.as_ref().err());
    }
    let first = first.unwrap();
    let mut payload = [&head[..], &block].concat();
    payload.resize(payload.len().next_multiple_of(8), 0);
    let lens = vec![block.len() as u32];
    if let Ok(tensor) = EncodedTensor::new(spec.clone(), EncodingId::Tbe, 8, lens, payload) {
        let view = View::new(&tensor);
        assert_eq!(rule(&view), first.as_ref().err().copied());
        if let (Ok(view), Ok(bytes)) = (view, &first) {
            let values = tbe::values(dtype, bytes);
            for i in [0, n / 2, n - 1] {
                assert_eq!(view.get(i as u64), Some(values[i]));
            }
            let range = n / 3..n - n / 3;
            let unit = dtype.unit_bytes();
            let mut part = vec![0; range.len() * unit];
            view.decode(range.start as u64..range.end as u64, &mut part).unwrap();
            assert!(part == bytes[range.start * unit..range.end * unit]);
        }
    }
    if let Ok(bytes) = &first {
        let values = tbe::decode_block(dtype, width, base, n, &block);
        assert!(tbe::bytes(dtype, &values) == *bytes, "the oracle reads other values");
        assert!(tbe::encode_block(dtype, width, base, &values) == block, "two ways to write it");
    }
}

/// Any bytes as the header of a safetensors file. If it is accepted, the crate `safetensors` must
/// accept it too, with the same meaning.
pub fn safetensors_header(data: &[u8]) {
    // A data section of the length that the header states.
    let end = |entry: &serde_json::Value| entry.get("data_offsets")?.get(1)?.as_u64();
    let parsed = serde_json::from_slice::<serde_json::Value>(data).ok();
    let ends = parsed.as_ref().and_then(|v| v.as_object()).into_iter().flatten();
    let data_len = ends.filter_map(|(_, entry)| end(entry)).max().unwrap_or(0);
    let ours = Header::parse(data, data_len, &Limits::default());
    let header = match ours {
        Ok(header) => header,
        Err(error) => return assert_refused(&error),
    };
    assert_eq!(header.data_len(), data_len);
    for (i, spec) in header.tensors().iter().enumerate() {
        assert_eq!(header.index_of(spec.name()), Some(i));
    }
    if data_len > 1 << 16 {
        return;
    }
    let mut file = (data.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(data);
    file.resize(file.len() + data_len as usize, 0);
    let (json, again) = Header::read(&file, &Limits::default()).unwrap();
    assert!(json == data && again == header);
    let theirs = safetensors::SafeTensors::deserialize(&file).expect("we take more than they do");
    assert_eq!(theirs.len(), header.tensors().len());
    for spec in header.tensors() {
        let tensor = theirs.tensor(spec.name()).unwrap();
        assert_eq!(format!("{:?}", tensor.dtype()), format!("{:?}", spec.dtype()));
        let shape: Vec<u64> = tensor.shape().iter().map(|&n| n as u64).collect();
        assert_eq!(shape, spec.shape());
        assert_eq!(tensor.data().len() as u64, spec.byte_len());
    }
}

/// A temporary folder, in main memory where the system has such folders.
pub(crate) fn in_memory() -> tempfile::TempDir {
    let shm = std::path::Path::new("/dev/shm");
    let dir = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() };
    dir.unwrap()
}

/// A model folder of two shards, the same for every input.
fn folder() -> &'static PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let dir = in_memory().keep();
        for (name, tensors) in [("a.bs", &["x", "y"][..]), ("b.bs", &["z"])] {
            let specs: Vec<_> =
                tensors.iter().map(|t| TensorSpec::new(t, Dtype::U8, &[3]).unwrap()).collect();
            let mut writer = ShardWriter::synthesised(Vec::new(), &specs).unwrap();
            for spec in &specs {
                writer.write(spec, &[1, 2, 3], &Raw).unwrap();
            }
            std::fs::write(dir.join(name), writer.finish().unwrap()).unwrap();
        }
        dir
    })
}

/// Removes the files that [`index_json`] keeps between its calls.
pub fn clean_up() {
    let _ = std::fs::remove_dir_all(folder());
}

/// Any bytes as the index file of a model. It must be accepted only if it names the right shard for
/// every tensor, and no other tensors.
pub fn index_json(data: &[u8]) {
    std::fs::write(folder().join("model.bs.index.json"), data).unwrap();
    let model = bigsmall_io::Model::open(folder());
    let parsed = serde_json::from_slice::<serde_json::Value>(data).ok();
    let says = parsed.as_ref().and_then(|v| v.get("weight_map"));
    // Shards without a tensor in the index are not part of the model.
    let right = [
        serde_json::json!({}),
        serde_json::json!({ "x": "a.bs", "y": "a.bs" }),
        serde_json::json!({ "z": "b.bs" }),
        serde_json::json!({ "x": "a.bs", "y": "a.bs", "z": "b.bs" }),
    ];
    let sound = says.and_then(|says| right.iter().find(|map| *map == says));
    match model {
        Ok(model) => {
            let map = sound.expect("it says where every tensor is").as_object().unwrap();
            let names: Vec<&str> = model.tensors().map(TensorSpec::name).collect();
            assert_eq!(names.len(), map.len());
            for name in names {
                assert!(map.contains_key(name));
                assert_eq!(model.tensor(name).unwrap().bytes(), [1, 2, 3]);
            }
        }
        Err(error) => {
            // If a named shard does not exist, reading fails.
            let refused = matches!(error.class(), Class::Corrupt | Class::Limit | Class::Io);
            assert!(refused, "{error:?}");
            assert!(!error.to_string().chars().any(char::is_control), "{error}");
            // The entries are right, so only a duplicate key is a reason to refuse the file.
            let keys = data.windows(10).filter(|w| *w == b"weight_map").count();
            let colons = data.iter().filter(|b| **b == b':').count();
            let tensors = sound.and_then(|map| map.as_object()).map(serde_json::Map::len);
            let plain = tensors.is_some_and(|n| colons == n + 1) && !data.contains(&b'\\');
            assert!(!plain || keys > 1, "refused: {error:?}");
        }
    }
}

/// Any bytes as the values of a tensor of any dtype. Every encoding must restore them, as a whole
/// and in parts, and every backend must write the same bytes.
pub fn round_trip(data: &[u8]) {
    let mut input = Input(data);
    let dtype = input.one_of(Dtype::ALL);
    let element = match dtype.bits() {
        4 => 1,
        6 => 3,
        bits => bits as usize / 8,
    };
    let (kind, level) = (input.u8(), input.one_of(&[Level::Fast, Level::Default, Level::Small]));
    let (from, to) = (usize::from(input.u16()), usize::from(input.u16()));
    // Mostly a few groups: one long tensor takes as much time as a hundred short ones.
    let n_units = match kind >> 4 {
        3 => MAX_BLOCK_UNITS + 300,
        2 => usize::from(input.u16()),
        _ => usize::from(input.u16() % 2048),
    };
    let mut bytes = match kind & 0x30 {
        0 => input.0.to_vec(),
        _ => input.fill(n_units * dtype.unit_bytes()),
    };
    bytes.truncate(bytes.len() / element * element);
    let n = bytes.len() as u64 * 8 / u64::from(dtype.bits());
    let spec = TensorSpec::new("w", dtype, &[n]).unwrap();
    let tbe = Tbe::new(if kind & 1 == 0 { Width::Three } else { Width::Four });
    let encodings: Vec<Box<dyn TensorEncoding>> = match kind % 4 {
        3 => vec![Box::new(Raw)],
        2 if tbe.supports(dtype) => bigsmall_tbe::backends()
            .map(|b| Box::new(tbe.with_backend(b).unwrap()) as Box<dyn TensorEncoding>)
            .collect(),
        // One backend needs a second for a full block.
        _ => backends()
            .filter(|b| bytes.len() < 1 << 16 || *b != Backend::Reference)
            .map(|b| Box::new(Ans::new(level).with_backend(b).unwrap()) as Box<dyn TensorEncoding>)
            .collect(),
    };
    let encoded = encode_tensor(&*encodings[0], &spec, &bytes).unwrap();
    let frame = encoded.to_bytes();
    let read = EncodedTensor::from_bytes(&frame).unwrap();
    assert_eq!(read, encoded);
    let unit = dtype.unit_bytes();
    let (from, to) = (from.min(to) * unit, from.max(to) * unit);
    let part = from.min(bytes.len())..to.min(bytes.len());
    for encoding in &encodings {
        let again = encode_tensor(&**encoding, &spec, &Copying(&bytes)).unwrap();
        assert!(again == encoded, "backends write different bytes");
        let mut back = vec![0xa5; bytes.len()];
        read.decode_bytes(&**encoding, 0..bytes.len() as u64, &mut back).unwrap();
        assert!(back == bytes, "{dtype}: not every bit came back");
        back.truncate(part.len());
        let range = part.start as u64..part.end as u64;
        read.decode_bytes(&**encoding, range, &mut back).unwrap();
        assert!(back == bytes[part.clone()], "{dtype}: a range came back wrong");
    }
}
